//! The connections of this daemon: those open now and the last that ended, with what became of them.
//!
//! What must hold: nothing here costs a connection more than a count for each piece that it moves; what an
//! observer or a reader of lists does, happens outside the book's lock.

mod flow;
mod report;
mod tally;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

pub use flow::{Entry, Flow, Meter, Origin, Process};
pub use report::{Filter, FlowReport, Found, Phase, StreamPlace};
pub use tally::{Census, Dials, Outcomes, Tally};

use super::monitor::{Happening, Hub, What};
use crate::drain::Drain;
use crate::refusal::{self, Code, Refusal};
use crate::target::Target;
use crate::tunnel::message::OpenOk;

/// Ended connections that are remembered.
const REMEMBERED: usize = 256;
/// Open connections that a report lists, and connections of the largest page; the rest is counted.
const LISTED: usize = 1024;
/// Time over which rates are taken.
const RATE: Duration = Duration::from_secs(1);

/// What an observer hears of. It reads the connection as it is at that moment.
#[derive(Debug, Clone, Copy)]
pub enum FlowEvent<'a> {
    /// Its target was dialled.
    Dialled(&'a Flow),
    /// It has ended, or was not made.
    Ended(&'a Flow),
}

type Observer = Box<dyn Fn(&FlowEvent<'_>) + Send + Sync>;

#[derive(Debug, Default)]
struct Book {
    next: u64,
    open: BTreeMap<u64, Arc<Flow>>,
    ended: VecDeque<Arc<Flow>>,
    /// What has ended, and all that is known once; what the open ones carry is added when somebody asks.
    census: Census,
}

#[derive(Default)]
struct Shared {
    book: Mutex<Book>,
    /// Bytes per second of all that were open when rates were last taken.
    rates: Meter,
    observer: OnceLock<Observer>,
    hub: Hub,
}

/// All connections of this daemon. Clones are the same book.
#[derive(Clone, Default)]
pub struct Ledger(Arc<Shared>);

impl Ledger {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `observer` called when a connection's target was dialled and when it ends. It is called by the task that carries
    /// the connection, so it must not wait. The first observer stays; `false` where there is one.
    pub fn observe(&self, observer: impl Fn(&FlowEvent<'_>) + Send + Sync + 'static) -> bool {
        self.0.observer.set(Box::new(observer)).is_ok()
    }

    /// Who looks at what happens, to connections and else.
    pub fn hub(&self) -> &Hub {
        &self.0.hub
    }

    fn tell(&self, event: FlowEvent<'_>) {
        self.0.hub.tell(|| match event {
            FlowEvent::Dialled(flow) => Happening::of(What::Opened, flow),
            FlowEvent::Ended(flow) if flow.is_dialled() => Happening::of(What::Closed, flow),
            FlowEvent::Ended(flow) => Happening::of(What::Failed, flow),
        });
        if let Some(observer) = self.0.observer.get() {
            observer(&event);
        }
    }

    /// Writes a new connection down. It ends when the guard says so or is dropped.
    pub fn open(&self, entry: Entry, trace: u64, target: Target, origin: Origin) -> FlowGuard {
        let mut book = self.book();
        book.next += 1;
        let flow = Arc::new(Flow::new(book.next, entry, trace, target, origin));
        book.open.insert(flow.id, flow.clone());
        book.census.of_mut(entry).total += 1;
        drop(book);
        if entry == Entry::Captured {
            self.0.hub.tell(|| Happening::of(What::Steered, &flow));
        }
        FlowGuard { ledger: self.clone(), flow }
    }

    /// Closes an open connection with a reset at both ends. `by` says who wants that, for people. `false`: there
    /// is no open connection with this number.
    pub fn close(&self, id: u64, by: &str) -> bool {
        let flow = self.book().open.get(&id).cloned();
        flow.inspect(|flow| flow.close(Refusal::new(Code::Closed, format!("closed by {by}")))).is_some()
    }

    /// Connections open now.
    pub fn open_count(&self) -> usize {
        self.book().open.len()
    }

    /// Connections ever seen.
    pub fn total(&self) -> u64 {
        self.book().next
    }

    /// All that was counted, and what the open connections have carried so far.
    pub fn census(&self) -> Census {
        let book = self.book();
        let mut census = book.census;
        let open: Vec<_> = book.open.values().cloned().collect();
        drop(book);
        // What one carries after it was taken for open only rises, so no count ever falls.
        for flow in open {
            let tally = census.of_mut(flow.entry);
            tally.open += 1;
            tally.moved(&flow);
        }
        census
    }

    /// The open connections and the last that ended, newest first; where there are many, not all, but what is `wanted`
    /// by its number, trace or stream.
    pub fn report(&self, wanted: Option<&str>) -> Vec<FlowReport> {
        let book = self.book();
        let mut flows: Vec<_> = book.open.values().rev().take(LISTED).cloned().collect();
        flows.extend(book.ended.iter().cloned());
        let more: Vec<_> = match wanted {
            Some(_) => book.open.values().rev().skip(LISTED).cloned().collect(),
            None => Vec::new(),
        };
        drop(book);
        let mut reports: Vec<_> = flows.iter().map(|flow| FlowReport::from(&**flow)).collect();
        let more = more.iter().map(|flow| FlowReport::from(&**flow));
        reports.extend(more.filter(|report| wanted.is_some_and(|wanted| report.is_called(wanted))));
        reports.sort_unstable_by_key(|report| std::cmp::Reverse(report.id));
        reports
    }

    /// All that are open and remembered, newest first; with `after` only those older than this one.
    fn flows(&self, after: Option<u64>) -> Vec<Arc<Flow>> {
        let range = (Bound::Unbounded, after.map_or(Bound::Unbounded, Bound::Excluded));
        let book = self.book();
        // Only references are taken under the lock: thousands of connections don't wait for one who looks at them.
        let mut flows: Vec<_> = book.open.range(range).map(|(_, flow)| flow.clone()).collect();
        flows.extend(book.ended.iter().filter(|flow| range.contains(&flow.id)).cloned());
        drop(book);
        flows.sort_unstable_by_key(|flow| std::cmp::Reverse(flow.id));
        flows
    }

    /// One page of the connections that are asked for, newest first.
    pub fn list(&self, filter: &Filter) -> Vec<FlowReport> {
        let flows = self.flows(filter.after);
        let taken = flows.iter().filter(|flow| filter.takes(flow));
        taken.take(filter.most()).map(|flow| FlowReport::from(&**flow)).collect()
    }

    /// The same page, and where it stands among all that are asked for.
    pub fn find(&self, filter: &Filter) -> Found {
        let mut found = Found::default();
        for flow in self.flows(None).iter().filter(|flow| filter.takes(flow)) {
            found.total += 1;
            if filter.after.is_some_and(|after| flow.id >= after) {
                found.newer += 1;
            } else if found.items.len() < filter.most() {
                found.items.push(FlowReport::from(&**flow));
            }
        }
        found
    }

    /// Bytes per second of late, up and down, of all connections together.
    pub fn rates(&self) -> [u64; 2] {
        self.0.rates.read()
    }

    /// One connection, where it is open or remembered.
    pub fn get(&self, id: u64) -> Option<FlowReport> {
        let book = self.book();
        let flow = book.open.get(&id).or_else(|| book.ended.iter().find(|flow| flow.id == id)).cloned();
        drop(book);
        flow.map(|flow| FlowReport::from(&*flow))
    }

    /// Keeps the rates of all open connections until the drain begins.
    pub async fn keep_rates(self, drain: Drain) {
        let mut ticks = interval(RATE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first one comes at once.
        let mut last = ticks.tick().await;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = drain.stopping() => return,
            }
            let elapsed = last.elapsed();
            last = Instant::now();
            let flows: Vec<_> = self.book().open.values().cloned().collect();
            let rates = flows.iter().map(|flow| flow.measure(elapsed));
            self.0.rates.set(rates.fold([0; 2], |sum, rates| [sum[0] + rates[0], sum[1] + rates[1]]));
        }
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ledger({} open)", self.open_count())
    }
}

/// An open connection. Dropping it writes its end down.
#[derive(Debug)]
pub struct FlowGuard {
    ledger: Ledger,
    flow: Arc<Flow>,
}

impl FlowGuard {
    /// Notes what the far end dialled.
    pub fn dialled(&self, dialled: OpenOk) {
        if self.flow.dialled(dialled) {
            let mut book = self.ledger.book();
            book.census.of_mut(self.flow.entry).dialled();
            book.census.dials.count(dialled.dial);
        }
        self.ledger.tell(FlowEvent::Dialled(&self.flow));
    }

    /// Writes down how the connection ended.
    pub fn end(self, outcome: Result<(), Refusal>) {
        self.flow.end(outcome);
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
        // Without a word: the task was cut when the daemon stopped. What was said before stands.
        self.flow.end(Err(refusal::shutdown()));
        let mut book = self.ledger.book();
        if let Some(flow) = book.open.remove(&self.flow.id) {
            if book.ended.len() == REMEMBERED {
                book.ended.pop_front();
            }
            book.census.of_mut(flow.entry).end(&flow);
            book.ended.push_back(flow);
        }
        drop(book);
        self.ledger.tell(FlowEvent::Ended(&self.flow));
    }
}
