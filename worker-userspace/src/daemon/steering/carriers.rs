//! Who carries captured connections, followed for as long as the daemon runs.
//!
//! What must hold: what the registry says is what is steered, a moment later; where that can't be, it is tried again,
//! since what stood in the way may go. A carrier that went is given a moment to return, in which connections wait in
//! the forwarder; then `connect()` fails at once, until it is back.

use std::collections::{HashMap, HashSet};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

use super::super::Roles;
use crate::appliance::registry::{Group, Registry};
use crate::config::Steer;
use crate::drain::Drain;
use crate::route::{GRACE, Router};
use crate::steer::steering::{Carrier, SteerError, Steering};
use crate::worker::Uplink;

/// How long after a change that came to nothing it is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Each group of the registry, or the uplink as a whole.
pub(super) enum Carriers {
    Registry(Arc<Registry>),
    Uplink { uplink: Arc<Uplink>, carrier: Carrier },
}

/// The carriers of a moment.
pub(super) enum Now {
    Groups(Vec<Arc<Group>>),
    Uplink { carrier: Carrier, up: bool },
}

impl Carriers {
    pub(super) fn of(roles: &Roles, steer: &Steer) -> Option<Carriers> {
        match (&roles.registry, &roles.uplink) {
            (Some(registry), _) => Some(Carriers::Registry(registry.clone())),
            (None, Some(uplink)) => {
                let name = format!("appliance {}", uplink.appliance());
                let carrier = Carrier { id: 0, name, proxy_hosts: steer.proxy_hosts.clone() };
                Some(Carriers::Uplink { uplink: uplink.clone(), carrier })
            }
            (None, None) => None,
        }
    }

    pub(super) fn router(&self) -> Arc<dyn Router> {
        match self {
            Carriers::Registry(registry) => registry.clone(),
            Carriers::Uplink { uplink, .. } => uplink.clone(),
        }
    }

    pub(super) fn now(&self) -> Now {
        match self {
            Carriers::Registry(registry) => Now::Groups(registry.groups()),
            Carriers::Uplink { uplink, carrier } => {
                Now::Uplink { carrier: carrier.clone(), up: uplink.session().is_up() }
            }
        }
    }
}

impl Now {
    /// What is to be steered: those that carry nothing have no place in the kernel.
    pub(super) fn steered(&self) -> Vec<Carrier> {
        let of = |Group { config, .. }: &Group| Carrier {
            id: config.id,
            name: config.name.clone(),
            proxy_hosts: config.proxy_hosts.clone(),
        };
        let all: Vec<Carrier> = match self {
            Now::Groups(groups) => groups.iter().map(|group| of(group)).collect(),
            Now::Uplink { carrier, .. } => vec![carrier.clone()],
        };
        all.into_iter().filter(|carrier| !carrier.proxy_hosts.is_empty()).collect()
    }

    /// True where nothing but who is up can be different. Workers come and go by the thousand, rosters do not.
    fn is_roster_of(&self, other: &Now) -> bool {
        match (self, other) {
            (Now::Groups(a), Now::Groups(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
            }
            (Now::Uplink { .. }, Now::Uplink { .. }) => true,
            _ => false,
        }
    }

    /// The ids of those that are connected.
    fn up(&self) -> HashSet<i64> {
        match self {
            Now::Groups(groups) => groups.iter().filter(|g| g.is_up()).map(|g| g.config.id).collect(),
            Now::Uplink { carrier, up } => up.then_some(carrier.id).into_iter().collect(),
        }
    }
}

/// What the kernel was told of a carrier.
struct Told {
    /// Since when it is down.
    down: Option<Instant>,
    /// Whether its connections are carried, or refused.
    carried: bool,
}

impl Told {
    /// Of one that was not there a moment ago.
    fn new() -> Told {
        Told { down: Some(Instant::now()), carried: true }
    }
}

/// A change that came to nothing.
struct Failed {
    /// `None`: another process was about to take over, which is no fault.
    why: Option<String>,
    again: Instant,
}

/// Keeps steering at what the carriers are. `now` is what it began with.
pub(super) async fn follow(carriers: Carriers, mut now: Now, steering: Arc<Steering>, drain: Drain) {
    let mut changes = carriers.router().changes();
    let mut gate = drain.gate();
    // What nobody has told of yet is down from when it may be used.
    tokio::select! {
        () = gate.opened() => {}
        () = drain.stopping() => return,
    }
    let mut wanted = now.steered();
    let mut told: HashMap<i64, Told> = wanted.iter().map(|carrier| (carrier.id, Told::new())).collect();
    let mut failed: Option<Failed> = None;
    loop {
        tokio::select! {
            () = gate.opened() => {}
            () = drain.stopping() => return,
        }
        changes.mark_unchanged();
        let before = std::mem::replace(&mut now, carriers.now());
        let due = failed.as_ref().is_some_and(|failed| failed.again <= Instant::now());
        let new = (!now.is_roster_of(&before)).then(|| now.steered()).filter(|new| *new != wanted);
        if due || new.is_some() {
            wanted = new.unwrap_or(wanted);
            failed = match update(&steering, wanted.clone()).await {
                Ok(()) => {
                    // Those that stay are known to be up or down, those that are new are not.
                    let mut before = std::mem::take(&mut told);
                    let ids = wanted.iter().map(|carrier| carrier.id);
                    told = ids.map(|id| (id, before.remove(&id).unwrap_or_else(Told::new))).collect();
                    None
                }
                Err(None) => {
                    failed = Some(Failed { why: None, again: Instant::now() });
                    continue;
                }
                Err(Some(why)) => {
                    if failed.is_none_or(|before| before.why.as_ref() != Some(&why)) {
                        tracing::error!("what is steered stays as it was before the last change: {why}");
                    }
                    Some(Failed { why: Some(why), again: Instant::now() + RETRY })
                }
            };
        }
        let (up, time, mut stands) = (now.up(), Instant::now(), false);
        for (id, told) in &mut told {
            told.down = if up.contains(id) { None } else { told.down.or(Some(time)) };
            let carried = told.down.is_none_or(|since| time < since + GRACE);
            if told.carried != carried && steering.set_carrier(*id, carried) {
                told.carried = carried;
            }
            stands |= told.carried != carried;
        }
        if stands {
            // It is said when nobody takes over any more: the gate was closed before.
            continue;
        }
        let waiting = told.values().filter(|told| told.carried).filter_map(|told| told.down);
        let next = waiting.map(|since| since + GRACE).chain(failed.iter().map(|failed| failed.again)).min();
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = async { match next { Some(at) => sleep_until(at).await, None => pending().await } } => {}
            () = drain.stopping() => return,
        }
    }
}

/// Changes what is steered; or says why it stays as it was. `None`: it stands still.
async fn update(steering: &Arc<Steering>, carriers: Vec<Carrier>) -> Result<(), Option<String>> {
    let steering = steering.clone();
    match spawn_blocking(move || steering.update(carriers)).await {
        Ok(Err(SteerError::Standing)) => Err(None),
        Ok(updated) => updated.map_err(|error| Some(error.to_string())),
        Err(panicked) => Err(Some(panicked.to_string())),
    }
}

#[cfg(test)]
mod tests;
