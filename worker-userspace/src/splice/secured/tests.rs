//! What holds for a socket holds in TLS, too.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::time::Duration;

use bytes::BytesMut;
use proptest::prelude::*;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, server};

use super::super::tests::{SOON, stream, until_nothing_is_unsent};
use super::super::{Reads, reset_on_close, splice_over};
use crate::inspect::ledger::Meter;
use crate::refusal::{Code, Refusal};
use crate::tunnel::stream::Stream;
use crate::tunnel::tls::{self, End, fake::identity};
use crate::tunnel::transport::Way;

type Peer = server::TlsStream<TcpStream>;
type Spliced = JoinHandle<Result<(), Refusal>>;

/// Both ends of a connection in TLS; so much does our end's socket keep unread.
async fn secured(buffer: usize) -> (Peer, Way) {
    let (certificate, config) = identity();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    SockRef::from(&listener).set_recv_buffer_size(buffer).unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap());
    let (tcp, accepted) = tokio::join!(tcp, listener.accept());
    let trust = tls::client(vec![certificate]).unwrap();
    let host = "localhost".parse().unwrap();
    // The one with the buffer is ours, though it was accepted.
    let (peer, ours) = (tcp.unwrap(), accepted.unwrap().0);
    let accepting = TlsAcceptor::from(config).accept(peer);
    let (peer, ours) = tokio::join!(accepting, trust.secure(ours, &host, End::Proxy));
    (peer.unwrap(), Way::Tls(Box::new(ours.unwrap())))
}

/// A peer in TLS whose connection is being copied, and the far end of the stream.
async fn spliced() -> (Peer, Stream, Spliced) {
    let (peer, way) = secured(4 << 20).await;
    let (near, far) = stream().await;
    let spliced = tokio::spawn(async move { splice_over(way, &near, &Meter::default(), Reads::Down).await });
    (peer, far, spliced)
}

fn reset(peer: Peer) {
    reset_on_close(peer.get_ref().0);
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8).collect()
}

/// All that arrives at the far end, and how it ends: `Ok` is a clean end.
async fn arriving(far: &Stream) -> (Vec<u8>, Result<(), Code>) {
    let (mut arrived, mut chunks) = (Vec::new(), VecDeque::new());
    loop {
        match timeout(SOON, far.receive(&mut chunks)).await.expect("no end") {
            Ok(true) => {}
            Ok(false) => return (arrived, Ok(())),
            Err(refusal) => return (arrived, Err(refusal.code)),
        }
        for chunk in chunks.drain(..) {
            arrived.extend_from_slice(&chunk);
            far.consumed(chunk.len());
            tokio::task::yield_now().await;
        }
    }
}

async fn send(far: &Stream, mut bytes: &[u8], piece: usize) {
    while !bytes.is_empty() {
        let room = timeout(SOON, far.sendable()).await.expect("no room").unwrap();
        let n = room.min(piece).min(bytes.len());
        far.send(BytesMut::from(&bytes[..n]));
        bytes = &bytes[n..];
    }
}

