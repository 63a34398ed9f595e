//! `dworker doctor` finds nothing where all is well, and each fault that is planted, that one alone; and leaves nothing
//! behind.

mod site;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::traffic::Serve;
use tests::{Cgroup, Command, Config, Daemon, Dual, Group, Host, Identity, Lab, Output, Validity, bpf, net};

use crate::schema::judge;

const SOON: Duration = Duration::from_secs(60);
const PORT: u16 = 7001;
const HOSTS: [&str; 2] = ["echo.corp.example:7001", "*.wild.corp.example"];

/// A host that is looked at.
struct Patient<'l> {
    host: &'l Host,
    config: PathBuf,
}

impl Patient<'_> {
    fn command(&self, config: &Path) -> Result<Command> {
        Ok(self.host.dworker(["doctor", "-j", "--config"])?.arg(config))
    }

    /// What is wrong, by this configuration: with warnings and errors alone.
    fn looked(&self, output: Output) -> Result<Vec<(String, String, String)>> {
        let said = output.json()?;
        judge(&[("Diagnosis", said.clone())])?;
        let findings = said["findings"].as_array().with_context(|| format!("{output}"))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut wrong = Vec::new();
        for finding in findings {
            let severity = text(&finding["severity"]);
            if severity == "warning" || severity == "error" {
                assert!(!text(&finding["remedy"]).is_empty(), "no remedy: {finding:#}");
                wrong.push((text(&finding["id"]), severity, text(&finding["found"])));
            }
        }
        let code = match said["severity"].as_str() {
            Some("ok" | "notice") => 0,
            Some("warning") => 1,
            _ => 2,
        };
        assert_eq!(output.status.code(), Some(code), "{output}");
        Ok(wrong)
    }

    /// By this output exactly this is wrong, once; the text has these parts.
    fn found(&self, planted: &str, output: Output, id: &str, severity: &str, parts: &[&str]) -> Result<()> {
        let wrong = self.looked(output)?;
        let ids: Vec<_> = wrong.iter().map(|(id, severity, _)| (id.as_str(), severity.as_str())).collect();
        assert_eq!(ids, [(id, severity)], "{planted}: {wrong:#?}");
        for part in parts {
            assert!(wrong[0].2.contains(part), "{planted}: no {part:?} in {:?}", wrong[0].2);
        }
        println!("{planted}: {id}: {}", wrong[0].2);
        Ok(())
    }

    fn finds(&self, planted: &str, id: &str, severity: &str, parts: &[&str]) -> Result<()> {
        self.found(planted, self.command(&self.config)?.output()?, id, severity, parts)
    }

    /// With the configuration changed: the lines of these keys are replaced, or put before all others.
    fn with(&self, changes: &[(&str, &str)], more: &str) -> Result<PathBuf> {
        let text = fs::read_to_string(&self.config)?;
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        for (key, value) in changes {
            let line = format!("{key} = {value}");
            match lines.iter_mut().find(|line| line.starts_with(&format!("{key} = "))) {
                Some(old) => *old = line,
                None => lines.insert(0, line),
            }
        }
        let path = self.host.directory().join("variant.toml");
        fs::write(&path, lines.join("\n") + "\n" + more)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(path)
    }

    fn finds_with(
        &self,
        planted: &str,
        changes: &[(&str, &str)],
        more: &str,
        (id, severity): (&str, &str),
        parts: &[&str],
    ) -> Result<()> {
        let config = self.with(changes, more)?;
        self.found(planted, self.command(&config)?.output()?, id, severity, parts)
    }

    /// With a script before it, in a mount namespace of its own.
    fn finds_behind(
        &self,
        planted: &str,
        script: &str,
        (id, severity): (&str, &str),
        parts: &[&str],
    ) -> Result<()> {
        let shell = format!("{script} && exec \"$@\"");
        let command =
            Command::new("unshare").args(["--mount", "--propagation", "private", "sh", "-c", &shell, "sh"]);
        let command = command.arg(tests::program()?).args(["doctor", "-j", "--config"]).arg(&self.config);
        self.found(planted, self.host.uncaptured(command).output()?, id, severity, parts)
    }

    fn finds_nothing(&self) -> Result<()> {
        let output = self.command(&self.config)?.output()?;
        assert_eq!(self.looked(output)?, [], "all is well on {}", self.host.name());
        Ok(())
    }
}

