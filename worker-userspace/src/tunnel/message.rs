//! The fields of the frames that carry more than bytes: `u8 tag | u16 length | value`, repeated.
//!
//! A reader skips tags that it does not know, so a newer peer may say more. A field that must be there
//! and is not, or that has the wrong form, is a fault of the peer and names itself.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::{BufMut, BytesMut};

use crate::refusal::{Code, Refusal};
use crate::target::{Host, Target};
use crate::tunnel::credit;

/// The protocol's version. Peers speak the lower of their two.
pub const VERSION: u16 = 1;
/// Longest text that a message carries, in bytes; longer ones are cut when written.
pub(super) const MAX_TEXT: usize = 512;

/// Sixteen random bytes that name a node or a session.
pub type Id = [u8; 16];

/// A node's id as the store and the API write it: 32 hexadecimal digits.
pub fn id_text(id: &Id) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads what [`id_text`] writes.
pub fn parse_id(text: &str) -> Option<Id> {
    if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut id = Id::default();
    for (at, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(id)
}

/// What a peer left out or wrote wrongly.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// A field that must be there is not.
    #[error("{message} without its field {tag}")]
    Missing {
        /// The frame.
        message: &'static str,
        /// The field's tag.
        tag: u8,
    },
    /// A field of the wrong length or form.
    #[error("{message} with a malformed field {tag}")]
    Malformed {
        /// The frame.
        message: &'static str,
        /// The field's tag.
        tag: u8,
    },
    /// The fields do not fill the payload.
    #[error("{message} with a torn field")]
    Torn {
        /// The frame.
        message: &'static str,
    },
}

/// Who an end is and what it takes. `HELLO` and `WELCOME` carry the same fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Highest protocol version that this end speaks.
    pub version: u16,
    /// The node: stays the same over restarts.
    pub node: Id,
    /// The session: one run of the process; joins its lanes.
    pub session: Id,
    /// This lane's number, from 0.
    pub lane: u8,
    /// The node's name for people: its host name.
    pub name: String,
    /// Version of the software, for people.
    pub software: String,
    /// Bytes that the other end may send on a stream that it opens, before any answer.
    pub initial_credit: u32,
    /// Streams that the other end may have open on this lane at once.
    pub max_streams: u32,
    /// What this end knows beyond version 1; nothing where the peer does not say.
    pub capabilities: Capabilities,
}

impl Hello {
    /// What this software says of a process that begins now.
    pub fn of(node: Id, name: String, max_streams: u32) -> Hello {
        Hello {
            version: VERSION,
            node,
            session: rand::random(),
            lane: 0,
            name,
            software: env!("CARGO_PKG_VERSION").to_owned(),
            initial_credit: credit::INITIAL,
            max_streams,
            capabilities: Capabilities::OURS,
        }
    }
}

#[cfg(test)]
impl Hello {
    /// A peer of the tests: what one of them is about, it says itself.
    pub(crate) fn sample() -> Hello {
        Hello {
            version: 1,
            node: [1; 16],
            session: [2; 16],
            lane: 0,
            name: "peer".into(),
            software: "test".into(),
            initial_credit: 1 << 18,
            max_streams: 10,
            capabilities: Capabilities::OURS,
        }
    }
}

/// What an end knows beyond what all ends of its version do. A frame that not all know is sent only to who
/// announced it, so that two versions can talk. Bits without a meaning yet are kept and ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities(u32);

impl Capabilities {
    /// `ROLE` frames.
    pub const ROLE: Capabilities = Capabilities(1);
    /// `POLICY` frames. An appliance that announces it sends the policy before its first `OPEN`.
    pub const POLICY: Capabilities = Capabilities(1 << 1);
    /// An appliance's, on a lane whose TLS it ends itself: a worker that began that TLS may mask with a key of zero. Masks
    /// are for those in between who read plaintext (RFC 6455, 10.3), and then there is nobody.
    pub const SEALED: Capabilities = Capabilities(1 << 2);
    /// All that this version knows.
    pub const OURS: Capabilities = Capabilities(Self::ROLE.0 | Self::POLICY.0);

