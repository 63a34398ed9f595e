//! Synthetic addresses that a resolver answers are taken out: only we may say them. Else any name on the
//! Internet could lead a captured application into the tunnel, under a name that it trusts (DNS rebinding).
//!
//! What must hold: an answer without such addresses passes with every byte as it was. The records are walked
//! on the wire first; only what must change is decoded and encoded again.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::svcb::{SVCB, SvcParamValue};
use hickory_proto::rr::{RData, Record};

use super::answer;
use super::wire::{self, read_u16};
use crate::steer::names::Prefixes;

const A: u16 = 1;
const AAAA: u16 = 28;
const SVCB: u16 = 64;
const HTTPS: u16 = 65;

/// The keys of the addresses that an SVCB or HTTPS record brings along.
const IPV4_HINT: u16 = 4;
const IPV6_HINT: u16 = 6;

/// `reply` without the A, AAAA, SVCB and HTTPS records that have addresses in `prefixes`, in all sections. The
/// result is never longer than `reply`: where it would be, it says TC instead and has no records.
///
/// A reply that has such addresses and can't be decoded becomes SERVFAIL: nobody sends that by accident.
pub fn strip<'a>(reply: &'a [u8], prefixes: &Prefixes) -> Cow<'a, [u8]> {
    if !has_synthetic(reply, prefixes) {
        return Cow::Borrowed(reply);
    }
    let stripped = Message::from_vec(reply).ok().and_then(|mut message| {
        for section in [&mut message.answers, &mut message.authorities, &mut message.additionals] {
            section.retain(|record| !is_synthetic(record, prefixes));
        }
        // Whoever validated it validated something else.
        message.metadata.authentic_data = false;
        let fits = |bytes: &Vec<u8>| bytes.len() <= reply.len() && !has_synthetic(bytes, prefixes);
        let whole = message.to_vec().ok().filter(fits);
        whole.or_else(|| message.truncate().to_vec().ok().filter(fits))
    });
    let refused = || answer::bare(reply, wire::questions(reply).ok().as_ref(), ResponseCode::ServFail);
    Cow::Owned(stripped.unwrap_or_else(refused))
}

/// Walks the records of all sections until one has a synthetic address. What can't be walked has none: a
/// resolver library can't read it either.
fn has_synthetic(reply: &[u8], prefixes: &Prefixes) -> bool {
    let count = |at| read_u16(reply, at).map_or(0, u32::from);
    let mut at = Some(wire::HEADER);
    for _ in 0..count(4) {
        at = at.and_then(|at| wire::skip_name(reply, at)).map(|at| at + 4);
    }
    for _ in 0..count(6) + count(8) + count(10) {
        let Some(head) = at.and_then(|at| wire::skip_name(reply, at)) else { return false };
        let (Some(kind), Some(length)) = (read_u16(reply, head), read_u16(reply, head + 8)) else {
            return false;
        };
        let start = head + 10;
        let end = start + usize::from(length);
        let Some(data) = reply.get(start..end) else { return false };
        let found = match kind {
            A => addresses4(data).any(|addr| prefixes.contains(addr)),
            AAAA => addresses6(data).any(|addr| prefixes.contains(addr)),
            SVCB | HTTPS => has_synthetic_hint(data, prefixes),
            _ => false,
        };
        if found {
            return true;
        }
        at = Some(end);
    }
    false
}

/// RFC 9460: a priority, a name without pointers, then keys with values.
fn has_synthetic_hint(data: &[u8], prefixes: &Prefixes) -> bool {
    let mut at = wire::skip_name(data, 2);
    while let Some((key, length)) = at.and_then(|at| Some((read_u16(data, at)?, read_u16(data, at + 2)?))) {
        let start = at.map_or(0, |at| at + 4);
        let end = start + usize::from(length);
        let Some(value) = data.get(start..end) else { return false };
        let found = match key {
            IPV4_HINT => addresses4(value).any(|addr| prefixes.contains(addr)),
            IPV6_HINT => addresses6(value).any(|addr| prefixes.contains(addr)),
            _ => false,
        };
        if found {
            return true;
        }
        at = Some(end);
    }
    false
}

fn addresses4(data: &[u8]) -> impl Iterator<Item = IpAddr> {
    data.as_chunks::<4>().0.iter().map(|octets| Ipv4Addr::from(*octets).into())
}

