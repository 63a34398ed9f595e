//! Worker groups, the nodes that are connected, and which group carries a target.
//!
//! Workers that share a key never evict each other: each is a node of its group. The first one that
//! connected carries new streams while it is up, else the next.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::config::{Group, Key};
use crate::inspect::status::{GroupStatus, NodeStatus};
use crate::refusal::{Code, Refusal};
use crate::route::{Opened, Request, Router};
use crate::target::{Pattern, PatternMap};
use crate::tunnel::lane::Lane;
use crate::tunnel::message::{Hello, Open};
use crate::tunnel::session::{LaneGuard, Session};

/// Sessions that one group may have at once.
const SESSIONS: usize = 64;
/// Lanes that one session may have at once.
const LANES: usize = 16;

/// All groups of this appliance.
#[derive(Debug)]
pub struct Registry {
    groups: Vec<GroupState>,
    routes: PatternMap<usize>,
    /// Counts changes of who is connected.
    changes: watch::Sender<u64>,
}

/// One group and its sessions.
#[derive(Debug)]
pub struct GroupState {
    /// What the configuration says.
    pub config: Group,
    sessions: Mutex<Vec<Arc<Session>>>,
}

impl GroupState {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connected nodes' sessions, the primary's first.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        self.lock().clone()
    }

    /// True where a stream could be opened now.
    pub fn is_up(&self) -> bool {
        self.lock().iter().any(|session| session.is_up())
    }

    /// What `status` shows of it.
    pub fn status(&self) -> GroupStatus {
        let mut primary = false;
        let node = |session: &Arc<Session>| {
            let role = match (session.is_up(), primary) {
                (false, _) => "leaving",
                (true, false) => "primary",
                (true, true) => "standby",
            };
            primary |= session.is_up();
            NodeStatus::of(session, role)
        };
        GroupStatus {
            name: self.config.name.clone(),
            proxy_hosts: self.config.proxy_hosts.iter().map(ToString::to_string).collect(),
            up: self.is_up(),
            may_open: self.config.may_open,
            nodes: self.sessions().iter().map(node).collect(),
        }
    }
}

impl Registry {
    /// A registry of these groups, with nobody connected.
    pub fn new(groups: Vec<Group>) -> Registry {
        let mut routes = PatternMap::default();
        for (at, group) in groups.iter().enumerate() {
            for pattern in &group.proxy_hosts {
                routes.insert(pattern.clone(), at);
            }
        }
        let groups =
            groups.into_iter().map(|config| GroupState { config, sessions: Mutex::default() }).collect();
        Registry { groups, routes, changes: watch::Sender::new(0) }
    }

    /// The groups, in the configuration's order.
    pub fn groups(&self) -> &[GroupState] {
        &self.groups
    }

    /// The group whose key this is. All groups are compared, so that the time tells nothing.
    pub fn authenticate(&self, key: &str) -> Option<usize> {
        let hash = key.parse::<Key>().ok()?.hash();
        let mut found = None;
        for (at, group) in self.groups.iter().enumerate() {
            if group.config.key == hash {
                found = Some(at);
            }
        }
        found
    }

    /// The group that carries `target`, with the pattern that says so.
    pub fn owner(&self, target: &crate::target::Target) -> Option<(&Pattern, &GroupState)> {
        self.routes.find(target).map(|(pattern, at)| (pattern, &self.groups[*at]))
    }

    /// Notes a lane of a node. It is forgotten when the guard is dropped.
    ///
    /// # Errors
    /// The group or the session has as many as it may.
    pub fn connect(self: &Arc<Self>, group: usize, lane: Lane) -> Result<Connected, Refusal> {
        let hello = lane.peer().clone();
        let mut sessions = self.groups[group].lock();
        let same = |session: &&Arc<Session>| {
            (session.peer().node, session.peer().session) == (hello.node, hello.session)
        };
        let session = match sessions.iter().find(same) {
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
                session.clone()
            }
            None if sessions.len() >= SESSIONS => {
                return Err(limit(format!("a group has at most {SESSIONS} sessions")));
            }
            None => {
                let session = Arc::new(Session::new(hello.clone()));
                // A node that was restarted takes its old place: its old session is dead or draining.
                let old = sessions.iter().position(|other| other.peer().node == hello.node);
                let place = old.unwrap_or(sessions.len());
                sessions.insert(place, session.clone());
                session
            }
        };
        let lane = session.add(lane);
        drop(sessions);
        self.changes.send_modify(|n| *n += 1);
        Ok(Connected { registry: self.clone(), group, session, lane: Some(lane) })
    }
}

