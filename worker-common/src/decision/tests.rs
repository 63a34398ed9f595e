use std::cell::Cell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use super::*;
use crate::records::limits;

const ETIMEDOUT: u32 = 110;

/// The world as tables; it also notes which of the dear questions were asked.
#[derive(Default)]
struct Tables {
    entries: HashMap<IpAddr, Entry>,
    own: bool,
    excluded: bool,
    foreign: bool,
    bound: bool,
    groups: HashMap<u16, u32>,
    down: HashMap<Dest, u32>,
    deaf: bool,
    asked_listener: Cell<bool>,
    asked_owner: Cell<bool>,
}

impl World for Tables {
    fn entry(&self, addr: &Addr) -> Option<&Entry> {
        self.entries.get(&IpAddr::from(*addr))
    }
    fn own(&self) -> bool {
        self.asked_owner.set(true);
        self.own
    }
    fn excluded(&self) -> bool {
        self.excluded
    }
    fn foreign_netns(&self) -> bool {
        self.foreign
    }
    fn bound(&self) -> bool {
        self.bound
    }
    fn group_errno(&self, group: u16) -> u32 {
        self.groups.get(&group).copied().unwrap_or(0)
    }
    fn down_errno(&self, dest: &Dest) -> u32 {
        self.down.get(dest).copied().unwrap_or(0)
    }
    fn listening(&self, _: &Addr) -> bool {
        self.asked_listener.set(true);
        !self.deaf
    }
}

fn range(low: u16, high: u16, rule: u32, group: u16, flags: u16) -> PortRule {
    PortRule { low, high, rule, group, flags }
}

fn entry(default: u32, rules: &[PortRule]) -> Entry {
    Entry::new(default, rules).unwrap()
}

fn dest(text: &str) -> Dest {
    text.parse::<SocketAddr>().unwrap().into()
}

const NET: PortRule = PortRule { low: 443, high: 443, rule: 7, group: 3, flags: 0 };
const NAME: PortRule = PortRule { low: 443, high: 443, rule: 8, group: 4, flags: PortRule::FAIL_CLOSED };

fn world() -> Tables {
    let mut tables = Tables::default();
    tables.entries.insert("198.51.100.1".parse().unwrap(), entry(Entry::DIRECT, &[NET]));
    tables.entries.insert("240.64.0.1".parse().unwrap(), entry(Entry::REFUSE, &[NAME]));
    tables.entries.insert("240.64.0.2".parse().unwrap(), entry(Entry::REFUSE, &[]));
    tables
}

fn refusal(reason: Reason, errno: u32, rule: u32) -> Verdict {
    Verdict::Refuse { reason, errno, rule }
}

#[test]
fn rules_decide_by_address_and_port() {
    let world = world();
    for (to, expected) in [
        ("198.51.100.1:443", Verdict::Steer(NET)),
        ("[::ffff:198.51.100.1]:443", Verdict::Steer(NET)),
        ("198.51.100.1:444", Verdict::Direct),
        ("198.51.100.2:443", Verdict::Direct),
        ("240.64.0.1:443", Verdict::Steer(NAME)),
        ("240.64.0.1:80", refusal(Reason::PortNotInRule, EHOSTUNREACH, 0)),
        ("240.64.0.2:443", refusal(Reason::StaleSynthetic, EHOSTUNREACH, 0)),
    ] {
        assert_eq!(decide(&world, &dest(to)), expected, "{to}");
    }
}

#[test]
fn a_connection_that_no_rule_names_costs_one_question() {
    let world = world();
    assert_eq!(decide(&world, &dest("198.51.100.1:80")), Verdict::Direct);
    assert_eq!(decide(&world, &dest("203.0.113.1:443")), Verdict::Direct);
    assert!(!world.asked_owner.get() && !world.asked_listener.get());
}

#[test]
fn our_own_and_foreign_connections_are_left_alone_before_anything_is_refused() {
    for to in ["198.51.100.1:443", "240.64.0.1:80", "240.64.0.2:443"] {
        let groups = HashMap::from([(3, ETIMEDOUT), (4, ETIMEDOUT)]);
        let own = Tables { own: true, foreign: true, deaf: true, groups: groups.clone(), ..world() };
        assert_eq!(decide(&own, &dest(to)), Verdict::Own, "{to}");
        let foreign = Tables { foreign: true, deaf: true, groups, ..world() };
        assert_eq!(decide(&foreign, &dest(to)), Verdict::ForeignNetns, "{to}");
    }
}

