//! Connections through the tunnel, to their end.

use std::time::Duration;

use dworker::config::Key;
use dworker::inspect::ledger::{Entry, Ledger};
use dworker::refusal::Code;
use dworker::route::Router;
use dworker::target::Target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::world::{Appliance, ask, counting_target, data, group, target, through};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_crosses_tls_and_websocket_with_half_close() {
    let key = Key::generate().unwrap();
    let appliance = Appliance::start(vec![group("site", &key, &["127.0.0.1"], false)]).await;
    let _worker = appliance.uplink(&key, &["127.0.0.0/8"]);
    appliance.until_up(0).await;
    let address = counting_target().await;
    for size in [0, 1, 100_000, 5_000_000] {
        let (socket, carried) = appliance.connect(target(address)).await;
        ask(socket, size).await;
        carried.await.unwrap().unwrap();
    }
    let lanes = appliance.registry.groups()[0].sessions()[0].lanes();
    assert!(lanes.iter().all(|lane| lane.streams() == 0), "streams are left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_connections_at_once() {
    let key = Key::generate().unwrap();
    let appliance = Appliance::start(vec![group("site", &key, &["127.0.0.1"], false)]).await;
    let _worker = appliance.uplink(&key, &["127.0.0.0/8"]);
    appliance.until_up(0).await;
    let address = counting_target().await;
    let mut asking = tokio::task::JoinSet::new();
    for n in 0..200 {
        let (socket, carried) = appliance.connect(target(address)).await;
        asking.spawn(async move {
            ask(socket, 10_000 + n).await;
            carried.await.unwrap().unwrap();
        });
    }
    while let Some(done) = asking.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn what_can_not_be_dialled_is_a_reset_with_its_meaning() {
    let key = Key::generate().unwrap();
    let groups = vec![group("site", &key, &["127.0.0.1", "192.0.2.0/24", "*.invalid"], false)];
    let appliance = Appliance::start(groups).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();

    let (_, carried) = appliance.connect(target(closed)).await;
    assert_eq!(carried.await.unwrap().unwrap_err().code, Code::NoWorker);
    let (_, carried) = appliance.connect(target("198.51.100.1:1".parse().unwrap())).await;
    assert_eq!(carried.await.unwrap().unwrap_err().code, Code::NoRoute);

    let _worker = appliance.uplink(&key, &["127.0.0.0/8", "*.invalid"]);
    appliance.until_up(0).await;
    let unknown = Target { host: "nobody.invalid".parse().unwrap(), port: 443 };
    for (target, codes) in [
        (target(closed), [Code::Refused; 2]),
        (target("192.0.2.1:443".parse().unwrap()), [Code::Denied; 2]),
        // Without a network a resolver can't know that there is no such name; then it says that it failed.
        (unknown, [Code::NameNotFound, Code::ResolveFailed]),
    ] {
        let (mut socket, carried) = appliance.connect(target.clone()).await;
        let refusal = carried.await.unwrap().unwrap_err();
        assert!(codes.contains(&refusal.code), "{target}: {refusal}");
        let error = socket.read(&mut [0]).await.expect_err("a clean end instead of a reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_is_noticed_where_nothing_can_be_sent() {
    let key = Key::generate().unwrap();
    let appliance = Appliance::start(vec![group("site", &key, &["127.0.0.1"], false)]).await;
    let _worker = appliance.uplink(&key, &["127.0.0.0/8"]);
    appliance.until_up(0).await;
    // A target that reads nothing.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut socket, carried) = appliance.connect(target(listener.local_addr().unwrap())).await;
    let (target, _) = listener.accept().await.unwrap();
    let chunk = data(100_000);
    // All buffers and the stream's credit are used up once nothing has moved for a while.
    while tokio::time::timeout(Duration::from_millis(300), socket.write_all(&chunk)).await.is_ok() {}
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    drop(socket);
    let cut = tokio::time::timeout(Duration::from_secs(5), carried).await.expect("the reset went unnoticed");
    assert_eq!(cut.unwrap().unwrap_err().code, Code::Reset);
    let ended = target.ready(tokio::io::Interest::ERROR);
    tokio::time::timeout(Duration::from_secs(5), ended).await.expect("the target heard nothing").unwrap();
    let error = target.take_error().unwrap().expect("an error");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_closed_by_hand_is_reset_at_both_ends_wherever_that_was() {
    let keys: [Key; 2] = std::array::from_fn(|_| Key::generate().unwrap());
    let groups =
        vec![group("a", &keys[0], &["127.0.0.1"], false), group("b", &keys[1], &["*.b.example"], true)];
    let appliance = Appliance::start(groups).await;
    let (opener, egress) = (Ledger::default(), Ledger::default());
    let _a = appliance.uplink_noting(&keys[0], &["127.0.0.0/8"], &egress);
    let (b, _drain_b) = appliance.uplink(&keys[1], &["*.b.example"]);
    appliance.until_up(0).await;
    let mut changes = b.changes();
    while !b.session().is_up() {
        changes.changed().await.unwrap();
    }
    let ledgers = [&opener, &appliance.ledger, &egress];
    for by in 0..ledgers.len() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut socket, carried) = through(b.clone(), &opener, target(listener.local_addr().unwrap())).await;
        let (mut accepted, _) = listener.accept().await.unwrap();
        socket.write_all(b"held open").await.unwrap();
        accepted.read_exact(&mut [0; 9]).await.unwrap();
        let newest = ledgers[by].report(None).remove(0);
        assert!(ledgers[by].close(newest.id, "admin from 192.0.2.7"));
        let soon = Duration::from_secs(10);
        for end in [&mut socket, &mut accepted] {
            let read = tokio::time::timeout(soon, end.read(&mut [0])).await.expect("the end is not told");
            assert_eq!(read.expect_err("a clean end").kind(), std::io::ErrorKind::ConnectionReset);
        }
        assert_eq!(carried.await.unwrap().unwrap_err().code, Code::Closed);
        for ledger in ledgers {
            while ledger.open_count() > 0 {
                tokio::task::yield_now().await;
            }
            let flow = ledger.report(None).remove(0);
            assert_eq!(flow.state, "closed-by-admin");
            assert_eq!(flow.reason.as_deref(), Some("closed by admin from 192.0.2.7"));
        }
        assert!(!ledgers[by].close(newest.id, "admin"), "it has ended");
    }
    let relayed = appliance.ledger.report(None).remove(0);
    assert_eq!((relayed.from.as_deref(), relayed.entry), (Some("b"), Entry::Relayed));
}
