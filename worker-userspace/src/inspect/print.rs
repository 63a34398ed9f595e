//! A status as text: one object a line with its details indented below it, as bpftool prints.

use std::fmt::{self, Write};
use std::time::Duration;

use super::ledger::FlowReport;
use super::status::{
    ApplianceStatus, CertificateStatus, LaneStatus, ProxyStatus, Status, SteerStatus, WorkerStatus,
};
use crate::tunnel::tls::expiry::SOON;

/// A status as `dworker status` prints it.
pub fn plain(status: &Status) -> String {
    let mut out = String::new();
    // Writing into a string does not fail.
    let _ = write_status(&mut out, status);
    out
}

fn write_status(out: &mut String, status: &Status) -> fmt::Result {
    let uptime = age(Duration::from_secs(status.uptime_s));
    writeln!(
        out,
        "dworker {}  pid {}  up {uptime}  roles {}",
        status.version,
        status.pid,
        status.roles.join(",")
    )?;
    if let Some(appliance) = &status.appliance {
        write_appliance(out, appliance)?;
    }
    if let Some(worker) = &status.worker {
        write_worker(out, worker)?;
    }
    if let Some(steer) = &status.steer {
        write_steer(out, steer)?;
    }
    if let Some(proxy) = &status.proxy {
        write_proxy(out, proxy)?;
    }
    status.tls.iter().try_for_each(|certificate| write_certificate(out, certificate))?;
    writeln!(out, "flows: open {}  total {}", status.flows.open, status.flows.total)?;
    status.flows.recent.iter().try_for_each(|flow| write_flow(out, flow))
}

/// A connection as text.
pub(super) fn flow(flow: &FlowReport) -> String {
    let mut out = String::new();
    let _ = write_flow(&mut out, flow);
    out.split_once(' ').map(|(_, rest)| rest.to_owned()).unwrap_or(out)
}

/// A lane as text.
pub(super) fn lane(lane: &LaneStatus, indent: &str) -> String {
    let mut out = String::new();
    let _ = write_lane(&mut out, lane, indent);
    out
}

fn write_appliance(out: &mut String, appliance: &ApplianceStatus) -> fmt::Result {
    let listen: Vec<_> = appliance.listen.iter().map(ToString::to_string).collect();
    let plaintext = if appliance.plaintext { "  PLAINTEXT" } else { "" };
    writeln!(out, "appliance: listen {}{plaintext}", listen.join(" "))?;
    for group in &appliance.groups {
        let state = if group.up { "up" } else { "down" };
        let may_open = if group.may_open { "  may_open" } else { "" };
        writeln!(out, "group {}: {state}{may_open}", group.name)?;
        writeln!(out, "\tproxy_hosts {}", group.proxy_hosts.join(" "))?;
        for node in &group.nodes {
            writeln!(
                out,
                "\tnode {}  {}  id {}  dworker {}",
                node.name,
                node.role.word(),
                &node.id[..8],
                node.software
            )?;
            node.lanes.iter().try_for_each(|lane| write_lane(out, lane, "\t\t"))?;
        }
    }
    Ok(())
}

fn write_worker(out: &mut String, worker: &WorkerStatus) -> fmt::Result {
    let state = if worker.connected { "connected" } else { "not connected" };
    let role = worker.role.as_ref().map(|role| format!("  {role}")).unwrap_or_default();
    let epoch = worker.role_epoch.map(|epoch| format!("  epoch {epoch}")).unwrap_or_default();
    writeln!(out, "worker: appliance {}  {state}{role}{epoch}", worker.appliance)?;
    if let Some(problem) = &worker.problem {
        writeln!(out, "\tproblem {problem}")?;
    }
    if let Some(proxy) = &worker.proxy {
        let leads = if proxy.appliance { "the appliance and targets" } else { "targets" };
        writeln!(out, "\tproxy {}  to {leads}", proxy.address)?;
    }
    worker.lanes.iter().try_for_each(|lane| write_lane(out, lane, "\t"))?;
    let policy = &worker.policy;
    let from = match policy.from.is_empty() {
        true => "nobody: nothing may be dialled".to_owned(),
        false => policy.from.join(" and "),
    };
    let epoch = policy.epoch.map(|epoch| format!("  epoch {epoch}")).unwrap_or_default();
    writeln!(out, "\tpolicy of {from}{epoch}")?;
    for (what, list) in [
        ("proxy_hosts", policy.proxy_hosts.as_deref().unwrap_or_default()),
        ("allow", worker.allow.as_slice()),
        ("deny", worker.deny.as_slice()),
        ("no_proxy", worker.proxy.as_ref().map_or(&[][..], |proxy| &proxy.no_proxy)),
    ] {
        if !list.is_empty() {
            writeln!(out, "\t{what} ({}) {}", list.len(), some(list))?;
        }
    }
    Ok(())
}