#[test]
fn what_is_known_to_fail_fails_at_once_and_with_its_own_errno() {
    let to = dest("198.51.100.1:443");
    let mut world = world();
    world.down.insert(to, ETIMEDOUT);
    assert_eq!(decide(&world, &to), refusal(Reason::Down, ETIMEDOUT, 7));
    world.groups.insert(3, ENETUNREACH);
    assert_eq!(decide(&world, &to), refusal(Reason::Group, ENETUNREACH, 7));
    assert!(!world.asked_listener.get(), "no listener is looked for on behalf of a refused connection");
}

#[test]
fn without_a_listener_names_fail_closed_and_addresses_open() {
    let world = Tables { deaf: true, ..world() };
    assert_eq!(decide(&world, &dest("198.51.100.1:443")), Verdict::FailOpen(NET));
    assert_eq!(decide(&world, &dest("240.64.0.1:443")), refusal(Reason::NoListener, ECONNREFUSED, 8));
}

#[test]
fn a_socket_that_does_not_reach_loopback_is_not_sent_there() {
    let mut world = Tables { bound: true, ..world() };
    assert_eq!(decide(&world, &dest("198.51.100.1:443")), Verdict::FailOpen(NET));
    assert_eq!(decide(&world, &dest("240.64.0.1:443")), refusal(Reason::Bound, ENETUNREACH, 8));
    assert_eq!(decide(&world, &dest("198.51.100.1:80")), Verdict::Direct);
    world.foreign = true;
    assert_eq!(decide(&world, &dest("240.64.0.1:443")), Verdict::ForeignNetns);
}

#[test]
fn the_first_range_that_covers_the_port_decides() {
    let ranges = [range(443, 443, 1, 1, 0), range(400, 500, 2, 2, 0), range(1, u16::MAX, 3, 3, 0)];
    let entry = entry(Entry::DIRECT, &ranges);
    for (port, rule) in [(443, 1), (400, 2), (500, 2), (501, 3), (1, 3), (65535, 3)] {
        assert_eq!(entry.rule(port).unwrap().rule, rule, "{port}");
    }
}

#[test]
fn a_full_entry_is_read_to_its_end() {
    let ranges: Vec<_> = (0..limits::RANGES as u16).map(|n| range(n + 1, n + 1, n.into(), 0, 0)).collect();
    let entry = entry(Entry::DIRECT, &ranges);
    assert_eq!(entry.rule(16), Some(&ranges[15]));
    assert_eq!(entry.rule(17), None);
    assert_eq!(Entry::new(Entry::DIRECT, &[PortRule::NONE; limits::RANGES + 1]), None);
}

fn synthetic() -> Synthetic {
    Synthetic {
        net4: dest("240.64.0.0:0").addr.v4_word(),
        mask4: dest("255.255.0.0:0").addr.v4_word(),
        net6: dest("[2001:2::]:0").addr.words,
        mask6: dest("[ffff:ffff:ffff::]:0").addr.words,
    }
}

#[test]
fn paths() {
    use Transport::{Datagram, Stream};
    for (transport, to, expected) in [
        (Stream, "198.51.100.1:443", Path::Rules),
        (Stream, "127.0.0.1:443", Path::Pass),
        (Stream, "[::ffff:127.0.0.1]:443", Path::Pass),
        (Stream, "[::1]:443", Path::Pass),
        (Stream, "0.0.0.0:443", Path::Pass),
        (Stream, "240.64.0.1:53", Path::Rules),
        (Stream, "192.0.2.53:53", Path::Dns),
        (Stream, "127.0.0.53:53", Path::Dns),
        (Stream, "[fe80::1]:53", Path::DnsLinkLocal),
        (Stream, "[fe80::1]:443", Path::Rules),
        (Datagram, "192.0.2.53:53", Path::Dns),
        (Datagram, "[::1]:53", Path::Dns),
        (Datagram, "[::ffff:192.0.2.53]:53", Path::Dns),
        (Datagram, "[fe80::1]:53", Path::DnsLinkLocal),
        (Datagram, "192.0.2.53:123", Path::Pass),
        (Datagram, "240.64.9.9:443", Path::Refuse(Reason::Datagram)),
        (Datagram, "240.64.9.9:53", Path::Refuse(Reason::Datagram)),
        (Datagram, "[2001:2::7]:443", Path::Refuse(Reason::Datagram)),
        (Datagram, "240.64.9.9:0", Path::Pass),
        (Datagram, "[2001:2::7]:0", Path::Pass),
    ] {
        assert_eq!(path(transport, &dest(to), &synthetic()), expected, "{transport:?} {to}");
    }
}

