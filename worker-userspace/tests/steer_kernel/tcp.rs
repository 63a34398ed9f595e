//! TCP: who is captured, what the forwarder is told, and what the application sees.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::time::Duration;

use dworker::steer::kernel::{Arrival, Counter, Kernel, Purpose, Reason};

use crate::client::{Client, Kind, Place};
use crate::world::{Cgroup, DEVICE, Daemon, REMOTE4, REMOTE6, at, attached, is_idle, listen, port, run};

pub(crate) fn a_captured_connection_reaches_the_forwarder_with_its_record() {
    let cgroup = Cgroup::new();
    let daemon = Daemon::new(&cgroup, &["203.0.113.9", "198.51.100.1:443"]);
    let client = Client::inside(&cgroup.path);
    let pid = client.pid();
    let socket = client.connect("198.51.100.1:443").unwrap();
    let source = socket.local();
    let (mut stream, flow) = daemon.accept4();
    let flow = flow.expect("a record");
    assert_eq!(flow.target.to_string(), "198.51.100.1:443");
    assert_eq!(flow.purpose, Purpose::Rule { rule: 2, group: 2 });
    assert_eq!((flow.process.id, flow.process.uid), (pid, 0));
    assert!("steer_kernel".starts_with(&flow.process.command[..12]), "{:?}", flow.process);
    assert_eq!(flow.cgroup, cgroup.found().id);
    assert!(!flow.v6_socket);
    assert_eq!(stream.peer_addr().unwrap().to_string(), source);
    assert_eq!(socket.peer(), "198.51.100.1:443", "getpeername() gives the address that was asked for");
    stream.write_all(b"hello").unwrap();
    assert_eq!(socket.read(), b"hello");
    socket.send(b"back").unwrap();
    let mut data = [0; 4];
    stream.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"back");
    assert_eq!(daemon.counter(Counter::Steered), 1);
}

pub(crate) fn only_rules_addresses_and_captured_processes_are_steered() {
    let cgroup = Cgroup::new();
    let (steered, direct) = (listen(&at(REMOTE4, 0)), listen(&at(REMOTE4, 0)));
    let pattern = format!("{REMOTE4}:{}", port(&steered));
    let daemon = Daemon::new(&cgroup, &[&pattern]);
    let inside = Client::inside(&cgroup.path);
    let outside = Client::outside();
    for (client, server) in [(&inside, &direct), (&outside, &steered), (&outside, &direct)] {
        let to = at(REMOTE4, port(server));
        let socket = client.connect(&to).unwrap();
        let (mut stream, _) = server.accept().expect("it went direct");
        assert_eq!(socket.peer(), to);
        stream.write_all(b"direct").unwrap();
        assert_eq!(socket.read(), b"direct");
    }
    assert_eq!(inside.connect("127.0.0.1:1").err(), Some(libc::ECONNREFUSED), "loopback is the host's own");
    assert!(is_idle(&daemon.listener4) && is_idle(&daemon.listener6));
    assert_eq!(daemon.counter(Counter::Direct), 1, "loopback is not even counted");
    assert_eq!(daemon.counter(Counter::Steered), 0);
    let _steered = inside.connect(&pattern).unwrap();
    assert_eq!(daemon.target4(), pattern);
    assert!(is_idle(&steered));
}

