//! The audit: who did what, and what happened to whom.
//!
//! What must hold: recording never waits and never fails, whatever the store does; what could not be kept is
//! counted, and the count is kept; no event holds a secret; the number of events is bounded.

mod event;
#[cfg(test)]
mod tests;
mod writer;

pub use event::{Actor, Class, Event, EventKind, EventQuery, NewEvent, UnknownEventKind};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, broadcast, mpsc, oneshot};

use super::store::Store;
use crate::config::mask_secrets;
use crate::drain::Drain;
use writer::{Message, Writer};

/// Events that wait for the writer; more are counted, not kept.
const QUEUE: usize = 4096;
/// Events that a live view may be behind.
const LIVE: usize = 256;
/// The longest text of an event, in characters.
const LONGEST_TEXT: usize = 2000;
/// The longest actor or subject, in characters.
const LONGEST_NAME: usize = 300;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// No event older than this.
    pub age: Duration,
    /// No more events than this.
    pub count: u64,
}

impl From<&crate::config::Appliance> for Limits {
    fn from(config: &crate::config::Appliance) -> Limits {
        Limits { age: config.events_age, count: config.events_max }
    }
}

/// Records events. Clones are the same.
#[derive(Debug, Clone)]
pub struct Audit {
    queue: mpsc::Sender<Message>,
    shared: Arc<Shared>,
}

/// What recorders and the writer share.
#[derive(Debug)]
struct Shared {
    store: Arc<dyn Store>,
    live: broadcast::Sender<Arc<Event>>,
    /// Events that were not kept and that no event tells of yet.
    lost: AtomicU64,
    /// Tells a writer that gathers that a batch is there, or that somebody waits.
    enough: Notify,
}

impl Audit {
    /// An audit that writes to `store` until `drain` stops; then it writes what is recorded already, and ends.
    pub fn start(store: Arc<dyn Store>, limits: Limits, drain: &Drain) -> Audit {
        let (queue, messages) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            store,
            live: broadcast::Sender::new(LIVE),
            lost: AtomicU64::new(0),
            enough: Notify::new(),
        });
        let writer = Writer::new(messages, shared.clone(), limits);
        drain.spawn("audit", writer.run(drain.clone()));
        Audit { queue, shared }
    }

    /// Records an event: it is kept and shown to live views soon.
    pub fn record(&self, event: NewEvent) {
        if self.queue.try_send(Message::Event(stamp(event))).is_err() {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        } else if self.queue.capacity() == QUEUE - writer::BATCH {
            self.shared.enough.notify_one();
        }
    }

    /// New events as they are kept. Who falls behind by too many misses some.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.shared.live.subscribe()
    }

    /// Waits until everything recorded before has been kept, or could not be.
    pub async fn flush(&self) {
        let (done, kept) = oneshot::channel();
        if self.queue.send(Message::Flush(done)).await.is_ok() {
            self.shared.enough.notify_one();
            // Where the writer has ended there is nothing to wait for.
            let _ = kept.await;
        }
    }

    /// Shows live views events that were kept together with what they tell of.
    pub(super) fn publish(&self, events: Vec<Event>) {
        self.shared.publish(events);
    }
}

impl Shared {
    fn publish(&self, events: Vec<Event>) {
        for event in events {
            // Nobody may be looking.
            let _ = self.live.send(Arc::new(event));
        }
    }
}

/// Gives an event its time. Its texts are masked by [`clean`] before they go anywhere.
pub(super) fn stamp(event: NewEvent) -> Event {
    let NewEvent { kind, actor, subject, text, source } = event;
    Event { id: 0, time: super::records::now(), kind, actor, subject, text, source }
}

/// Takes secrets and control characters out, and cuts what is too long.
pub(super) fn clean(mut event: Event) -> Event {
    event.actor = mask_secrets(&event.actor, LONGEST_NAME);
    event.subject = mask_secrets(&event.subject, LONGEST_NAME);
    event.text = mask_secrets(&event.text, LONGEST_TEXT);
    event
}

/// When the oldest events that may be kept happened.
fn oldest(limits: Limits) -> Timestamp {
    let now = Timestamp::now();
    jiff::SignedDuration::try_from(limits.age)
        .ok()
        .and_then(|age| now.checked_sub(age).ok())
        .unwrap_or(Timestamp::MIN)
}
