//! Daemons come and go, in order and not; what they leave behind is nothing, and what they carry is not lost
//! without need.

use std::fs;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tests::traffic::{Connect, Order, Report, Serve};
use tests::{Bytes, Command, Config, Daemon, Group, Host, Lab, Process, Signal, Tunnel, bpf, net, program};

const SOON: Duration = Duration::from_secs(30);
/// How soon a daemon that returned must carry new connections.
const RETURN: Duration = Duration::from_secs(3);
/// All of the site.
const HOSTS: [&str; 3] = ["*.corp.example", net::SITE_PREFIX4, net::SITE_PREFIX6];
const ECHO: &str = "echo.corp.example";
/// More than fits into all buffers on the way: who does not read it holds it up.
const LARGE: u64 = 64 << 20;
/// Bytes of a transfer that is under way.
const UNDER_WAY: u64 = 64 << 10;
/// The programs of steering.
const PROGRAMS: usize = 9;

/// Tries an echo again and again until one works, and checks that this was soon enough.
fn works_within(lab: &Lab, host: &str, within: Duration) -> Result<()> {
    let started = Instant::now();
    loop {
        let report = Connect::to(host, 7).send(1000).once(lab.appliance())?;
        let took = started.elapsed();
        if report.failure.is_none() && report.end == "eof" {
            report.assert_echo(1, 1000, host);
            assert!(took <= within, "{host} only after {took:?}");
            return Ok(());
        }
        assert!(took <= within, "{host} fails after {took:?}: {report:?}");
    }
}

/// What bpftool finds attached to a host's captured cgroup, asked in both its ways.
fn attached(host: &Host) -> Result<usize> {
    let shown = bpf::attached(host.cgroup().path())?.len();
    let tree = Command::new("bpftool").args(["cgroup", "tree"]).arg(host.cgroup().path()).check()?;
    let listed = tree.lines().filter(|line| line.contains("dw_")).count();
    assert_eq!(shown, listed, "bpftool disagrees with itself: {tree}");
    Ok(shown)
}

/// Waits until nothing is attached: the kernel takes a moment to undo what had a name.
fn wait_until_detached(host: &Host) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while attached(host)? > 0 {
        if Instant::now() > deadline {
            bail!("programs are left: {:?}", bpf::attached(host.cgroup().path())?);
        }
    }
    Ok(())
}

/// The host while no daemon is there: what has a name is not let out, all else is left alone.
fn assert_closed(lab: &Lab, address: &str) -> Result<()> {
    let host = lab.appliance();
    let report = Connect::to(address, 7).once(host)?;
    assert_eq!(report.failure.as_deref(), Some("ECONNREFUSED"), "a name: {report:?}");
    assert_let_go(lab)
}

/// The host without steering: nothing is captured, and nothing is cut off.
fn assert_let_go(lab: &Lab) -> Result<()> {
    let host = lab.appliance();
    for address in [IpAddr::from(net::ECHO.v4), net::ECHO.v6.into()] {
        let report = Connect::to(address, 7).once(host)?;
        assert_eq!(report.failure.as_deref(), Some("ENETUNREACH"), "captured: {report:?}");
    }
    let report = Connect::to(ECHO, 7).once(host)?;
    assert!(report.failure.as_ref().is_some_and(|f| f.contains("Name or service not known")), "{report:?}");
    let _direct = lab.elsewhere().serve(Serve::Echo, net::DIRECT, 7)?;
    Connect::to("direct.example", 7).send(1000).once(host)?.assert_echo(1, 1000, "direct.example");
    Ok(())
}

/// What a captured application is answered for a name.
fn resolve(lab: &Lab, name: &str) -> Result<String> {
    let getent = Command::new("getent").args(["ahostsv4", name]);
    let answer = lab.appliance().captured(getent).check()?;
    Ok(answer.split_whitespace().next().context("no address")?.to_owned())
}

#[test]
fn a_worker_that_was_killed_is_used_again_within_seconds() -> Result<()> {
    let lab = Lab::new()?;
    let mut tunnel = lab.tunnel(HOSTS, HOSTS)?;
    lab.explain(|| {
        let _echo = lab.vcenter().serve(Serve::Echo, net::ECHO, 7)?;
        works_within(&lab, ECHO, SOON)?;
        // At once, while connections wait for it.
        tunnel.worker.kill9()?;
        tunnel.worker.start()?;
        works_within(&lab, ECHO, RETURN)?;
        // And after the kernel was told to refuse them.
        tunnel.worker.kill9()?;
        let refused = |status: &Value| status["steer"]["counters"]["refused-group"].as_u64() > Some(0);
        let started = Instant::now();
        while !refused(&tunnel.appliance.status()?) {
            let report = Connect::to(ECHO, 7).once(lab.appliance())?;
            assert_ne!(report.end, "eof", "there is no worker: {report:?}");
            assert!(started.elapsed() < SOON, "nobody is refused in connect()");
        }
        tunnel.worker.start()?;
        works_within(&lab, ECHO, RETURN)?;
        assert_eq!(attached(lab.appliance())?, PROGRAMS, "steering was never touched");
        Ok(())
    })
}

