//! What an application sees of a failure: what TCP would have told it, or as near as the kernel allows.
//!
//! A captured `connect()` has succeeded before the far end is dialled. So the first failure is a reset; for a
//! moment after it, `connect()` itself fails with the true errno. Never is it a clean end. The log and `status`
//! of both ends say which.

use std::time::{Duration, Instant};

use anyhow::Result;
use nix::errno::Errno;
use serde_json::Value;
use tests::traffic::{Connect, Order, Report, Serve, Server};
use tests::{Bytes, Config, Daemon, Dual, Failing, Group, Lab, Process, Tunnel, net, shown};

const SOON: Duration = Duration::from_secs(30);
/// All of the site.
const HOSTS: [&str; 3] = ["*.corp.example", net::SITE_PREFIX4, net::SITE_PREFIX6];
/// Never sent whole while a test runs.
const ENDLESS: u64 = 1 << 40;
/// A transfer that has passed this many bytes on is under way.
const UNDER_WAY: u64 = 64 << 10;

/// A name and both its addresses.
fn all_of(name: &str, dual: Dual) -> Vec<String> {
    vec![name.to_owned(), dual.v4.to_string(), dual.v6.to_string()]
}

/// Connects twice in a row: the first is reset, the second fails in `connect()`, and everybody says why.
fn fails(lab: &Lab, tunnel: &Tunnel, host: &str, failure: &Failing) -> Result<()> {
    let target = shown(host, 443);
    lab.assert_fails(host, 443, failure.errno)?;
    for (daemon, entry) in [(&tunnel.appliance, "captured"), (&tunnel.worker, "egress")] {
        let flow = daemon.wait_for_failing(host, 443, failure)?;
        assert_eq!((&flow["entry"], &flow["dialled"]), (&entry.into(), &Value::Null), "{flow:#}");
    }
    tunnel.worker.wait_for_line(&format!("target={target}"), SOON)?;
    let log = tunnel.worker.log();
    let said = |line: &&str| line.contains(&format!("not dialled: {}", failure.state));
    let line = log.lines().filter(|line| line.contains(&format!("target={target} "))).find(said);
    assert!(line.is_some_and(|line| line.contains(failure.reason)), "{target} in the worker's log: {log}");
    let log = tunnel.appliance.log();
    let of_target = |line: &&str| line.contains(&format!(" target={target} "));
    let line = log.lines().filter(of_target).find(|line| line.contains(failure.reason));
    assert!(line.is_some_and(|line| line.contains(failure.state)), "{target} in the appliance's log: {log}");

    // What `connect()` was told is written down too.
    let told = |status: &Value| {
        let refused = status["steer"]["refused"].as_array();
        let newest = refused.and_then(|refused| refused.first()).cloned().unwrap_or_default();
        let host_is = match newest["name"].as_str() {
            Some(name) => name == host,
            None => newest["target"] == target,
        };
        host_is && newest["reason"] == "refused-down" && newest["errno"] == failure.errno as i32
    };
    tunnel.appliance.wait_for_status("what connect() was told", SOON, told)?;
    Ok(())
}

#[test]
fn each_target_fails_in_its_own_way() -> Result<()> {
    let lab = Lab::new()?;
    let denied = all_of("vcenter.corp.example", net::VCENTER);
    let deny: Vec<Value> = denied.iter().map(|host| host.as_str().into()).collect();
    let tunnel = lab.tunnel_of(
        HOSTS,
        HOSTS,
        |config| config.set("steer.down_for", "60s"),
        |config| config.set("egress.connect_timeout", "3s").set("egress.deny", deny),
    )?;
    lab.explain(|| {
        // The appliance gives it to the worker, it is there, and the worker reaches it: only the policy is against.
        let forbidden = lab.vcenter().serve(Serve::Echo, net::VCENTER, 443)?;
        let failing = |errno, state, reason| Failing { errno, state, reason };
        for (hosts, failure) in [
            (
                all_of("refused.corp.example", net::REFUSED),
                failing(Errno::ECONNREFUSED, "refused", "Connection refused"),
            ),
            (
                all_of("silent.corp.example", net::SILENT),
                failing(Errno::ETIMEDOUT, "timeout", "no answer within 3s"),
            ),
            (
                all_of("unreachable.corp.example", net::UNREACHABLE),
                failing(Errno::EHOSTUNREACH, "host-unreachable", "No route to host"),
            ),
            (
                vec!["nobody.corp.example".into()],
                failing(Errno::EHOSTUNREACH, "name-not-found", "the worker's resolver knows no such name"),
            ),
            (denied, failing(Errno::EACCES, "denied", "in egress.deny")),
        ] {
            for host in &hosts {
                fails(&lab, &tunnel, host, &failure)?;
            }
        }
        assert_eq!(forbidden.accepted(), 0, "the worker dialled what it may not");

        // A resolver that is not there is another thing than a name that is not.
        lab.site().set_resolv_conf(&format!("nameserver {}\noptions attempts:1\n", net::REFUSED.v4))?;
        let unresolved = failing(Errno::EHOSTUNREACH, "resolve-failed", "resolving echo.corp.example");
        fails(&lab, &tunnel, "echo.corp.example", &unresolved)
    })
}

