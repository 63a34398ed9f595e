//! Who is at the other end of a websocket is trusted with nothing: not without a key, and not with one.

mod peer;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::BytesMut;
use dworker::tunnel::frame::Type;
use dworker::tunnel::message::{Open, OpenOk};
use serde_json::Value;
use tests::traffic::{Connect, Order, Report, Serve};
use tests::{Bytes, Config, Daemon, Dual, Group, Lab, Process, Signal, net, worker_key};

use peer::{Peer, frame, tcp, wait_for_end};

const SOON: Duration = Duration::from_secs(30);
const ECHO: &str = "echo.corp.example";
const ROGUE: &str = "rogue.corp.example";
/// A transfer that takes a while.
const LARGE: u64 = 16 << 20;

#[test]
fn without_the_key_a_websocket_gets_401_and_no_more() -> Result<()> {
    let lab = Lab::new()?;
    let tunnel = lab.tunnel([ECHO], [ECHO])?;
    lab.explain(|| {
        let key = &tunnel.group.key;
        let other_case: String = key
            .chars()
            .map(|c| if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() })
            .collect();
        let wrong = worker_key()?;
        let authorizations = [
            String::new(),
            format!("Authorization: Bearer {wrong}\r\n"),
            format!("Authorization: Bearer {other_case}\r\n"),
            format!("Authorization: Bearer {}\r\n", &key[..key.len() - 1]),
            format!("Authorization: Bearer {}\r\n", tunnel.group.key_sha256()),
            format!("Authorization: Basic {key}\r\n"),
            format!("X-Worker-Key: {key}\r\n"),
            "Authorization: Bearer \r\n".into(),
        ];
        for authorization in &authorizations {
            let mut peer = Peer::secured(&lab)?;
            let address = peer.address();
            peer.request("/tunnel/v1", authorization)?;
            let answer = peer.last_words()?;
            let (head, body) = answer.split_once("\r\n\r\n").context("no whole answer")?;
            let (status, headers) = head.split_once("\r\n").unwrap_or((head, ""));
            assert_eq!((status, body), ("HTTP/1.1 401 Unauthorized", ""), "{authorization}");
            let names: Vec<_> = headers.lines().filter_map(|line| line.split(':').next()).collect();
            assert_eq!(names, ["connection", "content-length", "date"], "it says more: {headers}");
            let line = format!("no group has its key (401) peer={address}");
            tunnel.appliance.wait_for_line(&line, SOON)?;
        }

        // The program itself says what is wrong.
        let stranger = Group { key: wrong.clone(), ..tunnel.group.clone() };
        let config = Config::new().worker(&stranger, lab.pki().ca_file(), [ECHO]);
        let stranger = lab.site().daemon("stranger", config)?;
        let refused = |status: &Value| {
            let problem = status["worker"]["problem"].as_str().unwrap_or_default();
            status["worker"]["connected"] == false
                && problem.contains("401")
                && problem.contains("worker_key")
        };
        stranger.wait_for_status("the reason", SOON, refused)?;
        stranger.wait_for_line("not connected: the appliance refused `worker_key` (401)", SOON)?;

        let status = tunnel.appliance.status()?;
        let nodes = status["appliance"]["groups"][0]["nodes"].as_array().map(Vec::len);
        assert_eq!(nodes, Some(1), "only the worker is there: {status:#}");
        for daemon in [&tunnel.appliance, &tunnel.worker, &stranger] {
            let said = daemon.log() + &daemon.status()?.to_string();
            for secret in [key, &wrong, &tunnel.group.key_sha256()] {
                assert!(!said.contains(secret.as_str()), "{} tells a key", daemon.name());
            }
        }
        Ok(())
    })
}