#[test]
fn an_appliance_that_was_killed_keeps_names_closed_and_is_used_again_within_seconds() -> Result<()> {
    let lab = Lab::new()?;
    let mut tunnel = lab.tunnel(HOSTS, HOSTS)?;
    lab.explain(|| {
        let _echo = lab.vcenter().serve(Serve::Echo, net::ECHO, 7)?;
        works_within(&lab, ECHO, SOON)?;
        let address = resolve(&lab, ECHO)?;
        assert!(address.starts_with("240.64."), "no synthetic address: {address}");
        assert_eq!(attached(lab.appliance())?, PROGRAMS);

        tunnel.appliance.kill9()?;
        assert_eq!(attached(lab.appliance())?, PROGRAMS, "what was captured stays so");
        assert_closed(&lab, &address)?;
        // Down for long enough that the worker waits between its attempts.
        let line = "not connected: ";
        tunnel.worker.wait_for_line(line, SOON)?;

        tunnel.appliance.start()?;
        // Applications that never ask again, as the JVM does, keep the address that they were given.
        works_within(&lab, &address, RETURN)?;
        works_within(&lab, ECHO, RETURN)?;
        assert_eq!(resolve(&lab, ECHO)?, address);
        assert_eq!(attached(lab.appliance())?, PROGRAMS);

        // In order it is no different.
        let status = tunnel.appliance.stop(SOON)?;
        assert!(status.success(), "{status}");
        wait_until_detached(lab.appliance())?;
        assert!(!lab.appliance().pins("appliance").exists(), "SIGTERM leaves nothing");
        assert_let_go(&lab)?;
        tunnel.appliance.start()?;
        works_within(&lab, &address, RETURN)
    })
}

#[test]
fn a_stop_with_nothing_open_takes_no_time() -> Result<()> {
    let lab = Lab::new()?;
    let mut tunnel = lab.tunnel(HOSTS, HOSTS)?;
    lab.explain(|| {
        let _echo = lab.vcenter().serve(Serve::Echo, net::ECHO, 7)?;
        works_within(&lab, ECHO, SOON)?;
        let quick = |daemon: &mut Daemon| -> Result<()> {
            let started = Instant::now();
            let status = daemon.stop(SOON)?;
            let took = started.elapsed();
            assert!(status.success(), "{}: {status}", daemon.name());
            assert!(took < Duration::from_millis(900), "{} took {took:?}", daemon.name());
            assert!(daemon.log().contains("INFO stopped"), "{}", daemon.log());
            let left = daemon.status().expect_err("nobody answers any more").to_string();
            assert!(left.contains("No such file"), "the control socket is left: {left}");
            Ok(())
        };
        // Each while the other is there, and each without it.
        quick(&mut tunnel.worker)?;
        tunnel.worker.start()?;
        tunnel.wait_until_up()?;
        quick(&mut tunnel.appliance)?;
        quick(&mut tunnel.worker)?;
        tunnel.appliance.start()?;
        quick(&mut tunnel.appliance)
    })
}

/// A transfer that waits until its application is told to read on.
struct Held(Process);

impl Held {
    fn begin(lab: &Lab, tunnel: &Tunnel, port: u16) -> Result<Held> {
        let client = Connect::to(ECHO, port).send(1000).order(Order::ReadFirst).stall();
        let client = lab.appliance().captured(client.command()?).spawn()?;
        client.wait_for_line("stalled", SOON)?;
        let under_way = |status: &Value| {
            let flow = &status["flows"]["recent"][0];
            flow["target"] == *format!("{ECHO}:{port}") && flow["bytes_down"].as_u64() >= Some(UNDER_WAY)
        };
        tunnel.appliance.wait_for_status("a transfer under way", SOON, under_way)?;
        Ok(Held(client))
    }

    /// The whole of it arrives.
    fn finish(mut self) -> Result<()> {
        self.0.signal(Signal::SIGUSR1)?;
        assert!(self.0.wait(SOON)?.success());
        let report = &Report::read(&self.0.stdout())?[0];
        assert_eq!((report.received, report.end.as_str()), (LARGE, "eof"), "{report:?}");
        assert_eq!(report.received_sha256, Bytes::new(3, LARGE).sha256());
        assert_eq!((report.sent, report.send_failure.as_deref()), (1000, None));
        Ok(())
    }

