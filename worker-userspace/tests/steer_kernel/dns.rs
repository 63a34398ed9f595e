//! DNS: questions reach the daemon, and answers come from the resolver that was asked.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;

use dworker::steer::kernel::{Counter, Kernel, Purpose};

use crate::client::{Client, Kind, Place};
use crate::world::{Cgroup, DEVICE, Daemon, DnsPort, answer, at, is_idle, udp};

/// Sockets, resolvers as these sockets write them, and the resolver that is meant.
const ASKED: [(Kind, &str, &str); 5] = [
    (Kind::Udp4, "192.0.2.53:53", "192.0.2.53"),
    (Kind::Udp6, "[2001:db8::53]:53", "2001:db8::53"),
    (Kind::Udp6, "[::ffff:192.0.2.53]:53", "192.0.2.53"),
    (Kind::Udp4, "127.0.0.53:53", "127.0.0.53"),
    (Kind::Udp6, "[::1]:53", "::1"),
];

fn is_v6(resolver: &str) -> bool {
    resolver.contains(':')
}

fn answer_at(port: &DnsPort, resolver: &str) -> Vec<u8> {
    if is_v6(resolver) { port.answer6() } else { port.answer4() }
}

pub(crate) fn a_connected_socket_asks_us_and_hears_the_resolver() {
    for (kind, asked, resolver) in ASKED {
        let cgroup = Cgroup::new();
        let daemon = Daemon::new(&cgroup, &[]);
        let port = daemon.dns_port();
        let client = Client::inside(&cgroup.path);
        let socket = client.socket(kind);
        assert_eq!(daemon.kernel.resolver_of(port.port).unwrap(), None);
        socket.connect(asked).unwrap_or_else(|e| panic!("{asked}: {e}"));
        assert_eq!(daemon.kernel.resolver_of(port.port).unwrap(), Some(resolver.parse().unwrap()));
        assert_eq!(socket.peer(), asked);
        for question in [b"one", b"two"] {
            socket.send(question).unwrap();
            assert_eq!(answer_at(&port, resolver), question, "{asked}");
            let (data, from) = socket.receive();
            assert_eq!((data, from.as_str()), ([question, &b"!"[..]].concat(), asked));
        }
    }
}

pub(crate) fn an_unconnected_socket_asks_us_and_hears_the_resolver() {
    for (kind, asked, resolver) in ASKED {
        let cgroup = Cgroup::new();
        let daemon = Daemon::new(&cgroup, &[]);
        let port = daemon.dns_port();
        let client = Client::inside(&cgroup.path);
        let socket = client.socket(kind);
        for question in [b"one", b"two"] {
            socket.send_to(asked, question).unwrap_or_else(|e| panic!("{asked}: {e}"));
            assert_eq!(answer_at(&port, resolver), question, "{asked}");
            let (data, from) = socket.receive();
            assert_eq!((data, from.as_str()), ([question, &b"!"[..]].concat(), asked));
        }
        assert_eq!(daemon.kernel.resolver_of(port.port).unwrap(), Some(resolver.parse().unwrap()));
        assert_eq!(daemon.counter(Counter::DnsUdp), 2);
    }
}

pub(crate) fn one_socket_asks_several_resolvers_as_musl_does() {
    let cgroup = Cgroup::new();
    let daemon = Daemon::new(&cgroup, &[]);
    let ports = [daemon.dns_port(), daemon.dns_port()];
    let client = Client::inside(&cgroup.path);
    let socket = client.socket(Kind::Udp4);
    let resolvers = ["192.0.2.53:53", "192.0.2.54:53"];
    for resolver in resolvers {
        socket.send_to(resolver, resolver.as_bytes()).unwrap();
    }
    // The second answers first.
    for (port, resolver) in ports.iter().zip(resolvers).rev() {
        assert_eq!(port.answer4(), resolver.as_bytes());
        assert_eq!(socket.receive().1, resolver);
    }
}

