//! One connection in a lane: what is queued each way, half-close, reset.
//!
//! A stream is two ends of one [`Shared`]: the [`Stream`] handle that the splice holds, and the lane,
//! which asks it for frames and hands it what arrives. Nothing here does I/O or waits.
//!
//! What must hold: a handle that is dropped before both directions ended resets the stream; a reset goes
//! behind the bytes that were queued before it; bytes are taken off a socket only when the peer's credit and the lane's queue have room for them; the reader of
//! a lane never waits for a stream.
//!
//! Lock order: a stream's lock may be held when the lane's is taken, never the other way round.

mod cutter;
mod handle;
mod queue;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::BytesMut;

use super::credit::{OverCredit, ReceiveWindow, SendCredit};
use super::frame::{self, Type};
use super::lane;
use super::message::{self, Open, OpenOk};
use crate::refusal::Refusal;

pub use cutter::{Account, Cutter};
pub use handle::Stream;
use queue::{Arrived, Pending};

/// Most bytes that one `send` takes: as many as a message of the lane has room for. What is left over would be a
/// message, a record and a packet of its own.
pub const LARGEST_SEND: usize = lane::BATCH - frame::HEADER;

/// Where so much of a stream waits, a lane reads no more than that in its turn. Else one that reads faster than its bytes move on
/// fills the whole window first, and what waits so long is not in the processor's cache any more.
pub(super) const PLENTY: usize = 128 * 1024;

/// Pieces up to this size are put together, on the wire and in queues.
pub(super) const SMALL: usize = 2048;

/// A rest that is not worth a frame or a read of its own.
pub(super) const LITTLE: usize = 256;

/// How far this end's half of the stream is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fin {
    Open,
    Queued,
    Sent,
}

#[derive(Debug)]
struct State {
    // Towards the peer.
    credit: SendCredit,
    pending: Pending,
    fin: Fin,
    in_ready: bool,
    in_waiting: bool,
    /// Bytes that may be queued now, whatever room there is: the stream has waited for it. And the line that it waits in.
    turn: usize,
    line: u8,
    send_waker: Option<Waker>,
    // What goes before all data. What is there for a moment only takes no room of an idle stream.
    open: Option<Box<Open>>,
    open_ok: Option<Box<OpenOk>>,
    credit_due: Option<u64>,
    last_words: Option<Box<(Type, Refusal)>>,
    in_urgent: bool,
    // From the peer.
    window: ReceiveWindow,
    arrived: Arrived,
    fin_received: bool,
    recv_waker: Option<Waker>,
    /// The peer's `OPEN` has no answer yet.
    unanswered: bool,
    // The answer to our own `OPEN`.
    awaited: bool,
    answer: Option<OpenOk>,
    answer_waker: Option<Waker>,
    /// Why the stream is gone in both directions.
    failure: Option<Box<Refusal>>,
}

impl State {
    /// Both directions ended in order, and nothing more is to come.
    fn is_done(&self) -> bool {
        self.fin == Fin::Sent && self.fin_received && !self.awaited
    }

    fn whole_turn(&self) -> usize {
        lane::TURNS[usize::from(self.line)]
    }

    /// Bytes of its turn that were used; none where it is not its turn.
    fn used(&self) -> usize {
        if self.turn == 0 { 0 } else { self.whole_turn() - self.turn }
    }

    fn put_last_words(&mut self, id: u32, out: &mut BytesMut) {
        if let Some(words) = self.last_words.take() {
            let (kind, refusal) = *words;
            frame::put_message(out, id, kind, |out| message::write_refusal(&refusal, out));
        }
    }