/// What a look must leave as it was.
fn left(lab: &Lab, appliance: &Daemon) -> Result<Value> {
    let status = appliance.status()?;
    let names = |path: &Path| -> Result<BTreeSet<String>> {
        Ok(fs::read_dir(path)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<std::io::Result<_>>()?)
    };
    let steer = &status["steer"];
    let state = lab.appliance().directory().join("appliance-state");
    Ok(json!({
        "cgroups": names(lab.appliance().cgroup().path())?,
        "programs": bpf::attached(lab.appliance().cgroup().path())?.len(),
        "state": names(&state)?,
        "names": steer["names"], "rules": steer["rules"], "resolvers": steer["resolvers"], "refused": steer["refused"],
        "flows": status["flows"],
        "since": status["appliance"]["groups"][0]["nodes"][0]["since"],
        "nodes": status["appliance"]["groups"][0]["nodes"].as_array().map(Vec::len),
    }))
}

fn link(status: &Value, program: &str) -> Result<String> {
    let programs = status["steer"]["programs"].as_array().context("no programs")?;
    let found = programs.iter().find(|found| found["name"] == program).context("no such program")?;
    Ok(found["links"][0]["id"].to_string())
}

fn steer(host: &Host, to: &str) -> Result<()> {
    let command = host.dworker(["steer", to, "--socket"])?.arg(host.socket("appliance"));
    let command = if to == "off" { command.arg("--pins").arg(host.pins("appliance")) } else { command };
    command.check().map(drop)
}

struct House<'l> {
    lab: &'l Lab,
    appliance: Daemon,
    worker: Daemon,
    echo: Option<tests::traffic::Server>,
    extra: Option<Cgroup>,
    identity: Identity,
}

impl<'l> House<'l> {
    fn new(lab: &'l Lab) -> Result<House<'l>> {
        let echo = Some(lab.vcenter().serve(Serve::Echo, net::ECHO, PORT)?);
        let extra = lab.appliance().cgroup().child("extra")?;
        let group = Group::new("site-a", HOSTS)?;
        let identity = lab.appliance_identity()?;
        let config = Config::new().appliance(&identity, &[&group]).steer(&[lab.appliance().cgroup(), &extra]);
        let appliance = lab.appliance().daemon("appliance", config)?;
        let worker = lab
            .site()
            .daemon("worker", Config::new().worker(&group, lab.pki().ca_file(), ["*.corp.example"]))?;
        appliance.wait_for_group("site-a", SOON)?;
        let connected =
            |status: &Value| status["worker"]["lanes"].as_array().is_some_and(|lanes| lanes.len() == 2);
        worker.wait_for_status("both lanes", SOON, connected)?;
        Ok(House { lab, appliance, worker, echo, extra: Some(extra), identity })
    }

    fn patients(&self) -> [Patient<'l>; 2] {
        [
            Patient { host: self.lab.appliance(), config: self.appliance.config().to_owned() },
            Patient { host: self.lab.site(), config: self.worker.config().to_owned() },
        ]
    }
}

/// Plants faults in a house where all is well; it is well again behind them.
fn plant(faults: impl FnOnce(&mut House<'_>, &[Patient<'_>; 2]) -> Result<()>) -> Result<()> {
    let lab = Lab::new()?;
    let mut house = House::new(&lab)?;
    lab.explain(|| {
        let patients = house.patients();
        faults(&mut house, &patients)?;
        patients.iter().try_for_each(Patient::finds_nothing)
    })
}

#[test]
fn nothing_is_found_where_all_is_well_and_a_look_leaves_nothing() -> Result<()> {
    plant(|house, patients| {
        let [appliance, site] = patients;
        let start = Instant::now();
        appliance.finds_nothing()?;
        println!("a look takes {:.1?}", start.elapsed());
        site.finds_nothing()?;
        let before = left(house.lab, &house.appliance)?;
        appliance.finds_nothing()?;
        site.finds_nothing()?;
        assert_eq!(left(house.lab, &house.appliance)?, before, "a look leaves nothing");
        for daemon in [&house.appliance, &house.worker] {
            let log = daemon.log();
            assert!(!log.contains("WARN") && !log.contains("ERROR"), "a look is nothing to tell of: {log}");
        }
        let plain = appliance.host.dworker(["doctor", "--config"])?.arg(&appliance.config).check()?;
        for part in [
            "ok       canary                 each hook fires",
            "notice   targets-untried        not tried: *.wild.corp.example",
            "1 of the proxy hosts were reached through the tunnel",
            "0 errors, 0 warnings",
        ] {
            assert!(plain.contains(part), "no {part:?} in {plain}");
        }
        Ok(())
    })
}

