//! Daemons follow one another: by a reload, by an upgrade, and after a crash. Nobody who connects meanwhile notices, or
//! gets out unsteered.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use tests::load::{Kind, Load, Outcome};
use tests::traffic::{Connect, Order, Report, Serve};
use tests::{Bytes, Command, Config, Daemon, Group, Host, Lab, Output, Service, Signal, bpf, net};

const SOON: Duration = Duration::from_secs(30);
const ECHO: &str = "echo.corp.example";
const HOSTS: [&str; 3] = ["*.corp.example", net::SITE_PREFIX4, net::SITE_PREFIX6];
/// The programs of steering.
const PROGRAMS: usize = 9;
/// Connections that are there all the time.
const HELD: u32 = 1000;
/// New connections a second.
const RATE: u32 = 100;
const RELOADS: usize = 10;
/// From the start after a kill to the first new connection.
const BACK: Duration = Duration::from_millis(500);
/// Restarts more, until one is as fast.
const RETRIES: usize = 5;
/// Bytes of one connection that lasts through several reloads.
const LARGE: u64 = 32 << 20;

/// An appliance under a service manager, and a worker.
struct House {
    appliance: Service,
    _worker: Daemon,
    config: Config,
}

impl House {
    fn new(lab: &Lab, adjust: impl FnOnce(Config) -> Config) -> Result<House> {
        let group = Group::new("site-a", HOSTS)?;
        let config = Config::new().appliance(&lab.appliance_identity()?, &[&group]);
        let config = adjust(config.steer(&[lab.appliance().cgroup()]));
        let appliance = lab.appliance().service("appliance", config.clone())?;
        let worker = Config::new().worker(&group, lab.pki().ca_file(), HOSTS);
        let worker = lab.site().daemon("worker", worker)?;
        let house = House { appliance, _worker: worker, config };
        house.wait_until_up()?;
        Ok(house)
    }

    fn wait_until_up(&self) -> Result<()> {
        let up = |status: &Value| status["appliance"]["groups"][0]["up"] == true;
        self.appliance.wait_for_status("a worker", up).map(drop)
    }
}

fn works(lab: &Lab, host: &str) -> Result<()> {
    let report = Connect::to(host, 7).send(1000).once(lab.appliance())?;
    report.assert_echo(1, 1000, host);
    Ok(())
}

/// Tries until it works again.
fn works_again(lab: &Lab, host: &str) -> Result<()> {
    let deadline = Instant::now() + SOON;
    loop {
        let report = Connect::to(host, 7).send(1000).once(lab.appliance())?;
        if report.failure.is_none() && report.end == "eof" {
            report.assert_echo(1, 1000, host);
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "{host} never works again: {report:?}");
    }
}

fn resolve(host: &Host, name: &str) -> Result<String> {
    let answer = host.captured(Command::new("getent").args(["ahostsv4", name])).check()?;
    Ok(answer.split_whitespace().next().context("no address")?.to_owned())
}

/// Waits until so many programs are attached: the kernel takes a moment to undo what had a name.
fn wait_for_programs(host: &Host, count: usize) -> Result<()> {
    let deadline = Instant::now() + SOON;
    loop {
        let attached = bpf::attached(host.cgroup().path())?;
        if attached.len() == count {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "not {count} programs: {attached:?}");
    }
}

fn failures(outcomes: &[Outcome]) -> Vec<&Outcome> {
    outcomes.iter().filter(|outcome| outcome.failure.is_some()).collect()
}

/// Counts what leaves the appliance for proxy hosts, by whatever address; nothing may.
fn count_leaks(lab: &Lab) -> Result<()> {
    lab.router().netns().nft(&format!(
        "table inet leaks {{
  counter proxyhosts {{ }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    iifname to-appliance ip daddr {{ 240.0.0.0/4, {} }} counter name proxyhosts
    iifname to-appliance ip6 daddr {{ 2001:2::/48, {} }} counter name proxyhosts
  }}
}}",
        net::SITE_PREFIX4,
        net::SITE_PREFIX6
    ))
}

fn leaks(lab: &Lab) -> Result<String> {
    let counter = Command::new("nft").args(["list", "counter", "inet", "leaks", "proxyhosts"]);
    let shown = lab.router().uncaptured(counter).check()?;
    let packets = shown.lines().find(|line| line.contains("packets")).context("no counter")?;
    Ok(packets.trim().to_owned())
}

