//! The connections of this daemon: those open now and the last that ended, with what became of them.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::refusal::{self, Refusal};
use crate::target::Target;

/// Ended connections that are remembered.
const REMEMBERED: usize = 256;
/// Open connections that a report lists; the rest is counted.
const LISTED: usize = 1024;

/// Bytes of one connection that moved on.
#[derive(Debug, Default)]
pub struct Meter {
    /// From the connection's opener to its target.
    pub up: AtomicU64,
    /// From the target to the opener.
    pub down: AtomicU64,
}

/// The process that a captured connection belongs to, as the kernel saw it in `connect()`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Entry {
    /// By steering.
    Captured,
    /// From a worker's websocket, to be carried on by another worker.
    Relayed,
    /// From the appliance's websocket, to be dialled here.
    Egress,
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
    /// What the application asked `connect()` for.
    pub original: Option<SocketAddr>,
    /// Who asked.
    pub process: Option<Process>,
    /// Bytes so far.
    pub meter: Meter,
    since: SystemTime,
    started: Instant,
    carrier: Mutex<Option<String>>,
    retries: AtomicU32,
    dialled: OnceLock<(SocketAddr, Duration)>,
    ended: OnceLock<(Duration, Option<Refusal>)>,
}

impl Flow {
    /// Notes who carries it now: `group/node`.
    pub fn carried_by(&self, carrier: String) {
        *self.carrier() = Some(carrier);
    }

    fn carrier(&self) -> MutexGuard<'_, Option<String>> {
        self.carrier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a carrier was lost before the target was dialled, and that another one is asked.
    pub fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes the address that was dialled and how long that took.
    pub fn dialled(&self, address: SocketAddr, took: Duration) {
        let _ = self.dialled.set((address, took));
    }

    /// True once the far end has dialled.
    pub fn is_dialled(&self) -> bool {
        self.dialled.get().is_some()
    }

    /// How long it has lasted, or lasted.
    pub fn age(&self) -> Duration {
        self.ended.get().map_or_else(|| self.started.elapsed(), |(age, _)| *age)
    }
}

/// A connection as `status` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FlowReport {
    /// Number of the connection in this daemon's life.
    pub id: u64,
    /// Joins the log lines of both ends, hexadecimal.
    pub trace: String,
    /// How it came in.
    pub entry: Entry,
    /// `open`, `closed`, or why it was not made or was cut (`refused`, `timeout`, `denied`, `reset`, ...).
    pub state: String,
    /// One line on why, where it was not made or was cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Name or address, and port.
    pub target: String,
    /// What the application asked `connect()` for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original: Option<SocketAddr>,
    /// Who asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// Who carries it: `group/node`; the last one, where one was lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub carrier: Option<String>,
    /// Carriers that were lost before the target was dialled.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: u32,
    /// The address that was dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dialled: Option<SocketAddr>,
    /// How long resolution and dial took, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dial_us: Option<u64>,
    /// Bytes from the opener to the target.
    pub bytes_up: u64,
    /// Bytes from the target to the opener.
    pub bytes_down: u64,
    /// When it came in, seconds since 1970.
    pub since: u64,
    /// How long it has lasted, or lasted, in milliseconds.
    pub age_ms: u64,
}

impl From<&Flow> for FlowReport {
    fn from(flow: &Flow) -> FlowReport {
        let (state, reason) = match flow.ended.get() {
            None if flow.is_dialled() => ("open", None),
            None => ("opening", None),
            Some((_, None)) => ("closed", None),
            Some((_, Some(refusal))) => (refusal.code.word(), Some(refusal.text.clone())),
        };
        FlowReport {
            id: flow.id,
            trace: format!("{:016x}", flow.trace),
            entry: flow.entry,
            state: state.to_owned(),
            reason,
            target: flow.target.to_string(),
            original: flow.original,
            process: flow.process.clone(),
            carrier: flow.carrier().clone(),
            retries: flow.retries.load(Ordering::Relaxed),
            dialled: flow.dialled.get().map(|(address, _)| *address),
            dial_us: flow.dialled.get().map(|(_, took)| took.as_micros() as u64),
            bytes_up: flow.meter.up.load(Ordering::Relaxed),
            bytes_down: flow.meter.down.load(Ordering::Relaxed),
            since: flow.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            age_ms: flow.age().as_millis() as u64,
        }
    }
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

#[derive(Debug, Default)]
struct Book {
    next: u64,
    open: HashMap<u64, Arc<Flow>>,
    ended: VecDeque<Arc<Flow>>,
}

/// All connections of this daemon. Clones are the same book.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Arc<Mutex<Book>>);

impl Ledger {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a new connection down. It ends when the guard says so or is dropped.
    pub fn open(
        &self,
        entry: Entry,
        trace: u64,
        target: Target,
        original: Option<SocketAddr>,
        process: Option<Process>,
    ) -> FlowGuard {
        let mut book = self.book();
        book.next += 1;
        let flow = Arc::new(Flow {
            id: book.next,
            trace,
            entry,
            target,
            original,
            process,
            meter: Meter::default(),
            since: SystemTime::now(),
            started: Instant::now(),
            carrier: Mutex::default(),
            retries: AtomicU32::new(0),
            dialled: OnceLock::new(),
            ended: OnceLock::new(),
        });
        book.open.insert(flow.id, flow.clone());
        FlowGuard { ledger: self.clone(), flow }
    }

