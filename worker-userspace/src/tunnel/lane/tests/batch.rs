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
struct Message {
    size: usize,
    data: BTreeMap<u32, usize>,
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
async fn credited(side: Side, credit: u64) -> (End, Stream, DuplexStream) {
    let (io, mut raw) = duplex(1 << 20);
    let end = end(io, side, Settings::default());
    let stream = end.lane.open(open_request()).unwrap();
    assert_eq!(stream.sendable().await.unwrap(), INITIAL as usize);
    give(&mut raw, side, &stream, credit).await;
    (end, stream, raw)
}

/// Gives a stream credit.
async fn give(raw: &mut DuplexStream, side: Side, stream: &Stream, credit: u64) {
    let mut frame = BytesMut::new();
    frame::put_u64(&mut frame, stream.place().1, Type::Credit, credit);
    raw.write_all(&written(side, &frame)).await.unwrap();
    while stream.sendable().await.unwrap() < LARGEST_SEND {
        tokio::task::yield_now().await;
    }
}

/// Sends so many bytes in pieces.
async fn send_in(piece: usize, stream: &Stream, bytes: usize) {
    let mut left = bytes;
    while left > 0 {
        let n = stream.sendable().await.unwrap().min(piece).min(left);
        stream.send(BytesMut::zeroed(n));
        left -= n;
    }
}

/// Reads messages of a lane until so many bytes of data have come.
async fn read(raw: &mut DuplexStream, side: Side, expected: usize) -> Vec<Message> {
    let other = if side == Side::Client { Side::Server } else { Side::Client };
    let (mut decoder, mut frames) = (websocket::Decoder::new(other), frame::Decoder::default());
    let (mut input, mut messages, mut message, mut data) =
        (BytesMut::new(), Vec::new(), Message::default(), 0);
    while data < expected {
        raw.read_buf(&mut input).await.unwrap();
        while let Some(websocket::Event::Payload { mut bytes, end }) = decoder.next(&mut input).unwrap() {
            message.size += bytes.len();
            while let Some(piece) = frames.next(&mut bytes).unwrap() {
                if let frame::Piece::Data(id, bytes) = piece {
                    data += bytes.len();
                    *message.data.entry(id).or_default() += bytes.len();
                }
            }
            if end {
                messages.push(std::mem::take(&mut message));
            }
        }
    }
    messages
}

/// What was read at once leaves at once: a rest of some bytes would be a message, a record and a packet of its own.
#[tokio::test]
async fn the_largest_send_is_one_message_of_four_records_at_most() {
    for side in [Side::Client, Side::Server] {
        let (_end, stream, mut raw) = credited(side, 1 << 20).await;
        stream.send(BytesMut::zeroed(LARGEST_SEND));
        stream.finish();
        let messages = read(&mut raw, side, LARGEST_SEND).await;
        let largest: Vec<_> = messages.iter().filter(|message| message.size > 1000).collect();
        assert_eq!(largest.len(), 1, "{messages:?}");
        // With the websocket's header.
        assert!(largest[0].size + 14 <= 4 * 16 * 1024, "{messages:?}");
    }
}

/// A relay sends what it gets, records of another connection; the messages are as full as those of a socket.
#[tokio::test]
async fn what_is_sent_in_pieces_fills_whole_messages() {
    const MESSAGES: usize = 6;
    for piece in [16_000, 16_375, 40_000, 3000] {
        let side = Side::Server;
        let (_end, stream, mut raw) = credited(side, 1 << 20).await;
        let send = send_in(piece, &stream, MESSAGES * LARGEST_SEND);
        let ((), messages) = tokio::join!(send, read(&mut raw, side, MESSAGES * LARGEST_SEND));
        // One goes ahead of all data; and where one has more than data, the rest may be another.
        assert!(messages.len() <= MESSAGES + 2, "{piece}: {messages:?}");
    }
}

/// However the end of a message falls into their turns.
#[tokio::test(start_paused = true)]
async fn streams_that_are_ready_get_as_much_as_each_other() {
    let side = Side::Server;
    for microseconds in [200, 650, 900, 2000, 6000] {
        let (end, first, mut raw) = credited(side, 64 << 20).await;
        let second = end.lane.open(open_request()).unwrap();
        give(&mut raw, side, &second, 64 << 20).await;
        // As fast as this, turns are longer.
        for _ in 0..100 {
            tokio::time::advance(Duration::from_micros(microseconds)).await;
            tokio::join!(send_in(16_000, &first, LARGEST_SEND), read(&mut raw, side, LARGEST_SEND));
        }
        const BYTES: usize = 100 * LARGEST_SEND;
        let (one, other) = (send_in(16_000, &first, BYTES), send_in(16_000, &second, BYTES));
        let messages = tokio::select! {
            // What both have to send is more.
            messages = read(&mut raw, side, BYTES) => messages,
            _ = async { tokio::join!(one, other) } => panic!("all was sent"),
        };
        let sum = |stream: &Stream| {
            let of = |message: &Message| message.data.get(&stream.place().1).copied().unwrap_or(0);
            messages.iter().map(of).sum::<usize>()
        };
        let (least, most) = (sum(&first).min(sum(&second)), sum(&first).max(sum(&second)));
        assert!(least * 10 > most * 9, "{microseconds} µs: {least} and {most}: {messages:?}");
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
