//! The live registry: the groups of the roster, their connected nodes, and which group carries a target.
//!
//! What must hold: a roster is replaced as a whole, and no connected node notices unless it is concerned; whose
//! key does not work any more is cut; new streams go to the primary while it is up, else to the next.

mod group;
mod order;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

pub use group::{Group, HISTORY};
use group::{Joined, Live, NewPrimary};

use super::roster::{self, Roster};
use crate::config::{Key, KeyHash};
use crate::drain::Drain;
use crate::refusal::{Code, Refusal};
use crate::route::{Opened, Request, Router};
use crate::target::{Pattern, PatternMap, Target};
use crate::threads::Home;
use crate::tunnel::lane::Lane;
use crate::tunnel::message::{Hello, Id, Open, id_text};
use crate::tunnel::policy::Push;
use crate::tunnel::session::{LaneGuard, Session};

/// Hears what happens in the registry. Called with locks held: it must neither wait nor call back.
pub trait Witness: Send + Sync + 'static {
    /// A node has its first lane.
    fn connected(&self, group: &roster::Group, hello: &Hello, address: SocketAddr) {
        let _ = (group, hello, address);
    }

    /// A node's session has lost its last lane.
    fn disconnected(&self, group: &roster::Group, hello: &Hello) {
        let _ = (group, hello);
    }

    /// Another node carries the group's new streams, or none any more.
    fn primary(&self, group: &roster::Group, node: Option<(&str, &Id)>, epoch: u64) {
        let _ = (group, node, epoch);
    }

    /// Somebody at `address` came with a key that does not work, or without one.
    fn refused(&self, key: Option<&str>, address: SocketAddr) {
        let _ = (key, address);
    }
}

/// Hears nothing.
impl Witness for () {}

/// All groups of this appliance.
pub struct Registry {
    view: RwLock<Arc<View>>,
    /// One roster at a time.
    applying: Mutex<()>,
    /// How long a node that was lost must be up before it is primary again.
    settle: Duration,
    /// How long what a replaced session carries may go on.
    drain: Duration,
    /// Counts changes of who is connected, and of the roster.
    changes: watch::Sender<u64>,
    witness: Box<dyn Witness>,
    /// How often somebody was refused.
    refused: AtomicU64,
}

/// One roster, ready for look-ups.
#[derive(Debug, Default)]
struct View {
    groups: Vec<Arc<Group>>,
    by_id: HashMap<i64, usize>,
    routes: PatternMap<usize>,
    /// The names of disabled workers, by what they would carry.
    disabled: PatternMap<String>,
}

impl View {
    fn group(&self, id: i64) -> Option<&Arc<Group>> {
        self.by_id.get(&id).map(|at| &self.groups[*at])
    }

    /// Why nobody carries `target`.
    fn unrouted(&self, target: &Target) -> String {
        match self.disabled.find(target) {
            Some((_, worker)) => {
                format!("{target} is a proxy host of worker {worker}, which is disabled: enable it")
            }
            None => format!("{target} is no group's proxy host"),
        }
    }
}

/// Whose key was shown.
#[derive(Debug, Clone, Copy)]
pub struct Admission {
    /// The group's id.
    pub group: i64,
    key: KeyHash,
}

fn works(group: &roster::Group, key: &KeyHash, now: SystemTime) -> bool {
    // All are compared, so that the time tells nothing.
    let equal = |valid: &roster::ValidKey| valid.hash == *key && valid.until.is_none_or(|until| now < until);
    group.keys.iter().filter(|valid| equal(valid)).count() > 0
}

impl Registry {
    /// A registry without groups. A node that was lost must be up for `settle` before it is primary again; what
    /// a replaced session carries may go on for `drain`.
    pub fn new(settle: Duration, drain: Duration, witness: Box<dyn Witness>) -> Registry {
        Registry {
            view: RwLock::default(),
            applying: Mutex::new(()),
            settle,
            drain,
            changes: watch::Sender::new(0),
            witness,
            refused: AtomicU64::new(0),
        }
    }

    fn view(&self) -> Arc<View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The groups of this moment.
    pub fn groups(&self) -> Vec<Arc<Group>> {
        self.view().groups.clone()
    }

