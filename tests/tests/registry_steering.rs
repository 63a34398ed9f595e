//! Proxy hosts that come and go in a running appliance's registry, as the applications on its host see it.
//!
//! The appliance begins with an empty state directory and no worker. What is saved through its API is steered within
//! [`SOON`], what is removed goes direct within [`SOON`], and what is open stays open.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use tests::traffic::{Connect, Order, Report, Serve};
use tests::{APPLIANCE_URL, Bytes, Config, Daemon, Group, Lab, Output, Process, Signal, net};

/// How soon after the answer to a save new connections go their new way.
const SOON: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(30);
/// How many connections in a row must go that way then.
const IN_A_ROW: usize = 10;
/// More than fits into all buffers on the way: who does not read it holds it up.
const LARGE: u64 = 64 << 20;
/// Bytes of a transfer that is under way.
const UNDER_WAY: u64 = 64 << 10;
const SEED: u64 = 3;
const WORKER: &str = "site-a";
/// What the worker may dial.
const ALLOW: [&str; 2] = ["*.corp.example", "10.77.4.0/24"];

/// The appliance, and a worker that was added to its registry.
struct House<'l> {
    lab: &'l Lab,
    appliance: Daemon,
    token: String,
    _worker: Option<Daemon>,
}

/// Which way a connection went.
#[derive(Debug, Clone, PartialEq)]
enum Way {
    Steered,
    Direct,
    /// None: it failed so.
    Failed(String),
}

impl House<'_> {
    fn new(lab: &Lab) -> Result<House<'_>> {
        let config =
            Config::new().appliance(&lab.appliance_identity()?, &[]).steer(&[lab.appliance().cgroup()]);
        let appliance = lab.appliance().daemon("appliance", config)?;
        let line = appliance.wait_for_line("the admin token, shown this once: ", PATIENCE)?;
        let token = line.rsplit(' ').next().context("no token")?.to_owned();
        let mut house = House { lab, appliance, token, _worker: None };
        let added = house.api(&["worker", "add", WORKER])?.json()?;
        let key = added["key"].as_str().with_context(|| format!("no key: {added}"))?.to_owned();
        let group = Group { name: WORKER.into(), key, proxy_hosts: vec![], may_open: false };
        let config = Config::new().worker(&group, lab.pki().ca_file(), ALLOW);
        house._worker = Some(lab.site().daemon("worker", config)?);
        house.appliance.wait_for_group(WORKER, PATIENCE)?;
        Ok(house)
    }

    /// A command that asks the appliance's API over the network, from another host.
    fn api(&self, args: &[&str]) -> Result<Output> {
        let command = self.lab.site().dworker(args)?.args(["-j", "--url", APPLIANCE_URL, "--ca-file"]);
        command.arg(self.lab.pki().ca_file()).env("DWORKER_TOKEN", &self.token).output()
    }

    /// Saves the worker's proxy hosts; returns when that was answered.
    fn save(&self, proxy_hosts: &str) -> Result<Instant> {
        let output = self.api(&["worker", "edit", WORKER, "--proxy-hosts", proxy_hosts])?;
        assert!(output.status.success(), "{output}");
        Ok(Instant::now())
    }

    /// Which way an echo of a captured application goes.
    fn way(&self, host: &str, port: u16) -> Result<Way> {
        const LENGTH: u64 = 1000;
        let report = Connect::to(host, port).send(LENGTH).once(self.lab.appliance())?;
        if let Some(failure) = report.failure {
            return Ok(Way::Failed(failure));
        }
        if report.end != "eof" {
            return Ok(Way::Failed(report.end));
        }
        report.assert_echo(1, LENGTH, host);
        let local = report.local.context("no address of its own")?.ip();
        // A steered one talks to the forwarder, on loopback.
        if local == IpAddr::from(Ipv4Addr::LOCALHOST) {
            return Ok(Way::Steered);
        }
        assert_eq!(local, IpAddr::from(net::APPLIANCE.v4));
        Ok(Way::Direct)
    }

    /// Connections that begin [`SOON`] after `since` go this way, and so do all that follow the first that does.
    fn assert_soon(&self, host: &str, port: u16, since: Instant, wanted: &Way) -> Result<()> {
        loop {
            let after = since.elapsed();
            let way = self.way(host, port)?;
            if way == *wanted {
                println!("{host}:{port} {way:?} after {:.0} ms", after.as_secs_f64() * 1e3);
                break;
            }
            assert!(after < SOON, "{host}:{port} is {way:?} and not {wanted:?} after {after:?}");
        }
        for _ in 0..IN_A_ROW {
            assert_eq!(self.way(host, port)?, *wanted, "{host}:{port}");
        }
        Ok(())
    }

    /// Begins a transfer that waits until its application is told to read on.
    fn hold(&self, host: &str, port: u16) -> Result<Held> {
        let client = Connect::to(host, port).order(Order::ReadFirst).stall();
        let client = self.lab.appliance().captured(client.command()?).spawn()?;
        client.wait_for_line("stalled", PATIENCE)?;
        let target = format!("{host}:{port}");
        self.appliance.wait_for_status("a transfer under way", PATIENCE, |status| {
            let flow = &status["flows"]["recent"][0];
            flow["target"] == *target && flow["bytes_down"].as_u64() >= Some(UNDER_WAY)
        })?;
        Ok(Held(client))
    }

    fn counter(&self, name: &str) -> Result<u64> {
        self.appliance.status()?["steer"]["counters"][name]
            .as_u64()
            .with_context(|| format!("no counter {name}"))
    }

    /// The synthetic address of a name that was asked for.
    fn synthetic(&self, name: &str) -> Result<String> {
        let status = self.appliance.status()?;
        let names = status["steer"]["names"].as_array().context("no names")?;
        let found = names.iter().find(|entry| entry["name"] == name).with_context(|| format!("no {name}"))?;
        Ok(found["addresses"][0].as_str().context("no address")?.to_owned())
    }
}

