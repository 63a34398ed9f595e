//! Tries the proxy hosts, on the control socket only: a stream to each is opened, and closed when the far end has dialled.
//!
//! What must hold: it is one run at a time, of a few streams at once and of not too many in all; it tells the kernel
//! nothing of what is down, and the ledger nothing at all.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Roles;
use crate::carry;
use crate::inspect::api::PROBE;
use crate::inspect::probe::{Refused, Tried, TriedTarget};
use crate::refusal::{Code, Refusal};
use crate::route::{Request, Router as Routes};
use crate::target::{Host, HostPattern, Pattern, PortRange, Target};
use crate::web::extract::Json;
use crate::web::{Kind, Problem};

/// Streams at once.
const AT_ONCE: usize = 8;
/// Targets in one run.
const MOST: usize = 64;
/// Time for one dial.
const DEADLINE: Duration = Duration::from_secs(4);
/// Where a proxy host has all ports.
const GUESS: u16 = 443;

#[derive(Clone)]
struct Shared {
    roles: Arc<Roles>,
    running: Arc<Mutex<()>>,
}

pub(super) fn routes(roles: &Arc<Roles>) -> Router {
    let shared = Shared { roles: roles.clone(), running: Arc::default() };
    Router::new().route(PROBE, post(probe)).with_state(shared)
}

async fn probe(State(shared): State<Shared>) -> Result<Json<Tried>, Problem> {
    let Ok(_running) = shared.running.try_lock() else {
        return Err(Problem::new(Kind::Unavailable, "somebody tries the proxy hosts already"));
    };
    let (router, patterns) = shared.roles.steerable();
    let Some(router) = router else { return Ok(Json(Tried::default())) };
    let Wanted { targets, unprobed, left_out } = wanted(&patterns);
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut dials = JoinSet::new();
    for (at, (target, listed)) in targets.into_iter().enumerate() {
        let (router, places) = (router.clone(), places.clone());
        dials.spawn(async move {
            let _place = places.acquire_owned().await;
            (at, dial(&*router, target, listed).await)
        });
    }
    let mut tried: Vec<_> = dials.join_all().await;
    tried.sort_by_key(|(at, _)| *at);
    let targets = tried.into_iter().map(|(_, tried)| tried).collect();
    Ok(Json(Tried { targets, unprobed, left_out }))
}

async fn dial(router: &dyn Routes, target: Target, listed: bool) -> TriedTarget {
    let request = Request { target, deadline: DEADLINE, trace: rand::random() };
    let mut tried = TriedTarget {
        target: request.target.to_string(),
        listed,
        carrier: None,
        took_us: None,
        refused: None,
    };
    let outcome = match router.open(&request) {
        Ok(opened) => {
            tried.carrier = Some(opened.carrier);
            let answer = carry::answer(&opened.stream, Instant::now() + DEADLINE).await;
            opened
                .stream
                .reset(Refusal::new(Code::Closed, "`dworker doctor` only looked whether it is there"));
            answer
        }
        Err(refusal) => Err(refusal),
    };
    match outcome {
        Ok(ok) => tried.took_us = Some(ok.dial.as_micros().try_into().unwrap_or(u64::MAX)),
        Err(refusal) => {
            tried.refused =
                Some(Refused { code: refusal.code.word().to_owned(), text: refusal.text.clone() });
        }
    }
    tried
}

impl Roles {
    /// Who carries proxy hosts now, and which.
    fn steerable(&self) -> (Option<Arc<dyn Routes>>, Vec<Pattern>) {
        if let Some(registry) = &self.registry {
            let groups = registry.groups();
            let up = groups.iter().filter(|group| group.is_up());
            let patterns = up.flat_map(|group| group.config.proxy_hosts.clone());
            return (Some(registry.clone()), patterns.collect());
        }
        match (&self.uplink, &self.config.steer) {
            (Some(uplink), Some(steer)) if uplink.session().is_up() => {
                (Some(uplink.clone()), steer.proxy_hosts.clone())
            }
            _ => (None, Vec::new()),
        }
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// With whether the port is listed.
    targets: Vec<(Target, bool)>,
    unprobed: Vec<String>,
    left_out: usize,
}

/// What can be tried of these, each once: what names one host, and of its ports those that are listed one by one.
fn wanted(patterns: &[Pattern]) -> Wanted {
    let mut wanted = Wanted::default();
    for pattern in patterns {
        let host = match &pattern.host {
            HostPattern::Name(name) => Host::Name(name.clone()),
            HostPattern::Net(net) if net.prefix_len() == net.max_prefix_len() => Host::addr(net.addr()),
            HostPattern::Net(_) | HostPattern::Suffix(_) => {
                wanted.unprobed.push(pattern.to_string());
                continue;
            }
        };
        let single: Vec<u16> =
            pattern.ports.iter().filter(|PortRange(low, high)| low == high).map(|range| range.0).collect();
        let (ports, listed) = match pattern.ports.is_empty() {
            true => (vec![GUESS], false),
            false => (single, true),
        };
        if ports.len() < pattern.ports.len() {
            wanted.unprobed.push(pattern.to_string());
        }
        for port in ports {
            let target = Target { host: host.clone(), port };
            if wanted.targets.iter().any(|(known, _)| *known == target) {
                continue;
            }
            match wanted.targets.len() < MOST {
                true => wanted.targets.push((target, listed)),
                false => wanted.left_out += 1,
            }
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_one_host_and_port_is_tried_and_no_more_than_so_many() {
        let texts = [
            "vcenter.corp.example",
            "esxi.corp.example:443,902,8000-8010",
            "*.lab.example",
            "10.20.0.0/16:443",
            "10.20.0.5",
            "esxi.corp.example:902",
            "vnc.corp.example:5900-5999",
        ];
        let patterns = texts.map(|text| text.parse::<Pattern>().unwrap());
        let found = wanted(&patterns);
        let told = found.targets.iter().map(|(target, listed)| format!("{target} {listed}"));
        assert_eq!(
            told.collect::<Vec<_>>(),
            [
                "vcenter.corp.example:443 false",
                "esxi.corp.example:443 true",
                "esxi.corp.example:902 true",
                "10.20.0.5:443 false"
            ]
        );
        assert_eq!(
            found.unprobed,
            [
                "esxi.corp.example:443,902,8000-8010",
                "*.lab.example",
                "10.20.0.0/16:443",
                "vnc.corp.example:5900-5999"
            ]
        );
        let many: Vec<Pattern> = (0..100).map(|n| format!("h{n}.example").parse().unwrap()).collect();
        let found = wanted(&many);
        assert_eq!((found.targets.len(), found.left_out), (MOST, 100 - MOST));
    }
}
