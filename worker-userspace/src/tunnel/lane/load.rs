//! How busy a lane is, for who chooses one.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Counters, Lane, TURN, Totals};

/// What was there with an earlier tick.
#[derive(Debug, Default)]
pub(super) struct Tick {
    moved: AtomicU64,
    streams: AtomicU64,
}

/// What a lane has to do.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Turns that are queued.
    pub queued: usize,
    /// Payload bytes of both directions, since the tick before the last: in a second or two.
    pub moved: u64,
    /// Streams that were opened since then, or are about to be. What they move may not show in `moved` yet.
    pub fresh: u64,
    /// Streams open now.
    pub streams: usize,
    /// Streams ever opened, or about to be.
    pub ever: u64,
}

impl Counters {
    /// Payload bytes of both directions; and streams.
    fn so_far(&self) -> (u64, u64) {
        let Totals { sent, received, streams, .. } = self.totals();
        (sent + received, streams)
    }

    /// What counts as recent begins where the tick before this was, which had found `before`. Returns what this one finds.
    pub(super) fn tick(&self, before: (u64, u64)) -> (u64, u64) {
        self.ticked.moved.store(before.0, Ordering::Relaxed);
        self.ticked.streams.store(before.1, Ordering::Relaxed);
        // Who has not opened by now does not.
        self.chosen.store(0, Ordering::Relaxed);
        self.so_far()
    }

    /// What is recent of bytes and streams.
    pub(super) fn recent(&self) -> (u64, u64) {
        let (moved, streams) = self.so_far();
        let since = |now: u64, before: &AtomicU64| now.saturating_sub(before.load(Ordering::Relaxed));
        (since(moved, &self.ticked.moved), since(streams, &self.ticked.streams))
    }

    /// A stream is opened from here.
    pub(super) fn open(&self) {
        self.streams.fetch_add(1, Ordering::Relaxed);
        // Most likely the one for which the lane was chosen first; it does not count twice.
        let _ =
            self.chosen.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |chosen| chosen.checked_sub(1));
    }
}

impl Lane {
    /// How busy it is.
    pub fn load(&self) -> Load {
        let counters = &self.shared.counters;
        let chosen = counters.chosen.load(Ordering::Relaxed);
        let (moved, fresh) = counters.recent();
        Load {
            queued: self.shared.queued.load(Ordering::Relaxed) / TURN,
            moved,
            fresh: fresh + chosen,
            streams: self.streams(),
            ever: counters.streams.load(Ordering::Relaxed) + chosen,
        }
    }

    /// Says that a stream is about to be opened on it, which others that choose now can't see otherwise.
    pub fn choose(&self) {
        self.shared.counters.chosen.fetch_add(1, Ordering::Relaxed);
    }
}
