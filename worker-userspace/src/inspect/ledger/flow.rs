//! One connection, from the moment it came in to its end.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::refusal::Refusal;
use crate::target::Target;
use crate::tunnel::message::OpenOk;
use crate::tunnel::stream::{Account, Cutter, Stream};

/// Bytes of one connection that moved on.
#[derive(Debug, Default)]
pub struct Meter {
    /// From the connection's opener to its target.
    pub up: AtomicU64,
    /// From the target to the opener.
    pub down: AtomicU64,
}

impl Meter {
    pub(super) fn read(&self) -> [u64; 2] {
        [self.up.load(Ordering::Relaxed), self.down.load(Ordering::Relaxed)]
    }

    pub(super) fn set(&self, [up, down]: [u64; 2]) {
        self.up.store(up, Ordering::Relaxed);
        self.down.store(down, Ordering::Relaxed);
    }
}

/// The process that a captured connection belongs to, as the kernel saw it in `connect()`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Process {
    /// Thread group id in the initial pid namespace.
    pub pid: u32,
    /// User id.
    pub uid: u32,
    /// Command, at most 15 bytes.
    pub comm: String,
    /// Id of its cgroup (the directory's inode number).
    pub cgroup_id: u64,
}

/// How a connection came into this daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Entry {
    /// By steering.
    Captured,
    /// From a client that asked for it by HTTP `CONNECT`.
    Connect,
    /// From a client that asked for it by SOCKS5.
    Socks,
    /// From a worker's websocket, to be carried on by another worker.
    Relayed,
    /// From the appliance's websocket, to be dialled here.
    Egress,
}

impl Entry {
    /// All of them, in their order.
    pub const ALL: [Entry; 5] =
        [Entry::Captured, Entry::Connect, Entry::Socks, Entry::Relayed, Entry::Egress];

    /// The word for it, in JSON too.
    pub fn word(self) -> &'static str {
        match self {
            Entry::Captured => "captured",
            Entry::Connect => "connect",
            Entry::Socks => "socks",
            Entry::Relayed => "relayed",
            Entry::Egress => "egress",
        }
    }

    /// How a connection came in, for people.
    pub fn title(self) -> &'static str {
        match self {
            Entry::Captured => "captured",
            Entry::Connect => "HTTP proxy",
            Entry::Socks => "SOCKS proxy",
            Entry::Relayed => "from a worker",
            Entry::Egress => "from the appliance",
        }
    }
}

/// Who opened a connection, as far as this daemon knows.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// What the application asked `connect()` for.
    pub original: Option<SocketAddr>,
    /// The process that asked.
    pub process: Option<Process>,
    /// The address that it came from.
    pub source: Option<SocketAddr>,
    /// The user that proved to be one, where an entry asks for that.
    pub user: Option<String>,
    /// The group of the worker that it came from.
    pub from: Option<String>,
}

/// One connection.
#[derive(Debug)]
pub struct Flow {
    /// Number of the connection in this daemon's life, from 1.
    pub id: u64,
    /// Joins the log lines of both ends.
    pub trace: u64,
    /// How it came in.
    pub entry: Entry,
    /// What it is for.
    pub target: Target,
    /// Who opened it.
    pub origin: Origin,
    /// Bytes so far.
    pub meter: Meter,
    pub(super) since: SystemTime,
    started: Instant,
    carrier: Mutex<Option<String>>,
    retries: AtomicU32,
    dialled: OnceLock<OpenOk>,
    hands: Mutex<Hands>,
    rates: Rates,
    ended: OnceLock<Box<Ended>>,
}

/// When it ended, after its beginning, and why where not in order.
type Ended = (Duration, Option<Refusal>);

/// How a connection is closed by hand.
#[derive(Debug, Default)]
struct Hands {
    cutter: Option<Cutter>,
    place: Option<(u8, u32)>,
    closed: Option<Box<Refusal>>,
}

/// Bytes per second, and the meter when they were taken.
#[derive(Debug, Default)]
struct Rates {
    seen: Meter,
    now: Meter,
}

