//! The story: a VMware SDK manages a vCenter that its host can neither resolve nor route to.
//!
//! Every step is checked. A demo that shows something else than it says ends with an error.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;
use tests::{Command, Config, Daemon, Group, Lab, Query, Sdk, VCENTER_URL, Vsphere, net};

use crate::report::Report;

const NAME: &str = "vcenter.corp.example";
const MACHINE: &str = "DC0_H0_VM0";
const SOON: Duration = Duration::from_secs(10);
/// Prompts of the appliance host, outside and inside the captured cgroup.
const OUTSIDE: &str = "appliance";
const CAPTURED: &str = "appliance, captured";

/// All that runs; dropping it takes it down.
pub(crate) struct Story {
    // Dropped in this order: the daemons, the vCenter, the hosts.
    appliance: Daemon,
    worker: Daemon,
    _vsphere: Vsphere,
    lab: Lab,
}

/// Tells it from the beginning to the summary.
pub(crate) fn tell() -> Result<Story> {
    let mut report = Report::default();
    println!("An unchanged VMware SDK manages a vCenter that its host can neither resolve nor reach.");

    let (lab, vsphere) = build(&mut report)?;
    let begun = Instant::now();
    let story = lab.explain(|| connect(&mut report, &lab)).map(|(appliance, worker)| Story {
        appliance,
        worker,
        _vsphere: vsphere,
        lab,
    })?;
    story.lab.explain(|| story.outside(&mut report))?;
    let asked_before = story.lab.appliance_resolver().queries().len();
    story.lab.explain(|| story.inside(&mut report))?;
    story.lab.explain(|| story.status(&mut report))?;
    let (appliance, site) = story.lab.explain(|| story.resolvers(&mut report, asked_before))?;

    report.step("Summary");
    report.say(&format!(
        "pyVmomi, unchanged, logged in to {VCENTER_URL}, listed its machines and switched one off and on.\n\
         The appliance's resolver was asked for {NAME} {appliance} times by it, the site's {site} times.\n\
         The site took no connection from outside: all went through the websockets that the worker dialled.\n\
         From the start of dworker to here it took {:.1} s.",
        begun.elapsed().as_secs_f64()
    ));
    Ok(story)
}

/// The hosts and the vCenter.
fn build(report: &mut Report) -> Result<(Lab, Vsphere)> {
    report.step("The lab: five hosts, each a network namespace");
    let lab = Lab::new()?;
    report.quote(&format!(
        "appliance  {:<11} runs the SDK; its resolver does not know {NAME}\n\
         router     {:<11} refuses every new connection towards the site\n\
         site       {:<11} may only open TCP to port 443\n\
         vcenter    {:<11} only the site reaches it\n\
         elsewhere  {:<11} what the appliance reaches without help",
        net::APPLIANCE.v4.to_string(),
        "",
        net::SITE.v4.to_string(),
        net::VCENTER.v4.to_string(),
        net::DIRECT.v4.to_string(),
    ));
    report.step("A vSphere API at the site: VMware's simulator, and pyVmomi from PyPI");
    report.say("The first time, both are built or fetched.");
    let vsphere = lab.vsphere()?;
    // Made ready here, so that no time below is that of an installation.
    let _installed = lab.sdk(Sdk::PyVmomi, ["list"])?;
    Ok((lab, vsphere))
}

/// The appliance with steering, and the worker.
fn connect(report: &mut Report, lab: &Lab) -> Result<(Daemon, Daemon)> {
    let group = Group::new("site-a", [NAME])?;
    report.step("dworker on the appliance: awaits the worker, steers one cgroup");
    let config = Config::new()
        .appliance(&lab.appliance_identity()?, &[&group])
        .steer(&[lab.appliance().cgroup()])
        .unset("drain");
    report.quote(&without_secrets(&config));
    let appliance = lab.appliance().daemon("appliance", config)?;

    report.step("dworker at the site: dials out, may dial the vCenter");
    let config = Config::new().worker(&group, lab.pki().ca_file(), [format!("{NAME}:443")]).unset("drain");
    report.quote(&without_secrets(&config));
    let worker = lab.site().daemon("worker", config)?;
    appliance.wait_for_status("a tunnel", SOON, |status| status["appliance"]["groups"][0]["up"] == true)?;
    Ok((appliance, worker))
}

impl Story {
    /// Without steering there is no way.
    fn outside(&self, report: &mut Report) -> Result<()> {
        report.step("Outside the captured cgroup: no name, no route");
        let host = self.lab.appliance();
        let getent = host.command("getent").args(["hosts", NAME]);
        let output = report.fails(OUTSIDE, &format!("getent hosts {NAME}"), getent)?;
        ensure!(output.status.code() == Some(2), "not \"not found\": {output}");
        for url in [VCENTER_URL, &format!("https://{}", net::VCENTER.v4)] {
            let command = self.lab.sdk_at(Sdk::PyVmomi, url, ["list"])?;
            report.fails(OUTSIDE, &sdk_line(url, "list"), host.uncaptured(command))?;
        }
        Ok(())
    }

