//! What `status` tells of DNS.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Counts since the start; shared by reference.
#[derive(Debug, Default)]
pub struct Counters {
    pub(super) queries: Counter,
    pub(super) answered: Counter,
    pub(super) forwarded: Counter,
    pub(super) stripped: Counter,
    pub(super) failed: Counter,
    pub(super) dropped: Counter,
}

/// The counts at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Queries that came in, by UDP and TCP.
    pub queries: u64,
    /// Queries that were answered here.
    pub answered: u64,
    /// Queries that were sent to the resolver that was asked.
    pub forwarded: u64,
    /// Replies of resolvers that had synthetic addresses in them, which were taken out.
    pub stripped: u64,
    /// Queries that a resolver did not answer, or that no address could be assigned for.
    pub failed: u64,
    /// Queries and connections without an answer: over a limit, malformed, or not captured.
    pub dropped: u64,
}

impl Counters {
    /// The counts now.
    pub fn snapshot(&self) -> Counts {
        Counts {
            queries: self.queries.get(),
            answered: self.answered.get(),
            forwarded: self.forwarded.get(),
            stripped: self.stripped.get(),
            failed: self.failed.get(),
            dropped: self.dropped.get(),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
