//! The task that moves a lane's bytes.
//!
//! One task drives the socket both ways, so TLS needs no lock. What goes out is gathered into one
//! websocket message of about [`BATCH`] bytes: what is urgent first (answers, credit, resets), then the
//! ready streams in turn, [some](Pace::turn) bytes each, more when one is alone. Bytes are written from the
//! buffers that sockets were read into; what comes in is handed to its stream where TLS put it.

mod pace;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::{BATCH, Incoming, LaneEnd, Shared, Turn, Upgraded, load};
use crate::refusal::{Code, Refusal};
use crate::tunnel::credit::{self, ReceiveWindow};
use crate::tunnel::frame::{self, Header, Piece, Type, put_message};
use crate::tunnel::message::{self, Capabilities, GoAway, Open, OpenOk, RoleIs};
use crate::tunnel::pieces::{Slices, advance};
use crate::tunnel::policy::{Assembly, Push};
use crate::tunnel::stream::{self, SMALL, Stream};
use crate::tunnel::transport::Source;
use crate::tunnel::websocket::{self, Event, Opcode, Side};
use pace::Pace;

/// Bytes that one poll reads before other tasks get their turn; and where a stream has [plenty](stream::PLENTY) waiting.
const READ_PER_POLL: [usize; 2] = [512 * 1024, stream::PLENTY];
/// What a piece counts for at least.
const LEAST: usize = 2 * 1024;
/// Pieces of a message that are written at once.
const PIECES: usize = 32;
/// Time for the last words to a peer.
const FAREWELL: Duration = Duration::from_secs(1);

/// The lane's task.
pub(super) struct Driver<S> {
    up: Upgraded<S>,
    shared: Arc<Shared>,
    incoming: mpsc::Sender<Incoming>,
    /// The message on its way out, in pieces.
    out: VecDeque<BytesMut>,
    /// Where headers and small payloads are put together.
    scratch: BytesMut,
    /// The policy on its way out, and how many of its parts are.
    policy: Option<(Arc<Push>, usize)>,
    /// The policy on its way in.
    assembly: Assembly,
    /// A stream that something came for in this poll has plenty waiting.
    plenty: bool,
    unflushed: bool,
    pace: Pace,
    started: Instant,
    heard: Instant,
    tick: Pin<Box<Sleep>>,
    /// When the peer is dead, unless it was heard of meanwhile.
    silence: Pin<Box<Sleep>>,
}

impl<S: Source + AsyncWrite + Unpin + Send> Driver<S> {
    pub(super) fn new(up: Upgraded<S>, shared: Arc<Shared>, incoming: mpsc::Sender<Incoming>) -> Self {
        let now = Instant::now();
        let tick = Box::pin(sleep(Duration::ZERO));
        let silence = Box::pin(sleep(shared.settings.dead));
        Driver {
            up,
            shared,
            incoming,
            out: VecDeque::new(),
            scratch: BytesMut::new(),
            policy: None,
            assembly: Assembly::default(),
            plenty: false,
            unflushed: false,
            pace: Pace::new(now),
            started: now,
            heard: now,
            tick,
            silence,
        }
    }

    pub(super) async fn run(mut self) -> LaneEnd {
        let end = poll_fn(|cx| self.poll(cx)).await;
        let refusal = Refusal::new(Code::TunnelLost, format!("the tunnel was lost: {end}"));
        let streams = {
            let mut queues = self.shared.queues();
            queues.ended = Some(refusal.clone());
            queues.urgent.clear();
            queues.ready.clear();
            self.shared.close_line(&mut queues.line);
            std::mem::take(&mut queues.streams)
        };
        for stream in streams.into_values() {
            stream.on_failure(refusal.clone());
        }
        self.shared.changed.notify_waiters();
        self.farewell(&end).await;
        end
    }