pub(crate) fn tcp_questions_have_records() {
    for (kind, asked, resolver, v6_socket) in [
        (Kind::Tcp4, "192.0.2.53:53", "192.0.2.53:53", false),
        (Kind::Tcp6, "[2001:db8::53]:53", "[2001:db8::53]:53", true),
        (Kind::Tcp6, "[::ffff:192.0.2.53]:53", "192.0.2.53:53", true),
        (Kind::Tcp4, "127.0.0.1:53", "127.0.0.1:53", false),
    ] {
        let cgroup = Cgroup::new();
        // A rule does not take a resolver away from its users.
        let daemon = Daemon::new(&cgroup, &["192.0.2.0/24"]);
        let port = daemon.dns_port();
        let client = Client::inside(&cgroup.path);
        let socket = client.socket(kind);
        socket.connect(asked).unwrap_or_else(|e| panic!("{asked}: {e}"));
        let (_stream, flow) = daemon.accept(if is_v6(resolver) && v6_socket && resolver.starts_with('[') {
            &port.tcp6
        } else {
            &port.tcp4
        });
        let flow = flow.expect("a record");
        assert_eq!((flow.purpose, flow.target.to_string().as_str()), (Purpose::Dns, resolver));
        assert_eq!((flow.v6_socket, flow.process.id), (v6_socket, client.pid()));
        assert_eq!(socket.peer(), asked);
        assert_eq!(daemon.counter(Counter::DnsTcp), 1);
        drop(socket);
        let _socket = client.connect(&at("127.0.0.1", port.port)).unwrap();
        assert_eq!(daemon.accept(&port.tcp4).1, None, "who connects there by himself has no record");
    }
}

pub(crate) fn udp_and_tcp_share_the_resolvers_port() {
    let cgroup = Cgroup::new();
    let daemon = Daemon::new(&cgroup, &[]);
    let port = daemon.dns_port();
    let client = Client::inside(&cgroup.path);
    let socket = client.socket(Kind::Udp4);
    socket.send_to("192.0.2.53:53", b"udp").unwrap();
    assert_eq!(port.answer4(), b"udp");
    let _socket = client.connect("192.0.2.53:53").unwrap();
    assert!(daemon.accept(&port.tcp4).1.is_some());
    assert_eq!(daemon.counter(Counter::DnsNoPort), 0);
}

pub(crate) fn without_a_spare_port_questions_go_where_they_were_sent() {
    let cgroup = Cgroup::new();
    let daemon = Daemon::new(&cgroup, &[]);
    let resolver = udp("198.51.100.1:53");
    let client = Client::inside(&cgroup.path);
    let socket = client.socket(Kind::Udp4);
    socket.send_to("198.51.100.1:53", b"direct").unwrap();
    assert_eq!(answer(&resolver), b"direct");
    assert_eq!(socket.receive().1, "198.51.100.1:53");
    assert_eq!(daemon.counter(Counter::DnsNoPort), 1);
    // As soon as there is one, it is used.
    let port = daemon.dns_port();
    socket.send_to("198.51.100.1:53", b"captured").unwrap();
    assert_eq!(port.answer4(), b"captured");
    assert_eq!(socket.receive().1, "198.51.100.1:53");
}

pub(crate) fn a_port_that_is_not_ours_any_more_gets_no_questions() {
    let cgroup = Cgroup::new();
    let daemon = Daemon::new(&cgroup, &[]);
    let port = daemon.dns_port();
    let resolver = udp("198.51.100.1:53");
    let tcp = crate::world::listen("198.51.100.1:53");
    let client = Client::inside(&cgroup.path);
    let socket = client.socket(Kind::Udp4);
    socket.send_to("198.51.100.1:53", b"captured").unwrap();
    port.answer4();
    socket.receive();
    // The daemon's sockets are gone, and somebody takes their port.
    let number = port.port;
    drop(port);
    let squatter = UdpSocket::bind((Ipv4Addr::LOCALHOST, number)).unwrap();
    let squatter_tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, number)).unwrap();
    socket.send_to("198.51.100.1:53", b"direct").unwrap();
    assert_eq!(answer(&resolver), b"direct");
    let _socket = client.connect("198.51.100.1:53").unwrap();
    tcp.accept().expect("it went direct");
    squatter.set_nonblocking(true).unwrap();
    assert!(squatter.recv(&mut [0; 9]).is_err() && is_idle(&squatter_tcp));
    assert_eq!(daemon.counter(Counter::DnsNoListener), 2);
}