    /// True where all of `asked` is known.
    pub fn has(self, asked: Capabilities) -> bool {
        self.0 & asked.0 == asked.0
    }

    /// The same, with these where they hold and without them where not.
    pub fn with(self, some: Capabilities, hold: bool) -> Capabilities {
        if hold { Capabilities(self.0 | some.0) } else { Capabilities(self.0 & !some.0) }
    }
}

/// Whether a worker carries its group's new streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// It carries them.
    Primary = 1,
    /// It would, if the primary were lost.
    Standby = 2,
}

impl Role {
    /// The word for it in logs and in `status`.
    pub fn word(self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::Standby => "standby",
        }
    }
}

/// Tells a worker its role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoleIs {
    /// Counts the changes: what comes with a lower one is outdated.
    pub epoch: u64,
    /// The role.
    pub role: Role,
}

/// Asks for a connection to a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// Where to.
    pub target: Target,
    /// How long the dial may take.
    pub deadline: Duration,
    /// Bytes that the dialling end may send before any `CREDIT`.
    pub credit: u32,
    /// Joins the log lines of both ends.
    pub trace: u64,
}

/// Says that the target was dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenOk {
    /// The address that was dialled, after resolution.
    pub address: SocketAddr,
    /// Resolution and dial together.
    pub dial: Duration,
    /// Whether that address is a proxy's, which dialled the target.
    pub proxied: bool,
}

/// Asks the other end to open no further stream on this lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoAway {
    /// After this time the lane is cut.
    pub deadline: Duration,
    /// For people.
    pub reason: String,
}

pub(super) struct Writer<'a>(pub(super) &'a mut BytesMut);

impl Writer<'_> {
    pub(super) fn bytes(&mut self, tag: u8, value: &[u8]) {
        self.0.put_u8(tag);
        self.0.put_u16(value.len() as u16);
        self.0.put_slice(value);
    }

    pub(super) fn text(&mut self, tag: u8, value: &str) {
        let mut end = value.len().min(MAX_TEXT);
        while !value.is_char_boundary(end) {
            end -= 1;
        }
        // A reader takes control characters for a fault; an error's text may have some.
        let plain: String = value[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        self.bytes(tag, plain.as_bytes());
    }

    fn addr(&mut self, tag: u8, addr: IpAddr) {
        match addr {
            IpAddr::V4(v4) => self.bytes(tag, &v4.octets()),
            IpAddr::V6(v6) => self.bytes(tag, &v6.octets()),
        }
    }
}

pub(super) struct Reader<'a> {
    message: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Checks that the payload is whole fields.
    pub(super) fn new(message: &'static str, payload: &'a [u8]) -> Result<Self, MessageError> {
        let mut rest = payload;
        while !rest.is_empty() {
            rest = split_field(rest).ok_or(MessageError::Torn { message })?.2;
        }
        Ok(Reader { message, rest: payload })
    }

    fn find(&self, tag: u8) -> Option<&'a [u8]> {
        let mut rest = self.rest;
        while let Some((found, value, after)) = split_field(rest) {
            if found == tag {
                return Some(value);
            }
            rest = after;
        }
        None
    }

    fn get<T>(&self, tag: u8, parse: impl Fn(&[u8]) -> Option<T>) -> Result<T, MessageError> {
        let message = self.message;
        let value = self.find(tag).ok_or(MessageError::Missing { message, tag })?;
        parse(value).ok_or(MessageError::Malformed { message, tag })
    }

    pub(super) fn array<const N: usize>(&self, tag: u8) -> Result<[u8; N], MessageError> {
        self.get(tag, |value| value.try_into().ok())
    }

    /// True where a field with this tag is there.
    fn has(&self, tag: u8) -> bool {
        let mut rest = self.rest;
        while let Some((found, _, behind)) = split_field(rest) {
            if found == tag {
                return true;
            }
            rest = behind;
        }
        false
    }

    fn text(&self, tag: u8) -> Result<String, MessageError> {
        self.get(tag, |value| plain(value).map(str::to_owned))
    }

    /// All texts with this tag, in their order.
    pub(super) fn texts(&self, tag: u8) -> impl Iterator<Item = Result<&'a str, MessageError>> {
        let (message, mut rest) = (self.message, self.rest);
        std::iter::from_fn(move || {
            loop {
                let (found, value, after) = split_field(rest)?;
                rest = after;
                if found == tag {
                    return Some(plain(value).ok_or(MessageError::Malformed { message, tag }));
                }
            }
        })
    }

    fn addr(&self, tag: u8) -> Result<IpAddr, MessageError> {
        self.get(tag, |value| match value.len() {
            4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
            _ => None,
        })
    }
}