#[test]
fn the_worker_alone_decides_what_it_dials() -> Result<()> {
    let lab = Lab::new()?;
    let tunnel = lab.tunnel_of(
        ["*.corp.example", net::SITE_PREFIX4],
        ["*.corp.example:7", "10.77.3.30:7-8"],
        |config| config,
        |config| config.set("egress.deny", vec!["10.77.3.10"]),
    )?;
    lab.explain(|| {
        // Names of the site that lead where the worker must not go.
        lab.site_resolver().add(
            "host-record=self.corp.example,127.0.0.1\n\
             host-record=metadata.corp.example,169.254.169.254\n\
             host-record=alias.corp.example,10.77.3.10\n",
        )?;
        let own = Dual { v4: Ipv4Addr::LOCALHOST, v6: Ipv6Addr::LOCALHOST };
        let forbidden = [
            lab.site().serve(Serve::Echo, own, 7)?,
            lab.vcenter().serve(Serve::Echo, net::VCENTER, 7)?,
            lab.vcenter().serve(Serve::Echo, net::ECHO, 9)?,
        ];
        let _allowed = [7, 8].map(|port| lab.vcenter().serve(Serve::Echo, net::ECHO, port));
        let special = |what: &str| {
            format!(
                "{what}: where it is meant, name this address (not a name for it, and no network around it) in \
                 `egress.allow` of the worker's own file"
            )
        };
        let loopback = special("127.0.0.1 is loopback");
        let metadata = special("169.254.169.254 is link-local, where cloud metadata lives");
        for (host, port, reason) in [
            ("self.corp.example", 7, loopback.as_str()),
            ("metadata.corp.example", 7, &metadata),
            ("alias.corp.example", 7, "10.77.3.10:7 is denied by `10.77.3.10` in egress.deny"),
            ("vc4only.corp.example", 7, "10.77.3.10:7 is denied by `10.77.3.10` in egress.deny"),
            (ECHO, 9, "echo.corp.example has the address 10.77.3.30; neither is in egress.allow"),
            ("10.77.3.30", 9, "10.77.3.30:9 is not in egress.allow"),
            ("10.77.3.10", 7, "10.77.3.10:7 is denied by `10.77.3.10` in egress.deny"),
        ] {
            let report = Connect::to(host, port).once(lab.appliance())?;
            assert_eq!((report.failure, report.end.as_str()), (None, "ECONNRESET"), "{host}:{port}");
            for daemon in [&tunnel.appliance, &tunnel.worker] {
                let flow = daemon.wait_for_flow(&format!("{host}:{port}"), "denied", SOON)?;
                assert_eq!(flow["reason"], reason, "{flow:#}");
            }
        }
        for server in &forbidden {
            assert_eq!(server.accepted(), 0, "the worker dialled what it may not");
        }
        for (host, port) in [(ECHO, 7), ("10.77.3.30", 8)] {
            Connect::to(host, port).send(1000).once(lab.appliance())?.assert_echo(1, 1000, host);
        }
        Ok(())
    })
}

/// An appliance with a worker that does its work, and a group of which the peers here have the key.
struct Neighbours {
    appliance: Daemon,
    worker: Daemon,
    site: Group,
    rogue: Group,
    /// A transfer that is held up by its reader.
    held: Process,
    /// A transfer that never rests.
    busy: Process,
    _servers: [tests::traffic::Server; 3],
}

impl Neighbours {
    fn start(lab: &Lab) -> Result<Neighbours> {
        let site = Group::new("site-a", [ECHO])?;
        let rogue = Group::new("rogues", [ROGUE])?;
        let config = Config::new()
            .appliance(&lab.appliance_identity()?, &[&site, &rogue])
            .steer(&[lab.appliance().cgroup()])
            // Of strangers, who have no session yet, only this level tells.
            .set("log", "dworker=debug,info");
        let appliance = lab.appliance().daemon("appliance", config)?;
        let worker = lab.site().daemon("worker", Config::new().worker(&site, lab.pki().ca_file(), [ECHO]))?;
        appliance.wait_for_group("site-a", SOON)?;
        let servers = [
            lab.vcenter().serve(Serve::Echo, net::ECHO, 7)?,
            lab.vcenter().serve(Serve::Source { seed: 3, length: LARGE }, net::ECHO, 4)?,
            lab.vcenter().serve(Serve::Hash, net::ECHO, 1)?,
        ];
        let spawn = |connect: Connect| lab.appliance().captured(connect.command()?).spawn();
        let held = spawn(Connect::to(ECHO, 4).order(Order::ReadFirst).stall())?;
        held.wait_for_line("stalled", SOON)?;
        let busy = spawn(Connect::to(ECHO, 1).send(1 << 40).order(Order::SendFirst))?;
        appliance.wait_for_flow(&format!("{ECHO}:1"), "open", SOON)?;
        Ok(Neighbours { appliance, worker, site, rogue, held, busy, _servers: servers })
    }

