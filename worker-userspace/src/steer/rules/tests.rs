use std::net::SocketAddr;

use proptest::prelude::*;
use worker_common::Reason;

use super::*;
use crate::target::{Host, Target};

fn prefixes() -> (Ipv4Net, Ipv6Net) {
    ("240.64.0.0/16".parse().unwrap(), "2001:2::/48".parse().unwrap())
}

/// Rules numbered from 1, each in the group of its number.
fn numbered<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Vec<Rule> {
    let rule = |(index, pattern): (usize, S)| {
        let number = NonZeroU32::new(index as u32 + 1).unwrap();
        let pattern = pattern.as_ref().parse().unwrap_or_else(|e| panic!("{e}"));
        Rule { number, group: number.get() as u16, pattern }
    };
    patterns.into_iter().enumerate().map(rule).collect()
}

fn rules(patterns: &[&str]) -> Rules {
    Rules::new(&numbered(patterns), prefixes()).unwrap_or_else(|e| panic!("{e:?}"))
}

fn errors(patterns: &[&str]) -> Vec<String> {
    let errors = Rules::new(&numbered(patterns), prefixes()).expect_err("wrong rules");
    errors.iter().map(ToString::to_string).collect()
}

/// What the kernel finds for an address: the entry of the longest prefix.
fn longest(rules: &Rules, addr: IpAddr) -> Option<&Entry> {
    let addr = addr.to_canonical();
    let covering = rules.prefixes().iter().filter(|(net, _)| net.contains(&addr));
    covering.max_by_key(|(net, _)| net.prefix_len()).map(|(_, entry)| entry)
}

/// The number of the rule that carries a target, as the kernel would see it.
fn carried(rules: &Rules, target: &Target) -> Option<u32> {
    let entry = match &target.host {
        Host::Addr(addr) => longest(rules, *addr).copied(),
        Host::Name(name) => rules.for_name(name),
    };
    entry?.rule(target.port).map(|rule| rule.rule)
}

fn carried_to(rules: &Rules, to: &str) -> Option<u32> {
    let to: SocketAddr = to.parse().unwrap();
    carried(rules, &Target { host: Host::addr(to.ip()), port: to.port() })
}

#[test]
fn a_narrow_prefix_does_not_hide_the_wide_one_around_it() {
    let rules = rules(&["10.0.0.0/8", "10.20.0.0/16:443", "10.20.1.1:443,902", "[2001:db8::/32]:443"]);
    for (to, expected) in [
        ("10.20.1.1:443", Some(3)),
        ("10.20.1.1:902", Some(3)),
        ("10.20.1.1:80", Some(1)),
        ("10.20.9.9:443", Some(2)),
        ("10.20.9.9:902", Some(1)),
        ("10.99.0.1:443", Some(1)),
        ("[::ffff:10.20.1.1]:443", Some(3)),
        ("11.0.0.1:443", None),
        ("[2001:db8::1]:443", Some(4)),
        ("[2001:db8::1]:80", None),
    ] {
        assert_eq!(carried_to(&rules, to), expected, "{to}");
    }
}

#[test]
fn all_ports_are_those_that_a_connection_can_have() {
    let rules = rules(&["vc.corp.example", "10.0.0.1"]);
    let name = rules.for_name(&"vc.corp.example".parse().unwrap()).unwrap();
    for entry in [&name, longest(&rules, "10.0.0.1".parse().unwrap()).unwrap()] {
        assert!(entry.rule(0).is_none(), "the tunnel has no word for port 0");
        assert!(entry.rule(1).is_some() && entry.rule(u16::MAX).is_some());
    }
}

#[test]
fn names_and_suffixes_fail_closed_and_addresses_open() {
    let rules = rules(&["vc.corp.example:443", "*.corp.example", "10.0.0.1"]);
    let name = rules.for_name(&"vc.corp.example".parse().unwrap()).unwrap();
    assert_eq!(name.default, Entry::REFUSE);
    assert!(name.ranges[..2].iter().all(|range| range.flags == PortRule::FAIL_CLOSED));
    assert_eq!((name.len, name.ranges[0].rule, name.ranges[1].rule), (2, 1, 2));
    let address = longest(&rules, "10.0.0.1".parse().unwrap()).unwrap();
    assert_eq!((address.default, address.ranges[0].flags), (Entry::DIRECT, 0));
    assert_eq!(rules.for_name(&"corp.example".parse().unwrap()), None);
    assert_eq!(rules.for_name(&"other.example".parse().unwrap()), None);
}

