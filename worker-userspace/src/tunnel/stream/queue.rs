//! What waits in a stream, in pieces. However long it waits, it takes no more memory than it is allowed to count for.

use std::collections::VecDeque;

use bytes::BytesMut;

use super::{LARGEST_SEND, SMALL};
use crate::tunnel::credit::{self, ReceiveWindow};

/// What a lane hands on in its longest turn, twice: so many bytes wait where all is well, and are copied fast enough where not.
const LONG: u64 = 1024 * 1024;

/// Queues a piece. A socket is read into more room than there are bytes, and of what a peer sends a small piece would keep
/// the whole read buffer alive.
fn append(queue: &mut VecDeque<BytesMut>, piece: BytesMut) {
    match queue.back_mut() {
        Some(last) if last.len() + piece.len() <= SMALL => last.extend_from_slice(&piece),
        _ if piece.len() <= SMALL || piece.capacity() > 4 * piece.len() => queue.push_back(copy(&piece)),
        _ => queue.push_back(piece),
    }
}

fn copy(piece: &BytesMut) -> BytesMut {
    BytesMut::from(&piece[..])
}

/// What is to be sent and is in no message yet.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pieces: VecDeque<BytesMut>,
    bytes: usize,
}

impl Pending {
    /// Where there is to be no more of it: with the end of a message, and of the next, so that there is one while the other
    /// is put together.
    const ENDS: [usize; 2] = [LARGEST_SEND, 2 * LARGEST_SEND];

    pub(super) fn add(&mut self, piece: BytesMut) {
        self.bytes += piece.len();
        append(&mut self.pieces, piece);
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Bytes that may be added: to the end of a message, or of the next where that is next to nothing.
    pub(super) fn room(&self) -> usize {
        let rooms = Self::ENDS.map(|end| end.saturating_sub(self.bytes));
        rooms.into_iter().find(|room| *room > SMALL).map_or(0, |room| room.min(LARGEST_SEND))
    }

    /// Moves the first `n` bytes behind `out` and then `scratch`: small pieces are put together there.
    pub(super) fn take(&mut self, n: usize, scratch: &mut BytesMut, out: &mut VecDeque<BytesMut>) {
        let mut left = n;
        while left > 0
            && let Some(mut piece) = self.pieces.pop_front()
        {
            if piece.len() > left {
                self.pieces.push_front(piece.split_off(left));
            }
            left -= piece.len();
            if piece.len() <= SMALL {
                scratch.extend_from_slice(&piece);
            } else {
                if !scratch.is_empty() {
                    out.push_back(scratch.split());
                }
                out.push_back(piece);
            }
        }
        debug_assert_eq!(left, 0, "no more than there is");
        self.bytes -= n - left;
    }

    #[cfg(test)]
    pub(super) fn pieces(&self) -> &VecDeque<BytesMut> {
        &self.pieces
    }
}

/// What came and was not taken.
///
/// Pieces live in the buffers that the lane's socket was read into, and each keeps all of its buffer. That costs nothing while
/// they move on; of a stream that nobody reads they would keep far more than they count for. So where half of a window
/// waits, or [`LONG`], its pieces get buffers of their own, each piece once; but not of a stream that is fast and moves,
/// for which each copy is a part of its time.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    pieces: VecDeque<BytesMut>,
    bytes: u64,
    /// Offset in the stream up to which pieces have buffers of their own.
    own: u64,
    /// How much had moved on when that last changed, and how much had come by then.
    moved: u64,
    since: u64,
}

impl Arrived {
    /// Adds what came, which `window` has counted.
    pub(super) fn add(&mut self, piece: BytesMut, window: &ReceiveWindow) {
        self.bytes += piece.len() as u64;
        append(&mut self.pieces, piece);
        self.fit(window);
    }

    /// Moves all to `into`. `false`: there was nothing.
    pub(super) fn take(&mut self, into: &mut VecDeque<BytesMut>) -> bool {
        // An idle stream keeps no queue.
        let mut pieces = std::mem::take(&mut self.pieces);
        if std::mem::take(&mut self.bytes) == 0 {
            return false;
        }
        match into.is_empty() {
            true => *into = pieces,
            false => into.append(&mut pieces),
        }
        true
    }

    /// Puts what was taken and has not moved on before all else; nothing of what was taken is elsewhere.
    pub(super) fn put_back(&mut self, from: &mut VecDeque<BytesMut>, window: &ReceiveWindow) {
        let mut pieces = std::mem::take(from);
        // The rest of a piece still lives in a read buffer, and would take all of it once more where it is added to.
        if let Some(rest) = pieces.front_mut().filter(|rest| rest.len() <= SMALL) {
            *rest = copy(rest);
        }
        pieces.append(&mut self.pieces);
        (self.pieces, self.bytes) = (pieces, window.held());
        debug_assert_eq!(self.bytes, self.pieces.iter().map(|piece| piece.len() as u64).sum::<u64>());
        self.fit(window);
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        (self.pieces, self.bytes) = (VecDeque::new(), 0);
    }

    #[cfg(test)]
    pub(super) fn pieces(&self) -> &VecDeque<BytesMut> {
        &self.pieces
    }