    /// The busy transfer goes on, and a new connection works.
    fn assert_undisturbed(&self, lab: &Lab, by: &str) -> Result<()> {
        let target = format!("{ECHO}:1");
        let sent = self.appliance.flow(&target)?["bytes_up"].as_u64();
        let goes_on = |status: &Value| {
            let flows = status["flows"]["recent"].as_array();
            let busy = flows.and_then(|flows| flows.iter().find(|flow| flow["target"] == *target));
            busy.is_some_and(|flow| flow["state"] == "open" && flow["bytes_up"].as_u64() > sent)
        };
        self.appliance.wait_for_status(&format!("a busy neighbour beside {by}"), SOON, goes_on)?;
        Connect::to(ECHO, 7).send(1000).once(lab.appliance())?.assert_echo(1, 1000, by);
        Ok(())
    }

    /// After all of it: every byte is there, and the worker never lost a lane.
    fn finish(mut self) -> Result<()> {
        self.held.signal(Signal::SIGUSR1)?;
        assert!(self.held.wait(SOON)?.success());
        let report = &Report::read(&self.held.stdout())?[0];
        assert_eq!((report.received, report.end.as_str()), (LARGE, "eof"), "{report:?}");
        assert_eq!(report.received_sha256, Bytes::new(3, LARGE).sha256());
        assert!(self.busy.is_running());
        let log = self.worker.log();
        assert!(!log.contains("disconnected"), "{log}");
        let log = self.appliance.log();
        assert!(!log.contains("this is a bug") && !log.contains("panicked"), "{log}");
        Ok(())
    }

    /// Waits until the appliance's log tells of this peer's end, with this reason.
    fn wait_for_reason(&self, peer: SocketAddr, reason: &str) -> Result<()> {
        let address = format!("peer={peer}");
        let tells = |line: &str| line.contains(&address) && line.contains(reason);
        self.appliance.process().wait_for(&format!("{reason} {address}"), SOON, tells).map(drop)
    }
}

/// A peer's fault: what it sends as messages of frames, and what it hears and the log says of it.
struct Fault {
    says: &'static str,
    messages: Vec<Vec<u8>>,
}

fn fault(says: &'static str, messages: impl Into<Vec<Vec<u8>>>) -> Fault {
    Fault { says, messages: messages.into() }
}

fn open(id: u32, host: &str) -> Result<Vec<u8>> {
    let target = dworker::target::Target { host: host.parse()?, port: 7 };
    let open = Open { target, deadline: Duration::from_secs(5), credit: 1, trace: 7 };
    let mut payload = BytesMut::new();
    open.write(&mut payload);
    Ok(frame(id, Type::Open as u8, &payload))
}

/// Faults of frames: malformed, oversized, unknown, out of order.
fn faults() -> Result<Vec<Fault>> {
    let kind = |kind: Type| kind as u8;
    // The name's field, and a name that would draw in a terminal.
    let mut bad_name = open(1, ECHO)?;
    let at = bad_name.windows(4).position(|bytes| bytes == b"echo").context("no name")?;
    bad_name[at] = 0x1b;
    let header_only = |length: u32, kind: u8| {
        let mut header = frame(1, kind, b"");
        header[5..].copy_from_slice(&length.to_be_bytes()[1..]);
        header
    };
    Ok(vec![
        fault("frame of unknown type 77", [frame(1, 77, b"")]),
        fault("frame of unknown type 0", [frame(1, 0, b"")]),
        fault("a websocket message ended within a frame", [vec![0; 3]]),
        fault("a websocket message ended within a frame", [header_only(100, kind(Type::Data))]),
        fault("OPEN without its field", [frame(1, kind(Type::Open), b"")]),
        fault("OPEN with a torn field", [frame(1, kind(Type::Open), b"x")]),
        fault("OPEN with a malformed field 1", [bad_name]),
        fault("OPEN with stream id 2, which is not the peer's next", [open(2, ECHO)?]),
        fault("OPEN with stream id 1, which is not the peer's next", [open(1, ECHO)?, open(1, ECHO)?]),
        fault("Hello on a lane that is up", [frame(0, kind(Type::Hello), b"")]),
        fault("Credit frame of 5 bytes; it has 8", [frame(1, kind(Type::Credit), b"short")]),
        fault("Data frame with stream id 0", [frame(0, kind(Type::Data), b"x")]),
        fault("Ping frame with stream id 9", [frame(9, kind(Type::Ping), &[0; 8])]),
        fault("Data for stream 4, which was never opened", [frame(4, kind(Type::Data), b"x")]),
        fault("Reset for stream 7, which was never opened", [frame(7, kind(Type::Reset), b"")]),
        fault("Open frame of 5000 bytes; the limit is 4096", [frame(1, kind(Type::Open), &[0; 5000])]),
        fault("Data frame of 16777215 bytes", [header_only(0xff_ffff, kind(Type::Data))]),
        fault("GOAWAY without its field", [frame(0, kind(Type::GoAway), b"")]),
    ])
}

