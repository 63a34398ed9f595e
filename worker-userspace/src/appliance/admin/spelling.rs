//! A name here and an address there: what is spelled in two ways is two things for a proxy.
//!
//! The seed: "The proxy host URL entered in the Worker configuration must match the URL set in the Cloud
//! configuration." Here a cloud's host is a proxy host of its worker anyway; so what is warned of is a proxy host
//! that was meant for a cloud and that the cloud's software will never ask for.
//!
//! What must hold: a warning never refuses or delays a save; the answer waits for names at most a second.

use std::cell::LazyCell;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use dns_lookup::{AddrInfoHints, SockType, getaddrinfo};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::Admin;
use super::error::{Holder, Warning};
use super::state::State;
use crate::appliance::records::{Cloud, Worker};
use crate::config::quote;
use crate::target::{Host, HostPattern, Name};

/// How long an answer waits for all names together.
const DEADLINE: Duration = Duration::from_millis(1000);
/// Names that one save asks for.
const MOST_NAMES: usize = 64;
/// Warnings that one save gives.
const MOST_WARNINGS: usize = 50;
/// Look-ups under way at once; each takes a thread, and a dead resolver holds it for long.
const LOOKUPS: usize = 16;

/// The addresses of names, as this host sees them.
pub trait Resolve: Send + Sync + 'static {
    /// The addresses of `name`; none where it has none, or where nobody answers.
    fn addresses(&self, name: &Name) -> Pin<Box<dyn Future<Output = Vec<IpAddr>> + Send>>;
}

/// The system's resolver.
#[derive(Debug)]
pub struct SystemResolver(Arc<Semaphore>);

impl Default for SystemResolver {
    fn default() -> Self {
        SystemResolver(Arc::new(Semaphore::new(LOOKUPS)))
    }
}

impl Resolve for SystemResolver {
    fn addresses(&self, name: &Name) -> Pin<Box<dyn Future<Output = Vec<IpAddr>> + Send>> {
        let (lookups, name) = (self.0.clone(), name.clone());
        Box::pin(async move {
            let Ok(permit) = lookups.acquire_owned().await else { return Vec::new() };
            let lookup = tokio::task::spawn_blocking(move || {
                // Held until the thread is done, even where nobody waits for it any more.
                let _permit = permit;
                let hints = AddrInfoHints { socktype: SockType::Stream.into(), ..AddrInfoHints::default() };
                let found = getaddrinfo(Some(name.as_str()), None, Some(hints)).ok()?;
                Some(found.filter_map(|info| Some(info.ok()?.sockaddr.ip().to_canonical())).collect())
            });
            lookup.await.ok().flatten().unwrap_or_default()
        })
    }
}

/// What was saved.
#[derive(Debug, Clone, Copy)]
pub(super) enum Concern {
    Worker(i64),
    Cloud(i64),
}

/// A cloud, and a worker that may have been meant for it.
struct Pair<'s> {
    cloud: &'s Cloud,
    host: &'s Host,
    worker: &'s Worker,
}

impl Admin {
    /// What is odd about what was saved, judged against everything else.
    pub(super) async fn spelling(&self, state: &State, concern: Concern) -> Vec<Warning> {
        let clouds = clouds(state, concern);
        let mut warnings = Vec::new();
        // Made of all patterns, and hardly ever needed.
        let routes = LazyCell::new(|| state.routes());
        for cloud in &clouds {
            let Some(id) = cloud.worker else {
                let carried = routes.find(cloud.api_url.target());
                warnings.extend(carried.map(|(pattern, held)| {
                    without_worker(cloud, &pattern.to_string(), &state.holder(*held))
                }));
                continue;
            };
            warnings.extend(elsewhere(state, cloud, id));
        }
        let pairs: Vec<Pair<'_>> = clouds.iter().flat_map(|cloud| pairs(state, concern, cloud)).collect();
        warnings.extend(pairs.iter().flat_map(short_names));
        let asked: BTreeSet<&Name> = pairs.iter().flat_map(names).take(MOST_NAMES).collect();
        if !asked.is_empty() {
            let found = self.resolve(asked).await;
            warnings.extend(pairs.iter().filter_map(|pair| mismatch(pair, &found)));
        }
        warnings.truncate(MOST_WARNINGS);
        warnings
    }

    /// Addresses of as many names as answer in time.
    async fn resolve(&self, names: BTreeSet<&Name>) -> HashMap<Name, Vec<IpAddr>> {
        let until = Instant::now() + DEADLINE;
        let mut asked = JoinSet::new();
        for name in names {
            let (name, addresses) = (name.clone(), self.inner.resolve.addresses(name));
            asked.spawn(async move { (name, addresses.await) });
        }
        let mut found = HashMap::new();
        while let Ok(Some(answer)) = timeout_at(until, asked.join_next()).await {
            // A look-up that panicked knows nothing.
            found.extend(answer.ok());
        }
        found
    }
}

/// The clouds that what was saved may concern.
fn clouds(state: &State, concern: Concern) -> Vec<&Cloud> {
    let concerned = state.clouds.values().filter(|cloud| match concern {
        Concern::Cloud(id) => cloud.id == id,
        Concern::Worker(id) => match cloud.worker {
            None => true,
            Some(worker) => worker == id || state.workers.get(&id).is_some_and(|w| lists(w, cloud)),
        },
    });
    concerned.map(|cloud| &**cloud).collect()
}