// Each fault is found, and that one alone.

#[test]
fn what_is_wrong_with_steering_is_found() -> Result<()> {
    plant(|house, [patient, _]| steering(house, patient))
}

#[test]
fn what_is_wrong_with_names_is_found() -> Result<()> {
    plant(|_, [patient, _]| names(patient))
}

#[test]
fn what_is_wrong_with_the_machine_and_the_files_is_found() -> Result<()> {
    plant(|_, [patient, _]| machine(patient))
}

#[test]
fn what_is_wrong_with_certificates_and_workers_is_found() -> Result<()> {
    plant(workers)
}

#[test]
fn what_is_wrong_at_the_site_is_found() -> Result<()> {
    plant(|house, [_, patient]| site::at_the_site(house, patient))
}

#[test]
fn that_there_is_no_daemon_is_found() -> Result<()> {
    plant(|house, [patient, _]| without_a_daemon(house, patient))
}

#[test]
fn what_is_excluded_is_not_missed_and_a_reload_mends_what_was_detached() -> Result<()> {
    let lab = Lab::new()?;
    let host = lab.appliance();
    let _echo = lab.vcenter().serve(Serve::Echo, net::ECHO, PORT)?;
    let group = Group::new("site-a", HOSTS)?;
    let config = Config::new()
        .appliance(&lab.appliance_identity()?, &[&group])
        .steer(&[host.cgroup()])
        .set("steer.families", json!(["ipv6"]))
        .set("steer.exclude_users", json!(["root"]));
    let service = host.service("appliance", config)?;
    let _worker =
        lab.site().daemon("worker", Config::new().worker(&group, lab.pki().ca_file(), ["*.corp.example"]))?;
    lab.explain(|| {
        service.wait_for_status("the worker", |status| status["appliance"]["groups"][0]["up"] == true)?;
        let patient = Patient { host, config: host.directory().join("appliance.toml") };
        patient.finds_nothing()?;
        for program in ["dw_sock_ops", "dw_connect6"] {
            let id = link(&service.status()?, program)?;
            Command::new("bpftool").args(["link", "detach", "id", &id]).check()?;
            patient.finds("a link is detached", "hook-detached", "error", &[program])?;
            service.reload(host)?.check()?;
            service.wait_for_status("the worker", |status| status["appliance"]["groups"][0]["up"] == true)?;
            patient.finds_nothing()?;
        }
        // Two that look at once.
        let both = [patient.command(&patient.config)?.spawn()?, patient.command(&patient.config)?.spawn()?];
        for mut doctor in both {
            assert!(doctor.wait(SOON)?.code().is_some_and(|code| code < 2), "{}", doctor.stdout());
        }
        let children = fs::read_dir(host.cgroup().path())?.flatten().filter(|entry| entry.path().is_dir());
        assert_eq!(children.count(), 0, "no cgroup is left");
        Ok(())
    })
}

