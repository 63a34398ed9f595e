//! RFC 6455 framing after the handshake, as our lanes need it: binary messages whose payload is a byte
//! stream of [frames](super::frame), plus close, ping and pong.
//!
//! The handshake is tungstenite's and hyper's. The framing is our own because it is the data path: the
//! payload is unmasked where the socket's read put it and handed on without a copy, and a batch is
//! written from the buffers that the sockets were read into.

use bytes::{BufMut, BytesMut};

/// Most payload bytes of one message, however it is fragmented.
pub const MAX_MESSAGE: usize = 256 * 1024;
/// Most payload bytes of a control frame (RFC 6455, 5.5).
const MAX_CONTROL: usize = 125;

/// Which end of the handshake this is: the client masks what it sends (RFC 6455, 5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Sent the upgrade request: masks, and takes unmasked frames.
    Client,
    /// Answered it: does not mask, and takes masked frames.
    Server,
}

/// Frame opcodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// A further fragment of a message.
    Continuation = 0,
    /// A message, or its first fragment.
    Binary = 2,
    /// The peer closes.
    Close = 8,
    /// To be answered by a pong.
    Ping = 9,
    /// The answer to a ping.
    Pong = 10,
}

/// What a peer did that RFC 6455 or our use of it does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebsocketError {
    /// A reserved bit is set; we negotiate no extension.
    #[error("websocket frame with reserved bits set")]
    Reserved,
    /// An unknown opcode, or text.
    #[error("websocket frame with opcode {0}; only binary messages are spoken here")]
    Opcode(u8),
    /// A client that does not mask, or a server that does.
    #[error("websocket frame {}", if *.masked { "masked by the server" } else { "not masked by the client" })]
    Mask {
        /// Whether it was masked.
        masked: bool,
    },
    /// A message over [`MAX_MESSAGE`].
    #[error("websocket message of more than {MAX_MESSAGE} bytes")]
    TooLong,
    /// A control frame that is fragmented or too long.
    #[error("websocket control frame that is fragmented or longer than 125 bytes")]
    Control,
    /// A continuation without a message, or a message within another.
    #[error("websocket fragments out of order")]
    Fragment,
}

/// XORs `data` with `key`, the first byte with `key[offset % 4]`.
pub fn mask(data: &mut [u8], key: [u8; 4], offset: usize) {
    if key == [0; 4] {
        return;
    }
    let rotated: [u8; 4] = std::array::from_fn(|i| key[(offset + i) & 3]);
    let wide = u64::from_ne_bytes(std::array::from_fn(|i: usize| rotated[i & 3]));
    let mut words = data.chunks_exact_mut(8);
    for word in &mut words {
        let value = u64::from_ne_bytes(std::array::from_fn(|i| word[i])) ^ wide;
        word.copy_from_slice(&value.to_ne_bytes());
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(rotated.iter().cycle()) {
        *byte ^= key;
    }
}

/// Writes a frame's header; `key` where this end masks.
pub fn put_header(out: &mut BytesMut, opcode: Opcode, length: usize, key: Option<[u8; 4]>) {
    out.put_u8(0x80 | opcode as u8);
    let bit = if key.is_some() { 0x80 } else { 0 };
    match length {
        0..=125 => out.put_u8(bit | length as u8),
        126..=0xffff => {
            out.put_u8(bit | 126);
            out.put_u16(length as u16);
        }
        _ => {
            out.put_u8(bit | 127);
            out.put_u64(length as u64);
        }
    }
    if let Some(key) = key {
        out.put_slice(&key);
    }
}

/// What a decoder hands on.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// The next bytes of a binary message, unmasked. May be empty only where `end` is true.
    Payload {
        /// The bytes.
        bytes: BytesMut,
        /// The message ends behind them.
        end: bool,
    },
    /// A ping with its payload, which the pong repeats.
    Ping(BytesMut),
    /// A pong; it counts as life.
    Pong,
    /// The peer closes, with its status code where it gave one.
    Close(Option<u16>),
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    opcode: Opcode,
    end: bool,
    left: usize,
    key: Option<[u8; 4]>,
    /// Bytes of this frame already unmasked, modulo 4.
    offset: usize,
}

