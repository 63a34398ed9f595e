//! One group: who of its nodes is connected, who is primary, how much it carries.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Add;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::order::{Order, Rank};
use super::rising;
use crate::appliance::roster;
use crate::config::KeyHash;
use crate::inspect::status::{GroupStatus, NodeRole, NodeStatus, Rate};
use crate::refusal::{Code, Refusal};
use crate::tunnel::lane::{Lane, Totals};
use crate::tunnel::message::{Hello, Id, Role, RoleIs};
use crate::tunnel::policy::Push;
use crate::tunnel::session::{LaneGuard, Session};

/// Sessions that one group may have at once.
const SESSIONS: usize = 64;
/// Lanes that one session may have at once.
const LANES: usize = 16;
/// Seconds of throughput that are kept.
pub const HISTORY: usize = 150;

/// A group as the roster of a moment has it. What is live stays the same over rosters.
#[derive(Debug)]
pub struct Group {
    /// What the roster says.
    pub config: roster::Group,
    /// What its workers may dial.
    pub(super) policy: Arc<Push>,
    pub(super) live: Arc<Live>,
}

/// What outlives a roster: the sessions.
#[derive(Debug)]
pub(super) struct Live(Mutex<State>);

#[derive(Debug)]
pub(super) struct State {
    members: Vec<Member>,
    order: Order,
    /// Rises with each change of roles: who hears an older one later does not believe it.
    epoch: u64,
    /// The sessions that take new streams, the primary's first.
    usable: Arc<[Arc<Session>]>,
    /// What sessions that are gone have counted.
    gone: Totals,
    before: Totals,
    history: VecDeque<Rate>,
}

#[derive(Debug)]
struct Member {
    session: Arc<Session>,
    /// The key that it showed.
    key: KeyHash,
    address: SocketAddr,
    /// Its node has a newer session; this one only ends what it carries.
    replaced: bool,
}

impl Member {
    fn is_up(&self) -> bool {
        !self.replaced && self.session.is_up()
    }
}

/// A change of roles.
#[derive(Debug)]
pub(super) struct NewPrimary {
    /// Its name and id; `None`: nobody carries the group any more.
    pub(super) node: Option<(String, Id)>,
    pub(super) epoch: u64,
}

/// A lane's place.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) session: Arc<Session>,
    pub(super) lane: LaneGuard,
    /// The session's first lane.
    pub(super) is_new: bool,
}

