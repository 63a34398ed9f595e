//! An appliance, its workers, and what they dial.

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
use dworker::refusal::Refusal;
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

pub(crate) type Identity = (CertificateDer<'static>, PrivateKeyDer<'static>);

pub(crate) fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| text.parse().expect(text)).collect()
}

pub(crate) fn target(address: SocketAddr) -> Target {
    Target { host: address.ip().to_string().parse().unwrap(), port: address.port() }
}

pub(crate) fn hello(name: &str) -> Hello {
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

pub(crate) fn identity_for_localhost() -> Identity {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    (made.cert.der().clone(), PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into())
}

pub(crate) fn group(name: &str, key: &Key, proxy_hosts: &[&str], may_open: bool) -> Group {
    Group {
        id: 0,
        name: name.into(),
        keys: vec![ValidKey { hash: key.hash(), until: None }],
        proxy_hosts: patterns(proxy_hosts),
        may_open,
        nodes: Vec::new(),
    }
}

pub(crate) struct Appliance {
    pub(crate) registry: Arc<Registry>,
    pub(crate) ledger: Ledger,
    pub(crate) address: SocketAddr,
    pub(crate) ca: CertificateDer<'static>,
    pub(crate) drain: Drain,
    pub(crate) serving: JoinHandle<()>,
}

impl Appliance {
    pub(crate) async fn start(groups: Vec<Group>) -> Appliance {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Appliance::serve(listener, groups, identity_for_localhost()).await
    }

    pub(crate) async fn serve(listener: TcpListener, groups: Vec<Group>, (ca, key): Identity) -> Appliance {
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

    pub(crate) fn uplink(&self, key: &Key, allow: &[&str]) -> (Arc<Uplink>, Drain) {
        self.uplink_noting(key, allow, &Ledger::default())
    }

    pub(crate) fn uplink_noting(&self, key: &Key, allow: &[&str], ledger: &Ledger) -> (Arc<Uplink>, Drain) {
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
    pub(crate) fn uplink_of(&self, lanes: u8, key: &Key) -> (Arc<Uplink>, Drain) {
        let drain = Drain::new(Duration::from_millis(200));
        let uplink = self.uplink_to("localhost", lanes, key, &drain);
        uplink.start();
        (uplink, drain)
    }

    /// The same, to another host, and not started yet.
    pub(crate) fn uplink_to(&self, host: &str, lanes: u8, key: &Key, drain: &Drain) -> Arc<Uplink> {
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

    pub(crate) fn dial(&self, host: &str, ca: CertificateDer<'static>, key: &Key) -> Dial {
        let appliance = dial::Appliance {
            at: Target { host: host.parse().unwrap(), port: self.address.port() },
            tls: Some(tls::client(vec![ca]).unwrap()),
            words: dial::Words::CONFIGURATION,
        };
        Dial { appliance, key: authorization(key.reveal()).unwrap(), proxy: None }
    }

    pub(crate) async fn until_up(&self, group: usize) {
        let mut changes = self.registry.changes();
        while !self.registry.groups()[group].is_up() {
            changes.changed().await.unwrap();
        }
    }

    /// A connection through the tunnel: what an application's socket would be, and how it ends.
    pub(crate) async fn connect(&self, target: Target) -> (TcpStream, JoinHandle<Result<(), Refusal>>) {
        through(self.registry.clone(), &self.ledger, target).await
    }
}

pub(crate) async fn through(
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
pub(crate) async fn counting_target() -> SocketAddr {
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

pub(crate) fn data(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i % 251) as u8).collect()
}

pub(crate) fn digest(data: &[u8]) -> String {
    let sum = data
        .iter()
        .enumerate()
        .fold(0u64, |sum, (i, byte)| sum.wrapping_add((i as u64 + 1) * u64::from(*byte)));
    format!("{} {sum}", data.len())
}

pub(crate) async fn ask(mut socket: TcpStream, size: usize) {
    let data = data(size);
    socket.write_all(&data).await.unwrap();
    socket.shutdown().await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, digest(&data));
}
