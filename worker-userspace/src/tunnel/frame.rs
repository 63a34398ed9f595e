//! Frames: `u32 stream | u8 type | u24 length | payload`, big endian.
//!
//! The decoder takes the payload of websocket messages in whatever pieces they arrive. `DATA` is handed
//! on piece by piece, so that no frame has to be whole before its first byte moves on; every other
//! frame is small and is collected. What a peer sends can make it fail, never panic or grow.

use bytes::{Buf, BufMut, BytesMut};

/// Bytes of a frame's header.
pub const HEADER: usize = 8;
/// Most payload bytes of a `DATA` frame.
pub const MAX_DATA: usize = 256 * 1024 - HEADER;
/// Most payload bytes of any other frame.
pub const MAX_CONTROL: usize = 4096;
/// Frame types from here on may be skipped by a peer that does not know them.
const SKIPPABLE: u8 = 0x80;

/// Frame types. The numbers are the wire's and never change meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Type {
    /// First frame of the connecting end: version, capabilities, who it is, limits.
    Hello = 1,
    /// The answer to `HELLO`.
    Welcome = 2,
    /// Opens a stream.
    Open = 3,
    /// The target was dialled.
    OpenOk = 4,
    /// The target was not dialled; ends the stream.
    OpenErr = 5,
    /// Bytes of a stream.
    Data = 6,
    /// No more bytes in this direction.
    Fin = 7,
    /// The stream is gone in both directions.
    Reset = 8,
    /// The sender may send up to this absolute offset (u64).
    Credit = 9,
    /// A timestamp to be sent back (u64).
    Ping = 10,
    /// The timestamp of a `PING` (u64).
    Pong = 11,
    /// No new streams on this lane.
    GoAway = 12,
    /// Whether the worker is its group's primary; only to who announced that it knows it.
    Role = 13,
    /// A part of what the worker is to carry; only to who announced that it knows it.
    Policy = 14,
}

impl Type {
    fn from_wire(n: u8) -> Option<Type> {
        use Type::*;
        const ALL: [Type; 14] = [
            Hello, Welcome, Open, OpenOk, OpenErr, Data, Fin, Reset, Credit, Ping, Pong, GoAway, Role, Policy,
        ];
        ALL.into_iter().find(|t| *t as u8 == n)
    }

    /// True where the frame speaks of the lane and its stream id must be 0.
    fn is_of_lane(self) -> bool {
        use Type::*;
        matches!(self, Hello | Welcome | Ping | Pong | GoAway | Role | Policy)
    }
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The stream, 0 for frames of the lane.
    pub stream: u32,
    /// What the payload is.
    pub kind: Type,
    /// Payload bytes.
    pub length: usize,
}

/// Writes a header.
pub fn put_header(out: &mut BytesMut, stream: u32, kind: Type, length: usize) {
    debug_assert!(length <= MAX_DATA);
    out.put_u32(stream);
    out.put_u8(kind as u8);
    out.put_uint(length as u64, 3);
}

/// Writes a frame whose payload is one u64 (`CREDIT`, `PING`, `PONG`).
pub fn put_u64(out: &mut BytesMut, stream: u32, kind: Type, value: u64) {
    put_header(out, stream, kind, 8);
    out.put_u64(value);
}

/// Appends a frame whose payload `write` makes.
pub(super) fn put_message(out: &mut BytesMut, stream: u32, kind: Type, write: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    put_header(out, stream, kind, 0);
    write(out);
    let length = (out.len() - start - HEADER) as u32;
    out[start + 5..start + HEADER].copy_from_slice(&length.to_be_bytes()[1..]);
}

/// A whole control frame as bytes, for peers under test.
#[cfg(test)]
pub(super) fn frame_bytes(stream: u32, kind: Type, payload: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    put_message(&mut out, stream, kind, |out| out.extend_from_slice(payload));
    out
}

/// What a peer did that the protocol does not allow. The lane ends with this as its reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// An unknown type that may not be skipped.
    #[error("frame of unknown type {0}")]
    UnknownType(u8),
    /// A length over the type's limit.
    #[error("{kind:?} frame of {length} bytes; the limit is {limit}")]
    TooLong {
        /// The frame's type.
        kind: Type,
        /// Its length.
        length: usize,
        /// The most that it may have.
        limit: usize,
    },
    /// A stream frame without a stream, or a lane frame with one.
    #[error("{kind:?} frame with stream id {stream}")]
    StreamId {
        /// The frame's type.
        kind: Type,
        /// Its stream id.
        stream: u32,
    },
    /// A frame of fixed size with another size.
    #[error("{kind:?} frame of {length} bytes; it has {expected}")]
    Length {
        /// The frame's type.
        kind: Type,
        /// Its length.
        length: usize,
        /// The length that it must have.
        expected: usize,
    },
    /// A websocket message ended within a frame.
    #[error("a websocket message ended within a frame")]
    Torn,
}

