//! What is attached to the captured cgroups, and what becomes of canaries there.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::config::{Config, Steer, User};
use crate::doctor::canary::{self, Errand, Song};
use crate::doctor::facts::{Hooks, Slot};
use crate::inspect::status::{Status, SteerStatus};
use crate::steer::attached;
use crate::steer::names::Prefixes;
use crate::steer::pins::Pins;
use crate::steer::probe::{self, ProbeError};
use crate::steer::steering;

/// Cgroups that canaries are sent into.
const MOST: usize = 8;
/// Users that a canary may be, in the order of preference: root, nobody, and some that own little.
const USERS: [u32; 5] = [0, 65534, 1, 2, 3];

pub(super) fn look(root: &Path, config: &Config, status: Option<&Status>, elsewhere: bool) -> Option<Hooks> {
    let steer = config.steer.as_ref()?;
    let (there, missing) = named(steer);
    let mut hooks = Hooks { missing, pins: steer.pins.clone(), ..Hooks::default() };
    let Some(status) = status.and_then(|status| status.steer.as_ref()) else {
        hooks.left = Pins::links_left(&steer.pins);
        return Some(hooks);
    };
    if status.off {
        return Some(hooks);
    }
    match slots(status) {
        Ok(slots) => hooks.slots = slots,
        Err(why) => hooks.unseen = Some(why),
    }
    hooks.uncaptured = there.into_iter().filter(|path| !is_captured(status, path)).collect();
    let mut cgroups = captured(status);
    hooks.untried = cgroups.split_off(cgroups.len().min(MOST));
    hooks.canaries = canaries(root, steer, status, elsewhere, cgroups);
    Some(hooks)
}

/// The captured cgroups as the configuration has them: those that are there, and those that are not.
fn named(steer: &Steer) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut there, mut missing) = (Vec::new(), Vec::new());
    // Where there is no cgroup v2 at all that is told.
    let Ok(mount) = probe::mount() else { return (there, missing) };
    for written in &steer.cgroups {
        match probe::cgroup(&mount, written) {
            Ok(found) => there.push(found.path),
            Err(ProbeError::NoSuchCgroup { path, .. } | ProbeError::NotCgroup2 { path, .. }) => {
                missing.push(path)
            }
            Err(_) => {}
        }
    }
    (there, missing)
}

/// True where something is attached to a cgroup, or above it: that runs for what is in it, too.
pub(super) fn is_captured(status: &SteerStatus, path: &Path) -> bool {
    let mut links = status.programs.iter().flat_map(|program| &program.links).filter(|link| link.alive);
    links.any(|link| path.starts_with(&link.cgroup))
}

fn slots(status: &SteerStatus) -> Result<Vec<Slot>, String> {
    let ours: Vec<u32> = status.programs.iter().map(|program| program.id).collect();
    let mut names: HashMap<u32, String> = HashMap::new();
    let mut slots = Vec::new();
    for program in &status.programs {
        for link in program.links.iter().filter(|link| link.alive) {
            let there = attached::attached(&link.cgroup, &program.attach_type);
            let there = there.map_err(|error| format!("{}: {error}", link.cgroup.display()))?;
            let others = there.iter().filter(|id| !ours.contains(id)).map(|id| {
                let name =
                    names.entry(*id).or_insert_with(|| attached::program_name(*id).unwrap_or_default());
                (*id, name.clone())
            });
            slots.push(Slot {
                cgroup: link.cgroup.clone(),
                attach_type: program.attach_type.clone(),
                ours: (program.id, program.name.clone()),
                is_attached: there.contains(&program.id),
                others: others.collect(),
            });
        }
    }
    Ok(slots)
}

/// The cgroups to which something is attached.
fn captured(status: &SteerStatus) -> Vec<PathBuf> {
    let links = status.programs.iter().flat_map(|program| &program.links).filter(|link| link.alive);
    let mut cgroups: Vec<PathBuf> = links.map(|link| link.cgroup.clone()).collect();
    cgroups.sort();
    cgroups.dedup();
    cgroups
}

