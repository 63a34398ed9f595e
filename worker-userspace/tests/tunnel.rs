//! An appliance and workers in one process, over real sockets, TLS and websockets; no root needed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dworker::appliance::endpoint::Endpoint;
use dworker::appliance::registry::Registry;
use dworker::appliance::roster::{Group, Roster, ValidKey};
use dworker::carry::Carry;
use dworker::config::Key;
use dworker::drain::Drain;
use dworker::egress::dial::Dialler;
use dworker::egress::policy::Policy;
use dworker::inspect::ledger::{Entry, Ledger, Origin};
use dworker::refusal::{Code, Refusal};
use dworker::route::Router;
use dworker::splice::reset_on_close;
use dworker::target::{Pattern, Target};
use dworker::tunnel::credit;
use dworker::tunnel::dial;
use dworker::tunnel::handshake::{Dial, authorization};
use dworker::tunnel::lane::Settings;
use dworker::tunnel::message::{Capabilities, Hello, VERSION};
use dworker::tunnel::tls;
use dworker::worker::{Parts, Uplink};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

type Identity = (CertificateDer<'static>, PrivateKeyDer<'static>);

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| text.parse().expect(text)).collect()
}

fn target(address: SocketAddr) -> Target {
    Target { host: address.ip().to_string().parse().unwrap(), port: address.port() }
}

fn hello(name: &str) -> Hello {
    Hello {
        version: VERSION,
        node: rand::random(),
        session: rand::random(),
        lane: 0,
        name: name.into(),
        software: "test".into(),
        initial_credit: credit::INITIAL,
        max_streams: 1000,
        capabilities: Capabilities::OURS,
    }
}

fn identity_for_localhost() -> Identity {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    (made.cert.der().clone(), PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into())
}

fn group(name: &str, key: &Key, proxy_hosts: &[&str], may_open: bool) -> Group {
    Group {
        id: 0,
        name: name.into(),
        keys: vec![ValidKey { hash: key.hash(), until: None }],
        proxy_hosts: patterns(proxy_hosts),
        may_open,
        nodes: Vec::new(),
    }
}

struct Appliance {
    registry: Arc<Registry>,
    ledger: Ledger,
    address: SocketAddr,
    ca: CertificateDer<'static>,
    drain: Drain,
    serving: JoinHandle<()>,
}

impl Appliance {
    async fn start(groups: Vec<Group>) -> Appliance {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Appliance::serve(listener, groups, identity_for_localhost()).await
    }

    async fn serve(listener: TcpListener, groups: Vec<Group>, (ca, key): Identity) -> Appliance {
        let address = listener.local_addr().unwrap();
        let registry = Arc::new(Registry::new(Duration::ZERO, Duration::ZERO, Box::new(())));
        let groups = (1..).zip(groups).map(|(id, group)| Group { id, ..group }).collect();
        registry.apply(Roster { groups, ..Roster::default() });
        let drain = Drain::new(Duration::from_millis(200));
        let ledger = Ledger::default();
        let endpoint = Endpoint {
            tls: Some(tls::server(vec![ca.clone()], key).unwrap()),
            registry: registry.clone(),
            ledger: ledger.clone(),
            settings: Settings::default(),
            hello: hello("appliance"),
            web: axum::Router::new(),
            drain: drain.clone(),
        };
        let serving = tokio::spawn(endpoint.serve(listener));
        Appliance { registry, ledger, address, ca, drain, serving }
    }

    fn uplink(&self, key: &Key, allow: &[&str]) -> (Arc<Uplink>, Drain) {
        self.uplink_noting(key, allow, &Ledger::default())
    }

    fn uplink_noting(&self, key: &Key, allow: &[&str], ledger: &Ledger) -> (Arc<Uplink>, Drain) {
        let drain = Drain::new(Duration::from_millis(200));
        let uplink = Uplink::new(Parts {
            dial: self.dial("localhost", self.ca.clone(), key),
            hello: hello("worker"),
            lanes: 2,
            settings: Settings::default(),
            dialler: Dialler::new(Policy::new(Some(&patterns(allow)), &[]), Duration::from_secs(5)),
            ledger: ledger.clone(),
            drain: drain.clone(),
        });
        uplink.start();
        (uplink, drain)
    }

