//! Nodes: seen, given a place in their worker's order, forgotten.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};

use super::error::AdminError;
use super::state::State;
use super::{Admin, Plan, Ref};
use crate::appliance::audit::{Actor, EventKind};
use crate::appliance::records::{Node, Worker, now};
use crate::appliance::registry::named;
use crate::appliance::store::Change;
use crate::config::mask_secrets;
use crate::drain::Drain;
use crate::tunnel::message::{Id, id_text};

/// Nodes that are kept of one worker. One more, and the one that was not seen for longest is forgotten: a key
/// that got into wrong hands can't fill the store.
const MOST_NODES: usize = 256;
/// Nodes that wait to be kept; more are not noted until those are.
const MOST_SEEN: usize = 20_000;
/// How often it is kept when nodes were last seen.
const KEEP_EVERY: Duration = Duration::from_secs(30);
/// A node that stays connected is kept again as seen after this long, so that after a crash its record is not older.
const REFRESH: SignedDuration = SignedDuration::from_mins(5);
/// Nodes that are so refreshed at once; the others follow.
const MOST_REFRESHED: usize = 2_000;
/// How long a node waits for others: when an appliance starts, many come at once.
const GATHER: Duration = Duration::from_millis(20);
/// The longest host name and software version that are kept, in characters.
const LONGEST_NAME: usize = 253;

/// A node that is connected now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSeen {
    /// Its id.
    pub id: Id,
    /// Its host's name.
    pub host_name: String,
    /// Version of its software.
    pub software: String,
    /// Where it connected from.
    pub address: IpAddr,
}

/// Nodes that were seen and not kept yet, each once.
#[derive(Debug, Default)]
pub(super) struct SeenQueue {
    seen: Mutex<BTreeMap<(i64, Id), Seen>>,
    /// Somebody new is among them, or somebody who has gone.
    news: Notify,
}

#[derive(Debug, Clone)]
struct Seen {
    /// What it said when it connected; `None`: it has only gone since.
    node: Option<NodeSeen>,
    first: Timestamp,
    last: Timestamp,
}

impl Seen {
    /// The two as one.
    fn then(self, later: Seen) -> Seen {
        let first = if self.node.is_some() { self.first } else { later.first };
        Seen { node: later.node.or(self.node), first, last: later.last }
    }

    /// The node's record; `None`: it was forgotten before it had gone.
    fn record(&self, worker: i64, id: Id, known: Option<&Node>) -> Option<Node> {
        let last_seen = known.map_or(self.last, |known| known.last_seen.max(self.last));
        let Some(NodeSeen { host_name, software, address, .. }) = self.node.clone() else {
            return known.map(|known| Node { last_seen, ..Node::clone(known) });
        };
        Some(Node {
            worker,
            id,
            host_name,
            software,
            address,
            priority: known.and_then(|known| known.priority),
            first_seen: known.map_or(self.first, |known| known.first_seen),
            last_seen,
        })
    }
}

impl SeenQueue {
    fn note(&self, node: (i64, Id), new: Seen) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = seen.len() >= MOST_SEEN;
        match seen.entry(node) {
            Entry::Occupied(mut place) => {
                let both = place.get().clone().then(new);
                place.insert(both);
            }
            Entry::Vacant(place) if !is_full => drop(place.insert(new)),
            Entry::Vacant(_) => tracing::warn!("more nodes connect than can be noted; some are noted later"),
        }
    }

    fn take(&self) -> BTreeMap<(i64, Id), Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts back what could not be kept.
    fn put_back(&self, old: BTreeMap<(i64, Id), Seen>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for (node, old) in old {
            let all = match seen.remove(&node) {
                Some(later) => old.then(later),
                None => old,
            };
            seen.insert(node, all);
        }
    }
}

impl Admin {
    /// A worker's nodes, in the order in which they become primary.
    pub fn nodes(&self, worker: i64) -> Vec<Arc<Node>> {
        let mut nodes: Vec<Arc<Node>> = self.state().nodes_of(worker).cloned().collect();
        nodes.sort_by_key(|node| (node.priority.is_none(), node.priority, node.first_seen, node.id));
        nodes
    }

