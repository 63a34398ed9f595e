//! Carriers that are lost before and after the dial, over lanes in memory.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::fake::{Lanes, SOON, Worker, accept, read_all, read_some};
use super::*;
use crate::inspect::ledger::{Entry, FlowReport, Ledger, Origin};
use crate::splice::reset_on_close;
use crate::target::Target;
use crate::tunnel::credit;
use crate::tunnel::lane::Incoming;

/// A captured connection: its application's socket, and how it ends.
struct Connection {
    application: TcpStream,
    ledger: Ledger,
    carried: JoinHandle<Result<(), Refusal>>,
}

impl Connection {
    async fn new(router: &Arc<Lanes>, deadline: Duration) -> Connection {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let application = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut socket, _) = listener.accept().await.unwrap();
        let (ledger, router) = (Ledger::default(), router.clone());
        let target = Target { host: "vcenter.corp.example".parse().unwrap(), port: 443 };
        let flow = ledger.open(Entry::Captured, 1, target, Origin::default());
        let carried = tokio::spawn(async move {
            reset_on_close(&socket);
            let outcome = Carry { router: &*router, flow: &flow, deadline }.socket(&mut socket).await;
            flow.end(outcome.clone());
            outcome
        });
        Connection { application, ledger, carried }
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.application.write_all(bytes).await.unwrap();
    }

    fn report(&self) -> FlowReport {
        self.ledger.report(None).remove(0)
    }

    /// The connection works both ways and ends in order; what the target had heard before is `heard`.
    async fn works(mut self, stream: Stream, heard: &[u8]) -> FlowReport {
        accept(&stream);
        self.say(b" and more").await;
        self.application.shutdown().await.unwrap();
        assert_eq!(read_all(&stream).await, [heard, b" and more"].concat());
        stream.send(BytesMut::from(&b"the answer"[..]));
        stream.finish();
        let mut answer = String::new();
        timeout(SOON, self.application.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer, "the answer");
        timeout(SOON, &mut self.carried).await.unwrap().unwrap().unwrap();
        self.report()
    }

    /// The connection is cut, and its application sees a reset.
    async fn cut(mut self) -> (Refusal, FlowReport) {
        let refusal = timeout(SOON, &mut self.carried).await.expect("it goes on").unwrap().unwrap_err();
        let read = timeout(SOON, self.application.read(&mut [0])).await.unwrap();
        assert_eq!(read.expect_err("a clean end").kind(), ErrorKind::ConnectionReset);
        let report = self.report();
        (refusal, report)
    }
}

/// A small one, with a name.
fn a_hello() -> Vec<u8> {
    let hello = hello::tests::record(&hello::tests::body(&[(0, b"vcenter.corp.example"), (43, &[2, 3, 4])]));
    assert!(hello::is_plain_hello(&hello));
    hello
}

/// Two workers of one group, and a connection that the first one was asked for.
async fn asked_of_the_first(says: &[u8]) -> (Connection, Worker, Stream, Worker) {
    let router = Lanes::new();
    let mut first = router.connect("first", credit::INITIAL);
    let second = router.connect("second", credit::INITIAL);
    let mut connection = Connection::new(&router, SOON).await;
    let stream = first.asked().await;
    connection.say(says).await;
    assert_eq!(read_some(&stream, says.len()).await, says, "it does not go ahead of the dial");
    assert_eq!(connection.report().carrier.as_deref(), Some("site/first"));
    (connection, first, stream, second)
}

#[tokio::test]
async fn a_carrier_that_is_lost_before_any_data_is_replaced() {
    let (connection, first, _stream, mut second) = asked_of_the_first(b"").await;
    first.die();
    let stream = second.asked().await;
    let report = connection.works(stream, b"").await;
    assert_eq!((report.state.as_str(), report.retries), ("closed", 1));
    assert_eq!(report.carrier.as_deref(), Some("site/second"));
    assert_eq!((report.bytes_up, report.bytes_down), (9, 10));
}

#[tokio::test]
async fn a_client_hello_is_said_again_to_the_next_carrier() {
    let hello = a_hello();
    let (connection, first, _stream, mut second) = asked_of_the_first(&hello).await;
    first.die();
    let stream = second.asked().await;
    let report = connection.works(stream, &hello).await;
    assert_eq!((report.state.as_str(), report.retries), ("closed", 1));
    assert_eq!(report.bytes_up, hello.len() as u64 + 9, "counted twice");
}