    /// Connections open now.
    pub fn open_count(&self) -> usize {
        self.book().open.len()
    }

    /// Connections ever seen.
    pub fn total(&self) -> u64 {
        self.book().next
    }

    /// The open connections and the last that ended, newest first.
    pub fn report(&self) -> Vec<FlowReport> {
        let book = self.book();
        let mut flows: Vec<_> = book.open.values().cloned().collect();
        flows.sort_by_key(|flow| std::cmp::Reverse(flow.id));
        flows.truncate(LISTED);
        flows.extend(book.ended.iter().rev().cloned());
        drop(book);
        flows.sort_by_key(|flow| std::cmp::Reverse(flow.id));
        flows.iter().map(|flow| FlowReport::from(&**flow)).collect()
    }
}

/// An open connection. Dropping it writes its end down.
#[derive(Debug)]
pub struct FlowGuard {
    ledger: Ledger,
    flow: Arc<Flow>,
}

impl FlowGuard {
    /// Writes down how the connection ended.
    pub fn end(self, outcome: Result<(), Refusal>) {
        let _ = self.flow.ended.set((self.flow.started.elapsed(), outcome.err()));
    }
}

impl std::ops::Deref for FlowGuard {
    type Target = Flow;

    fn deref(&self) -> &Flow {
        &self.flow
    }
}

impl Drop for FlowGuard {
    fn drop(&mut self) {
        // Without a word: the task was cut when the daemon stopped.
        let _ = self.flow.ended.set((self.flow.started.elapsed(), Some(refusal::shutdown())));
        let mut book = self.ledger.book();
        if let Some(flow) = book.open.remove(&self.flow.id) {
            if book.ended.len() == REMEMBERED {
                book.ended.pop_front();
            }
            book.ended.push_back(flow);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Code;

    fn open(ledger: &Ledger) -> FlowGuard {
        let target = Target { host: "vcenter.corp.example".parse().unwrap(), port: 443 };
        ledger.open(Entry::Captured, 7, target, "240.64.0.1:443".parse().ok(), None)
    }

    #[test]
    fn connections_are_told_from_opening_to_end() {
        let ledger = Ledger::default();
        let (first, second) = (open(&ledger), open(&ledger));
        assert_eq!(ledger.report()[0].state, "opening");
        first.dialled("192.0.2.1:443".parse().unwrap(), Duration::from_millis(2));
        first.meter.up.fetch_add(10, Ordering::Relaxed);
        assert_eq!(ledger.report()[1].state, "open");
        first.end(Ok(()));
        second.end(Err(Refusal::new(Code::Refused, "dialling 192.0.2.1:443")));
        let report = ledger.report();
        assert_eq!((report[1].state.as_str(), report[1].bytes_up), ("closed", 10));
        assert_eq!(
            (report[0].state.as_str(), report[0].reason.as_deref()),
            ("refused", Some("dialling 192.0.2.1:443"))
        );
        drop(open(&ledger));
        assert_eq!(ledger.report()[0].state, "shutdown");
        assert_eq!((ledger.open_count(), ledger.total()), (0, 3));
    }

    #[test]
    fn only_so_many_ended_connections_are_remembered() {
        let ledger = Ledger::default();
        for _ in 0..REMEMBERED + 10 {
            open(&ledger).end(Ok(()));
        }
        let report = ledger.report();
        assert_eq!(report.len(), REMEMBERED);
        assert_eq!(report[0].id, REMEMBERED as u64 + 10);
    }
}