    /// Notes that a node of a worker is connected now. Never waits; it is kept soon.
    pub fn node_seen(&self, worker: i64, node: NodeSeen) {
        let queue = &self.inner.seen;
        let at = now();
        let host_name = mask_secrets(&node.host_name, LONGEST_NAME);
        let node = NodeSeen { host_name, software: mask_secrets(&node.software, LONGEST_NAME), ..node };
        let known = self.state().nodes.get(&(worker, node.id)).cloned();
        let is_news = known.is_none_or(|known| {
            (&known.host_name, &known.software, known.address)
                != (&node.host_name, &node.software, node.address)
        });
        queue.note((worker, node.id), Seen { node: Some(node), first: at, last: at });
        if is_news {
            queue.news.notify_one();
        }
    }

    /// Notes that a node of a worker was connected until now. Never waits; it is kept soon.
    pub fn node_left(&self, worker: i64, node: Id) {
        let at = now();
        self.inner.seen.note((worker, node), Seen { node: None, first: at, last: at });
        self.inner.seen.news.notify_one();
    }

    /// Keeps what was seen: who is new or has gone at once, the rest now and then; all of it when `drain` stops.
    pub(super) async fn keep_seen(self, drain: Drain) {
        let mut ticks = interval(KEEP_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let stopping = tokio::select! {
                () = self.inner.seen.news.notified() => {
                    tokio::time::sleep(GATHER).await;
                    false
                }
                _ = ticks.tick() => false,
                () = drain.stopping() => true,
            };
            self.keep_seen_now().await;
            if stopping {
                return;
            }
        }
    }

    /// Keeps what was seen until now, and that who is connected is seen still.
    pub async fn keep_seen_now(&self) {
        let seen = self.inner.seen.take();
        let (admin, taken) = (self.clone(), seen.clone());
        let here = move |worker| admin.connected(worker);
        if let Err(error) = self.commit(move |state| Ok(plan(state, taken, here))).await
            && !matches!(error, AdminError::Stopping)
        {
            tracing::error!("which nodes were seen could not be kept: {error}");
            self.inner.seen.put_back(seen);
        }
    }

    /// A worker's nodes that are connected now.
    fn connected(&self, worker: i64) -> HashSet<Id> {
        self.inner.publish.connected(worker).into_iter().collect()
    }

    /// Gives a node a place in its worker's order: the lowest is primary, `None` comes behind all.
    ///
    /// # Errors
    /// There is no such node, or the store.
    pub async fn set_node_priority(
        &self,
        worker: i64,
        node: Id,
        priority: Option<i32>,
        actor: &Actor,
    ) -> Result<Arc<Node>, AdminError> {
        let by = actor.clone();
        let subject = self.worker_subject(worker);
        let plan = move |state: &State| {
            let (name, old) = state.node(worker, &node)?;
            let mut plan = Plan { changes: Vec::new(), events: Vec::new(), routing: false };
            if old.priority != priority {
                plan.routing = true;
                let shown = |priority: Option<i32>| priority.map_or("none".to_owned(), |p| p.to_string());
                let text = format!("priority: {} became {}", shown(old.priority), shown(priority));
                plan.events.push(by.did(EventKind::NodeChanged, name, text));
                plan.changes.push(Change::Node(Arc::new(Node { priority, ..Node::clone(&old) })));
            }
            Ok(plan)
        };
        let result = match self.commit(plan).await {
            Ok(done) => done.state.node(worker, &node).map(|(_, node)| node),
            Err(error) => Err(error),
        };
        self.told(actor, &subject, result)
    }

    /// Forgets a node that is gone. Where it connects again it is a new one, behind all others of its priority.
    ///
    /// # Errors
    /// There is no such node, it is connected, or the store.
    pub async fn forget_node(&self, worker: i64, node: Id, actor: &Actor) -> Result<(), AdminError> {
        let (admin, by) = (self.clone(), actor.clone());
        let subject = self.worker_subject(worker);
        let plan = move |state: &State| {
            let (name, old) = state.node(worker, &node)?;
            if admin.connected(worker).contains(&node) {
                // It would carry on, and nobody would see it.
                let worker = state.worker(&Ref::Id(worker))?.name.clone();
                return Err(AdminError::Connected { node: name, worker });
            }
            let text = format!("it was last seen at {:.0}", old.last_seen);
            Ok(Plan {
                changes: vec![Change::RemoveNode { worker, node }],
                events: vec![by.did(EventKind::NodeForgotten, name, text)],
                routing: true,
            })
        };
        let result = self.commit(plan).await.map(drop);
        self.told(actor, &subject, result)
    }
}