pub(crate) fn ipv6_and_v4_mapped_sockets_are_captured_too() {
    let cgroup = Cgroup::new();
    let daemon = Daemon::new(&cgroup, &["198.51.100.0/24:443", "[2001:db8::/32]:443"]);
    let client = Client::inside(&cgroup.path);

    let native = client.socket(Kind::Tcp6);
    native.connect("[2001:db8::7]:443").unwrap();
    let (stream, flow) = daemon.accept6();
    let flow = flow.expect("a record");
    assert_eq!((flow.target.to_string().as_str(), flow.v6_socket), ("[2001:db8::7]:443", true));
    assert_eq!(native.peer(), "[2001:db8::7]:443");
    assert_eq!(native.local(), stream.peer_addr().unwrap().to_string());
    drop(native);

    let mapped = client.socket(Kind::Tcp6);
    mapped.connect("[::ffff:198.51.100.7]:443").unwrap();
    let flow = daemon.accept4().1.expect("a record");
    assert_eq!((flow.target.to_string().as_str(), flow.v6_socket), ("198.51.100.7:443", true));
    assert_eq!(mapped.peer(), "[::ffff:198.51.100.7]:443");
    drop(mapped);

    let elsewhere = client.socket(Kind::Tcp6);
    let server = listen(&at(REMOTE6, 0));
    let to = at(REMOTE6, port(&server));
    elsewhere.connect(&to).unwrap();
    server.accept().expect("a port without a rule goes direct");
    assert_eq!(elsewhere.peer(), to);
}

pub(crate) fn a_record_is_taken_once_and_only_the_kernel_makes_one() {
    let cgroup = Cgroup::new();
    let daemon = Daemon::new(&cgroup, &["198.51.100.1:443"]);
    let client = Client::inside(&cgroup.path);
    let socket = client.connect("198.51.100.1:443").unwrap();
    let (stream, source) = daemon.listener4.accept().unwrap();
    let take = |port| daemon.kernel.take_flow(port, source, stream.as_fd()).unwrap();
    assert_eq!(take(daemon.port6()), Arrival::Foreign, "another listener's");
    assert!(matches!(take(daemon.port4()), Arrival::Captured(_)));
    assert_eq!(take(daemon.port4()), Arrival::Foreign);
    drop((stream, socket));
    for client in [&client, &Client::outside()] {
        let _socket = client.connect(&at("127.0.0.1", daemon.port4())).unwrap();
        assert_eq!(daemon.accept4().1, None, "who connects to the forwarder by himself has no record");
        let _socket = client.connect(&at("::1", daemon.port6())).unwrap();
        assert_eq!(daemon.accept6().1, None);
    }
}

pub(crate) fn a_connection_that_was_reset_before_it_was_accepted_does_not_take_its_ports_next_record() {
    let cgroup = Cgroup::new();
    let daemon = Daemon::new(&cgroup, &["198.51.100.1:443", "198.51.100.2:443"]);
    let client = Client::inside(&cgroup.path);
    let first = client.connect("198.51.100.1:443").unwrap();
    let local = first.local();
    first.disconnect();
    let second = client.socket(Kind::Tcp4);
    second.bind(&local);
    second.connect("198.51.100.2:443").unwrap();
    assert_eq!(second.local(), local);
    let accept = || {
        let (stream, source) = daemon.listener4.accept().unwrap();
        assert_eq!(source.to_string(), local);
        daemon.kernel.take_flow(daemon.port4(), source, stream.as_fd()).unwrap()
    };
    assert_eq!(accept(), Arrival::Gone);
    assert_eq!(accept().captured().expect("a record").target.to_string(), "198.51.100.2:443");
}

pub(crate) fn a_socket_that_was_steered_before_does_not_lie_later() {
    let cgroup = Cgroup::new();
    let daemon = Daemon::new(&cgroup, &["198.51.100.1:443"]);
    let server = listen(&at("198.51.100.2", 0));
    let client = Client::inside(&cgroup.path);
    let socket = client.connect("198.51.100.1:443").unwrap();
    assert_eq!(daemon.target4(), "198.51.100.1:443");

    socket.disconnect();
    let direct = at("198.51.100.2", port(&server));
    socket.connect(&direct).unwrap();
    server.accept().expect("it went direct");
    assert_eq!(socket.peer(), direct);

    // The old record would make this look like a captured connection.
    socket.disconnect();
    let forwarder = at("127.0.0.1", daemon.port4());
    socket.connect(&forwarder).unwrap();
    assert_eq!(daemon.accept4().1, None);
    assert_eq!(socket.peer(), forwarder);

    socket.disconnect();
    socket.connect("198.51.100.1:443").unwrap();
    assert_eq!(daemon.target4(), "198.51.100.1:443");
    assert_eq!(socket.peer(), "198.51.100.1:443");
}