#[test]
fn a_target_that_comes_up_is_reached_when_the_memory_has_faded() -> Result<()> {
    let lab = Lab::new()?;
    let tunnel = lab.tunnel_with(HOSTS, HOSTS, |config| config.set("steer.down_for", "1s"))?;
    lab.explain(|| {
        for host in all_of("refused.corp.example", net::REFUSED) {
            assert!(Connect::to(&host, 443).once(lab.appliance())?.is_reset());
            let _server = lab.vcenter().serve(Serve::Echo, net::REFUSED, 443)?;
            let started = Instant::now();
            loop {
                let report = Connect::to(&host, 443).send(1000).once(lab.appliance())?;
                match report.failure.as_deref() {
                    None => break report.assert_echo(1, 1000, &host),
                    Some(errno) => assert_eq!(errno, "ECONNREFUSED", "{report:?}"),
                }
                assert!(started.elapsed() < SOON, "{host} is cut off");
            }
        }
        drop(tunnel);
        Ok(())
    })
}

#[test]
fn without_a_worker_connections_wait_a_moment_and_then_connect_fails() -> Result<()> {
    let lab = Lab::new()?;
    let group = Group::new("site-a", HOSTS)?;
    let config = Config::new()
        .appliance(&lab.appliance_identity()?, &[&group])
        .steer(&[lab.appliance().cgroup()])
        .set("steer.down_for", "60s");
    let appliance = lab.appliance().daemon("appliance", config)?;
    lab.explain(|| {
        let started = Instant::now();
        // Three: the kernel may be told a moment after the first has given up.
        let reports = Connect::to("echo.corp.example", 7).times(3).captured(lab.appliance())?;
        let waited = started.elapsed();
        assert!(reports[0].is_reset(), "{reports:?}");
        let unreachable = |report: &Report| report.failure.as_deref() == Some("EHOSTUNREACH");
        assert!(reports[1].is_reset() || unreachable(&reports[1]), "{reports:?}");
        assert!(unreachable(&reports[2]), "{reports:?}");
        assert!(waited >= Duration::from_millis(2900), "no grace: {waited:?}");

        // From now on nobody waits, whatever the address.
        for host in all_of("vcenter.corp.example", net::VCENTER) {
            let report = Connect::to(&host, 443).once(lab.appliance())?;
            assert!(unreachable(&report), "{host}: {report:?}");
            assert!(report.connect_micros < 1_000_000, "it waited: {report:?}");
        }
        let flow = appliance.wait_for_flow("echo.corp.example:7", "no-worker", SOON)?;
        assert_eq!(flow["reason"], "no worker of group site-a is connected");
        appliance.wait_for_line("no-worker: no worker of group site-a is connected", SOON)?;
        appliance.wait_for_line("refused in connect(): refused-group", SOON)?;
        let status = appliance.status()?;
        let refused = &status["steer"]["refused"][0];
        assert_eq!(
            (&refused["reason"], &refused["errno"]),
            (&"refused-group".into(), &(Errno::EHOSTUNREACH as i32).into())
        );

        // What waits for a worker is carried by the one that comes.
        let _echo = lab.vcenter().serve(Serve::Echo, net::ECHO, 7)?;
        let config = || Config::new().worker(&group, lab.pki().ca_file(), HOSTS);
        let mut worker = lab.site().daemon("worker", config())?;
        appliance.wait_for_group("site-a", SOON)?;
        worker.kill9()?;
        let gone = |status: &Value| status["appliance"]["groups"][0]["up"] == false;
        appliance.wait_for_status("no worker", SOON, gone)?;
        let waiting = Connect::to("echo.corp.example", 7).send(1000);
        let mut waiting = lab.appliance().captured(waiting.command()?).spawn()?;
        appliance.wait_for_flow("echo.corp.example:7", "opening", SOON)?;
        worker.start()?;
        assert!(waiting.wait(SOON)?.success());
        Report::read(&waiting.stdout())?[0].assert_echo(1, 1000, "what waited");
        Ok(())
    })
}

