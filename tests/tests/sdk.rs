//! The main job: a vSphere SDK, unchanged, manages a vCenter that its host can neither resolve nor route to.
//!
//! Three SDKs, because they resolve and connect in three ways: glibc's resolver, Go's own, and the JVM with
//! IPv6 sockets for IPv4.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use serde_json::Value;
use tests::{Config, Lab, Query, Sdk, net};

const NAME: &str = "vcenter.corp.example";
/// The simulator's inventory.
const MACHINES: [&str; 4] = ["DC0_C0_RP0_VM0", "DC0_C0_RP0_VM1", "DC0_H0_VM0", "DC0_H0_VM1"];

/// What a client prints while these machines are off.
fn listing(off: &[&str]) -> String {
    let state = |name| if off.contains(&name) { "poweredOff" } else { "poweredOn" };
    MACHINES.map(|name| format!("{name} {}\n", state(name))).concat()
}

/// The questions that are about the vCenter, however they spell it.
fn about_vcenter(queries: Vec<Query>) -> Vec<Query> {
    queries.into_iter().filter(|query| query.name.to_ascii_lowercase().contains("vcenter")).collect()
}

#[test]
fn every_sdk_manages_the_vcenter_by_its_name() -> Result<()> {
    let lab = Lab::new()?;
    let _vsphere = lab.vsphere()?;
    let tunnel = lab.tunnel([NAME], [&format!("{NAME}:443")])?;
    lab.explain(|| {
        let host = lab.appliance();
        let mut off = Vec::new();
        for (sdk, machine) in Sdk::ALL.into_iter().zip(MACHINES) {
            let run = |args: &[&str]| host.captured(lab.sdk(sdk, args)?).check();
            assert_eq!(run(&["list"])?, listing(&off), "{sdk:?}");
            // Nobody but the worker has asked for the name so far: the checks below ask for it, too.
            if off.is_empty() {
                let asked = about_vcenter(lab.site_resolver().queries());
                assert!(!asked.is_empty(), "the worker asked its own resolver");
                let worker = IpAddr::from(net::SITE_INSIDE.v4);
                assert!(asked.iter().all(|query| query.name == NAME && query.from == worker), "{asked:?}");
            }
            off.push(machine);
            assert_eq!(run(&["poweroff", machine])?, listing(&off), "{sdk:?}");
            let states = lab
                .virtual_machines()?
                .iter()
                .map(|(name, state)| format!("{name} {state}\n"))
                .collect::<String>();
            assert_eq!(states, listing(&off), "the vCenter itself, asked at the site, after {sdk:?}");
        }
        every_sdk_has_a_flow(&tunnel.appliance.flows()?)?;

        // The appliance's resolver knows nothing of it: not of a search domain, not of the reverse.
        assert_eq!(about_vcenter(lab.appliance_resolver().queries()), []);
        // And it would: the same clients outside the captured cgroup ask it, and fail.
        for sdk in Sdk::ALL {
            let output = host.uncaptured(lab.sdk(sdk, ["list"])?).output()?;
            assert!(!output.status.success() && output.stdout.is_empty(), "{sdk:?} outside: {output}");
            assert!(output.stderr.contains(not_resolved(sdk)), "{sdk:?} fails otherwise: {output}");
        }
        assert_ne!(about_vcenter(lab.appliance_resolver().queries()), []);
        Ok(())
    })
}

/// What each says when a name cannot be resolved.
fn not_resolved(sdk: Sdk) -> &'static str {
    match sdk {
        Sdk::PyVmomi => "Name or service not known",
        Sdk::Go => "no such host",
        Sdk::Java => "UnresolvedAddressException",
    }
}

/// The status tells, for each SDK, of a connection that the SDK's own process made.
fn every_sdk_has_a_flow(flows: &[Value]) -> Result<()> {
    for (sdk, command) in [(Sdk::PyVmomi, "python"), (Sdk::Go, "govmomi"), (Sdk::Java, "java")] {
        let of_sdk =
            |flow: &&Value| flow["process"]["comm"].as_str().is_some_and(|comm| comm.starts_with(command));
        let flow = flows.iter().find(of_sdk).with_context(|| format!("no flow of {sdk:?} in {flows:#?}"))?;
        assert_eq!(flow["entry"], "captured", "{flow:#}");
        assert_eq!(flow["target"], format!("{NAME}:443"), "{flow:#}");
        let dialled: SocketAddr = serde_json::from_value(flow["dialled"].clone())?;
        assert!(net::VCENTER.both().contains(&dialled.ip()) && dialled.port() == 443, "{flow:#}");
        let original: SocketAddr = serde_json::from_value(flow["original"].clone())?;
        assert!(original.ip().to_string().starts_with("240.64."), "a synthetic address: {flow:#}");
        assert!(flow["carrier"].as_str().is_some_and(|carrier| carrier.starts_with("site-a/")), "{flow:#}");
        for bytes in ["bytes_up", "bytes_down"] {
            assert!(flow[bytes].as_u64() > Some(1000), "a login takes more than that: {flow:#}");
        }
    }
    Ok(())
}

#[test]
fn an_sdk_manages_the_vcenter_by_its_address() -> Result<()> {
    let lab = Lab::new()?;
    let _vsphere = lab.vsphere()?;
    let hosts = [net::SITE_PREFIX4, net::SITE_PREFIX6];
    let _tunnel = lab.tunnel(hosts, hosts)?;
    lab.explain(|| {
        for url in ["https://10.77.3.10", "https://[fd77:0:0:3::10]"] {
            let listed = lab.appliance().captured(lab.sdk_at(Sdk::Go, url, ["list"])?).check()?;
            assert_eq!(listed, listing(&[]), "{url}");
            let outside = lab.appliance().uncaptured(lab.sdk_at(Sdk::Go, url, ["list"])?).output()?;
            assert!(outside.stderr.contains("network is unreachable"), "{url}: {outside}");
        }
        assert_eq!(about_vcenter(lab.appliance_resolver().queries()), []);
        Ok(())
    })
}

#[test]
fn every_sdk_reaches_a_name_that_has_ipv6_only() -> Result<()> {
    let lab = Lab::new()?;
    let _vsphere = lab.vsphere()?;
    let ipv6 = |config: Config| config.set("steer.families", vec!["ipv6".to_owned()]);
    let tunnel = lab.tunnel_with([NAME], [&format!("{NAME}:443")], ipv6)?;
    lab.explain(|| {
        for sdk in Sdk::ALL {
            let listed = lab.appliance().captured(lab.sdk(sdk, ["list"])?).check()?;
            assert_eq!(listed, listing(&[]), "{sdk:?}");
        }
        let flows = tunnel.appliance.flows()?;
        assert!(flows.len() >= Sdk::ALL.len());
        for flow in &flows {
            assert!(flow["original"].as_str().is_some_and(|to| to.starts_with("[2001:2::")), "{flow:#}");
        }
        assert_eq!(about_vcenter(lab.appliance_resolver().queries()), []);
        Ok(())
    })
}
