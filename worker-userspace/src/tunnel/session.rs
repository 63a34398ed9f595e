//! The lanes of one peer.
//!
//! A stream stays on the lane that it was opened on; a session chooses the least busy one. Losing a lane
//! costs its streams, not the session.

use std::ops::Add;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::lane::{Lane, Totals};
use super::message::{Hello, Open};
use super::stream::Stream;
use crate::refusal::{Code, Refusal};

/// The lanes that one run of a peer's process has with us.
#[derive(Debug)]
pub struct Session {
    peer: Hello,
    since: SystemTime,
    lanes: Mutex<Lanes>,
}

#[derive(Debug, Default)]
struct Lanes {
    up: Vec<Arc<Lane>>,
    /// What those have counted that are gone.
    gone: Totals,
}

impl Session {
    /// A session without lanes.
    pub fn new(peer: Hello) -> Session {
        Session { peer, since: SystemTime::now(), lanes: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the peer said of itself on its first lane.
    pub fn peer(&self) -> &Hello {
        &self.peer
    }

    /// When the first lane came up.
    pub fn since(&self) -> SystemTime {
        self.since
    }

    /// Adds a lane. The guard takes it out again.
    pub fn add(self: &Arc<Self>, lane: Lane) -> LaneGuard {
        let lane = Arc::new(lane);
        self.lock().up.push(lane.clone());
        LaneGuard { session: self.clone(), lane }
    }

    /// The lanes that are up.
    pub fn lanes(&self) -> Vec<Arc<Lane>> {
        self.lock().up.clone()
    }

    /// What its lanes have counted, those that are gone included.
    pub fn totals(&self) -> Totals {
        let lanes = self.lock();
        lanes.up.iter().map(|lane| lane.counters().totals()).fold(lanes.gone, Totals::add)
    }

    /// True where a stream could be opened now.
    pub fn is_up(&self) -> bool {
        self.lock().up.iter().any(|lane| !lane.is_closing())
    }

    /// The lane that a new stream goes to.
    pub fn least_busy(&self) -> Option<Arc<Lane>> {
        self.lock().up.iter().filter(|lane| !lane.is_closing()).min_by_key(|lane| lane.load()).cloned()
    }

    /// Opens a stream on the least busy lane.
    pub fn open(&self, open: Open) -> Result<Stream, Refusal> {
        match self.least_busy() {
            Some(lane) => lane.open(open),
            None => Err(Refusal::new(Code::TunnelLost, format!("no lane to {} is up", self.peer.name))),
        }
    }
}

/// Takes its lane out of the session when dropped.
#[derive(Debug)]
pub struct LaneGuard {
    session: Arc<Session>,
    lane: Arc<Lane>,
}

impl LaneGuard {
    /// The lane.
    pub fn lane(&self) -> &Lane {
        &self.lane
    }
}

impl Drop for LaneGuard {
    fn drop(&mut self) {
        let mut lanes = self.session.lock();
        lanes.up.retain(|lane| !Arc::ptr_eq(lane, &self.lane));
        lanes.gone = lanes.gone + self.lane.counters().totals();
    }
}