pub(crate) fn a_connect_that_failed_leaves_nothing_that_lies_later() {
    let cgroup = Cgroup::new();
    let daemon = Daemon::new(&cgroup, &["198.51.100.1:443", "203.0.113.1"]);
    let server = listen("127.0.0.1:0");
    let client = Client::inside(&cgroup.path);
    let (first, second) = (client.socket(Kind::Tcp4), client.socket(Kind::Tcp4));
    first.bind("127.0.0.1:0");
    let source = first.local();
    second.bind(&source);
    first.connect("198.51.100.1:443").unwrap();
    // To the kernel both lead from one port to our listener: the second fails after it was steered.
    assert_eq!(second.connect("203.0.113.1:443"), Err(libc::EADDRNOTAVAIL));
    let local = at("127.0.0.1", port(&server));
    second.connect(&local).unwrap();
    assert_eq!(second.peer(), local);
    assert_eq!(daemon.target4(), "198.51.100.1:443", "the record is still the first one's");
}

pub(crate) fn ports_and_nested_prefixes_choose_the_rule() {
    let cgroup = Cgroup::new();
    let daemon = Daemon::new(
        &cgroup,
        &["203.0.113.0/24", "203.0.113.16/28:8000-8010", "203.0.113.17:443,8005", "[2001:db8:1::/48]:443"],
    );
    let client = Client::inside(&cgroup.path);
    for (to, rule) in [
        ("203.0.113.17:443", 3),
        ("203.0.113.17:8005", 3),
        ("203.0.113.17:8006", 2),
        ("203.0.113.17:8000", 2),
        ("203.0.113.17:8010", 2),
        ("203.0.113.17:8011", 1),
        ("203.0.113.18:443", 1),
        ("203.0.113.200:8005", 1),
    ] {
        let socket = client.connect(to).unwrap_or_else(|e| panic!("{to}: {e}"));
        let flow = daemon.accept4().1.expect("a record");
        assert_eq!(
            (flow.target.to_string().as_str(), flow.purpose),
            (to, Purpose::Rule { rule, group: rule as u16 })
        );
        drop(socket);
    }
    let _socket = client.connect("[2001:db8:1::9]:443").unwrap();
    assert_eq!(daemon.accept6().1.expect("a record").purpose, Purpose::Rule { rule: 4, group: 4 });
}

pub(crate) fn what_is_down_fails_in_connect_with_its_own_errno() {
    let cgroup = Cgroup::new();
    let daemon = Daemon::new(&cgroup, &["198.51.100.1", "203.0.113.1"]);
    let client = Client::inside(&cgroup.path);
    let (long, over) = (Duration::from_secs(3600), Duration::ZERO);
    let down =
        |target: &str, errno, time| daemon.kernel.set_down(target.parse().unwrap(), errno, time).unwrap();

    down("198.51.100.1:443", libc::ETIMEDOUT, long);
    assert_eq!(client.connect("198.51.100.1:443").err(), Some(libc::ETIMEDOUT));
    let mapped = client.socket(Kind::Tcp6);
    assert_eq!(
        mapped.connect("[::ffff:198.51.100.1]:443"),
        Err(libc::ETIMEDOUT),
        "v4-mapped is the same target"
    );
    drop(mapped);
    let event = daemon.event();
    assert_eq!((event.reason, event.errno, event.rule), (Reason::Down, Some(libc::ETIMEDOUT), Some(1)));
    assert_eq!((event.target.to_string().as_str(), event.process.id), ("198.51.100.1:443", client.pid()));
    assert_eq!(event.cgroup, cgroup.found().id);
    drop(client.connect("198.51.100.1:444").expect("another port is another target"));
    daemon.target4();
    down("198.51.100.1:443", libc::ETIMEDOUT, over);
    drop(client.connect("198.51.100.1:443").expect("the moment is over"));
    daemon.target4();

    daemon.kernel.set_group_state(2, Some(libc::ENETUNREACH)).unwrap();
    assert_eq!(client.connect("203.0.113.1:443").err(), Some(libc::ENETUNREACH));
    drop(client.connect("198.51.100.1:443").expect("another group is carried"));
    daemon.target4();
    daemon.kernel.set_group_state(2, None).unwrap();
    drop(client.connect("203.0.113.1:443").expect("its worker is back"));
    daemon.target4();
    assert_eq!((daemon.counter(Counter::RefusedDown), daemon.counter(Counter::RefusedGroup)), (2, 1));
    assert!(is_idle(&daemon.listener4), "nothing that was refused came here");
}

