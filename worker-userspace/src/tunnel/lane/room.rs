//! The room in a lane's queue: who may queue more, and in which order those get some that wait for it.
//!
//! What must hold: nobody goes before those that wait, or who is woken by its own turn would take all the room that its turn
//! made; what is promised is room that is taken; a lane with an empty queue leaves nobody waiting.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{QUEUE, Shared};
use crate::tunnel::stream::{self, LARGEST_SEND};

/// Bytes of a turn in the first line, and in the second.
pub(in crate::tunnel) const TURNS: [usize; 2] = [4 * 1024, LARGEST_SEND];
/// So many of the first line go before one of the second: as many bytes.
const FIRST: usize = TURNS[1] / TURNS[0];

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

/// Those that wait, in two lines that share the room: in the second one are those that had more to say than a turn of the first.
/// So a message beside many that always have something to send waits for one of them, not for all; and however many have
/// messages, the others go on.
#[derive(Default)]
pub(super) struct Line {
    waiting: [VecDeque<Arc<stream::Shared>>; 2],
    /// How many of the first line went since one of the second did.
    first: usize,
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
        if self.first < FIRST
            && let Some(stream) = first.pop_front()
        {
            self.first += 1;
            return Some(stream);
        }
        self.first = 0;
        second.pop_front().or_else(|| first.pop_front())
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
        self.room() > 0 && self.room.waiting.load(Ordering::Relaxed) == 0
    }

    fn room(&self) -> usize {
        let (queued, promised) = (self.queued(), self.room.promised.load(Ordering::Relaxed));
        match QUEUE.saturating_sub(queued + promised) {
            // Whose turn it is may be slow to use it, and nothing else is there to send.
            0 if queued == 0 && promised < 2 * QUEUE => 1,
            room => room,
        }
    }

    /// Has a stream woken when it is its turn. `false`: there is room now, or the lane ended.
    pub(in crate::tunnel) fn wait_for_room(&self, stream: &Arc<stream::Shared>, line: usize) -> bool {
        let mut queues = self.queues();
        // The lane makes room before it takes this lock to wake who waits: so look again under it.
        let wait = !self.has_room() && queues.ended.is_none();
        if wait {
            queues.line.waiting[line].push_back(stream.clone());
            self.room.waiting.store(queues.line.len(), Ordering::Relaxed);
        }
        wait
    }

    /// Gives those that wait longest their turn, as many as there is room for.
    pub(in crate::tunnel) fn wake_waiting(&self) {
        let mut room = self.room();
        while room > 0 {
            let mut queues = self.queues();
            let Some(stream) = queues.line.pop() else { return };
            self.room.waiting.store(queues.line.len(), Ordering::Relaxed);
            drop(queues);
            room = room.saturating_sub(stream.wake_sender());
        }
    }

    /// The lane ended: nobody waits any more.
    pub(super) fn close_line(&self, line: &mut Line) {
        *line = Line::default();
        self.room.waiting.store(0, Ordering::Relaxed);
    }
}