fn canaries(
    root: &Path,
    steer: &Steer,
    status: &SteerStatus,
    elsewhere: bool,
    cgroups: Vec<PathBuf>,
) -> Vec<(PathBuf, Result<Song, String>)> {
    let send = |cgroup: PathBuf| {
        let sent = match elsewhere {
            true => {
                Err("the daemon lives in another network namespace, where it would not fire for this command"
                    .into())
            }
            false => send(root, steer, status, &cgroup),
        };
        (cgroup, sent)
    };
    cgroups.into_iter().map(send).collect()
}

fn send(root: &Path, steer: &Steer, status: &SteerStatus, cgroup: &Path) -> Result<Song, String> {
    let uid = user(&steer.exclude_users)?;
    if let Ok(mount) = probe::mount() {
        let excluded = steer.exclude_cgroups.iter().map(|written| mount.join(written));
        if let Some(by) = excluded.into_iter().find(|excluded| cgroup.starts_with(excluded)) {
            return Err(format!("it is excluded by steer.exclude_cgroups, {}", by.display()));
        }
    }
    let prefixes = Prefixes::new(steer.synthetic4, steer.synthetic6).map_err(|error| error.to_string())?;
    let addresses = prefixes.canary();
    let resolver =
        resolver(&status.resolvers, &fs::read_to_string(root.join("etc/resolv.conf")).unwrap_or_default());
    canary::send(cgroup, |cage| Errand { cgroup: cage, uid, resolver, v4: addresses.v4, v6: addresses.v6 })
}

/// A user who is not excluded.
fn user(excluded: &[User]) -> Result<u32, String> {
    let excluded: Vec<u32> = excluded.iter().filter_map(|user| steering::user(user).ok()).collect();
    let free = USERS.iter().find(|user| !excluded.contains(user));
    free.copied().ok_or_else(|| "all users that it could be are excluded".to_owned())
}

/// Whom it asks: one for whom a port stands already, so that none is taken for good; else whom all here ask.
fn resolver(known: &BTreeMap<String, u16>, resolv_conf: &str) -> Ipv4Addr {
    let mut known = known.keys().filter_map(|text| text.parse::<Ipv4Addr>().ok());
    let mut listed = super::names::nameservers(resolv_conf).into_iter().filter_map(|address| match address {
        std::net::IpAddr::V4(v4) => Some(v4),
        std::net::IpAddr::V6(_) => None,
    });
    known.next().or_else(|| listed.next()).unwrap_or(Ipv4Addr::LOCALHOST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::status::LinkStatus;

    #[test]
    fn what_is_attached_above_a_cgroup_captures_it_and_what_is_gone_does_not() {
        let status = include_str!("../../inspect/print/example.json");
        let mut status =
            serde_json::from_str::<Status>(status).expect("the example").steer.expect("it steers");
        let link = status.programs[0].links[0].clone();
        let mut attached = |path: &str, alive: bool| {
            for program in &mut status.programs {
                program.links = vec![LinkStatus { cgroup: path.into(), alive, ..link.clone() }];
            }
            is_captured(&status, Path::new("/sys/fs/cgroup/a.slice/a-b.slice"))
        };
        assert!(attached("/sys/fs/cgroup/a.slice/a-b.slice", true));
        assert!(attached("/sys/fs/cgroup/a.slice", true) && attached("/sys/fs/cgroup", true));
        assert!(!attached("/sys/fs/cgroup/a.slice", false));
        assert!(!attached("/sys/fs/cgroup/a.slice/a", true));
        assert!(!attached("/sys/fs/cgroup/a.slice/a-b.slice/b.service", true));
    }

    #[test]
    fn a_canary_is_somebody_who_is_not_excluded_and_asks_whom_all_ask() {
        assert_eq!(user(&[]), Ok(0));
        assert_eq!(user(&[User::Name("root".into())]), Ok(65534));
        assert_eq!(user(&[User::Id(0), User::Name("no-such-user".into())]), Ok(65534));
        assert!(user(&USERS.map(User::Id)).is_err());
        let known = [("2001:db8::53".to_owned(), 1), ("10.0.0.53".to_owned(), 2)].into();
        assert_eq!(resolver(&known, "nameserver 10.0.0.54\n").to_string(), "10.0.0.53");
        assert_eq!(
            resolver(&BTreeMap::new(), "nameserver ::1\nnameserver 10.0.0.54\n").to_string(),
            "10.0.0.54"
        );
        assert_eq!(resolver(&BTreeMap::new(), "nameserver ::1\n"), Ipv4Addr::LOCALHOST);
    }
}
