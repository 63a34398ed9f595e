//! How busy a lane is, for who chooses one.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::{Counters, Lane, TURN, Totals};
use crate::tunnel::message::Id;

/// What a lane did lately, and what is about to come.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// Payload bytes of both directions, by the tick before the last and by the last.
    moved: [AtomicU64; 2],
    /// Streams, likewise.
    streams: [AtomicU64; 2],
    /// Streams that are about to be opened; and how many of them were at the last tick.
    promised: AtomicU64,
    aged: AtomicU64,
}

/// When lanes with this session of a peer tick next, each `every`. They tick together, since who chooses one compares what
/// they did lately: of one that ticked a moment before the others it were a second, of these two. Sessions do not.
pub(super) fn beat(session: &Id, every: Duration, now: Instant) -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    let origin = *ORIGIN.get_or_init(|| now);
    let every = (every.as_micros() as i64).max(1);
    let elapsed = match now.checked_duration_since(origin) {
        Some(since) => since.as_micros() as i64,
        None => -((origin - now).as_micros() as i64),
    };
    let [a, b, c, d, ..] = *session;
    let ahead = i64::from(u32::from_le_bytes([a, b, c, d]));
    now + Duration::from_micros((every - (elapsed + ahead).rem_euclid(every)) as u64)
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

    /// A tick: what counts as recent begins where the one before this was.
    pub(super) fn tick(&self) {
        let (moved, streams) = self.so_far();
        let Recent { moved: moves, streams: opened, promised, aged } = &self.recent;
        for ([before, last], now) in [(moves, moved), (opened, streams)] {
            before.store(last.swap(now, Ordering::Relaxed), Ordering::Relaxed);
        }
        // A promise that is older than a tick is not kept.
        lessen(promised, read(aged));
        aged.store(read(promised), Ordering::Relaxed);
    }

    /// What is recent of bytes and streams.
    fn lately(&self) -> (u64, u64) {
        let (moved, streams) = self.so_far();
        let since = |now: u64, before: &AtomicU64| now.saturating_sub(read(before));
        (since(moved, &self.recent.moved[0]), since(streams, &self.recent.streams[0]))
    }

    /// A stream is opened from here.
    pub(super) fn open(&self) {
        self.streams.fetch_add(1, Ordering::Relaxed);
        // Most likely the one that was promised; it does not count twice.
        lessen(&self.recent.promised, 1);
        lessen(&self.recent.aged, 1);
    }
}

impl Lane {
    /// How busy it is.
    pub(crate) fn load(&self) -> Load {
        let counters = &self.shared.counters;
        let (moved, fresh) = counters.lately();
        let streams = self.streams();
        Load {
            queued: self.shared.queued() / TURN,
            moved,
            fresh: fresh.min(streams as u64),
            promised: read(&counters.recent.promised),
            streams,
            ever: read(&counters.streams),
        }
    }

    /// Says that a stream is about to be opened on it, which others that choose now can't see otherwise.
    pub(crate) fn promise(&self) {
        self.shared.counters.recent.promised.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_sessions_lanes_tick_together() {
        let every = Duration::from_secs(1);
        let ids: [Id; 3] = [[0; 16], [7; 16], [255; 16]];
        let first = ids.map(|id| beat(&id, every, Instant::now()));
        assert!(first[0] != first[1] && first[1] != first[2], "{first:?}");
        for millis in [0, 1, 333, 999, 1000, 1001, 86_400_500] {
            let now = Instant::now() + Duration::from_millis(millis);
            for (id, first) in ids.iter().zip(first) {
                let next = beat(id, every, now);
                assert!(next > now && next <= now + every, "{now:?} {next:?}");
                assert_eq!((next - first.min(next)).subsec_micros(), 0, "{first:?} {next:?}");
            }
        }
        assert!(beat(&ids[2], Duration::ZERO, Instant::now()) > Instant::now());
    }

    #[tokio::test]
    async fn what_was_moved_long_ago_does_not_count() {
        let counters = Counters::default();
        counters.sent.store(300, Ordering::Relaxed);
        counters.received.store(700, Ordering::Relaxed);
        counters.streams.store(3, Ordering::Relaxed);
        assert_eq!(counters.lately(), (1000, 3));
        counters.tick();
        assert_eq!(counters.lately(), (1000, 3), "up to a tick ago");
        counters.tick();
        assert_eq!(counters.lately(), (0, 0));
    }
}