    /// It was cut.
    fn assert_reset(mut self) -> Result<()> {
        self.0.signal(Signal::SIGUSR1)?;
        assert!(self.0.wait(SOON)?.success());
        let report = &Report::read(&self.0.stdout())?[0];
        assert!(report.received < LARGE && report.end == "ECONNRESET", "{report:?}");
        Ok(())
    }
}

/// A worker that went is waited for, and what waited in vain is reset. How long that lasts, and with it how many are
/// reset, is the machine's affair; then `connect()` fails.
fn assert_waited_then_refused(lab: &Lab, port: u16) -> Result<()> {
    let started = Instant::now();
    loop {
        let report = Connect::to(ECHO, port).once(lab.appliance())?;
        match report.failure.as_deref() {
            None => assert_eq!((report.received, report.end.as_str()), (0, "ECONNRESET"), "{report:?}"),
            Some(errno) => {
                assert_eq!(errno, "EHOSTUNREACH", "{report:?}");
                return Ok(());
            }
        }
        assert!(started.elapsed() < SOON, "the kernel is never told: {report:?}");
    }
}

#[test]
fn a_stop_lets_open_connections_finish_and_takes_no_new_ones() -> Result<()> {
    let lab = Lab::new()?;
    let mut tunnel = lab.tunnel_of(
        HOSTS,
        HOSTS,
        |config| config.set("drain", "60s"),
        |config| config.set("drain", "60s"),
    )?;
    lab.explain(|| {
        let source = lab.vcenter().serve(Serve::Source { seed: 3, length: LARGE }, net::ECHO, 4)?;
        let _echo = lab.vcenter().serve(Serve::Echo, net::ECHO, 7)?;
        // The worker stops: what is open goes on, what is new finds nobody.
        let held = Held::begin(&lab, &tunnel, 4)?;
        tunnel.worker.process().signal(Signal::SIGTERM)?;
        let gone = |status: &Value| status["appliance"]["groups"][0]["up"] == false;
        tunnel.appliance.wait_for_status("no worker for new connections", SOON, gone)?;
        assert_waited_then_refused(&lab, 4)?;
        assert_eq!(source.accepted(), 1, "a worker that stops has dialled");
        assert!(tunnel.worker.process().is_running());
        held.finish()?;
        assert!(tunnel.worker.stop(SOON)?.success());
        assert!(!tunnel.worker.log().contains("were cut"), "{}", tunnel.worker.log());
        tunnel.worker.start()?;
        tunnel.wait_until_up()?;
        // The kernel hears of it a moment later.
        works_within(&lab, ECHO, SOON)?;

        // The appliance stops: nothing is captured any more, what is open goes on.
        let held = Held::begin(&lab, &tunnel, 4)?;
        let steered = |status: &Value| status["steer"]["counters"]["steered"].clone();
        let before = steered(&tunnel.appliance.status()?);
        tunnel.appliance.process().signal(Signal::SIGTERM)?;
        tunnel.appliance.wait_for_line("a second signal cuts what is open", SOON)?;
        wait_until_detached(lab.appliance())?;
        assert_let_go(&lab)?;
        let status = tunnel.appliance.status()?;
        assert_eq!(steered(&status), before);
        assert_eq!(
            (&status["flows"]["open"], &status["flows"]["recent"][0]["state"]),
            (&1.into(), &"open".into())
        );
        assert!(tunnel.appliance.process().is_running());
        held.finish()?;
        assert!(tunnel.appliance.stop(SOON)?.success());
        assert!(!tunnel.appliance.log().contains("were cut"), "{}", tunnel.appliance.log());
        Ok(())
    })
}

