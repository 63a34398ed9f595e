use std::collections::HashMap;

use hickory_proto::op::{OpCode, Query};
use proptest::prelude::*;

use super::*;
use crate::steer::names::{PatternIndex, Prefixes};
use crate::target::Pattern;

const V4: Families = Families { ipv4: true, ipv6: false };
const V6: Families = Families { ipv4: false, ipv6: true };
const BOTH: Families = Families { ipv4: true, ipv6: true };

struct Fake {
    patterns: PatternIndex,
    assigned: HashMap<Name, u32>,
}

impl Zone for Fake {
    fn standing(&self, name: &str) -> Standing {
        self.patterns.standing(name)
    }

    fn assigned(&self, name: &Name) -> Option<Synthetic> {
        Prefixes::default().at(*self.assigned.get(name)?)
    }

    fn reverse(&self, addr: IpAddr) -> Reverse {
        if !Prefixes::default().contains(addr) {
            return Reverse::Outside;
        }
        let index = Prefixes::default().index_of(addr);
        let name = self.assigned.iter().find(|(_, i)| Some(**i) == index);
        name.map_or(Reverse::Unassigned, |(name, _)| Reverse::Name(name.clone()))
    }

    fn canary(&self) -> Option<Synthetic> {
        Some(Prefixes::default().canary())
    }
}

/// `vc.corp.example` has the first address; `*.lab.example` has none yet, but for `_odd.lab.example`'s.
fn zone() -> Fake {
    let patterns =
        ["vc.corp.example", "*.lab.example:443", "_odd.example"].map(|p| p.parse::<Pattern>().unwrap());
    let assigned = [("vc.corp.example", 1), ("a.lab.example", 2), ("_odd.example", 3)];
    let assigned = assigned.map(|(name, index)| (name.parse().unwrap(), index)).into();
    Fake { patterns: PatternIndex::new(&patterns), assigned }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 0x1234;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(hickory_proto::rr::Name::from_ascii(name).unwrap(), kind));
    message
}

fn reply_with(query: &Message, families: Families) -> Message {
    match answer(&query.to_vec().unwrap(), &zone(), families) {
        Verdict::Reply(reply) => {
            assert!(reply.len() <= 512, "{} bytes need more than plain UDP has", reply.len());
            let reply = Message::from_vec(&reply).unwrap();
            assert_eq!((reply.id, reply.op_code), (query.id, query.op_code));
            assert!(reply.recursion_available && !reply.authoritative && !reply.authentic_data);
            assert_eq!(reply.recursion_desired, query.recursion_desired);
            reply
        }
        other => panic!("{query} gave {other:?}"),
    }
}

fn reply(query: &Message) -> Message {
    reply_with(query, V4)
}

fn data(reply: &Message) -> Vec<String> {
    reply.answers.iter().map(|record| format!("{} {}", record.ttl, record.data)).collect()
}

#[test]
fn a_proxy_host_has_the_addresses_of_its_families_and_nothing_else() {
    for (families, kind, expected) in [
        (V4, RecordType::A, &["1 240.64.0.1"][..]),
        (V4, RecordType::AAAA, &[]),
        (V4, RecordType::ANY, &["1 240.64.0.1"]),
        (V6, RecordType::A, &[]),
        (V6, RecordType::AAAA, &["1 2001:2::1"]),
        (V6, RecordType::ANY, &["1 2001:2::1"]),
        (BOTH, RecordType::A, &["1 240.64.0.1"]),
        (BOTH, RecordType::AAAA, &["1 2001:2::1"]),
        (BOTH, RecordType::ANY, &["1 240.64.0.1", "1 2001:2::1"]),
        (BOTH, RecordType::HTTPS, &[]),
        (BOTH, RecordType::SVCB, &[]),
        (BOTH, RecordType::TXT, &[]),
        (BOTH, RecordType::MX, &[]),
        (BOTH, RecordType::SOA, &[]),
        (BOTH, RecordType::NS, &[]),
        (BOTH, RecordType::CNAME, &[]),
        (BOTH, RecordType::PTR, &[]),
        (BOTH, RecordType::AXFR, &[]),
        (BOTH, RecordType::Unknown(65280), &[]),
    ] {
        let reply = reply_with(&query("vc.corp.example.", kind), families);
        assert_eq!(reply.response_code, ResponseCode::NoError, "{kind}");
        assert_eq!(data(&reply), expected, "{kind} with {families:?}");
        assert!(reply.authorities.is_empty() && reply.additionals.is_empty());
    }
}

