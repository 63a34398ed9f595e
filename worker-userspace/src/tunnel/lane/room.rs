//! The room in a lane's queue: who may queue more, and in which order those get some that wait for it.
//!
//! What must hold: nobody goes before those that wait, or who is woken by its own turn would take all the room that its turn
//! made; what is promised is room that is taken; a lane with an empty queue leaves nobody waiting for longer than a tick.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{QUEUE, Shared};
use crate::tunnel::stream::{self, LARGEST_SEND};

/// Bytes of a turn in the first line, and in the second.
pub(in crate::tunnel) const TURNS: [usize; 2] = [4 * 1024, LARGEST_SEND];

/// Bytes of all streams of a lane.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// That are in the queue.
    queued: AtomicUsize,
    /// That those may queue yet whose turn it is.
    promised: AtomicUsize,
    /// How many streams wait; changed under the lock of their line only.
    waiting: AtomicUsize,
    /// That were queued by turns in the first line since the last one in the second.
    first: AtomicUsize,
}

/// Those that wait, in two lines: in the second one are those that had more to say than a turn of the first. One of them has its
/// turn when the first line is empty, or has queued as many bytes as it will. So a message beside many that always have
/// something to send does not wait for all of them; and however many have messages, the others go on.
#[derive(Default)]
pub(super) struct Line {
    waiting: [VecDeque<Arc<stream::Shared>>; 2],
}

impl Line {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.iter().all(VecDeque::is_empty)
    }

    fn len(&self) -> usize {
        self.waiting.iter().map(VecDeque::len).sum()
    }

    fn pop(&mut self, queued_by_first: &AtomicUsize) -> Option<Arc<stream::Shared>> {
        let [first, second] = &mut self.waiting;
        if queued_by_first.load(Ordering::Relaxed) < TURNS[1]
            && let Some(stream) = first.pop_front()
        {
            return Some(stream);
        }
        queued_by_first.store(0, Ordering::Relaxed);
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

    /// So many of them were queued by a turn in the first line.
    pub(in crate::tunnel) fn queued_by_first(&self, n: usize) {
        self.room.first.fetch_add(n, Ordering::Relaxed);
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
        self.wake(self.room());
    }

    /// The same, and one at least where nothing is there to send, whatever is promised: whose turn it is may never use it.
    pub(super) fn wake_forgotten(&self) {
        self.wake(if self.queued() == 0 { self.room().max(1) } else { self.room() });
    }

    fn wake(&self, mut room: usize) {
        while room > 0 {
            let mut queues = self.queues();
            let Some(stream) = queues.line.pop(&self.room.first) else { return };
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
