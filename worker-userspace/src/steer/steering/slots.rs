//! Which place in the kernel's table of groups a carrier has.
//!
//! What must hold: a carrier keeps its place for as long as the daemon runs, also while it carries nothing; only
//! where all places are taken does a new one get the place of a carrier that is gone, of the one gone longest, and
//! never of one that rules in the kernel still lead to.

use std::collections::{HashMap, HashSet, VecDeque};

use worker_common::limits;

/// The places.
#[derive(Debug)]
pub(super) struct Slots {
    of: HashMap<i64, u16>,
    /// The carriers that no rule leads to, those gone longest first.
    gone: VecDeque<i64>,
    limit: usize,
}

impl Default for Slots {
    fn default() -> Slots {
        Slots { of: HashMap::new(), gone: VecDeque::new(), limit: limits::GROUPS }
    }
}

impl Slots {
    /// The place of a carrier that was seen before.
    pub(super) fn of(&self, carrier: i64) -> Option<u16> {
        self.of.get(&carrier).copied()
    }

    /// The place of a carrier, its own or a new one. `None`: all are taken. [`settle`](Self::settle) follows.
    pub(super) fn take(&mut self, carrier: i64) -> Option<u16> {
        if let Some(slot) = self.of(carrier) {
            self.gone.retain(|gone| *gone != carrier);
            return Some(slot);
        }
        let slot = match self.of.len() {
            used if used < self.limit => used as u16,
            _ => self.gone.pop_front().and_then(|gone| self.of.remove(&gone))?,
        };
        self.of.insert(carrier, slot);
        Some(slot)
    }

    /// Notes that rules in the kernel lead to these carriers and to no others.
    pub(super) fn settle(&mut self, carriers: impl IntoIterator<Item = i64>) {
        let there: HashSet<i64> = carriers.into_iter().collect();
        self.gone.retain(|gone| !there.contains(gone));
        let known: HashSet<i64> = self.gone.iter().copied().collect();
        let mut left: Vec<i64> =
            self.of.keys().filter(|id| !there.contains(id) && !known.contains(id)).copied().collect();
        left.sort_unstable();
        self.gone.extend(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_carrier_keeps_its_place_until_all_are_taken() {
        let mut slots = Slots { limit: 3, ..Slots::default() };
        assert_eq!([7, 8, 9].map(|id| slots.take(id)), [Some(0), Some(1), Some(2)]);
        slots.settle([7, 8, 9]);
        assert_eq!(slots.take(10), None, "rules lead to all three");
        slots.settle([9]);
        slots.settle([]);
        assert_eq!([8, 9, 7].map(|id| slots.take(id)), [Some(1), Some(2), Some(0)], "all have returned");
        slots.settle([7, 9]);
        slots.settle([9]);
        assert_eq!(slots.take(10), Some(1), "the place of 8, which is gone longest");
        assert_eq!((slots.of(8), slots.take(7)), (None, Some(0)));
        assert_eq!(slots.take(8), None, "7 has come back, though its rules are not there yet");
        // That change came to nothing.
        slots.settle([9]);
        assert_eq!(slots.take(8), Some(0));
    }
}