/// A transfer that waits.
struct Held(Process);

impl Held {
    /// The whole of it arrives.
    fn finish(mut self) -> Result<()> {
        self.0.signal(Signal::SIGUSR1)?;
        assert!(self.0.wait(PATIENCE)?.success());
        let report = &Report::read(&self.0.stdout())?[0];
        assert_eq!((report.received, report.end.as_str()), (LARGE, "eof"), "{report:?}");
        assert_eq!(report.received_sha256, Bytes::new(SEED, LARGE).sha256());
        Ok(())
    }
}

#[test]
fn an_address_is_steered_a_second_after_it_was_added_and_direct_a_second_after_it_was_removed() -> Result<()>
{
    let lab = Lab::new()?;
    let [at, other] = [net::DIRECT2, net::DIRECT].map(|host| host.v4.to_string());
    // The only port that the site may reach here; the others have nothing to do with it.
    let server = lab.elsewhere().serve(Serve::Echo, net::DIRECT2, 443)?;
    let _aside = lab.elsewhere().serve(Serve::Echo, net::DIRECT2, 444)?;
    let _source = lab.elsewhere().serve(Serve::Source { seed: SEED, length: LARGE }, net::DIRECT, 443)?;
    let house = House::new(&lab)?;
    lab.explain(|| {
        assert_eq!(house.way(&at, 443)?, Way::Direct, "nothing is a proxy host yet");
        let saved = house.save(&format!("{at}:443, {other}"))?;
        house.assert_soon(&at, 443, saved, &Way::Steered)?;
        assert_eq!(house.way(&at, 444)?, Way::Direct, "another port");
        let held = house.hold(&other, 443)?;

        let saved = house.save("")?;
        house.assert_soon(&at, 443, saved, &Way::Direct)?;
        let saved = house.save(&at)?;
        house.assert_soon(&at, 443, saved, &Way::Steered)?;
        held.finish()?;

        // The server sees the way, too.
        let from = |host: net::Dual| -> Result<usize> {
            let reports = server.reports()?;
            Ok(reports.iter().filter(|r| r.peer.is_some_and(|peer| peer.ip() == host.v4)).count())
        };
        assert!(from(net::SITE)? > 2 * IN_A_ROW && from(net::APPLIANCE)? > IN_A_ROW);
        Ok(())
    })
}

#[test]
fn a_name_is_a_proxy_host_for_who_resolves_anew() -> Result<()> {
    const ECHO: &str = "echo.corp.example";
    let lab = Lab::new()?;
    let _server = lab.vcenter().serve(Serve::Echo, net::ECHO, 7001)?;
    let _source = lab.vcenter().serve(Serve::Source { seed: SEED, length: LARGE }, net::ECHO, 7002)?;
    let house = House::new(&lab)?;
    lab.explain(|| {
        let unknown = house.way(ECHO, 7001)?;
        assert!(matches!(&unknown, Way::Failed(why) if why.contains("not known")), "{unknown:?}");
        let saved = house.save("*.corp.example")?;
        house.assert_soon(ECHO, 7001, saved, &Way::Steered)?;
        let address = house.synthetic(ECHO)?;
        let held = house.hold(ECHO, 7002)?;

        // A name for which nobody but the site's resolver knows an address.
        let saved = house.save("vcenter.corp.example")?;
        house.assert_soon(ECHO, 7001, saved, &unknown)?;
        // Who kept the address is told at once.
        let before = house.counter("refused-stale-synthetic")?;
        assert_eq!(house.way(&address, 7001)?, Way::Failed("EHOSTUNREACH".into()));
        assert_eq!(house.counter("refused-stale-synthetic")?, before + 1);

        let saved = house.save(ECHO)?;
        house.assert_soon(&address, 7001, saved, &Way::Steered)?;
        assert_eq!(house.way(ECHO, 7001)?, Way::Steered);
        assert_eq!(house.synthetic(ECHO)?, address);
        held.finish()
    })
}

#[test]
fn what_can_not_be_steered_is_refused_when_it_is_saved() -> Result<()> {
    let lab = Lab::new()?;
    let at = net::DIRECT2.v4.to_string();
    let _server = lab.elsewhere().serve(Serve::Echo, net::DIRECT2, 443)?;
    let house = House::new(&lab)?;
    lab.explain(|| {
        let saved = house.save(&at)?;
        house.assert_soon(&at, 443, saved, &Way::Steered)?;
        let wrong = house.api(&["worker", "edit", WORKER, "--proxy-hosts", "127.0.0.1,240.64.0.9"])?;
        let said = wrong.to_string();
        assert!(!wrong.status.success(), "{said}");
        assert!(
            said.contains("127.0.0.1 is this host itself") && said.contains("240.64.0.9 lies in"),
            "{said}"
        );
        assert_eq!(house.way(&at, 443)?, Way::Steered);
        let status = house.appliance.status()?;
        assert_eq!(status["steer"]["problem"], Value::Null);
        let rules = status["steer"]["rules"].as_array().context("no rules")?;
        assert_eq!(rules.len(), 1, "{rules:?}");
        assert_eq!((&rules[0]["pattern"], &rules[0]["carrier"]), (&at.into(), &WORKER.into()));
        Ok(())
    })
}
