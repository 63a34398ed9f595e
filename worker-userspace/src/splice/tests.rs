//! Copying between lanes over in-memory pipes.

use std::cell::Cell;
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;
use crate::refusal::Code;
use crate::tunnel::lane::{Incoming, Lane, Settings, Upgraded};
use crate::tunnel::message::{Hello, Open, OpenOk};
use crate::tunnel::websocket::Side;

pub(super) const SOON: Duration = Duration::from_secs(10);

fn lane(io: tokio::io::DuplexStream, side: Side) -> (Lane, mpsc::Receiver<Incoming>) {
    let upgraded = Upgraded::new(io, side, BytesMut::new());
    let (lane, incoming, driver) = Lane::new(upgraded, Hello::sample(), Settings::default());
    tokio::spawn(driver);
    (lane, incoming)
}

/// Both ends of one stream: the opener's, and the other.
pub(super) async fn stream() -> (Stream, Stream) {
    let (a, b) = duplex(1 << 16);
    let ((a, _), (_b, mut incoming)) = (lane(a, Side::Client), lane(b, Side::Server));
    let target = crate::target::Target { host: "192.0.2.1".parse().unwrap(), port: 443 };
    let near = a.open(Open { target, deadline: SOON, credit: 1 << 18, trace: 1 }).unwrap();
    let far = incoming.recv().await.unwrap().stream;
    far.accept(OpenOk { address: "192.0.2.1:443".parse().unwrap(), dial: Duration::ZERO, proxied: false });
    near.opened().await.unwrap();
    (near, far)
}

/// A connection: the peer's end, and ours.
async fn sockets() -> (TcpStream, TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (peer, listener.accept().await.unwrap().0)
}

#[tokio::test]
async fn a_relay_whose_opener_is_lost_behind_its_fin_ends() {
    let ((opener, near), (far, target)) = (stream().await, stream().await);
    let relayed = tokio::spawn(async move {
        let outcome = relay(&near, &far, &Meter::default()).await;
        // As the relay's caller does.
        outcome.inspect_err(|refusal| far.reset(refusal.clone()))
    });
    opener.finish();
    let mut chunks = VecDeque::new();
    assert!(!timeout(SOON, target.receive(&mut chunks)).await.unwrap().unwrap(), "the FIN arrives");
    // Now the target may take as long as it wants; the opener does not wait for it.
    opener.reset(Refusal::new(Code::Reset, "gone"));
    let refusal = timeout(SOON, target.failed()).await.expect("the target is never told");
    assert_eq!(refusal.code, Code::Reset);
    assert_eq!(relayed.await.unwrap().unwrap_err().code, Code::Reset);
}

/// Waits until the peer's kernel has all that was written: a reset leaves behind what has not left.
pub(super) async fn until_nothing_is_unsent(socket: &TcpStream) {
    let arrived = async {
        loop {
            let mut unsent: libc::c_int = 0;
            // SAFETY: the kernel writes one int.
            let asked = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut unsent) };
            assert_eq!(asked, 0, "{}", io::Error::last_os_error());
            if unsent == 0 {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, arrived).await.expect("the peer has no room for it");
}

/// A spliced connection whose application has ended its direction, and the far end of its stream.
async fn ended_by_the_application() -> (TcpStream, Stream, JoinHandle<Result<(), Refusal>>) {
    let (mut application, mut socket) = sockets().await;
    let (near, far) = stream().await;
    let spliced = tokio::spawn(async move { splice(&mut socket, &near, &Meter::default(), Reads::Up).await });
    application.shutdown().await.unwrap();
    assert!(!timeout(SOON, far.receive(&mut VecDeque::new())).await.unwrap().unwrap(), "the FIN arrives");
    (application, far, spliced)
}

#[tokio::test]
async fn a_connection_that_is_lost_behind_its_fin_is_cut_though_nobody_reads() {
    let (_application, far, spliced) = ended_by_the_application().await;
    // The application reads nothing: all buffers and the credit are used up once nothing moves for a while.
    while let Ok(room) = timeout(Duration::from_millis(300), far.sendable()).await {
        far.send(BytesMut::zeroed(room.unwrap()));
    }
    far.reset(Refusal::new(Code::Reset, "gone"));
    let outcome = timeout(SOON, spliced).await.expect("held for as long as nobody reads").unwrap();
    assert_eq!(outcome.unwrap_err().code, Code::Reset);
}

#[tokio::test]
async fn a_reset_behind_a_fin_is_noticed_while_the_target_is_quiet() {
    let (application, far, spliced) = ended_by_the_application().await;
    reset_on_close(&application);
    drop(application);
    let refusal = timeout(SOON, far.failed()).await.expect("the target is never told");
    assert_eq!(refusal.code, Code::Reset);
    assert_eq!(spliced.await.unwrap().unwrap_err().code, Code::Reset);
}

#[tokio::test]
async fn what_came_before_a_reset_arrives_before_it_however_much_it_is() {
    let (mut target, mut socket) = sockets().await;
    let (near, far) = stream().await;
    SockRef::from(&socket).set_recv_buffer_size(4 << 20).unwrap();
    let answer: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    // All of it waits in the socket before the first byte is read.
    timeout(SOON, target.write_all(&answer)).await.unwrap().unwrap();
    until_nothing_is_unsent(&target).await;
    reset_on_close(&target);
    drop(target);
    let spliced =
        tokio::spawn(async move { splice(&mut socket, &near, &Meter::default(), Reads::Down).await });
    let (mut arrived, mut chunks) = (Vec::new(), VecDeque::new());
    let end = loop {
        match timeout(SOON, far.receive(&mut chunks)).await.expect("the reset does not arrive") {
            Ok(more) => assert!(more, "a clean end instead of a reset"),
            Err(refusal) => break refusal,
        }
        for chunk in chunks.drain(..) {
            arrived.extend_from_slice(&chunk);
            far.consumed(chunk.len());
            // A reader that takes its time.
            tokio::task::yield_now().await;
        }
    };
    assert_eq!((arrived.len(), end.code), (answer.len(), Code::Reset));
    assert!(arrived == answer);
    assert_eq!(spliced.await.unwrap().unwrap_err().code, Code::Reset);
}