/// What a decoder hands on.
#[derive(Debug, PartialEq)]
pub enum Piece {
    /// Bytes of a stream: a whole `DATA` frame or a part of one. Never empty.
    Data(u32, BytesMut),
    /// Any other frame, whole.
    Control(Header, BytesMut),
}

#[derive(Debug)]
enum State {
    Header,
    Data { stream: u32, left: usize },
    Control { header: Header },
    Skip { left: usize },
}

/// Splits the payload of websocket messages into frames.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// Bytes of a header or of a control frame that is not whole yet; at most [`MAX_CONTROL`].
    partial: BytesMut,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder { state: State::Header, partial: BytesMut::new() }
    }
}

impl Decoder {
    /// Takes the next frame or part of a frame off `input`; `None` when `input` is used up.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Piece>, FrameError> {
        loop {
            match self.state {
                State::Header => {
                    let Some(mut header) = self.collect(input, HEADER) else { return Ok(None) };
                    self.state = parse_header(&mut header)?;
                    // Control frames without payload are whole at once.
                    if let State::Control { header: header @ Header { length: 0, .. } } = self.state {
                        self.state = State::Header;
                        return Ok(Some(Piece::Control(header, BytesMut::new())));
                    }
                }
                State::Data { left: 0, .. } | State::Skip { left: 0 } => self.state = State::Header,
                State::Data { stream, left } => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let part = input.split_to(left.min(input.len()));
                    self.state = State::Data { stream, left: left - part.len() };
                    return Ok(Some(Piece::Data(stream, part)));
                }
                State::Control { header } => {
                    let Some(payload) = self.collect(input, header.length) else { return Ok(None) };
                    self.state = State::Header;
                    return Ok(Some(Piece::Control(header, payload)));
                }
                State::Skip { left } => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let n = left.min(input.len());
                    input.advance(n);
                    self.state = State::Skip { left: left - n };
                }
            }
        }
    }

    /// Called where a websocket message ends: frames do not reach over that border.
    pub fn end_of_message(&mut self) -> Result<(), FrameError> {
        let whole = match self.state {
            State::Header => self.partial.is_empty(),
            State::Data { left, .. } | State::Skip { left } => left == 0,
            State::Control { .. } => false,
        };
        if whole { Ok(()) } else { Err(FrameError::Torn) }
    }

    /// `length` bytes in one piece, collected over several calls where `input` has fewer.
    fn collect(&mut self, input: &mut BytesMut, length: usize) -> Option<BytesMut> {
        if self.partial.is_empty() && input.len() >= length {
            return Some(input.split_to(length));
        }
        let n = (length - self.partial.len()).min(input.len());
        self.partial.extend_from_slice(&input[..n]);
        input.advance(n);
        (self.partial.len() == length).then(|| self.partial.split())
    }
}

