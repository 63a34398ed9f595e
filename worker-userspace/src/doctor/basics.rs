//! Checks: configuration, daemon, capabilities, mounts, disks, ports.

use super::facts::{Facts, Port};
use crate::config::Metrics;
use crate::inspect::finding::Finding;
use crate::inspect::print::bytes;

/// Below these a state directory is short of space.
const FEW: u64 = 256 << 20;
const HARDLY_ANY: u64 = 16 << 20;
/// Below this many open files a daemon soon accepts nothing.
const DESCRIPTORS: u64 = 4096;

pub(super) fn configuration(facts: &Facts) -> Vec<Finding> {
    let check = "dworker config check";
    match &facts.config {
        None => vec![],
        Some(Err(faults)) => {
            faults.iter().map(|fault| Finding::error("configuration", fault, check)).collect()
        }
        Some(Ok((_, warnings))) if warnings.is_empty() => {
            vec![Finding::ok("configuration", format!("{} is valid", facts.source))]
        }
        Some(Ok((_, warnings))) => {
            warnings.iter().map(|warning| Finding::warning("configuration", warning, check)).collect()
        }
    }
}

pub(super) fn daemon(facts: &Facts) -> Vec<Finding> {
    match &facts.daemon {
        None => vec![],
        Some(Ok(status)) => {
            let roles = status.roles.join(",");
            let elsewhere = facts.system.elsewhere.then(|| {
                Finding::warning(
                    "other-network",
                    "the daemon lives in another network namespace than this command, which sees other addresses, routes \
                     and resolvers than it does",
                    format!("nsenter --target {} --net -- dworker doctor", status.pid),
                )
            });
            let answers = format!("pid {} answers, with the roles {roles}", status.pid);
            [Finding::ok("daemon", answers)].into_iter().chain(elsewhere).collect()
        }
        Some(Err((socket, why))) if why.contains("(os error 13)") => {
            let found = format!("{why}: what only the daemon knows was left out");
            let remedy = format!("sudo dworker doctor; only its owner may ask at {}", socket.display());
            vec![Finding::error("daemon", found, remedy)]
        }
        Some(Err((socket, why))) => vec![Finding::error(
            "daemon",
            format!(
                "no daemon answers at {}: {why}; what only a daemon knows was left out",
                socket.display()
            ),
            "systemctl start dworker; journalctl -u dworker says why it does not start",
        )],
    }
}

pub(super) fn capabilities(facts: &Facts) -> Vec<Finding> {
    let steers = facts.config().is_some_and(|config| config.steer.is_some());
    let remedy =
        "CapabilityBoundingSet= and AmbientCapabilities= of the unit need CAP_BPF CAP_PERFMON CAP_NET_ADMIN";
    match (&facts.system.daemon_lacks, &facts.system.lacks) {
        _ if !steers => vec![],
        (Some(lacks), _) => vec![Finding::error(
            "capabilities",
            format!("the daemon lacks {lacks}, and can attach nothing anew"),
            remedy,
        )],
        (None, Some(lacks)) if facts.status().is_some() => vec![Finding::warning(
            "capabilities",
            format!("this command lacks {lacks}, so some of steering was not looked at"),
            "run it as root",
        )],
        (None, Some(lacks)) => vec![Finding::error(
            "capabilities",
            format!("this process lacks {lacks}; a daemon that is started so captures nothing"),
            format!("run it as root; in a unit: {remedy}"),
        )],
        (None, None) => vec![Finding::ok("capabilities", "CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN are there")],
    }
}

pub(super) fn mounts(facts: &Facts) -> Vec<Finding> {
    let cgroup2 = facts.system.cgroup2.iter().map(|mount| match mount {
        Ok(at) => Finding::ok("cgroup-v2", format!("mounted at {}", at.display())),
        Err(why) => Finding::error("cgroup-v2", why, "mount -t cgroup2 none /sys/fs/cgroup/unified"),
    });
    let bpffs = facts.system.unpinnable.iter().map(|why| {
        Finding::error("bpffs", why, "mount -t bpf bpf /sys/fs/bpf, or set steer.pins to a directory on one")
    });
    cgroup2.chain(bpffs).collect()
}

pub(super) fn state(facts: &Facts) -> Vec<Finding> {
    let state = &facts.system.state;
    let path = state.path.display();
    if let Some(why) = &state.unwritable {
        return vec![Finding::error(
            "state-dir",
            format!("state_dir {path}: nothing can be written there: {why}"),
            format!("install -d -m 700 {path}, on a file system that is mounted for writing"),
        )];
    }
    let Some((free, size)) = state.space else { return vec![] };
    let found = format!("state_dir {path}: {} of {} are free", bytes(free), bytes(size));
    let remedy =
        format!("df {path}; events_max and events_age in [appliance] bound what dworker keeps there");
    vec![match free {
        ..HARDLY_ANY => Finding::error("disk-space", found, remedy),
        HARDLY_ANY..FEW => Finding::warning("disk-space", found, remedy),
        _ => Finding::ok("state-dir", found),
    }]
}

