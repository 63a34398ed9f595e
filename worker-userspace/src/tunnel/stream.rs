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
mod queue;

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use tokio::time::Instant;

use super::credit::{OverCredit, ReceiveWindow, SendCredit};
use super::frame::{self, Type};
use super::lane;
use super::message::{self, Open, OpenOk};
use crate::refusal::{Code, Refusal};

pub use cutter::{Account, Cutter};
use queue::{Arrived, Pending};

/// Most bytes that one `send` takes: as many as a message of the lane has room for. What is left over would be a
/// message, a record and a packet of its own.
pub const LARGEST_SEND: usize = lane::BATCH - frame::HEADER;

/// Where so much of a stream waits, a lane reads no more than that in its turn. Else one that reads faster than its bytes move on
/// fills the whole window first, and what waits so long is not in the processor's cache any more.
pub(super) const PLENTY: usize = 128 * 1024;

/// Pieces up to this size are put together, on the wire and in queues.
pub(super) const SMALL: usize = 2048;

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
        let done = state.is_done();
        // Not for the room of each turn: that would be a wakeup and a small read for each.
        let waker = if state.pending.bytes() <= LARGEST_SEND { state.send_waker.take() } else { None };
        drop(state);
        if done {
            self.lane.forget(self.id);
        }
        waker.into_iter().for_each(Waker::wake);
        Taken { bytes, fin, last_words, more }
    }

    /// The lane's queue has room again. `false`: nobody waits for it here any more.
    pub(super) fn wake_sender(&self) -> bool {
        let mut state = self.state();
        state.in_waiting = false;
        let waker = state.send_waker.take();
        drop(state);
        let waits = waker.is_some();
        waker.into_iter().for_each(Waker::wake);
        waits
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
        self.send_no_more(&mut state);
        state.wake_all();
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

/// The handle of one stream. Dropping it before both directions ended resets the stream.
pub struct Stream {
    shared: Arc<Shared>,
}

impl Stream {
    /// A stream that this end opens; `credit` is what the peer takes before any answer, `window` what it may send.
    pub(super) fn opening(
        id: u32,
        lane: Arc<lane::Shared>,
        credit: u32,
        window: ReceiveWindow,
        open: Open,
    ) -> Stream {
        let open = Box::new(Open { credit: window.window(), ..open });
        Stream { shared: Shared::new(id, lane, credit, window, Some(open)) }
    }

    /// A stream that the peer opened; `credit` is what its `OPEN` allows, `window` what our greeting did.
    pub(super) fn accepted(id: u32, lane: Arc<lane::Shared>, credit: u32, window: ReceiveWindow) -> Stream {
        Stream { shared: Shared::new(id, lane, credit, window, None) }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The number of its lane in the session, and its own on that lane.
    pub fn place(&self) -> (u8, u32) {
        (self.shared.lane.peer().lane, self.shared.id())
    }

    /// What resets the stream from elsewhere.
    pub fn cutter(&self) -> Cutter {
        Cutter::of(&self.shared)
    }

    /// Waits for the peer's answer to our `OPEN`.
    pub async fn opened(&self) -> Result<OpenOk, Refusal> {
        poll_fn(|cx| self.poll_opened(cx)).await
    }

    fn poll_opened(&self, cx: &mut Context<'_>) -> Poll<Result<OpenOk, Refusal>> {
        let mut state = self.shared.state();
        match (&state.answer, &state.failure) {
            (Some(ok), _) => Poll::Ready(Ok(*ok)),
            (None, Some(refusal)) => Poll::Ready(Err(Refusal::clone(refusal))),
            (None, None) => {
                register(&mut state.answer_waker, cx);
                Poll::Pending
            }
        }
    }

    /// Answers the peer's `OPEN`: the target was dialled.
    pub fn accept(&self, ok: OpenOk) {
        let mut state = self.shared.state();
        if state.failure.is_none() {
            state.open_ok = Some(Box::new(ok));
            // With the answer it costs nothing, and the peer need not wait for it later.
            if let Some(limit) = state.window.lift(&self.shared.lane.settings().budget) {
                state.credit_due = Some(limit);
            }
            state.unanswered = false;
            self.shared.urgent(&mut state);
        }
    }

    /// Answers the peer's `OPEN`: the target was not dialled.
    pub fn refuse(self, refusal: Refusal) {
        self.shared.end(Type::OpenErr, refusal);
    }

    /// Gives the stream up in both directions; the peer is told why, behind the bytes that are queued.
    /// Nothing happens to a stream that already ended.
    pub fn reset(&self, refusal: Refusal) {
        self.shared.end(Type::Reset, refusal);
    }

    /// Waits until bytes may be sent, and says how many.
    pub async fn sendable(&self) -> Result<usize, Refusal> {
        poll_fn(|cx| self.poll_sendable(cx)).await
    }

    /// As [`sendable`](Self::sendable), without the wait; who gets nothing is woken when there is something.
    pub async fn sendable_now(&self) -> Option<Result<usize, Refusal>> {
        poll_fn(|cx| match self.poll_sendable(cx) {
            Poll::Ready(allowed) => Poll::Ready(Some(allowed)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    fn poll_sendable(&self, cx: &mut Context<'_>) -> Poll<Result<usize, Refusal>> {
        let mut state = self.shared.state();
        if let Some(refusal) = &state.failure {
            return Poll::Ready(Err(Refusal::clone(refusal)));
        }
        let (credit, room) = (state.credit.available(), state.pending.room());
        let lane = &self.shared.lane;
        if credit == 0 {
            if state.send_waker.is_none() {
                lane.count_stall();
            }
        } else if room > 0 {
            if lane.has_room() || (!state.in_waiting && !lane.wait_for_room(&self.shared)) {
                return Poll::Ready(Ok(credit.min(room)));
            }
            state.in_waiting = true;
        }
        register(&mut state.send_waker, cx);
        Poll::Pending
    }

    /// Bytes that may be sent without a wait, when nothing is sent after them: the lane's queue is not asked.
    pub fn room(&self) -> usize {
        let state = self.shared.state();
        let room = state.pending.room().min(state.credit.available());
        if state.failure.is_some() || state.fin != Fin::Open { 0 } else { room }
    }

    /// Queues bytes, at most as many as [`sendable`](Self::sendable) said.
    pub fn send(&self, bytes: BytesMut) {
        let mut state = self.shared.state();
        debug_assert!(state.fin == Fin::Open, "bytes behind the FIN");
        if bytes.is_empty() || state.failure.is_some() {
            return;
        }
        state.credit.spend(bytes.len());
        self.shared.lane.queue(bytes.len());
        state.pending.add(bytes);
        self.shared.ready(&mut state);
    }

    /// Ends this direction behind what is queued.
    pub fn finish(&self) {
        let mut state = self.shared.state();
        if state.fin == Fin::Open && state.failure.is_none() {
            state.fin = Fin::Queued;
            self.shared.ready(&mut state);
        }
    }

    /// Moves what arrived to `into`. `false`: the peer ended its direction and all of it was taken.
    /// What moves on must be given to [`consumed`](Self::consumed), or the peer stalls.
    pub async fn receive(&self, into: &mut VecDeque<BytesMut>) -> Result<bool, Refusal> {
        poll_fn(|cx| self.poll_receive(cx, into)).await
    }

    /// Bytes that wait and are not taken, for tests.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> u64 {
        self.shared.state().arrived.pieces().iter().map(|piece| piece.len() as u64).sum()
    }

    /// Moves what arrived to `into`, which may be nothing.
    pub fn take_arrived(&self, into: &mut VecDeque<BytesMut>) {
        self.shared.state().arrived.take(into);
    }

    /// What was received and can't move on now waits here again, before what came meanwhile. Here alone it gets buffers of its
    /// own when it waits for long.
    pub fn give_back(&self, from: &mut VecDeque<BytesMut>) {
        let mut state = self.shared.state();
        if state.failure.is_none() {
            let State { arrived, window, .. } = &mut *state;
            arrived.put_back(from, window);
        }
    }

    fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        into: &mut VecDeque<BytesMut>,
    ) -> Poll<Result<bool, Refusal>> {
        let mut state = self.shared.state();
        if state.arrived.take(into) {
            return Poll::Ready(Ok(true));
        }
        if let Some(refusal) = &state.failure {
            return Poll::Ready(Err(Refusal::clone(refusal)));
        }
        if state.fin_received {
            return Poll::Ready(Ok(false));
        }
        register(&mut state.recv_waker, cx);
        Poll::Pending
    }

    /// `n` received bytes moved on: the peer may send as many again.
    pub fn consumed(&self, n: usize) {
        let mut state = self.shared.state();
        if state.window.on_consumed(n) && !state.fin_received && state.failure.is_none() {
            let lane = &self.shared.lane;
            let limit = state.window.grant(Instant::now(), lane.round_trip(), &lane.settings().budget);
            state.credit_due = Some(limit);
            self.shared.urgent(&mut state);
        }
    }

    /// Waits until the stream is gone in both directions by a reset or the loss of its lane.
    pub async fn failed(&self) -> Refusal {
        poll_fn(|cx| self.poll_failed(cx)).await
    }

    /// As [`failed`](Self::failed).
    pub fn poll_failed(&self, cx: &mut Context<'_>) -> Poll<Refusal> {
        let mut state = self.shared.state();
        match &state.failure {
            Some(refusal) => Poll::Ready(Refusal::clone(refusal)),
            None => {
                register(&mut state.answer_waker, cx);
                Poll::Pending
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let (done, unanswered) = {
            let state = self.shared.state();
            (state.fin != Fin::Open && state.fin_received && !state.awaited, state.unanswered)
        };
        if unanswered {
            // The task that was to dial was cut, so another end may be asked to.
            self.shared
                .end(Type::OpenErr, Refusal::new(Code::Shutdown, "given up before the target was dialled"));
        } else if !done {
            self.reset(Refusal::new(Code::Reset, "the stream's other side is gone"));
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({})", self.shared.id)
    }
}

fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        _ => *slot = Some(cx.waker().clone()),
    }
}

#[cfg(test)]
mod tests;