fn steering(house: &mut House<'_>, patient: &Patient<'_>) -> Result<()> {
    let lab = house.lab;
    let host = lab.appliance();
    for (program, hook) in [("dw_recvmsg4", "cgroup_udp4_recvmsg"), ("dw_connect4", "cgroup_inet4_connect")] {
        let id = link(&house.appliance.status()?, program)?;
        Command::new("bpftool").args(["link", "detach", "id", &id]).check()?;
        patient.finds("a link is detached", "hook-detached", "error", &[program, hook])?;
        steer(host, "off")?;
        steer(host, "on")?;
    }
    steer(host, "off")?;
    patient.finds("steering is off", "steering-off", "warning", &[])?;
    steer(host, "on")?;
    let path = house.extra.take().context("the cgroup")?.path().to_owned();
    patient.finds("a cgroup is gone", "cgroup-gone", "warning", &[&path.display().to_string()])?;
    house.extra = Some(host.cgroup().child("extra")?);
    let again = path.display().to_string();
    let alive = |status: &Value| {
        let programs = status["steer"]["programs"].as_array().map(Vec::as_slice).unwrap_or_default();
        let has = |program: &Value| {
            let links = program["links"].as_array().map(Vec::as_slice).unwrap_or_default();
            links.iter().any(|link| link["cgroup"] == again.as_str() && link["alive"] == true)
        };
        !programs.is_empty() && programs.iter().all(has)
    };
    house.appliance.wait_for_status("the cgroup captured again", SOON, alive)?;
    {
        let later = host.cgroup().sibling("later")?;
        let path = later.path().display().to_string();
        let text = fs::read_to_string(&patient.config)?;
        fs::write(&patient.config, text.replace("\ncgroups = [", &format!("\ncgroups = [{path:?}, ")))?;
        let due = "a reload is due: changed: steer.cgroups";
        let looked =
            patient.finds("a cgroup that is in the file alone", "cgroup-uncaptured", "error", &[&path, due]);
        fs::write(&patient.config, text)?;
        looked?;
    }
    {
        let stranger = Group::new("stranger", ["a.example"])?;
        let config = Config::new()
            .worker(&stranger, lab.pki().ca_file(), ["a.example"])
            .steer(&[host.cgroup()])
            .set("steer.proxy_hosts", json!(["b.example"]))
            .set("steer.synthetic4", "240.65.0.0/16")
            .set("steer.synthetic6", "2001:2:1::/48")
            .set("metrics.listen", json!([]));
        let _second = host.daemon("second", config)?;
        patient.finds("two daemons", "two-daemons", "error", &["dw_connect4"])?;
    }
    Ok(())
}

fn names(patient: &Patient<'_>) -> Result<()> {
    let host = patient.host;
    host.set_hosts("127.0.0.1 localhost\n::1 localhost\n10.77.3.30 echo.corp.example\n")?;
    patient.finds("a name in hosts", "hosts-file", "warning", &["echo.corp.example", "10.77.3.30"])?;
    host.set_hosts("127.0.0.1 localhost echo.corp.example\n::1 localhost\n")?;
    patient.finds("a name in hosts that means this host", "hosts-file", "error", &["127.0.0.1"])?;
    host.set_hosts("127.0.0.1 localhost\n::1 localhost\n")?;
    host.set_name_sources("files resolve [!UNAVAIL=return] dns")?;
    patient.finds("nss-resolve", "nss-resolve", "warning", &["files resolve [!UNAVAIL=return] dns"])?;
    host.set_name_sources("files")?;
    patient.finds("no DNS", "name-lookup", "error", &["canary.dworker.invalid"])?;
    host.set_name_sources("files dns")?;
    // The C library sorts addresses by this file, and waits for who writes into it: longer than the daemon for a question.
    let pipe = host.directory().join("pipe").display().to_string();
    let script = format!("mkfifo {pipe} && mount --bind {pipe} /etc/gai.conf");
    patient.finds_behind(
        "a look-up without an end",
        &script,
        ("name-lookup", "error"),
        &["getaddrinfo() does not come to an end"],
    )?;
    let resolver = format!("nameserver {}\noptions timeout:2 attempts:2\n", net::APPLIANCE_RESOLVER.v4);
    host.set_resolv_conf(&format!("nameserver {}\n", net::DIRECT.v4))?;
    patient.finds("a dead resolver", "resolver", "error", &[&net::DIRECT.v4.to_string()])?;
    host.set_resolv_conf(&format!("{resolver}nameserver {}\n", net::DIRECT.v4))?;
    patient.finds("one of two resolvers is dead", "resolver", "warning", &[&net::DIRECT.v4.to_string()])?;
    host.set_resolv_conf(&resolver)?;
    host.netns().ip("address add 240.64.7.1/24 dev lo")?;
    patient.finds("an overlap", "synthetic-overlap", "error", &["240.64.7.1", "steer.synthetic4"])?;
    host.netns().ip("address del 240.64.7.1/24 dev lo")
}

