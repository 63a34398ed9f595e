//! A worker's lane at the appliance: the streams that the worker opens, for steering on its host.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::registry::Registry;
use crate::drain::Drain;
use crate::inspect::ledger::{Entry, Ledger, Origin};
use crate::refusal::{Code, Refusal};
use crate::route::{Request, open_or_wait};
use crate::splice::relay;
use crate::tunnel::lane::Incoming;

/// Takes what a lane of `group` opens until the lane ends.
pub(super) async fn serve(
    mut incoming: mpsc::Receiver<Incoming>,
    group: i64,
    registry: Arc<Registry>,
    ledger: Ledger,
    drain: Drain,
) {
    while let Some(incoming) = incoming.recv().await {
        drain.spawn("relay", carry_on(incoming, group, registry.clone(), ledger.clone()));
    }
}

/// Carries one stream on to the group that owns its target.
async fn carry_on(incoming: Incoming, group: i64, registry: Arc<Registry>, ledger: Ledger) {
    let Incoming { open, stream } = incoming;
    // As it is now: what it may do may have changed since its worker connected.
    let from = registry.group(group);
    let name = from.as_ref().map_or("", |group| &group.config.name);
    let origin = Origin { from: from.as_ref().map(|group| group.config.name.clone()), ..Origin::default() };
    let flow = ledger.open(Entry::Relayed, open.trace, open.target.clone(), origin);
    flow.goes_by(&stream);
    let request = Request { target: open.target, deadline: open.deadline, trace: open.trace };
    let opened = match from.as_ref().is_some_and(|group| group.config.may_open) {
        true => tokio::select! {
            opened = open_or_wait(&*registry, &request) => opened,
            // Nobody waits for it any more.
            refusal = stream.failed() => return flow.end(Err(refusal)),
        },
        false => Err(Refusal::new(
            Code::Denied,
            format!(
                "workers of group {} may not open streams: set may_open = true in its [[appliance.groups]]",
                name
            ),
        )),
    };
    let far = match opened {
        Ok(far) => far,
        Err(refusal) => {
            tracing::warn!(from = %name, target = %request.target, "refused: {refusal}");
            stream.refuse(refusal.clone());
            return flow.end(Err(refusal));
        }
    };
    flow.carried_by(far.carrier.clone());
    let answer = async {
        let ok = far.stream.opened().await?;
        flow.dialled(ok.address, ok.dial);
        stream.accept(ok);
        Ok(())
    };
    // The answer first, so that it goes ahead of what the target says.
    let outcome = tokio::try_join!(answer, relay(&stream, &far.stream, &flow.meter)).map(|_| ());
    if let Err(refusal) = &outcome {
        stream.reset(refusal.clone());
        far.stream.reset(refusal.clone());
        tracing::info!(from = %name, target = %request.target, "cut: {refusal}");
    }
    flow.end(outcome);
}