/// A text that is fit for logs and terminals: no control characters, and not too long.
fn plain(value: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(value).ok()?;
    (text.len() <= MAX_TEXT && !text.chars().any(char::is_control)).then_some(text)
}

fn split_field(rest: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [tag, high, low, rest @ ..] = rest else { return None };
    let (value, after) = rest.split_at_checked(usize::from(u16::from_be_bytes([*high, *low])))?;
    Some((*tag, value, after))
}

impl Hello {
    /// Appends the fields to `out`.
    pub fn write(&self, out: &mut BytesMut) {
        let mut w = Writer(out);
        w.bytes(1, &self.version.to_be_bytes());
        w.bytes(2, &self.node);
        w.bytes(3, &self.session);
        w.bytes(4, &[self.lane]);
        w.text(5, &self.name);
        w.text(6, &self.software);
        w.bytes(7, &self.initial_credit.to_be_bytes());
        w.bytes(8, &self.max_streams.to_be_bytes());
        w.bytes(9, &self.capabilities.0.to_be_bytes());
    }

    /// Reads the payload of `HELLO` or `WELCOME`.
    pub fn read(payload: &[u8]) -> Result<Self, MessageError> {
        let r = Reader::new("HELLO or WELCOME", payload)?;
        Ok(Hello {
            version: u16::from_be_bytes(r.array(1)?),
            node: r.array(2)?,
            session: r.array(3)?,
            lane: u8::from_be_bytes(r.array(4)?),
            name: r.text(5)?,
            software: r.text(6)?,
            initial_credit: u32::from_be_bytes(r.array(7)?),
            max_streams: u32::from_be_bytes(r.array(8)?),
            capabilities: match r.find(9) {
                Some(_) => Capabilities(u32::from_be_bytes(r.array(9)?)),
                None => Capabilities::default(),
            },
        })
    }
}

impl Open {
    /// Appends the fields to `out`.
    pub fn write(&self, out: &mut BytesMut) {
        let mut w = Writer(out);
        match &self.target.host {
            Host::Name(name) => w.text(1, name.as_str()),
            Host::Addr(addr) => w.addr(2, *addr),
        }
        w.bytes(3, &self.target.port.to_be_bytes());
        w.bytes(4, &millis(self.deadline).to_be_bytes());
        w.bytes(5, &self.credit.to_be_bytes());
        w.bytes(6, &self.trace.to_be_bytes());
    }

    /// Reads the payload of `OPEN`.
    pub fn read(payload: &[u8]) -> Result<Self, MessageError> {
        let message = "OPEN";
        let r = Reader::new(message, payload)?;
        let host = match r.find(1) {
            Some(_) => {
                Host::Name(r.text(1)?.parse().map_err(|_| MessageError::Malformed { message, tag: 1 })?)
            }
            None => Host::addr(r.addr(2)?),
        };
        let port = u16::from_be_bytes(r.array(3)?);
        if port == 0 {
            return Err(MessageError::Malformed { message, tag: 3 });
        }
        Ok(Open {
            target: Target { host, port },
            deadline: Duration::from_millis(u32::from_be_bytes(r.array(4)?).into()),
            credit: u32::from_be_bytes(r.array(5)?),
            trace: u64::from_be_bytes(r.array(6)?),
        })
    }
}

