//! What the owner of a stream does with it: opens or answers, sends, receives, ends.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use tokio::time::Instant;

use super::{Cutter, Fin, LITTLE, Shared, State};
use crate::refusal::{Code, Refusal};
use crate::tunnel::credit::ReceiveWindow;
use crate::tunnel::frame::Type;
use crate::tunnel::lane;
use crate::tunnel::message::{Open, OpenOk};

/// The handle of one stream. Dropping it before both directions ended resets the stream.
pub struct Stream {
    pub(super) shared: Arc<Shared>,
}

impl Stream {
    /// A stream that this end opens; `credit` is what the peer takes before any answer, `window` what it may send.
    pub(in crate::tunnel) fn opening(
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
    pub(in crate::tunnel) fn accepted(
        id: u32,
        lane: Arc<lane::Shared>,
        credit: u32,
        window: ReceiveWindow,
    ) -> Stream {
        Stream { shared: Shared::new(id, lane, credit, window, None) }
    }

    pub(in crate::tunnel) fn shared(&self) -> &Arc<Shared> {
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
            let turn = match state.turn {
                // Who asks anew may not go before those that wait.
                0 if state.in_waiting => 0,
                0 if lane.has_room() || !lane.wait_for_room(&self.shared, state.line.into()) => room,
                turn => turn,
            };
            if turn > 0 {
                return Poll::Ready(Ok(credit.min(room).min(turn)));
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
        if state.turn > 0 {
            if state.line == 0 {
                self.shared.lane.queued_by_first(bytes.len());
            }
            // A rest of some bytes would be a read of its own.
            let rest =
                Some(state.turn.saturating_sub(bytes.len())).filter(|rest| *rest > LITTLE).unwrap_or(0);
            self.shared.set_turn(&mut state, rest);
            state.line = if rest == 0 { 1 } else { state.line };
        }
        state.pending.add(bytes);
        self.shared.ready(&mut state);
    }

    /// There is nothing to send though some may be sent: the next that waits for the lane's room has its turn.
    pub fn pass(&self) {
        if self.leave_turn(&mut self.shared.state()) {
            self.shared.lane.wake_waiting();
        }
    }

    /// `false`: it was not its turn.
    fn leave_turn(&self, state: &mut State) -> bool {
        let had = state.turn > 0;
        if had {
            state.line = u8::from(state.used() >= lane::TURNS[0]);
            self.shared.set_turn(state, 0);
        }
        had
    }

    /// Ends this direction behind what is queued.
    pub fn finish(&self) {
        let mut state = self.shared.state();
        if state.fin == Fin::Open && state.failure.is_none() {
            state.fin = Fin::Queued;
            self.leave_turn(&mut state);
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