fn addresses6(data: &[u8]) -> impl Iterator<Item = IpAddr> {
    data.as_chunks::<16>().0.iter().map(|octets| Ipv6Addr::from(*octets).into())
}

fn is_synthetic(record: &Record, prefixes: &Prefixes) -> bool {
    let hint = |svcb: &SVCB| {
        svcb.svc_params.iter().any(|(_, value)| match value {
            SvcParamValue::Ipv4Hint(hint) => hint.0.iter().any(|addr| prefixes.contains(addr.0.into())),
            SvcParamValue::Ipv6Hint(hint) => hint.0.iter().any(|addr| prefixes.contains(addr.0.into())),
            _ => false,
        })
    };
    match &record.data {
        RData::A(addr) => prefixes.contains(addr.0.into()),
        RData::AAAA(addr) => prefixes.contains(addr.0.into()),
        RData::SVCB(svcb) => hint(svcb),
        RData::HTTPS(https) => hint(&https.0),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Edns, MessageType, OpCode, Query};
    use hickory_proto::rr::rdata::svcb::{IpHint, SvcParamKey};
    use hickory_proto::rr::rdata::{A, AAAA, CNAME, HTTPS, TXT};
    use hickory_proto::rr::{Name, RecordType};
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn record(data: RData) -> Record {
        Record::from_rdata(name("www.other.example."), 300, data)
    }

    fn a(addr: &str) -> Record {
        record(RData::A(A(addr.parse().unwrap())))
    }

    fn aaaa(addr: &str) -> Record {
        record(RData::AAAA(AAAA(addr.parse().unwrap())))
    }

    fn https(key: SvcParamKey, value: SvcParamValue) -> Record {
        let alpn = SvcParamValue::Alpn(hickory_proto::rr::rdata::svcb::Alpn(vec!["h2".into()]));
        let params = vec![(SvcParamKey::Alpn, alpn), (key, value)];
        record(RData::HTTPS(HTTPS(SVCB::new(1, name("svc.other.example."), params))))
    }

    fn hint4(addrs: &[&str]) -> Record {
        let hint = addrs.iter().map(|addr| A(addr.parse().unwrap())).collect();
        https(SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(hint)))
    }

    fn hint6(addrs: &[&str]) -> Record {
        let hint = addrs.iter().map(|addr| AAAA(addr.parse().unwrap())).collect();
        https(SvcParamKey::Ipv6Hint, SvcParamValue::Ipv6Hint(IpHint(hint)))
    }

    fn harmless() -> Vec<Record> {
        vec![
            record(RData::CNAME(CNAME(name("cdn.other.example.")))),
            a("192.0.2.1"),
            a("240.65.0.1"),
            aaaa("2001:db8::1"),
            aaaa("2001:2:1::1"),
            hint4(&["192.0.2.1"]),
            hint6(&["2001:db8::1"]),
            record(RData::TXT(TXT::new(vec!["240.64.0.1".into(), "x".repeat(200)]))),
            record(RData::Unknown {
                code: RecordType::Unknown(65280),
                rdata: hickory_proto::rr::rdata::NULL::with(vec![240, 64, 0, 1]),
            }),
        ]
    }

    fn rebinding() -> Vec<Record> {
        vec![
            a("240.64.0.1"),
            a("240.64.255.255"),
            aaaa("2001:2::1"),
            aaaa("2001:2:0:ffff::9"),
            aaaa("::ffff:240.64.0.1"),
            hint4(&["192.0.2.1", "240.64.0.1"]),
            hint6(&["2001:2::5"]),
        ]
    }

    fn reply(sections: [Vec<Record>; 3]) -> Message {
        let mut message = Message::new(7, MessageType::Response, OpCode::Query);
        message.metadata.recursion_available = true;
        message.metadata.authentic_data = true;
        message.add_query(Query::query(name("wWw.other.example."), RecordType::A));
        let [answers, authorities, additionals] = sections;
        message.add_answers(answers).add_authorities(authorities).add_additionals(additionals);
        message
    }

    #[test]
    fn each_way_to_say_a_synthetic_address_is_taken_out_of_each_section() {
        for bad in rebinding() {
            for section in 0..3 {
                let mut sections = [harmless(), harmless(), harmless()];
                sections[section].insert(section * 3, bad.clone());
                let bytes = reply(sections).to_vec().unwrap();
                let stripped = strip(&bytes, &Prefixes::default());
                let mut expected = reply([harmless(), harmless(), harmless()]);
                expected.metadata.authentic_data = false;
                assert_eq!(Message::from_vec(&stripped).unwrap(), expected, "{bad} in section {section}");
            }
        }
    }

    #[test]
    fn an_answer_that_cannot_be_decoded_is_refused_when_it_has_a_synthetic_address() {
        let mut bytes = reply([vec![a("240.64.0.1"), a("192.0.2.1")], vec![], vec![]]).to_vec().unwrap();
        let whole = bytes.len();
        bytes.truncate(whole - 1);
        let refused = Message::from_vec(&strip(&bytes, &Prefixes::default())).unwrap();
        assert_eq!(
            (refused.response_code, refused.id, refused.queries.len()),
            (ResponseCode::ServFail, 7, 1)
        );
        // Without one it passes, as damaged as it is.
        let mut bytes = reply([vec![a("192.0.2.1"), a("192.0.2.2")], vec![], vec![]]).to_vec().unwrap();
        bytes.truncate(whole - 1);
        assert!(matches!(strip(&bytes, &Prefixes::default()), Cow::Borrowed(_)));
    }

    /// A resolver that compresses better than our encoder does must not make the result too large to send.
    #[test]
    fn what_would_grow_is_truncated() {
        let mut bytes = reply([vec![a("240.64.0.1")], vec![], vec![]]).to_vec().unwrap();
        let count = 200u16;
        bytes[6..8].copy_from_slice(&(count + 1).to_be_bytes());
        for i in 0..count {
            // A new label in front of the question's name: 120 names are all that the encoder compresses.
            bytes.extend(
                [
                    &[4u8][..],
                    format!("n{i:03}").as_bytes(),
                    &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 1, 2, 3, 4],
                ]
                .concat(),
            );
        }
        let stripped = strip(&bytes, &Prefixes::default());
        assert!(stripped.len() <= bytes.len());
        let stripped = Message::from_vec(&stripped).unwrap();
        assert!(stripped.truncation && stripped.answers.is_empty() && stripped.queries.len() == 1);
    }

    proptest! {
        #[test]
        fn harmless_answers_pass_as_they_are_and_others_lose_only_what_must_go(
            picks in prop::collection::vec((0usize..3, any::<bool>(), any::<prop::sample::Index>()), 0..20),
            tc: bool,
            edns in prop::option::of(512u16..),
        ) {
            let (mut given, mut expected) = ([vec![], vec![], vec![]], [vec![], vec![], vec![]]);
            let mut bad = false;
            for (section, harm, index) in picks {
                let record = index.get(&if harm { rebinding() } else { harmless() }).clone();
                given[section].push(record.clone());
                if harm { bad = true } else { expected[section].push(record) }
            }
            let (mut given, mut expected) = (reply(given), reply(expected));
            expected.metadata.authentic_data = !bad;
            for message in [&mut given, &mut expected] {
                message.metadata.truncation = tc;
                message.edns = edns.map(|size| {
                    let mut edns = Edns::new();
                    edns.set_max_payload(size).set_dnssec_ok(true);
                    edns
                });
            }
            let bytes = given.to_vec().unwrap();
            let stripped = strip(&bytes, &Prefixes::default());
            prop_assert_eq!(matches!(stripped, Cow::Borrowed(_)), !bad);
            prop_assert!(stripped.len() <= bytes.len());
            prop_assert_eq!(Message::from_vec(&stripped).unwrap(), expected);
        }

        #[test]
        fn no_bytes_panic_or_keep_a_synthetic_address(
            mut bytes in prop::collection::vec(any::<u8>(), 0..300),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let mut built = reply([rebinding(), harmless(), vec![]]).to_vec().unwrap();
            for (at, value) in flips {
                let at = at.index(built.len());
                built[at] = value;
            }
            for bytes in [&mut bytes, &mut built] {
                let stripped = strip(bytes, &Prefixes::default());
                prop_assert!(!has_synthetic(&stripped, &Prefixes::default()));
            }
        }
    }
}
