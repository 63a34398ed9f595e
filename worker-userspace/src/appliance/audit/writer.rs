//! The audit's writer: keeps events in batches, and removes old ones in small steps.
//!
//! What the store refuses is tried again after a pause; meanwhile the queue fills, and what no longer fits in is lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use super::{Event, EventKind, Limits, NewEvent, Shared, clean, oldest, stamp};
use crate::drain::Drain;

/// Events of one transaction; an administrator's save waits behind it. Live views have room for them.
pub(super) const BATCH: usize = 256;
/// How long the first event of a batch waits for others: each batch costs a write to the disk, and each time that the writer
/// is woken costs whoever records as much as the event itself.
const GATHER: Duration = Duration::from_millis(50);
/// How long a batch waits that the store refused.
const PAUSE: Duration = Duration::from_secs(1);
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
    /// What was taken from the queue and is not kept yet.
    events: Vec<Event>,
    /// When the store is tried again, after it refused.
    again: Option<Instant>,
}

impl Writer {
    pub(super) fn new(messages: mpsc::Receiver<Message>, shared: Arc<Shared>, limits: Limits) -> Writer {
        Writer { messages, shared, limits, events: Vec::new(), again: None }
    }

    /// Writes until `drain` stops and the queue is empty.
    pub(super) async fn run(mut self, drain: Drain) {
        let mut prune = interval_at(Instant::now() + PRUNE_EVERY, PRUNE_EVERY);
        prune.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pruning = false;
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let again = self.again;
            // The order matters: what is always there must not hide what is there now and then.
            tokio::select! {
                biased;
                () = drain.stopping(), if !self.messages.is_closed() => {
                    self.messages.close();
                    if again.is_some() {
                        self.keep().await;
                    }
                }
                _ = prune.tick() => {
                    pruning = true;
                    // What was lost may have been the last for a long time.
                    self.keep().await;
                }
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {
                    self.keep().await;
                }
                n = self.messages.recv_many(&mut batch, BATCH), if again.is_none() => {
                    if n == 0 {
                        return;
                    }
                    self.gather(&mut batch, &drain).await;
                    let waiting = self.take(&mut batch);
                    self.keep().await;
                    for done in waiting {
                        // Who waited may be gone.
                        let _ = done.send(());
                    }
                }
                () = tokio::task::yield_now(), if pruning => {}
            }
            if self.again.is_some() && self.messages.is_closed() {
                return self.give_up();
            }
            // One step a turn: a million events that are too old must not keep the queue from being read.
            pruning = pruning && !drain.is_stopping() && self.prune().await;
        }
    }

    /// Waits a moment for more, unless somebody waits for what is there or it is enough; then takes it.
    async fn gather(&mut self, batch: &mut Vec<Message>, drain: &Drain) {
        let asked = batch.iter().any(|message| matches!(message, Message::Flush(_)));
        if !asked && batch.len() + self.messages.len() < BATCH {
            // Not by the queue, which would tell of each event. Who asked and was answered may have left a word behind: then
            // one batch is written sooner.
            tokio::select! {
                () = tokio::time::sleep(GATHER) => {}
                () = self.shared.enough.notified() => {}
                () = drain.stopping() => {}
            }
        }
        while batch.len() < BATCH
            && let Ok(message) = self.messages.try_recv()
        {
            batch.push(message);
        }
    }

    /// Takes the events of a batch, and gives back who waits for them.
    fn take(&mut self, batch: &mut Vec<Message>) -> Vec<oneshot::Sender<()>> {
        let mut waiting = Vec::new();
        for message in batch.drain(..) {
            match message {
                Message::Event(event) => self.events.push(clean(event)),
                Message::Flush(done) => waiting.push(done),
            }
        }
        waiting
    }

    /// Tries to keep what was taken, and tells of what was lost.
    async fn keep(&mut self) {
        let lost = self.shared.lost.load(Ordering::Relaxed);
        let mut events = self.events.clone();
        if lost > 0 {
            events.push(stamp(NewEvent {
                kind: EventKind::EventsLost,
                actor: "dworker".into(),
                subject: "events".into(),
                text: format!("{lost} events were not kept"),
                source: None,
            }));
        }
        if events.is_empty() {
            return;
        }
        match self.shared.store.save(&[], events).await {
            Ok(saved) => {
                if lost > 0 {
                    tracing::warn!(lost, "events came faster than they could be kept");
                    self.shared.lost.fetch_sub(lost, Ordering::Relaxed);
                }
                self.events.clear();
                self.again = None;
                self.shared.publish(saved.events);
            }
            Err(error) => {
                if self.again.is_none() {
                    tracing::error!("events can't be kept, which is tried again and again: {error}");
                }
                self.again = Some(Instant::now() + PAUSE);
            }
        }
    }

    /// The end has come, and the store refuses still.
    fn give_up(&mut self) {
        let mut lost = self.shared.lost.load(Ordering::Relaxed) + self.events.len() as u64;
        while let Ok(message) = self.messages.try_recv() {
            lost += u64::from(matches!(message, Message::Event(_)));
        }
        tracing::error!("{lost} events were not kept: the store refused them until the end");
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