pub(super) fn descriptors(facts: &Facts) -> Vec<Finding> {
    let Some(limit) = facts.system.descriptors else { return vec![] };
    vec![match limit {
        ..DESCRIPTORS => Finding::warning(
            "descriptors",
            format!("the daemon may have {limit} files open, and each connection takes two"),
            "LimitNOFILE=1048576 in the unit",
        ),
        _ => Finding::ok("descriptors", format!("{limit} files may be open")),
    }]
}

pub(super) fn ports(facts: &Facts) -> Vec<Finding> {
    let daemon = facts.status().map(|status| status.pid);
    let mut findings: Vec<Finding> =
        facts.system.ports.iter().filter_map(|port| judge(port, daemon)).collect();
    if findings.is_empty() && !facts.system.ports.is_empty() && daemon.is_some() {
        let list: Vec<_> = facts.system.ports.iter().map(|port| port.address.to_string()).collect();
        findings.push(Finding::ok("ports", format!("the daemon listens on {}", list.join(" "))));
    }
    findings
}

fn judge(port: &Port, daemon: Option<u32>) -> Option<Finding> {
    let Port { key, address, holders, is_taken } = port;
    let is_ours = daemon.is_some_and(|pid| holders.iter().any(|(holder, _)| *holder == pid));
    let is_default = address == &Metrics::ADDRESS;
    match (is_taken, is_ours, daemon) {
        (_, true, _) | (false, _, None) => None,
        // It gives way to whoever has it.
        (false, _, Some(_)) if is_default => None,
        (false, false, Some(_)) => Some(Finding::warning(
            "port-unused",
            format!(
                "{key} = {address}: nobody listens there: the configuration has changed since the daemon read it"
            ),
            "dworker reload",
        )),
        // Two daemons are no mistake.
        (true, false, _) if is_default && holders.iter().all(|(_, command)| command == "dworker") => None,
        (true, false, _) => {
            let who: Vec<_> = holders.iter().map(|(pid, command)| format!("{command}[{pid}]")).collect();
            let who = if who.is_empty() { "another process".to_owned() } else { who.join(", ") };
            let found = format!("{key} = {address}: {who} listens there");
            let remedy = match holders.first() {
                Some((pid, _)) => format!("stop process {pid}, or set another address in {key}"),
                None => format!("set another address in {key}; `ss -ltnp` shows who has this one"),
            };
            Some(match daemon {
                Some(_) if is_default => Finding::warning("port-taken", found, remedy),
                _ => Finding::error("port-taken", found, remedy),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::finding::Severity;

    fn port(key: &'static str, address: &str, holders: &[(u32, &str)], is_taken: bool) -> Port {
        let holders = holders.iter().map(|(pid, command)| (*pid, (*command).to_owned())).collect();
        Port { key, address: address.parse().unwrap(), holders, is_taken }
    }

    #[test]
    fn a_port_is_the_daemons_or_somebody_elses_or_nobodys() {
        let default = "127.0.0.1:19464";
        for (port, daemon, expected) in [
            (port("appliance.listen", "0.0.0.0:443", &[(7, "dworker")], true), Some(7), None),
            // A reload: the process before it has it, too.
            (port("appliance.listen", "0.0.0.0:443", &[(5, "dworker"), (7, "dworker")], true), Some(7), None),
            (port("appliance.listen", "0.0.0.0:443", &[(9, "nginx")], true), Some(7), Some("port-taken")),
            (port("appliance.listen", "0.0.0.0:443", &[], true), None, Some("port-taken")),
            (port("appliance.listen", "0.0.0.0:443", &[], false), None, None),
            (port("proxy.http", "127.0.0.1:3128", &[], false), Some(7), Some("port-unused")),
            (port("metrics.listen", default, &[(9, "dworker")], true), Some(7), None),
            (port("metrics.listen", default, &[(9, "nginx")], true), Some(7), Some("port-taken")),
            (port("metrics.listen", default, &[], false), Some(7), None),
        ] {
            let found = judge(&port, daemon);
            assert_eq!(found.as_ref().map(|found| found.id.as_str()), expected, "{port:?} {daemon:?}");
            assert!(found.is_none_or(|found| found.remedy.is_some()), "{port:?}");
        }
    }

    #[test]
    fn little_space_is_a_warning_and_hardly_any_an_error() {
        for (free, expected) in [
            (1 << 40, Severity::Ok),
            (FEW - 1, Severity::Warning),
            (HARDLY_ANY - 1, Severity::Error),
            (0, Severity::Error),
        ] {
            let mut facts = Facts::default();
            facts.system.state.space = Some((free, 1 << 41));
            assert_eq!(state(&facts)[0].severity, expected, "{free}");
        }
    }

    #[test]
    fn without_a_daemon_it_is_said_first_what_was_left_out() {
        let facts = Facts {
            daemon: Some(Err(("/run/dworker/control.sock".into(), "No such file".into()))),
            ..Facts::default()
        };
        let found = super::super::diagnose(&facts);
        let first = &found.findings[0];
        assert_eq!((first.id.as_str(), first.severity), ("daemon", Severity::Error));
        assert!(first.found.contains("/run/dworker/control.sock") && first.found.contains("left out"));
        assert_eq!(found.pid, None);
    }
}