pub(crate) fn other_ports_and_link_local_resolvers_are_left_alone() {
    let cgroup = Cgroup::new();
    let daemon = Daemon::new(&cgroup, &[]);
    let _port = daemon.dns_port();
    let client = Client::inside(&cgroup.path);
    let server = udp("198.51.100.1:0");
    let to = server.local_addr().unwrap().to_string();
    let socket = client.socket(Kind::Udp4);
    socket.send_to(&to, b"direct").unwrap();
    answer(&server);
    assert_eq!(socket.receive().1, to);
    // A datagram from loopback that has nothing to do with DNS keeps its sender.
    let local = udp("127.0.0.1:0");
    let to = local.local_addr().unwrap().to_string();
    socket.send_to(&to, b"local").unwrap();
    answer(&local);
    assert_eq!(socket.receive().1, to);
    // Whether there is a way to it is not for us to say: without an interface there is none.
    let socket = client.socket(Kind::Udp6);
    assert!(socket.send_to("[fe80::53]:53", b"?").is_err());
    assert_eq!(daemon.counter(Counter::DnsLinkLocal), 1);
    assert_eq!(daemon.counter(Counter::DnsUdp), 0);
}

pub(crate) fn questions_bound_to_an_interface_are_left_alone() {
    let cgroup = Cgroup::new();
    let daemon = Daemon::new(&cgroup, &[]);
    let port = daemon.dns_port();
    let client = Client::inside(&cgroup.path);
    for kind in [Kind::Udp4, Kind::Tcp4] {
        let socket = client.socket(kind);
        socket.bind_device(DEVICE);
        assert!(socket.connect("192.0.2.53:53").is_err(), "the interface is down");
    }
    assert_eq!(daemon.counter(Counter::DnsBound), 2);
    assert_eq!(daemon.kernel.resolver_of(port.port).unwrap(), None);
}

pub(crate) fn the_daemons_own_questions_are_left_alone() {
    let cgroup = Cgroup::new();
    let daemon = Daemon::unattached(&[]);
    let inside = cgroup.join();
    daemon.attach(&[&cgroup]);
    let _port = daemon.dns_port();
    let resolver = udp("198.51.100.1:53");
    let mine = udp("0.0.0.0:0");
    mine.send_to(b"ours", "198.51.100.1:53").unwrap();
    assert_eq!(answer(&resolver), b"ours");
    mine.connect("198.51.100.1:53").unwrap();
    mine.send(b"connected").unwrap();
    assert_eq!(answer(&resolver), b"connected");
    assert_eq!(daemon.counter(Counter::Own), 2);
    drop(inside);
}

pub(crate) fn another_network_namespace_asks_its_own_resolver() {
    let cgroup = Cgroup::new();
    let daemon = Daemon::new(&cgroup, &[]);
    let _port = daemon.dns_port();
    let apart = Client::new(&Place { cgroup: Some(&cgroup.path), apart: true, ..Place::default() });
    assert_eq!(apart.socket(Kind::Udp4).send_to("192.0.2.53:53", b"?"), Err(libc::ENETUNREACH));
    assert_eq!(daemon.counter(Counter::ForeignNetns), 1);
}

/// Threads on all CPUs ask the same new resolver in the same moment: it gets one port, and no port is lost.
pub(crate) fn racing_questions_agree_on_a_resolvers_port() {
    const ROUNDS: usize = 5;
    let raced = (0..ROUNDS).any(|_| race());
    println!("two CPUs met at a new resolver: {raced}");
}