#[test]
fn ten_reloads_and_an_upgrade_cut_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let house = House::new(&lab, |config| config)?;
    let service = &house.appliance;
    lab.explain(|| {
        let _echo = lab.vcenter().serve(Serve::Echo, net::ECHO, 7)?;
        let _source = lab.vcenter().serve(Serve::Source { seed: 3, length: 100 }, net::ECHO, 4)?;
        let _large = lab.vcenter().serve(Serve::Source { seed: 5, length: LARGE }, net::ECHO, 5)?;
        count_leaks(&lab)?;
        works(&lab, ECHO)?;
        let (echo, source) = ((ECHO.to_owned(), 7), (ECHO.to_owned(), 4));
        let load = Load { echo, source, rate: RATE, held: HELD, pause: 3000 }.captured(lab.appliance())?;
        let large = Connect::to(ECHO, 5).order(Order::ReadFirst).stall();
        let mut large = lab.appliance().captured(large.command()?).spawn()?;
        large.wait_for_line("stalled", SOON)?;

        let first = service.pid()?;
        let mut pids = vec![first];
        for n in 0..=RELOADS {
            if n == RELOADS {
                // An upgrade: another file under the same name.
                let fresh = service.program().with_extension("new");
                fs::copy(service.program(), &fresh)?;
                fs::rename(&fresh, service.program())?;
            }
            let ready = service.ready();
            let began = Instant::now();
            match n % 2 {
                0 => drop(service.reload(lab.appliance())?.check()?),
                _ => service.signal(service.pid()?, Signal::SIGHUP)?,
            }
            service.wait_until_ready(ready + 1)?;
            eprintln!("reload {n} took {:?}", began.elapsed());
            let pid = service.pid()?;
            assert!(!pids.contains(&pid), "another process");
            pids.push(pid);
            house.wait_until_up()?;
            resolve(lab.appliance(), &format!("new{n}.wild.corp.example"))?;
            load.wait_for_more(RATE as usize / 2, SOON)?;
        }
        assert_eq!(service.starts(), 1, "the manager has started one process");
        assert_eq!(bpf::attached(lab.appliance().cgroup().path())?.len(), PROGRAMS);
        let running = fs::read_link(format!("/proc/{}/exe", service.pid()?))?;
        assert_eq!(running, service.program(), "the upgraded program runs");
        assert!(service.is_alive(first), "what was open is in the first process yet");

        large.signal(Signal::SIGUSR1)?;
        assert!(large.wait(SOON)?.success());
        let report = &Report::read(&large.stdout())?[0];
        assert_eq!((report.received, report.end.as_str()), (LARGE, "eof"), "{report:?}");
        assert_eq!(report.received_sha256, Bytes::new(5, LARGE).sha256());
        let outcomes = load.stop()?;
        let failed = failures(&outcomes);
        assert!(
            failed.is_empty(),
            "{} of {} failed: {:?}",
            failed.len(),
            outcomes.len(),
            &failed[..failed.len().min(5)]
        );
        assert_eq!(outcomes.iter().filter(|outcome| outcome.kind == Kind::Held).count(), HELD as usize);
        eprintln!("{} connections, none failed", outcomes.len());
        assert!(leaks(&lab)?.starts_with("packets 0 "), "{}", leaks(&lab)?);
        // With nothing open all but the last have ended.
        for pid in &pids[..pids.len() - 1] {
            service.wait_for_end(*pid)?;
        }
        service.stop()?;
        wait_for_programs(lab.appliance(), 0)?;
        assert!(!lab.appliance().pins("appliance").exists());
        assert_eq!(service.stored(), [""; 0], "a stop takes its sockets out of the store");
        Ok(())
    })
}

