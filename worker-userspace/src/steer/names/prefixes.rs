//! The arithmetic of synthetic addresses: one index stands for one address in each family.
//!
//! What must hold: an index gives the same two addresses for as long as the prefixes stay, and no two
//! indices share an address. The network address (index 0) and the IPv4 broadcast address are never given.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// The addresses that steering answers for one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Synthetic {
    /// The name's number, from 1.
    pub index: u32,
    /// The address in the IPv4 prefix.
    pub v4: Ipv4Addr,
    /// The address in the IPv6 prefix.
    pub v6: Ipv6Addr,
}

/// The two prefixes that synthetic addresses come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefixes {
    v4: Ipv4Net,
    v6: Ipv6Net,
}

/// Why two prefixes can't be used. The message names the config key and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// The IPv4 prefix is too long or too short.
    #[error("steer.synthetic4 = \"{0}\": the prefix length must be 8 to 30, as in \"240.64.0.0/16\"")]
    Length4(Ipv4Net),
    /// The IPv6 prefix has fewer addresses than the IPv4 prefix.
    #[error(
        "steer.synthetic6 = \"{v6}\" has fewer addresses than steer.synthetic4 = \"{v4}\"; a /64 always has enough"
    )]
    TooSmall6 {
        /// The IPv4 prefix.
        v4: Ipv4Net,
        /// The IPv6 prefix.
        v6: Ipv6Net,
    },
    /// A prefix has bits behind its length.
    #[error("{key} = \"{given}\" has bits set behind the prefix; the network is \"{network}\"")]
    HostBits {
        /// The config key.
        key: &'static str,
        /// What was written.
        given: String,
        /// What was meant.
        network: String,
    },
    /// A prefix that means something else to every host: loopback, multicast, link-local, v4-mapped.
    #[error(
        "{key} = \"{given}\" lies in {used}, which hosts use themselves; take the default, or a range that nobody routes"
    )]
    Special {
        /// The config key.
        key: &'static str,
        /// What was written.
        given: String,
        /// What the range is for.
        used: &'static str,
    },
}

impl Default for Prefixes {
    /// `240.64.0.0/16` (reserved, routed nowhere) and `2001:2::/48` (benchmarking, RFC 5180).
    fn default() -> Prefixes {
        let v4 = Ipv4Net::new_assert(Ipv4Addr::new(240, 64, 0, 0), 16);
        Prefixes { v4, v6: Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0), 48) }
    }
}

impl Prefixes {
    /// Prefixes from the configuration.
    ///
    /// # Errors
    /// When a prefix has host bits, is too small or too large, or lies in a range that hosts use themselves.
    pub fn new(v4: Ipv4Net, v6: Ipv6Net) -> Result<Prefixes, PrefixError> {
        let host_bits = |key, given: String, network: String| match given == network {
            true => Ok(()),
            false => Err(PrefixError::HostBits { key, given, network }),
        };
        host_bits("steer.synthetic4", v4.to_string(), v4.trunc().to_string())?;
        host_bits("steer.synthetic6", v6.to_string(), v6.trunc().to_string())?;
        if !(8..=30).contains(&v4.prefix_len()) {
            return Err(PrefixError::Length4(v4));
        }
        if 128 - v6.prefix_len() < 32 - v4.prefix_len() {
            return Err(PrefixError::TooSmall6 { v4, v6 });
        }
        for (range, used) in SPECIAL4 {
            if overlap4(v4, range) {
                return Err(PrefixError::Special { key: "steer.synthetic4", given: v4.to_string(), used });
            }
        }
        for (range, used) in SPECIAL6 {
            if overlap6(v6, range) {
                return Err(PrefixError::Special { key: "steer.synthetic6", given: v6.to_string(), used });
            }
        }
        Ok(Prefixes { v4, v6 })
    }

    /// The IPv4 prefix.
    pub fn v4(&self) -> Ipv4Net {
        self.v4
    }

    /// The IPv6 prefix.
    pub fn v6(&self) -> Ipv6Net {
        self.v6
    }

    /// How many names fit: the IPv4 prefix without its network and broadcast addresses.
    pub fn capacity(&self) -> u32 {
        (u32::MAX >> self.v4.prefix_len()) - 1
    }

    /// The addresses of `index`; `None` for 0 and beyond [`capacity`](Self::capacity).
    pub fn at(&self, index: u32) -> Option<Synthetic> {
        (1..=self.capacity()).contains(&index).then(|| Synthetic {
            index,
            v4: Ipv4Addr::from_bits(self.v4.network().to_bits() + index),
            v6: Ipv6Addr::from_bits(self.v6.network().to_bits() + u128::from(index)),
        })
    }

