//! The messages of SOCKS5. Pure: bytes in, meaning out.
//!
//! What must hold: a message that is not whole is neither taken nor refused for what is missing; no message is longer
//! than its fields can say, 513 bytes; what follows it is left alone.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::target::{Host, Target};

pub(super) const VERSION: u8 = 5;
/// Methods (RFC 1928, 3).
pub(super) const NO_LOGIN: u8 = 0;
pub(super) const LOGIN: u8 = 2;
pub(super) const NO_METHOD: u8 = 0xff;
/// Answers to a login (RFC 1929, 2).
pub(super) const LOGIN_TAKEN: [u8; 2] = [1, 0];
pub(super) const LOGIN_REFUSED: [u8; 2] = [1, 1];
/// Replies (RFC 1928, 6).
pub(super) const SUCCEEDED: u8 = 0;
const GENERAL_FAILURE: u8 = 1;
const COMMAND_NOT_SUPPORTED: u8 = 7;
const ADDRESS_TYPE_NOT_SUPPORTED: u8 = 8;

const CONNECT: u8 = 1;
const V4: u8 = 1;
const NAME: u8 = 3;
const V6: u8 = 4;

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// Another protocol, or another version of this one.
    #[error("its first byte is {0}, where SOCKS5 has 5")]
    Version(u8),
    /// A login of another version than 1.
    #[error("its login has version {0}, where RFC 1929 has 1")]
    LoginVersion(u8),
    /// `BIND`, `UDP ASSOCIATE`, or none.
    #[error("it asks for command {0}; only CONNECT, 1, is taken")]
    Command(u8),
    /// Neither a name nor an address.
    #[error("it asks for an address of type {0}, which is none")]
    AddressType(u8),
    /// A name that no host can have.
    #[error("it asks for a name that no host can have")]
    Name,
}

impl Fault {
    /// The reply to a request with this fault.
    pub(super) fn reply(self) -> u8 {
        match self {
            Fault::Command(_) => COMMAND_NOT_SUPPORTED,
            Fault::AddressType(_) => ADDRESS_TYPE_NOT_SUPPORTED,
            Fault::Version(_) | Fault::LoginVersion(_) | Fault::Name => GENERAL_FAILURE,
        }
    }
}

/// A message with its length, or nothing where it is not whole yet.
pub(super) type Parsed<T> = Result<Option<(T, usize)>, Fault>;

/// Walks over a message; `None` where it ends too early.
struct Reader<'a> {
    rest: &'a [u8],
    length: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes, length: bytes.len() }
    }

    fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    /// What stands behind its own length.
    fn field(&mut self) -> Option<&'a [u8]> {
        let length = self.byte()?;
        self.bytes(length.into())
    }

    fn done<T>(&self, message: T) -> Option<(T, usize)> {
        Some((message, self.length - self.rest.len()))
    }
}

/// The first message: the methods that the client offers.
pub(super) fn methods(bytes: &[u8]) -> Parsed<Vec<u8>> {
    let mut reader = Reader::new(bytes);
    match reader.byte() {
        Some(VERSION) => {}
        Some(other) => return Err(Fault::Version(other)),
        None => return Ok(None),
    }
    Ok(reader.field().and_then(|methods| reader.done(methods.to_vec())))
}

/// The user and the password.
pub(super) fn login(bytes: &[u8]) -> Parsed<(Vec<u8>, Vec<u8>)> {
    let mut reader = Reader::new(bytes);
    match reader.byte() {
        Some(1) => {}
        Some(other) => return Err(Fault::LoginVersion(other)),
        None => return Ok(None),
    }
    let (Some(user), Some(password)) = (reader.field(), reader.field()) else { return Ok(None) };
    Ok(reader.done((user.to_vec(), password.to_vec())))
}

/// What the client wants.
pub(super) fn request(bytes: &[u8]) -> Parsed<Target> {
    let mut reader = Reader::new(bytes);
    let Some([version, command, _, kind]) = reader.array() else {
        return match bytes.first() {
            Some(&first) if first != VERSION => Err(Fault::Version(first)),
            _ => Ok(None),
        };
    };
    match (version, command) {
        (VERSION, CONNECT) => {}
        (VERSION, other) => return Err(Fault::Command(other)),
        (other, _) => return Err(Fault::Version(other)),
    }
    let host = match kind {
        V4 => reader.array().map(|octets: [u8; 4]| Ok(Host::addr(Ipv4Addr::from(octets).into()))),
        V6 => reader.array().map(|octets: [u8; 16]| Ok(Host::addr(Ipv6Addr::from(octets).into()))),
        NAME => reader.field().map(host),
        other => return Err(Fault::AddressType(other)),
    };
    let (Some(host), Some(port)) = (host, reader.array()) else { return Ok(None) };
    Ok(reader.done(Target { host: host?, port: u16::from_be_bytes(port) }))
}