#[test]
fn a_daemon_that_was_killed_is_started_again_and_nobody_goes_unsteered() -> Result<()> {
    let lab = Lab::new()?;
    let house = House::new(&lab, |config| config)?;
    let service = &house.appliance;
    lab.explain(|| {
        let _echo = lab.vcenter().serve(Serve::Echo, net::ECHO, 7)?;
        let _source = lab.vcenter().serve(Serve::Source { seed: 3, length: 100 }, net::ECHO, 4)?;
        count_leaks(&lab)?;
        works(&lab, ECHO)?;
        let address = resolve(lab.appliance(), ECHO)?;
        let (echo, source) = ((ECHO.to_owned(), 7), (ECHO.to_owned(), 4));
        let load = Load { echo, source, rate: RATE, held: 100, pause: 100 }.captured(lab.appliance())?;
        load.wait_for_more(RATE as usize, SOON)?;
        service.kill9()?;
        // Whoever connects from now on waits for the next process, in the queues of sockets that live on.
        works_again(&lab, &address)?;
        let mut back = service.started().context("it was started")?.elapsed();
        service.wait_until_ready(2)?;
        house.wait_until_up()?;
        load.wait_for_more(RATE as usize, SOON)?;
        let outcomes = load.stop()?;
        assert_eq!(service.starts(), 2);
        let of = |held: bool| outcomes.iter().filter(move |outcome| (outcome.kind == Kind::Held) == held);
        let held: Vec<_> = of(true).map(|outcome| outcome.failure.as_deref()).collect();
        assert_eq!(held, [Some("ECONNRESET"); 100], "what was open is reset");
        // What the process had accepted is reset, what it had not is carried; nothing else happens to any.
        let new: Vec<_> = of(false).filter_map(|outcome| outcome.failure.as_deref()).collect();
        assert!(new.iter().all(|failure| *failure == "ECONNRESET"), "{new:?}");
        assert!(new.len() < of(false).count() / 2, "{} of {}", new.len(), of(false).count());
        assert!(leaks(&lab)?.starts_with("packets 0 "), "{}", leaks(&lab)?);
        assert_eq!(bpf::attached(lab.appliance().cgroup().path())?.len(), PROGRAMS);
        assert_eq!(resolve(lab.appliance(), ECHO)?, address);
        // Where others want the processors too, it may take longer once; it is able to, or it is not.
        for starts in 3..3 + RETRIES {
            if back <= BACK {
                break;
            }
            service.kill9()?;
            works_again(&lab, &address)?;
            back = service.started().context("it was started")?.elapsed();
            service.wait_until_ready(starts)?;
            house.wait_until_up()?;
        }
        assert!(back <= BACK, "new connections work only {back:?} after a restart began");
        eprintln!("a connection was carried {back:?} after a restart began");
        Ok(())
    })
}

#[test]
fn a_start_that_fails_at_its_last_step_captures_nothing() -> Result<()> {
    let lab = Lab::new()?;
    lab.explain(|| {
        let host = lab.appliance();
        let taken = format!("{}:7777", net::APPLIANCE.v4);
        let _squatter = host.within(|| std::net::TcpListener::bind(&taken))??;
        let group = Group::new("site-a", HOSTS)?;
        let config = Config::new().appliance(&lab.appliance_identity()?, &[&group]).steer(&[host.cgroup()]);
        let config = config.set("proxy.http", vec![taken.clone()]).set("proxy.allow_anonymous", true);
        let file = host.configure("appliance", config)?;
        let output = host.dworker(["run", "--config"])?.arg(file).output()?;
        assert_eq!(output.status.code(), Some(1), "{output}");
        assert!(output.stderr.contains(&format!("proxy.http = {taken}")), "{output}");
        wait_for_programs(host, 0)?;
        assert!(!host.pins("appliance").exists(), "something is left");
        Ok(())
    })
}

#[test]
fn a_reload_that_does_not_work_out_changes_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let house = House::new(&lab, |config| config)?;
    let service = &house.appliance;
    lab.explain(|| {
        let _echo = lab.vcenter().serve(Serve::Echo, net::ECHO, 7)?;
        works(&lab, ECHO)?;
        let pid = service.pid()?;
        let host = lab.appliance();
        let taken = format!("{}:7777", net::APPLIANCE.v4);
        let _squatter = host.within(|| std::net::TcpListener::bind(&taken))??;
        let broken = [
            (house.config.clone().set("drane", "1s"), "drane = \"1s\": unknown key"),
            (house.config.clone().set("appliance.certificate", "/none.pem"), "/none.pem"),
            // Found out only when all else has been taken over.
            (
                house
                    .config
                    .clone()
                    .set("proxy.http", vec![taken.clone()])
                    .set("proxy.allow_anonymous", true),
                "something else listens there",
            ),
            (
                house.config.clone().set("steer.exclude_users", vec!["nobody-at-all"]),
                "has no user nobody-at-all",
            ),
        ];
        for (round, (config, why)) in broken.into_iter().enumerate() {
            host.configure("appliance", config)?;
            let answer = service.reload(host)?;
            assert!(!answer.status.success() && answer.stderr.contains(why), "{answer}");
            assert_eq!(service.pid()?, pid);
            works(&lab, ECHO)?;
            resolve(host, &format!("again{round}.wild.corp.example"))?;
            wait_for_programs(host, PROGRAMS)?;
        }
        let status = service.status()?;
        assert_eq!((&status["pid"], &status["appliance"]["groups"][0]["up"]), (&pid.into(), &true.into()));
        host.configure("appliance", house.config.clone())?;
        service.reload(host)?.check()?;
        assert_ne!(service.pid()?, pid);
        works(&lab, ECHO)
    })
}