    /// The addresses that no name is ever given, by which `dworker doctor` finds out whether the programs judge: the
    /// networks' own.
    pub fn canary(&self) -> Synthetic {
        Synthetic { index: 0, v4: self.v4.network(), v6: self.v6.network() }
    }

    /// True where `addr` lies in a synthetic prefix, given to a name or not.
    pub fn contains(&self, addr: IpAddr) -> bool {
        match addr.to_canonical() {
            IpAddr::V4(addr) => self.v4.contains(&addr),
            IpAddr::V6(addr) => self.v6.contains(&addr),
        }
    }

    /// The index that `addr` stands for, the reverse of [`at`](Self::at).
    pub fn index_of(&self, addr: IpAddr) -> Option<u32> {
        let offset = match addr.to_canonical() {
            IpAddr::V4(addr) => u128::from(addr.to_bits().checked_sub(self.v4.network().to_bits())?),
            IpAddr::V6(addr) => addr.to_bits().checked_sub(self.v6.network().to_bits())?,
        };
        u32::try_from(offset).ok().filter(|index| (1..=self.capacity()).contains(index))
    }
}

const SPECIAL4: [(Ipv4Net, &str); 4] = [
    (Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8), "\"this network\" (0.0.0.0/8)"),
    (Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8), "loopback (127.0.0.0/8)"),
    (Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16), "link-local (169.254.0.0/16)"),
    (Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4), "multicast (224.0.0.0/4)"),
];

const SPECIAL6: [(Ipv6Net, &str); 3] = [
    // Loopback, unspecified, v4-compatible and v4-mapped.
    (Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 8), "a reserved range (::/8)"),
    (Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10), "link-local (fe80::/10)"),
    (Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8), "multicast (ff00::/8)"),
];

fn overlap4(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

fn overlap6(a: Ipv6Net, b: Ipv6Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_name_gets_the_first_address_and_the_broadcast_address_is_never_given() {
        let prefixes = Prefixes::default();
        let first = prefixes.at(1).unwrap();
        assert_eq!((first.v4.to_string(), first.v6.to_string()), ("240.64.0.1".into(), "2001:2::1".into()));
        assert_eq!(prefixes.capacity(), 65534);
        assert_eq!(prefixes.at(65534).unwrap().v4.to_string(), "240.64.255.254");
        assert_eq!((prefixes.at(0), prefixes.at(65535)), (None, None));
        for addr in ["240.64.0.0", "240.64.255.255", "2001:2::", "2001:2::ffff", "240.65.0.1", "2001:2:1::1"]
        {
            assert_eq!(prefixes.index_of(addr.parse().unwrap()), None, "{addr}");
        }
        assert_eq!(prefixes.index_of("::ffff:240.64.0.7".parse().unwrap()), Some(7));
    }

    #[test]
    fn unusable_prefixes_are_named_with_their_key() {
        for (v4, v6, says) in [
            ("240.64.0.0/31", "2001:2::/48", "steer.synthetic4 = \"240.64.0.0/31\": the prefix length"),
            ("0.0.0.0/0", "2001:2::/48", "8 to 30"),
            ("240.64.0.0/16", "2001:2::/113", "steer.synthetic6 = \"2001:2::/113\" has fewer"),
            ("240.64.0.1/16", "2001:2::/48", "the network is \"240.64.0.0/16\""),
            ("240.64.0.0/16", "2001:2::1/48", "the network is \"2001:2::/48\""),
            ("127.64.0.0/16", "2001:2::/48", "loopback"),
            ("240.64.0.0/16", "fe80::/64", "link-local"),
            ("240.64.0.0/16", "::ffff:0:0/96", "reserved"),
        ] {
            let error = Prefixes::new(v4.parse().unwrap(), v6.parse().unwrap()).expect_err(v4).to_string();
            assert!(error.contains(says), "{v4} {v6} gave {error:?}, without {says:?}");
        }
    }

    proptest! {
        #[test]
        fn an_address_leads_back_to_its_index(index: u32, length in 8u8..=30) {
            let v4 = Ipv4Net::new("240.0.0.0".parse().unwrap(), length).unwrap();
            let prefixes = Prefixes::new(v4, "2001:2::/64".parse().unwrap()).unwrap();
            let index = 1 + index % prefixes.capacity();
            let synthetic = prefixes.at(index).unwrap();
            prop_assert!(prefixes.contains(synthetic.v4.into()) && prefixes.contains(synthetic.v6.into()));
            prop_assert_eq!(prefixes.index_of(synthetic.v4.into()), Some(index));
            prop_assert_eq!(prefixes.index_of(synthetic.v6.into()), Some(index));
            prop_assert_ne!(synthetic.v4, v4.broadcast());
        }
    }
}
