//! What a worker may dial.
//!
//! What the appliance pushed, and of that, where the worker's own `egress.allow` says so, only what it names too;
//! `egress.deny` wins over both. An appliance that pushes nothing leaves it to `egress.allow` alone. Nothing pushed
//! and nothing allowed means nothing.
//!
//! The worker enforces this itself, for each stream, on the very address that is dialled: neither the
//! appliance nor a name's owner can make it reach what its administrator did not allow. Addresses that reach the
//! worker's own host or its cloud's metadata service are denied unless `egress.allow` names them as such, whatever
//! the appliance pushed: `0.0.0.0/0` does not name `127.0.0.1`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

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

/// Says who did not allow a target.
#[derive(Debug, Clone, Copy)]
enum Source {
    Pushed,
    Local,
}

/// The worker's egress policy.
#[derive(Debug)]
pub struct Policy {
    pushed: Option<PatternMap<()>>,
    local: Arc<Local>,
}

/// What the worker's own file says.
#[derive(Debug)]
struct Local {
    allow: Option<PatternMap<()>>,
    deny: PatternMap<()>,
    special: Vec<(IpNet, &'static str)>,
    /// Allowed networks that lie within a special range, with their ports: the administrator named it.
    named: PatternMap<()>,
}

fn map<'p>(patterns: impl IntoIterator<Item = &'p Pattern>) -> PatternMap<()> {
    let mut map = PatternMap::default();
    patterns.into_iter().for_each(|pattern| map.insert(pattern.clone(), ()));
    map
}

impl Policy {
    /// The policy of a worker whose own file says this, with nothing pushed.
    pub fn new(allow: Option<&[Pattern]>, deny: &[Pattern]) -> Policy {
        let special: Vec<(IpNet, _)> =
            SPECIAL.iter().filter_map(|(net, what)| Some((net.parse().ok()?, *what))).collect();
        let named = map(allow.into_iter().flatten().filter(|pattern| match &pattern.host {
            HostPattern::Net(net) => special.iter().any(|(range, _)| range.contains(net)),
            _ => false,
        }));
        let local = Local { allow: allow.map(map), deny: map(deny), special, named };
        Policy { pushed: None, local: Arc::new(local) }
    }

    /// This policy with other patterns of the appliance's; `None` where it pushes none.
    pub fn pushed(&self, patterns: Option<&[Pattern]>) -> Policy {
        Policy { pushed: patterns.map(map), local: self.local.clone() }
    }

    /// Judges a target before its name is resolved: what can't be allowed is not even asked for.
    ///
    /// # Errors
    /// [`Code::Denied`] with the reason.
    pub fn check_target(&self, target: &Target) -> Result<(), Refusal> {
        match &target.host {
            Host::Addr(addr) => self.check_addr(target, *addr),
            Host::Name(_) => {
                self.check_deny(target)?;
                self.check_lists(
                    // An allowed network may hold the name's address.
                    |list| list.find(target).is_some() || list.has_networks(),
                    |source| not_listed(target, source),
                    target,
                )
            }
        }
    }

    /// True where a name, though it may be allowed, is not judged by itself: a list that there is has it by address
    /// only, or addresses are denied. Whoever resolves it must be us then.
    pub fn needs_address(&self, target: &Target) -> bool {
        let lists = [&self.pushed, &self.local.allow];
        self.local.deny.has_networks() || lists.into_iter().flatten().any(|list| list.find(target).is_none())
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
        all.iter().try_for_each(|asked| self.check_deny(asked))?;
        self.check_lists(
            |list| all.iter().any(|asked| list.find(asked).is_some()),
            |source| match (&target.host, source) {
                (Host::Addr(_), _) => not_listed(target, source),
                (Host::Name(name), Source::Local) => {
                    denied(format!("{name} has the address {addr}; neither is in egress.allow"))
                }
                (Host::Name(name), Source::Pushed) => denied(format!(
                    "{name} has the address {addr}; neither is a proxy host of this worker: {ADD}"
                )),
            },
            target,
        )?;
        match self.local.special.iter().find(|(range, _)| range.contains(&addr)) {
            Some((_, what)) if self.local.named.find(&meant).is_none() => Err(denied(format!(
                "{addr} is {what}: where it is meant, name this address (not a name for it, and no network \
                     around it) in `egress.allow` of the worker's own file"
            ))),
            _ => Ok(()),
        }
    }

    fn check_deny(&self, target: &Target) -> Result<(), Refusal> {
        match self.local.deny.find(target) {
            Some((pattern, ())) => Err(denied(format!("{target} is denied by `{pattern}` in egress.deny"))),
            None => Ok(()),
        }
    }

    /// All lists that there are must have it, and there must be one.
    fn check_lists(
        &self,
        has: impl Fn(&PatternMap<()>) -> bool,
        refusal: impl Fn(Source) -> Refusal,
        target: &Target,
    ) -> Result<(), Refusal> {
        match (&self.pushed, &self.local.allow) {
            (None, None) => Err(denied(format!(
                "{target}: nothing may be dialled: the appliance has sent no proxy hosts, and there is no egress.allow"
            ))),
            (Some(pushed), _) if !has(pushed) => Err(refusal(Source::Pushed)),
            (_, Some(allow)) if !has(allow) => Err(refusal(Source::Local)),
            _ => Ok(()),
        }
    }
}

/// What to do where the appliance's list does not have a target.
const ADD: &str = "add it in the appliance's Distributed Workers";

fn denied(text: String) -> Refusal {
    Refusal::new(Code::Denied, text)
}

