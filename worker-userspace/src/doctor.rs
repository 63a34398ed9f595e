//! `dworker doctor`: looks whether all that the configuration asks for works, by trying it.
//!
//! First it is looked at what there is ([`facts::Facts`], plain data), then each check says what that means. Checks look
//! at nothing themselves, so that they are tested with whatever facts, without root, a daemon or a network.
//!
//! What must hold: nobody else is disturbed, and nothing is left behind; a fault is told once, where it is, and not again
//! by all that depends on it; what can't be looked at is said.
//!
//! | room | concern |
//! |---|---|
//! | [`facts`] | what was seen |
//! | [`look`] | seeing it: files, the kernel, resolvers, the appliance |
//! | [`canary`] | a process in a captured cgroup that looks what happens to it |
//! | `basics` | checks: configuration, daemon, capabilities, mounts, disks, ports |
//! | `hooks` | checks: what is attached, and whether it fires |
//! | `names` | checks: how names are looked up |
//! | `reach` | checks: the appliance, certificates, clock, proxy |
//! | `tunnel` | checks: workers, and targets behind them |

mod basics;
pub mod canary;
pub mod facts;
mod hooks;
pub mod look;
mod names;
mod reach;
mod tunnel;

use crate::inspect::finding::{Diagnosis, Finding};
use facts::Facts;

/// A check: what some of the facts mean.
type Check = fn(&Facts) -> Vec<Finding>;

/// All checks, in the order in which they are told.
const CHECKS: &[Check] = &[
    basics::configuration,
    basics::daemon,
    basics::capabilities,
    basics::mounts,
    basics::state,
    basics::descriptors,
    basics::ports,
    hooks::steering,
    hooks::cgroups,
    hooks::attached,
    hooks::foreign,
    hooks::canary,
    hooks::left,
    names::overlap,
    names::file,
    names::libc,
    names::hosts,
    names::resolvers,
    names::encrypted,
    reach::appliance,
    reach::proxy,
    reach::clock,
    reach::expiry,
    tunnel::nodes,
    tunnel::targets,
];

/// Things that are named where they can't be tried.
const NAMED: usize = 5;

/// The first of several, and how many more there are.
fn first_of(all: &[String]) -> String {
    let more = all.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", all[..all.len().min(NAMED)].join(" "))
}

/// What the facts mean.
pub fn diagnose(facts: &Facts) -> Diagnosis {
    let pid = facts.status().map(|status| status.pid);
    Diagnosis::new(facts.source.clone(), pid, CHECKS.iter().flat_map(|check| check(facts)).collect())
}
