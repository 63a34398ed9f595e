//! `dworker why` says before a connection is made what the kernel then does with it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tests::traffic::{Connect, Family, Report, Serve};
use tests::{Cgroup, Command, Config, Daemon, Group, Host, Lab, Process, net};

const SOON: Duration = Duration::from_secs(30);
/// The cases, always the same.
const SEED: u64 = 4;
const CASES: usize = 200;
/// What the group at the site owns: there is a worker.
const AT_SITE: [&str; 5] = [
    "echo.corp.example:7001,7010-7012",
    "*.wild.corp.example:7001",
    "refused.corp.example",
    "10.77.3.0/24:7001-7003,443",
    "[fd77:0:0:3::/64]:7001-7003",
];
/// What another one owns, whose worker never comes.
const NOWHERE: [&str; 3] = ["*.nowhere.example", "10.77.4.20:443", "10.99.0.0/16"];
/// One that is a proxy host and one that is none, as `/etc/hosts` has them.
const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost\n\
                     10.9.9.9 hosts.wild.corp.example\n10.77.4.10 elsewhere.lan\n";
const TARGETS: [&str; 22] = [
    "echo.corp.example",
    "Echo.Corp.Example.",
    "a.wild.corp.example",
    "never-asked.wild.corp.example",
    "wild.corp.example",
    "hosts.wild.corp.example",
    "refused.corp.example",
    "a.nowhere.example",
    "direct.example",
    "elsewhere.lan",
    "none.example",
    "localhost",
    "10.77.3.30",
    "10.77.3.20",
    "fd77:0:0:3::30",
    "10.77.4.10",
    "10.77.4.20",
    "fd77:0:0:4::20",
    "10.99.1.2",
    "240.64.200.1",
    "2001:2::ffff",
    "127.0.0.1",
];
const PORTS: [u16; 7] = [7001, 7002, 7011, 443, 22, 53, 7001];

/// Where an application lives, and how it is asked about.
struct Place<'l> {
    name: &'static str,
    host: &'l Host,
    cgroup: Option<&'l Cgroup>,
    /// The user, where that is not root.
    user: Option<u32>,
    /// Its user or cgroup is excluded.
    excluded: bool,
    /// Somebody who lives there.
    neighbour: Option<Process>,
    /// Names are asked of a resolver that steering knows nothing of.
    addresses_only: bool,
}

impl Place<'_> {
    fn put(&self, command: Command) -> Command {
        match self.cgroup {
            Some(cgroup) => self.host.captured_in(cgroup, command),
            None => self.host.uncaptured(command),
        }
    }

    fn with_neighbour(mut self) -> Result<Self> {
        let command = match self.user {
            // It says when it is who it is to be.
            Some(user) => Command::new("setpriv").args([
                "--reuid",
                &user.to_string(),
                "--clear-groups",
                "sh",
                "-c",
                "echo here; exec sleep 1000",
            ]),
            None => Command::new("sh").args(["-c", "echo here; exec sleep 1000"]),
        };
        let neighbour = self.put(command).spawn()?;
        neighbour.wait_for_line("here", SOON)?;
        self.neighbour = Some(neighbour);
        Ok(self)
    }

    /// The options that mean it.
    fn options(&self) -> Vec<String> {
        match (&self.neighbour, self.cgroup) {
            (Some(process), _) => vec!["--pid".into(), process.pid().to_string()],
            (None, Some(cgroup)) => vec!["--cgroup".into(), cgroup.path().display().to_string()],
            (None, None) => vec![],
        }
    }
}

/// One connection, before and after.
#[derive(Debug)]
struct Case {
    /// From where to where.
    title: String,
    why: Value,
    /// Whoever asked for its name was left alone, too.
    unanswered: bool,
    report: Report,
    counted: BTreeMap<String, u64>,
}

fn why(lab: &Lab, target: &str, options: &[String]) -> Result<Value> {
    let command = lab.appliance().dworker(["why", target, "-j", "--socket"])?;
    let output = command.arg(lab.appliance().socket("appliance")).args(options).output()?;
    let why = output.json()?;
    let code = match why["verdict"].as_str() {
        Some("steered" | "answered") => 0,
        Some("direct") => 10,
        Some("refused") => 11,
        _ => bail!("{output}"),
    };
    assert_eq!(output.status.code(), Some(code), "{output}");
    Ok(why)
}