fn parse_header(bytes: &mut BytesMut) -> Result<State, FrameError> {
    let stream = bytes.get_u32();
    let number = bytes.get_u8();
    let length = bytes.get_uint(3) as usize;
    let Some(kind) = Type::from_wire(number) else {
        return match number >= SKIPPABLE && length <= MAX_DATA {
            true => Ok(State::Skip { left: length }),
            false => Err(FrameError::UnknownType(number)),
        };
    };
    if kind.is_of_lane() != (stream == 0) {
        return Err(FrameError::StreamId { kind, stream });
    }
    let limit = if kind == Type::Data { MAX_DATA } else { MAX_CONTROL };
    if length > limit {
        return Err(FrameError::TooLong { kind, length, limit });
    }
    let expected = match kind {
        Type::Fin => Some(0),
        Type::Credit | Type::Ping | Type::Pong => Some(8),
        _ => None,
    };
    match expected {
        Some(expected) if expected != length => Err(FrameError::Length { kind, length, expected }),
        _ if kind == Type::Data => Ok(State::Data { stream, left: length }),
        _ => Ok(State::Control { header: Header { stream, kind, length } }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn decode(decoder: &mut Decoder, bytes: &[u8]) -> Result<Vec<Piece>, FrameError> {
        let mut input = BytesMut::from(bytes);
        let mut pieces = Vec::new();
        while let Some(piece) = decoder.next(&mut input)? {
            pieces.push(piece);
        }
        Ok(pieces)
    }

    fn frame(stream: u32, number: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        out.put_u32(stream);
        out.put_u8(number);
        out.put_uint(payload.len() as u64, 3);
        out.put_slice(payload);
        out.to_vec()
    }

    /// Joins neighbouring pieces of one stream's data, which cuts in the input tear apart.
    fn joined(pieces: Vec<Piece>) -> Vec<(u32, Option<Type>, Vec<u8>)> {
        let mut out: Vec<(u32, Option<Type>, Vec<u8>)> = Vec::new();
        for piece in pieces {
            match (piece, out.last_mut()) {
                (Piece::Data(id, data), Some((last, None, bytes))) if *last == id => {
                    bytes.extend_from_slice(&data)
                }
                (Piece::Data(id, data), _) => out.push((id, None, data.to_vec())),
                (Piece::Control(h, payload), _) => out.push((h.stream, Some(h.kind), payload.to_vec())),
            }
        }
        out
    }

    #[test]
    fn faults_are_named() {
        let cases: [(Vec<u8>, FrameError); 7] = [
            (frame(1, 0, b""), FrameError::UnknownType(0)),
            (frame(1, 99, b"x"), FrameError::UnknownType(99)),
            (frame(0, Type::Data as u8, b"x"), FrameError::StreamId { kind: Type::Data, stream: 0 }),
            (frame(3, Type::Ping as u8, &[0; 8]), FrameError::StreamId { kind: Type::Ping, stream: 3 }),
            (
                frame(3, Type::Credit as u8, b"short"),
                FrameError::Length { kind: Type::Credit, length: 5, expected: 8 },
            ),
            (frame(3, Type::Fin as u8, b"x"), FrameError::Length { kind: Type::Fin, length: 1, expected: 0 }),
            (
                frame(3, Type::Open as u8, &[0; MAX_CONTROL + 1]),
                FrameError::TooLong { kind: Type::Open, length: MAX_CONTROL + 1, limit: MAX_CONTROL },
            ),
        ];
        for (bytes, expected) in cases {
            assert_eq!(decode(&mut Decoder::default(), &bytes), Err(expected));
        }
    }

    #[test]
    fn frames_of_newer_versions_are_skipped_where_they_may_be() {
        let mut bytes = frame(1, 0x80, &[7; 300]);
        bytes.extend(frame(1, Type::Fin as u8, b""));
        let pieces = decode(&mut Decoder::default(), &bytes).unwrap();
        assert_eq!(joined(pieces), [(1, Some(Type::Fin), vec![])]);
    }

    #[test]
    fn data_of_every_length_is_announced_as_it_is() {
        for length in [1, 255, 256, 65_535, 65_536, 65_537, MAX_DATA] {
            let mut wire = BytesMut::new();
            put_header(&mut wire, 7, Type::Data, length);
            wire.resize(HEADER + length, 9);
            put_u64(&mut wire, 7, Type::Credit, 1 << 40);
            let arrived = joined(decode(&mut Decoder::default(), &wire).unwrap());
            let credit = (7, Some(Type::Credit), (1u64 << 40).to_be_bytes().to_vec());
            assert_eq!(arrived, [(7, None, vec![9; length]), credit]);
        }
        let too_long = FrameError::TooLong { kind: Type::Data, length: MAX_DATA + 1, limit: MAX_DATA };
        let wire = frame(7, Type::Data as u8, &vec![9; MAX_DATA + 1]);
        assert_eq!(decode(&mut Decoder::default(), &wire), Err(too_long));
    }

    #[test]
    fn a_message_may_not_end_within_a_frame() {
        let whole = frame(1, Type::Data as u8, b"hello");
        for cut in 1..whole.len() {
            let mut decoder = Decoder::default();
            decode(&mut decoder, &whole[..cut]).unwrap();
            assert_eq!(decoder.end_of_message(), Err(FrameError::Torn), "cut at {cut}");
        }
        let mut decoder = Decoder::default();
        decode(&mut decoder, &whole).unwrap();
        assert_eq!(decoder.end_of_message(), Ok(()));
    }

    proptest! {
        #[test]
        fn cuts_do_not_change_what_arrives(
            frames in vec((1u32.., prop_oneof![Just(Type::Data), Just(Type::OpenErr), Just(Type::Open)], vec(any::<u8>(), 1..600)), 1..12),
            cuts in vec(1usize..700, 0..40),
        ) {
            let wire: Vec<u8> = frames.iter().flat_map(|(id, kind, payload)| frame(*id, *kind as u8, payload)).collect();
            let sent = frames.into_iter().map(|(id, kind, payload)| match kind {
                Type::Data => Piece::Data(id, BytesMut::from(&payload[..])),
                kind => Piece::Control(Header { stream: id, kind, length: payload.len() }, payload[..].into()),
            });
            let sent = joined(sent.collect());
            prop_assert_eq!(joined(decode(&mut Decoder::default(), &wire).unwrap()), &sent[..]);
            let mut decoder = Decoder::default();
            let mut pieces = Vec::new();
            let mut rest = &wire[..];
            for cut in cuts {
                let (part, after) = rest.split_at(cut.min(rest.len()));
                pieces.extend(decode(&mut decoder, part).unwrap());
                rest = after;
            }
            pieces.extend(decode(&mut decoder, rest).unwrap());
            prop_assert_eq!(joined(pieces), sent);
            prop_assert_eq!(decoder.end_of_message(), Ok(()));
        }

        #[test]
        fn nothing_that_arrives_panics_or_grows(bytes in vec(any::<u8>(), 0..20_000)) {
            let mut decoder = Decoder::default();
            let _ = decode(&mut decoder, &bytes);
            prop_assert!(decoder.partial.len() <= MAX_CONTROL);
        }
    }
}