fn machine(patient: &Patient<'_>) -> Result<()> {
    let host = patient.host;
    let state = host.directory().join("appliance-state").display().to_string();
    let script = format!("mount --bind {state} {state} && mount -o remount,bind,ro {state}");
    patient.finds_behind(
        "a state directory that is read only",
        &script,
        ("state-dir", "error"),
        &[&state],
    )?;
    let script = format!("mount -t tmpfs -o size=8m none {state}");
    patient.finds_behind("a full disk", &script, ("disk-space", "error"), &[&state])?;
    let dropped = Command::new("capsh").args([
        "--drop=cap_bpf,cap_sys_admin,cap_perfmon",
        "--shell=/bin/sh",
        "--",
        "-c",
    ]);
    let dropped = dropped.arg(format!(
        "exec {} doctor -j --config {}",
        tests::program()?.display(),
        patient.config.display()
    ));
    let output = host.uncaptured(dropped).output()?;
    patient.found("a capability is missing", output, "capabilities", "warning", &["CAP_BPF"])?;
    let squatter =
        host.serve(Serve::Echo, Dual { v4: [127, 0, 0, 1].into(), v6: std::net::Ipv6Addr::LOCALHOST }, 3128)?;
    let proxy = "\n[proxy]\nhttp = [\"127.0.0.1:3128\"]\n";
    patient.finds_with(
        "a port is taken",
        &[],
        proxy,
        ("port-taken", "error"),
        &["127.0.0.1:3128", "lab-tool["],
    )?;
    drop(squatter);
    patient.finds_with(
        "a configuration that is not loaded",
        &[],
        proxy,
        ("port-unused", "warning"),
        &["127.0.0.1:3128"],
    )?;
    let pins = host.directory().display().to_string();
    let changed = [("pins", &*format!("{pins:?}"))];
    patient.finds_with("pins on no bpf file system", &changed, "", ("bpffs", "error"), &[&pins])?;
    let slip = patient.with(&[("drian", "\"10s\"")], "")?;
    let output = patient.command(&slip)?.arg("--socket").arg(host.socket("appliance")).output()?;
    patient.found("a slip", output, "configuration", "error", &["drian"])
}

fn workers(house: &mut House<'_>, [patient, _]: &[Patient<'_>; 2]) -> Result<()> {
    let lab = house.lab;
    let ending = lab.pki().issue(&["appliance.example"], Validity::Ending)?;
    let saved = [fs::read(&house.identity.certificate)?, fs::read(&house.identity.key)?];
    fs::copy(&ending.certificate, &house.identity.certificate)?;
    fs::copy(&ending.key, &house.identity.key)?;
    let looked = patient.finds(
        "a certificate ends soon",
        "certificate-expires",
        "warning",
        &["in 10 days", "appliance.example"],
    );
    fs::write(&house.identity.certificate, &saved[0])?;
    fs::write(&house.identity.key, &saved[1])?;
    looked?;

    // Workers and targets.
    house.echo = None;
    patient.finds(
        "a target is down",
        "target-unreachable",
        "error",
        &["echo.corp.example:7001", "refused"],
    )?;
    house.echo = Some(lab.vcenter().serve(Serve::Echo, net::ECHO, PORT)?);
    house.worker.stop(SOON)?;
    house
        .appliance
        .wait_for_status("nobody", SOON, |status| status["appliance"]["groups"][0]["up"] == false)?;
    patient.finds("a worker is offline", "worker-offline", "error", &["site-a", "echo.corp.example:7001"])?;
    house.worker.start()?;
    house.appliance.wait_for_group("site-a", SOON)
}

fn without_a_daemon(house: &mut House<'_>, patient: &Patient<'_>) -> Result<()> {
    house.appliance.kill9()?;
    let wrong = patient.looked(patient.command(&patient.config)?.output()?)?;
    let ids: Vec<_> = wrong.iter().map(|(id, ..)| id.as_str()).collect();
    assert_eq!(ids, ["daemon", "left-behind"], "{wrong:#?}");
    let names = patient.host.directory().join("appliance-state/names");
    let saved = fs::read(&names)?;
    fs::write(&names, "dworker names 1 240.0.0.0/16 2001:2::/48\n")?;
    let wrong = patient.looked(patient.command(&patient.config)?.output()?)?;
    let ids: Vec<_> = wrong.iter().map(|(id, ..)| id.as_str()).collect();
    assert_eq!(ids, ["daemon", "names-file", "left-behind"], "{wrong:#?}");
    fs::write(&names, saved)?;
    house.appliance.start()?;
    house.appliance.wait_for_group("site-a", SOON)
}