/// A transfer each way that does not end by itself.
struct Transfers {
    /// Reads what the source sends.
    down: Process,
    /// Sends to the sink.
    up: Process,
    source: Server,
    sink: Server,
}

const SOURCE: u16 = 4;
const SINK: u16 = 1;

impl Transfers {
    /// Begins both and waits until both are under way at both daemons.
    fn begin(lab: &Lab, tunnel: &Tunnel) -> Result<Transfers> {
        let source = lab.vcenter().serve(Serve::Source { seed: 3, length: ENDLESS }, net::ECHO, SOURCE)?;
        let sink = lab.vcenter().serve(Serve::Hash, net::ECHO, SINK)?;
        // Neither sends its FIN before it has read the other's: it never does.
        let down = Connect::to("echo.corp.example", SOURCE).send(1).order(Order::ReadFirst);
        let up = Connect::to("echo.corp.example", SINK).send(ENDLESS).order(Order::SendFirst);
        let spawn = |connect: Connect| lab.appliance().captured(connect.command()?).spawn();
        let transfers = Transfers { down: spawn(down)?, up: spawn(up)?, source, sink };
        for daemon in [&tunnel.appliance, &tunnel.worker] {
            passed(daemon, SOURCE, "bytes_down")?;
            passed(daemon, SINK, "bytes_up")?;
        }
        Ok(transfers)
    }

    /// Waits until both applications and both targets have seen their end, which must be a reset.
    fn assert_all_reset(mut self, who: &str) -> Result<()> {
        for client in [&mut self.down, &mut self.up] {
            assert!(client.wait(SOON)?.success());
        }
        let [down, up] = [&self.down, &self.up].map(|client| Report::read(&client.stdout()));
        let (down, up) = (&down?[0], &up?[0]);
        assert!(down.received >= UNDER_WAY && down.end == "ECONNRESET", "{who} killed: {down:?}");
        assert!(up.sent > 0 && up.send_failure.as_deref() == Some("ECONNRESET"), "{who} killed: {up:?}");
        let source = &self.source.wait_for_reports(1, SOON)?[0];
        assert_eq!(source.send_failure.as_deref(), Some("ECONNRESET"), "{who} killed: {source:?}");
        let sink = &self.sink.wait_for_reports(1, SOON)?[0];
        assert_eq!(sink.end, "ECONNRESET", "{who} killed: {sink:?}");
        Ok(())
    }
}

/// Waits until a transfer is under way.
fn passed(daemon: &Daemon, port: u16, direction: &str) -> Result<()> {
    let target = format!("echo.corp.example:{port}");
    let under_way = |status: &Value| {
        let flows = status["flows"]["recent"].as_array();
        let flow = flows.and_then(|flows| flows.iter().find(|flow| flow["target"] == *target));
        flow.is_some_and(|flow| flow["state"] == "open" && flow[direction].as_u64() >= Some(UNDER_WAY))
    };
    daemon.wait_for_status(&format!("{target} under way"), SOON, under_way).map(drop)
}

