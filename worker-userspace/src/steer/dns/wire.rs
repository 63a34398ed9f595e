//! Reading DNS messages with more tolerance than a parser has.
//!
//! A query that is not for a proxy host is forwarded whatever it holds, and one that is must not be, whatever
//! it holds. So the questions are read by themselves here, in every way that some resolver might read them
//! (pointers forwards, too), before anything else of the message is believed.

use std::fmt::Write;

/// The length of a message's header.
pub(super) const HEADER: usize = 12;

/// More questions than this make a message that no resolver answers: all known ones take exactly one.
const MOST_QUESTIONS: u16 = 8;

/// RFC 1035: a name has at most 255 bytes, so no more labels, and no more pointers that lead to any.
const LONGEST_NAME: usize = 255;
const MOST_POINTERS: usize = 128;

/// The questions can't be read; no resolver could answer the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// One entry of the question section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// Lower case, without a trailing dot; bytes that no host name has as `\DDD`. The root is empty.
    pub(super) name: String,
    /// The record type asked for.
    pub(super) kind: u16,
    /// The class asked for.
    pub(super) class: u16,
}

/// The question section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Questions {
    pub(super) list: Vec<Question>,
    /// Where it ends.
    pub(super) end: usize,
    /// A name in it has a pointer, so its bytes mean nothing in another message.
    pub(super) compressed: bool,
}

/// The 16 bits at `at`.
pub(super) fn read_u16(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?))
}

/// True where the message calls itself a response.
pub(super) fn is_response(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & 0x80 != 0)
}

/// The kind of query; 0 is QUERY.
pub(super) fn opcode(message: &[u8]) -> u8 {
    message.get(2).map_or(0, |flags| flags >> 3 & 0xf)
}

/// Reads the question section of a message that has a whole header.
pub(super) fn questions(message: &[u8]) -> Result<Questions, Malformed> {
    let count = read_u16(message, 4).filter(|count| *count <= MOST_QUESTIONS).ok_or(Malformed)?;
    let mut questions = Questions { list: Vec::with_capacity(count.into()), end: HEADER, compressed: false };
    for _ in 0..count {
        let (name, end) = read_name(message, questions.end, &mut questions.compressed)?;
        let kind = read_u16(message, end).ok_or(Malformed)?;
        let class = read_u16(message, end + 2).ok_or(Malformed)?;
        questions.list.push(Question { name, kind, class });
        questions.end = end + 4;
    }
    Ok(questions)
}

/// The name at `start` and where what follows it begins.
fn read_name(message: &[u8], start: usize, compressed: &mut bool) -> Result<(String, usize), Malformed> {
    let mut name = String::new();
    let (mut at, mut end, mut length, mut pointers) = (start, None, 1, 0);
    loop {
        let first = *message.get(at).ok_or(Malformed)?;
        match first {
            0 => return Ok((name, end.unwrap_or(at + 1))),
            1..=63 => {
                let label = message.get(at + 1..at + 1 + usize::from(first)).ok_or(Malformed)?;
                length += label.len() + 1;
                if length > LONGEST_NAME {
                    return Err(Malformed);
                }
                if !name.is_empty() {
                    name.push('.');
                }
                push_label(&mut name, label);
                at += 1 + label.len();
            }
            64..=191 => return Err(Malformed),
            192.. => {
                *compressed = true;
                pointers += 1;
                if pointers > MOST_POINTERS {
                    return Err(Malformed);
                }
                let target = read_u16(message, at).ok_or(Malformed)? & 0x3fff;
                end.get_or_insert(at + 2);
                at = target.into();
            }
        }
    }
}

fn push_label(name: &mut String, label: &[u8]) {
    for byte in label {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => {
                name.push(byte.to_ascii_lowercase().into())
            }
            // A dot within a label is escaped like the rest, so that every dot is the end of a label. Writing
            // to a string does not fail.
            _ => drop(write!(name, "\\{byte:03}")),
        }
    }
}

/// Where the name at `start` ends, in the most tolerant reading that a resolver library has (musl's, for which
/// the reserved label types are lengths); `None` where it runs over the end.
pub(super) fn skip_name(message: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=191 => at += 1 + usize::from(length),
            192.. => return Some(at + 2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(count: u16, section: &[u8]) -> Vec<u8> {
        let mut message = vec![0x12, 0x34, 1, 0];
        message.extend(count.to_be_bytes());
        message.extend([0; 6]);
        message.extend(section);
        message
    }

    fn names(message: &[u8]) -> Vec<String> {
        questions(message).unwrap().list.into_iter().map(|question| question.name).collect()
    }

    #[test]
    fn questions_are_read_with_case_folded_and_odd_bytes_escaped() {
        let read = questions(&message(1, b"\x03A-b\x02_9\0\0\x1c\0\x01trailing")).unwrap();
        assert_eq!(read.list, [Question { name: "a-b._9".into(), kind: 28, class: 1 }]);
        assert_eq!((read.end, read.compressed), (HEADER + 12, false));
        assert_eq!(names(&message(1, b"\x03a.b\x02\xff \0\0\x01\0\x01")), ["a\\046b.\\255\\032"]);
        assert_eq!(names(&message(1, b"\0\0\x01\0\x01")), [""]);
        assert!(names(&message(0, b"")).is_empty());
    }

    #[test]
    fn pointers_are_followed_backwards_and_forwards_and_not_for_ever() {
        let back = message(2, b"\x01a\x01b\0\0\x01\0\x01\x01x\xc0\x0e\0\x01\0\x01");
        assert_eq!(names(&back), ["a.b", "x.b"]);
        assert!(questions(&back).unwrap().compressed);
        assert_eq!(names(&message(1, b"\xc0\x12\0\x01\0\x01\x01z\0")), ["z"]);
        for bad in
            [&b"\xc0\x0c\0\x01\0\x01"[..], b"\x01a\xc0\x0c\0\x01\0\x01", b"\xc0\xff\0\x01\0\x01", b"\xc0"]
        {
            assert_eq!(questions(&message(1, bad)), Err(Malformed), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn what_is_cut_too_long_or_too_many_is_malformed() {
        for bad in [
            &b"\x03ab"[..],
            b"\x01a",
            b"\x01a\0",
            b"\x01a\0\0\x01",
            b"\x01a\0\0\x01\0",
            b"\x40a\0\0\x01\0\x01",
        ] {
            assert_eq!(questions(&message(1, bad)), Err(Malformed), "{}", bad.escape_ascii());
        }
        let long = |last: usize| {
            let mut section = [&[63u8][..], &[b'a'; 63]].concat().repeat(3);
            section.push(last as u8);
            section.extend(vec![b'b'; last]);
            section.extend(b"\0\0\x01\0\x01");
            message(1, &section)
        };
        assert_eq!(names(&long(61))[0].len(), 253);
        assert_eq!(questions(&long(62)), Err(Malformed));
        assert_eq!(questions(&message(9, &b"\0\0\x01\0\x01".repeat(9))), Err(Malformed));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0usize..310) {
            let _ = questions(&bytes);
            let _ = questions(&message(3, &bytes));
            let _ = skip_name(&bytes, at);
        }
    }
}
