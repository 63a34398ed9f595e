//! What a worker is to carry, as the appliance pushes it: patterns in parts, because a control frame is small.
//!
//! What must hold: a policy is taken as a whole or not at all; however much a peer sends, what is kept of it is
//! bounded; a pattern that only a newer version can read is left out, so that nothing is allowed by mistake and
//! one new pattern does not cost an older worker its lane.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::frame::{HEADER, MAX_CONTROL, Type, put_message};
use super::message::{MAX_TEXT, MessageError, Reader, Writer};
use crate::target::Pattern;

/// Most patterns of a policy.
pub const MAX_PATTERNS: usize = 20_000;
/// Most bytes of a policy's patterns, as texts.
pub const MAX_BYTES: usize = 1024 * 1024;

/// Port ranges that a pattern's text has at most: with the longest name it stays within [`MAX_TEXT`].
const RANGES: usize = 16;
const _: () = assert!("*.[]".len() + 253 + RANGES * ",65535-65535".len() <= MAX_TEXT);
/// Bytes that a field takes beside its value.
const FIELD: usize = 3;
/// Bytes of the fields before the patterns.
const HEAD: usize = 3 * FIELD + 8 + 4 + 1;

const MESSAGE: &str = "POLICY";
const EPOCH: u8 = 1;
const PART: u8 = 2;
const LAST: u8 = 3;
const PATTERN: u8 = 4;

/// More than a policy may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a worker's proxy hosts are limited to {MAX_PATTERNS} and to {MAX_BYTES} bytes in all: use networks and wildcards"
)]
pub struct PolicyTooLarge;

/// A policy ready to be sent, made once for all lanes.
#[derive(Debug)]
pub struct Push {
    epoch: u64,
    /// Whole frames.
    parts: Vec<Bytes>,
}

impl Push {
    /// A policy of these patterns; none at all means that nothing may be dialled. `epoch` counts its changes: a
    /// worker ignores what comes with a lower one than it knows.
    ///
    /// # Errors
    /// It is larger than a worker takes.
    pub fn new<'p>(
        epoch: u64,
        patterns: impl IntoIterator<Item = &'p Pattern>,
    ) -> Result<Push, PolicyTooLarge> {
        let (mut parts, mut fields) = (Vec::new(), BytesMut::new());
        let (mut count, mut bytes) = (0, 0);
        for text in patterns.into_iter().flat_map(texts) {
            (count, bytes) = (count + 1, bytes + text.len());
            if count > MAX_PATTERNS || bytes > MAX_BYTES {
                return Err(PolicyTooLarge);
            }
            if fields.len() + FIELD + text.len() > MAX_CONTROL - HEAD {
                parts.push(part(epoch, parts.len(), false, &fields));
                fields.clear();
            }
            Writer(&mut fields).text(PATTERN, &text);
        }
        parts.push(part(epoch, parts.len(), true, &fields));
        Ok(Push { epoch, parts })
    }

    /// The policy that allows nothing.
    pub fn empty(epoch: u64) -> Push {
        Push { epoch, parts: vec![part(epoch, 0, true, &[])] }
    }

    /// Counts the policy's changes.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The frame that goes out after `sent` others.
    pub(super) fn part(&self, sent: usize) -> Option<&Bytes> {
        self.parts.get(sent)
    }
}

/// A pattern's text, or several that mean the same together where it lists very many ports.
fn texts(pattern: &Pattern) -> Vec<String> {
    match pattern.ports.len() {
        0..=RANGES => vec![pattern.to_string()],
        _ => {
            let some =
                |ports: &[_]| Pattern { host: pattern.host.clone(), ports: ports.to_vec() }.to_string();
            pattern.ports.chunks(RANGES).map(some).collect()
        }
    }
}

fn part(epoch: u64, number: usize, last: bool, fields: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    put_message(&mut frame, 0, Type::Policy, |out| {
        let mut w = Writer(out);
        w.bytes(EPOCH, &epoch.to_be_bytes());
        w.bytes(PART, &(number as u32).to_be_bytes());
        w.bytes(LAST, &[u8::from(last)]);
        out.extend_from_slice(fields);
    });
    debug_assert!(frame.len() <= HEADER + MAX_CONTROL);
    frame.freeze()
}

/// What a peer that pushes a policy did wrong. The lane ends with this as its reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyFault {
    /// Malformed fields.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// Parts that do not follow on each other.
    #[error("POLICY part {part} of epoch {epoch} instead of part {expected}{}", .of.map(|epoch| format!(" of epoch {epoch}")).unwrap_or_default())]
    Order {
        /// The part that came.
        part: u32,
        /// Its epoch.
        epoch: u64,
        /// The part that was to come.
        expected: u32,
        /// Its epoch, where one is under way.
        of: Option<u64>,
    },
    /// More than a policy may have.
    #[error("a POLICY of more than {MAX_PATTERNS} patterns or {MAX_BYTES} bytes")]
    TooLarge,
}

