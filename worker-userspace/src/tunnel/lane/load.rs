//! How busy a lane is, for who chooses one.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Counters, Lane, TURN, Totals};

/// What the tick before the last found, from which on all is recent.
#[derive(Debug, Default)]
pub(super) struct Tick {
    moved: AtomicU64,
    streams: AtomicU64,
    /// Promises that were open with the last tick.
    promised: AtomicU64,
}

/// What a lane has to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Turns that are queued.
    pub(crate) queued: usize,
    /// Payload bytes of both directions, since the tick before the last: in a second or two.
    pub(crate) moved: u64,
    /// Streams that were opened since then and have not ended. What they move may not show in `moved` yet.
    pub(crate) fresh: u64,
    /// Streams that are about to be opened.
    pub(crate) promised: u64,
    /// Streams open now.
    pub(crate) streams: usize,
    /// Streams ever opened.
    pub(crate) ever: u64,
}

fn read(cell: &AtomicU64) -> u64 {
    cell.load(Ordering::Relaxed)
}

/// Less by `n`, or nothing.
fn lessen(cell: &AtomicU64, n: u64) {
    let _ = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |before| Some(before.saturating_sub(n)));
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
        // A promise that is older than a tick is not kept.
        lessen(&self.promised, read(&self.ticked.promised));
        self.ticked.promised.store(read(&self.promised), Ordering::Relaxed);
        self.so_far()
    }

    /// What is recent of bytes and streams.
    pub(super) fn recent(&self) -> (u64, u64) {
        let (moved, streams) = self.so_far();
        let since = |now: u64, before: &AtomicU64| now.saturating_sub(read(before));
        (since(moved, &self.ticked.moved), since(streams, &self.ticked.streams))
    }

    /// A stream is opened from here.
    pub(super) fn open(&self) {
        self.streams.fetch_add(1, Ordering::Relaxed);
        // Most likely the one that was promised; it does not count twice.
        lessen(&self.promised, 1);
        lessen(&self.ticked.promised, 1);
    }
}

impl Lane {
    /// How busy it is.
    pub(crate) fn load(&self) -> Load {
        let counters = &self.shared.counters;
        let (moved, fresh) = counters.recent();
        let streams = self.streams();
        Load {
            queued: self.shared.queued.load(Ordering::Relaxed) / TURN,
            moved,
            fresh: fresh.min(streams as u64),
            promised: read(&counters.promised),
            streams,
            ever: read(&counters.streams),
        }
    }

    /// Says that a stream is about to be opened on it, which others that choose now can't see otherwise.
    pub(crate) fn promise(&self) {
        self.shared.counters.promised.fetch_add(1, Ordering::Relaxed);
    }
}
