//! What a captured connection carries: every byte, each direction to its own end, many at once, and none that
//! waits for another.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use tests::traffic::{Connect, Order, Report, Serve};
use tests::{Bytes, Daemon, Lab, PathSettings, Signal, Tunnel, net};

const SOON: Duration = Duration::from_secs(30);
/// More than all buffers of the kernels on the way and the largest window of a stream.
const LARGE: u64 = 64 << 20;
/// The largest window that the tunnel gives to one stream, in bytes.
const LARGEST_WINDOW: u64 = 16 << 20;
const ECHO: &str = "echo.corp.example";

/// A lab with a tunnel that carries all of the site, and what is tested in it.
fn through(lab: Lab, test: impl FnOnce(&Lab, &Tunnel) -> Result<()>) -> Result<()> {
    let hosts = ["*.corp.example", net::SITE_PREFIX4];
    let tunnel = lab.tunnel(hosts, hosts)?;
    lab.explain(|| test(&lab, &tunnel))
}

/// A connection that ended in order, with all of these bytes.
fn assert_whole(report: &Report, seed: u64, length: u64) {
    assert_eq!(report.failure, None);
    assert_eq!((report.received, report.end.as_str()), (length, "eof"), "{report:?}");
    assert_eq!(report.received_sha256, Bytes::new(seed, length).sha256());
}

/// How many bytes of its newest connection to `target` a daemon has passed on, from the target to the client.
fn passed_on(daemon: &Daemon, target: &str) -> Result<u64> {
    Ok(daemon.flow(target)?["bytes_down"].as_u64().unwrap_or(0))
}

#[test]
fn sixty_four_mebibytes_go_each_way_at_once() -> Result<()> {
    through(Lab::new()?, |lab, tunnel| {
        let server = lab.vcenter().serve(Serve::Echo, net::ECHO, 7)?;
        let report = Connect::to(ECHO, 7).send(LARGE).seed(9).once(lab.appliance())?;
        assert_whole(&report, 9, LARGE);
        assert_eq!((report.sent, report.send_failure), (LARGE, None));
        let seen = server.wait_for_reports(1, SOON)?;
        assert_whole(&seen[0], 9, LARGE);

        // Both ends counted what the applications did.
        for daemon in [&tunnel.appliance, &tunnel.worker] {
            let flow = daemon.wait_for_flow("echo.corp.example:7", "closed", SOON)?;
            assert_eq!((&flow["bytes_up"], &flow["bytes_down"]), (&LARGE.into(), &LARGE.into()), "{flow:#}");
        }
        Ok(())
    })
}

#[test]
fn each_direction_ends_by_itself() -> Result<()> {
    through(Lab::new()?, |lab, tunnel| {
        let _hash = lab.vcenter().serve(Serve::Hash, net::ECHO, 1)?;
        let source = lab.vcenter().serve(Serve::Source { seed: 5, length: 3_000_001 }, net::ECHO, 2)?;
        let nothing = lab.vcenter().serve(Serve::Source { seed: 5, length: 0 }, net::ECHO, 3)?;
        for length in [0, 1, 3_000_001] {
            // The client ends first: the answer is still to come, and is about all that was sent.
            let client_first = Connect::to(ECHO, 1).send(length).order(Order::SendFirst);
            let report = client_first.once(lab.appliance())?;
            assert_eq!(report.text, Some(Bytes::new(1, length).sha256()));
            assert_eq!((report.end.as_str(), report.send_failure), ("eof", None));

            // The server ends first: the client sends only when it has seen that end.
            let server_first = Connect::to(ECHO, 2).send(length).order(Order::ReadFirst);
            assert_whole(&server_first.once(lab.appliance())?, 5, 3_000_001);
            let server_first = Connect::to(ECHO, 3).send(length).order(Order::ReadFirst);
            assert_whole(&server_first.once(lab.appliance())?, 5, 0);
        }
        for server in [source, nothing] {
            for (report, length) in server.wait_for_reports(3, SOON)?.iter().zip([0, 1, 3_000_001]) {
                assert_whole(report, 1, length);
            }
        }
        let closed = tunnel.appliance.status()?["flows"]["recent"].as_array().map(|flows| {
            flows.iter().filter(|flow| flow["entry"] == "captured" && flow["state"] == "closed").count()
        });
        assert_eq!(closed, Some(9));
        Ok(())
    })
}

