//! The registry with real lanes over in-memory pipes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use tokio::io::{DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::appliance::roster::{Disabled, Group as Configured, KnownNode, ValidKey};
use crate::inspect::status::NodeRole;
use crate::tunnel::lane::{LaneEnd, Settings, Upgraded};
use crate::tunnel::message::Capabilities;
use crate::tunnel::websocket::Side;

const SETTLE: Duration = Duration::from_secs(60);

/// A worker's lane as the appliance has it.
struct Peer {
    lane: Lane,
    end: JoinHandle<LaneEnd>,
    io: DuplexStream,
}

fn peer(node: u8, session: u8, number: u8) -> Peer {
    let hello = Hello {
        node: [node; 16],
        session: [session; 16],
        lane: number,
        name: format!("node{node}"),
        ..Hello::sample()
    };
    // Nobody answers at the other end.
    let settings = Settings { dead: Duration::from_secs(86_400), ..Settings::default() };
    let (near, io) = duplex(1 << 16);
    let upgraded = Upgraded::new(near, Side::Server, BytesMut::new());
    let (lane, _, driver) = Lane::new(upgraded, hello, settings);
    Peer { lane, end: tokio::spawn(driver), io }
}

async fn ended(peer: Peer) -> LaneEnd {
    timeout(Duration::from_secs(600), peer.end).await.expect("the lane is still up").unwrap()
}

fn address() -> SocketAddr {
    ([192, 0, 2, 1], 40_000).into()
}

fn group(id: i64, keys: &[&Key], hosts: &[&str]) -> Configured {
    Configured {
        id,
        name: format!("site-{id}"),
        keys: keys.iter().map(|key| ValidKey { hash: key.hash(), until: None }).collect(),
        proxy_hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
        may_open: false,
        nodes: Vec::new(),
    }
}

fn registry(groups: Vec<Configured>) -> Arc<Registry> {
    let registry = Registry::new(SETTLE, Duration::from_secs(5), Box::new(()));
    registry.apply(Roster { groups, ..Roster::default() });
    Arc::new(registry)
}

fn key() -> Key {
    Key::generate().unwrap()
}

fn join(registry: &Arc<Registry>, key: &Key, peer: &Peer) -> Connected {
    let admission = registry.authenticate(key.reveal()).expect("the key works");
    registry.connect(admission, peer.lane.clone(), address()).unwrap()
}

/// The carrier of a new stream to `host`.
fn carrier(registry: &Registry, host: &str) -> Result<String, Code> {
    let request = Request {
        target: Target { host: host.parse().unwrap(), port: 443 },
        deadline: Duration::from_secs(1),
        trace: 0,
    };
    registry.open(&request).map(|opened| opened.carrier).map_err(|refusal| refusal.code)
}

#[test]
fn who_asks_for_what_a_disabled_worker_has_is_told_so() {
    let registry = registry(vec![group(1, &[&key()], &["*.corp.example"])]);
    let disabled = Disabled {
        name: "site-2".into(),
        proxy_hosts: ["vc.lab.example:443", "vc.corp.example"].map(|host| host.parse().unwrap()).to_vec(),
    };
    registry
        .apply(Roster { groups: vec![group(1, &[&key()], &["*.corp.example"])], disabled: vec![disabled] });
    let told = |host: &str, port| {
        let target = Target { host: host.parse().unwrap(), port };
        registry
            .open(&Request { target, deadline: Duration::from_secs(1), trace: 0 })
            .unwrap_err()
            .to_string()
    };
    for (host, port, says) in [
        (
            "vc.lab.example",
            443,
            "no-route: vc.lab.example:443 is a proxy host of worker site-2, which is disabled: enable it",
        ),
        ("vc.lab.example", 22, "no-route: vc.lab.example:22 is no group's proxy host"),
        // Who is enabled carries it meanwhile.
        ("vc.corp.example", 443, "no-worker: no worker of group site-1 is connected"),
    ] {
        assert_eq!(told(host, port), says);
    }
    registry.apply(Roster::default());
    assert_eq!(told("vc.lab.example", 443), "no-route: vc.lab.example:443 is no group's proxy host");
}