/// A list that may be very long.
fn some(list: &[String]) -> String {
    const MOST: usize = 50;
    match list.len().checked_sub(MOST) {
        None | Some(0) => list.join(" "),
        Some(more) => format!("{} and {more} more; -j has all", list[..MOST].join(" ")),
    }
}

fn write_lane(out: &mut String, lane: &LaneStatus, indent: &str) -> fmt::Result {
    let rtt = lane.rtt_us.map_or("-".into(), |us| format!("{:.1}ms", us as f64 / 1000.0));
    writeln!(
        out,
        "{indent}lane {}  {}  rtt {rtt}  streams {} ({} ever)  sent {}  received {}  stalls {}",
        lane.lane,
        lane.state,
        lane.streams,
        lane.streams_total,
        bytes(lane.bytes_sent),
        bytes(lane.bytes_received),
        lane.credit_stalls
    )
}

fn write_steer(out: &mut String, steer: &SteerStatus) -> fmt::Result {
    let listeners: Vec<_> = steer.listeners.iter().map(ToString::to_string).collect();
    let off = if steer.off { "off: `dworker steer on` captures again  " } else { "" };
    writeln!(out, "steer: {off}forwarder {}", listeners.join(" "))?;
    if let Some(problem) = &steer.problem {
        problem.lines().try_for_each(|line| writeln!(out, "\tproblem {line}"))?;
    }
    for program in &steer.programs {
        let run = match program.run_cnt {
            0 => String::new(),
            n => format!("  run_time_ns {}  run_cnt {n}", program.run_time_ns),
        };
        writeln!(out, "prog {}: {}  name {}{run}", program.id, program.attach_type, program.name)?;
        for link in &program.links {
            let dead = if link.alive { "" } else { "  DEAD: the cgroup was removed" };
            writeln!(out, "\tlink {}  cgroup {}{dead}", link.id, link.cgroup.display())?;
        }
    }
    for rule in &steer.rules {
        writeln!(out, "rule {}: {}  carrier {}", rule.id, rule.pattern, rule.carrier)?;
    }
    for name in &steer.names {
        writeln!(out, "name {}: {}  {}", name.name, name.addresses[0], name.addresses[1])?;
    }
    for (resolver, port) in &steer.resolvers {
        writeln!(out, "resolver {resolver}: port {port}")?;
    }
    write_counters(out, "counters", steer.counters.iter())?;
    write_counters(out, "dns", steer.dns.iter())?;
    for refused in &steer.refused {
        let name = refused.name.as_ref().map(|name| format!("  name {name}")).unwrap_or_default();
        let errno = refused.errno.map(|errno| format!("  errno {errno}")).unwrap_or_default();
        writeln!(
            out,
            "refused {}: {}{name}  reason {}{errno}",
            refused.process, refused.target, refused.reason
        )?;
    }
    Ok(())
}

fn write_proxy(out: &mut String, proxy: &ProxyStatus) -> fmt::Result {
    let mut words = Vec::new();
    for (protocol, addresses) in [("http", &proxy.http), ("socks", &proxy.socks)] {
        words.extend(addresses.iter().map(|address| format!("{protocol} {address}")));
    }
    words.extend(proxy.user.iter().map(|user| format!("user {user}")));
    writeln!(out, "proxy: {}", words.join("  "))
}

fn write_certificate(out: &mut String, certificate: &CertificateStatus) -> fmt::Result {
    let CertificateStatus { source, number, subject, names, not_after, days_left, .. } = certificate;
    let names = if names.is_empty() { String::new() } else { format!("  names {}", names.join(" ")) };
    let days = match days_left {
        ..0 => "EXPIRED".to_owned(),
        ..SOON => format!("EXPIRES SOON: {days_left} days left"),
        _ => format!("{days_left} days left"),
    };
    writeln!(out, "certificate {source} {number}: {subject}{names}  until {not_after}  {days}")
}

fn write_counters<'a>(
    out: &mut String,
    what: &str,
    counters: impl Iterator<Item = (&'a String, &'a u64)>,
) -> fmt::Result {
    let seen: Vec<_> = counters.filter(|(_, n)| **n > 0).map(|(name, n)| format!("{name} {n}")).collect();
    match seen.is_empty() {
        true => Ok(()),
        false => writeln!(out, "{what}: {}", seen.join("  ")),
    }
}

