//! The room in a lane's queue: who may queue more, and in which order those get some that wait for it.
//!
//! What must hold: nobody goes before those that wait, or who is woken by its own turn would take all the room that its turn
//! made; what is promised is room that is taken; a lane with an empty queue leaves nobody waiting.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{QUEUE, Shared};
use crate::tunnel::stream::{self, LARGEST_SEND};

/// Bytes of all streams of a lane.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// That are in the queue.
    queued: AtomicUsize,
    /// That those may queue yet whose turn it is.
    promised: AtomicUsize,
    /// How many streams wait; changed under the lock of their line only.
    waiting: AtomicUsize,
}

/// Those that wait, in two lines that take turns: who has used up its last turn stands in the second one. So a message beside
/// many that always have something to send waits for one of them, not for all, and neither line for the other's end.
#[derive(Default)]
pub(super) struct Line {
    waiting: [VecDeque<Arc<stream::Shared>>; 2],
    second_next: bool,
}

impl Line {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.iter().all(VecDeque::is_empty)
    }

    fn len(&self) -> usize {
        self.waiting.iter().map(VecDeque::len).sum()
    }

    fn pop(&mut self) -> Option<Arc<stream::Shared>> {
        let [first, second] = &mut self.waiting;
        let (now, then) = if self.second_next { (second, first) } else { (first, second) };
        self.second_next = !self.second_next;
        now.pop_front().or_else(|| then.pop_front())
    }
}

impl Shared {
    pub(in crate::tunnel) fn queue(&self, n: usize) {
        self.room.queued.fetch_add(n, Ordering::Relaxed);
    }

    pub(in crate::tunnel) fn unqueue(&self, n: usize) {
        self.room.queued.fetch_sub(n, Ordering::Relaxed);
    }

    /// A stream's turn is so many bytes now, and was so many.
    pub(in crate::tunnel) fn promise(&self, now: usize, before: usize) {
        // Wraps, as their sum does not.
        self.room.promised.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
    }

    pub(super) fn queued(&self) -> usize {
        self.room.queued.load(Ordering::Relaxed)
    }

    pub(super) fn is_full(&self) -> bool {
        self.queued() >= QUEUE
    }

    /// True where a stream may queue more though it is not its turn.
    pub(in crate::tunnel) fn has_room(&self) -> bool {
        !self.is_full() && self.room.waiting.load(Ordering::Relaxed) == 0
    }

    /// Has a stream woken when it is its turn. `false`: there is room now.
    pub(in crate::tunnel) fn wait_for_room(&self, stream: &Arc<stream::Shared>, used_up: bool) -> bool {
        let mut queues = self.queues();
        // The lane makes room before it takes this lock to wake who waits: so look again under it.
        let wait = !self.has_room() && queues.ended.is_none();
        if wait {
            queues.line.waiting[usize::from(used_up)].push_back(stream.clone());
            self.room.waiting.store(queues.line.len(), Ordering::Relaxed);
        }
        wait
    }

    /// Gives those that wait longest their turn, as many as there is room for a message of each.
    pub(in crate::tunnel) fn wake_waiting(&self) {
        let queued = self.queued();
        let taken = queued + self.room.promised.load(Ordering::Relaxed);
        let turns = QUEUE.saturating_sub(taken).div_ceil(LARGEST_SEND);
        // Whose turn it is may be slow to use it, and nothing else is there to send.
        let mut turns = if queued == 0 { turns.max(1) } else { turns };
        while turns > 0 {
            let mut queues = self.queues();
            let Some(stream) = queues.line.pop() else { return };
            self.room.waiting.store(queues.line.len(), Ordering::Relaxed);
            drop(queues);
            // Who is gone by now does not use up a place.
            turns -= usize::from(stream.wake_sender());
        }
    }

    /// The lane ended: nobody waits any more.
    pub(super) fn close_line(&self, line: &mut Line) {
        *line = Line::default();
        self.room.waiting.store(0, Ordering::Relaxed);
    }
}