impl Live {
    pub(super) fn new(settle: Duration) -> Live {
        Live(Mutex::new(State {
            members: Vec::new(),
            order: Order::new(settle),
            epoch: 0,
            usable: Arc::new([]),
            gone: Totals::default(),
            before: Totals::default(),
            history: VecDeque::new(),
        }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Finds out who is up, and chooses the primary.
    pub(super) fn elect(&mut self, now: Instant) -> Option<NewPrimary> {
        for id in self.order.up() {
            let up = self.members.iter().any(|m| m.session.peer().node == id && m.is_up());
            self.order.set_up(id, up, now);
        }
        for member in self.members.iter().filter(|m| m.is_up()) {
            self.order.set_up(member.session.peer().node, true, now);
        }
        let changed = self.order.elect(now);
        let newest = |id: &Id| {
            self.members
                .iter()
                .rev()
                .find(|m| m.session.peer().node == *id && m.is_up())
                .map(|m| m.session.clone())
        };
        self.usable = self.order.up().iter().filter_map(newest).collect();
        if !changed {
            return None;
        }
        self.epoch = rising(self.epoch);
        for member in &self.members {
            for lane in member.session.lanes() {
                self.tell_role(&lane);
            }
        }
        let name = |id: Id| {
            let session = self.usable.iter().find(|session| session.peer().node == id);
            (session.map(|session| session.peer().name.clone()).unwrap_or_default(), id)
        };
        Some(NewPrimary { node: self.order.primary().map(name), epoch: self.epoch })
    }

    pub(super) fn tell_role(&self, lane: &Lane) {
        let leads = self.order.primary() == Some(lane.peer().node);
        lane.tell_role(RoleIs { epoch: self.epoch, role: if leads { Role::Primary } else { Role::Standby } });
    }

    /// Gives a node its place in the order.
    pub(super) fn rank(&mut self, config: &roster::Group) {
        for member in &self.members {
            let id = member.session.peer().node;
            if let Some(known) = config.nodes.iter().find(|known| known.id == id) {
                self.order.rank(id, Rank::new(known.priority, known.first_seen, id));
            }
        }
    }

    /// Gives a lane its place.
    ///
    /// # Errors
    /// The group or the session has as many as it may.
    pub(super) fn join(
        &mut self,
        config: &roster::Group,
        lane: Lane,
        key: KeyHash,
        address: SocketAddr,
        drain: Duration,
    ) -> Result<Joined, Refusal> {
        let hello = lane.peer().clone();
        let same = |member: &Member| {
            let peer = member.session.peer();
            (peer.node, peer.session) == (hello.node, hello.session)
        };
        let found = self.members.iter().find(|member| same(member)).map(|member| member.session.clone());
        let is_new = found.is_none();
        let session = match found {
            Some(session) if session.lanes().len() >= LANES => {
                return Err(limit(format!("a session has at most {LANES} lanes")));
            }
            Some(session) => {
                // A worker replaces a lane that has ended or that is leaving. Where this end has not heard of an
                // end yet, streams would go to nowhere for as long as a silent peer may live.
                for old in session.lanes() {
                    if old.peer().lane == hello.lane && !old.is_closing() {
                        old.close("the worker replaced it");
                    }
                }
                session
            }
            None if self.members.len() >= SESSIONS => {
                return Err(limit(format!("a group has at most {SESSIONS} sessions")));
            }
            None => {
                self.replace(&hello, drain);
                let known = config.nodes.iter().find(|known| known.id == hello.node);
                let rank = match known {
                    Some(known) => Rank::new(known.priority, known.first_seen, hello.node),
                    // Where the roster has not heard of it yet, its first time in this daemon's life counts.
                    None => (self.order.rank_of(hello.node))
                        .unwrap_or_else(|| Rank::new(None, SystemTime::now(), hello.node)),
                };
                self.order.rank(hello.node, rank);
                let session = Arc::new(Session::new(hello));
                self.members.push(Member { session: session.clone(), key, address, replaced: false });
                session
            }
        };
        let lane = session.add(lane);
        Ok(Joined { session, lane, is_new })
    }

    /// A node that returns replaces its old session: new streams no longer go there. What still runs in it may end:
    /// where two machines have one node id, as copies of a disk do, neither cuts the other's streams.
    fn replace(&mut self, hello: &Hello, drain: Duration) {
        for old in self.members.iter_mut().filter(|m| m.session.peer().node == hello.node && !m.replaced) {
            old.replaced = true;
            let lanes = old.session.lanes();
            if lanes.iter().any(|lane| !lane.is_closing()) {
                tracing::info!(
                    node = %super::node(hello),
                    old = %old.address,
                    "a node connected again and replaces its old session; where this repeats, two machines have the \
                     same `node-id` in their `state_dir`: remove it on one"
                );
            }
            for lane in lanes {
                lane.go_away(drain, "the node connected again");
            }
        }
    }

    /// Takes a lane out; true where its session has none any more.
    pub(super) fn leave(&mut self, session: &Arc<Session>, lane: LaneGuard) -> bool {
        // The session keeps what it has counted.
        drop(lane);
        let is_over = session.lanes().is_empty();
        let place = self.members.iter().position(|m| is_over && Arc::ptr_eq(&m.session, session));
        let Some(place) = place else { return false };
        self.gone = self.gone + self.members.remove(place).session.totals();
        true
    }

    /// Ends the sessions whose key is not `valid`.
    pub(super) fn cut(&self, valid: impl Fn(&KeyHash) -> bool, reason: &str) {
        for member in self.members.iter().filter(|member| !valid(&member.key)) {
            for lane in member.session.lanes() {
                lane.close(reason);
            }
        }
    }

    /// All lanes of all sessions.
    pub(super) fn lanes(&self) -> Vec<Arc<Lane>> {
        self.members.iter().flat_map(|member| member.session.lanes()).collect()
    }

    /// What all its sessions have counted, those that are gone included.
    fn totals(&self) -> Totals {
        self.members.iter().map(|member| member.session.totals()).fold(self.gone, Totals::add)
    }

    /// Notes a second's throughput.
    pub(super) fn sample(&mut self) {
        let now = self.totals();
        let rate = Rate {
            sent: now.sent.saturating_sub(self.before.sent),
            received: now.received.saturating_sub(self.before.received),
        };
        self.before = now;
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(rate);
    }
}

fn limit(text: String) -> Refusal {
    Refusal::new(Code::Limit, text)
}

impl Group {
    /// The sessions that take new streams, the primary's first.
    pub fn sessions(&self) -> Arc<[Arc<Session>]> {
        self.live.lock().usable.clone()
    }

    /// True where a stream could be opened now.
    pub fn is_up(&self) -> bool {
        self.sessions().iter().any(|session| session.is_up())
    }

    /// The nodes that are connected, also those that only end what they carry.
    pub fn connected(&self) -> Vec<Id> {
        self.live.lock().members.iter().map(|member| member.session.peer().node).collect()
    }

    /// Bytes of each of the last seconds, the oldest first; at most 150.
    pub fn history(&self) -> Vec<Rate> {
        self.live.lock().history.iter().copied().collect()
    }

    /// Bytes of the last second.
    pub fn rate(&self) -> Rate {
        self.live.lock().history.back().copied().unwrap_or_default()
    }

    /// What its lanes have counted since the start, those that are gone included.
    pub fn totals(&self) -> Totals {
        self.live.lock().totals()
    }

    /// Streams open now, in all its sessions.
    pub fn streams(&self) -> usize {
        let lanes = self.live.lock().lanes();
        lanes.iter().map(|lane| lane.streams()).sum()
    }

    /// What `status` shows of it.
    pub fn status(&self) -> GroupStatus {
        // Only references are taken under the lock: new streams don't wait for texts.
        let state = self.live.lock();
        let usable = state.usable.clone();
        let members = state.members.iter().map(|m| (m.session.clone(), m.address, m.is_up()));
        let mut members: Vec<_> = members.collect();
        let rate = state.history.back().copied().unwrap_or_default();
        drop(state);
        let place = |session: &Arc<Session>| usable.iter().position(|usable| Arc::ptr_eq(usable, session));
        members.sort_by_key(|(session, ..)| place(session).unwrap_or(usize::MAX));
        let node = |(session, address, is_up): (Arc<Session>, SocketAddr, bool)| {
            let role = match (is_up, place(&session)) {
                (false, _) => NodeRole::Leaving,
                (true, Some(0)) => NodeRole::Primary,
                (true, _) => NodeRole::Standby,
            };
            NodeStatus::of(&session, role, address)
        };
        GroupStatus {
            id: self.config.id,
            name: self.config.name.clone(),
            proxy_hosts: self.config.proxy_hosts.iter().map(ToString::to_string).collect(),
            up: usable.iter().any(|session| session.is_up()),
            may_open: self.config.may_open,
            rate,
            nodes: members.into_iter().map(node).collect(),
        }
    }
}
