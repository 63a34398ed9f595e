//! Puts steering between the applications and whoever carries: the registry, or the uplink.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::time::{Instant, sleep_until};

use super::{Roles, StartError};
use crate::config::Steer;
use crate::drain::Drain;
use crate::entry::captured::Forwarder;
use crate::route::{GRACE, Router};
use crate::steer::steering::{Started, Steered, Steering};

/// Starts steering with the tasks that belong to it.
pub(super) fn start(
    roles: &Roles,
    steer: &Steer,
    drain: &Drain,
) -> Result<Option<Arc<Steering>>, StartError> {
    let Some(carriers) = Carriers::of(roles) else { return Ok(None) };
    let steered = carriers.steered(roles);
    let Started { steering, forwarder, dns } =
        Steering::start(steer, &roles.config.state_dir, &steered, carriers.names())?;
    let service = Forwarder {
        steering: steering.clone(),
        router: carriers.router(),
        ledger: roles.ledger.clone(),
        drain: drain.clone(),
    };
    for listener in forwarder {
        let listener = TcpListener::from_std(listener)
            .map_err(|source| StartError::System { doing: "taking the forwarder's listener", source })?;
        drain.spawn("forwarder", service.clone().serve(listener));
    }
    let stopping = drain.clone();
    drain.spawn("dns", async move {
        if let Err(error) = dns.run(stopping.stopping()).await {
            tracing::error!("DNS ended: {error}");
        }
    });
    let (watched, stopping) = (steering.clone(), drain.clone());
    drain.spawn("kernel events", async move {
        tokio::select! {
            () = watched.watch() => {}
            () = stopping.stopping() => {}
        }
    });
    drain.spawn("carriers", carriers.follow(steering.clone(), drain.clone()));
    Ok(Some(steering))
}

/// Who carries captured connections: each group of the registry, or the uplink as a whole.
enum Carriers {
    Registry(Arc<crate::appliance::registry::Registry>),
    Uplink(Arc<crate::worker::Uplink>),
}

impl Carriers {
    fn of(roles: &Roles) -> Option<Carriers> {
        match (&roles.registry, &roles.uplink) {
            (Some(registry), _) => Some(Carriers::Registry(registry.clone())),
            (None, Some(uplink)) => Some(Carriers::Uplink(uplink.clone())),
            (None, None) => None,
        }
    }

    fn router(&self) -> Arc<dyn Router> {
        match self {
            Carriers::Registry(registry) => registry.clone(),
            Carriers::Uplink(uplink) => uplink.clone(),
        }
    }

    fn names(&self) -> Vec<String> {
        match self {
            Carriers::Registry(registry) => registry.groups().iter().map(|g| g.config.name.clone()).collect(),
            Carriers::Uplink(uplink) => vec![format!("appliance {}", uplink.appliance())],
        }
    }

    /// What is captured, and the number of its carrier.
    fn steered(&self, roles: &Roles) -> Vec<Steered> {
        match self {
            Carriers::Registry(registry) => (0..)
                .zip(registry.groups())
                .flat_map(|(group, state)| {
                    let of_group = move |pattern: &_| Steered { pattern: Clone::clone(pattern), group };
                    state.config.proxy_hosts.iter().map(of_group).collect::<Vec<_>>()
                })
                .collect(),
            Carriers::Uplink(_) => roles
                .config
                .steered()
                .into_iter()
                .map(|pattern| Steered { pattern: pattern.clone(), group: 0 })
                .collect(),
        }
    }

    fn up(&self) -> Vec<bool> {
        match self {
            Carriers::Registry(registry) => registry.groups().iter().map(|g| g.is_up()).collect(),
            Carriers::Uplink(uplink) => vec![uplink.session().is_up()],
        }
    }

    /// Tells the kernel who carries. A carrier that went is given a moment to return, in which connections
    /// wait in the forwarder; then `connect()` fails at once, until it is back.
    async fn follow(self, steering: Arc<Steering>, drain: Drain) {
        let mut changes = self.router().changes();
        let start = Instant::now();
        // Since when each is down, and whether the kernel knows.
        let mut down: Vec<Option<Instant>> = self.up().iter().map(|_| Some(start)).collect();
        let mut told = vec![true; down.len()];
        loop {
            changes.mark_unchanged();
            let now = Instant::now();
            for (group, up) in self.up().into_iter().enumerate() {
                down[group] = if up { None } else { down[group].or(Some(now)) };
                let carried = down[group].is_none_or(|since| now < since + GRACE);
                if told[group] != carried {
                    steering.set_carrier(group as u16, carried);
                    told[group] = carried;
                }
            }
            let waiting = down.iter().zip(&told).filter(|(_, told)| **told).filter_map(|(down, _)| *down);
            let next = waiting.min().map(|since| since + GRACE);
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = async { sleep_until(next.unwrap_or(now)).await }, if next.is_some() => {}
                () = drain.stopping() => return,
            }
        }
    }
}