fn host(name: &[u8]) -> Result<Host, Fault> {
    // Clients write addresses as names, too.
    std::str::from_utf8(name).ok().and_then(|name| name.parse().ok()).ok_or(Fault::Name)
}

/// The answer to a request. The address that was bound is the worker's, and nobody's business.
pub(super) fn reply(reply: u8) -> [u8; 10] {
    [VERSION, reply, 0, V4, 0, 0, 0, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asked(kind: u8, address: &[u8], port: u16) -> Vec<u8> {
        [&[5, 1, 0, kind][..], address, &port.to_be_bytes()].concat()
    }

    #[test]
    fn names_and_addresses_are_understood() {
        for (bytes, target) in [
            (asked(1, &[10, 20, 0, 5], 443), "10.20.0.5:443"),
            (asked(4, &Ipv6Addr::from_bits(0x2001_0db8 << 96 | 5).octets(), 443), "[2001:db8::5]:443"),
            (asked(4, &Ipv4Addr::new(10, 20, 0, 5).to_ipv6_mapped().octets(), 1), "10.20.0.5:1"),
            (asked(3, b"\x14vcenter.corp.example", 65535), "vcenter.corp.example:65535"),
            (asked(3, b"\x0910.20.0.5", 80), "10.20.0.5:80"),
            (asked(3, b"\x0c2001:db8::05", 80), "[2001:db8::5]:80"),
        ] {
            let (read, length) = request(&bytes).unwrap().expect("whole");
            assert_eq!((read.to_string().as_str(), length), (target, bytes.len()));
        }
    }

    #[test]
    fn faults_are_told_as_soon_as_they_are_seen() {
        assert_eq!(methods(b"\x04\x01"), Err(Fault::Version(4)));
        assert_eq!(methods(b"GET "), Err(Fault::Version(b'G')));
        assert_eq!(login(b"\x05"), Err(Fault::LoginVersion(5)));
        assert_eq!(request(b"\x04"), Err(Fault::Version(4)));
        assert_eq!(request(b"\x05\x02\x00\x01"), Err(Fault::Command(2)));
        assert_eq!(request(b"\x05\x03\x00\x01"), Err(Fault::Command(3)));
        assert_eq!(request(b"\x05\x01\x00\x02"), Err(Fault::AddressType(2)));
        for name in [&b"\x00"[..], b"\x01.", b"\x03a b", b"\x02\xff\xfe", b"\x04\x31.25"] {
            assert_eq!(request(&asked(3, name, 443)), Err(Fault::Name), "{name:?}");
        }
        let replies = [Fault::Command(2), Fault::AddressType(2), Fault::Name].map(Fault::reply);
        assert_eq!(replies, [7, 8, 1]);
    }

    /// The message is not whole before its last byte, and what follows it changes nothing.
    fn whole_at_its_end<T: PartialEq + std::fmt::Debug>(
        parse: impl Fn(&[u8]) -> Parsed<T>,
        message: &[u8],
        behind: &[u8],
    ) -> Result<T, TestCaseError> {
        for end in 0..message.len() {
            prop_assert_eq!(parse(&message[..end]), Ok(None));
        }
        let (read, length) = parse(&[message, behind].concat()).unwrap().expect("whole");
        prop_assert_eq!(length, message.len());
        prop_assert!(length <= 513);
        Ok(read)
    }

    proptest! {
        #[test]
        fn messages_are_whole_at_their_last_byte(
            offered in prop::collection::vec(any::<u8>(), 0..=255),
            user in prop::collection::vec(any::<u8>(), 0..=255),
            password in prop::collection::vec(any::<u8>(), 0..=255),
            v6 in any::<u128>(), port in any::<u16>(),
            name in "[a-z][a-z0-9]{0,20}(\\.[a-z]{1,20}){0,8}",
            behind in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let field = |bytes: &[u8]| [&[bytes.len() as u8][..], bytes].concat();
            let read = whole_at_its_end(methods, &[&[5][..], &field(&offered)].concat(), &behind)?;
            prop_assert_eq!(read, offered);
            let message = [&[1][..], &field(&user), &field(&password)].concat();
            prop_assert_eq!(whole_at_its_end(login, &message, &behind)?, (user, password));
            let read = whole_at_its_end(request, &asked(3, &field(name.as_bytes()), port), &behind)?;
            prop_assert_eq!(read, Target { host: name.parse().unwrap(), port });
            let read = whole_at_its_end(request, &asked(4, &v6.to_be_bytes(), port), &behind)?;
            prop_assert_eq!(read, Target { host: Host::addr(Ipv6Addr::from_bits(v6).into()), port });
        }

        #[test]
        fn nothing_panics_and_nothing_is_longer_than_there_are_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            for length in [
                methods(&bytes).ok().flatten().map(|(_, length)| length),
                login(&bytes).ok().flatten().map(|(_, length)| length),
                request(&bytes).ok().flatten().map(|(_, length)| length),
            ] {
                prop_assert!(length.unwrap_or(0) <= bytes.len());
            }
        }
    }
}