#[test]
fn the_canary_is_answered_in_both_families_and_has_addresses_of_nobody() {
    for (kind, expected) in
        [(RecordType::A, &["1 240.64.0.0"][..]), (RecordType::AAAA, &["1 2001:2::"]), (RecordType::TXT, &[])]
    {
        let reply = reply(&query("Canary.dworker.invalid.", kind));
        assert_eq!(
            (reply.response_code, data(&reply)),
            (ResponseCode::NoError, expected.iter().map(ToString::to_string).collect())
        );
    }
    let other = query("other.dworker.invalid.", RecordType::A).to_vec().unwrap();
    assert!(matches!(answer(&other, &zone(), V4), Verdict::Forward));
}

#[test]
fn the_question_comes_back_in_the_case_it_was_asked_in() {
    let reply = reply(&query("vC.CorP.eXample.", RecordType::A));
    assert_eq!(reply.queries[0].name.to_ascii(), "vC.CorP.eXample.");
    assert_eq!(reply.answers[0].name.to_ascii(), "vC.CorP.eXample.");
}

#[test]
fn rd_and_cd_come_back_and_ad_does_not() {
    for (rd, cd) in [(true, false), (false, true)] {
        let mut query = query("vc.corp.example.", RecordType::A);
        query.metadata.recursion_desired = rd;
        query.metadata.checking_disabled = cd;
        query.metadata.authentic_data = true;
        let reply = reply(&query);
        assert_eq!((reply.recursion_desired, reply.checking_disabled), (rd, cd));
    }
}

#[test]
fn edns_is_answered_with_edns_and_only_then() {
    let mut query = query("vc.corp.example.", RecordType::A);
    assert_eq!(reply(&query).edns, None);
    let mut edns = Edns::new();
    edns.set_max_payload(4096).set_dnssec_ok(true);
    query.set_edns(edns.clone());
    let ours = reply(&query).edns.unwrap();
    assert_eq!((ours.version(), ours.max_payload(), ours.flags().dnssec_ok), (0, 1232, true));
    assert!(ours.options().as_ref().is_empty());

    edns.set_version(1).set_dnssec_ok(false);
    query.set_edns(edns);
    let reply = reply(&query);
    assert_eq!(u16::from(reply.response_code), u16::from(ResponseCode::BADVERS));
    assert!(reply.answers.is_empty());
    let ours = reply.edns.unwrap();
    assert_eq!((ours.version(), ours.flags().dnssec_ok), (0, false));
}

#[test]
fn only_class_in_has_addresses() {
    for (class, count) in
        [(DNSClass::IN, 1), (DNSClass::ANY, 1), (DNSClass::CH, 0), (DNSClass::Unknown(9), 0)]
    {
        let mut query = query("vc.corp.example.", RecordType::A);
        query.queries[0].query_class = class;
        let reply = reply(&query);
        assert_eq!((reply.response_code, reply.answers.len()), (ResponseCode::NoError, count), "{class}");
    }
}