#[test]
fn what_the_configuration_drops_is_kept_for_nobody() -> Result<()> {
    let lab = Lab::new()?;
    let entries = ["127.0.0.1:3128", "127.0.0.1:3129"];
    let house = House::new(&lab, |config| config.set("proxy.http", entries.to_vec()))?;
    let (service, host) = (&house.appliance, lab.appliance());
    lab.explain(|| {
        let of = |name: &str| service.stored().iter().filter(|stored| *stored == name).count();
        let before = ["appliance", "control", "dns", "forwarder"].map(of);
        assert_eq!(of("entry"), 2, "{:?}", service.stored());
        host.configure("appliance", house.config.clone().set("proxy.http", entries[..1].to_vec()))?;
        let ready = service.ready();
        service.reload(host)?.check()?;
        service.wait_until_ready(ready + 1)?;
        assert_eq!(of("entry"), 1, "{:?}", service.stored());
        assert_eq!(["appliance", "control", "dns", "forwarder"].map(of), before);
        Ok(())
    })
}

#[test]
fn whoever_is_killed_in_a_reload_somebody_serves() -> Result<()> {
    let lab = Lab::new()?;
    let house = House::new(&lab, |config| config)?;
    let service = &house.appliance;
    lab.explain(|| {
        let _echo = lab.vcenter().serve(Serve::Echo, net::ECHO, 7)?;
        count_leaks(&lab)?;
        works(&lab, ECHO)?;
        let host = lab.appliance();
        // Before it has said anything.
        let (program, aside) = (service.program().to_owned(), service.program().with_extension("aside"));
        fs::rename(&program, &aside)?;
        for (script, why) in
            [("kill -9 $$", "ended while reading its configuration"), ("exit 0", "ended while")]
        {
            fs::write(&program, format!("#!/bin/sh\n{script}\n"))?;
            fs::set_permissions(&program, fs::metadata(&aside)?.permissions())?;
            let pid = service.pid()?;
            let answer = service.reload(host)?;
            assert!(!answer.status.success() && answer.stderr.contains(why), "{answer}");
            assert_eq!(service.pid()?, pid);
            works(&lab, ECHO)?;
        }
        fs::rename(&aside, &program)?;
        // At some time between its first word and its taking over.
        for wait in [0, 100, 300, 900] {
            let old = service.pid()?;
            let lines = |log: &str| log.matches("a new process takes over").count();
            let before = lines(&service.log());
            service.signal(old, Signal::SIGHUP)?;
            let deadline = Instant::now() + SOON;
            while lines(&service.log()) == before {
                anyhow::ensure!(Instant::now() < deadline, "no new process");
            }
            let log = service.log();
            let line = log.lines().rfind(|line| line.contains("a new process takes over"));
            let new = line.and_then(|line| line.rsplit_once("pid=")).context("no pid")?.1.trim().parse()?;
            std::thread::sleep(Duration::from_millis(wait));
            service.signal(new, Signal::SIGKILL)?;
            works_again(&lab, ECHO)?;
            house.wait_until_up()?;
            wait_for_programs(host, PROGRAMS)?;
            resolve(host, &format!("killed{wait}.wild.corp.example"))?;
        }
        for wait in [0, 100, 300, 900] {
            let ready = service.ready();
            let old = service.pid()?;
            service.signal(old, Signal::SIGHUP)?;
            std::thread::sleep(Duration::from_millis(wait));
            service.signal(old, Signal::SIGKILL)?;
            service.wait_until_ready(ready + 1)?;
            works_again(&lab, ECHO)?;
            house.wait_until_up()?;
            wait_for_programs(host, PROGRAMS)?;
        }
        assert!(leaks(&lab)?.starts_with("packets 0 "), "{}", leaks(&lab)?);
        Ok(())
    })
}

/// A stop of a service whose reload would take much longer.
fn stop_in_time(lab: &Lab, service: &Service) -> Result<()> {
    let began = Instant::now();
    service.stop()?;
    assert!(began.elapsed() < Duration::from_secs(8), "a stop took {:?}", began.elapsed());
    wait_for_programs(lab.appliance(), 0)?;
    assert!(!lab.appliance().pins("appliance").exists(), "something is left");
    Ok(())
}