fn counters(appliance: &Daemon) -> Result<BTreeMap<String, u64>> {
    Ok(serde_json::from_value(appliance.status()?["steer"]["counters"].clone())?)
}

/// As it is written before the port.
fn written(target: &str, port: u16, mapped: bool) -> String {
    match target.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(v4)) if mapped => format!("[{}]:{port}", v4.to_ipv6_mapped()),
        Ok(std::net::IpAddr::V6(v6)) => format!("[{v6}]:{port}"),
        _ => format!("{target}:{port}"),
    }
}

impl Case {
    fn run(
        lab: &Lab,
        appliance: &Daemon,
        place: &Place<'_>,
        target: &str,
        port: u16,
        family: Family,
    ) -> Result<Case> {
        let asked = written(target, port, family == Family::Mapped);
        let before = counters(appliance)?;
        let why = why(lab, &asked, &place.options())?;
        let connect = Connect { user: place.user, ..Connect::to(target, port).family(family).send(100) };
        let printed = place.put(connect.command()?).check()?;
        let report = Report::read(&printed)?.pop().with_context(|| format!("no report: {printed}"))?;
        let mut counted = counters(appliance)?;
        counted.retain(|word, n| {
            *n -= before.get(word).copied().unwrap_or(0);
            // The questions for its name.
            *n > 0 && word != "dns-udp" && (word != "dns-tcp" || why["verdict"] == "answered")
        });
        let unanswered = place.excluded && target.parse::<std::net::IpAddr>().is_err();
        Ok(Case { title: format!("{}: {asked} {family:?}", place.name), why, unanswered, report, counted })
    }

    /// What was said is what happened.
    fn check(&self, appliance: &Daemon) -> Result<()> {
        let what = format!("{}: {self:#?}", self.title);
        let reason = self.why["reason"].as_str().with_context(|| what.clone())?;
        let failure = self.report.failure.as_deref();
        let mut counted: BTreeSet<&str> = self.counted.keys().map(String::as_str).collect();
        if self.unanswered {
            // The question counts as excluded; where it led no rule may name.
            let asked = counted.remove("excluded");
            if reason == "excluded" {
                assert!(asked && (counted.is_empty() || counted == BTreeSet::from(["direct"])), "{what}");
                counted = BTreeSet::from(["excluded"]);
            }
        }
        let expected = match reason {
            // Nobody connects where there is no address.
            "unresolved" => {
                assert!(failure.is_some_and(|failure| !failure.starts_with('E')), "{what}");
                BTreeSet::new()
            }
            "not-captured" | "loopback" => BTreeSet::new(),
            reason => BTreeSet::from([reason]),
        };
        assert_eq!(counted, expected, "{what}");
        let on_loopback = self.report.local.is_some_and(|local| local.ip().to_canonical().is_loopback());
        match self.why["verdict"].as_str() {
            Some("refused") => {
                let errno = self.why["line"].as_str().and_then(|line| line.strip_prefix("refused: "));
                let errno = errno.and_then(|line| line.split(':').next());
                assert_eq!((failure, self.why["errno"].is_i64()), (errno, true), "{what}");
            }
            Some("steered") => {
                assert!(on_loopback && failure.is_none(), "{what}");
                let flow = appliance.status()?["flows"]["recent"][0].clone();
                let (name, node) = (&self.why["carrier"]["name"], &self.why["carrier"]["node"]);
                let carrier = format!("{}/{}", name.as_str().unwrap_or("?"), node.as_str().unwrap_or("?"));
                assert_eq!(flow["carrier"], carrier, "{flow:#} {what}");
                if let Some(address) = self.why["address"].as_str() {
                    assert!(
                        flow["original"].as_str().is_some_and(|to| to.contains(address)),
                        "{flow:#} {what}"
                    );
                }
            }
            Some("answered") => assert!(on_loopback && failure.is_none(), "{what}"),
            _ if reason == "loopback" => {}
            _ => assert!(!on_loopback, "{what}"),
        }
        Ok(())
    }
}

