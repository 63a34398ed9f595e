//! Queries by TCP.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use crate::support::*;

async fn next(stream: &mut TcpStream) -> Option<Vec<u8>> {
    timeout(PATIENCE, read_message(stream)).await.expect("a message or the end").unwrap()
}

async fn ask_by(stream: &mut TcpStream, query: &[u8]) -> Vec<u8> {
    write_message(stream, query).await.unwrap();
    next(stream).await.expect("a reply")
}

async fn assert_reset(stream: &mut TcpStream) {
    let read = timeout(PATIENCE, stream.read(&mut [0; 1])).await.expect("a reset");
    assert_eq!(read.expect_err("an end in order").kind(), ErrorKind::ConnectionReset);
}

fn foreign(id: u16) -> Vec<u8> {
    query(id, "www.other.example.", RecordType::A, None)
}

fn ours(id: u16) -> Vec<u8> {
    query(id, "vc.corp.example.", RecordType::A, None)
}

#[tokio::test]
async fn only_a_captured_connection_is_served_and_only_once() {
    let upstream = Upstream::start(2, 0, |query| vec![reply(query, &["192.0.2.1"])]).await;
    let house = House::new(upstream.addr.port());
    let port = house.kernel.port_of(upstream.addr.ip());
    for loopback in ["127.0.0.1", "::1"] {
        assert_reset(&mut house.tcp_from(loopback, port, false).await).await;
        let mut captured = house.tcp_from(loopback, port, true).await;
        assert_eq!(addresses(&ask_by(&mut captured, &ours(1)).await), ["240.64.0.1"]);
    }
    assert_reset(&mut house.tcp_from("127.0.0.1", house.kernel.spare(), true).await).await;
    assert_eq!(house.counts().dropped, 3);
}

#[tokio::test]
async fn queries_are_pipelined_over_one_connection_to_the_resolver() {
    let upstream = Upstream::start(2, 0, |query| vec![reply(query, &["192.0.2.1"])]).await;
    let house = House::new(upstream.addr.port());
    let mut app = house.tcp(upstream.addr.ip()).await;
    let queries: Vec<Vec<u8>> = (0..40).map(|id| if id % 2 == 0 { foreign(id) } else { ours(id) }).collect();
    // All in one piece, and the last one in two.
    let mut bytes = Vec::new();
    for query in &queries {
        bytes.extend((query.len() as u16).to_be_bytes());
        bytes.extend(query);
    }
    let (first, last) = bytes.split_at(bytes.len() - 9);
    app.write_all(first).await.unwrap();
    let mut replies = HashMap::new();
    for _ in 0..39 {
        let reply = next(&mut app).await.unwrap();
        replies.insert(decode(&reply).id, addresses(&reply));
    }
    app.write_all(last).await.unwrap();
    let reply = next(&mut app).await.unwrap();
    replies.insert(decode(&reply).id, addresses(&reply));
    for id in 0..40 {
        let expected = if id % 2 == 0 { "192.0.2.1" } else { "240.64.0.1" };
        assert_eq!(replies[&id], [expected], "query {id}");
    }
    assert_eq!(upstream.connections.load(Ordering::Relaxed), 1);
    assert_eq!(upstream.asked(), queries.iter().step_by(2).cloned().collect::<Vec<_>>());
}