fn write_flow(out: &mut String, flow: &FlowReport) -> fmt::Result {
    let entry = format!("{:?}", flow.entry).to_lowercase();
    writeln!(out, "flow {}: {}  {entry}  {}", flow.id, flow.target, flow.state)?;
    let mut details = Vec::new();
    if let Some(process) = &flow.process {
        details.push(format!("process {}[{}] uid {}", process.comm, process.pid, process.uid));
    }
    if let Some(original) = flow.original {
        details.push(format!("original {original}"));
    }
    if let Some(source) = flow.source {
        details.push(format!("source {source}"));
    }
    for (word, who) in [("user", &flow.user), ("from", &flow.from)] {
        details.extend(who.iter().map(|who| format!("{word} {who}")));
    }
    if let Some(carrier) = &flow.carrier {
        details.push(format!("carrier {carrier}"));
    }
    if flow.retries > 0 {
        details.push(format!("retries {}", flow.retries));
    }
    if let Some(dialled) = flow.dialled {
        let took = flow.dial_us.map(|us| format!(" in {:.1}ms", us as f64 / 1000.0)).unwrap_or_default();
        let proxied = if flow.proxied { " (a proxy)" } else { "" };
        details.push(format!("dialled {dialled}{proxied}{took}"));
    }
    if !details.is_empty() {
        writeln!(out, "\t{}", details.join("  "))?;
    }
    writeln!(
        out,
        "\tup {}{}  down {}{}  {} {}  trace {}",
        bytes(flow.bytes_up),
        rate(flow.rate_up),
        bytes(flow.bytes_down),
        rate(flow.rate_down),
        if flow.is_open() { "age" } else { "lasted" },
        age(Duration::from_millis(flow.age_ms)),
        flow.trace
    )?;
    match &flow.reason {
        Some(reason) => writeln!(out, "\treason {reason}"),
        None => Ok(()),
    }
}

fn rate(n: u64) -> String {
    if n == 0 { String::new() } else { format!(" ({}/s)", bytes(n)) }
}

/// A number of bytes, short.
pub fn bytes(n: u64) -> String {
    match n {
        0..10_000 => format!("{n}B"),
        10_000..10_000_000 => format!("{}KiB", n / 1024),
        10_000_000..10_000_000_000 => format!("{}MiB", n / (1024 * 1024)),
        _ => format!("{}GiB", n / (1024 * 1024 * 1024)),
    }
}

/// A duration, short.
pub fn age(duration: Duration) -> String {
    match duration.as_secs() {
        0..10 => format!("{:.1}s", duration.as_secs_f64()),
        s @ 10..600 => format!("{s}s"),
        s @ 600..36_000 => format!("{}m", s / 60),
        s @ 36_000..360_000 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::status::UpstreamStatus;

    #[test]
    fn a_status_reads_as_bpftool_prints() {
        let status: Status = serde_json::from_str(include_str!("print/example.json")).expect("the example");
        assert_eq!(plain(&status), include_str!("print/example.txt"));
    }

    #[test]
    fn a_workers_status_says_who_decides_what_it_dials() {
        let worker = r#"{"appliance": "appliance.example:443", "connected": true, "lanes": [], "role": "standby", "role_epoch": 7,
            "policy": {"from": ["appliance", "egress.allow"], "epoch": 4, "proxy_hosts": ["a.example", "b.example:443"]},
            "allow": ["*.example"], "deny": []}"#;
        let mut worker: WorkerStatus = serde_json::from_str(worker).expect("the example");
        let printed = |worker: &WorkerStatus| {
            let mut out = String::new();
            write_worker(&mut out, worker).expect("text");
            out
        };
        assert_eq!(
            printed(&worker),
            "worker: appliance appliance.example:443  connected  standby  epoch 7\n\
             \tpolicy of appliance and egress.allow  epoch 4\n\
             \tproxy_hosts (2) a.example b.example:443\n\
             \tallow (1) *.example\n"
        );
        worker.proxy = Some(UpstreamStatus {
            address: "http://***@proxy.example:3128".into(),
            appliance: true,
            no_proxy: vec!["*.corp.example".into(), "10.20.0.0/16".into()],
        });
        assert!(
            printed(&worker)
                .contains("\tproxy http://***@proxy.example:3128  to the appliance and targets\n")
        );
        assert!(printed(&worker).contains("\tno_proxy (2) *.corp.example 10.20.0.0/16\n"));
        worker.policy.proxy_hosts = Some((0..1000).map(|n| format!("host-{n}")).collect());
        assert!(printed(&worker).contains("proxy_hosts (1000) host-0 host-1 "));
        assert!(printed(&worker).contains(" host-49 and 950 more; -j has all\n"));
        // As a daemon of version 0.1.0 that nobody told anything says it.
        let older = r#"{"appliance": "a:443", "connected": true, "lanes": [], "allow": [], "deny": []}"#;
        let older: WorkerStatus = serde_json::from_str(older).expect("an older one");
        assert_eq!(
            printed(&older),
            "worker: appliance a:443  connected\n\tpolicy of nobody: nothing may be dialled\n"
        );
    }

    #[test]
    fn numbers_stay_short() {
        assert_eq!(
            (bytes(9999), bytes(10_240), bytes(20 << 20)),
            ("9999B".into(), "10KiB".into(), "20MiB".into())
        );
        assert_eq!(age(Duration::from_millis(1500)), "1.5s");
        assert_eq!(age(Duration::from_secs(7200)), "120m");
    }
}