    fn wake_all(&mut self) {
        let wakers = [self.send_waker.take(), self.recv_waker.take(), self.answer_waker.take()];
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

/// What both the handle and the lane hold.
pub(super) struct Shared {
    id: u32,
    lane: Arc<lane::Shared>,
    state: Mutex<State>,
}

/// What [`Shared::take_data`] gives the lane to send.
pub(super) struct Taken {
    /// Payload bytes.
    pub(super) bytes: usize,
    pub(super) fin: bool,
    /// How the stream was given up, behind all its data.
    pub(super) last_words: Option<(Type, Refusal)>,
    /// More is pending: the stream goes back into the ring.
    pub(super) more: bool,
}

impl Shared {
    fn new(
        id: u32,
        lane: Arc<lane::Shared>,
        credit: u32,
        window: ReceiveWindow,
        open: Option<Box<Open>>,
    ) -> Arc<Shared> {
        let state = State {
            credit: SendCredit::new(credit),
            pending: Pending::default(),
            fin: Fin::Open,
            in_ready: false,
            in_waiting: false,
            turn: 0,
            line: 0,
            send_waker: None,
            // The lane that makes the stream queues its `OPEN` too.
            in_urgent: open.is_some(),
            unanswered: open.is_none(),
            awaited: open.is_some(),
            open,
            open_ok: None,
            credit_due: None,
            last_words: None,
            window,
            arrived: Arrived::default(),
            fin_received: false,
            recv_waker: None,
            answer: None,
            answer_waker: None,
            failure: None,
        };
        Arc::new(Shared { id, lane, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere does not make the account wrong: each change below is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Writes the frames that go before all data.
    pub(super) fn take_urgent(&self, out: &mut BytesMut) {
        let mut state = self.state();
        state.in_urgent = false;
        if let Some(open) = state.open.take() {
            frame::put_message(out, self.id, Type::Open, |out| open.write(out));
        }
        if let Some(ok) = state.open_ok.take() {
            frame::put_message(out, self.id, Type::OpenOk, |out| ok.write(out));
        }
        if let Some(limit) = state.credit_due.take() {
            frame::put_u64(out, self.id, Type::Credit, limit);
        }
        if state.pending.is_empty() {
            state.put_last_words(self.id, out);
        }
    }

    /// Moves at most `max` bytes of what is pending into one frame, behind `out` and then `scratch`: small pieces are put
    /// together there.
    pub(super) fn take_data(
        &self,
        max: usize,
        scratch: &mut BytesMut,
        out: &mut VecDeque<BytesMut>,
    ) -> Taken {
        let mut state = self.state();
        let bytes = state.pending.bytes().min(max);
        if bytes > 0 {
            frame::put_header(scratch, self.id, Type::Data, bytes);
            state.pending.take(bytes, scratch, out);
        }
        let more = !state.pending.is_empty();
        let fin = !more && state.fin == Fin::Queued && state.failure.is_none();
        if fin {
            state.fin = Fin::Sent;
        }
        let last_words = if more { None } else { state.last_words.take().map(|words| *words) };
        state.in_ready = more;
        let used = state.used();
        if !more && used > 0 {
            // What is left of it was for what there was then. Who has used nothing of it has not run yet.
            state.line = u8::from(used >= lane::TURNS[0]);
            self.set_turn(&mut state, 0);
        }
        let done = state.is_done();
        // Not for the room of each turn: that would be a wakeup and a small read for each. Who waits for the lane's room is woken in its order.
        let wakes = state.pending.bytes() <= LARGEST_SEND && !state.in_waiting;
        let waker = if wakes { state.send_waker.take() } else { None };
        drop(state);
        if done {
            self.lane.forget(self.id);
        }
        waker.into_iter().for_each(Waker::wake);
        Taken { bytes, fin, last_words, more }
    }

    /// The lane's queue has room for a turn of this stream: of so many bytes, or none where it sends no more.
    pub(super) fn wake_sender(&self) -> usize {
        let mut state = self.state();
        state.in_waiting = false;
        let sends = state.fin == Fin::Open && state.failure.is_none();
        let turn = if sends { state.whole_turn() } else { 0 };
        self.set_turn(&mut state, turn);
        let waker = state.send_waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        turn
    }

    /// Bytes arrived. `true`: so many wait that who takes them is to have its turn.
    pub(super) fn on_data(&self, bytes: BytesMut) -> Result<bool, DataFault> {
        let mut state = self.state();
        if state.fin_received {
            return Err(DataFault::AfterFin);
        }
        state.window.on_received(bytes.len())?;
        if state.failure.is_some() {
            return Ok(false);
        }
        let State { arrived, window, .. } = &mut *state;
        arrived.add(bytes, window);
        let plenty = window.held() >= PLENTY as u64;
        let waker = state.recv_waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        Ok(plenty)
    }

    /// The peer ended its direction.
    pub(super) fn on_fin(&self) {
        let mut state = self.state();
        state.fin_received = true;
        let done = state.is_done();
        let waker = state.recv_waker.take();
        drop(state);
        if done {
            self.lane.forget(self.id);
        }
        waker.into_iter().for_each(Waker::wake);
    }

    /// The peer allows more.
    pub(super) fn on_credit(&self, limit: u64) {
        let mut state = self.state();
        let stalled = state.credit.available() == 0;
        state.credit.raise(limit);
        let waker = if stalled { state.send_waker.take() } else { None };
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    /// The peer dialled the target.
    pub(super) fn on_open_ok(&self, ok: OpenOk) {
        let mut state = self.state();
        state.answer = Some(ok);
        state.awaited = false;
        let done = state.is_done();
        let waker = state.answer_waker.take();
        drop(state);
        if done {
            self.lane.forget(self.id);
        }
        waker.into_iter().for_each(Waker::wake);
    }

    /// The stream is gone: the peer reset or refused it, or the lane was lost.
    pub(super) fn on_failure(&self, refusal: Refusal) {
        let mut state = self.state();
        state.failure.get_or_insert_with(|| Box::new(refusal));
        self.set_turn(&mut state, 0);
        self.send_no_more(&mut state);
        state.wake_all();
    }

    fn set_turn(&self, state: &mut State, turn: usize) {
        self.lane.promise(turn, std::mem::replace(&mut state.turn, turn));
    }

    fn urgent(self: &Arc<Self>, state: &mut State) {
        if !std::mem::replace(&mut state.in_urgent, true) {
            self.lane.push_urgent(self.clone());
        }
    }

    fn ready(self: &Arc<Self>, state: &mut State) {
        if !std::mem::replace(&mut state.in_ready, true) {
            self.lane.push_ready(self.clone());
        }
    }

    fn end(self: &Arc<Self>, kind: Type, refusal: Refusal) {
        let mut state = self.state();
        if state.failure.is_some() || state.is_done() {
            return;
        }
        if state.open.is_some() {
            // A peer that never heard of the stream need not hear of its end.
            self.send_no_more(&mut state);
        } else {
            state.last_words = Some(Box::new((kind, refusal.clone())));
            // Behind what is queued: all of that is within the peer's credit, so it waits for nobody.
            if state.pending.is_empty() {
                self.urgent(&mut state);
            }
        }
        state.failure = Some(Box::new(refusal));
        self.set_turn(&mut state, 0);
        state.arrived.clear();
        state.wake_all();
        drop(state);
        self.lane.forget(self.id);
    }

    fn send_no_more(&self, state: &mut State) {
        self.lane.unqueue(std::mem::take(&mut state.pending).bytes());
        state.open = None;
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.window.release(&self.lane.settings().budget);
        self.lane.promise(0, state.turn);
    }
}

/// Why arriving bytes end the lane.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DataFault {
    /// More than was allowed.
    #[error(transparent)]
    OverCredit(#[from] OverCredit),
    /// Behind the direction's end.
    #[error("bytes behind the FIN of their stream")]
    AfterFin,
}

#[cfg(test)]
mod tests;