pub(crate) fn synthetic_addresses_lead_to_names_and_nowhere_else() {
    let cgroup = Cgroup::new();
    let patterns = ["vc.corp.example:443", "0.0.0.0/0", "::/0"];
    let daemon = Daemon::new(&cgroup, &patterns);
    daemon.name("vc.corp.example", "240.64.0.1", &patterns);
    daemon.name("vc.corp.example", "2001:2::1", &patterns);
    let client = Client::inside(&cgroup.path);
    drop(client.connect("240.64.0.1:443").unwrap());
    let flow = daemon.accept4().1.expect("a record");
    assert_eq!(
        (flow.target.to_string().as_str(), flow.purpose),
        ("240.64.0.1:443", Purpose::Rule { rule: 1, group: 1 })
    );
    drop(client.connect("[2001:2::1]:443").unwrap());
    assert_eq!(daemon.accept6().1.expect("a record").target.to_string(), "[2001:2::1]:443");

    for (to, reason) in [
        ("240.64.0.1:80", Reason::PortNotInRule),
        ("240.64.0.2:443", Reason::StaleSynthetic),
        ("[2001:2::1]:80", Reason::PortNotInRule),
        ("[2001:2::2]:443", Reason::StaleSynthetic),
    ] {
        assert_eq!(client.connect(to).err(), Some(libc::EHOSTUNREACH), "{to}");
        let event = daemon.event();
        assert_eq!((event.reason, event.target.to_string().as_str()), (reason, to));
    }
    for (kind, to) in [
        (Kind::Udp4, "240.64.0.1:443"),
        (Kind::Udp4, "240.64.0.1:53"),
        (Kind::Udp6, "[2001:2::1]:443"),
        (Kind::Udp6, "[::ffff:240.64.0.1]:443"),
    ] {
        let socket = client.socket(kind);
        assert_eq!(socket.connect(to), Err(libc::EHOSTUNREACH), "UDP to {to}");
        assert_eq!(daemon.event().reason, Reason::Datagram);
        assert_eq!(socket.send_to(to, b"?"), Err(libc::EHOSTUNREACH), "UDP to {to}");
        assert_eq!(daemon.event().reason, Reason::Datagram);
    }
    let socket = client.connect("198.51.100.1:443").expect("all else is the wide rule's");
    assert_eq!(socket.peer(), "198.51.100.1:443");
    assert_eq!(daemon.accept4().1.expect("a record").purpose, Purpose::Rule { rule: 2, group: 2 });
}

pub(crate) fn without_our_listener_names_fail_closed_and_addresses_open() {
    let cgroup = Cgroup::new();
    let server = listen(&at(REMOTE4, 0));
    let address = at(REMOTE4, port(&server));
    let patterns = [address.as_str(), "vc.corp.example"];
    let mut daemon = Daemon::new(&cgroup, &patterns);
    daemon.name("vc.corp.example", "240.64.0.1", &patterns);
    let client = Client::inside(&cgroup.path);
    // The daemon hangs, its listener is gone, and somebody takes its port.
    let port4 = daemon.port4();
    daemon.listener4 = listen("127.0.0.1:0");
    let squatter = TcpListener::bind(at("127.0.0.1", port4)).unwrap();

    drop(client.connect(&address).expect("an address fails open"));
    server.accept().expect("it went direct");
    let event = daemon.event();
    assert_eq!((event.reason, event.errno, event.rule), (Reason::FailOpen, None, Some(1)));
    assert_eq!(client.connect("240.64.0.1:443").err(), Some(libc::ECONNREFUSED), "a name fails closed");
    assert_eq!(daemon.event().reason, Reason::NoListener);
    assert!(is_idle(&squatter), "who took our port gets nothing");
    drop(squatter);
    assert_eq!(client.connect("240.64.0.1:443").err(), Some(libc::ECONNREFUSED), "nobody there at all");
}

