//! A worker's lane at the appliance: the streams that the worker opens, for steering on its host.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::registry::Registry;
use crate::carry;
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
    let until = Instant::now() + request.deadline;
    let answer = async {
        let ok = carry::answer(&far.stream, until).await?;
        flow.dialled(ok);
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::BytesMut;
    use tokio::io::{DuplexStream, duplex};

    use super::*;
    use crate::appliance::roster::{Group, Roster, ValidKey};
    use crate::config::Key;
    use crate::tunnel::lane::{Lane, Settings, Upgraded};
    use crate::tunnel::message::{Hello, Open};
    use crate::tunnel::websocket::Side;

    fn lane(node: u8, side: Side, io: DuplexStream) -> (Lane, mpsc::Receiver<Incoming>) {
        let peer = Hello { node: [node; 16], session: [node; 16], ..Hello::sample() };
        let upgraded = Upgraded::new(io, side, BytesMut::new());
        let (lane, incoming, driver) = Lane::new(upgraded, peer, Settings::default());
        tokio::spawn(driver);
        (lane, incoming)
    }

    /// A worker's lane: its own end, and the appliance's.
    fn worker(node: u8) -> [(Lane, mpsc::Receiver<Incoming>); 2] {
        let (near, far) = duplex(1 << 16);
        [lane(node, Side::Client, near), lane(node, Side::Server, far)]
    }

    #[tokio::test(start_paused = true)]
    async fn a_carrier_that_lives_and_does_not_answer_is_given_up() {
        let key = Key::generate().unwrap();
        let group = Group {
            id: 1,
            name: "site".into(),
            keys: vec![ValidKey { hash: key.hash(), until: None }],
            proxy_hosts: vec!["vc.corp.example".parse().unwrap()],
            may_open: true,
            nodes: Vec::new(),
        };
        let registry = Arc::new(Registry::new(Duration::ZERO, Duration::ZERO, Box::new(())));
        registry.apply(Roster { groups: vec![group], ..Roster::default() });
        let [(_, mut stuck), (carrier, _)] = worker(1);
        let admission = registry.authenticate(key.reveal()).expect("the key works");
        let _connected = registry.connect(admission, carrier, ([192, 0, 2, 1], 1).into()).unwrap();
        let [(opener, _), (_lane, incoming)] = worker(2);
        let drain = Drain::new(Duration::ZERO);
        tokio::spawn(serve(incoming, 1, registry, Ledger::default(), drain));

        let (deadline, started) = (Duration::from_secs(20), Instant::now());
        let target = "vc.corp.example".parse().unwrap();
        let target = crate::target::Target { host: target, port: 443 };
        let stream = opener.open(Open { target, deadline, credit: 0, trace: 1 }).unwrap();
        let asked = stuck.recv().await.expect("it is asked for the dial");
        assert_eq!(stream.opened().await.unwrap_err().code, Code::Timeout);
        assert_eq!(started.elapsed().as_secs(), 25);
        // It is told that nobody waits any more.
        assert_eq!(asked.stream.failed().await.code, Code::Timeout);
    }
}