fn any_range() -> impl Strategy<Value = PortRule> {
    (1u16.., 0u16..2000, 1u32..9, 0u16..4, 0u16..2)
        .prop_map(|(low, span, rule, group, flags)| range(low, low.saturating_add(span), rule, group, flags))
}

proptest! {
    /// The whole decision, written a second time as one sentence per outcome.
    #[test]
    fn the_decision_keeps_its_promises(
        ranges in prop::collection::vec(any_range(), 0..=limits::RANGES),
        refuses in any::<bool>(),
        own in any::<bool>(),
        excluded in any::<bool>(),
        foreign in any::<bool>(),
        bound in any::<bool>(),
        deaf in any::<bool>(),
        group_errno in prop::option::of(1u32..130),
        down_errno in prop::option::of(1u32..130),
        port in 1u16..,
    ) {
        let to = Dest::new(dest("198.51.100.9:0").addr, port);
        let default = if refuses { Entry::REFUSE } else { Entry::DIRECT };
        let world = Tables {
            entries: HashMap::from([("198.51.100.9".parse().unwrap(), entry(default, &ranges))]),
            own,
            excluded,
            foreign,
            bound,
            deaf,
            groups: (0..4).zip(std::iter::repeat(group_errno.unwrap_or(0))).collect(),
            down: HashMap::from([(to, down_errno.unwrap_or(0))]),
            ..Tables::default()
        };
        let rule = ranges.iter().find(|r| (r.low..=r.high).contains(&port));
        match decide(&world, &to) {
            Verdict::Direct => prop_assert!(rule.is_none() && !refuses),
            Verdict::Own => prop_assert!(own && (rule.is_some() || refuses)),
            Verdict::Excluded => prop_assert!(!own && excluded && (rule.is_some() || refuses)),
            Verdict::ForeignNetns => prop_assert!(!own && !excluded && foreign),
            Verdict::Steer(found) => {
                prop_assert_eq!(Some(&found), rule);
                prop_assert!(!own && !excluded && !foreign && !bound && !deaf && group_errno.is_none() && down_errno.is_none());
            }
            Verdict::FailOpen(found) => {
                prop_assert_eq!(Some(&found), rule);
                prop_assert!((deaf || bound) && found.flags & PortRule::FAIL_CLOSED == 0);
            }
            Verdict::Refuse { reason, errno, rule: number } => {
                prop_assert!(!own && !excluded && !foreign && errno != 0);
                prop_assert_eq!(number, rule.map_or(0, |r| r.rule));
                match reason {
                    Reason::StaleSynthetic => prop_assert!(refuses && ranges.is_empty()),
                    Reason::PortNotInRule => prop_assert!(refuses && rule.is_none() && !ranges.is_empty()),
                    Reason::Group => prop_assert_eq!(Some(errno), group_errno),
                    Reason::Down => prop_assert_eq!(Some(errno), down_errno),
                    Reason::NoListener => prop_assert!(deaf),
                    Reason::Bound => prop_assert!(bound),
                    other => prop_assert!(false, "{:?} is not decide()'s to say", other),
                }
            }
        }
    }

    #[test]
    fn nothing_local_reaches_the_rules(ip: IpAddr, port: u16, stream: bool) {
        let to = Dest::from(SocketAddr::new(ip, port));
        let transport = if stream { Transport::Stream } else { Transport::Datagram };
        let local = ip.to_canonical().is_loopback() || ip.to_canonical().is_unspecified();
        prop_assert_eq!(to.addr.is_local(), local);
        if local {
            let found = path(transport, &to, &synthetic());
            prop_assert!(found == Path::Pass || (port == DNS_PORT && found == Path::Dns));
        }
    }
}