pub(crate) fn a_bound_source_address_is_kept() {
    let cgroup = Cgroup::new();
    let daemon = Daemon::new(&cgroup, &["203.0.113.1", "2001:db8:1::1"]);
    let client = Client::inside(&cgroup.path);
    for (kind, source, to) in [
        (Kind::Tcp4, "198.51.100.2:0", "203.0.113.1:443"),
        (Kind::Tcp6, "[2001:db8::1]:0", "[2001:db8:1::1]:443"),
        (Kind::Tcp6, "[::ffff:198.51.100.2]:0", "[::ffff:203.0.113.1]:443"),
    ] {
        let socket = client.socket(kind);
        socket.bind(source);
        socket.connect(to).unwrap_or_else(|e| panic!("{source} to {to}: {e}"));
        let listener = if to.contains("db8") { &daemon.listener6 } else { &daemon.listener4 };
        let (_, flow) = daemon.accept(listener);
        assert!(flow.is_some(), "{source} to {to} has no record");
        assert_eq!(socket.peer(), to);
    }
}

pub(crate) fn a_socket_bound_to_an_interface_is_not_sent_to_loopback() {
    let cgroup = Cgroup::new();
    let patterns = ["203.0.113.1", "vc.corp.example"];
    let daemon = Daemon::new(&cgroup, &patterns);
    daemon.name("vc.corp.example", "240.64.0.1", &patterns);
    let client = Client::inside(&cgroup.path);
    let bound = |device, to| {
        let socket = client.socket(Kind::Tcp4);
        socket.bind_device(device);
        socket.connect(to)
    };
    assert_eq!(bound(DEVICE, "240.64.0.1:443"), Err(libc::ENETUNREACH), "a name has nowhere to go");
    assert_eq!(daemon.event().reason, Reason::Bound);
    assert!(
        bound(DEVICE, "203.0.113.1:443").is_err(),
        "an address goes where the interface leads: it is down"
    );
    assert_eq!(daemon.event().reason, Reason::FailOpen);
    assert!(is_idle(&daemon.listener4));
    bound("lo", "203.0.113.1:443").expect("loopback itself is fine");
    assert_eq!(daemon.target4(), "203.0.113.1:443");
}

pub(crate) fn fast_open_carries_data_in_the_first_packet() {
    let cgroup = Cgroup::new();
    let daemon = Daemon::new(&cgroup, &["198.51.100.1:443"]);
    let client = Client::inside(&cgroup.path);
    let socket = client.socket(Kind::Tcp4);
    socket.fast_open("198.51.100.1:443", b"early").unwrap();
    let (mut stream, flow) = daemon.accept4();
    assert_eq!(flow.expect("a record").target.to_string(), "198.51.100.1:443");
    let mut data = [0; 5];
    stream.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"early");
    assert_eq!(socket.peer(), "198.51.100.1:443");
}