#[tokio::test]
async fn the_resolver_is_connected_to_only_when_needed() {
    let upstream = Upstream::start(2, 0, |query| vec![reply(query, &["192.0.2.1"])]).await;
    let house = House::new(upstream.addr.port());
    let mut app = house.tcp(upstream.addr.ip()).await;
    assert_eq!(addresses(&ask_by(&mut app, &ours(1)).await), ["240.64.0.1"]);
    app.shutdown().await.unwrap();
    assert_eq!(next(&mut app).await, None);
    assert_eq!(upstream.connections.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn the_largest_messages_pass_byte_by_byte() {
    let upstream = Upstream::start(2, 0, |query| {
        let mut reply = reply(query, &["192.0.2.1"]);
        reply.resize(65535, 7);
        vec![reply]
    })
    .await;
    let house = House::new(upstream.addr.port());
    let mut app = house.tcp(upstream.addr.ip()).await;
    let mut asked = foreign(1);
    asked.resize(65535, 9);
    let mut expected = reply(&foreign(1), &["192.0.2.1"]);
    expected.resize(65535, 7);
    assert_eq!(ask_by(&mut app, &asked).await, expected);
    assert_eq!(upstream.asked(), [asked]);
}

/// A zone transfer: one query, many messages; and each is looked through.
#[tokio::test]
async fn a_query_may_have_many_replies() {
    let upstream = Upstream::start(2, 0, |query| {
        (1..=5)
            .map(|i| reply(query, &["192.0.2.1", if i == 3 { "240.64.0.9" } else { "192.0.2.2" }]))
            .collect()
    })
    .await;
    let house = House::new(upstream.addr.port());
    let mut app = house.tcp(upstream.addr.ip()).await;
    write_message(&mut app, &query(1, "other.example.", RecordType::AXFR, None)).await.unwrap();
    for i in 1..=5 {
        let reply = next(&mut app).await.unwrap();
        assert_eq!(addresses(&reply).len(), if i == 3 { 1 } else { 2 }, "message {i}");
    }
    assert_eq!(house.counts().stripped, 1);
}

#[tokio::test]
async fn a_half_closed_connection_still_gets_its_answers() {
    let upstream = Upstream::start(2, 0, |query| vec![reply(query, &["192.0.2.1"])]).await;
    let house = House::new(upstream.addr.port());
    let mut app = house.tcp(upstream.addr.ip()).await;
    for query in [foreign(1), ours(2), foreign(3)] {
        write_message(&mut app, &query).await.unwrap();
    }
    app.shutdown().await.unwrap();
    let mut ids = Vec::new();
    while let Some(reply) = next(&mut app).await {
        ids.push(decode(&reply).id);
    }
    ids.sort();
    assert_eq!(ids, [1, 2, 3]);
}

#[tokio::test]
async fn a_resolver_that_refuses_is_servfail_and_the_connection_goes_on() {
    let (_taken, nobody) = nobody().await;
    let house = House::new(nobody.port());
    let mut app = house.tcp(nobody.ip()).await;
    for id in 1..4 {
        let refused = decode(&ask_by(&mut app, &foreign(id)).await);
        assert_eq!((refused.response_code, refused.id), (ResponseCode::ServFail, id));
        assert_eq!(addresses(&ask_by(&mut app, &ours(id)).await), ["240.64.0.1"]);
    }
    assert_eq!(house.counts().failed, 3);
}

/// An application that has asked this resolver, the resolver's end, and what has arrived there.
async fn asking(house: &House, resolver: &TcpListener) -> (TcpStream, TcpStream, Vec<u8>) {
    let mut app = house.tcp(resolver.local_addr().unwrap().ip()).await;
    write_message(&mut app, &foreign(1)).await.unwrap();
    let (mut upstream, _) = resolver.accept().await.unwrap();
    let asked = read_message(&mut upstream).await.unwrap().unwrap();
    (app, upstream, asked)
}

#[tokio::test]
async fn the_resolvers_end_is_the_applications_end() {
    let (udp, listener) = bind_both(2, 0).await;
    let addr = udp.local_addr().unwrap();
    let house = House::new(addr.port());

    let (mut app, mut upstream, asked) = asking(&house, &listener).await;
    write_message(&mut upstream, &reply(&asked, &["192.0.2.1"])).await.unwrap();
    drop(upstream);
    assert_eq!(addresses(&next(&mut app).await.unwrap()), ["192.0.2.1"]);
    assert_eq!(next(&mut app).await, None, "closed in order");

    let (mut app, upstream, _) = asking(&house, &listener).await;
    upstream.set_zero_linger().unwrap();
    drop(upstream);
    assert_reset(&mut app).await;

    // In the middle of a message: no application may take this for an end.
    let (mut app, mut upstream, _) = asking(&house, &listener).await;
    upstream.write_all(&[0, 50, 1]).await.unwrap();
    drop(upstream);
    assert_reset(&mut app).await;
}

#[tokio::test]
async fn an_application_that_vanishes_takes_the_resolvers_connection_with_it() {
    let (udp, listener) = bind_both(2, 0).await;
    let addr = udp.local_addr().unwrap();
    let house = House::new(addr.port());
    let (app, mut upstream, _) = asking(&house, &listener).await;
    app.set_zero_linger().unwrap();
    drop(app);
    let read = timeout(PATIENCE, upstream.read(&mut [0; 1])).await.expect("the end");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let upstream = Upstream::start(2, 0, |_| vec![]).await;
    let house = House::new(upstream.addr.port());
    let mut app = house.tcp(upstream.addr.ip()).await;
    assert_eq!(addresses(&ask_by(&mut app, &ours(1)).await), ["240.64.0.1"]);
    // The resolver says nothing, and a message that stays half is none.
    write_message(&mut app, &foreign(2)).await.unwrap();
    // It has arrived: a connection that is still being made would fail when the clock jumps.
    until(|| upstream.asked().len() == 1, || format!("{:?}", house.counts())).await;
    app.write_all(&[0, 50, 1]).await.unwrap();
    tokio::time::pause();
    let start = Instant::now();
    assert_eq!(read_message(&mut app).await.unwrap(), None);
    let waited = start.elapsed();
    assert!((Duration::from_secs(29)..Duration::from_secs(31)).contains(&waited), "{waited:?}");
}

#[tokio::test]
async fn who_asks_for_a_new_name_while_another_process_takes_over_asks_again() {
    let house = House::new(9);
    let resolver = "127.0.0.2".parse().unwrap();
    let (app, mut stream) = (house.udp(resolver).await, house.tcp(resolver).await);
    let question = |id| query(id, "a.lab.example.", RecordType::A, None);
    let _handed_on = house.names.freeze().unwrap();
    app.send(&question(1)).await.unwrap();
    write_message(&mut stream, &question(2)).await.unwrap();
    assert_reset(&mut stream).await;
    house.until(|counts| counts.dropped == 2).await;
    assert_eq!(house.counts().failed, 0);
    house.names.thaw();
    // The first reply that arrives is this one's.
    let reply = ask(&app, &question(3)).await;
    assert_eq!((&reply[..2], addresses(&reply)), (&[0, 3][..], vec!["240.64.0.1".to_owned()]));
}

#[tokio::test]
async fn connections_are_bounded_and_free_again_when_closed() {
    many_descriptors();
    let upstream = Upstream::start(2, 0, |_| vec![]).await;
    let house = House::new(upstream.addr.port());
    let mut apps = Vec::new();
    for _ in 0..256 {
        let mut app = house.tcp(upstream.addr.ip()).await;
        assert_eq!(addresses(&ask_by(&mut app, &ours(1)).await), ["240.64.0.1"]);
        apps.push(app);
    }
    assert_reset(&mut house.tcp(upstream.addr.ip()).await).await;
    apps.pop();
    loop {
        let mut app = house.tcp(upstream.addr.ip()).await;
        let _ = write_message(&mut app, &ours(1)).await;
        // Until the server noticed that the other one is gone.
        if let Ok(Some(reply)) = read_message(&mut app).await {
            break assert_eq!(addresses(&reply), ["240.64.0.1"]);
        }
    }
}

/// A resolver that reads nothing: the application is stopped by its own socket, not served from our memory.
#[tokio::test]
async fn what_waits_for_a_resolver_is_bounded() {
    let (udp, listener) = bind_both(2, 0).await;
    let addr = udp.local_addr().unwrap();
    let house = House::new(addr.port());
    let mut app = house.tcp(addr.ip()).await;
    let mut large = foreign(1);
    large.resize(60_000, 0);
    write_message(&mut app, &large).await.unwrap();
    let (_upstream, _) = listener.accept().await.unwrap();
    tokio::time::pause();
    let mut written = 0;
    // The clock jumps only when nothing can be done any more: everything is full then.
    while timeout(Duration::from_secs(1), write_message(&mut app, &large)).await.is_ok() {
        written += 1;
        assert!(written < 2000, "120 MB were taken in");
    }
    let counts = house.counts();
    assert_eq!(counts.forwarded, counts.queries, "and nothing was lost");
}
