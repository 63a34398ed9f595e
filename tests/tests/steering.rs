//! What is steered, what goes direct and what is refused, from `connect()` to the far server.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tests::ask::{Ask, Transport};
use tests::traffic::{Connect, Family, Order, Report, Serve, Server};
use tests::{Dual, Host, Lab, Tunnel, net};

const SOON: Duration = Duration::from_secs(20);
/// Bytes that each client sends and gets back: more than one frame and one window of credit at first.
const LENGTH: u64 = 300_001;
const FAMILIES: [Family; 3] = [Family::V4, Family::V6, Family::Mapped];

/// What the group of the tests below owns.
const PROXY_HOSTS: [&str; 8] = [
    "echo.corp.example:7001,7010-7012",
    "*.wild.corp.example:7001",
    "10.77.3.30:7002",
    "[fd77:0:0:3::30]:7002",
    "10.77.3.0/24:7003,7020-7021",
    "[fd77:0:0:3::/64]:7003",
    // Reachable without any worker, too: only this port is the worker's.
    "10.77.4.20:443",
    "[fd77:0:0:4::20]:443",
];
const ALLOW: [&str; 4] = [net::SITE_PREFIX4, net::SITE_PREFIX6, "10.77.4.20:443", "[fd77:0:0:4::20]:443"];
/// Addresses that only `/etc/hosts` knows; nobody has them.
const IN_HOSTS: &str = "10.9.9.9 b.wild.corp.example\nfd00:9::9 b.wild.corp.example\n";

/// A tunnel for [`PROXY_HOSTS`] whose names have both families.
fn tunnel(lab: &Lab) -> Result<Tunnel> {
    lab.appliance().set_hosts(&format!("127.0.0.1 localhost\n::1 localhost\n{IN_HOSTS}"))?;
    lab.tunnel_with(PROXY_HOSTS, ALLOW, |config| {
        config.set("steer.families", vec!["ipv4".to_owned(), "ipv6".to_owned()])
    })
}

/// An echo server on each of these ports.
fn echo(host: &Host, at: Dual, ports: &[u16]) -> Result<Vec<Server>> {
    ports.iter().map(|port| host.serve(Serve::Echo, at, *port)).collect()
}

