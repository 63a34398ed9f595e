//! Puts steering between the applications and whoever carries: the registry, or the uplink.

mod carriers;

use std::sync::Arc;

use tokio::net::TcpListener;

use super::{Roles, StartError};
use crate::config::Steer;
use crate::drain::Drain;
use crate::entry::captured::Forwarder;
use crate::steer::steering::{Inherited, Started, Steering};
use carriers::{Carriers, follow};

/// Starts steering with the tasks that belong to it, and captures: nothing of a start may fail after it, or what is
/// captured would lead to nobody.
pub(super) fn start(
    roles: &Roles,
    steer: &Steer,
    inherited: Inherited,
    drain: &Drain,
) -> Result<Option<Arc<Steering>>, StartError> {
    let Some(carriers) = Carriers::of(roles, steer) else { return Ok(None) };
    let now = carriers.now();
    let Started { steering, forwarder, dns } =
        Steering::start(steer, &roles.config.state_dir, now.steered(), inherited)?;
    steering.tell(roles.ledger.hub().clone());
    let service = Arc::new(Forwarder {
        steering: steering.clone(),
        router: carriers.router(),
        ledger: roles.ledger.clone(),
        threads: roles.threads.clone(),
        drain: drain.clone(),
    });
    // They live with the first lane: what is carried there moves nowhere.
    let thread = roles.threads.at(0);
    let entered = thread.enter();
    let forwarder = forwarder.into_iter().map(TcpListener::from_std).collect::<Result<Vec<_>, _>>();
    drop(entered);
    let forwarder = forwarder
        .map_err(|source| StartError::System { doing: "taking the forwarder's listener", source })?;
    steering.capture()?;
    for listener in forwarder {
        drain.spawn_on(&thread, "forwarder", service.clone().serve(listener));
    }
    let stopping = drain.clone();
    drain.spawn("dns", async move {
        if let Err(error) = dns.run(stopping.stopping()).await {
            tracing::error!("DNS ended: {error}");
        }
    });
    let (watched, gate, stopping) = (steering.clone(), drain.gate(), drain.clone());
    drain.spawn("kernel events", async move {
        tokio::select! {
            () = watched.watch(gate) => {}
            () = stopping.stopping() => {}
        }
    });
    let (scope, gate, stopping) = (steering.clone(), drain.gate(), drain.clone());
    drain.spawn("captured cgroups", async move {
        tokio::select! {
            () = scope.keep_scope(gate) => {}
            () = stopping.stopping() => {}
        }
    });
    drain.spawn("carriers", follow(carriers, now, steering.clone(), drain.clone()));
    Ok(Some(steering))
}
