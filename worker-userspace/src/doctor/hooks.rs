//! Checks: what is attached to the captured cgroups, and whether it fires.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::canary::{Heard, Song};
use super::facts::{Facts, Hooks};
use super::first_of;
use crate::inspect::finding::Finding;
use crate::inspect::status::SteerStatus;

/// What our programs' names begin with.
const OURS: &str = "dw_";

pub(super) fn steering(facts: &Facts) -> Vec<Finding> {
    let Some(steer) = steer(facts) else {
        let wanted = facts.config().is_some_and(|config| config.steer.is_some());
        return match facts.status() {
            Some(_) if wanted => vec![Finding::warning(
                "steering-new",
                "the configuration has [steer], and the daemon that runs does not: it was added since",
                "dworker reload",
            )],
            _ => vec![],
        };
    };
    let off = steer.off.then(|| {
        Finding::warning(
            "steering-off",
            "nothing is captured: steering was switched off by hand",
            "dworker steer on",
        )
    });
    let problem = steer.problem.as_ref().map(|problem| {
        Finding::error(
            "steering-problem",
            format!("the last change of the proxy hosts is not steered: {problem}"),
            "take that change back, or do what it says",
        )
    });
    off.into_iter().chain(problem).collect()
}

pub(super) fn cgroups(facts: &Facts) -> Vec<Finding> {
    let missing = facts.hooks.iter().flat_map(|hooks| &hooks.missing).map(|path| {
        Finding::warning(
            "cgroup-gone",
            format!("nothing is captured in {}: there is no such cgroup", path.display()),
            "start the service that it belongs to, or correct steer.cgroups; `systemd-cgls` shows those that there are",
        )
    });
    let uncaptured = facts.hooks.iter().flat_map(|hooks| &hooks.uncaptured).map(|path| {
        let (due, remedy) = match facts.news.is_empty() {
            true => (String::new(), "dworker reload; if it stays, `dworker tail steer` says why"),
            false => (format!("; a reload is due: {}", facts.news.join("; ")), "dworker reload"),
        };
        let text =
            format!("nothing is captured in {}, which is there and in steer.cgroups{due}", path.display());
        Finding::error("cgroup-uncaptured", text, remedy)
    });
    missing.chain(uncaptured).collect()
}

pub(super) fn attached(facts: &Facts) -> Vec<Finding> {
    let Some((hooks, steer)) = facts.hooks.as_ref().zip(steer(facts)) else { return vec![] };
    if steer.off {
        return vec![];
    }
    if let Some(why) = &hooks.unseen {
        // Of what this command lacks it was told.
        let is_told = facts.system.lacks.is_some();
        let text = format!("what is attached can't be seen: {why}");
        let finding = Finding::warning("hooks-unseen", text, "run it as root, where the daemon runs");
        return if is_told { vec![] } else { vec![finding] };
    }
    let gone: Vec<Finding> = hooks
        .slots
        .iter()
        .filter(|slot| !slot.is_attached)
        .map(|slot| {
            let (id, name) = &slot.ours;
            Finding::error(
                "hook-detached",
                format!(
                    "{name} (program {id}, {}) is not attached to {} any more: somebody has detached it",
                    slot.attach_type,
                    slot.cgroup.display()
                ),
                "dworker reload attaches all anew",
            )
        })
        .collect();
    if gone.is_empty() && !hooks.slots.is_empty() {
        let cgroups: BTreeSet<&Path> = hooks.slots.iter().map(|slot| slot.cgroup.as_path()).collect();
        let cgroups: Vec<_> = cgroups.iter().map(|path| path.display().to_string()).collect();
        let each = hooks.slots.len() / cgroups.len();
        return vec![Finding::ok(
            "hooks",
            format!("{each} programs are attached to each of {}", cgroups.join(" ")),
        )];
    }
    gone
}

pub(super) fn foreign(facts: &Facts) -> Vec<Finding> {
    let mut others: BTreeSet<(&Path, &str, u32)> = BTreeSet::new();
    let mut twins: BTreeSet<(&Path, &str, u32)> = BTreeSet::new();
    for slot in facts.hooks.iter().flat_map(|hooks| &hooks.slots) {
        for (id, name) in &slot.others {
            let into = if name.starts_with(OURS) { &mut twins } else { &mut others };
            into.insert((&slot.cgroup, name, *id));
        }
    }
    let told = |set: BTreeSet<(&Path, &str, u32)>| {
        let mut by_cgroup: BTreeMap<&Path, Vec<String>> = BTreeMap::new();
        for (path, name, id) in set {
            by_cgroup.entry(path).or_default().push(format!("{name} (program {id})"));
        }
        let each =
            by_cgroup.iter().map(|(path, names)| format!("{} at {}", names.join(", "), path.display()));
        each.collect::<Vec<_>>().join("; ")
    };
    let mut findings = Vec::new();
    if !twins.is_empty() {
        findings.push(Finding::error(
            "two-daemons",
            format!("another dworker captures the same: {}", told(twins)),
            "stop one of them, or give them cgroups that are not below each other; `pgrep -a dworker` shows both",
        ));
    }
    if !others.is_empty() {
        findings.push(Finding::warning(
            "foreign-programs",
            format!(
                "programs of others decide about the same calls, and may undo what ours do: {}",
                told(others)
            ),
            "bpftool prog show id ID says whose they are",
        ));
    }
    findings
}