fn limit(text: String) -> Refusal {
    Refusal::new(Code::Limit, text)
}

/// A lane that is connected. Dropping it takes the lane, and a session without lanes, out.
#[derive(Debug)]
pub struct Connected {
    registry: Arc<Registry>,
    group: usize,
    session: Arc<Session>,
    lane: Option<LaneGuard>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        drop(self.lane.take());
        let session = &self.session;
        self.registry.groups[self.group]
            .lock()
            .retain(|other| !Arc::ptr_eq(other, session) || !other.lanes().is_empty());
        self.registry.changes.send_modify(|n| *n += 1);
    }
}

impl Router for Registry {
    fn open(&self, request: &Request) -> Result<Opened, Refusal> {
        let Some((_, group)) = self.owner(&request.target) else {
            return Err(Refusal::new(Code::NoRoute, format!("{} is no group's proxy host", request.target)));
        };
        let name = &group.config.name;
        let mut last = Refusal::new(Code::NoWorker, format!("no worker of group {name} is connected"));
        for session in group.sessions() {
            match session.open(Open::from(request)) {
                Ok(stream) => {
                    return Ok(Opened { stream, carrier: format!("{name}/{}", session.peer().name) });
                }
                // A lane that was lost a moment ago, or a draining node: the next may carry it.
                Err(refusal) if refusal.code == Code::TunnelLost => {}
                Err(refusal) => last = refusal,
            }
        }
        Err(last)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// Makes the peer's `HELLO` fit for the log.
pub fn node(hello: &Hello) -> String {
    let id: String = hello.node[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{id}", hello.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::lane::{LaneEnd, Settings, Upgraded};
    use crate::tunnel::websocket::Side;
    use bytes::BytesMut;
    use std::time::Duration;
    use tokio::io::{DuplexStream, duplex};
    use tokio::task::JoinHandle;
    use tokio::time::timeout;

    fn lane(number: u8) -> (Lane, JoinHandle<LaneEnd>, DuplexStream) {
        let hello = Hello {
            version: 1,
            node: [1; 16],
            session: [2; 16],
            lane: number,
            name: "worker".into(),
            software: "test".into(),
            initial_credit: 1 << 18,
            max_streams: 10,
        };
        let (near, far) = duplex(1 << 16);
        let upgraded = Upgraded::new(near, Side::Server, BytesMut::new());
        let (lane, _, driver) = Lane::new(upgraded, hello, Settings::default());
        (lane, tokio::spawn(driver), far)
    }

    /// The worker has lost its lane and made a new one, and nothing has told the appliance of the loss.
    #[tokio::test]
    async fn a_lane_takes_the_place_of_the_one_with_its_number() {
        let key = Key::generate().unwrap();
        let group = Group { name: "site".into(), key: key.hash(), proxy_hosts: vec![], may_open: false };
        let registry = Arc::new(Registry::new(vec![group]));
        let (first, first_end, _io) = lane(0);
        let (second, _second_end, _second_io) = lane(1);
        let (third, _third_end, _third_io) = lane(0);
        let _connected =
            [first, second.clone(), third.clone()].map(|lane| registry.connect(0, lane).unwrap());
        let end = timeout(Duration::from_secs(10), first_end).await.expect("the dead lane is still used");
        assert!(matches!(end.unwrap(), LaneEnd::Local(_)));
        assert!(!second.is_closing() && !third.is_closing());
    }
}