fn only<T: std::fmt::Debug>(list: Vec<T>) -> T {
    assert_eq!(list.len(), 1, "{list:?}");
    list.into_iter().next().expect("one")
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// What `getpeername()` says to a client of this family that asked for `address`.
fn peer(address: IpAddr, family: Family, port: u16) -> SocketAddr {
    match (address, family) {
        (IpAddr::V4(v4), Family::Mapped) => SocketAddr::new(v4.to_ipv6_mapped().into(), port),
        _ => SocketAddr::new(address, port),
    }
}

/// The synthetic addresses of a name.
fn synthetic(status: &Value, name: &str) -> Result<[IpAddr; 2]> {
    let names = status["steer"]["names"].as_array().context("no names")?;
    let found = names
        .iter()
        .find(|entry| entry["name"] == name)
        .with_context(|| format!("no {name} in {names:?}"))?;
    Ok(serde_json::from_value(found["addresses"].clone())?)
}

#[test]
fn names_wildcards_addresses_and_networks_are_steered_over_every_kind_of_socket() -> Result<()> {
    let lab = Lab::new()?;
    let ports = [7001, 7002, 7003, 7010, 7012, 7020];
    let inside = echo(lab.vcenter(), net::ECHO, &ports)?;
    let direct2 = echo(lab.elsewhere(), net::DIRECT2, &[443])?;
    let tunnel = tunnel(&lab)?;
    lab.explain(|| {
        let [hosts4, hosts6]: [IpAddr; 2] = ["10.9.9.9".parse()?, "fd00:9::9".parse()?];
        let (echo4, echo6) = (net::ECHO.v4.to_string(), net::ECHO.v6.to_string());
        let (direct4, direct6) = (net::DIRECT2.v4.to_string(), net::DIRECT2.v6.to_string());
        // Host, port, sockets, and what the client takes the host for; by default a name's synthetic addresses.
        type Case<'a> = (&'a str, u16, &'a [Family], Option<[IpAddr; 2]>);
        let cases: [Case<'_>; 13] = [
            ("echo.corp.example", 7001, &FAMILIES, None),
            ("ECHO.Corp.Example", 7010, &[Family::V4], None),
            ("echo.corp.example", 7012, &[Family::V6], None),
            ("a.wild.corp.example", 7001, &FAMILIES, None),
            ("b.wild.corp.example", 7001, &FAMILIES, Some([hosts4, hosts6])),
            (&echo4, 7002, &[Family::V4, Family::Mapped], Some(net::ECHO.both())),
            (&echo6, 7002, &[Family::V6], Some(net::ECHO.both())),
            (&echo4, 7003, &[Family::V4, Family::Mapped], Some(net::ECHO.both())),
            (&echo4, 7020, &[Family::V4], Some(net::ECHO.both())),
            (&echo6, 7003, &[Family::V6], Some(net::ECHO.both())),
            (&direct4, 443, &[Family::V4, Family::Mapped], Some(net::DIRECT2.both())),
            (&direct6, 443, &[Family::V6], Some(net::DIRECT2.both())),
            // By its name, which is no proxy host: the address is.
            ("direct2.example", 443, &[Family::V4], Some(net::DIRECT2.both())),
        ];
        let mut seed = 0;
        for (host, port, families, addresses) in cases {
            for family in families {
                seed += 1;
                let what = format!("{host}:{port} {family:?}");
                let client = Connect::to(host, port).family(*family).send(LENGTH).seed(seed);
                let report = only(client.captured(lab.appliance())?);
                report.assert_echo(seed, LENGTH, &what);
                let flow = tunnel.appliance.ended_flow(seed, SOON)?;
                let name = host.to_ascii_lowercase();
                let [v4, v6] = match addresses {
                    Some(addresses) => addresses,
                    None => synthetic(&tunnel.appliance.status()?, &name)?,
                };
                let address = if *family == Family::V6 { v6 } else { v4 };
                assert_eq!(report.peer, Some(peer(address, *family, port)), "getpeername: {what}");
                let original = SocketAddr::new(address, port);
                assert_eq!(flow["original"], original.to_string(), "{what}");
                let target = if name.ends_with("corp.example") {
                    format!("{name}:{port}")
                } else {
                    original.to_string()
                };
                assert_eq!(
                    (flow["target"].as_str(), flow["state"].as_str()),
                    (Some(&*target), Some("closed")),
                    "{what}"
                );
                assert_eq!(
                    (number(&flow["bytes_up"]), number(&flow["bytes_down"])),
                    (LENGTH, LENGTH),
                    "{what}"
                );
                assert_eq!(flow["process"]["comm"], "lab-tool", "{what}");
                let dialled: SocketAddr = serde_json::from_value(flow["dialled"].clone())?;
                assert!(
                    dialled.port() == port && (name.ends_with("example") || dialled.ip() == address),
                    "{what}: {flow}"
                );
                let streams = [tunnel.appliance.streams()?, tunnel.worker.streams()?];
                assert_eq!(streams, [seed; 2], "one stream for each connection: {what}");
                let egress = tunnel.worker.ended_flow(seed, SOON)?;
                for same in ["target", "trace", "dialled", "bytes_up", "bytes_down"] {
                    assert_eq!(egress[same], flow[same], "both ends tell the same: {what}");
                }
            }
        }
        // The servers were asked by the worker, from its own addresses.
        let reports = |servers: &[Server]| -> Result<Vec<Report>> {
            Ok(servers.iter().map(Server::reports).collect::<Result<Vec<_>>>()?.concat())
        };
        let (inside, outside) = (reports(&inside)?, reports(&direct2)?);
        assert_eq!((inside.len() + outside.len()) as u64, seed);
        let from = |report: &Report| report.peer.map(|peer| peer.ip());
        assert!(
            inside.iter().all(|r| from(r).is_some_and(|ip| net::SITE_INSIDE.both().contains(&ip))),
            "{inside:?}"
        );
        assert!(
            outside.iter().all(|r| from(r).is_some_and(|ip| net::SITE.both().contains(&ip))),
            "{outside:?}"
        );
        assert!(!lab.appliance_resolver().queries().iter().any(|q| q.name.to_lowercase().contains("corp")));
        Ok(())
    })
}

#[test]
fn children_of_the_captured_cgroup_are_captured_and_nobody_else_is() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = echo(lab.vcenter(), net::ECHO, &[7002])?;
    let tunnel = tunnel(&lab)?;
    lab.explain(|| {
        let host = lab.appliance();
        let child = host.cgroup().child("service")?;
        let by_address = Connect::to(net::ECHO.v4, 7002).send(LENGTH).seed(1);
        let report = only(Report::read(&host.captured_in(&child, by_address.command()?).check()?)?);
        report.assert_echo(1, LENGTH, "in a child");
        let outside = only(by_address.uncaptured(host)?);
        assert_eq!(outside.failure.as_deref(), Some("ENETUNREACH"), "{outside:?}");
        let by_name = only(Connect::to("echo.corp.example", 7001).uncaptured(host)?);
        assert!(
            by_name.failure.as_ref().is_some_and(|f| f.contains("Name or service not known")),
            "{by_name:?}"
        );
        assert_eq!(number(&tunnel.appliance.status()?["flows"]["total"]), 1);
        Ok(())
    })
}

