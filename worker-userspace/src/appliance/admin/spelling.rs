//! A name here and an address there: what is spelled in two ways is two things for a proxy.
//!
//! The seed: "The proxy host URL entered in the Worker configuration must match the URL set in the Cloud
//! configuration." Here a cloud's host is a proxy host of its worker anyway; so what is warned of is a proxy host
//! that was meant for a cloud and that the cloud's software will never ask for.
//!
//! What must hold: a warning never refuses or delays a save; the answer waits for names at most a second.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
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
use crate::target::{Host, HostPattern, Name, Pattern, PatternMap};

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

/// A cloud, and what a worker lists that may have been meant for it.
struct Pair<'a, 's> {
    cloud: &'s Cloud,
    host: &'s Host,
    listed: &'a Listed<'s>,
}

impl Admin {
    /// What is odd about what was saved, judged against everything else. Takes time for what all workers list and all
    /// clouds, not for each with each.
    pub(super) async fn spelling(&self, state: &State, concern: Concern) -> Vec<Warning> {
        let clouds = clouds(state, concern);
        let mut warnings = Vec::new();
        // Made of all patterns, and hardly ever needed.
        let routes = LazyCell::new(|| state.routes());
        let listing = LazyCell::new(|| listing(state));
        for cloud in &clouds {
            warnings.extend(match cloud.worker {
                None => {
                    let carried = routes.find(cloud.api_url.target());
                    carried.map(|(pattern, held)| {
                        without_worker(cloud, &pattern.to_string(), &state.holder(*held))
                    })
                }
                Some(id) => state.workers.get(&id).and_then(|own| elsewhere(cloud, own, &listing)),
            });
        }
        let listed = listed(state, concern, &clouds);
        let pairs: Vec<Pair<'_, '_>> =
            clouds.iter().flat_map(|cloud| pairs(&listed, concern, cloud)).collect();
        warnings.extend(pairs.iter().filter_map(short_names));
        let asked = asked(&pairs);
        if !asked.is_empty() {
            let found = Found::new(self.resolve(asked).await);
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

/// What one worker lists, by what is asked of it; names and addresses with their place in its list.
struct Listed<'s> {
    worker: &'s Worker,
    patterns: PatternMap<()>,
    names: HashMap<&'s Name, usize>,
    addresses: HashMap<IpAddr, usize>,
    /// The first of its names with this first label: the first that has others, and the first that is short.
    labels: HashMap<(&'s str, bool), &'s Name>,
}

impl<'s> Listed<'s> {
    fn new(worker: &'s Worker) -> Listed<'s> {
        let mut listed = Listed {
            worker,
            patterns: PatternMap::default(),
            names: HashMap::new(),
            addresses: HashMap::new(),
            labels: HashMap::new(),
        };
        for (place, pattern) in worker.proxy_hosts.iter().enumerate() {
            listed.patterns.insert(pattern.clone(), ());
            match &pattern.host {
                HostPattern::Name(name) => {
                    listed.names.entry(name).or_insert(place);
                    listed.labels.entry(first_label(name)).or_insert(name);
                }
                HostPattern::Net(net) if is_host(&pattern.host) => {
                    listed.addresses.entry(net.addr()).or_insert(place);
                }
                _ => {}
            }
        }
        listed
    }
}

/// The first label of a name, and whether it has others.
fn first_label(name: &Name) -> (&str, bool) {
    name.as_str().split_once('.').map_or((name.as_str(), false), |(first, _)| (first, true))
}

/// What the resolver said, both ways.
struct Found {
    addresses: HashMap<Name, Vec<IpAddr>>,
    names: HashMap<IpAddr, Vec<Name>>,
}

impl Found {
    fn new(addresses: HashMap<Name, Vec<IpAddr>>) -> Found {
        let mut names: HashMap<IpAddr, Vec<Name>> = HashMap::new();
        for (name, all) in &addresses {
            for addr in all {
                names.entry(*addr).or_default().push(name.clone());
            }
        }
        Found { addresses, names }
    }
}

/// The clouds that what was saved may concern.
fn clouds(state: &State, concern: Concern) -> Vec<&Cloud> {
    let id = match concern {
        Concern::Worker(id) => id,
        Concern::Cloud(id) => return state.clouds.get(&id).map(|cloud| &**cloud).into_iter().collect(),
    };
    let own = state.workers.get(&id).map_or(&[][..], |worker| &worker.proxy_hosts);
    let own: HashSet<&HostPattern> = own.iter().map(|pattern| &pattern.host).collect();
    let concerned = |cloud: &&Cloud| {
        cloud.worker.is_none_or(|worker| worker == id)
            || own.contains(&HostPattern::from(&cloud.api_url.target().host))
    };
    state.clouds.values().map(|cloud| &**cloud).filter(concerned).collect()
}

/// Who lists exactly a host, by the workers' ids; each with its first pattern for it.
type Listing<'s> = HashMap<&'s HostPattern, Vec<(&'s Worker, &'s Pattern)>>;

fn listing(state: &State) -> Listing<'_> {
    let mut listing: Listing<'_> = HashMap::new();
    for worker in state.workers.values() {
        for pattern in worker.proxy_hosts.iter().filter(|pattern| is_host(&pattern.host)) {
            let listed = listing.entry(&pattern.host).or_default();
            if listed.last().is_none_or(|(last, _)| last.id != worker.id) {
                listed.push((worker, pattern));
            }
        }
    }
    listing
}

/// The workers that hosts of these clouds may have been written down for.
fn listed<'s>(state: &'s State, concern: Concern, clouds: &[&Cloud]) -> BTreeMap<i64, Listed<'s>> {
    let ids: BTreeSet<i64> = match (concern, clouds) {
        (Concern::Cloud(_), [Cloud { worker: None, .. }]) => state.workers.keys().copied().collect(),
        (Concern::Cloud(_), _) => clouds.iter().filter_map(|cloud| cloud.worker).collect(),
        (Concern::Worker(id), _) => clouds.iter().map(|cloud| cloud.worker.unwrap_or(id)).collect(),
    };
    let workers = ids.into_iter().filter_map(|id| state.workers.get(&id));
    workers.map(|worker| (worker.id, Listed::new(worker))).collect()
}

/// Each worker that a cloud's host may have been written down for: its own, or, where it has none, any.
fn pairs<'a, 's>(
    listed: &'a BTreeMap<i64, Listed<'s>>,
    concern: Concern,
    cloud: &'s Cloud,
) -> Vec<Pair<'a, 's>> {
    let workers = match (cloud.worker, concern) {
        (Some(id), _) | (None, Concern::Worker(id)) => listed.range(id..=id),
        (None, Concern::Cloud(_)) => listed.range(..),
    };
    // Where the worker lists the host as the cloud spells it, all is well.
    let host = &cloud.api_url.target().host;
    let unlisted = workers.filter(|(_, listed)| listed.patterns.covering(host).next().is_none());
    unlisted.map(|(_, listed)| Pair { cloud, host, listed }).collect()
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
fn elsewhere(cloud: &Cloud, own: &Worker, listing: &Listing<'_>) -> Option<Warning> {
    let target = cloud.api_url.target();
    let all = listing.get(&HostPattern::from(&target.host))?;
    let (other, pattern) = all.iter().find(|(other, _)| other.id != own.id)?;
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

/// True where a pattern means one host, and no others.
fn is_host(pattern: &HostPattern) -> bool {
    match pattern {
        HostPattern::Name(_) => true,
        HostPattern::Suffix(_) => false,
        HostPattern::Net(net) => net.prefix_len() == net.max_prefix_len(),
    }
}

/// `vcenter` in one place and `vcenter.corp.example` in the other.
fn short_names(pair: &Pair<'_, '_>) -> Option<Warning> {
    let Host::Name(name) = pair.host else { return None };
    let (first, is_long) = first_label(name);
    let other = pair.listed.labels.get(&(first, !is_long))?;
    Some(differs(pair, &format!("{other}, which may be the same host"), other.as_str()))
}

/// The names whose addresses could tell that a pair means one host; the first of them, where they are too many.
fn asked<'a>(pairs: &[Pair<'a, '_>]) -> BTreeSet<&'a Name> {
    let (mut names, mut done) = (BTreeSet::new(), HashSet::new());
    for Pair { host, listed, .. } in pairs {
        match host {
            Host::Name(name) if !listed.addresses.is_empty() => drop(names.insert(name)),
            Host::Addr(_) if done.insert(listed.worker.id) => {
                names.extend(listed.worker.proxy_hosts.iter().filter_map(|pattern| match &pattern.host {
                    HostPattern::Name(name) => Some(name),
                    _ => None,
                }));
            }
            _ => {}
        }
    }
    names.into_iter().take(MOST_NAMES).collect()
}

/// One host, by name here and by address there.
fn mismatch(pair: &Pair<'_, '_>, found: &Found) -> Option<Warning> {
    let Listed { names, addresses, .. } = pair.listed;
    match pair.host {
        Host::Addr(addr) => {
            let listed = found.names.get(addr)?.iter().filter_map(|name| Some((names.get(name)?, name)));
            let (_, name) = listed.min()?;
            let what = format!("{name}, which this host resolves to {addr}");
            Some(differs(pair, &what, name.as_str()))
        }
        Host::Name(name) => {
            let all = found.addresses.get(name)?;
            let (_, addr) = all.iter().filter_map(|addr| Some((addresses.get(addr)?, addr))).min()?;
            let what = format!("only {addr}, which this host resolves {name} to");
            Some(differs(pair, &what, &addr.to_string()))
        }
    }
}

fn differs(pair: &Pair<'_, '_>, what: &str, listed: &str) -> Warning {
    let Pair { cloud, host, listed: Listed { worker, .. } } = pair;
    let name = quote(&cloud.name);
    Warning {
        field: "proxy_hosts",
        about: cloud.name.clone(),
        problem: format!("cloud {name} says {}, but worker {} lists {what}", cloud.api_url, worker.name),
        remedy: format!("both must be spelled alike: write {host} there, or {listed} in the cloud's API URL"),
    }
}