impl OpenOk {
    /// Appends the fields to `out`.
    pub fn write(&self, out: &mut BytesMut) {
        let mut w = Writer(out);
        w.addr(1, self.address.ip());
        w.bytes(2, &self.address.port().to_be_bytes());
        w.bytes(3, &(self.dial.as_micros().min(u128::from(u32::MAX)) as u32).to_be_bytes());
        if self.proxied {
            w.bytes(4, &[]);
        }
    }

    /// Reads the payload of `OPEN_OK`.
    pub fn read(payload: &[u8]) -> Result<Self, MessageError> {
        let r = Reader::new("OPEN_OK", payload)?;
        Ok(OpenOk {
            address: SocketAddr::new(r.addr(1)?, u16::from_be_bytes(r.array(2)?)),
            dial: Duration::from_micros(u32::from_be_bytes(r.array(3)?).into()),
            proxied: r.has(4),
        })
    }
}

/// Appends the fields of `OPEN_ERR` or `RESET` to `out`.
pub fn write_refusal(refusal: &Refusal, out: &mut BytesMut) {
    let mut w = Writer(out);
    w.bytes(1, &(refusal.code as u16).to_be_bytes());
    w.bytes(2, &refusal.errno.to_be_bytes());
    w.text(3, &refusal.text);
}

/// Reads the payload of `OPEN_ERR` or `RESET`.
pub fn read_refusal(payload: &[u8]) -> Result<Refusal, MessageError> {
    let message = "OPEN_ERR or RESET";
    let r = Reader::new(message, payload)?;
    let errno = i32::from_be_bytes(r.array(2)?);
    // It becomes the application's errno: only numbers that the kernel could give.
    if !(0..4096).contains(&errno) {
        return Err(MessageError::Malformed { message, tag: 2 });
    }
    Ok(Refusal { code: Code::from_wire(u16::from_be_bytes(r.array(1)?)), errno, text: r.text(3)? })
}

impl GoAway {
    /// Appends the fields to `out`.
    pub fn write(&self, out: &mut BytesMut) {
        let mut w = Writer(out);
        w.bytes(1, &millis(self.deadline).to_be_bytes());
        w.text(2, &self.reason);
    }

    /// Reads the payload of `GOAWAY`.
    pub fn read(payload: &[u8]) -> Result<Self, MessageError> {
        let r = Reader::new("GOAWAY", payload)?;
        Ok(GoAway {
            deadline: Duration::from_millis(u32::from_be_bytes(r.array(1)?).into()),
            reason: r.text(2)?,
        })
    }
}

impl RoleIs {
    /// Appends the fields to `out`.
    pub fn write(&self, out: &mut BytesMut) {
        let mut w = Writer(out);
        w.bytes(1, &self.epoch.to_be_bytes());
        w.bytes(2, &[self.role as u8]);
    }

    /// Reads the payload of `ROLE`.
    pub fn read(payload: &[u8]) -> Result<Self, MessageError> {
        let message = "ROLE";
        let r = Reader::new(message, payload)?;
        let role = match r.array(2)? {
            [1] => Role::Primary,
            [2] => Role::Standby,
            _ => return Err(MessageError::Malformed { message, tag: 2 }),
        };
        Ok(RoleIs { epoch: u64::from_be_bytes(r.array(1)?), role })
    }
}