#[test]
fn a_stop_is_heard_while_a_new_process_does_not_get_ready() -> Result<()> {
    let lab = Lab::new()?;
    let house = House::new(&lab, |config| config)?;
    let service = &house.appliance;
    lab.explain(|| {
        let (program, aside) = (service.program().to_owned(), service.program().with_extension("aside"));
        let began = program.with_extension("began");
        fs::rename(&program, &aside)?;
        fs::write(&program, format!("#!/bin/sh\n: > {}\nexec sleep 25\n", began.display()))?;
        fs::set_permissions(&program, fs::metadata(&aside)?.permissions())?;
        service.signal(service.pid()?, Signal::SIGHUP)?;
        let deadline = Instant::now() + SOON;
        while !began.exists() {
            anyhow::ensure!(Instant::now() < deadline, "no new process");
        }
        stop_in_time(&lab, service)
    })
}

#[test]
fn a_stop_is_heard_while_a_new_process_takes_over() -> Result<()> {
    let lab = Lab::new()?;
    let house = House::new(&lab, |config| config)?;
    let service = &house.appliance;
    lab.explain(|| {
        service.signal(service.pid()?, Signal::SIGHUP)?;
        let line = service.wait_for_line("a new process takes over")?;
        let new = line.rsplit_once("pid=").context("no pid")?.1.trim().parse()?;
        // It hangs, with all that is handed on to it.
        service.signal(new, Signal::SIGSTOP)?;
        stop_in_time(&lab, service)
    })
}

#[test]
fn steering_is_switched_off_with_and_without_a_daemon() -> Result<()> {
    let lab = Lab::new()?;
    let house = House::new(&lab, |config| config)?;
    let service = &house.appliance;
    lab.explain(|| {
        let _echo = lab.vcenter().serve(Serve::Echo, net::ECHO, 7)?;
        let host = lab.appliance();
        let (pins, socket) = (host.pins("appliance"), host.socket("appliance"));
        let config = host.directory().join("appliance.toml");
        let elsewhere = host.directory().join("elsewhere");
        let steer = |what: &str, places: &[(&str, &Path)]| -> Result<Output> {
            let command = host.dworker(["steer", what])?;
            places.iter().fold(command, |command, (key, value)| command.arg(key).arg(value)).output()
        };
        let at: (&str, &Path) = ("--socket", &socket);
        let goes_out = || -> Result<()> {
            let report = Connect::to(net::ECHO.v4, 7).once(host)?;
            assert_eq!(report.failure.as_deref(), Some("ENETUNREACH"), "{report:?}");
            Ok(())
        };
        let pinned_maps = || -> Result<usize> { Ok(fs::read_dir(pins.join("maps"))?.count()) };
        works(&lab, ECHO)?;
        let (before, maps) = (service.status()?, pinned_maps()?);
        let lost = steer("off", &[("--socket", &elsewhere), ("--pins", &pins)])?;
        assert_eq!(lost.status.code(), Some(1), "{lost}");
        let says =
            format!("a daemon steers with {} and does not answer at {}", pins.display(), elsewhere.display());
        assert!(lost.stderr.contains(&says), "{lost}");
        // A daemon that answers counts, whatever else is named.
        assert_eq!(steer("off", &[at, ("--pins", &elsewhere)])?.check()?, "steering is off\n");
        wait_for_programs(host, 0)?;
        goes_out()?;
        assert_eq!(steer("off", &[at])?.check()?, "steering was off already\n");
        wait_until_gone("prog", ids(&before, "programs"))?;
        assert_eq!(pinned_maps()?, 0);
        // A reload keeps it so.
        service.reload(host)?.check()?;
        goes_out()?;
        assert_eq!(bpf::attached(host.cgroup().path())?.len(), 0);
        assert_eq!(service.status()?["steer"]["programs"], serde_json::json!([]));
        assert_eq!(pinned_maps()?, 0);
        assert_eq!(steer("on", &[at])?.check()?, "steering is on\n");
        wait_for_programs(host, PROGRAMS)?;
        house.wait_until_up()?;
        works(&lab, ECHO)?;
        assert_eq!(pinned_maps()?, maps, "a start adopts them");

        let before = service.status()?;
        service.set_restarts(false);
        let pid = service.pid()?;
        service.kill9()?;
        service.wait_for_end(pid)?;
        assert_eq!(bpf::attached(host.cgroup().path())?.len(), PROGRAMS);
        // What the configuration says, which a daemon would read.
        let (socket, pinned) = (socket.display(), pins.display());
        let removed = steer("off", &[("--config", &config)])?.check()?;
        assert_eq!(removed, format!("no daemon answers at {socket}; removed {pinned}\n"));
        wait_for_programs(host, 0)?;
        assert!(!pins.exists());
        wait_until_gone("prog", ids(&before, "programs"))?;
        wait_until_gone("map", ids(&before, "maps"))?;
        let links = Command::new("bpftool").args(["link", "show"]).check()?;
        let ours =
            fs::metadata(host.cgroup().path()).map(|cgroup| std::os::unix::fs::MetadataExt::ino(&cgroup))?;
        assert!(!links.contains(&format!("cgroup_id {ours} ")), "{links}");
        goes_out()?;
        let nothing = steer("off", &[at, ("--pins", &pins)])?.check()?;
        assert_eq!(nothing, format!("no daemon answers at {socket}, and nothing is left in {pinned}\n"));
        let json = host.dworker(["steer", "off", "--json", "--config"])?.arg(&config).check()?;
        let expected = serde_json::json!({
            "changed": false, "removed": null, "socket": socket.to_string(), "pins": pinned.to_string(),
        });
        assert_eq!(serde_json::from_str::<Value>(&json)?, expected);
        Ok(())
    })
}