    /// A worker with so many lanes, whose own file allows all that the appliance does.
    fn uplink_of(&self, lanes: u8, key: &Key) -> (Arc<Uplink>, Drain) {
        let drain = Drain::new(Duration::from_millis(200));
        let uplink = self.uplink_to("localhost", lanes, key, &drain);
        uplink.start();
        (uplink, drain)
    }

    /// The same, to another host, and not started yet.
    fn uplink_to(&self, host: &str, lanes: u8, key: &Key, drain: &Drain) -> Arc<Uplink> {
        Uplink::new(Parts {
            dial: self.dial(host, self.ca.clone(), key),
            hello: hello("worker"),
            lanes,
            settings: Settings::default(),
            dialler: Dialler::new(Policy::new(None, &[]), Duration::from_secs(5)),
            ledger: Ledger::default(),
            drain: drain.clone(),
        })
    }

    fn dial(&self, host: &str, ca: CertificateDer<'static>, key: &Key) -> Dial {
        let appliance = dial::Appliance {
            at: Target { host: host.parse().unwrap(), port: self.address.port() },
            tls: Some(tls::client(vec![ca]).unwrap()),
            words: dial::Words::CONFIGURATION,
        };
        Dial { appliance, key: authorization(key.reveal()).unwrap(), proxy: None }
    }

    async fn until_up(&self, group: usize) {
        let mut changes = self.registry.changes();
        while !self.registry.groups()[group].is_up() {
            changes.changed().await.unwrap();
        }
    }

    /// A connection through the tunnel: what an application's socket would be, and how it ends.
    async fn connect(&self, target: Target) -> (TcpStream, JoinHandle<Result<(), Refusal>>) {
        through(self.registry.clone(), &self.ledger, target).await
    }
}

async fn through(
    router: Arc<dyn Router>,
    ledger: &Ledger,
    target: Target,
) -> (TcpStream, JoinHandle<Result<(), Refusal>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut accepted, _) = listener.accept().await.unwrap();
    let flow = ledger.open(Entry::Captured, 1, target, Origin::default());
    let carried = tokio::spawn(async move {
        reset_on_close(&accepted);
        let carry = Carry { router: &*router, flow: &flow, deadline: Duration::from_secs(5) };
        let outcome = carry.socket(&mut accepted).await;
        flow.end(outcome.clone());
        outcome
    });
    (client, carried)
}

/// A target that reads to the end before it answers, as only half-close allows.
async fn counting_target() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut all = Vec::new();
                socket.read_to_end(&mut all).await.unwrap();
                socket.write_all(digest(&all).as_bytes()).await.unwrap();
            });
        }
    });
    address
}

fn data(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i % 251) as u8).collect()
}

fn digest(data: &[u8]) -> String {
    let sum = data
        .iter()
        .enumerate()
        .fold(0u64, |sum, (i, byte)| sum.wrapping_add((i as u64 + 1) * u64::from(*byte)));
    format!("{} {sum}", data.len())
}

async fn ask(mut socket: TcpStream, size: usize) {
    let data = data(size);
    socket.write_all(&data).await.unwrap();
    socket.shutdown().await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, digest(&data));
}

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

