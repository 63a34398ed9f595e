//! Checks: the workers of an appliance, and the targets behind them.

use super::facts::Facts;
use super::first_of;
use crate::inspect::finding::Finding;
use crate::inspect::probe::{Refused, Tried};

pub(super) fn nodes(facts: &Facts) -> Vec<Finding> {
    let Some(appliance) = facts.status().and_then(|status| status.appliance.as_ref()) else { return vec![] };
    let mut findings = Vec::new();
    for group in appliance.groups.iter().filter(|group| !group.up) {
        findings.push(Finding::error(
            "worker-offline",
            format!("no node of worker {} is connected, so nobody carries {}", group.name, group.proxy_hosts.join(" ")),
            format!(
                "systemctl start dworker at its site; `dworker doctor` there says why it does not connect, and `dworker events \
                 --subject {}` since when",
                group.name
            ),
        ));
    }
    for (worker, node) in &facts.offline {
        if appliance.groups.iter().any(|group| group.up && group.name == *worker) {
            findings.push(Finding::warning(
                "node-offline",
                format!("node {node} of worker {worker} is not connected; others carry what it would"),
                format!("start it, or dworker node forget {worker} {node}"),
            ));
        }
    }
    if findings.is_empty() && !appliance.groups.is_empty() {
        let n = appliance.groups.len();
        findings.push(Finding::ok("workers", format!("{n} of {n} are connected")));
    }
    findings
}

pub(super) fn targets(facts: &Facts) -> Vec<Finding> {
    let tried = match &facts.tried {
        None => return vec![],
        Some(Err(why)) => {
            return vec![Finding::warning(
                "targets",
                format!("the proxy hosts were not tried: {why}"),
                "dworker doctor",
            )];
        }
        Some(Ok(tried)) => tried,
    };
    let Tried { targets, unprobed, left_out } = tried;
    let mut findings = Vec::new();
    for target in targets {
        let Some(Refused { code, text }) = &target.refused else { continue };
        // A host that refuses is there, and 443 was a guess.
        if !target.listed && code == "refused" {
            continue;
        }
        let by = target.carrier.as_ref().map(|carrier| format!(", asked by {carrier}")).unwrap_or_default();
        let guess = if target.listed { "" } else { " (it has all ports; 443 is a guess)" };
        let found = format!("{}{by}: {code}: {text}{guess}", target.target);
        let remedy = remedy(code, &target.target);
        findings.push(match target.listed {
            true => Finding::error("target-unreachable", found, remedy),
            false => Finding::warning("target-unreachable", found, remedy),
        });
    }
    let reached = targets.iter().filter(|target| target.refused.is_none()).count();
    if findings.is_empty() && reached > 0 {
        findings.push(Finding::ok(
            "targets",
            format!("{reached} of the proxy hosts were reached through the tunnel"),
        ));
    }
    if !unprobed.is_empty() || *left_out > 0 {
        let mut parts = Vec::new();
        if !unprobed.is_empty() {
            parts.push(format!("{}: they name no single host and port", first_of(unprobed)));
        }
        if *left_out > 0 {
            parts.push(format!("{left_out} more than are tried in one go"));
        }
        findings.push(Finding::notice("targets-untried", format!("not tried: {}", parts.join("; "))));
    }
    findings
}

fn remedy(code: &str, target: &str) -> String {
    let (host, port) = target.rsplit_once(':').unwrap_or((target, ""));
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match code {
        "denied" => format!("egress.allow at the worker must name {target}, and egress.deny must not"),
        "name-not-found" | "resolve-failed" => {
            format!("getent hosts {host} at the worker: its resolver must know the name")
        }
        "proxy-denied" | "proxy-down" => "dworker doctor at the worker, about its proxy_address".to_owned(),
        "refused" => format!("start what is to listen at {target}, or correct the proxy host's port"),
        "no-worker" | "tunnel-lost" | "shutdown" => {
            "dworker doctor once more, when the worker is connected".to_owned()
        }
        _ => format!("nc -vz {host} {port} at the worker: let it pass there, or remove the proxy host"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::finding::Severity;
    use crate::inspect::probe::TriedTarget;

    fn target(listed: bool, code: Option<&str>) -> TriedTarget {
        TriedTarget {
            target: "vcenter.corp.example:443".into(),
            listed,
            carrier: Some("site-a/site".into()),
            took_us: None,
            refused: code.map(|code| Refused { code: code.into(), text: "why".into() }),
        }
    }

    #[test]
    fn what_was_not_reached_is_told_and_what_was_not_tried_too() {
        for (tried, expected) in [
            (target(true, None), vec![("targets", Severity::Ok)]),
            (target(true, Some("refused")), vec![("target-unreachable", Severity::Error)]),
            (target(false, Some("timeout")), vec![("target-unreachable", Severity::Warning)]),
            (target(false, Some("refused")), vec![]),
        ] {
            let facts = Facts {
                tried: Some(Ok(Tried { targets: vec![tried.clone()], ..Tried::default() })),
                ..Facts::default()
            };
            let found = targets(&facts);
            let found: Vec<_> = found.iter().map(|finding| (finding.id.as_str(), finding.severity)).collect();
            assert_eq!(found, expected, "{tried:?}");
        }
        let tried = Tried { targets: vec![], unprobed: vec!["*.lab.example".into()], left_out: 3 };
        let facts = Facts { tried: Some(Ok(tried)), ..Facts::default() };
        let found = targets(&facts);
        assert_eq!((found[0].id.as_str(), found[0].severity), ("targets-untried", Severity::Notice));
        assert!(found[0].found.contains("*.lab.example") && found[0].found.contains("3 more"), "{found:?}");
    }
}
