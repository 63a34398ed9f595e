//! All records in memory: what questions are answered from, and what a change is judged against.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;

use super::error::{AdminError, Holder, Problem, Taken};
use crate::appliance::records::{Cloud, Node, Worker};
use crate::appliance::roster::{Disabled, Group, KnownNode, Roster, ValidKey};
use crate::appliance::store::{Change, Snapshot};
use crate::config::KeyHash;
use crate::target::{Claims, Pattern, PatternMap};
use crate::tunnel::message::Id;

/// Patterns that all workers and clouds may have together.
pub(super) const MOST_PATTERNS: usize = 20_000;

/// All records, as the store has them. Cloning copies pointers.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    pub(super) workers: BTreeMap<i64, Arc<Worker>>,
    pub(super) clouds: BTreeMap<i64, Arc<Cloud>>,
    pub(super) nodes: BTreeMap<(i64, Id), Arc<Node>>,
    pub(super) admin_token: Option<KeyHash>,
}

impl From<Snapshot> for State {
    fn from(snapshot: Snapshot) -> State {
        State {
            workers: snapshot.workers.into_iter().map(|w| (w.id, Arc::new(w))).collect(),
            clouds: snapshot.clouds.into_iter().map(|c| (c.id, Arc::new(c))).collect(),
            nodes: snapshot.nodes.into_iter().map(|n| ((n.worker, n.id), Arc::new(n))).collect(),
            admin_token: snapshot.admin_token,
        }
    }
}

/// What a change is about, so that it is named first where two stand against each other.
#[derive(Debug, Default)]
pub(super) struct Focus {
    workers: HashSet<i64>,
    clouds: HashSet<i64>,
}

impl Focus {
    pub(super) fn is_empty(&self) -> bool {
        self.workers.is_empty() && self.clouds.is_empty()
    }
}

impl State {
    /// Applies changes; `ids` has the id of each new record, at its change's place.
    pub(super) fn apply(&mut self, changes: &[Change], ids: &[i64]) -> Focus {
        let mut focus = Focus::default();
        for (change, id) in changes.iter().zip(ids) {
            match change {
                Change::Worker(worker) => {
                    focus.workers.insert(*id);
                    let worker = match worker.id {
                        0 => Arc::new(Worker { id: *id, ..Worker::clone(worker) }),
                        _ => worker.clone(),
                    };
                    self.workers.insert(*id, worker);
                }
                Change::RemoveWorker(id) => {
                    self.workers.remove(id);
                    self.nodes.retain(|(worker, _), _| worker != id);
                }
                Change::Cloud(cloud) => {
                    focus.clouds.insert(*id);
                    let cloud = match cloud.id {
                        0 => Arc::new(Cloud { id: *id, ..Cloud::clone(cloud) }),
                        _ => cloud.clone(),
                    };
                    self.clouds.insert(*id, cloud);
                }
                Change::RemoveCloud(id) => drop(self.clouds.remove(id)),
                Change::Node(node) => drop(self.nodes.insert((node.worker, node.id), node.clone())),
                Change::RemoveNode { worker, node } => drop(self.nodes.remove(&(*worker, *node))),
                Change::AdminToken(hash) => self.admin_token = Some(*hash),
            }
        }
        focus
    }

    /// Ids for a trial: those of the records, and made-up ones for new records.
    pub(super) fn trial_ids(changes: &[Change]) -> Vec<i64> {
        let id = |(at, change): (i64, &Change)| match change {
            Change::Worker(worker) if worker.id != 0 => worker.id,
            Change::Cloud(cloud) if cloud.id != 0 => cloud.id,
            _ => i64::MAX - at,
        };
        (0..).zip(changes).map(id).collect()
    }