#[test]
fn what_is_no_proxy_host_goes_direct_byte_for_byte_and_opens_no_stream() -> Result<()> {
    let lab = Lab::new()?;
    let direct = echo(lab.elsewhere(), net::DIRECT, &[8000])?;
    let direct2 = echo(lab.elsewhere(), net::DIRECT2, &[8000])?;
    let tunnel = tunnel(&lab)?;
    lab.explain(|| {
        let mut seed = 0;
        for (name, address) in [("direct.example", net::DIRECT), ("direct2.example", net::DIRECT2)] {
            for family in FAMILIES {
                seed += 1;
                let client = Connect::to(name, 8000).family(family).send(LENGTH).seed(seed);
                let report = only(client.captured(lab.appliance())?);
                report.assert_echo(seed, LENGTH, &format!("{name} {family:?}"));
                let [v4, v6] = address.both();
                let asked = if family == Family::V6 { v6 } else { v4 };
                assert_eq!(report.peer, Some(peer(asked, family, 8000)), "{name} {family:?}");
            }
        }
        for server in direct.iter().chain(&direct2) {
            for report in server.wait_for_reports(3, SOON)? {
                let from = report.peer.map(|peer| peer.ip()).context("no peer")?;
                assert!(net::APPLIANCE.both().contains(&from), "it came by another way: {report:?}");
            }
        }
        // A name's address from /etc/hosts exists as far as we know: what no rule names goes there.
        let in_hosts =
            only(Connect::to("b.wild.corp.example", 7099).family(Family::V4).captured(lab.appliance())?);
        assert_eq!(in_hosts.failure.as_deref(), Some("ENETUNREACH"), "the router's answer");

        assert_eq!((tunnel.appliance.streams()?, tunnel.worker.streams()?), (0, 0));
        let status = tunnel.appliance.status()?;
        let counter = |name: &str| number(&status["steer"]["counters"][name]);
        assert_eq!((counter("steered"), counter("direct")), (0, seed + 1));
        assert_eq!(status["flows"]["total"], 0);
        assert_eq!(status["steer"]["refused"], serde_json::json!([]));
        Ok(())
    })
}

