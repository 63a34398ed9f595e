//! Client certificates at the tunnel: the key is needed all the same, and whoever has no certificate still gets the page.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use dworker::appliance::endpoint::Endpoint;
use dworker::appliance::registry::Registry;
use dworker::appliance::roster::{Group, Roster, ValidKey};
use dworker::config::Key;
use dworker::drain::Drain;
use dworker::inspect::ledger::Ledger;
use dworker::tunnel::credit;
use dworker::tunnel::dial::Words;
use dworker::tunnel::handshake::{Dial, authorization};
use dworker::tunnel::lane::Settings;
use dworker::tunnel::message::{Capabilities, Hello, VERSION};
use dworker::tunnel::tls::expiry::{Expiry, Source};
use dworker::tunnel::tls::{End, Listener, Trust, listener, trust};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::openssl::{Asked, CLIENT, Made, SERVER};
use crate::world::{dial, dialled};

fn hello() -> Hello {
    Hello {
        version: VERSION,
        node: rand::random(),
        session: rand::random(),
        lane: 0,
        name: "w".into(),
        software: "test".into(),
        initial_credit: credit::INITIAL,
        max_streams: 10,
        capabilities: Capabilities::OURS,
    }
}

struct World {
    made: Made,
    key: Key,
    drain: Drain,
}

impl World {
    fn new() -> World {
        let made = Made::new();
        made.certificate(Asked::now("root"));
        made.certificate(Asked { by: Some("root"), extensions: SERVER, ..Asked::now("leaf") });
        made.certificate(Asked::now("workers"));
        made.certificate(Asked::now("others"));
        let worker = |name| Asked { by: Some("workers"), extensions: CLIENT, ..Asked::now(name) };
        made.certificate(worker("worker"));
        made.certificate(Asked { to: "20210101000000Z", ..worker("late") });
        made.certificate(Asked { by: Some("others"), ..worker("stranger") });
        World { made, key: Key::generate().expect("a key"), drain: Drain::new(Duration::ZERO) }
    }

    async fn appliance(&self, client_ca_file: Option<PathBuf>, required: bool) -> SocketAddr {
        let identity = self.made.files("leaf.crt", "leaf.key");
        let files = listener::Files { identity, client_ca_file, required };
        let registry = Arc::new(Registry::new(Duration::ZERO, Duration::ZERO, Box::new(())));
        registry.apply(Roster {
            groups: vec![Group {
                id: 1,
                name: "site".into(),
                keys: vec![ValidKey { hash: self.key.hash(), until: None }],
                proxy_hosts: vec!["a.example".parse().expect("a pattern")],
                may_open: false,
                nodes: Vec::new(),
            }],
            disabled: Vec::new(),
        });
        let endpoint = Endpoint {
            tls: Some(Listener::read(&files, &Expiry::default()).expect("a listener")),
            registry,
            ledger: Ledger::default(),
            settings: Settings::default(),
            hello: hello(),
            web: Router::new().route("/", get(async || "the page")),
            drain: self.drain.clone(),
        };
        let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = tcp.local_addr().expect("its address");
        tokio::spawn(endpoint.serve(tcp));
        address
    }

    fn trust(&self, name: Option<&str>) -> Arc<Trust> {
        let identity = name.map(|name| self.made.files(&format!("{name}.crt"), &format!("{name}.key")));
        let files =
            trust::Files { ca_file: Some(self.made.path("root.crt")), identity, ..Default::default() };
        Trust::read(files, Expiry::default()).expect("a CA")
    }

    /// Whether a lane comes up, and what is said where it does not.
    async fn lane(&self, to: SocketAddr, name: Option<&str>, key: &Key) -> Result<(), String> {
        let appliance = dialled(to, "localhost", self.trust(name));
        let key = authorization(key.reveal()).expect("a header");
        let dial = Dial { appliance, key, proxy: None };
        dial.lane(&hello()).await.map(drop).map_err(|error| error.to_string())
    }

    async fn page(&self, to: SocketAddr, name: Option<&str>) -> String {
        let mut transport = dial(&dialled(to, "localhost", self.trust(name))).await.expect("a handshake");
        transport
            .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await
            .expect("a request");
        let mut answer = String::new();
        transport.read_to_string(&mut answer).await.expect("an answer");
        answer
    }
}

#[tokio::test]
async fn a_client_certificate_is_asked_for_as_the_appliance_says() {
    let world = World::new();
    let authority = Some(world.made.path("workers.crt"));
    let key = &world.key;
    let other = &Key::generate().expect("a key");

    let required = world.appliance(authority.clone(), true).await;
    world.lane(required, Some("worker"), key).await.expect("a lane");
    let told = world.lane(required, None, key).await.expect_err("no certificate");
    assert!(told.contains("wants a client certificate (403): set `client_certificate` and"), "{told}");
    // Who has no key learns nothing but that.
    for name in [None, Some("worker")] {
        let told = world.lane(required, name, other).await.expect_err("another key");
        assert!(told.contains("(401)"), "{told}");
    }
    assert!(world.page(required, None).await.ends_with("the page"));

    let optional = world.appliance(authority, false).await;
    for name in [None, Some("worker")] {
        world.lane(optional, name, key).await.expect("a lane");
    }
    assert!(world.page(optional, Some("worker")).await.ends_with("the page"));
    for to in [required, optional] {
        for (name, alert) in [("late", "CertificateExpired"), ("stranger", "UnknownCA")] {
            let told = world.lane(to, Some(name), key).await.expect_err("a bad certificate");
            assert!(told.contains("`client_certificate` must be valid"), "{told}");
            assert!(told.contains(alert), "{told}");
        }
    }

    // Who is not asked shows nothing, and is let in by its key.
    let not_asking = world.appliance(None, false).await;
    for name in [None, Some("worker"), Some("stranger")] {
        world.lane(not_asking, name, key).await.expect("a lane");
    }
    world.drain.finish().await;
}

#[tokio::test]
async fn a_proxy_is_shown_no_client_certificate_and_is_noted_as_one() {
    let world = World::new();
    let files = listener::Files {
        identity: world.made.files("leaf.crt", "leaf.key"),
        client_ca_file: Some(world.made.path("workers.crt")),
        required: true,
    };
    let listener = Listener::read(&files, &Expiry::default()).expect("a listener");
    let expiry = Expiry::default();
    let files = trust::Files {
        ca_file: Some(world.made.path("root.crt")),
        identity: Some(world.made.files("worker.crt", "worker.key")),
        ..Default::default()
    };
    let trust = Trust::read(files, expiry.clone()).expect("a CA");
    let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = tcp.local_addr().expect("its address");
    let host = "localhost".parse().expect("a name");
    for (end, is_certified, source) in
        [(End::Proxy, false, Source::Proxy), (End::Appliance(Words::CONFIGURATION), true, Source::Dialled)]
    {
        let is_noted = || expiry.report().iter().any(|(noted, _)| *noted == source);
        assert!(!is_noted());
        let dialling = async {
            let tcp = TcpStream::connect(address).await.expect("a connection");
            trust.secure(tcp, &host, end).await.expect("a handshake")
        };
        let accepting = async {
            let (tcp, peer) = tcp.accept().await.expect("a connection");
            listener.accept(tcp, peer).await.expect("a handshake")
        };
        let (_dialled, accepted) = tokio::join!(dialling, accepting);
        assert_eq!(accepted.is_certified, is_certified, "{end:?}");
        assert!(is_noted(), "{expiry:?}");
    }
}
