//! What happens again and again: told once at first, then as a count, so that whoever repeats it does not fill the
//! audit.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::audit::NewEvent;

/// How often counts are told. What did not happen again for so long is told as if for the first time.
pub(super) const PERIOD: Duration = Duration::from_secs(60);
/// Different things that are told in a period; those beyond are counted together.
const MOST: usize = 1024;

/// Counts what is the same by its key.
#[derive(Debug)]
pub(super) struct Sparse<K>(Mutex<Counts<K>>);

#[derive(Debug)]
struct Counts<K> {
    known: HashMap<K, Known>,
    beyond: u64,
}

#[derive(Debug)]
struct Known {
    first: NewEvent,
    last: Instant,
    more: u64,
}

impl<K> Default for Sparse<K> {
    fn default() -> Sparse<K> {
        Sparse(Mutex::new(Counts { known: HashMap::new(), beyond: 0 }))
    }
}

impl<K: Eq + Hash> Sparse<K> {
    /// The event, where it is to be told now; else it is counted.
    pub(super) fn note(&self, key: K, event: impl FnOnce() -> NewEvent) -> Option<NewEvent> {
        let mut counts = self.lock();
        let last = Instant::now();
        if let Some(known) = counts.known.get_mut(&key) {
            known.last = last;
            known.more += 1;
            return None;
        }
        if counts.known.len() >= MOST {
            counts.beyond += 1;
            return None;
        }
        let first = event();
        counts.known.insert(key, Known { first: first.clone(), last, more: 0 });
        Some(first)
    }

    /// What was counted since it was asked last: events with their counts, and how many others there were.
    pub(super) fn rest(&self) -> (Vec<NewEvent>, u64) {
        let mut counts = self.lock();
        let now = Instant::now();
        let mut told = Vec::new();
        counts.known.retain(|_, known| {
            if known.more > 0 {
                let text = format!("{}; and {} more like it", known.first.text, known.more);
                told.push(NewEvent { text, ..known.first.clone() });
                known.more = 0;
            }
            now < known.last + PERIOD
        });
        (told, std::mem::take(&mut counts.beyond))
    }

    fn lock(&self) -> MutexGuard<'_, Counts<K>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::appliance::audit::{Actor, EventKind};

    fn event(text: &str) -> NewEvent {
        Actor::local("a").did(EventKind::StreamRefused, "vc.example:443", text)
    }

    #[tokio::test(start_paused = true)]
    async fn what_repeats_is_told_once_and_then_counted() {
        let sparse = Sparse::default();
        let note = |key: &'static str| sparse.note(key, || event(key)).map(|event| event.text);
        let rest = || sparse.rest().0.into_iter().map(|event| event.text).collect::<Vec<_>>();
        assert_eq!(
            (note("a"), note("b"), note("a"), note("a")),
            (Some("a".into()), Some("b".into()), None, None)
        );
        assert_eq!(rest(), ["a; and 2 more like it"]);
        assert_eq!(rest(), [""; 0]);
        assert_eq!(note("a"), None, "it goes on");
        tokio::time::advance(PERIOD).await;
        assert_eq!(note("a"), None);
        assert_eq!(rest(), ["a; and 2 more like it"]);
        tokio::time::advance(PERIOD).await;
        assert_eq!(rest(), [""; 0]);
        assert_eq!(note("a"), Some("a".into()), "it was over");
    }

    #[tokio::test(start_paused = true)]
    async fn what_there_is_too_much_of_is_counted_together() {
        let sparse = Sparse::default();
        let told = (0..MOST + 70).filter(|n| sparse.note(*n, || event("x")).is_some()).count();
        assert_eq!(told, MOST);
        assert!(sparse.note(0, || event("x")).is_none());
        let (events, others) = sparse.rest();
        assert_eq!((events.len(), others), (1, 70));
        assert_eq!(sparse.rest().1, 0);
        tokio::time::advance(PERIOD).await;
        sparse.rest();
        assert!(sparse.note(MOST + 1, || event("x")).is_some());
    }
}
