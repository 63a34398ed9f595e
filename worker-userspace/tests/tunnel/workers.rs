//! Workers that come, go and open connections themselves.

use std::time::Duration;

use dworker::config::Key;
use dworker::inspect::ledger::Ledger;
use dworker::refusal::Code;
use dworker::route::Router;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::world::{Appliance, ask, counting_target, digest, group, identity_for_localhost, target, through};

/// What the appliance tells may come with a lane's very first bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_worker_hears_what_it_may_dial() {
    let key = Key::generate().unwrap();
    let appliance = Appliance::start(vec![group("a", &key, &["vc.example"], false)]).await;
    // One lane each, so that no other one brings what one has missed; a few at a time, as places for strangers are.
    for _ in 0..8 {
        let uplinks: Vec<_> = (0..8).map(|_| appliance.uplink_of(1, &key)).collect();
        for (uplink, drain) in uplinks {
            let told = async {
                while uplink.told().policy.is_none() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let soon = Duration::from_secs(20);
            tokio::time::timeout(soon, told).await.expect("a worker was not told its policy");
            drain.finish().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_may_reach_other_groups_only_where_the_configuration_says_so() {
    let keys: [Key; 3] = std::array::from_fn(|_| Key::generate().unwrap());
    let appliance = Appliance::start(vec![
        group("a", &keys[0], &["127.0.0.1"], false),
        group("b", &keys[1], &["*.b.example"], true),
        group("c", &keys[2], &["*.c.example"], false),
    ])
    .await;
    let _a = appliance.uplink(&keys[0], &["127.0.0.0/8"]);
    let (b, _drain_b) = appliance.uplink(&keys[1], &["*.b.example"]);
    let (c, _drain_c) = appliance.uplink(&keys[2], &["*.c.example"]);
    for group in 0..3 {
        appliance.until_up(group).await;
    }
    for uplink in [&b, &c] {
        let mut changes = uplink.changes();
        while !uplink.session().is_up() {
            changes.changed().await.unwrap();
        }
    }
    let address = counting_target().await;
    let (socket, carried) = through(b, &Ledger::default(), target(address)).await;
    ask(socket, 3_000_000).await;
    carried.await.unwrap().unwrap();
    let (_, carried) = through(c, &Ledger::default(), target(address)).await;
    let refusal = carried.await.unwrap().unwrap_err();
    assert_eq!(refusal.code, Code::Denied);
    assert!(refusal.text.contains("may_open"), "{refusal}");
    let mut states: Vec<_> = appliance.ledger.report(None).into_iter().map(|flow| flow.state).collect();
    states.sort();
    assert_eq!(states, ["closed", "denied"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relayed_connection_waits_for_a_worker_that_is_just_restarted() {
    let keys: [Key; 2] = std::array::from_fn(|_| Key::generate().unwrap());
    let groups =
        vec![group("a", &keys[0], &["127.0.0.1"], false), group("b", &keys[1], &["*.b.example"], true)];
    let appliance = Appliance::start(groups).await;
    let (b, _drain_b) = appliance.uplink(&keys[1], &["*.b.example"]);
    let mut changes = b.changes();
    while !b.session().is_up() {
        changes.changed().await.unwrap();
    }
    let address = counting_target().await;
    let (socket, carried) = through(b, &Ledger::default(), target(address)).await;
    while appliance.ledger.open_count() == 0 {
        assert!(!carried.is_finished(), "{:?}", carried.await);
        tokio::task::yield_now().await;
    }
    let _a = appliance.uplink(&keys[0], &["127.0.0.0/8"]);
    ask(socket, 1000).await;
    carried.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_whose_worker_goes_while_it_dials_is_made_by_the_next() {
    let key = Key::generate().unwrap();
    let appliance = Appliance::start(vec![group("site", &key, &["127.0.0.1"], false)]).await;
    let (first, first_drain) = appliance.uplink(&key, &["127.0.0.0/8"]);
    appliance.until_up(0).await;
    let _standby = appliance.uplink(&key, &["127.0.0.0/8"]);
    let mut changes = appliance.registry.changes();
    while appliance.registry.groups()[0].sessions().len() < 2 {
        changes.changed().await.unwrap();
    }
    // A listener whose queue is full drops every further SYN, so that the first worker's dial lasts.
    let silent = tokio::net::TcpSocket::new_v4().unwrap();
    silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = silent.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut filling = Vec::new();
    while let Ok(connected) =
        tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
    {
        filling.push(connected.unwrap());
    }
    let (socket, carried) = appliance.connect(target(address)).await;
    while first.session().lanes().iter().all(|lane| lane.streams() == 0) {
        assert!(!carried.is_finished(), "{:?}", carried.await);
        tokio::task::yield_now().await;
    }
    first_drain.cut().await;
    let answering = tokio::spawn(async move {
        for _ in 0..filling.len() {
            drop(listener.accept().await.unwrap());
        }
        let (mut accepted, _) = listener.accept().await.unwrap();
        let mut all = Vec::new();
        accepted.read_to_end(&mut all).await.unwrap();
        accepted.write_all(digest(&all).as_bytes()).await.unwrap();
    });
    let flow =
        || appliance.ledger.report(None).into_iter().find(|flow| flow.target == address.to_string()).unwrap();
    while flow().state != "open" {
        assert!(!carried.is_finished(), "{:?}", carried.await);
        tokio::task::yield_now().await;
    }
    // One for each lane of the first worker that was not yet known to be cut when it was asked again.
    assert!(flow().retries >= 1);
    ask(socket, 100_000).await;
    answering.await.unwrap();
    carried.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_appliance_that_returns_finds_its_workers_again() {
    let key = Key::generate().unwrap();
    let groups = || vec![group("site", &key, &["127.0.0.1"], false)];
    let (certificate, private) = identity_for_localhost();
    let identity = || (certificate.clone(), private.clone_key());
    // Kept open, so that the port stays ours while nobody serves it.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listener = || {
        let copy = port.try_clone().unwrap();
        copy.set_nonblocking(true).unwrap();
        TcpListener::from_std(copy).unwrap()
    };
    let first = Appliance::serve(listener(), groups(), identity()).await;
    let (uplink, _drain) = first.uplink(&key, &["127.0.0.0/8"]);
    first.until_up(0).await;
    first.drain.finish().await;
    first.serving.await.unwrap();
    let second = Appliance::serve(listener(), groups(), identity()).await;
    tokio::time::timeout(Duration::from_secs(20), second.until_up(0))
        .await
        .expect("the worker did not return");
    let address = counting_target().await;
    let (socket, carried) = second.connect(target(address)).await;
    ask(socket, 1000).await;
    carried.await.unwrap().unwrap();
    assert!(uplink.session().is_up());
}
