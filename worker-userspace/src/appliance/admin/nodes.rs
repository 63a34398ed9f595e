//! Nodes: seen, given a place in their worker's order, forgotten.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};

use super::error::AdminError;
use super::state::State;
use super::{Admin, Plan, Ref};
use crate::appliance::audit::{Actor, EventKind};
use crate::appliance::records::{Node, now};
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
/// How long a new node waits for others: when an appliance starts, many come at once.
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
    /// Somebody new is among them.
    news: Notify,
}

#[derive(Debug, Clone)]
struct Seen {
    node: NodeSeen,
    first: Timestamp,
    last: Timestamp,
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
        let mut seen = queue.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = seen.len() >= MOST_SEEN;
        match seen.entry((worker, node.id)) {
            Entry::Occupied(mut seen) => (seen.get_mut().node, seen.get_mut().last) = (node, at),
            Entry::Vacant(place) if !is_full => drop(place.insert(Seen { node, first: at, last: at })),
            Entry::Vacant(_) => tracing::warn!("more nodes connect than can be noted; some are noted later"),
        }
        drop(seen);
        if is_news {
            queue.news.notify_one();
        }
    }

    /// Keeps what was seen: new nodes at once, the rest now and then; all of it when `drain` stops.
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

    /// Keeps what was seen until now.
    pub async fn keep_seen_now(&self) {
        let seen = std::mem::take(&mut *self.inner.seen.seen.lock().unwrap_or_else(PoisonError::into_inner));
        if seen.is_empty() {
            return;
        }
        let taken = seen.clone();
        if let Err(error) = self.commit(move |state| Ok(plan(state, taken))).await
            && !matches!(error, AdminError::Stopping)
        {
            tracing::error!("which nodes were seen could not be kept: {error}");
            let mut queue = self.inner.seen.seen.lock().unwrap_or_else(PoisonError::into_inner);
            for (node, old) in seen {
                queue.entry(node).and_modify(|seen| seen.first = old.first).or_insert(old);
            }
        }
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

    /// Forgets a node. Where it connects again it is a new one, behind all others of its priority.
    ///
    /// # Errors
    /// There is no such node, or the store.
    pub async fn forget_node(&self, worker: i64, node: Id, actor: &Actor) -> Result<(), AdminError> {
        let by = actor.clone();
        let subject = self.worker_subject(worker);
        let plan = move |state: &State| {
            let (name, old) = state.node(worker, &node)?;
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

fn plan(state: &State, seen: BTreeMap<(i64, Id), Seen>) -> Plan {
    let actor = Actor::local("dworker");
    let mut plan = Plan { changes: Vec::new(), events: Vec::new(), routing: false };
    let mut counts: BTreeMap<i64, Vec<Arc<Node>>> = BTreeMap::new();
    for ((worker, id), Seen { node, first, last }) in seen {
        let Some(owner) = state.workers.get(&worker) else { continue };
        let NodeSeen { host_name, software, address, .. } = node;
        let known = state.nodes.get(&(worker, id));
        let new = Node {
            worker,
            id,
            host_name,
            software,
            address,
            priority: known.and_then(|known| known.priority),
            first_seen: known.map_or(first, |known| known.first_seen),
            last_seen: known.map_or(last, |known| known.last_seen.max(last)),
        };
        if known.is_none() {
            plan.routing = true;
            let text = format!("{} connected for the first time", new.software);
            let actor = Actor { source: Some(address), ..actor.clone() };
            plan.events.push(actor.did(EventKind::NodeAdded, subject(&owner.name, &new), text));
            let others = counts.entry(worker).or_insert_with(|| state.nodes_of(worker).cloned().collect());
            if others.len() >= MOST_NODES {
                // Those with a place of their own in the order go last.
                let key = |(_, node): &(usize, &Arc<Node>)| (node.priority.is_some(), node.last_seen);
                if let Some((at, oldest)) = others.iter().enumerate().min_by_key(key) {
                    let name = subject(&owner.name, oldest);
                    let text =
                        format!("a worker has at most {MOST_NODES} nodes, and it was not seen for longest");
                    plan.events.push(actor.did(EventKind::NodeForgotten, name, text));
                    plan.changes.push(Change::RemoveNode { worker, node: oldest.id });
                    others.remove(at);
                }
            }
            others.push(Arc::new(new.clone()));
        }
        plan.changes.push(Change::Node(Arc::new(new)));
    }
    plan
}