impl State {
    /// A node, and how events name it.
    fn node(&self, worker: i64, node: &Id) -> Result<(String, Arc<Node>), AdminError> {
        let owner = self.worker(&Ref::Id(worker))?;
        match self.nodes.get(&(worker, *node)) {
            Some(node) => Ok((subject(&owner.name, node), node.clone())),
            None => Err(AdminError::NotFound { what: "node", name: id_text(node) }),
        }
    }
}

/// `worker/host-1a2b3c4d`, as logs name nodes too.
fn subject(worker: &str, node: &Node) -> String {
    format!("{worker}/{}", named(&node.host_name, &node.id))
}

/// The plan that keeps what was `seen`, where `here` says who of a worker's nodes is connected.
fn plan(state: &State, seen: BTreeMap<(i64, Id), Seen>, here: impl Fn(i64) -> HashSet<Id>) -> Plan {
    let at = now();
    let mut plan = Plan { changes: Vec::new(), events: Vec::new(), routing: false };
    let mut refreshable = MOST_REFRESHED;
    for owner in state.workers.values() {
        let (worker, here) = (owner.id, here(owner.id));
        let mut changed = BTreeMap::new();
        for ((_, id), seen) in seen.range((worker, Id::default())..=(worker, [u8::MAX; 16])) {
            let known = state.nodes.get(&(worker, *id));
            changed.extend(seen.record(worker, *id, known.map(|node| &**node)).map(|node| (*id, node)));
        }
        let is_stale = |node: &&Arc<Node>| {
            here.contains(&node.id)
                && !changed.contains_key(&node.id)
                && at.duration_since(node.last_seen) >= REFRESH
        };
        let stale: Vec<_> = state.nodes_of(worker).filter(is_stale).take(refreshable).collect();
        refreshable -= stale.len();
        changed.extend(stale.into_iter().map(|node| (node.id, Node { last_seen: at, ..Node::clone(node) })));
        plan.keep(state, owner, changed, &here);
    }
    plan
}

impl Plan {
    /// Keeps a worker's nodes that have `changed`, and forgets those that are too many then.
    fn keep(&mut self, state: &State, owner: &Worker, mut changed: BTreeMap<Id, Node>, here: &HashSet<Id>) {
        let actor = Actor::local("dworker");
        let known = |id: &Id| state.nodes.get(&(owner.id, *id));
        if changed.keys().any(|id| known(id).is_none()) {
            let unchanged = state.nodes_of(owner.id).filter(|node| !changed.contains_key(&node.id));
            // Those that are connected go last, and before them those with a place of their own in the order.
            let key =
                |node: &Node| (here.contains(&node.id), node.priority.is_some(), node.last_seen, node.id);
            let mut all: Vec<_> = unchanged.map(|node| key(node)).chain(changed.values().map(key)).collect();
            all.sort_unstable();
            let surplus = all.len().saturating_sub(MOST_NODES);
            for (.., id) in all.into_iter().take(surplus) {
                changed.remove(&id);
                if let Some(node) = known(&id) {
                    let text =
                        format!("a worker has at most {MOST_NODES} nodes, and it was not seen for longest");
                    self.events.push(actor.did(EventKind::NodeForgotten, subject(&owner.name, node), text));
                    self.changes.push(Change::RemoveNode { worker: owner.id, node: id });
                    self.routing = true;
                }
            }
        }
        for node in changed.into_values() {
            if known(&node.id).is_none() {
                let text = format!("{} connected for the first time", node.software);
                let actor = Actor { source: Some(node.address), ..actor.clone() };
                self.events.push(actor.did(EventKind::NodeAdded, subject(&owner.name, &node), text));
                self.routing = true;
            }
            self.changes.push(Change::Node(Arc::new(node)));
        }
    }
}
