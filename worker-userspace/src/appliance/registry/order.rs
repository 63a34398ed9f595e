//! Which node of a group carries new streams: the primary, and the order of its standbys.
//!
//! One authority decides, the appliance, from three things: the rank (priority, then who registered first, then
//! the id, so that there is never a tie), who is up, and who has proven steady. A node that was lost comes back as a
//! standby and must stay up for a while before it is primary again, longer with each loss: a link that flaps moves
//! the streams' carrier once, not each time. Nothing here reads a clock.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::tunnel::message::Id;

/// Losses in a row that lengthen the wait; beyond them it stays at 64 times the first.
const DOUBLINGS: u32 = 6;
/// A node that was up for this many waits has proven steady: its next loss counts as the first.
const STEADY: u32 = 10;
/// Nodes that are remembered while down.
const REMEMBERED: usize = 256;

/// A node's place among those of its group; the lowest is primary when all are up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// An administrator's number; nodes without one come behind all that have one.
    priority: (bool, i32),
    first_seen: SystemTime,
    id: Id,
}

impl Rank {
    pub(super) fn new(priority: Option<i32>, first_seen: SystemTime, id: Id) -> Rank {
        Rank { priority: (priority.is_none(), priority.unwrap_or_default()), first_seen, id }
    }
}

#[derive(Debug)]
struct Standing {
    rank: Rank,
    up_since: Option<Instant>,
    /// Times that it was lost before it had proven steady.
    losses: u32,
    /// Rises with each that comes down or is ranked: who is down with the lowest has been so the longest.
    down: u64,
}

/// The nodes of one group that have connected in this daemon's life.
#[derive(Debug)]
pub(super) struct Order {
    settle: Duration,
    nodes: HashMap<Id, Standing>,
    primary: Option<Id>,
    /// The last number of a [`Standing::down`].
    downs: u64,
}

impl Order {
    /// An order without nodes. Who was lost must be up for `settle` before it is primary again.
    pub(super) fn new(settle: Duration) -> Order {
        Order { settle, nodes: HashMap::new(), primary: None, downs: 0 }
    }

    /// The node that carries new streams.
    pub(super) fn primary(&self) -> Option<Id> {
        self.primary
    }

    /// The rank of a node that is remembered.
    pub(super) fn rank_of(&self, id: Id) -> Option<Rank> {
        self.nodes.get(&id).map(|node| node.rank)
    }