/// One round; true when two CPUs did meet.
fn race() -> bool {
    const RESOLVERS: u8 = 200;
    const THREADS: usize = 2;
    let cgroup = Cgroup::new();
    let daemon = Daemon::new(&cgroup, &[]);
    // One more than there are resolvers, for the thread that loses the race for the last.
    let ports: Vec<DnsPort> = (0..=RESOLVERS).map(|_| daemon.dns_port()).collect();
    let all: Vec<SocketAddr> = (1..=RESOLVERS).map(|n| SocketAddr::from(([192, 0, 2, n], 53))).collect();
    let client = Client::inside(&cgroup.path);
    client.ask_at_once(&all, THREADS);
    let standing = || -> Vec<_> {
        ports.iter().filter_map(|port| daemon.kernel.resolver_of(port.port).unwrap()).collect()
    };
    let in_order: Vec<_> = all.iter().map(SocketAddr::ip).collect();
    let stood_for: HashSet<_> = standing().into_iter().collect();
    assert_eq!((standing().len(), stood_for), (all.len(), in_order.iter().copied().collect()));
    assert_eq!(daemon.counter(Counter::DnsUdp), u64::from(RESOLVERS) * THREADS as u64);
    // Ports are taken in the order in which they were offered; who lost a race put its port behind the others.
    let raced = standing() != in_order;
    // The one that is left over is still spare.
    let socket = client.socket(Kind::Udp4);
    socket.send_to("198.51.100.2:53", b"?").unwrap();
    assert_eq!((standing().len(), daemon.counter(Counter::DnsNoPort)), (ports.len(), 0));
    assert_eq!(socket.send_to("192.0.2.254:53", b"?"), Err(libc::ENETUNREACH), "now there is none");
    assert_eq!(daemon.counter(Counter::DnsNoPort), 1);
    raced
}

pub(crate) fn the_number_of_a_port_means_nothing_in_another_namespace() {
    let cgroup = Cgroup::new();
    let daemon = Daemon::new(&cgroup, &[]);
    let port = daemon.dns_port();
    let near = Client::inside(&cgroup.path);
    near.socket(Kind::Udp4).send_to("192.0.2.53:53", b"?").unwrap();
    port.answer4();
    let under = ["sh", "-c", "ip link set lo up && exec \"$0\""];
    let far = Client::new(&Place { cgroup: Some(&cgroup.path), apart: true, under: &under });
    let (server, asker) = (far.socket(Kind::Udp4), far.socket(Kind::Udp4));
    let same = at("127.0.0.1", port.port);
    server.bind(&same);
    asker.bind("127.0.0.1:0");
    server.send_to(&asker.local(), b"from a stranger").unwrap();
    assert_eq!(asker.receive(), (b"from a stranger".to_vec(), same.clone()));
    asker.connect(&same).unwrap();
    assert_eq!(asker.peer(), same);
}

pub(crate) fn a_child_and_its_parent_capture_a_question_once() {
    let parent = Cgroup::new();
    let child = parent.child();
    let daemon = Daemon::unattached(&[]);
    daemon.attach(&[&parent, &child]);
    let (port, spare) = (daemon.dns_port(), daemon.dns_port());
    let client = Client::inside(&child.path);
    let socket = client.socket(Kind::Udp4);
    socket.send_to("127.0.0.1:53", b"?").unwrap();
    assert_eq!(port.answer4(), b"?");
    assert_eq!(socket.receive().1, "127.0.0.1:53");
    socket.connect("127.0.0.1:53").unwrap();
    assert_eq!(socket.peer(), "127.0.0.1:53");
    assert_eq!(daemon.kernel.resolver_of(spare.port).unwrap(), None);
    assert_eq!(daemon.counter(Counter::DnsUdp), 2);
    daemon.kernel.mark_listener(spare.udp4.as_fd()).unwrap();
}
