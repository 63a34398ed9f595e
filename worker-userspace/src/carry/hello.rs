//! Tells a TLS `ClientHello` without early data from everything else.
//!
//! A hello changes nothing at a target: a server answers it, and if that answer is never read, the connection is
//! gone without a trace. So it may be sent twice. Bytes behind the hello are not looked at but refused, and so is
//! the extension that announces them (RFC 8446, 4.2.10): they are a request already.

/// What each of them begins with: the content type of a handshake record.
pub(super) const FIRST_BYTE: u8 = 22;

const CLIENT_HELLO: u8 = 1;
const EARLY_DATA: u16 = 42;
/// Handshake header and version: what is shorter may still be anything.
const TELLING: usize = 6;
/// Longest record (RFC 8446, 5.1).
const LONGEST_RECORD: usize = 1 << 14;

/// True where `bytes` are a `ClientHello` without early data or the beginning of one, and nothing else.
pub(super) fn is_plain_hello(bytes: &[u8]) -> bool {
    handshake(bytes).is_some_and(|message| message.len() >= TELLING && walk(&message) != Err(Stop::No))
}

/// The handshake message without the headers of its records; `None` where there is anything else.
fn handshake(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut message = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((header, behind)) = rest.split_at_checked(5) {
        let [FIRST_BYTE, 3, _, high, low] = *header else { return None };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if !(1..=LONGEST_RECORD).contains(&length) {
            return None;
        }
        let here = length.min(behind.len());
        message.extend_from_slice(&behind[..here]);
        rest = &behind[here..];
        // What the record still announces would stand behind the hello, too.
        if whole(&message).is_some_and(|whole| message.len() + (length - here) > whole) {
            return None;
        }
    }
    // Of a record whose header is torn not even the kind is sure; there is one only where the hello is not whole.
    let torn =
        rest.is_empty() || (rest[0] == FIRST_BYTE && whole(&message).is_none_or(|w| message.len() < w));
    torn.then_some(message)
}

/// Length of the whole message, where it is known.
fn whole(message: &[u8]) -> Option<usize> {
    let [_, a, b, c] = *message.first_chunk()?;
    Some(4 + u32::from_be_bytes([0, a, b, c]) as usize)
}

/// Why a walk over a hello ended early.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    /// The rest is still to come.
    Short,
    /// It is none, or one that announces early data.
    No,
}

/// A part of a hello that is `length` bytes long, of which perhaps not all are there.
struct Part<'a> {
    there: &'a [u8],
    length: usize,
}

impl<'a> Part<'a> {
    fn take(&mut self, n: usize) -> Result<Part<'a>, Stop> {
        self.length = self.length.checked_sub(n).ok_or(Stop::No)?;
        let (there, rest) = self.there.split_at(n.min(self.there.len()));
        self.there = rest;
        Ok(Part { there, length: n })
    }

    fn number(&mut self, bytes: usize) -> Result<usize, Stop> {
        let part = self.take(bytes)?;
        match part.there.len() == bytes {
            true => Ok(part.there.iter().fold(0, |n, byte| (n << 8) | usize::from(*byte))),
            false => Err(Stop::Short),
        }
    }

    /// What stands behind its own length of `bytes` bytes.
    fn vector(&mut self, bytes: usize) -> Result<Part<'a>, Stop> {
        let length = self.number(bytes)?;
        self.take(length)
    }
}

fn walk(message: &[u8]) -> Result<(), Stop> {
    let mut all = Part { there: message, length: usize::MAX };
    if all.number(1)? != usize::from(CLIENT_HELLO) {
        return Err(Stop::No);
    }
    let mut hello = all.vector(3)?;
    // `legacy_version`: 3.0 to 3.3.
    if hello.number(1)? != 3 || hello.number(1)? > 3 {
        return Err(Stop::No);
    }
    // Random, session id, cipher suites, compression methods.
    hello.take(32)?;
    if hello.vector(1)?.length > 32 || hello.vector(2)?.length % 2 != 0 {
        return Err(Stop::No);
    }
    hello.vector(1)?;
    if hello.length == 0 {
        return Ok(());
    }
    let mut extensions = hello.vector(2)?;
    if hello.length != 0 {
        return Err(Stop::No);
    }
    while extensions.length > 0 {
        if extensions.number(2)? == usize::from(EARLY_DATA) {
            return Err(Stop::No);
        }
        extensions.vector(2)?;
    }
    // The last extension's own bytes may be on their way.
    Ok(())
}

#[cfg(test)]
pub(super) mod tests;