/// The next carrier may be so fast that its answer is there before anything was said to it.
#[tokio::test]
async fn a_hello_is_said_again_to_a_carrier_that_has_answered_already() {
    let router = Lanes::new();
    let mut first = router.connect("first", credit::INITIAL);
    let mut connection = Connection::new(&router, SOON).await;
    let stream = first.asked().await;
    let hello = a_hello();
    connection.say(&hello).await;
    assert_eq!(read_some(&stream, hello.len()).await, hello);

    let others = Lanes::new();
    let mut second = others.connect("second", credit::INITIAL);
    let target = Target { host: "vcenter.corp.example".parse().unwrap(), port: 443 };
    let prepared = others.open(&Request { target, deadline: SOON, trace: 1 }).unwrap().stream;
    let far = second.asked().await;
    accept(&far);
    timeout(SOON, prepared.opened()).await.unwrap().unwrap();
    router.prepare(prepared);
    first.die();
    let retried = async {
        while connection.report().retries == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, retried).await.expect("it is not tried again");
    connection.say(b" and more").await;
    connection.application.shutdown().await.unwrap();
    let heard = timeout(SOON, read_all(&far)).await.unwrap();
    assert_eq!(heard, [&hello[..], b" and more"].concat());
}

#[tokio::test]
async fn a_hello_that_is_split_by_the_loss_arrives_whole() {
    let hello = a_hello();
    let (mut connection, first, _stream, mut second) = asked_of_the_first(&hello[..20]).await;
    first.die();
    let stream = second.asked().await;
    connection.say(&hello[20..]).await;
    connection.works(stream, &hello).await;
}

#[tokio::test]
async fn an_end_before_the_answer_is_said_again_too() {
    let hello = a_hello();
    let (mut connection, first, stream, mut second) = asked_of_the_first(&hello).await;
    connection.application.shutdown().await.unwrap();
    assert!(read_all(&stream).await.is_empty());
    first.die();
    let stream = second.asked().await;
    assert_eq!(read_all(&stream).await, hello);
    accept(&stream);
    stream.send(BytesMut::from(&b"heard"[..]));
    stream.finish();
    let mut answer = String::new();
    timeout(SOON, connection.application.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, "heard");
}

#[tokio::test]
async fn what_may_have_reached_the_target_is_never_sent_twice() {
    let behind = [a_hello(), b"early".to_vec()].concat();
    let early = hello::tests::record(&hello::tests::body(&[(42, b"")]));
    for says in [&b"GET / HTTP/1.1\r\n"[..], b"\x16\r", &behind, &early] {
        let (connection, first, _stream, mut second) = asked_of_the_first(says).await;
        first.die();
        let (refusal, report) = connection.cut().await;
        assert_eq!((refusal.code, report.retries), (Code::TunnelLost, 0), "{says:02x?}");
        assert!(second.incoming.try_recv().is_err(), "{says:02x?}");
    }
}

#[tokio::test]
async fn more_than_is_kept_goes_on_and_is_never_sent_twice() {
    // As long as a hello may say that it is, and longer than what is kept.
    let says = [a_hello(), vec![7; 20_000]].concat();
    let (connection, first, _stream, mut second) = asked_of_the_first(&says).await;
    first.die();
    assert_eq!(connection.cut().await.0.code, Code::TunnelLost);
    assert!(second.incoming.try_recv().is_err());
}

#[tokio::test]
async fn once_the_target_is_dialled_a_loss_is_a_reset() {
    let (mut connection, first, stream, mut second) = asked_of_the_first(b"").await;
    accept(&stream);
    stream.send(BytesMut::from(&b"220 ready"[..]));
    let mut greeting = [0; 9];
    timeout(SOON, connection.application.read_exact(&mut greeting)).await.unwrap().unwrap();
    assert_eq!(&greeting, b"220 ready");
    first.die();
    let (refusal, report) = connection.cut().await;
    assert_eq!((refusal.code, report.retries), (Code::TunnelLost, 0));
    assert!(second.incoming.try_recv().is_err());
}

#[tokio::test]
async fn a_loss_that_a_relay_tells_of_and_a_dial_that_was_cut_are_losses_too() {
    let (connection, mut first, stream, _second) = asked_of_the_first(b"").await;
    stream.refuse(Refusal::new(Code::TunnelLost, "the tunnel was lost: cut"));
    drop(first.asked().await);
    let stream = first.asked().await;
    assert_eq!(connection.works(stream, b"").await.retries, 2);
}

#[tokio::test]
async fn a_connection_closed_by_hand_before_its_answer_is_not_tried_again() {
    let (connection, _first, stream, mut second) = asked_of_the_first(b"").await;
    assert!(connection.ledger.close(1, "admin"));
    assert_eq!(timeout(SOON, stream.failed()).await.expect("the worker is not told").code, Code::Closed);
    let (refusal, report) = connection.cut().await;
    assert_eq!((refusal.code, report.state.as_str()), (Code::Closed, "closed-by-admin"));
    assert!(second.incoming.try_recv().is_err());
}

#[tokio::test]
async fn a_connection_closed_by_hand_while_it_waits_for_a_worker_is_not_made() {
    let router = Lanes::new();
    let connection = Connection::new(&router, SOON).await;
    assert!(connection.ledger.close(1, "admin"));
    let mut worker = router.connect("worker", credit::INITIAL);
    assert_eq!(connection.cut().await.0.code, Code::Closed);
    // The worker hears of nothing, or of the end as well.
    if let Ok(incoming) = worker.incoming.try_recv() {
        assert_eq!(timeout(SOON, incoming.stream.failed()).await.unwrap().code, Code::Closed);
    }
}

