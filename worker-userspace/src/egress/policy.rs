//! What a worker may dial.
//!
//! The worker enforces this itself, for each stream, on the very address that is dialled: neither the
//! appliance nor a name's owner can make it reach what its administrator did not allow. Nothing allowed
//! means nothing. Addresses that reach the worker's own host or its cloud's metadata service are denied
//! unless they are named as such: `0.0.0.0/0` does not name `127.0.0.1`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::refusal::{Code, Refusal};
use crate::target::{Host, HostPattern, Pattern, PatternMap, Target};

/// Ranges that stand for the worker's own host, its link or its cloud's metadata service.
const SPECIAL: [(&str, &str); 12] = [
    ("127.0.0.0/8", "loopback"),
    ("0.0.0.0/8", "this host"),
    ("169.254.0.0/16", "link-local, where cloud metadata lives"),
    ("224.0.0.0/4", "multicast"),
    ("255.255.255.255/32", "broadcast"),
    ("100.100.100.200/32", "cloud metadata"),
    ("192.0.0.192/32", "cloud metadata"),
    ("::1/128", "loopback"),
    ("::/128", "this host"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
    ("fd00:ec2::254/128", "cloud metadata"),
];

/// The worker's egress policy.
#[derive(Debug)]
pub struct Policy {
    allow: PatternMap<()>,
    deny: PatternMap<()>,
    special: Vec<(IpNet, &'static str)>,
    /// Allowed networks that lie within a special range, with their ports: the administrator named it.
    named: PatternMap<()>,
}

impl Policy {
    /// A policy that allows what `allow` matches and `deny` does not.
    pub fn new(allow: &[Pattern], deny: &[Pattern]) -> Policy {
        fn map<'p>(patterns: impl IntoIterator<Item = &'p Pattern>) -> PatternMap<()> {
            let mut map = PatternMap::default();
            patterns.into_iter().for_each(|pattern| map.insert(pattern.clone(), ()));
            map
        }
        let special: Vec<(IpNet, _)> =
            SPECIAL.iter().filter_map(|(net, what)| Some((net.parse().ok()?, *what))).collect();
        let named = map(allow.iter().filter(|pattern| match &pattern.host {
            HostPattern::Net(net) => special.iter().any(|(range, _)| range.contains(net)),
            _ => false,
        }));
        Policy { allow: map(allow), deny: map(deny), special, named }
    }

    /// Judges a target before its name is resolved: what can't be allowed is not even asked for.
    ///
    /// # Errors
    /// [`Code::Denied`] with the reason.
    pub fn check_target(&self, target: &Target) -> Result<(), Refusal> {
        match &target.host {
            Host::Addr(addr) => self.check_addr(target, *addr),
            Host::Name(_) => {
                if let Some((pattern, ())) = self.deny.find(target) {
                    return Err(denied(format!("{target} is denied by `{pattern}` in egress.deny")));
                }
                let by_name = self.allow.find(target).is_some();
                // An allowed network may hold the name's address.
                if by_name || self.allow.has_networks() { Ok(()) } else { Err(not_allowed(target)) }
            }
        }
    }

    /// Judges the address that is about to be dialled for `target`.
    ///
    /// # Errors
    /// [`Code::Denied`] with the reason.
    pub fn check_addr(&self, target: &Target, addr: IpAddr) -> Result<(), Refusal> {
        let dialled = Target { host: Host::addr(addr), port: target.port };
        let addr = embedded(addr);
        let meant = Target { host: Host::Addr(addr), port: target.port };
        let all = [target, &dialled, &meant];
        for asked in all {
            if let Some((pattern, ())) = self.deny.find(asked) {
                return Err(denied(format!("{asked} is denied by `{pattern}` in egress.deny")));
            }
        }
        if all.iter().all(|asked| self.allow.find(asked).is_none()) {
            return Err(match &target.host {
                Host::Name(name) => {
                    denied(format!("{name} has the address {addr}; neither is in egress.allow"))
                }
                Host::Addr(_) => not_allowed(target),
            });
        }
        match self.special.iter().find(|(range, _)| range.contains(&addr)) {
            Some((_, what)) if self.named.find(&meant).is_none() => {
                Err(denied(format!("{addr} is {what}; name it in egress.allow if it is meant")))
            }
            _ => Ok(()),
        }
    }
}

fn denied(text: String) -> Refusal {
    Refusal::new(Code::Denied, text)
}

fn not_allowed(target: &Target) -> Refusal {
    denied(format!("{target} is not in egress.allow"))
}

/// The IPv4 address that an IPv6 one stands for: mapped, compatible, 6to4 or NAT64. An address is judged both as this
/// and as itself.
fn embedded(addr: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = addr.to_canonical() else { return addr.to_canonical() };
    let low = |v6: Ipv6Addr| Ipv4Addr::from(v6.to_bits() as u32);
    match v6.segments() {
        [0, 0, 0, 0, 0, 0, high, _] if high != 0 => low(v6).into(),
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] => low(v6).into(),
        [0x2002, a, b, ..] => Ipv4Addr::from(u32::from(a) << 16 | u32::from(b)).into(),
        _ => v6.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(allow: &[&str], deny: &[&str]) -> Policy {
        let parse = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<Pattern>>();
        Policy::new(&parse(allow), &parse(deny))
    }

    fn judge(policy: &Policy, host: &str, addr: &str, port: u16) -> Result<(), String> {
        let target = Target { host: host.parse().unwrap(), port };
        policy.check_target(&target).map_err(|r| r.text)?;
        policy.check_addr(&target, addr.parse().unwrap()).map_err(|r| r.text)
    }

    #[test]
    fn only_what_is_allowed_is_dialled() {
        let policy = policy(
            &["vcenter.corp.example:443", "10.20.0.0/16", "*.lab.example"],
            &["10.20.9.0/24", "secret.lab.example"],
        );
        for (host, addr, port, allowed) in [
            ("vcenter.corp.example", "10.99.0.1", 443, true),
            ("vcenter.corp.example", "10.99.0.1", 22, false),
            ("other.corp.example", "10.20.0.1", 22, true),
            ("other.corp.example", "10.21.0.1", 22, false),
            ("10.20.0.1", "10.20.0.1", 22, true),
            ("10.20.9.1", "10.20.9.1", 22, false),
            ("vcenter.corp.example", "10.20.9.1", 443, false),
            ("a.lab.example", "192.0.2.1", 1, true),
            ("secret.lab.example", "10.20.0.1", 1, false),
            ("192.0.2.1", "192.0.2.1", 443, false),
        ] {
            assert_eq!(judge(&policy, host, addr, port).is_ok(), allowed, "{host} at {addr}:{port}");
        }
    }

    #[test]
    fn a_name_does_not_lead_to_the_workers_own_host() {
        let policy = policy(&["*.corp.example", "0.0.0.0/0", "::/0"], &[]);
        for addr in [
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::1",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "fd00:ec2::254",
            "0.0.0.0",
            "::",
            "255.255.255.255",
        ] {
            assert!(judge(&policy, "evil.corp.example", addr, 80).is_err(), "{addr} by name");
            assert!(judge(&policy, addr, addr, 80).is_err(), "{addr} itself");
        }
        assert!(judge(&policy, "good.corp.example", "192.0.2.1", 80).is_ok());
    }

    #[test]
    fn what_an_address_stands_for_does_not_hide_what_it_is() {
        let policy = policy(&["*.corp.example", "2002:cb00:7100::/48"], &["64:ff9b::/96", "[2002::/16]:22"]);
        for (host, addr, port, allowed) in [
            ("a.corp.example", "64:ff9b::cb00:7101", 443, false),
            ("64:ff9b::cb00:7101", "64:ff9b::cb00:7101", 443, false),
            ("a.corp.example", "2002:cb00:7100::1", 443, true),
            ("a.corp.example", "2002:cb00:7100::1", 22, false),
            ("a.lab.example", "2002:cb00:7100::1", 443, true),
            ("2002:cb00:7100::1", "2002:cb00:7100::1", 443, true),
            ("2002:cb00:7100::1", "2002:cb00:7100::1", 22, false),
        ] {
            assert_eq!(judge(&policy, host, addr, port).is_ok(), allowed, "{host} at {addr}:{port}");
        }
    }

    #[test]
    fn a_special_address_that_is_named_is_allowed() {
        let policy = policy(&["127.0.0.1:8080", "169.254.169.254", "*.corp.example"], &[]);
        assert!(judge(&policy, "127.0.0.1", "127.0.0.1", 8080).is_ok());
        assert!(judge(&policy, "127.0.0.1", "127.0.0.1", 8081).is_err());
        assert!(judge(&policy, "127.0.0.2", "127.0.0.2", 8080).is_err());
        assert!(judge(&policy, "a.corp.example", "127.0.0.1", 8080).is_ok());
        assert!(judge(&policy, "a.corp.example", "127.0.0.1", 22).is_err(), "that port was not named");
        assert!(judge(&policy, "169.254.169.254", "169.254.169.254", 80).is_ok());
    }

    #[test]
    fn nothing_allowed_means_nothing() {
        assert!(judge(&policy(&[], &[]), "192.0.2.1", "192.0.2.1", 443).is_err());
        assert!(judge(&policy(&[], &[]), "vcenter.corp.example", "192.0.2.1", 443).is_err());
    }

    #[test]
    fn all_special_ranges_are_networks() {
        assert_eq!(policy(&[], &[]).special.len(), SPECIAL.len());
    }
}