    /// Tells the peer why, where it may still listen.
    async fn farewell(&mut self, end: &LaneEnd) {
        if matches!(end, LaneEnd::Lost(_) | LaneEnd::Cut | LaneEnd::Silent(_)) {
            return;
        }
        if end.is_fault() {
            let go_away = GoAway { deadline: Duration::ZERO, reason: end.to_string() };
            put_message(&mut self.scratch, 0, Type::GoAway, |out| go_away.write(out));
            // Behind what is left of the message that was on its way.
            let mut rest = std::mem::take(&mut self.out);
            self.seal();
            rest.append(&mut self.out);
            self.out = rest;
        }
        let code: u16 = if end.is_fault() { 1002 } else { 1000 };
        self.put_websocket(Opcode::Close, &code.to_be_bytes());
        let farewell = async {
            while !self.out.is_empty() {
                poll_fn(|cx| self.poll_write_some(cx)).await?;
            }
            self.up.io.flush().await?;
            self.up.io.shutdown().await
        };
        // The lane has its reason already; a peer that does not listen changes nothing.
        let _ = timeout(FAREWELL, farewell).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<LaneEnd> {
        match self.poll_read(cx) {
            // More may be there to read; others get their turn first.
            Ok(true) => cx.waker().wake_by_ref(),
            Ok(false) => {}
            Err(end) => return Poll::Ready(end),
        }
        if let Poll::Ready(end) = self.poll_tick(cx) {
            return Poll::Ready(end);
        }
        match self.poll_write(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(LaneEnd::Lost(error)),
            Poll::Ready(Ok(Some(end))) => Poll::Ready(end),
            Poll::Ready(Ok(None)) | Poll::Pending => Poll::Pending,
        }
    }

    /// Reads and dispatches. `true`: there may be more.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<bool, LaneEnd> {
        self.plenty = false;
        self.decode()?;
        let mut read = 0;
        while read < READ_PER_POLL[usize::from(self.plenty)] {
            match Pin::new(&mut self.up.io).poll_source(cx, &mut self.up.read) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(0)) => return Err(LaneEnd::Cut),
                Poll::Ready(Ok(n)) => {
                    // A clock for each piece would be as much as its decoding.
                    if read == 0 {
                        self.heard = Instant::now();
                    }
                    // Many small pieces are as much work.
                    read += n.max(LEAST);
                }
                Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(LaneEnd::Cut),
                Poll::Ready(Err(error)) => return Err(LaneEnd::Lost(error)),
            }
            self.decode()?;
        }
        Ok(true)
    }

    fn decode(&mut self) -> Result<(), LaneEnd> {
        while let Some(event) = self.up.websocket.next(&mut self.up.read)? {
            match event {
                Event::Payload { mut bytes, end } => {
                    while let Some(piece) = self.up.frames.next(&mut bytes)? {
                        self.dispatch(piece)?;
                    }
                    if end {
                        self.up.frames.end_of_message()?;
                    }
                }
                Event::Ping(payload) => self.put_websocket_pong(&payload)?,
                Event::Pong => {}
                Event::Close(code) => return Err(LaneEnd::Closed(code)),
            }
        }
        Ok(())
    }

    fn dispatch(&mut self, piece: Piece) -> Result<(), LaneEnd> {
        let (header, payload) = match piece {
            Piece::Data(id, bytes) => return self.on_data(id, bytes),
            Piece::Control(header, payload) => (header, payload),
        };
        let id = header.stream;
        match header.kind {
            Type::Open => return self.on_open(id, &payload),
            Type::Ping => {
                let stamp = (&payload[..]).get_u64();
                self.shared.push(|queues| queues.pong = Some(stamp));
                return Ok(());
            }
            Type::Pong => {
                self.on_pong((&payload[..]).get_u64());
                return Ok(());
            }
            Type::GoAway => {
                let away = GoAway::read(&payload)?;
                tracing::info!(peer = %self.shared.peer.name, reason = %away.reason, "the peer is leaving this lane");
                self.shared.queues().sent_away = true;
                self.shared.changed.notify_waiters();
                return Ok(());
            }
            // Workers are told, they do not tell.
            Type::Role | Type::Policy if self.up.side == Side::Server => {
                return Err(LaneEnd::Order(format!("{:?} from a worker", header.kind)));
            }
            Type::Role => {
                let told = RoleIs::read(&payload)?;
                self.shared.told.send_if_modified(|all| {
                    let newer = all.role.is_none_or(|known| known.epoch < told.epoch);
                    all.role = if newer { Some(told) } else { all.role };
                    newer
                });
                return Ok(());
            }
            Type::Policy => {
                if let Some(policy) = self.assembly.add(&payload)? {
                    self.shared.told.send_if_modified(|all| {
                        let newer = all.policy.as_ref().is_none_or(|known| known.epoch < policy.epoch);
                        if newer {
                            all.policy = Some(policy);
                        }
                        newer
                    });
                }
                return Ok(());
            }
            Type::Hello | Type::Welcome => {
                return Err(LaneEnd::Order(format!("{:?} on a lane that is up", header.kind)));
            }
            _ => {}
        }
        let Some(stream) = self.stream(header)? else { return Ok(()) };
        match header.kind {
            Type::OpenOk => stream.on_open_ok(OpenOk::read(&payload)?),
            Type::Fin => stream.on_fin(),
            Type::Credit => stream.on_credit((&payload[..]).get_u64()),
            _ => {
                stream.on_failure(message::read_refusal(&payload)?);
                self.shared.forget(id);
            }
        }
        Ok(())
    }

    /// The stream of a frame; `None` where it has ended here and the peer did not know yet.
    fn stream(&self, header: Header) -> Result<Option<Arc<stream::Shared>>, LaneEnd> {
        let queues = self.shared.queues();
        if let Some(stream) = queues.streams.get(&header.stream) {
            return Ok(Some(stream.clone()));
        }
        let ours = header.stream % 2 == queues.next_id % 2;
        let known = header.stream < if ours { queues.next_id } else { queues.last_peer_id.saturating_add(1) };
        match known {
            true => Ok(None),
            false => Err(LaneEnd::Order(format!(
                "{:?} for stream {}, which was never opened",
                header.kind, header.stream
            ))),
        }
    }

    fn on_data(&mut self, id: u32, bytes: BytesMut) -> Result<(), LaneEnd> {
        self.shared.counters.received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let header = Header { stream: id, kind: Type::Data, length: bytes.len() };
        let Some(stream) = self.stream(header)? else { return Ok(()) };
        self.plenty |= stream.on_data(bytes).map_err(|fault| LaneEnd::Data { stream: id, fault })?;
        Ok(())
    }

    fn on_open(&mut self, id: u32, payload: &[u8]) -> Result<(), LaneEnd> {
        let open = Open::read(payload)?;
        let mut queues = self.shared.queues();
        let ours = id % 2 == queues.next_id % 2;
        if ours || id <= queues.last_peer_id {
            return Err(LaneEnd::Order(format!("OPEN with stream id {id}, which is not the peer's next")));
        }
        queues.last_peer_id = id;
        // Each refused stream waits to be told so; a peer that only asks and never reads is cut.
        if queues.urgent.len() > 2 * self.shared.settings.max_streams as usize {
            return Err(LaneEnd::Order("the peer opens streams and reads no answers".into()));
        }
        let limit = self.shared.settings.max_streams;
        let window = match queues.streams.len() >= limit as usize {
            true => Err(Refusal::new(Code::Limit, format!("{limit} streams are open on this lane"))),
            false => self.shared.window(),
        };
        let (window, refusal) = match window {
            Ok(window) => (window, None),
            Err(refusal) => (ReceiveWindow::closed(), Some(refusal)),
        };
        let credit = open.credit.min(credit::LARGEST);
        let stream = Stream::accepted(id, self.shared.clone(), credit, window);
        queues.streams.insert(id, stream.shared().clone());
        drop(queues);
        self.shared.counters.streams.fetch_add(1, Ordering::Relaxed);
        if let Some(refusal) = refusal {
            stream.refuse(refusal);
        } else if let Err(error) = self.incoming.try_send(Incoming { open, stream }) {
            let (mpsc::error::TrySendError::Full(refused) | mpsc::error::TrySendError::Closed(refused)) =
                error;
            refused.stream.refuse(Refusal::new(Code::Limit, "too many streams wait to be dialled"));
        }
        Ok(())
    }

    fn on_pong(&mut self, stamp: u64) {
        let now = self.started.elapsed().as_micros() as u64;
        let sample = now.saturating_sub(stamp).max(1);
        let cell = &self.shared.counters.round_trip;
        let smoothed = match cell.load(Ordering::Relaxed) {
            0 => sample,
            before => (before * 7 + sample) / 8,
        };
        cell.store(smoothed.max(1), Ordering::Relaxed);
        let mut queues = self.shared.queues();
        queues.away_known |= queues.away_stamp.is_some_and(|told| stamp >= told);
    }

    fn poll_tick(&mut self, cx: &mut Context<'_>) -> Poll<LaneEnd> {
        // By a clock of its own: what waits for this peer's answer goes elsewhere then.
        while self.silence.as_mut().poll(cx).is_ready() {
            let dead = self.heard + self.shared.settings.dead;
            if Instant::now() >= dead {
                return Poll::Ready(LaneEnd::Silent(self.heard.elapsed()));
            }
            self.silence.as_mut().reset(dead);
        }
        while self.tick.as_mut().poll(cx).is_ready() {
            let next = load::beat(&self.shared.peer.session, self.shared.settings.ping, Instant::now());
            self.tick.as_mut().reset(next);
            self.fit_unsent();
            self.shared.counters.tick();
            let stamp = self.started.elapsed().as_micros() as u64;
            let mut queues = self.shared.queues();
            queues.ping = Some(stamp);
            if queues.leaving.is_some_and(|deadline| Instant::now() >= deadline) {
                return Poll::Ready(LaneEnd::Local("drained until the deadline".into()));
            }
            // A socket that takes nothing must not hide that we are to close.
            if let Some(reason) = queues.close.take() {
                return Poll::Ready(LaneEnd::Local(reason));
            }
            drop(queues);
            // A sender that was woken and had nothing to send must not leave the others waiting.
            self.shared.wake_forgotten();
        }
        Poll::Pending
    }

    fn fit_unsent(&mut self) {
        let sent = self.shared.counters.sent.load(Ordering::Relaxed);
        if let Some(unsent) = self.pace.fit(sent, self.shared.round_trip()) {
            self.up.io.keep_unsent(unsent);
        }
    }

    /// Writes until there is nothing more or the socket is full. `Some`: the lane is to end.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<LaneEnd>>> {
        loop {
            if self.out.is_empty() && !self.gather() {
                if self.unflushed {
                    ready!(Pin::new(&mut self.up.io).poll_flush(cx))?;
                    self.unflushed = false;
                }
                return Poll::Ready(match self.rest(cx) {
                    Rest::Idle => Ok(None),
                    Rest::End(end) => Ok(Some(end)),
                    Rest::More => continue,
                });
            }
            ready!(self.poll_write_some(cx))?;
        }
    }

    /// Nothing was there to send: registers for more, unless some came meanwhile.
    fn rest(&self, cx: &Context<'_>) -> Rest {
        let mut queues = self.shared.queues();
        if let Some(reason) = queues.close.take() {
            return Rest::End(LaneEnd::Local(reason));
        }
        if !queues.urgent.is_empty()
            || !queues.ready.is_empty()
            || queues.pong.is_some()
            || queues.go_away.is_some()
            || queues.role.waits.is_some()
            || queues.policy.waits.is_some()
        {
            return Rest::More;
        }
        // Not before the peer knows: what it opens until then is on its way.
        if queues.away_known && queues.streams.is_empty() {
            return Rest::End(LaneEnd::Local("drained".into()));
        }
        match &queues.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => queues.waker = Some(cx.waker().clone()),
        }
        // What a stream had queued may have gone without being sent.
        let waiting = !queues.line.is_empty();
        drop(queues);
        if waiting {
            self.shared.wake_waiting();
        }
        Rest::Idle
    }

    fn poll_write_some(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let slices = Slices::<PIECES>::of(&self.out);
        let n = ready!(Pin::new(&mut self.up.io).poll_write_vectored(cx, &slices))?;
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.unflushed = true;
        advance(&mut self.out, n);
        Poll::Ready(Ok(()))
    }

    /// Puts the next message together. `false`: there is nothing to send.
    fn gather(&mut self) -> bool {
        let mut size = 0;
        {
            let mut queues = self.shared.queues();
            if let Some(stamp) = queues.ping.take() {
                frame::put_u64(&mut self.scratch, 0, Type::Ping, stamp);
            }
            if let Some(stamp) = queues.pong.take() {
                frame::put_u64(&mut self.scratch, 0, Type::Pong, stamp);
            }
            if let Some(away) = queues.go_away.take() {
                put_message(&mut self.scratch, 0, Type::GoAway, |out| away.write(out));
                // Later than any before it.
                let stamp = self.started.elapsed().as_micros() as u64 + 1;
                queues.away_stamp = Some(stamp);
                frame::put_u64(&mut self.scratch, 0, Type::Ping, stamp);
            }
            if let Some(role) = queues.role.waits.take() {
                put_message(&mut self.scratch, 0, Type::Role, |out| role.write(out));
            }
        }
        // What is opened later is judged by it, so all else waits for its last part.
        if self.gather_policy() {
            return self.seal();
        }
        let mut freed = 0;
        while size + self.scratch.len() + SMALL < BATCH {
            let turn = self.shared.queues().next_turn();
            let (stream, alone) = match turn {
                None => break,
                Some(Turn::Urgent(stream)) => {
                    stream.take_urgent(&mut self.scratch);
                    continue;
                }
                Some(Turn::Data(stream, alone)) => (stream, alone),
            };
            let room = BATCH - size - self.scratch.len() - frame::HEADER;
            let turn = self.pace.turn();
            let most = if alone { room } else { room.min(turn) };
            let before = BATCH - room;
            let taken = stream.take_data(most, &mut self.scratch, &mut self.out);
            if taken.bytes > 0 {
                freed += taken.bytes;
                // Of this frame and all before it, what does not wait in `scratch` is in `out`.
                size = before + taken.bytes - self.scratch.len();
            }
            if taken.fin {
                frame::put_header(&mut self.scratch, stream.id(), Type::Fin, 0);
            }
            if let Some((kind, refusal)) = taken.last_words {
                put_message(&mut self.scratch, stream.id(), kind, |out| {
                    message::write_refusal(&refusal, out);
                });
            }
            if taken.more {
                let goes_on = !alone && self.pace.goes_on(turn, taken.bytes);
                let ready = &mut self.shared.queues().ready;
                if goes_on { ready.push_front(stream) } else { ready.push_back(stream) }
            }
        }
        if freed > 0 {
            let sent = self.shared.counters.sent.fetch_add(freed as u64, Ordering::Relaxed);
            if self.pace.is_due(sent) {
                self.fit_unsent();
            }
            self.shared.unqueue(freed);
            self.shared.wake_waiting();
        }
        self.seal()
    }

    /// Puts parts of a policy into the message. `true`: it is full, and more parts are to come.
    fn gather_policy(&mut self) -> bool {
        loop {
            let (policy, sent) = match self.policy.take() {
                Some(under_way) => under_way,
                None => match self.shared.queues().policy.waits.take() {
                    Some(policy) => (policy, 0),
                    None => return false,
                },
            };
            let mut parts = (sent..).map_while(|at| policy.part(at));
            let mut sent = sent;
            while self.scratch.len() < BATCH {
                let Some(part) = parts.next() else { break };
                self.scratch.extend_from_slice(part);
                sent += 1;
            }
            if policy.part(sent).is_some() {
                self.policy = Some((policy, sent));
                return true;
            }
        }
    }

    /// Makes what was put together one websocket message.
    fn seal(&mut self) -> bool {
        if !self.scratch.is_empty() {
            self.out.push_back(self.scratch.split());
        }
        let length = self.out.iter().map(BytesMut::len).sum();
        if length == 0 {
            return false;
        }
        let key = self.key();
        if let Some(key) = key {
            let mut offset = 0;
            for piece in &mut self.out {
                websocket::mask(piece, key, offset);
                offset += piece.len();
            }
        }
        websocket::put_header(&mut self.scratch, Opcode::Binary, length, key);
        self.out.push_front(self.scratch.split());
        true
    }

    /// What the next websocket frame is masked with.
    fn key(&self) -> Option<[u8; 4]> {
        match self.up.side {
            Side::Server => None,
            Side::Client if self.shared.peer.capabilities.has(Capabilities::SEALED) => Some([0; 4]),
            Side::Client => Some(rand::random()),
        }
    }

    /// A websocket control frame behind the message on its way.
    fn put_websocket(&mut self, opcode: Opcode, payload: &[u8]) {
        let key = self.key();
        let mut bytes = BytesMut::with_capacity(payload.len() + 8);
        websocket::put_header(&mut bytes, opcode, payload.len(), key);
        let start = bytes.len();
        bytes.extend_from_slice(payload);
        if let Some(key) = key {
            websocket::mask(&mut bytes[start..], key, 0);
        }
        self.out.push_back(bytes);
    }

    fn put_websocket_pong(&mut self, payload: &[u8]) -> Result<(), LaneEnd> {
        // A message and a few pongs are on their way at most; who pings without reading is cut.
        if self.out.len() > 1024 {
            return Err(LaneEnd::Order("the peer sends websocket pings and reads no pongs".into()));
        }
        self.put_websocket(Opcode::Pong, payload);
        Ok(())
    }
}

enum Rest {
    Idle,
    More,
    End(LaneEnd),
}