/// The worker has lost its lane and made a new one, and nothing has told the appliance of the loss.
#[tokio::test]
async fn a_lane_takes_the_place_of_the_one_with_its_number() {
    let key = key();
    let registry = registry(vec![group(1, &[&key], &[])]);
    let (first, second, third) = (peer(1, 2, 0), peer(1, 2, 1), peer(1, 2, 0));
    let _connected = [&first, &second, &third].map(|peer| join(&registry, &key, peer));
    assert!(matches!(ended(first).await, LaneEnd::Local(_)));
    assert!(!second.lane.is_closing() && !third.lane.is_closing());
}

#[tokio::test(start_paused = true)]
async fn new_streams_go_to_the_primary_and_return_to_it_when_it_is_steady() {
    let key = key();
    let mut config = group(1, &[&key], &["vc.corp.example"]);
    let known = |n: u8| KnownNode {
        id: [n; 16],
        priority: None,
        first_seen: UNIX_EPOCH + Duration::from_secs(n.into()),
    };
    config.nodes = vec![known(1), known(2)];
    let registry = registry(vec![config]);
    assert_eq!(carrier(&registry, "vc.corp.example"), Err(Code::NoWorker));
    assert_eq!(carrier(&registry, "other.corp.example"), Err(Code::NoRoute));
    let (two, one) = (peer(2, 1, 0), peer(1, 1, 0));
    let _two = join(&registry, &key, &two);
    assert_eq!(carrier(&registry, "vc.corp.example").unwrap(), "site-1/node2");
    let connected = join(&registry, &key, &one);
    assert_eq!(carrier(&registry, "vc.corp.example").unwrap(), "site-1/node1");
    // It leaves: the standby carries at once, although the lane is still there.
    one.lane.go_away(Duration::from_secs(5), "test");
    connected.leaving();
    assert_eq!(registry.groups()[0].status().nodes[0].name, "node2");
    assert_eq!(carrier(&registry, "vc.corp.example").unwrap(), "site-1/node2");
    drop(connected);
    let one = peer(1, 2, 0);
    let _one = join(&registry, &key, &one);
    assert_eq!(carrier(&registry, "vc.corp.example").unwrap(), "site-1/node2");
    let drain = Drain::new(Duration::ZERO);
    let running = tokio::spawn(registry.clone().run(drain.clone()));
    tokio::time::sleep(SETTLE - Duration::from_secs(2)).await;
    assert_eq!(carrier(&registry, "vc.corp.example").unwrap(), "site-1/node2");
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(carrier(&registry, "vc.corp.example").unwrap(), "site-1/node1");
    let roles: Vec<_> = registry.groups()[0].status().nodes.iter().map(|n| n.role).collect();
    assert_eq!(roles, [NodeRole::Primary, NodeRole::Standby]);
    drain.stop();
    running.await.unwrap();
}

/// The store may not know of it yet, or there may be none.
#[tokio::test(start_paused = true)]
async fn a_node_that_the_roster_does_not_know_keeps_its_place_while_it_is_away() {
    let key = key();
    let registry = registry(vec![group(1, &[&key], &["vc.corp.example"])]);
    let (one, two) = (peer(1, 1, 0), peer(2, 1, 0));
    let connected = join(&registry, &key, &one);
    let _two = join(&registry, &key, &two);
    assert_eq!(carrier(&registry, "vc.corp.example").unwrap(), "site-1/node1");
    drop(connected);
    assert_eq!(carrier(&registry, "vc.corp.example").unwrap(), "site-1/node2");
    let one = peer(1, 2, 0);
    let _one = join(&registry, &key, &one);
    let drain = Drain::new(Duration::ZERO);
    tokio::spawn(registry.clone().run(drain));
    tokio::time::sleep(SETTLE + Duration::from_secs(2)).await;
    assert_eq!(carrier(&registry, "vc.corp.example").unwrap(), "site-1/node1");
}