pub(super) fn canary(facts: &Facts) -> Vec<Finding> {
    let Some((hooks, steer)) = facts.hooks.as_ref().zip(steer(facts)) else { return vec![] };
    let mut findings = Vec::new();
    let mut sang = 0;
    for (cgroup, outcome) in &hooks.canaries {
        match outcome {
            Err(why) => findings.push(Finding::warning(
                "canary",
                format!("whether the programs fire in {} could not be tried: {why}", cgroup.display()),
                "run it as root, where the daemon runs",
            )),
            Ok(song) => {
                sang += 1;
                findings.extend(silent(hooks, steer, cgroup, song));
            }
        }
    }
    if sang > 0 && findings.is_empty() {
        // What was seen was done by this daemon's programs, or by another's.
        let counted = |word: &str| {
            hooks.counted.as_ref().is_none_or(|counted| counted.get(word).is_some_and(|n| *n > 0))
        };
        let still: Vec<_> = [
            ("dns-udp", "cgroup_inet4_connect"),
            ("dns-tcp", "cgroup_sock_ops"),
            ("refused-datagram", "cgroup_udp6_sendmsg"),
            ("refused-stale-synthetic", "cgroup_inet4_connect"),
        ]
        .into_iter()
        .filter(|(word, hook)| !counted(word) && fires(hooks, hook))
        .map(|(word, _)| word)
        .collect();
        findings.push(match still.is_empty() {
            true => Finding::ok("canary", "each hook fires: a canary's calls were judged as they should be"),
            false => Finding::error(
                "two-daemons",
                format!(
                    "a canary was answered, and this daemon's counters ({}) did not move: another dworker answers",
                    still.join(", ")
                ),
                "stop one of them; `pgrep -a dworker` shows both",
            ),
        });
    }
    if !hooks.untried.is_empty() {
        let paths: Vec<_> = hooks.untried.iter().map(|path| path.display().to_string()).collect();
        let text = format!("no canary was sent into {}: more than are tried in one go", first_of(&paths));
        findings.push(Finding::notice("cgroups-untried", text));
    }
    findings
}

fn fires(hooks: &Hooks, hook: &str) -> bool {
    hooks
        .canaries
        .iter()
        .any(|(_, song)| song.as_ref().is_ok_and(|song| song.hooks.get(hook) == Some(&Heard::Fires)))
}

/// The hooks that should fire in a cgroup and do not; of those that are not attached it was told.
fn silent(hooks: &Hooks, steer: &SteerStatus, cgroup: &Path, song: &Song) -> Vec<Finding> {
    let is_loaded = |hook: &str| steer.programs.iter().any(|program| program.attach_type == hook);
    let is_detached = |hook: &str| {
        hooks.slots.iter().any(|slot| slot.cgroup == cgroup && slot.attach_type == hook && !slot.is_attached)
    };
    let remedy = "dworker reload; if it stays, `dworker status prog` and the log of the daemon";
    let mut findings = Vec::new();
    for (hook, heard) in &song.hooks {
        if let Heard::Silent(instead) = heard
            && is_loaded(hook)
            && !is_detached(hook)
        {
            findings.push(Finding::error(
                "hook-silent",
                format!("{hook} does not fire in {}: {instead}", cgroup.display()),
                remedy,
            ));
        }
    }
    for (family, heard) in &song.rules {
        if let Heard::Silent(instead) = heard {
            findings.push(Finding::error(
                "rules-missing",
                format!("the rules of {family} are not in force in {}: {instead}", cgroup.display()),
                remedy,
            ));
        }
    }
    findings
}

pub(super) fn left(facts: &Facts) -> Vec<Finding> {
    let left = facts.hooks.as_ref().filter(|hooks| hooks.left > 0 && facts.status().is_none());
    let finding = left.map(|hooks| {
        Finding::warning(
            "left-behind",
            format!(
                "a daemon that was killed has left {} links in {}: connections to names fail, until one is there again",
                hooks.left,
                hooks.pins.display()
            ),
            "systemctl start dworker, or dworker steer off",
        )
    });
    finding.into_iter().collect()
}