#[test]
fn a_synthetic_address_leads_back_to_its_name() {
    let v6 = format!("1.{}2.0.0.0.1.0.0.2.ip6.arpa.", "0.".repeat(23));
    for name in ["1.0.64.240.in-addr.arpa.", "1.0.64.240.IN-ADDR.arpa.", &v6] {
        assert_eq!(data(&reply(&query(name, RecordType::PTR))), ["1 vc.corp.example."], "{name}");
        assert_eq!(data(&reply(&query(name, RecordType::ANY))), ["1 vc.corp.example."], "{name}");
        let other = reply(&query(name, RecordType::A));
        assert_eq!((other.response_code, other.answers.len()), (ResponseCode::NoError, 0));
    }
    assert_eq!(data(&reply(&query("3.0.64.240.in-addr.arpa.", RecordType::PTR))), ["1 _odd.example."]);
    for name in ["9.0.64.240.in-addr.arpa.", "0.0.64.240.in-addr.arpa.", "255.255.64.240.in-addr.arpa."] {
        assert_eq!(reply(&query(name, RecordType::PTR)).response_code, ResponseCode::NXDomain, "{name}");
    }
}

#[test]
fn a_name_without_an_address_waits_for_one() {
    let query = query("New.lab.example.", RecordType::A);
    let pending = |families| match answer(&query.to_vec().unwrap(), &zone(), families) {
        Verdict::Assign(pending) => pending,
        other => panic!("{other:?}"),
    };
    assert_eq!(pending(V4).name().as_str(), "new.lab.example");
    let reply = Message::from_vec(&pending(BOTH).finish(Prefixes::default().at(7))).unwrap();
    assert_eq!(data(&reply), ["1 240.64.0.7"]);
    assert_eq!(reply.queries[0].name.to_ascii(), "New.lab.example.");
    let reply = Message::from_vec(&pending(V4).finish(None)).unwrap();
    assert_eq!((reply.response_code, reply.answers.len()), (ResponseCode::ServFail, 0));
    assert!(reply.recursion_available && reply.queries.len() == 1);
    // What is answered without an address assigns none.
    assert!(matches!(answer(&query.to_vec().unwrap(), &zone(), V6), Verdict::Reply(_)));
}

#[test]
fn what_is_about_proxy_hosts_stays_here_and_what_is_not_goes() {
    for (name, kind, code) in [
        ("_443._tcp.vc.corp.example.", RecordType::TLSA, ResponseCode::NoError),
        ("_8443._https.a.lab.example.", RecordType::HTTPS, ResponseCode::NoError),
        ("_x.lab.example.", RecordType::A, ResponseCode::NoError),
        ("*.lab.example.", RecordType::A, ResponseCode::NoError),
        ("vc.corp.example.lab.example.", RecordType::A, ResponseCode::NXDomain),
        ("x.lab.example.lab.example.", RecordType::AAAA, ResponseCode::NXDomain),
    ] {
        let reply = reply(&query(name, kind));
        assert_eq!((reply.response_code, reply.answers.len()), (code, 0), "{name}");
    }
    for name in [
        "corp.example.",
        "x.vc.corp.example.",
        "lab.example.",
        ".",
        "1.0.65.240.in-addr.arpa.",
        "64.240.in-addr.arpa.",
    ] {
        let query = query(name, RecordType::A).to_vec().unwrap();
        assert!(matches!(answer(&query, &zone(), V4), Verdict::Forward), "{name}");
    }
}

#[test]
fn other_kinds_of_query_are_refused_for_proxy_hosts_and_forwarded_for_others() {
    for opcode in [OpCode::Status, OpCode::Notify, OpCode::Update, OpCode::Unknown(1), OpCode::Unknown(15)] {
        let mut ours = query("vc.corp.example.", RecordType::SOA);
        ours.metadata.op_code = opcode;
        let refused = reply(&ours);
        assert_eq!((refused.response_code, refused.queries.len()), (ResponseCode::NotImp, 1), "{opcode}");
        let mut other = query("other.example.", RecordType::SOA);
        other.metadata.op_code = opcode;
        assert!(matches!(answer(&other.to_vec().unwrap(), &zone(), V4), Verdict::Forward), "{opcode}");
    }
}