/// The ids of what a daemon has in the kernel.
fn ids(status: &Value, what: &str) -> Vec<u64> {
    let all = status["steer"][what].as_array().into_iter().flatten();
    let ids: Vec<u64> = all.filter_map(|one| one["id"].as_u64()).collect();
    assert!(!ids.is_empty(), "no {what}: {status:#}");
    ids
}

/// Waits until bpftool knows none of these: the kernel frees what nobody holds a moment later.
fn wait_until_gone(what: &str, ids: Vec<u64>) -> Result<()> {
    let deadline = Instant::now() + SOON;
    loop {
        let listed: Vec<Value> =
            serde_json::from_str(&Command::new("bpftool").args(["-j", what, "show"]).check()?)?;
        let left: Vec<_> =
            listed.iter().filter(|one| one["id"].as_u64().is_some_and(|id| ids.contains(&id))).collect();
        if left.is_empty() {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "{what}: {left:?}");
    }
}

#[test]
fn a_service_that_is_restarted_is_captured_again_and_what_is_excluded_is_not() -> Result<()> {
    let lab = Lab::new()?;
    let host = lab.appliance();
    let path = host.cgroup().path().join("app.service");
    let left_out = path.join("left-out");
    let house = House::new(&lab, |config| {
        let text = |path: &std::path::Path| vec![path.display().to_string()];
        config.set("steer.cgroups", text(&path)).set("steer.exclude_cgroups", text(&left_out))
    })?;
    let service = &house.appliance;
    lab.explain(|| {
        let _echo = lab.vcenter().serve(Serve::Echo, net::ECHO, 7)?;
        service.wait_for_line("there is no such cgroup")?;
        for round in 0..3 {
            let made = Instant::now();
            let cgroup = host.cgroup().child("app.service")?;
            while bpf::attached(cgroup.path())?.len() < PROGRAMS {
                anyhow::ensure!(made.elapsed() < SOON, "it is not captured");
            }
            eprintln!("captured {:?} after the cgroup was made", made.elapsed());
            let connect = |cgroup| -> Result<Report> {
                let client = host.captured_in(cgroup, Connect::to(ECHO, 7).send(1000).command()?);
                Ok(Report::read(&client.check()?)?.remove(0))
            };
            connect(&cgroup)?.assert_echo(1, 1000, "in the service's cgroup");
            let excluded = |status: &Value| status["steer"]["counters"]["excluded"].as_u64();
            let before = excluded(&service.status()?);
            let inner = cgroup.child("left-out")?;
            // Its exclusion is noticed as its making is.
            let deadline = Instant::now() + SOON;
            while excluded(&service.status()?) == before {
                let report = connect(&inner)?;
                if excluded(&service.status()?) > before {
                    assert!(report.failure.is_some(), "round {round}: {report:?}");
                }
                anyhow::ensure!(Instant::now() < deadline, "it is not excluded");
            }
            drop(inner);
            drop(cgroup);
        }
        let status = service.wait_for_status("no links", |status| {
            let programs = status["steer"]["programs"].as_array();
            programs.is_some_and(|all| all.iter().all(|p| p["links"].as_array().is_none_or(Vec::is_empty)))
        })?;
        assert!(status["steer"]["problem"].is_null(), "{status}");
        Ok(())
    })
}