async fn outcome(spliced: Spliced) -> Result<(), Code> {
    timeout(SOON, spliced).await.expect("held for ever").unwrap().map_err(|refusal| refusal.code)
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let (mut peer, far, spliced_first) = spliced().await;
    peer.write_all(b"question").await.unwrap();
    // The farewell, and nothing of TCP's.
    peer.get_mut().1.send_close_notify();
    peer.flush().await.unwrap();
    assert_eq!(arriving(&far).await, (b"question".to_vec(), Ok(())));
    send(&far, b"answer", 3).await;
    far.finish();
    let mut answer = Vec::new();
    timeout(SOON, peer.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!((answer.as_slice(), outcome(spliced_first).await), (&b"answer"[..], Ok(())));

    let (mut peer, far, spliced) = spliced().await;
    send(&far, b"question", 8).await;
    far.finish();
    let mut question = Vec::new();
    timeout(SOON, peer.read_to_end(&mut question)).await.unwrap().unwrap();
    assert_eq!(question, b"question");
    peer.write_all(b"answer").await.unwrap();
    peer.shutdown().await.unwrap();
    assert_eq!(arriving(&far).await, (b"answer".to_vec(), Ok(())));
    assert_eq!(outcome(spliced).await, Ok(()));
}

#[tokio::test]
async fn what_came_before_a_reset_arrives_before_it_however_much_it_is() {
    let (mut peer, way) = secured(4 << 20).await;
    // More than all credit.
    let answer = bytes(300_000);
    // All of it waits in the socket before the first byte is read.
    timeout(SOON, peer.write_all(&answer)).await.unwrap().unwrap();
    timeout(SOON, peer.flush()).await.unwrap().unwrap();
    until_nothing_is_unsent(peer.get_ref().0).await;
    reset(peer);
    let (near, far) = stream().await;
    let spliced = tokio::spawn(async move { splice_over(way, &near, &Meter::default(), Reads::Down).await });
    let (arrived, end) = arriving(&far).await;
    assert_eq!((arrived.len(), end), (answer.len(), Err(Code::Reset)));
    assert!(arrived == answer);
    assert_eq!(outcome(spliced).await, Err(Code::Reset));
}

#[tokio::test]
async fn a_reset_is_told_though_nobody_takes_what_came_before_it() {
    let (mut peer, far, spliced) = spliced().await;
    // More than all credit: the far end takes nothing.
    timeout(SOON, peer.write_all(&bytes(1 << 20))).await.unwrap().unwrap();
    peer.flush().await.unwrap();
    reset(peer);
    assert_eq!(timeout(SOON, far.failed()).await.expect("nobody is told").code, Code::Reset);
    assert_eq!(outcome(spliced).await, Err(Code::Reset));
}

#[tokio::test]
async fn a_reset_behind_the_farewell_is_noticed_while_the_other_side_is_quiet() {
    let (mut peer, far, spliced) = spliced().await;
    peer.shutdown().await.unwrap();
    assert_eq!(arriving(&far).await, (Vec::new(), Ok(())));
    reset(peer);
    assert_eq!(timeout(SOON, far.failed()).await.expect("nobody is told").code, Code::Reset);
    assert_eq!(outcome(spliced).await, Err(Code::Reset));
}

#[tokio::test]
async fn an_end_without_a_farewell_or_in_other_words_is_a_cut_behind_what_came() {
    for last in [&b""[..], b"\x17\x03\x03\x00\x05wrong", b"GET / HTTP/1.1\r\n\r\n"] {
        let (mut peer, far, spliced) = spliced().await;
        let answer = bytes(50_000);
        peer.write_all(&answer).await.unwrap();
        peer.flush().await.unwrap();
        let mut tcp = peer.into_inner().0;
        tcp.write_all(last).await.unwrap();
        tcp.shutdown().await.unwrap();
        let (arrived, end) = arriving(&far).await;
        assert!(arrived == answer && end.is_err(), "{last:?}: {} bytes, {end:?}", arrived.len());
        assert!(outcome(spliced).await.is_err());
        // It is a reset there, too, and no end.
        let told = timeout(SOON, tcp.read_to_end(&mut Vec::new())).await.expect("nobody is told");
        assert_eq!(told.expect_err("a clean end").kind(), ErrorKind::ConnectionReset, "{last:?}");
    }
}

#[tokio::test]
async fn what_the_far_end_sent_before_its_reset_is_written_before_it() {
    // Which of the two is seen first is up to chance.
    for _ in 0..10 {
        let (mut peer, far, spliced) = spliced().await;
        // So much as the peer has room for.
        let sent = bytes(30_000);
        send(&far, &sent, 10_000).await;
        far.reset(Refusal::new(Code::Closed, "by hand"));
        assert_eq!(outcome(spliced).await, Err(Code::Closed));
        let mut arrived = vec![0; sent.len()];
        timeout(SOON, peer.read_exact(&mut arrived)).await.unwrap().unwrap();
        assert!(arrived == sent);
        let end = timeout(SOON, peer.read(&mut [0])).await.unwrap();
        assert_eq!(end.expect_err("a clean end").kind(), ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn a_reset_is_told_while_the_peer_does_not_read() {
    let (_peer, far, spliced) = spliced().await;
    // All buffers and the credit are used up once nothing moves for a while.
    while let Ok(room) = timeout(Duration::from_millis(300), far.sendable()).await {
        far.send(BytesMut::zeroed(room.unwrap()));
    }
    far.reset(Refusal::new(Code::Reset, "gone"));
    assert_eq!(outcome(spliced).await, Err(Code::Reset));
}

/// How a direction goes: all its bytes, in pieces of this size, and whether it ends before the other one begins.
type Direction = (usize, usize);

async fn there_and_back(up: Direction, down: Direction, read: usize) {
    let (peer, far, spliced) = spliced().await;
    let (upwards, downwards) = (bytes(up.0), bytes(down.0));
    let (mut reading, mut writing) = tokio::io::split(peer);
    let written = async {
        for piece in upwards.chunks(up.1) {
            writing.write_all(piece).await.unwrap();
            writing.flush().await.unwrap();
        }
        writing.shutdown().await.unwrap();
    };
    let read = async {
        let (mut all, mut some) = (Vec::new(), vec![0; read]);
        loop {
            match reading.read(&mut some).await.unwrap() {
                0 => return all,
                n => all.extend_from_slice(&some[..n]),
            }
        }
    };
    let sent = async {
        send(&far, &downwards, down.1).await;
        far.finish();
    };
    let both = async { tokio::join!(written, read, sent, arriving(&far)) };
    let ((), came_down, (), came_up) = timeout(SOON, both).await.expect("it stands still");
    assert!(came_up == (upwards, Ok(())), "up: {} bytes, {:?}", came_up.0.len(), came_up.1);
    assert!(came_down == downwards, "down: {} bytes", came_down.len());
    assert_eq!(outcome(spliced).await, Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn not_a_byte_is_lost_or_altered(
        up in (0usize..300_000, 100usize..70_000),
        down in (0usize..300_000, 100usize..70_000),
        read in 1000usize..70_000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(there_and_back(up, down, read));
    }
}