#[test]
fn several_questions_are_refused_when_one_is_for_a_proxy_host() {
    let mut message = query("other.example.", RecordType::A);
    message.add_query(query("more.example.", RecordType::A).queries[0].clone());
    assert!(matches!(answer(&message.to_vec().unwrap(), &zone(), V4), Verdict::Forward));
    message.add_query(query("VC.corp.example.", RecordType::AAAA).queries[0].clone());
    assert_eq!(reply(&message).response_code, ResponseCode::FormErr);
}

#[test]
fn nothing_is_answered_to_fragments_and_responses_and_formerr_to_what_cannot_be_read() {
    let whole = query("vc.corp.example.", RecordType::A).to_vec().unwrap();
    for length in 0..whole.len() {
        match answer(&whole[..length], &zone(), V4) {
            Verdict::Drop => assert!(length < wire::HEADER),
            Verdict::Reply(reply) => {
                assert!(length >= wire::HEADER);
                let reply = Message::from_vec(&reply).unwrap();
                assert_eq!(
                    (reply.id, reply.response_code),
                    (0x1234, ResponseCode::FormErr),
                    "cut at {length}"
                );
            }
            other => panic!("cut at {length}: {other:?}"),
        }
    }
    let mut response = query("other.example.", RecordType::A);
    response.metadata.message_type = hickory_proto::op::MessageType::Response;
    assert!(matches!(answer(&response.to_vec().unwrap(), &zone(), V4), Verdict::Drop));
    // A query that only asks for a cookie has no question (RFC 7873).
    assert!(matches!(answer(&Message::query().to_vec().unwrap(), &zone(), V4), Verdict::Forward));
}

