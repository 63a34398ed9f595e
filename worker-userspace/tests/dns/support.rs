//! The kernel as the server sees it, resolvers to ask, and an application that asks.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dworker::config::Families;
use dworker::drain::Gate;
use dworker::sockets::Sockets;
use dworker::steer::dns::{Counters, Counts, Resolvers, Server, ServerError, Settings};
use dworker::steer::names::{NameRules, Names, PatternIndex, Prefixes, Synthetic};
use dworker::target::{Name, Pattern};
use hickory_proto::op::{Edns, Message, MessageType, Query};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{RData, Record, RecordType};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A test that waits this long has failed. Not for tests with a paused clock, which would jump there.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The kernel's part: gives offered ports to resolvers and knows captured connections.
#[derive(Default)]
pub(crate) struct Kernel {
    pub(crate) offered: Mutex<Vec<u16>>,
    given: Mutex<HashMap<u16, IpAddr>>,
    flows: Mutex<HashSet<(u16, SocketAddr)>>,
    pub(crate) marked: AtomicUsize,
    pub(crate) refuse_marks: AtomicBool,
    pub(crate) refuse_ports: AtomicBool,
    pub(crate) refuse_rules: AtomicBool,
    pub(crate) panics: AtomicBool,
}

impl Kernel {
    /// The port that stands for `resolver`: a spare one at first.
    pub(crate) fn port_of(&self, resolver: IpAddr) -> u16 {
        let mut given = self.given.lock().unwrap();
        if let Some((port, _)) = given.iter().find(|(_, at)| **at == resolver) {
            return *port;
        }
        let offered = self.offered.lock().unwrap();
        let port = *offered.iter().find(|port| !given.contains_key(port)).expect("a spare port");
        given.insert(port, resolver);
        port
    }

    pub(crate) fn spare(&self) -> u16 {
        let given = self.given.lock().unwrap();
        *self.offered.lock().unwrap().iter().find(|port| !given.contains_key(port)).expect("a spare port")
    }

    pub(crate) fn offered(&self) -> usize {
        self.offered.lock().unwrap().len()
    }
}

impl Resolvers for Kernel {
    fn resolver_of(&self, port: u16) -> Option<IpAddr> {
        assert!(!self.panics.load(Ordering::Relaxed), "told to panic");
        self.given.lock().unwrap().get(&port).copied()
    }

    fn offer_port(&self, port: u16) -> io::Result<()> {
        if self.refuse_ports.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.offered.lock().unwrap().push(port);
        Ok(())
    }

    fn adopt_ports(&self, ports: &HashSet<u16>) -> io::Result<HashSet<u16>> {
        self.given.lock().unwrap().retain(|port, _| ports.contains(port));
        let mut offered = self.offered.lock().unwrap();
        offered.retain(|port| ports.contains(port));
        Ok(offered.iter().copied().collect())
    }

    fn take_flow(&self, listener: u16, source: SocketAddr, _: BorrowedFd<'_>) -> bool {
        self.flows.lock().unwrap().remove(&(listener, source))
    }