    /// Notes a node's rank; it may have changed. Where it is one too many, who has been down longest is forgotten.
    pub(super) fn rank(&mut self, id: Id, rank: Rank) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.rank = rank;
            return;
        }
        if self.nodes.len() >= REMEMBERED {
            let down = self.nodes.iter().filter(|(_, node)| node.up_since.is_none());
            if let Some(longest) = down.min_by_key(|(_, node)| node.down).map(|(id, _)| *id) {
                self.nodes.remove(&longest);
            }
        }
        self.downs += 1;
        self.nodes.insert(id, Standing { rank, up_since: None, losses: 0, down: self.downs });
    }

    /// Notes whether a ranked node is up. Saying again what is known changes nothing.
    pub(super) fn set_up(&mut self, id: Id, up: bool, now: Instant) {
        let steady = self.settle * STEADY;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        match (node.up_since, up) {
            (None, true) => node.up_since = Some(now),
            (Some(since), false) => {
                node.up_since = None;
                self.downs += 1;
                node.down = self.downs;
                node.losses = if now.duration_since(since) >= steady { 1 } else { node.losses + 1 };
            }
            _ => {}
        }
    }

    /// True where a node that is up has not proven steady since it was lost.
    fn waits(&self, node: &Standing, now: Instant) -> bool {
        let wait = match node.losses {
            0 => Duration::ZERO,
            n => self.settle * (1 << (n - 1).min(DOUBLINGS)),
        };
        node.up_since.is_none_or(|since| since + wait > now)
    }

    /// Chooses the primary; true where another node is primary now, or none any more. To be asked after each
    /// change, and from time to time.
    pub(super) fn elect(&mut self, now: Instant) -> bool {
        let up = || self.nodes.values().filter(|node| node.up_since.is_some());
        let carrying = self.primary.and_then(|id| self.nodes.get(&id)).filter(|node| node.up_since.is_some());
        let best = match carrying {
            Some(current) => {
                let better = |node: &&Standing| node.rank < current.rank && !self.waits(node, now);
                up().filter(better).min_by_key(|node| node.rank).or(Some(current))
            }
            // Somebody must: who has proven steady first.
            None => up().min_by_key(|node| (self.waits(node, now), node.rank)),
        };
        let best = best.map(|node| node.rank.id);
        let changed = self.primary != best;
        self.primary = best;
        changed
    }

    /// The nodes that are up: the primary, then the others by rank.
    pub(super) fn up(&self) -> Vec<Id> {
        let mut up: Vec<_> = self.nodes.values().filter(|node| node.up_since.is_some()).collect();
        up.sort_by_key(|node| (self.primary != Some(node.rank.id), node.rank));
        up.iter().map(|node| node.rank.id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::UNIX_EPOCH;

    const SETTLE: Duration = Duration::from_secs(60);

    fn id(n: u8) -> Id {
        [n; 16]
    }

    /// Node `n` registered at second `n`.
    fn order(nodes: &[u8]) -> Order {
        let mut order = Order::new(SETTLE);
        for n in nodes {
            let seen = UNIX_EPOCH + Duration::from_secs(u64::from(*n));
            order.rank(id(*n), Rank::new(None, seen, id(*n)));
        }
        order
    }

    #[test]
    fn the_first_registered_is_primary_whoever_comes_first() {
        let (mut order, now) = (order(&[1, 2, 3]), Instant::now());
        assert!(!order.elect(now));
        order.set_up(id(2), true, now);
        assert!(order.elect(now));
        assert_eq!(order.primary(), Some(id(2)));
        // It was never lost: nothing speaks against it.
        order.set_up(id(1), true, now);
        order.set_up(id(3), true, now);
        assert!(order.elect(now));
        assert_eq!(order.up(), [id(1), id(2), id(3)]);
    }

    #[test]
    fn a_priority_comes_before_the_date() {
        let (mut order, now) = (order(&[1, 2]), Instant::now());
        order.set_up(id(1), true, now);
        order.set_up(id(2), true, now);
        order.elect(now);
        order.rank(id(2), Rank::new(Some(-5), SystemTime::now(), id(2)));
        assert!(order.elect(now));
        assert_eq!(order.primary(), Some(id(2)));
        order.rank(id(1), Rank::new(Some(-6), SystemTime::now(), id(1)));
        assert!(order.elect(now));
        assert_eq!(order.primary(), Some(id(1)));
    }

    #[test]
    fn a_lost_primary_is_replaced_at_once_and_returns_after_a_steady_while() {
        let (mut order, start) = (order(&[1, 2]), Instant::now());
        order.set_up(id(1), true, start);
        order.set_up(id(2), true, start);
        order.elect(start);
        let mut now = start + Duration::from_secs(5);
        // Each loss doubles the wait.
        for wait in [SETTLE, SETTLE * 2, SETTLE * 4] {
            order.set_up(id(1), false, now);
            assert!(order.elect(now));
            assert_eq!(order.primary(), Some(id(2)));
            order.set_up(id(1), true, now);
            assert!(!order.elect(now + wait - Duration::from_millis(1)));
            now += wait;
            assert!(order.elect(now));
            assert_eq!(order.primary(), Some(id(1)));
        }
        // Steady for long: forgiven.
        now += SETTLE * STEADY;
        order.set_up(id(1), false, now);
        order.elect(now);
        order.set_up(id(1), true, now);
        assert!(!order.elect(now + SETTLE - Duration::from_millis(1)));
        assert!(order.elect(now + SETTLE));
    }

    #[test]
    fn without_a_primary_a_steady_node_comes_before_one_that_just_returned() {
        let (mut order, now) = (order(&[1, 2, 3]), Instant::now());
        for n in [1, 2, 3] {
            order.set_up(id(n), true, now);
        }
        order.elect(now);
        order.set_up(id(1), false, now);
        order.set_up(id(1), true, now);
        order.set_up(id(2), false, now);
        order.elect(now);
        assert_eq!(order.primary(), Some(id(1)), "it was up again before anybody asked");
        order.set_up(id(1), false, now);
        order.elect(now);
        order.set_up(id(1), true, now);
        order.set_up(id(2), true, now);
        order.elect(now);
        assert_eq!(order.primary(), Some(id(3)));
        order.set_up(id(3), false, now);
        // Better one that may flap than none.
        assert!(order.elect(now));
        assert_eq!(order.primary(), Some(id(1)));
        order.set_up(id(1), false, now);
        order.set_up(id(2), false, now);
        assert!(order.elect(now));
        assert_eq!((order.primary(), order.up()), (None, vec![]));
    }

    proptest! {
        /// Whatever comes and goes: the primary is up where anybody is, and asking twice changes nothing.
        #[test]
        fn somebody_carries_whenever_somebody_is_up(steps in prop::collection::vec((0u8..4, any::<bool>(), 0u64..200), 0..60)) {
            let (mut order, mut now) = (order(&[0, 1, 2, 3]), Instant::now());
            for (node, up, wait) in steps {
                now += Duration::from_secs(wait);
                order.set_up(id(node), up, now);
                order.elect(now);
                prop_assert_eq!(order.primary(), order.up().first().copied());
                prop_assert!(!order.elect(now));
            }
            // In the end the best of those that are up carries.
            now += SETTLE * (1 << DOUBLINGS);
            order.elect(now);
            let up = order.up();
            prop_assert_eq!(up.first(), up.iter().min());
        }

        #[test]
        fn what_is_remembered_is_bounded(ids in prop::collection::vec(any::<u16>(), 0..600)) {
            let (mut order, now) = (Order::new(SETTLE), Instant::now());
            for n in ids {
                let mut id = id(0);
                id[..2].copy_from_slice(&n.to_be_bytes());
                order.rank(id, Rank::new(None, UNIX_EPOCH, id));
                order.set_up(id, true, now);
                order.set_up(id, false, now);
            }
            prop_assert!(order.nodes.len() <= REMEMBERED);
        }

        /// Between its rank and its being up, a newcomer is never the one that is forgotten for others.
        #[test]
        fn who_comes_is_not_forgotten_for_who_has_gone(gone in 0u16..600, stay in prop::collection::vec(any::<bool>(), 1..40)) {
            let (mut order, now) = (Order::new(SETTLE), Instant::now());
            let node = |n: usize| {
                let mut id = id(0);
                id[..2].copy_from_slice(&(n as u16).to_be_bytes());
                id
            };
            // Most have gone; then some come to stay.
            let stays = |n: usize| n.checked_sub(usize::from(gone)).is_some_and(|n| stay[n]);
            for n in 0..usize::from(gone) + stay.len() {
                order.rank(node(n), Rank::new(None, UNIX_EPOCH, node(n)));
                // Others are looked at before it is up.
                for up in order.up() {
                    order.set_up(up, true, now);
                }
                order.set_up(node(n), true, now);
                order.elect(now);
                prop_assert!(order.up().contains(&node(n)), "{} is not known", n);
                order.set_up(node(n), stays(n), now);
                order.elect(now);
                prop_assert!(order.nodes.len() <= REMEMBERED);
                let last = n.saturating_sub(100);
                prop_assert!((last..n).all(|n| order.rank_of(node(n)).is_some()), "who went last is remembered");
            }
            let mut up = order.up();
            up.sort_unstable();
            let expected = (0..usize::from(gone) + stay.len()).filter(|n| stays(*n)).map(node);
            prop_assert_eq!(up, expected.collect::<Vec<_>>());
        }
    }
}