fn millis(duration: Duration) -> u32 {
    duration.as_millis().min(u128::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn written(write: impl FnOnce(&mut BytesMut)) -> BytesMut {
        let mut out = BytesMut::new();
        write(&mut out);
        out
    }

    fn open(host: &str) -> Open {
        let target = Target { host: host.parse().unwrap(), port: 443 };
        Open { target, deadline: Duration::from_secs(10), credit: 65536, trace: 7 }
    }

    #[test]
    fn what_is_written_is_read() {
        for host in ["vcenter.corp.example", "192.0.2.1", "2001:db8::1"] {
            let open = open(host);
            assert_eq!(Open::read(&written(|out| open.write(out))).unwrap(), open);
        }
        for proxied in [false, true] {
            let address = "[2001:db8::1]:443".parse().unwrap();
            let ok = OpenOk { address, dial: Duration::from_micros(1234), proxied };
            assert_eq!(OpenOk::read(&written(|out| ok.write(out))).unwrap(), ok);
        }
        let hello = Hello { lane: 3, capabilities: Capabilities(u32::MAX - 1), ..Hello::sample() };
        assert_eq!(Hello::read(&written(|out| hello.write(out))).unwrap(), hello);
        for role in [Role::Primary, Role::Standby] {
            let told = RoleIs { epoch: u64::MAX, role };
            assert_eq!(RoleIs::read(&written(|out| told.write(out))).unwrap(), told);
        }
        let refusal = Refusal { code: Code::Refused, errno: libc::ECONNREFUSED, text: "é".into() };
        assert_eq!(read_refusal(&written(|out| write_refusal(&refusal, out))).unwrap(), refusal);
    }

    #[test]
    fn a_peer_that_announces_nothing_knows_nothing() {
        let hello = Hello { capabilities: Capabilities::default(), ..Hello::sample() };
        let bytes = written(|out| hello.write(out));
        // As version 0.1.0 wrote it: without the last field.
        assert_eq!(Hello::read(&bytes[..bytes.len() - 7]).unwrap(), hello);
        assert!(!hello.capabilities.has(Capabilities::ROLE));
        assert!(Capabilities::OURS.has(Capabilities::POLICY));
        assert!(!Capabilities::ROLE.has(Capabilities::OURS));
    }

    #[test]
    fn fields_of_newer_versions_are_skipped() {
        let mut bytes = written(|out| Writer(out).bytes(200, b"from the future"));
        open("192.0.2.1").write(&mut bytes);
        assert_eq!(Open::read(&bytes).unwrap(), open("192.0.2.1"));
    }

    #[test]
    fn faults_are_named() {
        let message = "OPEN";
        assert_eq!(Open::read(b""), Err(MessageError::Missing { message, tag: 2 }));
        assert_eq!(Open::read(&[1, 0]), Err(MessageError::Torn { message }));
        let bad_name = written(|out| Writer(out).text(1, "no name!"));
        assert_eq!(Open::read(&bad_name), Err(MessageError::Malformed { message, tag: 1 }));
        let odd_role = written(|out| {
            let mut w = Writer(out);
            w.bytes(1, &[0; 8]);
            w.bytes(2, &[3]);
        });
        assert_eq!(RoleIs::read(&odd_role), Err(MessageError::Malformed { message: "ROLE", tag: 2 }));
        let odd_address = written(|out| Writer(out).bytes(2, &[1, 2, 3]));
        assert_eq!(Open::read(&odd_address), Err(MessageError::Malformed { message, tag: 2 }));
    }

    #[test]
    fn texts_are_cut_at_a_character_and_bring_no_control_characters() {
        let refusal = Refusal::new(Code::Other, "é".repeat(MAX_TEXT));
        let read = read_refusal(&written(|out| write_refusal(&refusal, out))).unwrap();
        assert_eq!(read.text, "é".repeat(MAX_TEXT / 2));
        // What this end says must never be a fault to the other one, whatever an error's text has in it.
        let escape = Refusal::new(Code::Other, "one\ntwo\x1b[31m");
        assert_eq!(read_refusal(&written(|out| write_refusal(&escape, out))).unwrap().text, "one two [31m");
        let raw = written(|out| {
            let mut w = Writer(out);
            w.bytes(1, &[0, 1]);
            w.bytes(2, &[0; 4]);
            w.bytes(3, b"\x1b[31m");
        });
        assert!(read_refusal(&raw).is_err());
    }

    proptest! {
        #[test]
        fn nothing_that_arrives_panics(bytes in vec(any::<u8>(), 0..200)) {
            let _ = (Hello::read(&bytes), Open::read(&bytes), OpenOk::read(&bytes));
            let _ = (read_refusal(&bytes), GoAway::read(&bytes), RoleIs::read(&bytes));
        }
    }
}