#[test]
fn what_is_said_before_is_what_the_kernel_does() -> Result<()> {
    let lab = Lab::new()?;
    lab.appliance().set_hosts(HOSTS)?;
    let _servers = [7001, 7011].map(|port| lab.vcenter().serve(Serve::Echo, net::ECHO, port));
    let captured = lab.appliance().cgroup();
    let left_out = captured.child("left-out")?;
    let (here, nowhere) = (Group::new("site-a", AT_SITE)?, Group::new("site-b", NOWHERE)?);
    let config = Config::new()
        .appliance(&lab.appliance_identity()?, &[&here, &nowhere])
        .steer(&[lab.appliance().cgroup()])
        // What was once down stays so: what was said holds until it is tried.
        .set("steer.down_for", "60s")
        .set("steer.exclude_users", vec!["nobody"])
        .set("steer.exclude_cgroups", vec![left_out.path().display().to_string()]);
    let appliance = lab.appliance().daemon("appliance", config)?;
    let allow = ["*.corp.example", net::SITE_PREFIX4, net::SITE_PREFIX6];
    let _worker = lab.site().daemon("worker", Config::new().worker(&here, lab.pki().ca_file(), allow))?;
    appliance.wait_for_group("site-a", SOON)?;
    lab.explain(|| {
        // Who never came is waited for, for a moment.
        let start = Instant::now();
        while why(&lab, "a.nowhere.example", &[])?["reason"] != "refused-group" {
            assert!(start.elapsed() < SOON, "site-b is still waited for");
        }
        let child = captured.child("inner")?;
        let (on, off) = (lab.appliance(), lab.elsewhere());
        let place = |name, host, cgroup| Place {
            name,
            host,
            cgroup,
            user: None,
            excluded: false,
            neighbour: None,
            addresses_only: false,
        };
        let nobody = Some(65534);
        let places = [
            place("captured", on, Some(captured)).with_neighbour()?,
            place("captured, by its cgroup", on, Some(captured)),
            place("below a captured cgroup", on, Some(&child)).with_neighbour()?,
            place("not captured", on, None).with_neighbour()?,
            Place { excluded: true, ..place("an excluded cgroup", on, Some(&left_out)) },
            Place { user: nobody, excluded: true, ..place("an excluded user", on, Some(captured)) }
                .with_neighbour()?,
            Place { user: nobody, excluded: true, ..place("excluded twice", on, Some(&left_out)) }
                .with_neighbour()?,
            Place { addresses_only: true, ..place("another network", off, Some(captured)).with_neighbour()? },
        ];
        println!("seed {SEED}");
        let mut random = StdRng::seed_from_u64(SEED);
        let (mut reasons, mut done) = (BTreeMap::<String, usize>::new(), 0);
        while done < CASES {
            // Half of them where all of steering is to be seen.
            let at = if random.random_bool(0.5) { 0 } else { random.random_range(0..places.len()) };
            let place = &places[at];
            let target = *TARGETS.choose(&mut random).context("a target")?;
            let port = *PORTS.choose(&mut random).context("a port")?;
            let is_address = target.parse::<std::net::IpAddr>().is_ok();
            if place.addresses_only && !is_address {
                continue;
            }
            let is_v4 = target.parse::<std::net::Ipv4Addr>().is_ok();
            let family = match (is_v4, is_address) {
                (true, _) if random.random_bool(0.3) => Family::Mapped,
                (false, false) => Family::V4,
                _ => Family::Any,
            };
            let began = Instant::now();
            let case = Case::run(&lab, &appliance, place, target, port, family)?;
            if began.elapsed() > Duration::from_secs(1) {
                println!("{:.1?}: {}", began.elapsed(), case.title);
            }
            // What ends between the question and the connection may be said either way.
            if case.why["down"]["remaining_ms"].as_u64().is_some_and(|left| left < 2000) {
                continue;
            }
            case.check(&appliance)?;
            *reasons.entry(case.why["reason"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
            done += 1;
        }
        println!("{CASES} cases in {:.1?}: {reasons:?}", start.elapsed());
        // The cases are worth something.
        for reason in [
            "steered",
            "direct",
            "not-captured",
            "foreign-netns",
            "excluded",
            "loopback",
            "unresolved",
            "refused-group",
            "refused-down",
            "refused-port",
            "refused-stale-synthetic",
            "dns-tcp",
        ] {
            assert!(reasons.contains_key(reason), "no case of {reason}: {reasons:?}");
        }

        // For people.
        let said = |args: &[&str]| -> Result<String> {
            let command = on.dworker(["why"])?.args(args).arg("--socket").arg(on.socket("appliance"));
            let output = command.output()?;
            Ok(format!("{}{}", output.stdout, output.stderr))
        };
        let text = said(&["echo.corp.example:7001"])?;
        assert!(text.starts_with("steered to group site-a, node site (primary)\n"), "{text}");
        assert!(text.contains("\tname    echo.corp.example -> 240.64.0."), "{text}");
        let text = said(&["b.nowhere.example"])?;
        assert!(text.starts_with("refused: EHOSTUNREACH: no worker of site-b is connected\n"), "{text}");
        assert!(text.contains("a synthetic address, with the first question"), "{text}");
        let text = said(&["direct.example", "--pid", "4294967295"])?;
        assert!(text.contains("there is no process 4294967295"), "{text}");
        let text = said(&["direct.example", "--cgroup", "no/such"])?;
        assert!(text.contains("cgroup") && text.contains("no/such"), "{text}");
        let text = said(&["refused.corp.example:7002"])?;
        assert!(text.contains("\tdown    ECONNREFUSED, ") && text.contains("\tfailed  flow "), "{text}");
        let text = said(&["10.77.3.30:7001", "--uid", "65534"])?;
        assert!(text.starts_with("direct: user nobody is excluded\n"), "{text}");
        let left_out = left_out.path().display().to_string();
        let text = said(&["echo.corp.example:7001", "--cgroup", &left_out])?;
        assert!(text.starts_with(&format!("direct: cgroup {left_out} is excluded")), "{text}");
        assert!(text.contains(&format!("excluded by cgroup {left_out}")), "{text}");

        // What an address stands for is asked for, so all is said of it that is said of the name.
        for target in ["echo.corp.example:7001", "refused.corp.example:7002"] {
            let named = why(&lab, target, &[])?;
            let address = named["name"]["addresses"][0].as_str().context("no address")?;
            let (_, port) = target.rsplit_once(':').context("no port")?;
            let standing = why(&lab, &format!("{address}:{port}"), &[])?;
            for part in ["verdict", "reason", "rule", "carrier", "policy", "name"] {
                assert_eq!(standing[part], named[part], "{part} of {standing:#}");
            }
            assert_eq!(standing["policy"]["allowed"], true, "{standing:#}");
            let failed = |why: &Value| why["failed"].as_array().map(Vec::len);
            assert_eq!(failed(&standing), failed(&named), "{standing:#}");
        }
        // A name that others gave drives no terminal.
        let odd = captured.child("odd\u{1b}[2J")?;
        let text = said(&["10.77.3.30:7001", "--cgroup", &odd.path().display().to_string()])?;
        assert!(text.starts_with("steered ") && text.contains("odd\u{fffd}[2J"), "{text:?}");
        assert!(!text.contains('\u{1b}'), "{text:?}");

        // Without steering nothing is steered, and it is said why.
        let steer = |to| -> Result<String> {
            on.dworker(["steer", to, "--socket"])?.arg(on.socket("appliance")).check()
        };
        let here = &places[0];
        assert_eq!(steer("off")?, "steering is off\n");
        let asked = why(&lab, "10.77.3.30:7001", &here.options())?;
        assert_eq!(
            (&asked["reason"], &asked["scope"]["off"]),
            (&"steering-off".into(), &true.into()),
            "{asked:#}"
        );
        let text = said(&["10.77.3.30:7001"])?;
        assert!(text.starts_with("direct: steering is off: `dworker steer on` captures again\n"), "{text}");
        let case = Case::run(&lab, &appliance, here, "10.77.3.30", 7001, Family::Any)?;
        assert!(case.counted.is_empty() && case.report.failure.is_some(), "{case:#?}");
        steer("on")?;
        Case::run(&lab, &appliance, here, "10.77.3.30", 7001, Family::Any)?.check(&appliance)?;

        // A resolver that does not answer has not said that there is no address.
        on.set_resolv_conf("nameserver 10.99.99.99\noptions timeout:1 attempts:1\n")?;
        let command = on.dworker(["why", "silent.example", "--socket"])?.arg(on.socket("appliance"));
        let silent = command.output()?;
        assert_eq!(silent.status.code(), Some(1), "{silent}");
        assert!(
            silent.stderr.contains("silent.example") && silent.stderr.contains("is not known"),
            "{silent}"
        );
        Ok(())
    })
}