#[test]
fn whoever_is_killed_the_others_see_a_reset() -> Result<()> {
    let lab = Lab::new()?;
    let mut tunnel = lab.tunnel(HOSTS, HOSTS)?;
    lab.explain(|| {
        let transfers = Transfers::begin(&lab, &tunnel)?;
        tunnel.worker.kill9()?;
        transfers.assert_all_reset("the worker")?;
        for port in [SOURCE, SINK] {
            let target = format!("echo.corp.example:{port}");
            let flow = tunnel.appliance.wait_for_flow(&target, "tunnel-lost", SOON)?;
            assert!(
                flow["reason"].as_str().is_some_and(|r| r.starts_with("the tunnel was lost")),
                "{flow:#}"
            );
        }
        tunnel.worker.start()?;
        tunnel.wait_until_up()?;

        let transfers = Transfers::begin(&lab, &tunnel)?;
        tunnel.appliance.kill9()?;
        transfers.assert_all_reset("the appliance's daemon")?;
        for port in [SOURCE, SINK] {
            tunnel.worker.wait_for_flow(&format!("echo.corp.example:{port}"), "tunnel-lost", SOON)?;
        }
        tunnel.appliance.start()?;
        tunnel.wait_until_up()?;

        // The targets: both have bytes that they did not read, which is what makes their kernel send a reset.
        let stall = lab.vcenter().serve(Serve::Stall, net::ECHO, 5)?;
        let sender = Connect::to("echo.corp.example", 5).send(ENDLESS).order(Order::SendFirst);
        let mut sender = lab.appliance().captured(sender.command()?).spawn()?;
        passed(&tunnel.worker, 5, "bytes_up")?;
        drop(stall);
        assert!(sender.wait(SOON)?.success());
        let report = &Report::read(&sender.stdout())?[0];
        assert_eq!(report.send_failure.as_deref(), Some("ECONNRESET"), "the target killed: {report:?}");
        let source = lab.vcenter().serve(Serve::Source { seed: 3, length: ENDLESS }, net::ECHO, SOURCE)?;
        let reader = Connect::to("echo.corp.example", SOURCE).send(1000);
        let mut reader = lab.appliance().captured(reader.command()?).spawn()?;
        passed(&tunnel.appliance, SOURCE, "bytes_down")?;
        drop(source);
        assert!(reader.wait(SOON)?.success());
        let report = &Report::read(&reader.stdout())?[0];
        assert!(report.received > 0 && report.end == "ECONNRESET", "the target killed: {report:?}");
        for daemon in [&tunnel.appliance, &tunnel.worker] {
            for port in [5, SOURCE] {
                daemon.wait_for_flow(&format!("echo.corp.example:{port}"), "reset", SOON)?;
            }
        }

        // And the application, which has bytes that it did not read.
        let source = lab.vcenter().serve(Serve::Source { seed: 3, length: ENDLESS }, net::ECHO, SOURCE)?;
        let reader = Connect::to("echo.corp.example", SOURCE).send(1).order(Order::ReadFirst).stall();
        let mut reader = lab.appliance().captured(reader.command()?).spawn()?;
        passed(&tunnel.appliance, SOURCE, "bytes_down")?;
        reader.kill9()?;
        let report = &source.wait_for_reports(1, SOON)?[0];
        assert_eq!(report.send_failure.as_deref(), Some("ECONNRESET"), "the application killed: {report:?}");
        for daemon in [&tunnel.appliance, &tunnel.worker] {
            daemon.wait_for_flow(&format!("echo.corp.example:{SOURCE}"), "reset", SOON)?;
        }
        Ok(())
    })
}

#[test]
fn what_came_before_a_reset_arrives_before_it() -> Result<()> {
    let lab = Lab::new()?;
    let _tunnel = lab.tunnel(HOSTS, HOSTS)?;
    lab.explain(|| {
        let _slam = lab.vcenter().serve(Serve::Slam { seed: 7, length: 8000 }, net::ECHO, 6)?;
        let hash = Bytes::new(7, 8000).sha256();
        // The answer of a server that has heard enough, to a client that waits for it.
        let waiting = Connect::to(net::ECHO.v4, 6).send(1).order(Order::SendFirst).times(50);
        for report in waiting.uncaptured(lab.site())?.iter().chain(&waiting.captured(lab.appliance())?) {
            assert_eq!((&report.received_sha256, report.end.as_str()), (&hash, "ECONNRESET"), "{report:?}");
        }
        // And to one that is still sending, of which either call may be told.
        let sending = Connect::to(net::ECHO.v4, 6).send(ENDLESS).times(50);
        for report in sending.uncaptured(lab.site())?.iter().chain(&sending.captured(lab.appliance())?) {
            assert_eq!(report.received_sha256, hash, "{report:?}");
            let told = [report.send_failure.as_deref(), Some(&report.end)];
            assert!(told.contains(&Some("ECONNRESET")), "{report:?}");
        }
        Ok(())
    })
}