    fn mark_listener(&self, _: BorrowedFd<'_>) -> io::Result<()> {
        if self.refuse_marks.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.marked.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl NameRules for Kernel {
    fn on_assigned(&self, _: &Name, _: Synthetic) -> io::Result<()> {
        match self.refuse_rules.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}

/// A running server for `vc.corp.example` and `*.lab.example`.
pub(crate) struct House {
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) names: Arc<Names>,
    /// What a server that follows gets.
    pub(crate) sockets: Sockets,
    counters: Arc<Counters>,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<(), ServerError>>,
    _state: TempDir,
}

impl House {
    pub(crate) fn new(upstream_port: u16) -> House {
        House::with(upstream_port, Arc::default(), Prefixes::default()).unwrap()
    }

    pub(crate) fn with(
        upstream_port: u16,
        kernel: Arc<Kernel>,
        prefixes: Prefixes,
    ) -> Result<House, ServerError> {
        House::adopt(upstream_port, kernel, prefixes, Sockets::default())
    }

    /// With the sockets of a server before this one.
    pub(crate) fn adopt(
        upstream_port: u16,
        kernel: Arc<Kernel>,
        prefixes: Prefixes,
        sockets: Sockets,
    ) -> Result<House, ServerError> {
        let state = TempDir::new().unwrap();
        let names = Arc::new(Names::open(state.path(), prefixes, kernel.clone()).unwrap());
        let patterns: Vec<Pattern> = ["vc.corp.example", "*.lab.example"].map(|p| p.parse().unwrap()).into();
        // None is known yet.
        names
            .change()
            .set(Arc::new(PatternIndex::new(&patterns)), |_, _| Ok::<_, Infallible>(false))
            .unwrap();
        let families = Families { ipv4: true, ipv6: false };
        let settings = Settings { families, upstream_port };
        let gate = Gate::always_open();
        let server = Server::adopt(names.clone(), kernel.clone(), settings, &sockets, gate)?;
        let counters = server.counters();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(server.run(async { stopped.await.unwrap_or(()) }));
        Ok(House { kernel, names, sockets, counters, stop: Some(stop), running, _state: state })
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counters.snapshot()
    }

    /// Waits until the counts are as wanted; with a paused clock, time goes on meanwhile.
    pub(crate) async fn until(&self, wanted: impl Fn(&Counts) -> bool) {
        until(|| wanted(&self.counts()), || format!("{:?}", self.counts())).await;
    }

    /// Tells the server to stop.
    pub(crate) fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// How it ended.
    pub(crate) async fn ended(self) -> Result<(), ServerError> {
        self.running.await.unwrap()
    }

    /// An application's UDP socket that asks `resolver`.
    pub(crate) async fn udp(&self, resolver: IpAddr) -> UdpSocket {
        self.udp_at("127.0.0.1", self.kernel.port_of(resolver)).await
    }

    pub(crate) async fn udp_at(&self, loopback: &str, port: u16) -> UdpSocket {
        let any: IpAddr = loopback.parse().unwrap();
        let socket = UdpSocket::bind((any, 0)).await.unwrap();
        socket.connect((any, port)).await.unwrap();
        socket
    }

    /// A captured TCP connection to `resolver`.
    pub(crate) async fn tcp(&self, resolver: IpAddr) -> TcpStream {
        self.tcp_from("127.0.0.1", self.kernel.port_of(resolver), true).await
    }

    pub(crate) async fn tcp_from(&self, loopback: &str, port: u16, captured: bool) -> TcpStream {
        let any: IpAddr = loopback.parse().unwrap();
        self.tcp_socket(loopback, port, captured).connect((any, port).into()).await.unwrap()
    }

    /// A socket whose connection to `port` is captured, or not.
    pub(crate) fn tcp_socket(&self, loopback: &str, port: u16, captured: bool) -> TcpSocket {
        let any: IpAddr = loopback.parse().unwrap();
        let socket = if any.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
        socket.bind((any, 0).into()).unwrap();
        if captured {
            self.kernel.flows.lock().unwrap().insert((port, socket.local_addr().unwrap()));
        }
        socket
    }
}

pub(crate) async fn until(wanted: impl Fn() -> bool, state: impl Fn() -> String) {
    for _ in 0..20_000 {
        if wanted() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it did not come to this: {}", state());
}

/// What a resolver sends back to one query: raw messages, one after the other.
type Answers = dyn Fn(&[u8]) -> Vec<Vec<u8>> + Send + Sync;

/// A resolver: answers by UDP and TCP, and keeps what it was asked.
pub(crate) struct Upstream {
    pub(crate) addr: SocketAddr,
    pub(crate) asked: Arc<Mutex<Vec<Vec<u8>>>>,
    pub(crate) connections: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Upstream {
    /// A resolver at 127.0.0.`host`, on `port` or, where that is 0, on one that is free for UDP and TCP.
    pub(crate) async fn start(
        host: u8,
        port: u16,
        answers: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Upstream {
        let (udp, tcp) = bind_both(host, port).await;
        let (asked, connections) = (Arc::<Mutex<Vec<Vec<u8>>>>::default(), Arc::<AtomicUsize>::default());
        let answers: Arc<Answers> = Arc::new(answers);
        let addr = udp.local_addr().unwrap();
        let by_udp = tokio::spawn(serve_udp(udp, asked.clone(), answers.clone()));
        let by_tcp = tokio::spawn(serve_tcp(tcp, asked.clone(), connections.clone(), answers));
        Upstream { addr, asked, connections, tasks: vec![by_udp, by_tcp] }
    }

    pub(crate) fn asked(&self) -> Vec<Vec<u8>> {
        self.asked.lock().unwrap().clone()
    }
}

pub(crate) async fn bind_both(host: u8, port: u16) -> (UdpSocket, TcpListener) {
    let ip = IpAddr::from(Ipv4Addr::new(127, 0, 0, host));
    loop {
        let udp = UdpSocket::bind((ip, port)).await.unwrap();
        match TcpListener::bind(udp.local_addr().unwrap()).await {
            Ok(tcp) => return (udp, tcp),
            Err(error) if port == 0 && error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// An address where nobody answers, on a port that stays taken for as long as the socket lives.
pub(crate) async fn nobody() -> (std::net::UdpSocket, SocketAddr) {
    // Taken on another address: on 127.0.0.77 there is nobody, and nobody comes.
    let taken = std::net::UdpSocket::bind("127.0.0.78:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    (taken, SocketAddr::new("127.0.0.77".parse().unwrap(), port))
}

async fn serve_udp(socket: UdpSocket, asked: Arc<Mutex<Vec<Vec<u8>>>>, answers: Arc<Answers>) {
    let mut buffer = vec![0; 65535];
    loop {
        let (length, source) = socket.recv_from(&mut buffer).await.unwrap();
        asked.lock().unwrap().push(buffer[..length].to_vec());
        for answer in answers(&buffer[..length]) {
            socket.send_to(&answer, source).await.unwrap();
        }
    }
}

async fn serve_tcp(
    listener: TcpListener,
    asked: Arc<Mutex<Vec<Vec<u8>>>>,
    connections: Arc<AtomicUsize>,
    answers: Arc<Answers>,
) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        connections.fetch_add(1, Ordering::Relaxed);
        let (asked, answers) = (asked.clone(), answers.clone());
        tokio::spawn(async move {
            while let Some(query) = read_message(&mut stream).await.unwrap_or(None) {
                asked.lock().unwrap().push(query.clone());
                for answer in answers(&query) {
                    if write_message(&mut stream, &answer).await.is_err() {
                        return;
                    }
                }
            }
        });
    }
}

pub(crate) async fn read_message(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    match stream.read_exact(&mut length).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

pub(crate) async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let framed = [&(message.len() as u16).to_be_bytes()[..], message].concat();
    stream.write_all(&framed).await
}

/// A query, with EDNS where a payload size is given.
pub(crate) fn query(id: u16, name: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = id;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(hickory_proto::rr::Name::from_ascii(name).unwrap(), kind));
    message.edns = edns.map(|size| {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        edns
    });
    message.to_vec().unwrap()
}

/// A resolver's reply to `query`, with addresses.
pub(crate) fn reply(query: &[u8], addresses: &[&str]) -> Vec<u8> {
    let mut message = Message::from_vec(query).unwrap();
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    for address in addresses {
        let data = RData::A(A(address.parse().unwrap()));
        let record = Record::from_rdata(message.queries[0].name.clone(), 60, data);
        message.add_answer(record);
    }
    message.to_vec().unwrap()
}

/// A reply of about `size` bytes.
pub(crate) fn large_reply(query: &[u8], size: usize) -> Vec<u8> {
    let mut message = Message::from_vec(&reply(query, &[])).unwrap();
    for _ in 0..size / 256 {
        let record = Record::from_rdata(
            message.queries[0].name.clone(),
            60,
            RData::TXT(TXT::new(vec!["x".repeat(243)])),
        );
        message.add_answer(record);
    }
    message.to_vec().unwrap()
}

/// Asks and waits for one reply.
pub(crate) async fn ask(socket: &UdpSocket, query: &[u8]) -> Vec<u8> {
    socket.send(query).await.unwrap();
    receive(socket).await
}

pub(crate) async fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65535];
    let received = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await;
    let length = received.expect("a reply").unwrap();
    buffer[..length].to_vec()
}

pub(crate) fn decode(bytes: &[u8]) -> Message {
    Message::from_vec(bytes).unwrap()
}

pub(crate) fn addresses(reply: &[u8]) -> Vec<String> {
    decode(reply).answers.iter().map(|record| record.data.to_string()).collect()
}

/// This process may need more descriptors than a shell gives: over a thousand sockets at once.
pub(crate) fn many_descriptors() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write the one struct that they are given.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }
    assert!(limit.rlim_cur >= 8192, "the tests need 8192 descriptors (`ulimit -Hn` says {})", limit.rlim_cur);
}
