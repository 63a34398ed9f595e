//! Addresses as both sides write them: sixteen bytes, IPv4 in its v4-mapped form.
//!
//! One form means one key layout for every map and one comparison, whatever socket family asked.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The third word of a v4-mapped address: `0000:ffff` in network order.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

/// An IP address in four words, each in network byte order, as the kernel's `user_ip6` has them.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Addr {
    /// The words; IPv4 is `::ffff:a.b.c.d`.
    pub words: [u32; 4],
}

impl Addr {
    /// IPv4's loopback, where the listener for IPv4 and v4-mapped connections is.
    pub const LOOPBACK4: Addr = Addr::v4(u32::from_ne_bytes([127, 0, 0, 1]));
    /// IPv6's loopback, where the listener for native IPv6 connections is.
    pub const LOOPBACK6: Addr = Addr { words: [0, 0, 0, 1_u32.to_be()] };

    /// An IPv4 address from its word in network byte order.
    #[inline(always)]
    pub const fn v4(word: u32) -> Addr {
        Addr { words: [0, 0, MAPPED, word] }
    }

    /// True for IPv4, and so for v4-mapped IPv6, which means the same.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED
    }

    /// The IPv4 word in network byte order; meaningful only where [`Addr::is_v4`] holds.
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.words[3]
    }

    /// True for `127.0.0.0/8`, `::1`, and for `0.0.0.0` and `::`, which `connect()` takes for loopback.
    #[inline(always)]
    pub const fn is_local(&self) -> bool {
        if self.is_v4() {
            return self.words[3].to_ne_bytes()[0] == 127 || self.words[3] == 0;
        }
        self.words[0] == 0
            && self.words[1] == 0
            && self.words[2] == 0
            && (self.words[3] == 0 || self.words[3] == 1_u32.to_be())
    }

    /// True for `fe80::/10`: such an address means nothing without its interface.
    #[inline(always)]
    pub const fn is_link_local6(&self) -> bool {
        u32::from_be(self.words[0]) >> 22 == 0xfe80 >> 6
    }

    /// The loopback address on which the listener for this destination is.
    #[inline(always)]
    pub const fn loopback(&self) -> Addr {
        if self.is_v4() { Addr::LOOPBACK4 } else { Addr::LOOPBACK6 }
    }
}

impl From<IpAddr> for Addr {
    fn from(addr: IpAddr) -> Addr {
        let octets = match addr {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(octets.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Addr { words }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> IpAddr {
        if addr.is_v4() {
            return Ipv4Addr::from(addr.v4_word().to_ne_bytes()).into();
        }
        let mut octets = [0; 16];
        for (bytes, word) in octets.chunks_exact_mut(4).zip(addr.words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Ipv6Addr::from(octets).into()
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

/// An address and a port: where a connection was going, and the key of the map of targets that are down.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Dest {
    /// The address.
    pub addr: Addr,
    /// The port, host byte order.
    pub port: u16,
    /// Zero.
    pub zero: u16,
}

impl Dest {
    /// A destination; `port` in host byte order.
    #[inline(always)]
    pub const fn new(addr: Addr, port: u16) -> Dest {
        Dest { addr, port, zero: 0 }
    }
}

impl From<SocketAddr> for Dest {
    fn from(addr: SocketAddr) -> Dest {
        Dest::new(addr.ip().into(), addr.port())
    }
}

impl From<Dest> for SocketAddr {
    fn from(dest: Dest) -> SocketAddr {
        SocketAddr::new(dest.addr.into(), dest.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn the_words_are_the_kernels() {
        assert_eq!(Addr::LOOPBACK4, addr("127.0.0.1"));
        assert_eq!(Addr::LOOPBACK4, addr("::ffff:127.0.0.1"));
        assert_eq!(Addr::LOOPBACK6, addr("::1"));
        assert_eq!(addr("10.1.2.3"), Addr::v4(u32::from_ne_bytes([10, 1, 2, 3])));
    }

    #[test]
    fn what_is_local() {
        for text in ["127.0.0.1", "127.255.0.9", "0.0.0.0", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "::1", "::"]
        {
            assert!(addr(text).is_local(), "{text}");
        }
        for text in
            ["128.0.0.1", "126.0.0.1", "0.0.0.1", "::2", "::127.0.0.1", "1::", "1::1", "::fffe:127.0.0.1"]
        {
            assert!(!addr(text).is_local(), "{text}");
        }
    }

    #[test]
    fn what_is_link_local() {
        for (text, expected) in [
            ("fe80::1", true),
            ("febf::1", true),
            ("fec0::1", false),
            ("fe7f::1", false),
            ("169.254.0.1", false),
        ] {
            assert_eq!(addr(text).is_link_local6(), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn an_address_survives_the_records(ip: IpAddr) {
            prop_assert_eq!(IpAddr::from(Addr::from(ip)), ip.to_canonical());
        }
    }
}
