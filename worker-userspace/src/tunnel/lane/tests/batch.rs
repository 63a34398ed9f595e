//! How bytes are put into messages.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::*;
use crate::tunnel::stream::{LARGEST_SEND, PLENTY};
use crate::tunnel::transport::Source;

/// One message: its bytes, and how many of them are data of each stream.
#[derive(Debug, Default)]
pub(super) struct Message {
    pub(super) size: usize,
    pub(super) data: BTreeMap<u32, usize>,
}

/// Frames as the peer of a lane writes them.
fn written(side: Side, frames: &[u8]) -> BytesMut {
    let mut message = BytesMut::new();
    let key = (side == Side::Server).then_some([0; 4]);
    websocket::put_header(&mut message, Opcode::Binary, frames.len(), key);
    message.extend_from_slice(frames);
    message
}

/// A stream of a lane that has so much credit, and what its peer reads.
pub(super) async fn credited(side: Side, credit: u64) -> (End, Stream, DuplexStream) {
    credited_with(Settings::default(), 1 << 20, side, credit).await
}

pub(super) async fn credited_with(
    settings: Settings,
    pipe: usize,
    side: Side,
    credit: u64,
) -> (End, Stream, DuplexStream) {
    let (io, mut raw) = duplex(pipe);
    let end = end(io, side, settings);
    let stream = end.lane.open(open_request()).unwrap();
    assert_eq!(stream.sendable().await.unwrap(), INITIAL as usize);
    give(&mut raw, side, &stream, credit).await;
    (end, stream, raw)
}

/// Gives a stream credit.
pub(super) async fn give(raw: &mut DuplexStream, side: Side, stream: &Stream, credit: u64) {
    let mut frame = BytesMut::new();
    frame::put_u64(&mut frame, stream.place().1, Type::Credit, credit);
    raw.write_all(&written(side, &frame)).await.unwrap();
    while stream.sendable().await.unwrap() < LARGEST_SEND {
        tokio::task::yield_now().await;
    }
}

/// Sends so many bytes in pieces.
pub(super) async fn send_in(piece: usize, stream: &Stream, bytes: usize) {
    let mut left = bytes;
    while left > 0 {
        let n = stream.sendable().await.unwrap().min(piece).min(left);
        stream.send(BytesMut::zeroed(n));
        left -= n;
    }
}

/// Reads what a lane sends.
pub(super) struct Reader<'a> {
    raw: &'a mut DuplexStream,
    decoder: websocket::Decoder,
    frames: frame::Decoder,
    input: BytesMut,
    message: Message,
}

impl<'a> Reader<'a> {
    pub(super) fn of(raw: &'a mut DuplexStream, side: Side) -> Reader<'a> {
        let other = if side == Side::Client { Side::Server } else { Side::Client };
        Reader {
            raw,
            decoder: websocket::Decoder::new(other),
            frames: frame::Decoder::default(),
            input: BytesMut::new(),
            message: Message::default(),
        }
    }

    /// The next message.
    pub(super) async fn next(&mut self) -> Message {
        loop {
            while let Some(event) = self.decoder.next(&mut self.input).unwrap() {
                let websocket::Event::Payload { mut bytes, end } = event else { panic!("{event:?}") };
                self.message.size += bytes.len();
                while let Some(piece) = self.frames.next(&mut bytes).unwrap() {
                    if let frame::Piece::Data(id, bytes) = piece {
                        *self.message.data.entry(id).or_default() += bytes.len();
                    }
                }
                if end {
                    return std::mem::take(&mut self.message);
                }
            }
            self.raw.read_buf(&mut self.input).await.unwrap();
        }
    }

    /// Messages until so many bytes of data have come.
    pub(super) async fn messages(&mut self, expected: usize) -> Vec<Message> {
        let (mut messages, mut data) = (Vec::new(), 0);
        while data < expected {
            let message = self.next().await;
            data += message.data.values().sum::<usize>();
            messages.push(message);
        }
        messages
    }
}

/// What was read at once leaves at once: a rest of some bytes would be a message, a record and a packet of its own.
#[tokio::test]
async fn the_largest_send_is_one_message_of_four_records_at_most() {
    for side in [Side::Client, Side::Server] {
        let (_end, stream, mut raw) = credited(side, 1 << 20).await;
        stream.send(BytesMut::zeroed(LARGEST_SEND));
        stream.finish();
        let messages = Reader::of(&mut raw, side).messages(LARGEST_SEND).await;
        let largest: Vec<_> = messages.iter().filter(|message| message.size > 1000).collect();
        assert_eq!(largest.len(), 1, "{messages:?}");
        // With the websocket's header.
        assert!(largest[0].size + 14 <= 4 * 16 * 1024, "{messages:?}");
    }
}

/// A relay sends what it gets, records of another connection; the messages are as full as those of a socket.
#[tokio::test(start_paused = true)]
async fn what_is_sent_in_pieces_fills_whole_messages() {
    const MESSAGES: usize = 6;
    for piece in [16_000, 16_375, 40_000, 3000] {
        let side = Side::Server;
        let (_end, stream, mut raw) = credited(side, 1 << 20).await;
        let send = send_in(piece, &stream, MESSAGES * LARGEST_SEND);
        let mut reader = Reader::of(&mut raw, side);
        let ((), messages) = tokio::join!(send, reader.messages(MESSAGES * LARGEST_SEND));
        // One goes ahead of all data; and where one has more than data, the rest may be another.
        assert!(messages.len() <= MESSAGES + 2, "{piece}: {messages:?}");
    }
}

/// What comes is read a record at a time, as from TLS.
struct Records(DuplexStream);

impl AsyncRead for Records {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut record = vec![0; into.remaining().min(16 * 1024)];
        let mut part = ReadBuf::new(&mut record);
        ready!(Pin::new(&mut self.0).poll_read(cx, &mut part))?;
        into.put_slice(part.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Records {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl Source for Records {}

/// Bytes that can't move on as fast as they are read wait in the socket, for as long as nobody had a turn to take them.
#[tokio::test]
async fn who_takes_bytes_has_its_turn_before_all_is_read() {
    let (io, mut raw) = duplex(1 << 20);
    let upgraded = Upgraded::new(Records(io), Side::Server, BytesMut::new());
    let (_lane, mut incoming, driver) = Lane::new(upgraded, hello(1), Settings::default());
    tokio::spawn(driver);
    let mut open = BytesMut::new();
    frame::put_message(&mut open, 1, Type::Open, |out| open_request().write(out));
    raw.write_all(&written(Side::Server, &open)).await.unwrap();
    let stream = incoming.recv().await.unwrap().stream;
    stream.accept(ok());
    let pieces = USUAL as usize / LARGEST_SEND;
    for _ in 0..pieces {
        let data = frame_bytes(1, Type::Data, &[7; LARGEST_SEND]);
        raw.write_all(&written(Side::Server, &data)).await.unwrap();
    }
    let taken = tokio::spawn(async move {
        let (mut chunks, mut turns) = (VecDeque::new(), Vec::new());
        while turns.iter().sum::<usize>() < pieces * LARGEST_SEND {
            assert!(stream.receive(&mut chunks).await.unwrap());
            let turn = chunks.drain(..).map(|chunk| chunk.len()).sum();
            stream.consumed(turn);
            turns.push(turn);
        }
        turns
    });
    let turns = taken.await.unwrap();
    assert!(turns.iter().all(|turn| *turn <= PLENTY + 16 * 1024), "{turns:?}");
}
