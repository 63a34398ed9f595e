//! The audit's writer: keeps events in batches, and removes old ones in small steps.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::{Event, EventKind, Limits, NewEvent, Shared, clean, oldest, stamp};
use crate::drain::Drain;

/// Events of one transaction.
const BATCH: usize = 256;
/// How long the first event of a batch waits for others: each batch costs a write to the disk.
const GATHER: Duration = Duration::from_millis(50);
/// How often old events are looked for.
const PRUNE_EVERY: Duration = Duration::from_secs(60);
/// Events that one step removes, so that no save waits long behind it.
const PRUNE_STEP: u32 = 500;

/// What comes through the queue.
#[derive(Debug)]
pub(super) enum Message {
    /// To be kept.
    Event(Event),
    /// To be answered when everything before it is kept.
    Flush(oneshot::Sender<()>),
}

/// The task that writes.
pub(super) struct Writer {
    messages: mpsc::Receiver<Message>,
    shared: Arc<Shared>,
    limits: Limits,
}

impl Writer {
    pub(super) fn new(messages: mpsc::Receiver<Message>, shared: Arc<Shared>, limits: Limits) -> Writer {
        Writer { messages, shared, limits }
    }

    /// Writes until `drain` stops and the queue is empty.
    pub(super) async fn run(mut self, drain: Drain) {
        let mut prune = interval_at(Instant::now() + PRUNE_EVERY, PRUNE_EVERY);
        prune.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pruning = false;
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            // The order matters: what is always there must not hide what is there now and then.
            tokio::select! {
                biased;
                () = drain.stopping(), if !self.messages.is_closed() => self.messages.close(),
                _ = prune.tick() => {
                    pruning = true;
                    // What was lost may have been the last for a long time.
                    self.keep(&mut batch).await;
                }
                n = self.messages.recv_many(&mut batch, BATCH) => {
                    if n == 0 {
                        return;
                    }
                    self.gather(&mut batch, &drain).await;
                    self.keep(&mut batch).await;
                }
                () = tokio::task::yield_now(), if pruning => {}
            }
            // One step a turn: a million events that are too old must not keep the queue from being read.
            pruning = pruning && !drain.is_stopping() && self.prune().await;
        }
    }

    /// Waits a moment for more, unless somebody waits for what is there.
    async fn gather(&mut self, batch: &mut Vec<Message>, drain: &Drain) {
        let until = tokio::time::sleep(GATHER);
        tokio::pin!(until);
        while batch.len() < BATCH && !matches!(batch.last(), Some(Message::Flush(_))) {
            tokio::select! {
                n = self.messages.recv_many(batch, BATCH - batch.len()) => if n == 0 { return },
                () = &mut until => return,
                () = drain.stopping() => return,
            }
        }
    }

    async fn keep(&self, batch: &mut Vec<Message>) {
        let (mut events, mut waiting) = (Vec::with_capacity(batch.len() + 1), Vec::new());
        for message in batch.drain(..) {
            match message {
                Message::Event(event) => events.push(clean(event)),
                Message::Flush(done) => waiting.push(done),
            }
        }
        let lost = self.shared.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(lost, "events came faster than they could be kept");
            events.push(stamp(NewEvent {
                kind: EventKind::EventsLost,
                actor: "dworker".into(),
                subject: "events".into(),
                text: format!("{lost} events were not kept"),
                source: None,
            }));
        }
        let count = events.len() as u64 - u64::from(lost > 0);
        if !events.is_empty() {
            match self.shared.store.save(&[], events).await {
                Ok(saved) => self.shared.publish(saved.events),
                Err(error) => {
                    tracing::error!("{count} events were not kept: {error}");
                    self.shared.lost.fetch_add(lost + count, Ordering::Relaxed);
                }
            }
        }
        for done in waiting {
            // Who waited may be gone.
            let _ = done.send(());
        }
    }

    /// Removes some events that are too old or too many; true where there may be more.
    async fn prune(&self) -> bool {
        match self.shared.store.prune(oldest(self.limits), self.limits.count, PRUNE_STEP).await {
            Ok(removed) => removed >= u64::from(PRUNE_STEP),
            Err(error) => {
                tracing::error!("old events could not be removed: {error}");
                false
            }
        }
    }
}