/// Each worker that a cloud's host may have been written down for: its own, or, where it has none, any.
fn pairs<'s>(state: &'s State, concern: Concern, cloud: &'s Cloud) -> Vec<Pair<'s>> {
    let workers = state.workers.values().filter(|worker| match (cloud.worker, concern) {
        (Some(id), _) | (None, Concern::Worker(id)) => worker.id == id,
        (None, Concern::Cloud(_)) => true,
    });
    // Where the worker lists the host as the cloud spells it, all is well.
    let host = &cloud.api_url.target().host;
    let unlisted = workers.filter(|worker| !worker.proxy_hosts.iter().any(|own| own.covers_host(host)));
    unlisted.map(|worker| Pair { cloud, host, worker }).collect()
}

/// A cloud without a worker whose host is proxied all the same.
fn without_worker(cloud: &Cloud, pattern: &str, holder: &Holder) -> Warning {
    let name = quote(&cloud.name);
    Warning {
        field: "worker",
        about: cloud.name.clone(),
        problem: format!("cloud {name} has no worker, but {holder} carries its host, by {pattern}"),
        remedy: format!("give the cloud to worker {}, or take the proxy host out there", holder.worker),
    }
}

/// A cloud whose host other workers list too, with ports that make them somebody else's.
fn elsewhere(state: &State, cloud: &Cloud, worker: i64) -> Option<Warning> {
    let own = state.workers.get(&worker)?;
    let other = state.workers.values().find(|other| other.id != worker && lists(other, cloud))?;
    let target = cloud.api_url.target();
    let pattern = other.proxy_hosts.iter().find(|pattern| is_exactly(&pattern.host, &target.host))?;
    Some(Warning {
        field: "worker",
        about: cloud.name.clone(),
        problem: format!(
            "port {} of cloud {} is carried by worker {}, but worker {} lists its host too, as {pattern}",
            target.port,
            quote(&cloud.name),
            own.name,
            other.name
        ),
        remedy: format!("give the cloud to worker {}, or take {pattern} out there", other.name),
    })
}

/// True where a worker lists exactly the cloud's host.
fn lists(worker: &Worker, cloud: &Cloud) -> bool {
    worker.proxy_hosts.iter().any(|pattern| is_exactly(&pattern.host, &cloud.api_url.target().host))
}

fn is_exactly(pattern: &HostPattern, host: &Host) -> bool {
    match (pattern, host) {
        (HostPattern::Name(name), Host::Name(other)) => name == other,
        (HostPattern::Net(net), Host::Addr(addr)) => {
            net.prefix_len() == net.max_prefix_len() && net.addr() == *addr
        }
        _ => false,
    }
}

/// `vcenter` in one place and `vcenter.corp.example` in the other.
fn short_names(pair: &Pair<'_>) -> Option<Warning> {
    let Host::Name(name) = pair.host else { return None };
    let shortened = |long: &Name, short: &Name| {
        !short.as_str().contains('.')
            && long.as_str().split_once('.').is_some_and(|(first, _)| first == short.as_str())
    };
    let other = own_names(pair.worker).find(|own| shortened(own, name) || shortened(name, own))?;
    Some(differs(pair, &format!("{other}, which may be the same host"), &other.to_string()))
}

/// The names whose addresses could tell that a pair means one host.
fn names<'p>(pair: &'p Pair<'_>) -> Vec<&'p Name> {
    match pair.host {
        Host::Addr(_) => own_names(pair.worker).collect(),
        Host::Name(name) if own_addresses(pair.worker).next().is_some() => vec![name],
        Host::Name(_) => Vec::new(),
    }
}

/// One host, by name here and by address there.
fn mismatch(pair: &Pair<'_>, found: &HashMap<Name, Vec<IpAddr>>) -> Option<Warning> {
    let has = |name: &Name, addr: IpAddr| found.get(name).is_some_and(|all| all.contains(&addr));
    match pair.host {
        Host::Addr(addr) => {
            let name = own_names(pair.worker).find(|name| has(name, *addr))?;
            let what = format!("{name}, which this host resolves to {addr}");
            Some(differs(pair, &what, name.as_str()))
        }
        Host::Name(name) => {
            let addr = own_addresses(pair.worker).find(|addr| has(name, *addr))?;
            let what = format!("only {addr}, which this host resolves {name} to");
            Some(differs(pair, &what, &addr.to_string()))
        }
    }
}

fn differs(pair: &Pair<'_>, what: &str, listed: &str) -> Warning {
    let Pair { cloud, host, worker } = pair;
    let name = quote(&cloud.name);
    Warning {
        field: "proxy_hosts",
        about: cloud.name.clone(),
        problem: format!("cloud {name} says {}, but worker {} lists {what}", cloud.api_url, worker.name),
        remedy: format!("both must be spelled alike: write {host} there, or {listed} in the cloud's API URL"),
    }
}

fn own_names(worker: &Worker) -> impl Iterator<Item = &Name> {
    worker.proxy_hosts.iter().filter_map(|pattern| match &pattern.host {
        HostPattern::Name(name) => Some(name),
        _ => None,
    })
}

fn own_addresses(worker: &Worker) -> impl Iterator<Item = IpAddr> {
    worker.proxy_hosts.iter().filter_map(|pattern| match &pattern.host {
        HostPattern::Net(net) if net.prefix_len() == net.max_prefix_len() => Some(net.addr()),
        _ => None,
    })
}