/// Faults below frames, as bytes on the connection.
const WEBSOCKET_FAULTS: [(&str, &[u8]); 8] = [
    ("not masked by the client", &[0x82, 1, 0]),
    ("reserved bits set", &[0xf2, 0x81, 0, 0, 0, 0, 0]),
    ("opcode 1; only binary messages", &[0x81, 0x81, 0, 0, 0, 0, b'x']),
    ("opcode 3; only binary messages", &[0x83, 0x80, 0, 0, 0, 0]),
    ("fragments out of order", &[0x80, 0x80, 0, 0, 0, 0]),
    ("fragmented or longer than 125 bytes", &[0x89, 0xfe, 0, 126, 0, 0, 0, 0]),
    ("fragmented or longer than 125 bytes", &[0x09, 0x80, 0, 0, 0, 0]),
    ("message of more than 262144 bytes", &[0x82, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
];

#[test]
fn a_peer_that_breaks_the_rules_loses_its_session_and_neighbours_notice_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let neighbours = Neighbours::start(&lab)?;
    lab.explain(|| {
        let mut node = 0;
        let mut greeted = |keys: &Group| {
            node += 1;
            Peer::greeted(&lab, &keys.key, node, 0)
        };
        // With the key of a group of its own, and with that of the good worker's.
        let keys = [&neighbours.rogue, &neighbours.site];
        let lost = |peer: Peer, says: &str| -> Result<()> {
            let address = peer.address();
            let said = peer.last_words()?;
            assert!(said.contains(says), "the peer is not told {says:?} but {said:?}");
            neighbours.wait_for_reason(address, "a worker's lane is down: protocol error: ")?;
            neighbours.wait_for_reason(address, says)
        };
        for (Fault { says, messages }, keys) in faults()?.into_iter().zip(keys.into_iter().cycle()) {
            let mut peer = greeted(keys)?;
            for message in messages {
                peer.message(&message)?;
            }
            lost(peer, says)?;
        }
        neighbours.assert_undisturbed(&lab, "malformed frames")?;
        for ((says, bytes), keys) in WEBSOCKET_FAULTS.into_iter().zip(keys.into_iter().cycle()) {
            let mut peer = greeted(keys)?;
            peer.raw(bytes)?;
            lost(peer, says)?;
        }
        neighbours.assert_undisturbed(&lab, "malformed websockets")?;

        // What a newer version may say is skipped: the lane lives, and answers.
        let mut peer = greeted(&neighbours.rogue)?;
        let mut message = frame(0, 0x80, &[7; 5000]);
        message.extend(frame(5, 0xff, b""));
        message.extend(frame(0, Type::Ping as u8, &[9; 8]));
        peer.message(&message)?;
        assert_eq!(&peer.wait_for(Type::Pong)?.1[..], [9; 8]);
        drop(peer);

        beyond_credit(&lab, &neighbours, greeted(&neighbours.rogue)?, &lost)?;
        neighbours.assert_undisturbed(&lab, "a peer beyond its credit")?;
        behind_the_end(&lab, &neighbours, greeted(&neighbours.rogue)?, &lost)?;
        asks_and_never_listens(&lab, &neighbours, greeted(&neighbours.rogue)?)?;
        neighbours.assert_undisturbed(&lab, "a peer that never listens")?;

        let gone = |status: &Value| {
            let nodes = |group: usize| status["appliance"]["groups"][group]["nodes"].as_array().map(Vec::len);
            (nodes(0), nodes(1)) == (Some(1), Some(0))
        };
        neighbours.appliance.wait_for_status("no peer left", SOON, gone)?;
        Ok(())
    })?;
    lab.explain(|| neighbours.finish())
}

type Lost<'a> = &'a dyn Fn(Peer, &str) -> Result<()>;

/// An application connects to the peer's target; the peer accepts.
fn accept(lab: &Lab, peer: &mut Peer, connect: Connect) -> Result<(Process, u32)> {
    let client = lab.appliance().captured(connect.command()?).spawn()?;
    let (header, payload) = peer.wait_for(Type::Open)?;
    assert_eq!(Open::read(&payload)?.target.to_string(), format!("{ROGUE}:7"));
    let ok = OpenOk { address: "10.77.3.30:7".parse()?, dial: Duration::from_millis(1), proxied: false };
    let mut payload = BytesMut::new();
    ok.write(&mut payload);
    peer.message(&frame(header.stream, Type::OpenOk as u8, &payload))?;
    Ok((client, header.stream))
}

/// The application reads nothing, and the peer sends without end.
fn beyond_credit(lab: &Lab, neighbours: &Neighbours, mut peer: Peer, lost: Lost<'_>) -> Result<()> {
    neighbours.appliance.wait_for_group("rogues", SOON)?;
    let (mut client, stream) = accept(lab, &mut peer, Connect::to(ROGUE, 7).order(Order::ReadFirst).stall())?;
    let data = frame(stream, Type::Data as u8, &[7; 60_000]);
    let mut sent = 0u64;
    while peer.message(&data).is_ok() {
        sent += 60_000;
        assert!(sent < 1 << 30, "a gibibyte was taken for an application that reads nothing");
    }
    lost(peer, "bytes beyond the stream's credit")?;
    client.signal(Signal::SIGUSR1)?;
    assert!(client.wait(SOON)?.success());
    let report = &Report::read(&client.stdout())?[0];
    assert_eq!(report.end, "ECONNRESET", "{report:?}");
    neighbours.appliance.wait_for_flow(&format!("{ROGUE}:7"), "tunnel-lost", SOON).map(drop)
}

/// The peer sends bytes behind its FIN.
fn behind_the_end(lab: &Lab, neighbours: &Neighbours, mut peer: Peer, lost: Lost<'_>) -> Result<()> {
    neighbours.appliance.wait_for_group("rogues", SOON)?;
    let (mut client, stream) =
        accept(lab, &mut peer, Connect::to(ROGUE, 7).order(Order::SendFirst).send(1 << 40))?;
    peer.message(&[frame(stream, Type::Fin as u8, b""), frame(stream, Type::Data as u8, b"x")].concat())?;
    lost(peer, "bytes behind the FIN of their stream")?;
    assert!(client.wait(SOON)?.success());
    let report = &Report::read(&client.stdout())?[0];
    assert!(report.send_failure.is_some(), "{report:?}");
    Ok(())
}

/// The peer wants answer upon answer and takes none: it is given up, and what it is owed is bounded.
fn asks_and_never_listens(lab: &Lab, neighbours: &Neighbours, mut peer: Peer) -> Result<()> {
    let before = memory(&neighbours.appliance)?;
    let address = peer.address();
    let mut ping = vec![0x89, 0xfd, 0, 0, 0, 0];
    ping.extend([7; 125]);
    let pings = ping.repeat(500);
    let started = Instant::now();
    while peer.raw(&pings).is_ok() {
        assert!(started.elapsed() < SOON, "it is answered for ever");
    }
    neighbours.wait_for_reason(address, "reads no pongs")?;
    let after = memory(&neighbours.appliance)?;
    assert!(after < before + (64 << 20), "{before} bytes before, {after} after");
    neighbours.assert_undisturbed(lab, "pings")
}

/// Bytes of memory that a daemon has in use.
fn memory(daemon: &Daemon) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.process().pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

#[test]
fn a_peer_that_says_nothing_or_nonsense_is_let_go_and_neighbours_notice_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let neighbours = Neighbours::start(&lab)?;
    let silent = |what: &str, begin: &(dyn Fn() -> Result<Peer> + Sync), reason: &str| -> Result<()> {
        let peer = begin().with_context(|| what.to_owned())?;
        let (address, started) = (peer.address(), Instant::now());
        let said = peer.last_words().with_context(|| what.to_owned())?;
        let took = started.elapsed();
        assert!(took > Duration::from_secs(3), "{what}: no time was given: {said:?}");
        assert!(took < Duration::from_secs(20), "{what}: kept for {took:?}");
        neighbours.wait_for_reason(address, reason)
    };
    lab.explain(|| {
        let key = &neighbours.rogue.key;
        let half = || {
            let mut peer = Peer::secured(&lab)?;
            peer.raw(b"GET /tunnel/v1 HTTP/1.1\r\nHost: appl")?;
            Ok(peer)
        };
        let half_hello = || {
            let mut peer = Peer::upgraded(&lab, key)?;
            peer.raw(&[0x82, 0xfe, 0, 100, 0, 0, 0, 0, 0])?;
            Ok(peer)
        };
        let greeting = "a worker's greeting failed: the greeting took longer than 5s";
        // All at once: each takes its five seconds.
        thread::scope(|scope| {
            let waiting = [
                scope.spawn(|| {
                    let tcp = tcp(&lab)?;
                    let address = tcp.local_addr()?;
                    wait_for_end(tcp)?;
                    neighbours.wait_for_reason(address, "timed out")
                }),
                scope.spawn(|| silent("nothing after TLS", &|| Peer::secured(&lab), "timeout")),
                scope.spawn(|| silent("half a request", &half, "timeout")),
                scope.spawn(|| silent("nothing after the upgrade", &|| Peer::upgraded(&lab, key), greeting)),
                scope.spawn(|| silent("half a greeting", &half_hello, greeting)),
                scope.spawn(|| {
                    let reason = "a worker's lane is down: nothing heard of the peer for 5.";
                    silent("nothing after WELCOME", &|| Peer::greeted(&lab, key, 1, 0), reason)
                }),
            ];
            waiting.into_iter().try_for_each(|thread| thread.join().expect("a peer panicked"))
        })?;
        neighbours.assert_undisturbed(&lab, "silent peers")?;

        // Nonsense instead of a greeting, each with what the log says of it.
        let mut torn = BytesMut::new();
        torn.extend_from_slice(&frame(0, Type::Hello as u8, b"x"));
        for (says, message) in [
            ("protocol error in the greeting: Data instead", frame(1, Type::Data as u8, b"x")),
            ("protocol error in the greeting: Open instead", open(1, ECHO)?),
            (
                "protocol error in the greeting: HELLO or WELCOME without its field",
                frame(0, Type::Hello as u8, b""),
            ),
            ("protocol error in the greeting: HELLO or WELCOME with a torn field", torn.to_vec()),
            ("protocol error in the greeting: frame of unknown type 99", frame(0, 99, b"")),
            ("protocol error in the greeting: a websocket message ended", vec![0; 5]),
        ] {
            let mut peer = Peer::upgraded(&lab, key)?;
            let address = peer.address();
            peer.message(&message)?;
            peer.last_words()?;
            neighbours.wait_for_reason(address, says)?;
        }

        // More lanes than a session may have. At once, because none of them says a word any more.
        let lab = &lab;
        let _lanes: Vec<Peer> = thread::scope(|scope| {
            let opening: Vec<_> =
                (0..16).map(|lane| scope.spawn(move || Peer::greeted(lab, key, 9, lane))).collect();
            opening.into_iter().map(|thread| thread.join().expect("a peer panicked")).collect::<Result<_>>()
        })?;
        let all_up = |status: &Value| {
            let lanes = status["appliance"]["groups"][1]["nodes"][0]["lanes"].as_array();
            lanes.map(Vec::len) == Some(16)
        };
        neighbours.appliance.wait_for_status("16 lanes", SOON, all_up)?;
        let last = Peer::greeted(lab, key, 9, 16)?;
        let address = last.address();
        let said = last.last_words()?;
        assert!(said.contains("a session has at most 16 lanes"), "{said:?}");
        neighbours.wait_for_reason(address, "refused a lane: limit: a session has at most 16 lanes")?;
        neighbours.assert_undisturbed(lab, "nonsense")
    })?;
    lab.explain(|| neighbours.finish())
}