#[test]
fn the_longest_name_gets_its_address() {
    let label = "a".repeat(63);
    let name = format!("{label}.{label}.{label}.{}.lab.example.", "b".repeat(49));
    assert_eq!(name.len(), 254);
    match answer(&query(&name, RecordType::A).to_vec().unwrap(), &zone(), V4) {
        Verdict::Assign(pending) => {
            let reply = pending.finish(Prefixes::default().at(1));
            assert!(reply.len() <= 512);
            assert_eq!(Message::from_vec(&reply).unwrap().answers.len(), 1);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn servfail_is_a_reply_to_its_query() {
    let mut message = query("Other.example.", RecordType::A);
    message.set_edns(Edns::new());
    let reply = Message::from_vec(&servfail(&message.to_vec().unwrap())).unwrap();
    assert_eq!((reply.id, reply.response_code), (message.id, ResponseCode::ServFail));
    assert_eq!(reply.queries, message.queries);
    assert!(reply.edns.is_some());
    // A record that can't be read follows the question: the question comes back nevertheless.
    let mut broken = message.to_vec().unwrap();
    broken.truncate(broken.len() - 3);
    let reply = Message::from_vec(&servfail(&broken)).unwrap();
    assert_eq!((&reply.queries, reply.response_code), (&message.queries, ResponseCode::ServFail));
}

/// A question as it goes on the wire.
fn wire_name(name: &str, upper: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    // Only letters change: lengths are below 64.
    for (i, byte) in bytes.iter_mut().enumerate().filter(|(_, byte)| byte.is_ascii_lowercase()) {
        if upper >> (i % 64) & 1 == 1 {
            byte.make_ascii_uppercase();
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Verdict::Reply(reply) = answer(&bytes, &zone(), BOTH) {
            prop_assert!(reply.len() <= 600 && wire::is_response(&reply));
        }
        let _ = servfail(&bytes);
    }

    /// The rule of the house: whatever else a query has or pretends, one question for a proxy host keeps it
    /// from being forwarded.
    #[test]
    fn a_query_for_a_proxy_host_is_never_forwarded(
        flags in (0u8..0x80, any::<u8>()),
        which in prop::sample::select(vec!["vc.corp.example", "a.lab.example", "x.y.lab.example", "_odd.example",
            "_443._tcp.vc.corp.example", "1.0.64.240.in-addr.arpa"]),
        upper: u64,
        kind: u16,
        class: u16,
        before in 0usize..3,
        after in 0usize..3,
        pointer in 0u8..3,
        counts: [u16; 3],
        tail in prop::collection::vec(any::<u8>(), 0..60),
        edns in prop::option::of((any::<u16>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..20))),
    ) {
        let other = [&wire_name("other.example", upper)[..], &[0, 1, 0, 1]].concat();
        let mut message = vec![9, 9, flags.0, flags.1, 0, (before + 1 + after) as u8];
        counts.iter().for_each(|count| message.extend(count.to_be_bytes()));
        (0..before).for_each(|_| message.extend(&other));
        let name = wire_name(which, upper);
        let type_and_class = [kind.to_be_bytes(), class.to_be_bytes()].concat();
        let mut behind = Vec::new();
        match pointer {
            // The whole name, or all but its first label, stands behind the questions.
            1 | 2 => {
                let first = if pointer == 1 { 0 } else { 1 + usize::from(name[0]) };
                let target = message.len() + first + 2 + 4 + other.len() * after;
                message.extend(&name[..first]);
                message.extend((0xc000 | target as u16).to_be_bytes());
                behind.extend(&name[first..]);
            }
            _ => message.extend(&name),
        }
        message.extend(&type_and_class);
        (0..after).for_each(|_| message.extend(&other));
        message.extend(&behind);
        if let Some((class, ttl, options)) = edns {
            message.extend([0, 0, 41]);
            message.extend(class.to_be_bytes());
            message.extend(ttl.to_be_bytes());
            message.extend((options.len() as u16).to_be_bytes());
            message.extend(options);
        }
        message.extend(&tail);
        let verdict = answer(&message, &zone(), V4);
        prop_assert!(matches!(verdict, Verdict::Reply(_) | Verdict::Assign(_)), "{verdict:?}");
    }

    /// The same, judged by another parser, on queries with bytes flipped anywhere.
    #[test]
    fn no_damage_makes_a_query_for_a_proxy_host_foreign(
        upper: u64, edns: bool, flips in prop::collection::vec((0usize..80, any::<u8>()), 0..4),
    ) {
        let mut message = query("a.lab.example.", RecordType::A);
        if edns {
            message.set_edns(Edns::new());
        }
        let mut bytes = message.to_vec().unwrap();
        bytes.splice(12..27, wire_name("a.lab.example", upper));
        for (at, value) in flips {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        let forwarded = matches!(answer(&bytes, &zone(), V4), Verdict::Forward);
        let read = Message::from_vec(&bytes).map(|message| message.queries.clone()).unwrap_or_default();
        for query in read.iter().filter(|_| forwarded) {
            let name = query.name.to_lowercase().to_ascii();
            prop_assert!(!name.ends_with(".lab.example."), "{name} was forwarded");
        }
    }

    /// Nothing is lost: a readable query for another name goes to the resolver, whatever follows it.
    #[test]
    fn a_query_for_another_name_is_always_forwarded(
        flags in (0u8..0x80, any::<u8>()),
        name in "[a-z0-9]{1,9}(\\.[a-z0-9]{1,9}){0,4}\\.test",
        kind: u16,
        class: u16,
        counts: [u16; 3],
        tail in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let mut message = vec![9, 9, flags.0, flags.1, 0, 1];
        counts.iter().for_each(|count| message.extend(count.to_be_bytes()));
        message.extend(wire_name(&name, 0));
        message.extend([kind.to_be_bytes(), class.to_be_bytes()].concat());
        message.extend(&tail);
        prop_assert!(matches!(answer(&message, &zone(), V4), Verdict::Forward));
    }
}