#[test]
fn what_can_never_be_reached_takes_no_place() {
    let many: Vec<String> = (1..=20).map(|n| format!("10.{n}.0.0/16:{n},443")).collect();
    let mut patterns: Vec<&str> = many.iter().map(String::as_str).collect();
    patterns.push("10.0.0.0/8");
    let rules = rules(&patterns);
    let entry = longest(&rules, "10.7.0.1".parse().unwrap()).unwrap();
    assert_eq!(entry.len, 3);
    let all = Rules::new(&numbered(["10.0.0.1", "10.0.0.1:443", "10.0.0.0/8:80,81"]), prefixes()).unwrap();
    let entry = longest(&all, "10.0.0.1".parse().unwrap()).unwrap();
    assert_eq!(
        (entry.len, entry.ranges[0].rule, entry.ranges[1].rule),
        (2, 2, 1),
        "ports 80 and 81 are hidden"
    );
}

#[test]
fn of_equally_specific_rules_the_first_counts() {
    let rules = rules(&["10.0.0.1:443", "10.0.0.1:443-444"]);
    assert_eq!(carried_to(&rules, "10.0.0.1:443"), Some(1));
    assert_eq!(carried_to(&rules, "10.0.0.1:444"), Some(2));
}

#[test]
fn mapped_networks_are_ipv4() {
    for (written, expected) in [
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:10.1.2.3/128", "10.1.2.3/32"),
        ("::ffff:0.0.0.0/96", "0.0.0.0/0"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("::/0", "::/0"),
        ("2001:db8::/127", "2001:db8::/127"),
    ] {
        assert_eq!(canonical(written.parse().unwrap()), expected.parse().unwrap(), "{written}");
    }
}

#[test]
fn wrong_rules_are_all_named_with_the_remedy() {
    let ports: Vec<String> = (0..17).map(|n| (1000 + 2 * n).to_string()).collect();
    let many = format!("10.9.0.0/16:{}", ports.join(","));
    let name = format!("*.corp.example:{}", ports[1..].join(","));
    let found = errors(&[
        "127.0.0.1",
        "::1",
        "127.0.0.0/8:443",
        "240.64.3.0/24",
        "2001:2::7",
        &many,
        &name,
        "vc.corp.example:7",
        "10.9.1.1:1000",
    ]);
    for (error, says) in found.iter().zip([
        &["127.0.0.1", "never steered"][..],
        &["::1", "never steered"],
        &["127.0.0.0/8:443", "never steered"],
        &["240.64.3.0/24", "240.64.0.0/16"],
        &["2001:2::7", "2001:2::/48"],
        &["proxy host 10.9.0.0/16", "there are none", "17 port ranges", "holds 16"],
        &["proxy host vc.corp.example:7", "*.corp.example", "17 port ranges"],
        &["proxy host 10.9.1.1:1000", "10.9.0.0/16", "17 port ranges"],
    ]) {
        assert!(says.iter().all(|word| error.contains(word)), "{error:?} does not say {says:?}");
    }
    assert_eq!(found.len(), 8, "{found:#?}");
}

#[test]
fn too_many_networks_are_an_error_and_not_a_surprise_at_run_time() {
    let many: Vec<String> = (0..=limits::PREFIXES)
        .map(|n| Ipv4Net::new(((n as u32) << 8).into(), 24).unwrap().to_string())
        .skip(1)
        .collect();
    assert!(Rules::new(&numbered(&many), prefixes()).is_ok());
    let more = many.iter().cloned().chain(["203.0.113.0/24".to_owned()]);
    let found = Rules::new(&numbered(more), prefixes()).unwrap_err();
    assert_eq!(
        found,
        [RulesError::TooManyPrefixes {
            family: "IPv4",
            count: limits::PREFIXES + 1,
            limit: limits::PREFIXES
        }]
    );
}

#[test]
fn what_would_be_steered_is_judged_before_it_is_saved() {
    let groups = |groups: &[&[&str]]| -> Vec<Vec<Pattern>> {
        groups.iter().map(|patterns| patterns.iter().map(|p| p.parse().unwrap()).collect()).collect()
    };
    let judge = |groups: &[Vec<Pattern>]| check(groups.iter().map(Vec::as_slice), prefixes());
    judge(&groups(&[])).unwrap();
    judge(&groups(&[&["10.0.0.0/8", "*.corp.example"], &[], &["10.1.0.0/16:443"]])).unwrap();
    // What is too much only together with another worker's is seen, too.
    let ranges: Vec<String> = (1..=16).map(|n| (2 * n).to_string()).collect();
    let wide = format!("*.corp.example:{}", ranges.join(","));
    judge(&groups(&[&[&wide]])).unwrap();
    let errors =
        judge(&groups(&[&[&wide, "240.64.0.1"], &["vc.corp.example:7"], &["127.0.0.1"]])).unwrap_err();
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    for (error, says) in
        errors.iter().zip(["240.64.0.1 lies in", "vc.corp.example:7 has, together", "127.0.0.1 is this"])
    {
        assert!(error.contains(says), "{error:?} does not say {says:?}");
    }
    assert_eq!(errors.len(), 3, "{errors:#?}");
    let many: Vec<Vec<Pattern>> =
        (0..=limits::GROUPS).map(|n| vec![format!("h{n}.example").parse().unwrap()]).collect();
    judge(&many[1..]).unwrap();
    judge(&[&many[1..], &[vec![]]].concat()).expect("who carries nothing takes no place");
    let error = judge(&many).unwrap_err();
    assert_eq!(error, [RulesError::TooManyGroups { count: limits::GROUPS + 1, limit: limits::GROUPS }]);
}

#[test]
fn wide_rules_do_not_reach_synthetic_addresses() {
    let rules = rules(&["0.0.0.0/0", "::/0"]);
    // The synthetic prefixes have entries of their own, longer than these.
    assert_eq!(rules.prefixes().len(), 2);
    assert_eq!(
        (NO_NAME.rule(443), NO_NAME.default, NO_NAME.refusal()),
        (None, Entry::REFUSE, Reason::StaleSynthetic)
    );
}

/// Patterns over few hosts and ports, so that they overlap.
fn any_pattern() -> impl Strategy<Value = String> {
    let host = prop_oneof![
        (0u8..3, 0u8..3, 8u8..=32).prop_map(|(a, b, length)| {
            let net = Ipv4Net::new([10, a, b, 1].into(), length).unwrap().trunc();
            net.to_string()
        }),
        "(\\*\\.)?(a\\.|b\\.)?(a\\.|b\\.)?example",
    ];
    let range = (1u16..6, 0u16..3).prop_map(|(low, span)| format!("{low}-{}", low + span));
    (host, prop::option::of(prop::collection::vec(range, 1..3)))
        .prop_map(|(host, ports)| ports.map_or(host.clone(), |ports| format!("{host}:{}", ports.join(","))))
}

fn any_target() -> impl Strategy<Value = (String, u16)> {
    let host = prop_oneof![
        (0u8..3, 0u8..3, 0u8..3).prop_map(|(a, b, c)| format!("10.{a}.{b}.{c}")),
        "(a\\.|b\\.)?(a\\.|b\\.)?(a\\.|b\\.)?example",
    ];
    (host, 1u16..9)
}

proptest! {
    /// The tables say what the patterns say, one by one.
    #[test]
    fn the_most_specific_pattern_carries(
        patterns in prop::collection::vec(any_pattern(), 1..7),
        targets in prop::collection::vec(any_target(), 1..12),
    ) {
        let numbered = numbered(&patterns);
        let rules = Rules::new(&numbered, prefixes()).unwrap();
        for (host, port) in targets {
            let target = Target { host: host.parse().unwrap(), port };
            // `max_by_key` takes the last of equals, the rules the first.
            let expected = numbered
                .iter()
                .rev()
                .filter(|rule| rule.pattern.matches(&target))
                .max_by_key(|rule| rule.pattern.specificity())
                .map(|rule| rule.number.get());
            prop_assert_eq!(carried(&rules, &target), expected, "{} among {:?}", target, patterns);
        }
    }
}

#[test]
fn addresses_fail_closed_where_that_is_asked_for_and_names_always() {
    for closed in [false, true] {
        let patterns = ["10.20.0.0/16:443", "2001:db8::/32", "vcenter.corp.example"];
        let rules = Rules::with(&numbered(patterns), prefixes(), closed).unwrap();
        let fails_closed = |entry: Entry| {
            assert!(entry.len > 0);
            used(&entry).iter().all(|range| range.flags & PortRule::FAIL_CLOSED != 0)
        };
        for entry in rules.prefixes().values() {
            assert_eq!(fails_closed(*entry), closed);
        }
        let name = "vcenter.corp.example".parse().unwrap();
        assert!(fails_closed(rules.for_name(&name).unwrap()));
    }
}