fn not_listed(target: &Target, source: Source) -> Refusal {
    denied(match source {
        Source::Pushed => format!("{target} is no proxy host of this worker: {ADD}"),
        Source::Local => format!("{target} is not in egress.allow"),
    })
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

    fn parse(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    fn policy(allow: &[&str], deny: &[&str]) -> Policy {
        Policy::new(Some(&parse(allow)), &parse(deny))
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
        assert!(judge(&Policy::new(None, &[]), "vcenter.corp.example", "192.0.2.1", 443).is_err());
    }

    #[test]
    fn both_the_appliance_and_the_workers_own_file_must_allow() {
        const PUSHED: &str = "is no proxy host of this worker: add it in the appliance's Distributed Workers";
        let own = policy(&["*.corp.example", "10.20.0.0/16"], &["secret.corp.example"]);
        let both =
            own.pushed(Some(&parse(&["vcenter.corp.example:443", "10.0.0.0/8", "secret.corp.example"])));
        let only_pushed = Policy::new(None, &parse(&["10.20.9.0/24"]))
            .pushed(Some(&parse(&["vcenter.corp.example:443", "10.0.0.0/8"])));
        for (policy, host, addr, port, says) in [
            (&both, "vcenter.corp.example", "192.0.2.1", 443, None),
            (
                &both,
                "vcenter.corp.example",
                "192.0.2.1",
                22,
                Some("neither is a proxy host of this worker: add it"),
            ),
            (&both, "esxi.corp.example", "10.20.0.7", 443, None),
            (&both, "esxi.corp.example", "192.0.2.1", 443, Some("neither is a proxy host of this worker")),
            (&both, "vcenter.lab.example", "10.20.0.7", 443, None),
            (&both, "vcenter.lab.example", "10.21.0.7", 443, Some("neither is in egress.allow")),
            (&both, "10.20.0.7", "10.20.0.7", 443, None),
            (&both, "10.21.0.7", "10.21.0.7", 443, Some("10.21.0.7:443 is not in egress.allow")),
            (&both, "192.0.2.7", "192.0.2.7", 443, Some(PUSHED)),
            (&both, "secret.corp.example", "10.20.0.7", 443, Some("egress.deny")),
            (&only_pushed, "vcenter.corp.example", "192.0.2.1", 443, None),
            (&only_pushed, "10.21.0.7", "10.21.0.7", 443, None),
            (&only_pushed, "192.0.2.7", "192.0.2.7", 443, Some(PUSHED)),
            (&only_pushed, "10.20.9.7", "10.20.9.7", 443, Some("egress.deny")),
            (&own, "esxi.corp.example", "192.0.2.1", 443, None),
        ] {
            let text = judge(policy, host, addr, port).err();
            match (says, &text) {
                (None, None) => {}
                (Some(says), Some(text)) if text.contains(says) => {}
                _ => panic!("{host} at {addr}:{port}: {text:?} instead of {says:?}"),
            }
        }
        // What is pushed is replaced as a whole, and may be nothing.
        let none = only_pushed.pushed(Some(&[]));
        assert!(judge(&none, "10.21.0.7", "10.21.0.7", 443).unwrap_err().contains(PUSHED));
        let text = judge(&none.pushed(None), "10.21.0.7", "10.21.0.7", 443).unwrap_err();
        assert!(text.contains("sent no proxy hosts, and there is no egress.allow"), "{text}");
    }

    #[test]
    fn a_name_is_judged_by_itself_only_where_all_lists_name_it() {
        for (allow, deny, pushed, expected) in [
            (Some(&["a.example"][..]), &[][..], None, false),
            (Some(&["*.example", "10.0.0.0/8"]), &[], None, false),
            (Some(&["a.example:443"]), &["b.example"], None, false),
            (Some(&["a.example:80", "10.0.0.0/8"]), &[], None, true),
            (Some(&["10.0.0.0/8"]), &[], None, true),
            (Some(&["0.0.0.0/0", "::/0"]), &[], Some(&["a.example"][..]), true),
            (Some(&["a.example"]), &[], Some(&["10.0.0.0/8"]), true),
            (Some(&["a.example"]), &["10.0.0.0/8"], None, true),
            (None, &[], Some(&["a.example"]), false),
            (None, &[], Some(&["10.0.0.0/8"]), true),
        ] {
            let policy = Policy::new(allow.map(parse).as_deref(), &parse(deny));
            let policy = policy.pushed(pushed.map(parse).as_deref());
            let target = Target { host: "a.example".parse().unwrap(), port: 443 };
            assert_eq!(policy.needs_address(&target), expected, "{allow:?} {deny:?} {pushed:?}");
        }
    }

    #[test]
    fn an_appliance_does_not_open_its_workers_host() {
        let special = parse(&["127.0.0.1:8080", "169.254.169.254", "::1", "*.corp.example", "0.0.0.0/0"]);
        let open = Policy::new(None, &[]).pushed(Some(&special));
        for addr in ["127.0.0.1", "169.254.169.254", "::1", "100.100.100.200"] {
            for host in [addr, "evil.corp.example"] {
                let text = judge(&open, host, addr, 8080).unwrap_err();
                let remedy = format!("{addr} is ");
                assert!(
                    text.starts_with(&remedy) && text.contains("name this address (not a name for it"),
                    "{host} at {addr}: {text}"
                );
            }
        }
        let named = policy(&["127.0.0.1:8080", "127.0.0.2"], &[]).pushed(Some(&special));
        assert!(judge(&named, "127.0.0.1", "127.0.0.1", 8080).is_ok());
        assert!(judge(&named, "127.0.0.1", "127.0.0.1", 8081).is_err(), "the worker names another port");
    }

    #[test]
    fn all_special_ranges_are_networks() {
        assert_eq!(policy(&[], &[]).local.special.len(), SPECIAL.len());
    }
}