    /// The patterns of all workers, with their holders: a worker's own, then those of its clouds.
    pub(super) fn patterns(&self) -> impl Iterator<Item = (Pattern, Held)> + '_ {
        let own = self.workers.values().flat_map(|worker| {
            let held = Held { worker: worker.id, cloud: None };
            worker.proxy_hosts.iter().map(move |pattern| (pattern.clone(), held))
        });
        let derived = self.clouds.values().filter_map(|cloud| {
            Some((derived(cloud), Held { worker: cloud.worker?, cloud: Some(cloud.id) }))
        });
        own.chain(derived)
    }

    /// What carries what; used to explain, not to route.
    pub(super) fn routes(&self) -> PatternMap<Held> {
        let mut routes = PatternMap::default();
        for (pattern, held) in self.patterns() {
            routes.insert(pattern, held);
        }
        routes
    }

    /// Refuses what two workers would carry with equal right, one key for two workers, and more patterns than all.
    pub(super) fn judge(&self, focus: &Focus) -> Result<(), AdminError> {
        let is_new = |held: &Held| match held.cloud {
            // A worker's clouds come with it where it is new to them.
            Some(cloud) => focus.clouds.contains(&cloud),
            None => focus.workers.contains(&held.worker),
        };
        let (new, old): (Vec<_>, Vec<_>) = self.patterns().partition(|(_, held)| is_new(held));
        let count = new.len() + old.len();
        if count > MOST_PATTERNS && !new.is_empty() {
            return Err(AdminError::invalid(Problem {
                field: "proxy_hosts",
                value: format!("{count} in all"),
                problem: format!("all workers and clouds together may have {MOST_PATTERNS}"),
                remedy: "write wildcards or networks, as in *.corp.example and 10.20.0.0/16".into(),
            }));
        }
        let mut claims: Claims<Held> = Claims::default();
        let mut taken = Vec::new();
        for (pattern, held) in old.into_iter().chain(new) {
            if let Some((other_pattern, other)) = claims.claim(pattern.clone(), held, Held::same_worker) {
                taken.push(Taken {
                    pattern: pattern.to_string(),
                    this: self.holder(held),
                    other_pattern: other_pattern.to_string(),
                    other: self.holder(*other),
                });
            }
        }
        if !taken.is_empty() {
            return Err(AdminError::PatternTaken(taken));
        }
        for id in &focus.workers {
            let Some(this) = self.workers.get(id) else { continue };
            if let Some(other) = self.workers.values().find(|other| other.id != *id && share_key(this, other))
            {
                let (this, other) = (format!("worker {}", this.name), format!("worker {}", other.name));
                return Err(AdminError::KeyTaken { this, other });
            }
        }
        Ok(())
    }

    /// How a message names who has a pattern.
    pub(super) fn holder(&self, held: Held) -> Holder {
        Holder {
            worker: self.workers.get(&held.worker).map_or_else(String::new, |worker| worker.name.clone()),
            cloud: held.cloud.and_then(|id| self.clouds.get(&id)).map(|cloud| cloud.name.clone()),
        }
    }

    /// What the live registry works by.
    pub(super) fn roster(&self, now: Timestamp) -> Roster {
        let mut derived_of: BTreeMap<i64, Vec<Pattern>> = BTreeMap::new();
        for cloud in self.clouds.values() {
            if let Some(worker) = cloud.worker {
                derived_of.entry(worker).or_default().push(derived(cloud));
            }
        }
        let (mut groups, mut disabled) = (Vec::new(), Vec::new());
        for worker in self.workers.values() {
            let mut proxy_hosts = worker.proxy_hosts.clone();
            for pattern in derived_of.remove(&worker.id).unwrap_or_default() {
                if !proxy_hosts.contains(&pattern) {
                    proxy_hosts.push(pattern);
                }
            }
            let name = worker.name.clone();
            if !worker.enabled {
                disabled.push(Disabled { name, proxy_hosts });
                continue;
            }
            let mut keys = vec![ValidKey { hash: worker.key, until: None }];
            let previous = worker.key_in_grace(now);
            keys.extend(previous.map(|(hash, until)| ValidKey { hash, until: Some(system(until)) }));
            groups.push(Group {
                id: worker.id,
                name,
                keys,
                proxy_hosts,
                may_open: worker.may_open,
                nodes: self.nodes_of(worker.id).map(|node| known(node)).collect(),
            });
        }
        Roster { groups, disabled }
    }

    /// A worker's nodes, by their ids.
    pub(super) fn nodes_of(&self, worker: i64) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.range((worker, Id::default())..=(worker, [u8::MAX; 16])).map(|(_, node)| node)
    }

    /// A worker's clouds, by their ids.
    pub(super) fn clouds_of(&self, worker: i64) -> impl Iterator<Item = &Arc<Cloud>> {
        self.clouds.values().filter(move |cloud| cloud.worker == Some(worker))
    }
}

fn share_key(this: &Worker, other: &Worker) -> bool {
    let keys = |worker: &Worker| [Some(worker.key), worker.previous_key.map(|(hash, _)| hash)];
    keys(this).into_iter().flatten().any(|a| keys(other).into_iter().flatten().any(|b| a == b))
}

/// Times before 1970 come from a clock that is wrong; they are as good as its beginning.
fn system(at: Timestamp) -> SystemTime {
    SystemTime::try_from(at).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn known(node: &Node) -> KnownNode {
    KnownNode { id: node.id, priority: node.priority, first_seen: system(node.first_seen) }
}

/// Who has a pattern, by ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) worker: i64,
    pub(super) cloud: Option<i64>,
}

impl Held {
    fn same_worker(a: &Held, b: &Held) -> bool {
        a.worker == b.worker
    }
}

/// The proxy host that a cloud's API URL makes: its host and port.
pub(super) fn derived(cloud: &Cloud) -> Pattern {
    Pattern::from(cloud.api_url.target())
}