    fn fit(&mut self, window: &ReceiveWindow) {
        // Where some of it is taken, it is about to move on.
        let all_is_here = self.bytes == window.held();
        if !all_is_here || self.bytes <= LONG.min(u64::from(window.window() / 2)) {
            return;
        }
        let received = window.received();
        let moved = received - window.held();
        if self.moved != moved {
            (self.moved, self.since) = (moved, received);
        }
        let stands_still = received - self.since >= LONG.min(u64::from(window.window() / 8));
        // A window is larger than usual only where a stream is fast.
        if window.window() > credit::USUAL && !stands_still {
            return;
        }
        let mut end = received;
        // From the newest on: those before `own` are.
        for piece in self.pieces.iter_mut().rev() {
            if end <= self.own {
                break;
            }
            end -= piece.len() as u64;
            *piece = copy(piece);
        }
        self.own = received;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::credit::Budget;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::time::Duration;
    use tokio::time::Instant;

    /// Where the bytes of each piece are.
    fn places(arrived: &Arrived) -> Vec<*const u8> {
        arrived.pieces.iter().map(|piece| piece.as_ptr()).collect()
    }

    /// A stream's usual window, and the offset that its peer may send up to.
    fn window(budget: &Budget) -> (ReceiveWindow, u64) {
        let mut window = ReceiveWindow::new(budget).unwrap();
        let limit = window.lift(budget).unwrap();
        (window, limit)
    }

    #[test]
    fn what_waits_long_keeps_no_read_buffer_and_is_copied_once() {
        let (mut window, _) = window(&Budget::new(1 << 30));
        let half = window.window() as usize / 2;
        let mut buffer = BytesMut::zeroed(4 * half);
        let mut arrived = Arrived::default();
        let mut add = |arrived: &mut Arrived, window: &mut ReceiveWindow| {
            let piece = buffer.split_to(half / 4);
            let place = piece.as_ptr();
            window.on_received(piece.len()).unwrap();
            arrived.add(piece, window);
            place
        };
        let read: Vec<_> = (0..4).map(|_| add(&mut arrived, &mut window)).collect();
        assert_eq!(places(&arrived), read, "half of a window is where it was read");
        let fifth = add(&mut arrived, &mut window);
        let own = places(&arrived);
        assert!(own.iter().zip(read.iter().chain([&fifth])).all(|(own, read)| own != read));
        add(&mut arrived, &mut window);
        assert_eq!(places(&arrived)[..5], own, "not again");
        let mut taken = VecDeque::new();
        assert!(arrived.take(&mut taken) && !arrived.take(&mut taken));
        window.on_consumed(taken.pop_front().unwrap().len());
        arrived.put_back(&mut taken, &window);
        assert_eq!(places(&arrived)[..4], own[1..], "nor when it was given back");
    }

    /// Delivers a megabyte in each millisecond until its window is large.
    fn fast(window: &mut ReceiveWindow, budget: &Budget) -> u64 {
        let (mut now, mut limit) = (Instant::now(), window.received());
        for _ in 0..20 {
            now += Duration::from_millis(1);
            let n = (limit - window.received()) as usize;
            window.on_received(n).unwrap();
            window.on_consumed(n);
            limit = window.grant(now, Duration::from_millis(1), budget);
        }
        limit
    }

    #[tokio::test]
    async fn of_a_fast_stream_pieces_are_copied_only_when_it_stands_still() {
        let budget = Budget::new(1 << 30);
        let (mut window, _) = window(&budget);
        let limit = fast(&mut window, &budget);
        assert!(limit - window.received() > 8 * LONG, "{}", window.window());
        let piece = 4096;
        let mut arrived = Arrived::default();
        let come = |arrived: &mut Arrived, window: &mut ReceiveWindow, bytes: u64| {
            let mut copied = 0;
            for _ in 0..bytes / piece {
                let read = BytesMut::zeroed(2 * piece as usize).split_to(piece as usize);
                let place = read.as_ptr();
                window.on_received(read.len()).unwrap();
                arrived.add(read, window);
                copied += usize::from(arrived.pieces.back().unwrap().as_ptr() != place);
            }
            copied
        };
        assert_eq!(come(&mut arrived, &mut window, LONG + LONG / 2), 0);
        // Something moves on now and then.
        for _ in 0..4 {
            let first = arrived.pieces.pop_front().unwrap().len();
            window.on_consumed(first);
            arrived.bytes -= first as u64;
            assert_eq!(come(&mut arrived, &mut window, LONG / 2), 0);
        }
        // And then no more.
        assert!(come(&mut arrived, &mut window, 2 * LONG) > 0);
        assert_eq!(arrived.own, window.received());
    }

    proptest! {
        /// Nothing is lost, altered or swapped by giving back, whatever is written of it.
        #[test]
        fn bytes_stay_in_their_order(steps in vec((1_usize..40_000, 0_usize..60_000), 1..60)) {
            let budget = Budget::new(1 << 30);
            let (mut window, mut limit) = window(&budget);
            let (mut arrived, mut taken) = (Arrived::default(), VecDeque::new());
            let (mut next, mut seen) = (0_u64, 0_u64);
            let byte = |at: u64| (at % 251) as u8;
            for (come, mut go) in steps {
                // Before it is taken, and while it is.
                for come in [come, come / 2] {
                    let come = come.min((limit - next) as usize);
                    if come > 0 {
                        let piece: Vec<u8> = (next..next + come as u64).map(byte).collect();
                        next += come as u64;
                        window.on_received(come).unwrap();
                        arrived.add(piece[..].into(), &window);
                    }
                    if taken.is_empty() {
                        arrived.take(&mut taken);
                    }
                }
                while go > 0 && let Some(mut piece) = taken.pop_front() {
                    let part = piece.split_to(go.min(piece.len()));
                    go -= part.len();
                    if window.on_consumed(part.len()) {
                        limit = window.grant(Instant::now(), Duration::from_millis(1), &budget);
                    }
                    for &found in &part {
                        prop_assert_eq!(found, byte(seen));
                        seen += 1;
                    }
                    if !piece.is_empty() {
                        taken.push_front(piece);
                    }
                }
                arrived.put_back(&mut taken, &window);
                prop_assert_eq!(seen + window.held(), next);
            }
        }
    }
}