#[tokio::test]
async fn what_the_target_said_is_never_asked_again() {
    for code in [Code::Refused, Code::Timeout, Code::Denied, Code::NameNotFound, Code::NoWorker, Code::Limit]
    {
        let (connection, _first, stream, mut second) = asked_of_the_first(b"").await;
        stream.refuse(Refusal::new(code, "so it is"));
        assert_eq!(connection.cut().await.0.code, code);
        assert!(second.incoming.try_recv().is_err());
    }
}

#[tokio::test]
async fn a_lost_group_is_waited_for() {
    let router = Lanes::new();
    let mut first = router.connect("first", credit::INITIAL);
    let connection = Connection::new(&router, SOON).await;
    let _stream = first.asked().await;
    first.die();
    drop(first);
    let mut changes = router.changes();
    let mut back = router.connect("back", credit::INITIAL);
    changes.changed().await.unwrap();
    let stream = back.asked().await;
    assert_eq!(connection.works(stream, b"").await.carrier.as_deref(), Some("site/back"));
}

#[tokio::test(start_paused = true)]
async fn carriers_that_fail_at_once_do_not_spin_and_end_with_the_deadline() {
    let router = Lanes::new();
    let mut worker = router.connect("worker", credit::INITIAL);
    let refusing = tokio::spawn(async move {
        while let Some(Incoming { stream, .. }) = worker.incoming.recv().await {
            stream.refuse(Refusal::new(Code::TunnelLost, "the tunnel was lost: cut"));
        }
    });
    let ledger = Ledger::default();
    let target = Target { host: "vcenter.corp.example".parse().unwrap(), port: 443 };
    let flow = ledger.open(Entry::Captured, 1, target, Origin::default());
    let started = Instant::now();
    let refusal = Carry { router: &*router, flow: &flow, deadline: SOON }.dial().await.unwrap_err();
    assert_eq!(refusal.code, Code::TunnelLost);
    assert!(started.elapsed() <= SOON, "{:?}", started.elapsed());
    let opened = router.opened();
    assert!((5..20).contains(&opened), "{opened} times");
    refusing.abort();
}

#[tokio::test(start_paused = true)]
async fn a_carrier_that_never_answers_is_a_timeout_at_both_ends() {
    let router = Lanes::new();
    let mut worker = router.connect("worker", credit::INITIAL);
    let ledger = Ledger::default();
    let target = Target { host: "vcenter.corp.example".parse().unwrap(), port: 443 };
    let flow = ledger.open(Entry::Captured, 1, target, Origin::default());
    let started = Instant::now();
    let (answer, stream) =
        tokio::join!(Carry { router: &*router, flow: &flow, deadline: SOON }.dial(), worker.incoming.recv());
    assert_eq!(answer.unwrap_err().code, Code::Timeout);
    assert_eq!(started.elapsed().as_secs(), (SOON + LATE).as_secs());
    assert_eq!(stream.unwrap().stream.failed().await.code, Code::Timeout);
}

#[tokio::test]
async fn a_peer_that_takes_little_ahead_gets_no_more_than_that() {
    let router = Lanes::new();
    let mut first = router.connect("first", credit::INITIAL);
    let mut second = router.connect("second", 16);
    let mut third = router.connect("third", credit::INITIAL);
    let mut connection = Connection::new(&router, SOON).await;
    let hello = a_hello();
    let stream = first.asked().await;
    connection.say(&hello).await;
    assert_eq!(read_some(&stream, hello.len()).await, hello);
    first.die();
    assert_eq!(read_some(&second.asked().await, 16).await, hello[..16], "more than the peer takes");
    second.die();
    let stream = third.asked().await;
    assert_eq!(connection.works(stream, &hello).await.retries, 2);
}

#[tokio::test]
async fn an_application_that_gives_up_before_the_answer_is_noticed() {
    for ended in [false, true] {
        let (mut connection, _first, stream, _second) = asked_of_the_first(b"").await;
        if ended {
            connection.application.shutdown().await.unwrap();
            assert!(read_all(&stream).await.is_empty());
        }
        reset_on_close(&connection.application);
        drop(connection.application);
        assert_eq!(timeout(SOON, stream.failed()).await.expect("never told").code, Code::Reset);
        assert_eq!(connection.carried.await.unwrap().unwrap_err().code, Code::Reset);
    }
}

/// Thousands of connections are idle at once: what it took to open them is not kept.
#[tokio::test]
async fn what_carries_takes_little_more_room_than_what_copies() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let target = Target { host: "vcenter.corp.example".parse().unwrap(), port: 443 };
    let flow = Ledger::default().open(Entry::Captured, 1, target, Origin::default());
    let router = Lanes::new();
    let size = size_of_val(&Carry { router: &*router, flow: &flow, deadline: SOON }.socket(&mut socket));
    assert!(size <= 768, "{size} bytes");
}