    /// The group with this id.
    pub fn group(&self, id: i64) -> Option<Arc<Group>> {
        self.view().group(id).cloned()
    }

    /// Replaces the roster. Sessions whose group is gone or whose key does not work any more are cut; the others
    /// hear of their policy where it changed.
    pub fn apply(&self, roster: Roster) {
        let _one = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.view();
        let mut new = View::default();
        for (at, config) in roster.groups.into_iter().enumerate() {
            let before = old.group(config.id);
            let policy = policy(&config, before.map(|group| &**group));
            let live = before.map(|group| group.live.clone());
            for pattern in &config.proxy_hosts {
                new.routes.insert(pattern.clone(), at);
            }
            new.by_id.insert(config.id, at);
            let live = live.unwrap_or_else(|| Arc::new(Live::new(self.settle)));
            new.groups.push(Arc::new(Group { config, policy, live }));
        }
        for worker in roster.disabled {
            for pattern in worker.proxy_hosts {
                new.disabled.insert(pattern, worker.name.clone());
            }
        }
        let new = Arc::new(new);
        // First of all it is valid: a lane that joins now by the old one looks again when it has joined.
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = new.clone();
        let now = SystemTime::now();
        for group in &new.groups {
            let before = old.group(group.config.id);
            if before.is_none_or(|before| before.config != group.config) {
                let mut state = group.live.lock();
                state.cut(|key| works(&group.config, key, now), "its key does not work any more");
                state.rank(&group.config);
                for lane in state.lanes() {
                    lane.tell_policy(&group.policy);
                }
                let elected = state.elect(Instant::now());
                drop(state);
                self.tell(group, elected);
            }
        }
        for gone in old.groups.iter().filter(|old| new.group(old.config.id).is_none()) {
            gone.live.lock().cut(|_| false, "its worker was disabled or removed");
        }
        self.changed();
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    fn tell(&self, group: &Group, elected: Option<NewPrimary>) {
        if let Some(NewPrimary { node, epoch }) = elected {
            let node = node.as_ref().map(|(name, id)| (name.as_str(), id));
            match node {
                Some((name, _)) => {
                    tracing::info!(group = %group.config.name, primary = %name, epoch, "new streams go to it")
                }
                None => tracing::warn!(group = %group.config.name, "no worker of it is connected any more"),
            }
            self.witness.primary(&group.config, node, epoch);
        }
    }

    /// The group whose key this is.
    pub fn authenticate(&self, key: &str) -> Option<Admission> {
        let key = key.parse::<Key>().ok()?.hash();
        let (view, now) = (self.view(), SystemTime::now());
        let mut found = None;
        // All are compared, so that the time tells nothing.
        for group in &view.groups {
            if works(&group.config, &key, now) {
                found = Some(Admission { group: group.config.id, key });
            }
        }
        found
    }

    /// Notes that somebody was refused.
    pub fn refused(&self, key: Option<&str>, address: SocketAddr) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.witness.refused(key, address);
    }

    /// How often somebody was refused since the start.
    pub fn refused_keys(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The group that carries `target`, with the pattern that says so.
    pub fn owner(&self, target: &Target) -> Option<(Pattern, Arc<Group>)> {
        let view = self.view();
        view.routes.find(target).map(|(pattern, at)| (pattern.clone(), view.groups[*at].clone()))
    }

    /// Notes a lane of a node. It is forgotten when the guard is dropped.
    ///
    /// # Errors
    /// The key stopped to work meanwhile, or the group or the session has as many as it may.
    pub fn connect(
        self: &Arc<Self>,
        admission: Admission,
        lane: Lane,
        address: SocketAddr,
    ) -> Result<Connected, Refusal> {
        let Some(group) = self.group(admission.group) else { return Err(no_key()) };
        // Before anything else: what the appliance opens on it is judged by it.
        lane.tell_policy(&group.policy);
        let mut state = group.live.lock();
        let Joined { session, lane, is_new } =
            state.join(&group.config, lane, admission.key, address, self.drain)?;
        let elected = state.elect(Instant::now());
        state.tell_role(lane.lane());
        drop(state);
        let connected = Connected { registry: self.clone(), group: group.clone(), session, lane: Some(lane) };
        if is_new {
            self.witness.connected(&group.config, connected.session.peer(), address);
        }
        self.tell(&group, elected);
        self.changed();
        // The roster may have been replaced since.
        match self.group(admission.group) {
            Some(now) if works(&now.config, &admission.key, SystemTime::now()) => {
                connected.lane().inspect(|lane| lane.tell_policy(&now.policy));
                Ok(connected)
            }
            _ => Err(no_key()),
        }
    }

    /// Does what time asks for, each second until the drain begins: fail-back, the end of old keys, throughput.
    pub async fn run(self: Arc<Self>, drain: Drain) {
        let mut seconds = interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = seconds.tick() => self.second(),
                () = drain.stopping() => return,
            }
        }
    }

    fn second(&self) {
        let (now, clock) = (Instant::now(), SystemTime::now());
        let mut changed = false;
        for group in &self.view().groups {
            let mut state = group.live.lock();
            state.sample();
            if group.config.keys.iter().any(|key| key.until.is_some()) {
                state.cut(
                    |key| works(&group.config, key, clock),
                    "its key was replaced, and the grace is over",
                );
            }
            let elected = state.elect(now);
            drop(state);
            changed |= elected.is_some();
            self.tell(group, elected);
        }
        if changed {
            self.changed();
        }
    }
}

