//! Whatever an application asks and a resolver answers: a proxy host's name stays here, synthetic addresses
//! come from us alone, and nothing panics. Judged by another parser than the one that decided.

#![no_main]

use std::net::IpAddr;

use dworker::config::Families;
use dworker::steer::dns::{Verdict, Zone, answer, strip};
use dworker::steer::names::{PatternIndex, Prefixes, Reverse, Standing, Synthetic};
use dworker::target::{Name, Pattern};
use hickory_proto::op::Message;
use libfuzzer_sys::fuzz_target;

/// What the fuzzer would take long to spell by itself; put in where it says.
const PIECES: [&[u8]; 5] = [
    b"",
    b"\x02vC\x04corp\x07example\0\0\x01\0\x01",
    b"\x01x\x03lab\x07example\0",
    b"\xc0\x0c\0\x01\0\x01\0\0\0\x05\0\x04\xf0\x40\0\x01",
    b"\xc0\x0c\0\x41\0\x01\0\0\0\x05\0\x0b\0\x01\0\0\x04\0\x04\xf0\x40\0\x01",
];

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (piece, at, bytes) = input;
    let at = usize::from(at).min(bytes.len());
    let piece = PIECES[usize::from(piece) % PIECES.len()];
    let message = [&bytes[..at], piece, &bytes[at..]].concat();
    check_answer(&message);
    check_strip(&message);
});

fn check_answer(query: &[u8]) {
    let families = Families { ipv4: true, ipv6: true };
    let verdict = answer(query, &zone(), families);
    let reply = match verdict {
        Verdict::Reply(reply) => reply,
        Verdict::Assign(pending) => pending.finish(Prefixes::default().at(7)),
        Verdict::Forward => {
            let asked = Message::from_vec(query).map(|message| message.queries.clone()).unwrap_or_default();
            for question in asked {
                let name = question.name.to_lowercase().to_ascii();
                assert!(
                    !name.starts_with("vc.corp.example.") && !name.ends_with(".lab.example."),
                    "{name} was forwarded"
                );
            }
            return;
        }
        Verdict::Drop => return,
    };
    assert_eq!(reply[..2], query[..2], "the id");
    assert!(reply[2] & 0x80 != 0, "a reply is a response");
}

fn check_strip(reply: &[u8]) {
    let stripped = strip(reply, &Prefixes::default());
    assert!(stripped.len() <= reply.len().max(12));
    let Ok(message) = Message::from_vec(&stripped) else { return };
    for record in message.all_sections() {
        let addr = record.data.ip_addr();
        assert!(!addr.is_some_and(|addr| Prefixes::default().contains(addr)), "{record} was left");
    }
}

struct Fake(PatternIndex);

fn zone() -> Fake {
    let patterns = ["vc.corp.example", "*.lab.example"].map(|text| text.parse::<Pattern>().unwrap());
    Fake(PatternIndex::new(&patterns))
}

impl Zone for Fake {
    fn standing(&self, name: &str) -> Standing {
        self.0.standing(name)
    }

    fn assigned(&self, name: &Name) -> Option<Synthetic> {
        (name.as_str().len() % 2 == 1).then(|| Prefixes::default().at(1))?
    }

    fn reverse(&self, addr: IpAddr) -> Reverse {
        match Prefixes::default().index_of(addr) {
            Some(1) => Reverse::Name("vc.corp.example".parse().unwrap()),
            _ if Prefixes::default().contains(addr) => Reverse::Unassigned,
            _ => Reverse::Outside,
        }
    }
}