/// Thousands of connections are idle at once, each in such a future.
#[tokio::test]
async fn what_copies_takes_little_room() {
    let (mut application, socket) = sockets().await;
    let ((near, _far), meter) = (stream().await, Meter::default());
    let size = size_of_val(&splice(&mut application, &near, &meter, Reads::Up));
    assert!(size <= 576, "{size} bytes");
    let size = size_of_val(&splice_over(Way::Plain(socket), &near, &meter, Reads::Down));
    assert!(size <= 640, "{size} bytes");
}

/// Sends until nothing more is taken, and says what.
async fn fill(from: &Stream) -> Vec<u8> {
    let mut sent = Vec::new();
    while let Ok(room) = timeout(Duration::from_millis(300), from.sendable()).await {
        let piece: Vec<u8> = (sent.len()..sent.len() + room.unwrap()).map(|n| (n % 251) as u8).collect();
        from.send(BytesMut::from(&piece[..]));
        sent.extend_from_slice(&piece);
    }
    sent
}

/// Reads as much as there is to be, in pieces.
async fn drain_stream(from: &Stream, whole: usize) -> Vec<u8> {
    let (mut arrived, mut chunks) = (Vec::new(), VecDeque::new());
    while arrived.len() < whole {
        assert!(timeout(SOON, from.receive(&mut chunks)).await.expect("no more comes").unwrap());
        for chunk in chunks.drain(..) {
            arrived.extend_from_slice(&chunk);
            from.consumed(chunk.len());
        }
    }
    arrived
}

/// There it is kept tight; in the hands of who copies it would keep the buffers that it was read into.
#[tokio::test]
async fn what_a_socket_does_not_take_waits_in_the_stream_and_arrives_whole() {
    let (mut application, mut socket) = sockets().await;
    let (near, far) = stream().await;
    let near = Arc::new(near);
    let copied = near.clone();
    let spliced =
        tokio::spawn(async move { splice(&mut socket, &copied, &Meter::default(), Reads::Up).await });
    let sent = fill(&far).await;
    let held = near.cutter().account().unwrap().held;
    assert!(held > 100_000, "{held} bytes are held");
    assert_eq!(near.waiting(), held, "all of it is in the stream");
    far.finish();
    let mut arrived = vec![0; sent.len()];
    timeout(SOON, application.read_exact(&mut arrived)).await.unwrap().unwrap();
    assert!(arrived == sent);
    drop(application);
    timeout(SOON, spliced).await.expect("an end").unwrap().unwrap();
}

#[tokio::test]
async fn what_a_relay_can_not_pass_on_waits_in_the_stream_and_arrives_whole() {
    let ((opener, near), (far, target)) = (stream().await, stream().await);
    let near = Arc::new(near);
    let copied = near.clone();
    let relayed = tokio::spawn(async move { relay(&copied, &far, &Meter::default()).await });
    let sent = fill(&opener).await;
    let held = near.cutter().account().unwrap().held;
    assert!(held > 100_000, "{held} bytes are held");
    assert_eq!(near.waiting(), held, "all of it is in the stream");
    assert!(drain_stream(&target, sent.len()).await == sent);
    opener.finish();
    target.finish();
    timeout(SOON, relayed).await.expect("an end").unwrap().unwrap();
}

/// A socket that takes nothing at first, and while that is said the stream is cut.
struct Late<'a> {
    tcp: &'a TcpStream,
    cut: &'a dyn Fn(),
    asked: Cell<bool>,
}

impl Wire for Late<'_> {
    fn tcp(&self) -> &TcpStream {
        (self.cut)();
        self.tcp
    }

    fn holds(&self) -> bool {
        unreachable!("nobody reads")
    }

    fn try_read(&self, _: &mut BytesMut) -> io::Result<usize> {
        unreachable!("nobody reads")
    }

    fn try_write(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.asked.replace(true) {
            false => Err(io::ErrorKind::WouldBlock.into()),
            true => Ok(from.iter().map(|piece| piece.len()).sum()),
        }
    }

    fn try_flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn try_end(&self) -> io::Result<()> {
        Ok(())
    }

    fn read_now(&self, _: &mut [u8]) -> io::Result<usize> {
        unreachable!("nobody reads")
    }

    fn write_now(&self, _: &[IoSlice<'_>]) -> io::Result<usize> {
        unreachable!("nobody has last words")
    }
}

#[tokio::test]
async fn who_cuts_a_blocked_connection_is_named_though_its_socket_has_room_again() {
    let (application, _ours) = sockets().await;
    let (near, far) = stream().await;
    far.send(BytesMut::from(&b"what is given back"[..]));
    let cutter = near.cutter();
    let cut = || cutter.reset(Refusal::new(Code::Closed, "closed by an administrator"));
    let wire = Late { tcp: &application, cut: &cut, asked: Cell::new(false) };
    let (meter, mut chunks) = (AtomicU64::new(0), VecDeque::new());
    let copied = stream_to_wire(&near, &wire, &mut chunks, &meter);
    let refusal = timeout(SOON, copied).await.unwrap().unwrap_err();
    assert_eq!(refusal.code, Code::Closed, "{refusal}");
}