#[test]
fn what_a_name_has_no_rule_for_is_refused_in_connect() -> Result<()> {
    const EHOSTUNREACH: u64 = 113;
    let lab = Lab::new()?;
    let tunnel = tunnel(&lab)?;
    lab.explain(|| {
        let host = lab.appliance();
        for family in FAMILIES {
            let report = only(Connect::to("echo.corp.example", 7099).family(family).captured(host)?);
            assert_eq!(report.failure.as_deref(), Some("EHOSTUNREACH"), "{family:?}");
            let status = tunnel.appliance.wait_for_status("the refusal", SOON, |status| {
                status["steer"]["refused"][0]["reason"] == "refused-port"
            })?;
            let [v4, v6] = synthetic(&status, "echo.corp.example")?;
            let target = SocketAddr::new(if family == Family::V6 { v6 } else { v4 }, 7099);
            let refused = &status["steer"]["refused"][0];
            assert_eq!(refused["target"], target.to_string(), "{family:?}: {refused}");
            assert_eq!(
                (refused["name"].as_str(), number(&refused["errno"])),
                (Some("echo.corp.example"), EHOSTUNREACH)
            );
            assert!(
                refused["process"].as_str().is_some_and(|process| process.starts_with("lab-tool[")),
                "{refused}"
            );

            // Only TCP is carried: a datagram would go nowhere, so it fails at once, too.
            for transport in [Transport::Udp, Transport::ConnectedUdp] {
                let to = peer(target.ip(), family, 7001);
                let answer = Ask { to, transport, message: vec![0; 12] }.captured(host)?;
                assert_eq!(answer.failure.as_deref(), Some("EHOSTUNREACH"), "{transport:?} to {to}");
            }
        }
        // Synthetic addresses that no name has.
        for (address, family) in
            [("240.64.200.200", Family::V4), ("240.64.200.200", Family::Mapped), ("2001:2::dead", Family::V6)]
        {
            let report = only(Connect::to(address, 7001).family(family).captured(host)?);
            assert_eq!(report.failure.as_deref(), Some("EHOSTUNREACH"), "{address} {family:?}");
        }
        let status = tunnel.appliance.wait_for_status("all refusals", SOON, |status| {
            status["steer"]["refused"].as_array().is_some_and(|list| list.len() == 3 + 6 + 3)
        })?;
        let counter = |name: &str| number(&status["steer"]["counters"][name]);
        let counts = ["refused-port", "refused-datagram", "refused-stale-synthetic", "steered"].map(counter);
        assert_eq!(counts, [3, 6, 3, 0]);
        assert_eq!((tunnel.appliance.streams()?, number(&status["flows"]["total"])), (0, 0));
        Ok(())
    })
}

#[test]
fn whoever_connects_to_the_forwarder_by_himself_gets_a_reset() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = echo(lab.vcenter(), net::ECHO, &[7001])?;
    let tunnel = tunnel(&lab)?;
    lab.explain(|| {
        let host = lab.appliance();
        // A captured connection was there before: its record must be of no use to anybody else.
        let report = only(Connect::to("echo.corp.example", 7001).send(LENGTH).seed(1).captured(host)?);
        report.assert_echo(1, LENGTH, "captured");
        let status = tunnel.appliance.status()?;
        let listeners: Vec<SocketAddr> = serde_json::from_value(status["steer"]["listeners"].clone())?;
        assert_eq!(listeners.len(), 2, "one for each family");
        let streams = tunnel.appliance.streams()?;
        // Reading comes first: an error is told once, and to whichever of the two asks first.
        let by_oneself = |at: SocketAddr, family: Family, captured: bool| -> Result<Report> {
            let client = Connect::to(at.ip(), at.port()).family(family).send(100).order(Order::ReadFirst);
            Ok(only(if captured { client.captured(host)? } else { client.uncaptured(host)? }))
        };
        let mut count = 0;
        for listener in &listeners {
            let families: &[Family] =
                if listener.is_ipv4() { &[Family::V4, Family::Mapped] } else { &[Family::V6] };
            for family in families {
                for captured in [true, false] {
                    let report = by_oneself(*listener, *family, captured)?;
                    let what = format!("{listener} {family:?} captured: {captured}: {report:?}");
                    assert_eq!(report.failure, None, "{what}");
                    assert_eq!((report.received, report.end.as_str()), (0, "ECONNRESET"), "{what}");
                    count += 1;
                }
            }
        }
        // The same with the ports that stand for resolvers.
        let ports = tunnel.appliance.status()?["steer"]["resolvers"].clone();
        let ports: BTreeMap<String, u16> = serde_json::from_value(ports)?;
        for port in ports.values() {
            for (address, family, captured) in [
                (IpAddr::from(Ipv4Addr::LOCALHOST), Family::V4, true),
                (IpAddr::from(Ipv6Addr::LOCALHOST), Family::V6, false),
            ] {
                let report = by_oneself(SocketAddr::new(address, *port), family, captured)?;
                assert_eq!(
                    (report.received, report.end.as_str()),
                    (0, "ECONNRESET"),
                    "{address}: {report:?}"
                );
            }
        }
        assert!(!ports.is_empty(), "the name was asked for");
        let status = tunnel.appliance.status()?;
        assert_eq!((tunnel.appliance.streams()?, number(&status["flows"]["total"])), (streams, 1));
        let mut logged = 0;
        tunnel.appliance.process().wait_for("a reset for each", SOON, |line| {
            logged += usize::from(line.contains("the kernel did not send here"));
            logged == count
        })?;
        Ok(())
    })
}