/// A policy that arrived whole.
#[derive(Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Counts the policy's changes.
    pub epoch: u64,
    /// What may be dialled.
    pub patterns: Vec<Pattern>,
    /// Texts that are no patterns to this version.
    pub unknown: Vec<String>,
}

/// Puts the parts of a policy together.
#[derive(Debug, Default)]
pub struct Assembly {
    /// What has come of the policy that is under way, and the number of the next part.
    under_way: Option<(Pushed, u32)>,
    bytes: usize,
}

impl Assembly {
    /// Takes the payload of a `POLICY` frame; gives the policy when that was its last part.
    ///
    /// # Errors
    /// The peer breaks the form, the order or the bounds.
    pub fn add(&mut self, payload: &[u8]) -> Result<Option<Arc<Pushed>>, PolicyFault> {
        let r = Reader::new(MESSAGE, payload)?;
        let epoch = u64::from_be_bytes(r.array(EPOCH)?);
        let part = u32::from_be_bytes(r.array(PART)?);
        let last = match r.array(LAST)? {
            [0] => false,
            [1] => true,
            _ => return Err(MessageError::Malformed { message: MESSAGE, tag: LAST }.into()),
        };
        let of = self.under_way.as_ref().map(|(pushed, _)| pushed.epoch);
        let expected = self.under_way.as_ref().map_or(0, |(_, next)| *next);
        if part != expected || of.is_some_and(|of| of != epoch) {
            return Err(PolicyFault::Order { part, epoch, expected, of });
        }
        let (mut pushed, _) = self.under_way.take().unwrap_or_else(|| {
            self.bytes = 0;
            (Pushed { epoch, patterns: Vec::new(), unknown: Vec::new() }, 0)
        });
        for text in r.texts(PATTERN) {
            let text = text?;
            self.bytes += text.len();
            if pushed.patterns.len() + pushed.unknown.len() >= MAX_PATTERNS || self.bytes > MAX_BYTES {
                return Err(PolicyFault::TooLarge);
            }
            match text.parse() {
                Ok(pattern) => pushed.patterns.push(pattern),
                Err(_) => pushed.unknown.push(text.to_owned()),
            }
        }
        if last {
            return Ok(Some(Arc::new(pushed)));
        }
        self.under_way = Some((pushed, part.wrapping_add(1)));
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn patterns(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn take(assembly: &mut Assembly, push: &Push) -> Result<Option<Arc<Pushed>>, PolicyFault> {
        let mut got = None;
        for frame in &push.parts {
            assert_eq!(got, None, "whole before its last part");
            got = assembly.add(&frame[HEADER..])?;
        }
        Ok(got)
    }

    fn by_hand(epoch: u64, number: u32, last: u8, texts: &[&str]) -> BytesMut {
        let mut out = BytesMut::new();
        let mut w = Writer(&mut out);
        w.bytes(EPOCH, &epoch.to_be_bytes());
        w.bytes(PART, &number.to_be_bytes());
        w.bytes(LAST, &[last]);
        texts.iter().for_each(|text| w.bytes(PATTERN, text.as_bytes()));
        out
    }

    #[test]
    fn one_policy_after_the_other_arrives_whole() {
        let mut assembly = Assembly::default();
        let many: Vec<_> = (0..5000).map(|n| format!("host-{n}.corp.example:443")).collect();
        let many = patterns(&many.iter().map(String::as_str).collect::<Vec<_>>());
        for (epoch, policy) in [
            (7, patterns(&["*.corp.example", "10.20.0.0/16:443,902", "[2001:db8::/32]:443"])),
            (8, vec![]),
            (9, many),
            (3, patterns(&["a.example"])),
        ] {
            let push = Push::new(epoch, &policy).unwrap();
            let pushed = take(&mut assembly, &push).unwrap().unwrap();
            assert_eq!(*pushed, Pushed { epoch, patterns: policy, unknown: vec![] });
        }
    }

    #[test]
    fn a_pattern_with_very_many_ports_keeps_its_meaning() {
        let ports: Vec<_> = (1..=65535).step_by(2).map(|port: u32| port.to_string()).collect();
        let suffix = format!("*.{}.example", ["a".repeat(60), "b".repeat(60), "c".repeat(60)].join("."));
        let all: Pattern = format!("{suffix}:{}", ports.join(",")).parse().unwrap();
        let push = Push::new(1, [&all]).unwrap();
        let pushed = take(&mut Assembly::default(), &push).unwrap().unwrap();
        assert!(pushed.unknown.is_empty());
        let mut ranges: Vec<_> = pushed.patterns.iter().flat_map(|pattern| pattern.ports.clone()).collect();
        ranges.sort();
        assert_eq!(ranges, all.ports);
        assert!(pushed.patterns.iter().all(|pattern| pattern.host == all.host));
    }

    #[test]
    fn what_only_a_newer_version_can_read_is_left_out() {
        let mut assembly = Assembly::default();
        let pushed =
            assembly.add(&by_hand(1, 0, 1, &["a.example", "~regex~", "b.example"])).unwrap().unwrap();
        assert_eq!(pushed.patterns, patterns(&["a.example", "b.example"]));
        assert_eq!(pushed.unknown, ["~regex~"]);
    }

    #[test]
    fn both_ends_have_the_same_bounds() {
        let host = |n: usize| format!("{n}.example").parse::<Pattern>().unwrap();
        let most: Vec<_> = (0..MAX_PATTERNS).map(host).collect();
        let push = Push::new(1, &most).unwrap();
        let mut assembly = Assembly::default();
        assert_eq!(take(&mut assembly, &push).unwrap().unwrap().patterns.len(), MAX_PATTERNS);
        assert_eq!(Push::new(1, most.iter().chain([&host(MAX_PATTERNS)])).unwrap_err(), PolicyTooLarge);
        let name = ["x".repeat(63), "y".repeat(63), "z".repeat(63), "w".repeat(50)].join(".");
        let long: Vec<Pattern> = (1..=5000).map(|n| format!("{name}:{n}").parse().unwrap()).collect();
        assert_eq!(Push::new(1, &long).unwrap_err(), PolicyTooLarge);

        for text in ["a.example".to_owned(), format!("{name}:1")] {
            let texts = vec![text.as_str(); 15];
            let mut assembly = Assembly::default();
            let fault = (0..).find_map(|number| assembly.add(&by_hand(1, number, 0, &texts)).err());
            assert_eq!(fault, Some(PolicyFault::TooLarge), "{text}");
        }
    }

    #[test]
    fn parts_out_of_order_are_faults() {
        let order = |part, epoch, expected, of| Err(PolicyFault::Order { part, epoch, expected, of });
        assert_eq!(Assembly::default().add(&by_hand(5, 1, 0, &[])), order(1, 5, 0, None));
        for (number, epoch) in [(0, 5), (2, 5), (1, 6)] {
            let mut assembly = Assembly::default();
            assert_eq!(assembly.add(&by_hand(5, 0, 0, &["a.example"])), Ok(None));
            assert_eq!(assembly.add(&by_hand(epoch, number, 1, &[])), order(number, epoch, 1, Some(5)));
        }
        let fault = order(1, 6, 1, Some(5)).map(|_| ()).unwrap_err();
        assert_eq!(fault.to_string(), "POLICY part 1 of epoch 6 instead of part 1 of epoch 5");
    }

    #[test]
    fn malformed_parts_are_faults() {
        let malformed = |tag| Err(MessageError::Malformed { message: MESSAGE, tag }.into());
        assert_eq!(Assembly::default().add(&by_hand(5, 0, 2, &[])), malformed(LAST));
        assert_eq!(Assembly::default().add(&by_hand(5, 0, 1, &["a\nb"])), malformed(PATTERN));
        assert_eq!(Assembly::default().add(&by_hand(5, 0, 1, &[&"a".repeat(513)])), malformed(PATTERN));
        let missing = MessageError::Missing { message: MESSAGE, tag: EPOCH };
        assert_eq!(Assembly::default().add(b""), Err(missing.into()));
    }

    proptest! {
        #[test]
        fn any_policy_arrives_as_it_was(
            texts in vec("(\\*\\.)?[a-z]{1,40}\\.[a-z]{2,5}(:[1-9][0-9]{0,3}(,[1-9][0-9]{0,3}){0,8})?", 0..400),
            epoch in any::<u64>(),
        ) {
            let policy = patterns(&texts.iter().map(String::as_str).collect::<Vec<_>>());
            let push = Push::new(epoch, &policy).unwrap();
            for frame in &push.parts {
                prop_assert!(frame.len() <= HEADER + MAX_CONTROL);
            }
            let pushed = take(&mut Assembly::default(), &push).unwrap().unwrap();
            prop_assert_eq!(&*pushed, &Pushed { epoch, patterns: policy, unknown: vec![] });
        }

        #[test]
        fn nothing_that_arrives_panics(parts in vec(vec(any::<u8>(), 0..200), 0..8)) {
            let mut assembly = Assembly::default();
            for part in parts {
                let _ = assembly.add(&part);
            }
        }
    }
}