/// Splits what a socket gives into messages.
#[derive(Debug)]
pub struct Decoder {
    side: Side,
    frame: Option<Frame>,
    /// Payload bytes of the message so far, `None` between messages.
    message: Option<usize>,
}

impl Decoder {
    /// A decoder for the end that `side` is.
    pub fn new(side: Side) -> Decoder {
        Decoder { side, frame: None, message: None }
    }

    /// Takes the next event off `input`; `None` when more bytes are needed. What is left in `input`
    /// then is at most a header or a control frame.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Event>, WebsocketError> {
        let mut frame = match self.frame {
            Some(frame) => frame,
            None => match self.header(input)? {
                Some(frame) => frame,
                None => return Ok(None),
            },
        };
        if matches!(frame.opcode, Opcode::Binary | Opcode::Continuation) {
            let n = frame.left.min(input.len());
            if n == 0 && frame.left > 0 {
                self.frame = Some(frame);
                return Ok(None);
            }
            let mut bytes = input.split_to(n);
            if let Some(key) = frame.key {
                mask(&mut bytes, key, frame.offset);
            }
            frame.left -= n;
            frame.offset = (frame.offset + n) & 3;
            let end = frame.end && frame.left == 0;
            self.frame = (frame.left > 0).then_some(frame);
            if end {
                self.message = None;
            }
            return Ok(Some(Event::Payload { bytes, end }));
        }
        // Control frames are small: wait for the whole.
        if input.len() < frame.left {
            self.frame = Some(frame);
            return Ok(None);
        }
        self.frame = None;
        let mut bytes = input.split_to(frame.left);
        if let Some(key) = frame.key {
            mask(&mut bytes, key, 0);
        }
        Ok(Some(match frame.opcode {
            Opcode::Ping => Event::Ping(bytes),
            Opcode::Pong => Event::Pong,
            _ => Event::Close(bytes.get(..2).map(|code| u16::from_be_bytes([code[0], code[1]]))),
        }))
    }

    fn header(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, WebsocketError> {
        let [first, second, ..] = input[..] else { return Ok(None) };
        let (masked, short) = (second & 0x80 != 0, second & 0x7f);
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let size = 2 + extended + if masked { 4 } else { 0 };
        if first & 0x70 != 0 {
            return Err(WebsocketError::Reserved);
        }
        let opcode = match first & 0x0f {
            0 => Opcode::Continuation,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            other => return Err(WebsocketError::Opcode(other)),
        };
        if masked != (self.side == Side::Server) {
            return Err(WebsocketError::Mask { masked });
        }
        if input.len() < size {
            return Ok(None);
        }
        let header = input.split_to(size);
        let length = header[2..2 + extended].iter().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
        let length = if extended == 0 { u64::from(short) } else { length };
        let key = masked.then(|| std::array::from_fn(|i| header[2 + extended + i]));
        let end = first & 0x80 != 0;
        let limit = match opcode {
            Opcode::Binary | Opcode::Continuation => {
                if self.message.is_some() != (opcode == Opcode::Continuation) {
                    return Err(WebsocketError::Fragment);
                }
                let before = self.message.unwrap_or(0);
                self.message = Some(before.saturating_add(length as usize));
                MAX_MESSAGE - before.min(MAX_MESSAGE)
            }
            _ if !end => return Err(WebsocketError::Control),
            _ => MAX_CONTROL,
        };
        if length > limit as u64 {
            return Err(if limit == MAX_CONTROL { WebsocketError::Control } else { WebsocketError::TooLong });
        }
        Ok(Some(Frame { opcode, end, left: length as usize, key, offset: 0 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn encode(opcode: Opcode, payload: &[u8], key: Option<[u8; 4]>) -> Vec<u8> {
        let mut out = BytesMut::new();
        put_header(&mut out, opcode, payload.len(), key);
        let start = out.len();
        out.put_slice(payload);
        if let Some(key) = key {
            mask(&mut out[start..], key, 0);
        }
        out.to_vec()
    }

    fn decode(side: Side, wire: &[u8], step: usize) -> Result<(Vec<Vec<u8>>, Vec<Event>), WebsocketError> {
        let mut decoder = Decoder::new(side);
        let (mut messages, mut others, mut current) = (Vec::new(), Vec::new(), Vec::new());
        let mut input = BytesMut::new();
        for part in wire.chunks(step.max(1)) {
            input.extend_from_slice(part);
            while let Some(event) = decoder.next(&mut input)? {
                match event {
                    Event::Payload { bytes, end } => {
                        current.extend_from_slice(&bytes);
                        if end {
                            messages.push(std::mem::take(&mut current));
                        }
                    }
                    other => others.push(other),
                }
            }
        }
        Ok((messages, others))
    }

    #[test]
    fn control_frames_may_stand_between_fragments() {
        let mut wire = encode(Opcode::Binary, b"one ", None);
        wire[0] &= 0x7f;
        wire.extend(encode(Opcode::Ping, b"?", None));
        wire.extend(encode(Opcode::Continuation, b"two", None));
        wire.extend(encode(Opcode::Close, &[3, 232], None));
        for step in 1..wire.len() {
            let (messages, others) = decode(Side::Client, &wire, step).unwrap();
            assert_eq!(messages, [b"one two"]);
            assert_eq!(others, [Event::Ping(BytesMut::from(&b"?"[..])), Event::Close(Some(1000))]);
        }
    }

    #[test]
    fn faults_are_named() {
        let unmasked = encode(Opcode::Binary, b"x", None);
        let masked = encode(Opcode::Binary, b"x", Some([1, 2, 3, 4]));
        let text = vec![0x81, 1, b'x'];
        let reserved = vec![0xc2, 0];
        let long_ping = encode(Opcode::Ping, &[0; 126], None);
        let open_ping = vec![0x09, 0];
        let stray = encode(Opcode::Continuation, b"x", None);
        let huge = encode(Opcode::Binary, &vec![0; MAX_MESSAGE + 1], None);
        let mut nested = unmasked.clone();
        nested[0] &= 0x7f;
        nested.extend(&unmasked);
        for (side, wire, fault) in [
            (Side::Server, unmasked, WebsocketError::Mask { masked: false }),
            (Side::Client, masked, WebsocketError::Mask { masked: true }),
            (Side::Client, text, WebsocketError::Opcode(1)),
            (Side::Client, reserved, WebsocketError::Reserved),
            (Side::Client, long_ping, WebsocketError::Control),
            (Side::Client, open_ping, WebsocketError::Control),
            (Side::Client, stray, WebsocketError::Fragment),
            (Side::Client, huge, WebsocketError::TooLong),
            (Side::Client, nested, WebsocketError::Fragment),
        ] {
            assert_eq!(decode(side, &wire, usize::MAX), Err(fault));
        }
    }

    proptest! {
        #[test]
        fn masking_twice_is_nothing(mut data in vec(any::<u8>(), 0..100), key: [u8; 4], cut in 0usize..100) {
            let before = data.clone();
            mask(&mut data, key, 0);
            let cut = cut.min(data.len());
            let (head, tail) = data.split_at_mut(cut);
            mask(head, key, 0);
            mask(tail, key, cut);
            prop_assert_eq!(data, before);
        }

        #[test]
        fn messages_arrive_whole(
            messages in vec(vec(any::<u8>(), 0..70_000), 1..4), key: [u8; 4], server: bool, step in 1usize..70_000,
        ) {
            let (side, key) = if server { (Side::Server, Some(key)) } else { (Side::Client, None) };
            let wire: Vec<u8> = messages.iter().flat_map(|m| encode(Opcode::Binary, m, key)).collect();
            prop_assert_eq!(decode(side, &wire, step).unwrap().0, messages);
        }

        #[test]
        fn nothing_that_arrives_panics(bytes in vec(any::<u8>(), 0..2000), server: bool) {
            let _ = decode(if server { Side::Server } else { Side::Client }, &bytes, 100);
        }
    }
}
