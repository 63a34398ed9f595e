//! The lab's own servers and clients tell the truth, over connections with nothing in between.

use std::time::Duration;

use anyhow::Result;
use tests::traffic::{Connect, Family, Order, Report, Serve};
use tests::{Bytes, Lab, Signal, net};

const SOON: Duration = Duration::from_secs(20);
const LENGTH: u64 = 3_000_001;

fn only(reports: Vec<Report>) -> Report {
    assert_eq!(reports.len(), 1, "{reports:?}");
    reports.into_iter().next().expect("one report")
}

#[test]
fn bytes_go_both_ways_over_every_family() -> Result<()> {
    let lab = Lab::new()?;
    let server = lab.elsewhere().serve(Serve::Echo, net::DIRECT, 7)?;
    for (family, peer) in [
        (Family::V4, "10.77.4.10:7"),
        (Family::V6, "[fd77:0:0:4::10]:7"),
        (Family::Mapped, "[::ffff:10.77.4.10]:7"),
    ] {
        let connect = Connect::to("direct.example", 7).family(family).send(LENGTH).seed(9);
        let report = only(connect.captured(lab.appliance())?);
        assert_eq!(report.failure, None);
        assert_eq!(report.peer, Some(peer.parse()?), "{family:?}");
        assert_eq!((report.sent, report.received, report.end.as_str()), (LENGTH, LENGTH, "eof"));
        assert_eq!(report.received_sha256, Bytes::new(9, LENGTH).sha256());
    }
    let seen = server.wait_for_reports(3, SOON)?;
    assert!(seen.iter().all(|report| report.received_sha256 == Bytes::new(9, LENGTH).sha256()), "{seen:?}");
    Ok(())
}

#[test]
fn half_closes_are_honoured_in_both_directions() -> Result<()> {
    let lab = Lab::new()?;
    let _hash = lab.elsewhere().serve(Serve::Hash, net::DIRECT, 1)?;
    let client_first = Connect::to("direct.example", 1).send(LENGTH).order(Order::SendFirst);
    let report = only(client_first.uncaptured(lab.appliance())?);
    assert_eq!(report.text, Some(Bytes::new(1, LENGTH).sha256()));

    let source = lab.elsewhere().serve(Serve::Source { seed: 5, length: LENGTH }, net::DIRECT, 2)?;
    let server_first = Connect::to("direct.example", 2).send(LENGTH).order(Order::ReadFirst);
    let report = only(server_first.uncaptured(lab.appliance())?);
    assert_eq!(report.received_sha256, Bytes::new(5, LENGTH).sha256());
    let seen = only(source.wait_for_reports(1, SOON)?);
    assert_eq!((seen.received_sha256, seen.end.as_str()), (Bytes::new(1, LENGTH).sha256(), "eof"));
    Ok(())
}

#[test]
fn failures_are_reported_by_their_errno() -> Result<()> {
    let lab = Lab::new()?;
    let run = |connect: Connect| connect.uncaptured(lab.appliance()).map(only);
    assert_eq!(run(Connect::to(net::DIRECT.v4, 9))?.failure.as_deref(), Some("ECONNREFUSED"));
    assert_eq!(run(Connect::to(net::VCENTER.v6, 9))?.failure.as_deref(), Some("ENETUNREACH"));
    let unknown = run(Connect::to("vcenter.corp.example", 9))?.failure.unwrap_or_default();
    assert!(unknown.contains("Name or service not known"), "{unknown}");

    let server = lab.elsewhere().serve(Serve::Reset { after: 10 }, net::DIRECT, 3)?;
    let report = run(Connect::to("direct.example", 3).send(10))?;
    assert_eq!(report.end, "ECONNRESET");
    assert_eq!(only(server.wait_for_reports(1, SOON)?).received, 10);

    // What was sent before a reset still arrives.
    let _slam = lab.elsewhere().serve(Serve::Slam { seed: 7, length: 8000 }, net::DIRECT, 4)?;
    let report = run(Connect::to("direct.example", 4).send(1).order(Order::SendFirst))?;
    assert_eq!((report.received_sha256, report.end.as_str()), (Bytes::new(7, 8000).sha256(), "ECONNRESET"));
    Ok(())
}

#[test]
fn many_connections_carry_each_its_own_bytes() -> Result<()> {
    let lab = Lab::new()?;
    let server = lab.elsewhere().serve(Serve::Echo, net::DIRECT, 7)?;
    let reports = Connect::to("direct.example", 7).send(10_000).count(200).uncaptured(lab.appliance())?;
    assert_eq!(reports.len(), 200);
    for (report, seed) in reports.iter().zip(1..) {
        assert_eq!(report.received_sha256, Bytes::new(seed, 10_000).sha256(), "{report:?}");
    }
    assert_eq!(server.accepted(), 200);

    let reports = Connect::to("direct.example", 7).send(10).count(2).times(3).uncaptured(lab.appliance())?;
    let hashes: Vec<_> = reports.iter().map(|report| report.received_sha256.clone()).collect();
    assert_eq!(hashes, (1..=6).map(|seed| Bytes::new(seed, 10).sha256()).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn a_stalled_reader_reads_on_when_told() -> Result<()> {
    let lab = Lab::new()?;
    let length = 64 << 20;
    let server = lab.elsewhere().serve(Serve::Source { seed: 3, length }, net::DIRECT, 4)?;
    let mut client =
        lab.appliance().uncaptured(Connect::to("direct.example", 4).stall().command()?).spawn()?;
    client.wait_for_line("stalled", SOON)?;
    assert!(client.is_running());
    assert_eq!(server.reports()?, [], "64 MiB fit into no buffer");
    client.signal(Signal::SIGUSR1)?;
    assert!(client.wait(SOON)?.success());
    let report = only(Report::read(&client.stdout())?);
    assert_eq!((report.received, report.received_sha256), (length, Bytes::new(3, length).sha256()));

    let _echo = lab.elsewhere().serve(Serve::Echo, net::DIRECT, 7)?;
    let connect = Connect::to("direct.example", 7).send(1000).count(5).stall();
    let mut clients = lab.appliance().uncaptured(connect.command()?).spawn()?;
    let mut stalled = 0;
    clients.wait_for("stalled, of all five", SOON, |line| {
        stalled += usize::from(line == "stalled");
        stalled == 5
    })?;
    clients.signal(Signal::SIGUSR1)?;
    assert!(clients.wait(SOON)?.success(), "one signal is for all");
    assert!(Report::read(&clients.stdout())?.iter().all(|report| report.received == 1000));

    let stall = lab.elsewhere().serve(Serve::Stall, net::DIRECT, 5)?;
    let sender = Connect::to("direct.example", 5).send(length).order(Order::SendFirst);
    let sender = lab.appliance().uncaptured(sender.command()?).spawn()?;
    stall.wait_for_connections(1, SOON)?;
    assert!(sender.is_running());
    Ok(())
}
