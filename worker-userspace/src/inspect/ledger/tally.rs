//! What became of all connections since the start, by how they came in.

use std::time::Duration;

use super::flow::{Entry, Flow};
use crate::refusal::{Code, Refusal};

/// Upper bounds of the buckets for how long dials took, in microseconds: 1 ms to 30 s.
const BOUNDS: [u64; 14] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000,
];

/// Connections that came in one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Open now, or being made.
    pub open: u64,
    /// Ever seen.
    pub total: u64,
    /// How they were made, or why not.
    pub opens: Outcomes,
    /// How those that were made have ended.
    pub ends: Outcomes,
    /// Bytes from openers to targets, and back.
    pub bytes: [u64; 2],
    /// Carriers that were lost before a target was dialled.
    pub retries: u64,
}

impl Tally {
    pub(super) fn dialled(&mut self) {
        self.opens.well += 1;
    }

    pub(super) fn end(&mut self, flow: &Flow) {
        let outcome = flow.outcome().unwrap_or(Ok(()));
        match flow.is_dialled() {
            true => self.ends.count(outcome),
            false => self.opens.count(outcome),
        }
        self.moved(flow);
    }

    /// Adds what a connection has carried so far.
    pub(super) fn moved(&mut self, flow: &Flow) {
        let [up, down] = flow.meter.read();
        self.bytes[0] += up;
        self.bytes[1] += down;
        self.retries += u64::from(flow.retries());
    }
}

/// How often something came to each of the ends that it may come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcomes {
    well: u64,
    failed: [u64; Code::ALL.len()],
}

impl Outcomes {
    fn count(&mut self, outcome: Result<(), &Refusal>) {
        let place = |code| Code::ALL.iter().position(|known| *known == code);
        match outcome.map_err(|refusal| place(refusal.code)) {
            Ok(()) => self.well += 1,
            Err(place) => self.failed[place.unwrap_or_default()] += 1,
        }
    }

    /// Each end by its word; `well` is the good one's.
    pub fn each(&self, well: &'static str) -> impl Iterator<Item = (&'static str, u64)> {
        let failed = Code::ALL.iter().zip(self.failed).map(|(code, n)| (code.word(), n));
        std::iter::once((well, self.well)).chain(failed)
    }
}

/// How long dials took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dials {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: Duration,
}

impl Dials {
    pub(super) fn count(&mut self, took: Duration) {
        let place = BOUNDS.iter().position(|bound| took.as_micros() <= u128::from(*bound));
        if let Some(place) = place {
            self.buckets[place] += 1;
        }
        self.count += 1;
        self.sum += took;
    }

    /// Dials that took no longer than a bound, for each bound, in seconds.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let sums = self.buckets.iter().scan(0, |sum, n| {
            *sum += n;
            Some(*sum)
        });
        BOUNDS.iter().map(|bound| *bound as f64 / 1e6).zip(sums.collect::<Vec<u64>>())
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.count
    }

    /// Their times together.
    pub fn sum(&self) -> Duration {
        self.sum
    }
}

/// All connections of a daemon, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    pub(super) entries: [Tally; Entry::ALL.len()],
    /// How long dials took.
    pub dials: Dials,
}

impl Census {
    /// Those that came in this way.
    pub fn of(&self, entry: Entry) -> &Tally {
        &self.entries[entry as usize]
    }

    pub(super) fn of_mut(&mut self, entry: Entry) -> &mut Tally {
        &mut self.entries[entry as usize]
    }
}