#[tokio::test(start_paused = true)]
async fn a_roster_cuts_those_whose_key_is_gone_and_no_others() {
    let (old, new, other) = (key(), key(), key());
    let registry = registry(vec![group(1, &[&old], &["a.example"]), group(2, &[&other], &["b.example"])]);
    let (one, two, three) = (peer(1, 1, 0), peer(2, 1, 0), peer(3, 1, 0));
    let _one = join(&registry, &old, &one);
    let _three = join(&registry, &other, &three);
    // The key was replaced; for a while both work.
    let mut both = group(1, &[&new, &old], &["a.example", "c.example"]);
    let clock = SystemTime::now();
    both.keys[1].until = Some(clock + Duration::from_millis(300));
    registry.apply(Roster { groups: vec![both, group(2, &[&other], &["b.example"])], ..Roster::default() });
    let _two = join(&registry, &new, &two);
    assert!(!one.lane.is_closing());
    assert!(carrier(&registry, "c.example").is_ok());
    let running = tokio::spawn(registry.clone().run(Drain::new(Duration::ZERO)));
    let waiting = std::thread::spawn(move || {
        while SystemTime::now() < clock + Duration::from_millis(300) {
            std::thread::yield_now();
        }
    });
    waiting.join().unwrap();
    assert!(registry.authenticate(old.reveal()).is_none());
    let end = ended(one).await.to_string();
    assert!(end.contains("the grace is over"), "{end}");
    assert_eq!(carrier(&registry, "a.example").unwrap(), "site-1/node2");
    // Disabled.
    registry.apply(Roster { groups: vec![group(2, &[&other], &["b.example"])], ..Roster::default() });
    let end = ended(two).await.to_string();
    assert!(end.contains("disabled or removed"), "{end}");
    assert_eq!(carrier(&registry, "a.example"), Err(Code::NoRoute));
    assert!(registry.authenticate(new.reveal()).is_none());
    assert_eq!(carrier(&registry, "b.example").unwrap(), "site-2/node3");
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn who_was_admitted_by_a_key_that_is_gone_meanwhile_is_refused() {
    let key = key();
    let registry = registry(vec![group(1, &[&key], &[])]);
    let admission = registry.authenticate(key.reveal()).unwrap();
    registry.apply(Roster::default());
    let late = peer(1, 1, 0);
    assert_eq!(registry.connect(admission, late.lane.clone(), address()).err().unwrap().code, Code::Denied);
    // Another key under the same id.
    registry.apply(Roster { groups: vec![group(1, &[&self::key()], &[])], ..Roster::default() });
    assert_eq!(registry.connect(admission, late.lane.clone(), address()).err().unwrap().code, Code::Denied);
    assert!(registry.groups()[0].status().nodes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_returns_replaces_its_session_without_cutting_its_streams() {
    let key = key();
    let registry = registry(vec![group(1, &[&key], &["a.example"])]);
    let (before, after) = (peer(1, 1, 0), peer(1, 2, 0));
    let _before = join(&registry, &key, &before);
    let _after = join(&registry, &key, &after);
    assert!(before.lane.is_closing() && !after.lane.is_closing());
    let status = registry.groups()[0].status();
    let roles: Vec<_> = status.nodes.iter().map(|n| n.role).collect();
    assert_eq!(roles, [NodeRole::Primary, NodeRole::Leaving]);
    assert!(carrier(&registry, "a.example").is_ok());
    let opened = |peer: &Peer| peer.lane.counters().streams.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((opened(&before), opened(&after)), (0, 1));
}

#[derive(Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Witness for Told {
    fn connected(&self, group: &roster::Group, hello: &Hello, _: SocketAddr) {
        self.0.lock().unwrap().push(format!("{} up in {}", hello.name, group.name));
    }

    fn disconnected(&self, group: &roster::Group, hello: &Hello) {
        self.0.lock().unwrap().push(format!("{} down in {}", hello.name, group.name));
    }

    fn primary(&self, group: &roster::Group, node: Option<(&str, &Id)>, _: u64) {
        self.0.lock().unwrap().push(format!("{:?} leads {}", node.map(|(name, _)| name), group.name));
    }
}

#[tokio::test(start_paused = true)]
async fn the_witness_hears_of_nodes_and_of_roles() {
    let (key, told) = (key(), Arc::default());
    let registry = Arc::new(Registry::new(SETTLE, Duration::ZERO, Box::new(Told(Arc::clone(&told)))));
    registry.apply(Roster { groups: vec![group(1, &[&key], &[])], ..Roster::default() });
    let (one, more) = (peer(1, 1, 0), peer(1, 1, 1));
    let connected = [join(&registry, &key, &one), join(&registry, &key, &more)];
    drop(connected);
    let expected =
        ["node1 up in site-1", "Some(\"node1\") leads site-1", "node1 down in site-1", "None leads site-1"];
    assert_eq!(*told.lock().unwrap(), expected);
}

/// Who is disabled or removed has gone for that reason, and its nodes were there until then.
#[tokio::test(start_paused = true)]
async fn the_witness_hears_of_nodes_whose_group_is_gone() {
    let (key, told) = (key(), Arc::default());
    let registry = Arc::new(Registry::new(SETTLE, Duration::ZERO, Box::new(Told(Arc::clone(&told)))));
    registry.apply(Roster { groups: vec![group(1, &[&key], &[])], ..Roster::default() });
    let (one, two) = (peer(1, 1, 0), peer(2, 1, 0));
    let connected = [join(&registry, &key, &one), join(&registry, &key, &two)];
    assert_eq!(registry.groups()[0].connected(), [[1; 16], [2; 16]]);
    told.lock().unwrap().clear();
    registry.apply(Roster::default());
    drop(connected);
    assert_eq!(*told.lock().unwrap(), ["node1 down in site-1", "node2 down in site-1"]);
}

#[tokio::test(start_paused = true)]
async fn throughput_is_counted_over_lanes_that_end() {
    let key = key();
    let registry = registry(vec![group(1, &[&key], &[])]);
    let one = peer(1, 1, 0);
    let connected = join(&registry, &key, &one);
    one.lane.counters().sent.store(500, std::sync::atomic::Ordering::Relaxed);
    registry.second();
    one.lane.counters().sent.store(800, std::sync::atomic::Ordering::Relaxed);
    drop(connected);
    registry.second();
    registry.second();
    let sent: Vec<_> = registry.groups()[0].history().iter().map(|rate| rate.sent).collect();
    assert_eq!(sent, [500, 300, 0]);
}

#[tokio::test(start_paused = true)]
async fn workers_hear_what_they_may_dial_and_whether_they_lead() {
    let key = key();
    let registry = registry(vec![group(1, &[&key], &["a.example"])]);
    let one = peer(1, 1, 0);
    let far = Upgraded::new(one.io, Side::Client, BytesMut::new());
    let appliance = Hello { capabilities: Capabilities::OURS, ..one.lane.peer().clone() };
    let (far, _incoming, driver) = Lane::new(far, appliance, Settings::default());
    tokio::spawn(driver);
    let admission = registry.authenticate(key.reveal()).unwrap();
    let _connected = registry.connect(admission, one.lane.clone(), address()).unwrap();
    let mut told = far.told();
    let told_of = |told: &crate::tunnel::lane::Told| {
        let patterns =
            told.policy.as_ref().map(|p| p.patterns.iter().map(ToString::to_string).collect::<Vec<_>>());
        (patterns.unwrap_or_default(), told.role.map(|told| told.role.word()))
    };
    let expected = (vec!["a.example".to_owned()], Some("primary"));
    timeout(Duration::from_secs(5), told.wait_for(|told| told_of(told) == expected)).await.unwrap().unwrap();
    // Saved, without a reconnect.
    registry
        .apply(Roster { groups: vec![group(1, &[&key], &["b.example", "c.example"])], ..Roster::default() });
    let expected = (vec!["b.example".to_owned(), "c.example".to_owned()], Some("primary"));
    timeout(Duration::from_secs(5), told.wait_for(|told| told_of(told) == expected)).await.unwrap().unwrap();
}