/// What a group's workers may dial: what they were told before, where nothing changed.
fn policy(config: &roster::Group, before: Option<&Group>) -> Arc<Push> {
    let before = match before {
        Some(group) if group.config.proxy_hosts == config.proxy_hosts => return group.policy.clone(),
        Some(group) => group.policy.epoch(),
        None => 0,
    };
    let epoch = rising(before);
    Push::new(epoch, &config.proxy_hosts).map(Arc::new).unwrap_or_else(|error| {
        tracing::error!(group = %config.name, "its workers may dial nothing: {error}");
        Arc::new(Push::empty(epoch))
    })
}

/// An epoch after `before`. By the clock, so that it rises over this daemon's restarts, too.
fn rising(before: u64) -> u64 {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
    clock.max(before + 1)
}

fn no_key() -> Refusal {
    Refusal::new(Code::Denied, "the key does not work any more")
}

/// A lane that is connected. Dropping it takes the lane, and a session without lanes, out.
pub struct Connected {
    registry: Arc<Registry>,
    /// As it was when the lane joined.
    group: Arc<Group>,
    session: Arc<Session>,
    lane: Option<LaneGuard>,
}

impl Connected {
    fn lane(&self) -> Option<&Lane> {
        self.lane.as_ref().map(LaneGuard::lane)
    }

    /// To be called when the lane takes no new streams any more: others take over at once.
    pub fn leaving(&self) {
        self.elect();
    }

    fn elect(&self) {
        let elected = self.group.live.lock().elect(Instant::now());
        if let Some(group) = self.registry.group(self.group.config.id) {
            self.registry.tell(&group, elected);
        }
        self.registry.changed();
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let Some(lane) = self.lane.take() else { return };
        if self.group.live.lock().leave(&self.session, lane) {
            // Also where its worker was disabled or removed meanwhile: that is what ended it.
            let group = self.registry.group(self.group.config.id).unwrap_or_else(|| self.group.clone());
            self.registry.witness.disconnected(&group.config, self.session.peer());
        }
        self.elect();
    }
}

impl Router for Registry {
    fn open(&self, request: &Request) -> Result<Opened, Refusal> {
        let view = self.view();
        let Some((_, at)) = view.routes.find(&request.target) else {
            return Err(Refusal::new(Code::NoRoute, view.unrouted(&request.target)));
        };
        let group = &view.groups[*at];
        let name = &group.config.name;
        let mut last = Refusal::new(Code::NoWorker, format!("no worker of group {name} is connected"));
        for session in group.sessions().iter() {
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

    fn home(&self, target: &Target) -> Home {
        let view = self.view();
        let (_, at) = view.routes.find(target)?;
        view.groups[*at].sessions().iter().next()?.home()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// Makes the peer's `HELLO` fit for the log.
pub fn node(hello: &Hello) -> String {
    named(&hello.name, &hello.node)
}

/// A node's name with enough of its id to tell it from others of that name.
pub fn named(name: &str, id: &Id) -> String {
    format!("{name}-{}", &id_text(id)[..8])
}