    /// With it, the SDK works.
    fn inside(&self, report: &mut Report) -> Result<()> {
        report.step("Inside it: the same program, unchanged");
        let host = self.lab.appliance();
        let getent = host.captured(Command::new("getent").args(["hosts", NAME]));
        report.works(CAPTURED, &format!("getent hosts {NAME}"), getent)?;
        report.say("\nA synthetic address: it stands for the name, and means nothing outside this host.");
        let sdk = |report: &Report, arguments: &[&str]| {
            let command = host.captured(self.lab.sdk(Sdk::PyVmomi, arguments)?);
            report.works(CAPTURED, &sdk_line(VCENTER_URL, &arguments.join(" ")), command)
        };
        let listed = sdk(report, &["list"])?.stdout;
        ensure!(listed.contains(&format!("{MACHINE} poweredOn\n")), "{MACHINE} is not on at first");

        for (command, state) in [("poweroff", "poweredOff"), ("poweron", "poweredOn")] {
            report.step(&format!("It switches a machine: {command} {MACHINE}"));
            sdk(report, &[command, MACHINE])?;
            let machines = self.lab.virtual_machines()?;
            let found = machines.iter().find(|(name, _)| name == MACHINE).map(|(_, state)| state.as_str());
            ensure!(found == Some(state), "the vCenter says {found:?} of {MACHINE}");
            report.say(&format!("\nThe vCenter itself, asked at the site: {MACHINE} {state}"));
        }
        Ok(())
    }

    /// What the daemon knows of it.
    fn status(&self, report: &mut Report) -> Result<()> {
        report.step("What dworker status says of it");
        let text = self.appliance.status_with(self.lab.appliance(), &[])?.check()?;
        report.quote(&format!("{OUTSIDE}$ dworker status\n{}", excerpt(&text)));
        report.say("\n(Left out: programs, rules, counters.)");
        let status = self.appliance.status()?;
        let is_ours = |flow: &Value| {
            flow["target"] == format!("{NAME}:443")
                && flow["original"].is_string()
                && flow["process"]["comm"].as_str().is_some_and(|comm| comm.starts_with("python"))
                && flow["bytes_down"].as_u64() > Some(0)
        };
        let flows = status["flows"]["recent"].as_array().map_or(&[][..], Vec::as_slice);
        ensure!(flows.iter().any(is_ours), "no flow of the SDK's in {status:#}");
        Ok(())
    }

    /// Who was asked for the name: counts for the appliance's resolver, since `before`, and the site's.
    fn resolvers(&self, report: &mut Report, before: usize) -> Result<(usize, usize)> {
        report.step(&format!("Who was asked for {NAME}?"));
        let times = |queries: &[Query]| queries.iter().filter(|query| query.name == NAME).count();
        let all = self.lab.appliance_resolver().queries();
        let (outside, inside) = (times(&all[..before]), times(&all[before..]));
        let site = times(&self.lab.site_resolver().queries());
        report.quote(&format!(
            "the appliance's resolver: {outside} times while nothing was captured (step 5), {inside} times since\n\
             the site's resolver:      {site} times, by the worker and by the checks at the site"
        ));
        ensure!(inside == 0, "a query for {NAME} has left the appliance host");
        ensure!(site > 0, "nobody asked the site's resolver");
        Ok((inside, site))
    }

    /// For those who keep the lab.
    pub(crate) fn say_how_to_enter(&self) -> Result<()> {
        println!("\nThe lab stays up. A shell, or any command after it, on a host:\n");
        let appliance = self.lab.appliance();
        let captured = ("captured".to_owned(), appliance.enter_captured());
        let hosts = self.lab.hosts().map(|host| (host.name().to_owned(), host.enter()));
        for (name, script) in std::iter::once(captured).chain(hosts) {
            println!("    {name:<10} sh {}", script.display());
        }
        println!(
            "\nThe first is the appliance host inside the captured cgroup. What the demo did, by hand:\n"
        );
        let status = appliance.dworker(["status", "--socket"])?.arg(appliance.socket(self.appliance.name()));
        let sdk = self.lab.sdk(Sdk::PyVmomi, ["list"])?;
        for (script, command) in [(appliance.enter(), status), (appliance.enter_captured(), sdk)] {
            println!("    sh {} {}", script.display(), command.to_shell());
        }
        println!("\nIts daemons; so you start one again that you have stopped, and see its log:\n");
        for (host, daemon) in [(appliance, &self.appliance), (self.lab.site(), &self.worker)] {
            let run = host.dworker(["run", "--config"])?.arg(daemon.config());
            println!("    sh {} {}", host.enter().display(), run.to_shell());
        }
        println!("\nTake it all down with\n\n    cargo xtask demo --clean");
        Ok(())
    }
}

/// The parts of a status that are about the tunnel, names and connections. What is indented belongs to the line above.
fn excerpt(status: &str) -> String {
    let mut wanted = false;
    let lines = status.lines().filter(|line| {
        if !line.starts_with(char::is_whitespace) {
            let word = line.split_whitespace().next().unwrap_or_default();
            wanted = ["dworker", "group", "name", "flows:", "flow"].contains(&word);
        }
        wanted
    });
    lines.map(|line| format!("{}\n", line.replace('\t', "  "))).collect()
}

fn sdk_line(url: &str, arguments: &str) -> String {
    format!("python client.py {url} USER PASSWORD {arguments}")
}

/// A configuration as it is written, without the worker's key.
fn without_secrets(config: &Config) -> String {
    let text = config.to_toml();
    let lines = text.lines().map(|line| match line.split_once(" = ") {
        Some((key @ "worker_key", _)) => format!("{key} = \"***\"\n"),
        _ => format!("{line}\n"),
    });
    lines.collect()
}