fn steer(facts: &Facts) -> Option<&SteerStatus> {
    facts.status()?.steer.as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::Slot;
    use crate::inspect::status::Status;

    const CGROUP: &str = "/sys/fs/cgroup/a.slice";

    fn slot(attach_type: &str, name: &str, is_attached: bool, others: &[(u32, &str)]) -> Slot {
        Slot {
            cgroup: CGROUP.into(),
            attach_type: attach_type.to_owned(),
            ours: (17, name.to_owned()),
            is_attached,
            others: others.iter().map(|(id, name)| (*id, (*name).to_owned())).collect(),
        }
    }

    /// Facts with a daemon that has connect4 and connect6.
    fn facts(hooks: Hooks) -> Facts {
        let mut status: Status =
            serde_json::from_str(include_str!("../inspect/print/example.json")).expect("the example");
        let steer = status.steer.as_mut().expect("it steers");
        let mut program = steer.programs[0].clone();
        steer.programs.clear();
        for attach_type in ["cgroup_inet4_connect", "cgroup_inet6_connect"] {
            program.attach_type = attach_type.to_owned();
            steer.programs.push(program.clone());
        }
        steer.problem = None;
        Facts { daemon: Some(Ok(Box::new(status))), hooks: Some(hooks), ..Facts::default() }
    }

    fn ids(findings: &[Finding]) -> Vec<&str> {
        findings.iter().map(|finding| finding.id.as_str()).collect()
    }

    #[test]
    fn a_cgroup_that_is_not_captured_is_told_with_the_reload_that_is_due() {
        let mut facts = facts(Hooks { uncaptured: vec![CGROUP.into()], ..Hooks::default() });
        let found = cgroups(&facts);
        assert_eq!(ids(&found), ["cgroup-uncaptured"]);
        assert!(found[0].found.contains(CGROUP) && !found[0].found.contains("reload"), "{found:?}");
        facts.news = vec!["changed: steer.cgroups".into()];
        let found = cgroups(&facts);
        assert!(found[0].found.ends_with("a reload is due: changed: steer.cgroups"), "{found:?}");
    }

    #[test]
    fn a_hook_that_is_detached_is_told_once_though_the_canary_misses_it() {
        let mut song = Song::default();
        song.hooks.insert("cgroup_inet4_connect".into(), Heard::Silent("no answer".into()));
        song.hooks.insert("cgroup_inet6_connect".into(), Heard::Fires);
        // This kernel has no such hook.
        song.hooks.insert("cgroup_inet4_getpeername".into(), Heard::Silent("127.0.0.1:5".into()));
        let slots = vec![
            slot("cgroup_inet4_connect", "dw_connect4", false, &[]),
            slot("cgroup_inet6_connect", "dw_connect6", true, &[]),
        ];
        let canaries = vec![(CGROUP.into(), Ok(song))];
        let mut facts = facts(Hooks { slots, canaries, ..Hooks::default() });
        facts.hooks.as_mut().expect("hooks").counted =
            Some([("dns-udp".to_owned(), 1), ("refused-datagram".to_owned(), 1)].into());
        let found = attached(&facts);
        assert_eq!(ids(&found), ["hook-detached"]);
        assert!(found[0].found.contains("dw_connect4 (program 17") && found[0].remedy.is_some(), "{found:?}");
        assert_eq!(ids(&canary(&facts)), ["canary"]);
        // It is attached, and still silent.
        facts.hooks.as_mut().expect("hooks").slots[0].is_attached = true;
        assert_eq!(ids(&attached(&facts)), ["hooks"]);
        assert_eq!(ids(&canary(&facts)), ["hook-silent"]);
    }

    #[test]
    fn programs_of_others_are_named_and_those_of_another_dworker_are_an_error() {
        let slots = vec![
            slot("cgroup_inet4_connect", "dw_connect4", true, &[(5, "sd_fw"), (6, "dw_connect4")]),
            slot("cgroup_inet6_connect", "dw_connect6", true, &[(5, "sd_fw")]),
        ];
        let found = foreign(&facts(Hooks { slots, ..Hooks::default() }));
        assert_eq!(ids(&found), ["two-daemons", "foreign-programs"]);
        assert_eq!(found[1].found.matches("sd_fw").count(), 1, "{found:?}");
    }

    #[test]
    fn answers_that_this_daemon_did_not_count_are_anothers() {
        let mut song = Song::default();
        song.hooks.insert("cgroup_inet4_connect".into(), Heard::Fires);
        let canaries = vec![(CGROUP.into(), Ok(song))];
        let mut facts = facts(Hooks { canaries, counted: Some(BTreeMap::new()), ..Hooks::default() });
        assert_eq!(ids(&canary(&facts)), ["two-daemons"]);
        let hooks = facts.hooks.as_mut().expect("hooks");
        hooks.counted = None;
        assert_eq!(ids(&canary(&facts)), ["canary"], "it can't be known");
        let hooks = facts.hooks.as_mut().expect("hooks");
        hooks.counted = Some([("dns-udp".to_owned(), 2), ("refused-stale-synthetic".to_owned(), 1)].into());
        assert_eq!(ids(&canary(&facts)), ["canary"]);
        let hooks = facts.hooks.as_mut().expect("hooks");
        hooks.canaries[0].1 = Err("a cgroup below it can't be made".into());
        let found = canary(&facts);
        assert_eq!(ids(&found), ["canary"]);
        assert!(found[0].found.contains("could not be tried"));
        // More cgroups than are tried.
        let hooks = facts.hooks.as_mut().expect("hooks");
        hooks.untried = (0..7).map(|n| format!("/sys/fs/cgroup/{n}.slice").into()).collect();
        let found = canary(&facts);
        assert_eq!(ids(&found), ["canary", "cgroups-untried"]);
        assert!(found[1].found.contains("/sys/fs/cgroup/4.slice and 2 more"), "{found:?}");
    }
}