#[tokio::test]
async fn without_the_key_there_is_401_and_nothing_more() {
    let key = Key::generate().unwrap();
    let appliance = Appliance::start(vec![group("site", &key, &["127.0.0.1"], false)]).await;
    let stranger = appliance.dial("localhost", appliance.ca.clone(), &Key::generate().unwrap());
    let refused = stranger.lane(&hello("stranger")).await.unwrap_err().to_string();
    assert!(refused.contains("401"), "{refused}");
    assert!(!appliance.registry.groups()[0].is_up());

    // The answers themselves, as strangers see them.
    let connector =
        tokio_rustls::TlsConnector::from(tls::client(vec![appliance.ca.clone()]).unwrap().config());
    for (request, status) in [
        ("GET /tunnel/v1 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "401"),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "404"),
        (
            format!("GET /tunnel/v1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n", key.reveal()),
            "426",
        ),
        (format!("GET /tunnel/v1 HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(20_000)), "431"),
        ("\r\n\r\nnot http at all\r\n\r\n".to_owned(), "400"),
    ] {
        let tcp = TcpStream::connect(appliance.address).await.unwrap();
        let mut tls = connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap();
        tls.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A server that closes without reading all may reset; what it said before counts.
        let _ = tls.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{status}: {answer}");
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
        assert_eq!(body, Some(""), "{status} says more than its status");
    }
}

#[tokio::test]
async fn a_stranger_does_not_take_the_places_of_all() {
    let appliance = Appliance::start(vec![]).await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(TcpStream::connect(appliance.address).await.unwrap());
    }
    let last = idle.last_mut().unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(2), last.read(&mut [0])).await;
    assert!(matches!(answer, Ok(Ok(0) | Err(_))), "one address may hold any number of places");
    // Others are let in.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let tcp = socket.connect(appliance.address).await.unwrap();
    let connector =
        tokio_rustls::TlsConnector::from(tls::client(vec![appliance.ca.clone()]).unwrap().config());
    connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap();
}

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
    let mut states: Vec<_> = appliance.ledger.report().into_iter().map(|flow| flow.state).collect();
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
        || appliance.ledger.report().into_iter().find(|flow| flow.target == address.to_string()).unwrap();
    while flow().state != "open" {
        assert!(!carried.is_finished(), "{:?}", carried.await);
        tokio::task::yield_now().await;
    }
    assert_eq!(flow().retries, 1);
    ask(socket, 100_000).await;
    answering.await.unwrap();
    carried.await.unwrap().unwrap();
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
        let newest = ledgers[by].report().remove(0);
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
            let flow = ledger.report().remove(0);
            assert_eq!(flow.state, "closed-by-admin");
            assert_eq!(flow.reason.as_deref(), Some("closed by admin from 192.0.2.7"));
        }
        assert!(!ledgers[by].close(newest.id, "admin"), "it has ended");
    }
    let relayed = appliance.ledger.report().remove(0);
    assert_eq!((relayed.from.as_deref(), relayed.entry), (Some("b"), Entry::Relayed));
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

#[tokio::test]
async fn an_appliance_at_an_ipv6_address_is_named_as_urls_have_it() {
    let key = Key::generate().unwrap();
    let appliance = Appliance::start(Vec::new()).await;
    let uplink = appliance.uplink_to("2001:db8::1", 1, &key, &Drain::new(Duration::ZERO));
    assert_eq!(uplink.appliance(), format!("[2001:db8::1]:{}", appliance.address.port()));
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_refused_with_the_remedy() {
    let key = Key::generate().unwrap();
    let appliance = Appliance::start(vec![group("site", &key, &["127.0.0.1"], false)]).await;
    let fails = async |host, ca| {
        let error = appliance.dial(host, ca, &key).lane(&hello("w")).await.unwrap_err().to_string();
        assert!(!error.contains(key.reveal()), "{error}");
        error
    };
    let unknown = fails("localhost", identity_for_localhost().0).await;
    assert!(unknown.contains("ca_file"), "{unknown}");
    let misnamed = fails("127.0.0.1", appliance.ca.clone()).await;
    assert!(misnamed.contains("appliance_url"), "{misnamed}");
}

#[tokio::test]
async fn a_cas_own_certificate_and_tls_at_one_end_only_are_told_with_the_remedy() {
    let key = Key::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pair = rcgen::KeyPair::generate().unwrap();
    let own = ca.self_signed(&pair).unwrap().der().clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let identity = (own.clone(), PrivatePkcs8KeyDer::from(pair.serialize_der()).into());
    let appliance = Appliance::serve(listener, Vec::new(), identity).await;
    let dial = appliance.dial("localhost", own.clone(), &key);
    let fails = async |dial: Dial| dial.lane(&hello("w")).await.unwrap_err().to_string();
    let told = fails(dial.clone()).await;
    assert!(told.contains("CA:FALSE"), "{told}");
    let mut plain = dial.clone();
    plain.appliance.tls = None;
    let told = fails(plain).await;
    assert!(told.contains("https://"), "{told}");

    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = plain.local_addr().unwrap().port();
    let answering = tokio::spawn(async move {
        let (mut socket, _) = plain.accept().await.unwrap();
        socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let _ = socket.read_to_end(&mut Vec::new()).await;
    });
    let mut elsewhere = dial;
    elsewhere.appliance.at.port = port;
    let told = fails(elsewhere).await;
    assert!(told.contains("speaks no TLS"), "{told}");
    answering.await.unwrap();
}