#[test]
fn a_stop_ends_at_its_deadline_or_at_a_second_signal() -> Result<()> {
    let lab = Lab::new()?;
    let mut tunnel = lab.tunnel_with(HOSTS, HOSTS, |config| config.set("drain", "1s"))?;
    lab.explain(|| {
        let source = lab.vcenter().serve(Serve::Source { seed: 3, length: LARGE }, net::ECHO, 4)?;
        let held = Held::begin(&lab, &tunnel, 4)?;
        let started = Instant::now();
        assert!(tunnel.appliance.stop(SOON)?.success());
        let took = started.elapsed();
        assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(5), "{took:?}");
        held.assert_reset()?;
        let cut = &source.wait_for_reports(1, SOON)?[0];
        assert_eq!(cut.send_failure.as_deref(), Some("ECONNRESET"), "{cut:?}");
        tunnel.appliance.wait_for_line("were cut", SOON)?;
        tunnel.appliance.start()?;
        tunnel.wait_until_up()?;

        // The worker's drain is ten seconds.
        let held = Held::begin(&lab, &tunnel, 4)?;
        let started = Instant::now();
        tunnel.worker.process().signal(Signal::SIGTERM)?;
        tunnel.worker.wait_for_line("a second signal cuts what is open", SOON)?;
        assert!(tunnel.worker.process().is_running());
        assert!(tunnel.worker.stop(SOON)?.success());
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        held.assert_reset()?;
        let cut = &source.wait_for_reports(2, SOON)?[1];
        assert_eq!(cut.send_failure.as_deref(), Some("ECONNRESET"), "{cut:?}");
        Ok(())
    })
}

#[test]
fn a_second_daemon_on_the_same_files_refuses_and_disturbs_nobody() -> Result<()> {
    let lab = Lab::new()?;
    let tunnel = lab.tunnel(HOSTS, HOSTS)?;
    lab.explain(|| {
        let _echo = lab.vcenter().serve(Serve::Echo, net::ECHO, 7)?;
        for (host, daemon) in [(lab.appliance(), &tunnel.appliance), (lab.site(), &tunnel.worker)] {
            let run = |config: &std::path::Path| host.dworker(["run", "--config"])?.arg(config).output();
            let second = run(daemon.config())?;
            assert_eq!(second.status.code(), Some(1), "{second}");
            assert!(second.stderr.contains("another dworker answers there already"), "{second}");

            // With a control socket of its own, but the same state.
            let text = fs::read_to_string(daemon.config())?;
            let line = |key: &str| text.lines().find(|line| line.starts_with(key)).context("no such key");
            let other = host.directory().join("second.toml");
            let own = host.directory().join("second.sock");
            let text = text.replace(line("control_socket")?, &format!("control_socket = {own:?}"));
            fs::write(&other, &text)?;
            let second = run(&other)?;
            assert_eq!(second.status.code(), Some(1), "{second}");
            let says = |what: &str| second.stderr.contains(what);
            assert!(says("state_dir") && says("another dworker uses it"), "{second}");
            assert!(!own.exists(), "its control socket is left");

            // With both of its own, an appliance still needs a port of its own.
            if host.name() == lab.appliance().name() {
                let state = host.directory().join("second-state");
                fs::write(&other, text.replace(line("state_dir")?, &format!("state_dir = {state:?}")))?;
                let second = run(&other)?;
                assert_eq!(second.status.code(), Some(1), "{second}");
                let expected = format!(
                    "dworker: appliance.listen = {}:443: Address already in use (os error 98): something else listens \
                     there; `ss -ltnp` shows what\n",
                    net::APPLIANCE.v4
                );
                // Above it stands only which configuration was read.
                assert!(second.stderr.ends_with(&format!("\n{expected}")), "{second}");
                assert_eq!(second.stderr.lines().count(), 2, "{second}");
            }
        }
        assert_eq!(attached(lab.appliance())?, PROGRAMS);
        works_within(&lab, ECHO, RETURN)?;
        let status = tunnel.appliance.status()?;
        assert_eq!(status["pid"], tunnel.appliance.process().pid());
        assert_eq!(status["appliance"]["groups"][0]["nodes"].as_array().map(Vec::len), Some(1));
        Ok(())
    })
}

#[test]
fn only_who_has_steered_removes_what_is_left_without_steering() -> Result<()> {
    let lab = Lab::new()?;
    let host = lab.site();
    let group = Group::new("site-a", HOSTS)?;
    let config = host.configure("worker", Config::new().worker(&group, lab.pki().ca_file(), HOSTS))?;
    // Instead of the system's directory, which is not the lab's: there another daemon has crashed, and comes back.
    let script = "mount -t bpf bpf /sys/fs/bpf && mkdir -p /sys/fs/bpf/dworker/links && exec \"$@\"";
    let run = Command::new("unshare").args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
    let run = host.uncaptured(run.arg(program()?).args(["run", "--config"]).arg(&config));
    for has_steered in [false, true] {
        if has_steered {
            fs::write(host.directory().join("worker-state/names"), "")?;
        }
        let mut daemon = run.clone().spawn()?;
        daemon.wait_for_line("ready", SOON)?;
        let pins = format!("/proc/{}/root/sys/fs/bpf/dworker", daemon.pid());
        assert_eq!(fs::exists(pins)?, !has_steered, "{}", daemon.stderr());
        daemon.stop(SOON)?;
    }
    Ok(())
}