impl Flow {
    pub(super) fn new(id: u64, entry: Entry, trace: u64, target: Target, origin: Origin) -> Flow {
        Flow {
            id,
            trace,
            entry,
            target,
            origin,
            meter: Meter::default(),
            since: SystemTime::now(),
            started: Instant::now(),
            carrier: Mutex::default(),
            retries: AtomicU32::new(0),
            dialled: OnceLock::new(),
            hands: Mutex::default(),
            rates: Rates::default(),
            ended: OnceLock::new(),
        }
    }

    /// Notes who carries it now: `group/node`.
    pub fn carried_by(&self, carrier: String) {
        *self.carrier.lock().unwrap_or_else(PoisonError::into_inner) = Some(carrier);
    }

    /// Who carries it, or carried it at last.
    pub fn carrier(&self) -> Option<String> {
        self.carrier.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes that a carrier was lost before the target was dialled, and that another one is asked.
    pub fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Carriers that were lost before the target was dialled.
    pub fn retries(&self) -> u32 {
        self.retries.load(Ordering::Relaxed)
    }

    /// True where that was not known before.
    pub(super) fn dialled(&self, dialled: OpenOk) -> bool {
        self.dialled.set(dialled).is_ok()
    }

    /// True once the far end has dialled.
    pub fn is_dialled(&self) -> bool {
        self.dialled.get().is_some()
    }

    /// What the far end dialled.
    pub fn dial(&self) -> Option<OpenOk> {
        self.dialled.get().copied()
    }

    /// How long it has lasted, or lasted.
    pub fn age(&self) -> Duration {
        self.ended.get().map_or_else(|| self.started.elapsed(), |ended| ended.0)
    }

    /// `opening`, `open`, `closed`, or why it was not made or was cut.
    pub fn state(&self) -> &'static str {
        match self.outcome() {
            None if self.is_dialled() => "open",
            None => "opening",
            Some(Ok(())) => "closed",
            Some(Err(refusal)) => refusal.code.word(),
        }
    }

    /// How it ended; `None` while it is open.
    pub fn outcome(&self) -> Option<Result<(), &Refusal>> {
        self.ended.get().map(|ended| ended.1.as_ref().map_or(Ok(()), Err))
    }

    pub(super) fn end(&self, outcome: Result<(), Refusal>) {
        let _ = self.ended.set(Box::new((self.started.elapsed(), outcome.err())));
        let mut hands = self.hands();
        (hands.cutter, hands.place) = (None, None);
    }

    fn hands(&self) -> MutexGuard<'_, Hands> {
        self.hands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the stream that it is carried in: closing the connection by hand resets it, and whoever copies from
    /// or to it ends the other side alike.
    pub fn goes_by(&self, stream: &Stream) {
        let cutter = stream.cutter();
        let mut hands = self.hands();
        if let Some(refusal) = &hands.closed {
            cutter.reset(Refusal::clone(refusal));
        }
        hands.cutter = Some(cutter);
        hands.place = Some(stream.place());
    }

    /// The lane and the number of the stream that it is carried in, and what waits there, while it is open.
    pub(super) fn place(&self) -> Option<(u8, u32, Account)> {
        let hands = self.hands();
        let (lane, id) = hands.place?;
        // A stream that has just ended holds nothing.
        let account = hands.cutter.as_ref().and_then(Cutter::account).unwrap_or_default();
        Some((lane, id, account))
    }

    /// Closes it by hand. The first reason stands.
    pub(super) fn close(&self, refusal: Refusal) {
        let mut hands = self.hands();
        let refusal = Refusal::clone(hands.closed.get_or_insert_with(|| Box::new(refusal)));
        if let Some(cutter) = &hands.cutter {
            cutter.reset(refusal);
        }
    }

    /// Takes the rates of the time since this was last called, `elapsed` ago.
    pub(super) fn measure(&self, elapsed: Duration) -> [u64; 2] {
        let [before, now] = [self.rates.seen.read(), self.meter.read()];
        let seconds = elapsed.as_secs_f64();
        let rate = |at: usize| ((now[at] - before[at]) as f64 / seconds).round() as u64;
        let rates = [rate(0), rate(1)];
        self.rates.seen.set(now);
        self.rates.now.set(rates);
        rates
    }

    /// Bytes per second of late, up and down; none once it has ended.
    pub fn rates(&self) -> [u64; 2] {
        if self.ended.get().is_some() { [0; 2] } else { self.rates.now.read() }
    }
}