#[test]
fn two_hundred_connections_are_open_at_once() -> Result<()> {
    through(Lab::new()?, |lab, tunnel| {
        let server = lab.vcenter().serve(Serve::Source { seed: 5, length: 100_000 }, net::ECHO, 2)?;
        // By address: of a name's two addresses a slow worker may try both, and the target would count two.
        let connect = Connect::to(net::ECHO.v4, 2).send(100_000).order(Order::ReadFirst).count(200).stall();
        let mut clients = lab.appliance().captured(connect.command()?).spawn()?;
        // Nobody reads, and so nobody sends, before all are there.
        server.wait_for_connections(200, SOON)?;
        for daemon in [&tunnel.appliance, &tunnel.worker] {
            daemon.wait_for_status("200 connections", SOON, |status| {
                let flows = status["flows"]["recent"].as_array();
                let open = flows.map(|flows| flows.iter().filter(|flow| flow["state"] == "open").count());
                status["flows"]["open"] == 200 && open == Some(200)
            })?;
        }
        let mut stalled = 0;
        clients.wait_for("stalled, of all", SOON, |line| {
            stalled += usize::from(line == "stalled");
            stalled == 200
        })?;
        clients.signal(Signal::SIGUSR1)?;
        assert!(clients.wait(SOON)?.success());
        let reports = Report::read(&clients.stdout())?;
        assert_eq!(reports.len(), 200);
        reports.iter().for_each(|report| assert_whole(report, 5, 100_000));
        let seen = server.wait_for_reports(200, SOON)?;
        for report in &seen {
            assert_eq!((report.received, report.end.as_str()), (100_000, "eof"), "{report:?}");
        }
        let arrived: BTreeSet<_> = seen.iter().map(|report| &report.received_sha256).collect();
        let expected: Vec<_> = (1..=200).map(|seed| Bytes::new(seed, 100_000).sha256()).collect();
        assert!(expected.iter().all(|hash| arrived.contains(hash)), "each connection has bytes of its own");
        let streams = |status: &Value| {
            let lanes = status["appliance"]["groups"][0]["nodes"][0]["lanes"].as_array().cloned();
            lanes.unwrap_or_default().iter().filter_map(|lane| lane["streams"].as_u64()).collect::<Vec<_>>()
        };
        tunnel.appliance.wait_for_status("no stream left", SOON, |status| streams(status) == [0, 0])?;
        Ok(())
    })
}

#[test]
fn a_reader_that_stalls_keeps_little_and_holds_nobody_up() -> Result<()> {
    through(Lab::new()?, |lab, tunnel| {
        let vcenter = lab.vcenter();
        let _source = vcenter.serve(Serve::Source { seed: 3, length: LARGE }, net::ECHO, 4)?;
        let _echo = vcenter.serve(Serve::Echo, net::ECHO, 7)?;
        let stalled = Connect::to(ECHO, 4).stall();
        let mut stalled = lab.appliance().captured(stalled.command()?).spawn()?;
        let target = "echo.corp.example:4";
        // It stalls where two looks at both ends, with a whole connection in between, find the same.
        let mut before = None;
        let held = loop {
            let report = Connect::to(ECHO, 7).send(100_000).once(lab.appliance())?;
            assert_whole(&report, 1, 100_000);
            let delivered = passed_on(&tunnel.appliance, target)?;
            let taken = passed_on(&tunnel.worker, target)?;
            if before.replace((delivered, taken)) == Some((delivered, taken)) && taken > 0 {
                break taken - delivered;
            }
        };
        assert!(
            held <= LARGEST_WINDOW,
            "{held} bytes lie between the worker's read and the appliance's write"
        );

        let reports = Connect::to(ECHO, 7).send(1 << 20).count(50).captured(lab.appliance())?;
        assert_eq!(reports.len(), 50);
        for (report, seed) in reports.iter().zip(1..) {
            assert_whole(report, seed, 1 << 20);
        }
        // All of that went by one that did not move at all.
        let (delivered, taken) = before.unwrap_or_default();
        assert_eq!(tunnel.appliance.flow(target)?["state"], "open");
        assert_eq!(passed_on(&tunnel.appliance, target)?, delivered);
        assert_eq!(passed_on(&tunnel.worker, target)?, taken);
        assert!(taken < LARGE, "64 MiB fit into no buffer");
        let status = tunnel.worker.status()?;
        let lanes = status["worker"]["lanes"].as_array().map_or(&[][..], Vec::as_slice);
        assert!(lanes.iter().any(|lane| lane["credit_stalls"].as_u64() > Some(0)), "{lanes:?}");

        // It reads on when it likes, and nothing is missing.
        stalled.signal(Signal::SIGUSR1)?;
        assert!(stalled.wait(SOON)?.success());
        assert_whole(&Report::read(&stalled.stdout())?[0], 3, LARGE);
        Ok(())
    })
}

#[test]
fn a_long_and_lossy_path_changes_nothing_but_the_time() -> Result<()> {
    let settings = PathSettings { delay: Duration::from_millis(15), loss: 0.003, ..PathSettings::default() };
    through(Lab::with_path(settings)?, |lab, tunnel| {
        let vcenter = lab.vcenter();
        let _echo = vcenter.serve(Serve::Echo, net::ECHO, 7)?;
        let _hash = vcenter.serve(Serve::Hash, net::ECHO, 1)?;
        let _source = vcenter.serve(Serve::Source { seed: 5, length: 100_000 }, net::ECHO, 2)?;
        let report = Connect::to(ECHO, 7).send(2 << 20).once(lab.appliance())?;
        assert_whole(&report, 1, 2 << 20);
        let report = Connect::to(ECHO, 1).send(1 << 20).order(Order::SendFirst).once(lab.appliance())?;
        assert_eq!(report.text, Some(Bytes::new(1, 1 << 20).sha256()));
        let report = Connect::to(ECHO, 2).send(1 << 20).order(Order::ReadFirst).once(lab.appliance())?;
        assert_whole(&report, 5, 100_000);
        let reports = Connect::to(ECHO, 7).send(20_000).count(50).captured(lab.appliance())?;
        for (report, seed) in reports.iter().zip(1..) {
            assert_whole(report, seed, 20_000);
        }
        let (there, back) = lab.path().map(|path| path.stats()).transpose()?.unwrap_or_default();
        assert!(there.lost > 0 && back.lost > 0, "the path was not lossy: {there:?} {back:?}");
        // The daemons themselves see how long the path is.
        let rtt = |status: &Value| status["worker"]["lanes"][0]["rtt_us"].as_u64() > Some(29_000);
        tunnel.worker.wait_for_status("a round trip of two delays", SOON, rtt)?;
        Ok(())
    })
}