pub(crate) fn multipath_sockets_are_captured_like_others() {
    let cgroup = Cgroup::new();
    let patterns = ["198.51.100.1:443", "2001:db8:1::1"];
    let daemon = Daemon::new(&cgroup, &patterns);
    let client = Client::inside(&cgroup.path);
    for (kind, to) in [
        (Kind::Mptcp4, "198.51.100.1:443"),
        (Kind::Mptcp6, "[2001:db8:1::1]:443"),
        (Kind::Mptcp6, "[::ffff:198.51.100.1]:443"),
    ] {
        let socket = client.socket(kind);
        socket.connect(to).unwrap_or_else(|e| panic!("{to}: {e}"));
        let listener = if to.contains("db8") { &daemon.listener6 } else { &daemon.listener4 };
        let (mut stream, flow) = daemon.accept(listener);
        let target = flow.expect("a record").target;
        assert!(to.ends_with(&target.to_string()) || to.contains("198.51.100.1"), "{target}");
        assert_eq!(socket.peer(), to);
        stream.write_all(b"hello").unwrap();
        assert_eq!(socket.read(), b"hello");
    }
    assert_eq!(daemon.counter(Counter::Mptcp), 3);
    assert_eq!(daemon.counter(Counter::Steered), 3);
}

pub(crate) fn another_network_namespace_is_left_alone() {
    let cgroup = Cgroup::new();
    let patterns = ["198.51.100.1:443", "vc.corp.example"];
    let daemon = Daemon::new(&cgroup, &patterns);
    daemon.name("vc.corp.example", "240.64.0.1", &patterns);
    daemon.kernel.set_group_state(1, Some(libc::ETIMEDOUT)).unwrap();
    let apart = Client::new(&Place { cgroup: Some(&cgroup.path), apart: true, ..Place::default() });
    // There is no route in there; whatever else came back would be our doing.
    for to in ["198.51.100.1:443", "240.64.0.1:443"] {
        assert_eq!(apart.connect(to).err(), Some(libc::ENETUNREACH), "{to}");
    }
    assert_eq!(daemon.counter(Counter::ForeignNetns), 2);
    assert_eq!(daemon.counter(Counter::RefusedGroup), 0);
}

pub(crate) fn a_connection_seen_by_a_child_and_its_parent_is_steered_once() {
    let parent = Cgroup::new();
    let child = parent.child();
    let daemon = Daemon::unattached(&["198.51.100.1:443"]);
    daemon.attach(&[&parent, &child]);
    let client = Client::inside(&child.path);
    let socket = client.connect("198.51.100.1:443").unwrap();
    let (_stream, flow) = daemon.accept4();
    assert_eq!(flow.expect("a record").target.to_string(), "198.51.100.1:443");
    assert_eq!(socket.peer(), "198.51.100.1:443");
    assert_eq!(daemon.counter(Counter::Steered), 1);
    assert_eq!(attached(&child.path).len(), 9);
    assert_eq!(attached(&parent.path).len(), 9);
    drop(socket);
    // Two daemons, one in charge of each: the inner one's rules go first.
    let outer = Daemon::new(&parent, &["198.51.100.1"]);
    let _socket = client.connect("198.51.100.1:443").unwrap();
    assert_eq!(daemon.target4(), "198.51.100.1:443");
    assert!(is_idle(&outer.listener4));
    let _socket = client.connect("198.51.100.1:444").unwrap();
    assert_eq!(outer.target4(), "198.51.100.1:444");
}

pub(crate) fn the_daemons_own_connections_are_left_alone() {
    let cgroup = Cgroup::new();
    let server = listen(&at(REMOTE4, 0));
    let target = at(REMOTE4, port(&server));
    let daemon = Daemon::unattached(&[&target]);
    // Moves this process, the daemon, into the cgroup that it captures, as an administrator may.
    let inside = cgroup.join();
    daemon.attach(&[&cgroup]);
    let mine = std::net::TcpStream::connect(&target).unwrap();
    server.accept().expect("our own connection went direct");
    assert_eq!(mine.peer_addr().unwrap().to_string(), target);
    assert_eq!(daemon.counter(Counter::Own), 1);
    let client = Client::inside(&cgroup.path);
    let _socket = client.connect(&target).unwrap();
    assert_eq!(daemon.target4(), target, "everybody else's is steered");
    drop(inside);
    assert!(run("cat", &["/proc/self/cgroup"]).lines().any(|line| line.starts_with("0::")));
}
