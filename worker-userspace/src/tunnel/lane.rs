//! One websocket that carries streams: scheduling, dispatch, liveness.
//!
//! Three hold a lane: its [`Lane`] handle, its streams, and the [`driver`], the one task that moves its
//! bytes. What they share is here.
//!
//! What must hold: no one waits for a stream while holding the lane; what a peer sends can end its lane
//! with a reason, never more; all that a lane queues is bounded.

mod driver;
mod load;
mod room;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncWrite;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::Instant;

use super::credit::{self, Budget, ReceiveWindow};
use super::frame::{self, FrameError};
use super::message::{Capabilities, GoAway, Hello, MessageError, Open, RoleIs};
use super::policy::{PolicyFault, Push, Pushed};
use super::stream::{self, DataFault, Stream};
use super::transport::Source;
use super::websocket::{self, Side, WebsocketError};
use crate::refusal::{Code, Refusal};
use crate::threads::{self, Home, Threads};

pub(crate) use load::Load;
pub(super) use room::TURNS;
use room::{Line, Room};

/// Bytes that a message is filled to: with its headers it fills four records of TLS, which are encrypted and written in
/// one go. One byte more would be a record and a write of its own.
pub(super) const BATCH: usize = 4 * 16 * 1024 - 32;
/// Bytes that a stream may send in its turn while others wait, unless the lane is fast.
const TURN: usize = 16 * 1024;
/// Bytes of all streams queued in one lane before sockets are left unread.
const QUEUE: usize = 256 * 1024;

/// From this id on a lane opens no more; a few are left for who opens at the same moment.
const LAST_ID: u32 = u32::MAX - 1024;
/// How long the streams of a lane without ids may go on.
const LAST_STREAMS: Duration = Duration::from_secs(30 * 24 * 3600);

/// What all lanes of a process share.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Streams that a peer may have open on one lane.
    pub max_streams: u32,
    /// Time between `PING`s.
    pub ping: Duration,
    /// A peer that was not heard of for this long is dead.
    pub dead: Duration,
    /// What all that peers may send is paid from.
    pub budget: Arc<Budget>,
    /// Where lanes live.
    pub threads: Threads,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            max_streams: 16_384,
            ping: Duration::from_secs(1),
            dead: Duration::from_secs(5),
            budget: Arc::new(Budget::new(1024 * 1024 * 1024)),
            threads: Threads::default(),
        }
    }
}

/// An upgraded websocket behind its `HELLO` and `WELCOME`, with what was read too far.
#[derive(Debug)]
pub struct Upgraded<S> {
    /// The transport.
    pub io: S,
    /// Which end of the websocket this is.
    pub side: Side,
    /// The websocket's decoder.
    pub websocket: websocket::Decoder,
    /// The frames' decoder.
    pub frames: frame::Decoder,
    /// Bytes read and not decoded.
    pub read: BytesMut,
}

impl<S> Upgraded<S> {
    /// A websocket whose handshake has just ended; `read` is what came behind it.
    pub fn new(io: S, side: Side, read: BytesMut) -> Self {
        Upgraded {
            io,
            side,
            websocket: websocket::Decoder::new(side),
            frames: frame::Decoder::default(),
            read,
        }
    }
}

impl<S> Upgraded<S> {
    /// The same on what `change` makes of its transport.
    ///
    /// # Errors
    /// Those of `change`.
    pub fn try_map<T>(self, change: impl FnOnce(S) -> io::Result<T>) -> io::Result<Upgraded<T>> {
        let Upgraded { io, side, websocket, frames, read } = self;
        Ok(Upgraded { io: change(io)?, side, websocket, frames, read })
    }
}

/// A stream that the peer opened, with what it asks for.
#[derive(Debug)]
pub struct Incoming {
    /// What is asked for.
    pub open: Open,
    /// To be accepted or refused.
    pub stream: Stream,
}

/// What the appliance has told on a lane; what stands in `OPEN` comes behind it.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// Whether this worker is primary.
    pub role: Option<RoleIs>,
    /// What it may dial.
    pub policy: Option<Arc<Pushed>>,
}

/// Why a lane ended.
#[derive(Debug, thiserror::Error)]
pub enum LaneEnd {
    /// The peer closed the websocket.
    #[error("closed by the peer{}", .0.map(|code| format!(" (code {code})")).unwrap_or_default())]
    Closed(Option<u16>),
    /// The connection ended without a close.
    #[error("the connection was cut")]
    Cut,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Lost(#[source] io::Error),
    /// Nothing was heard of the peer.
    #[error("nothing heard of the peer for {0:?}")]
    Silent(Duration),
    /// The peer broke RFC 6455.
    #[error("protocol error: {0}")]
    Websocket(#[from] WebsocketError),
    /// The peer broke the framing.
    #[error("protocol error: {0}")]
    Frame(#[from] FrameError),
    /// The peer sent a malformed message.
    #[error("protocol error: {0}")]
    Message(#[from] MessageError),
    /// The peer pushed a policy that can't be taken.
    #[error("protocol error: {0}")]
    Policy(#[from] PolicyFault),
    /// The peer sent bytes that it may not.
    #[error("protocol error: stream {stream}: {fault}")]
    Data {
        /// The stream.
        stream: u32,
        /// What is wrong.
        #[source]
        fault: DataFault,
    },
    /// The peer sent a frame that makes no sense now.
    #[error("protocol error: {0}")]
    Order(String),
    /// This end closed it.
    #[error("{0}")]
    Local(String),
}

impl LaneEnd {
    /// True where the peer broke the protocol.
    pub fn is_fault(&self) -> bool {
        use LaneEnd::*;
        matches!(self, Websocket(_) | Frame(_) | Message(_) | Policy(_) | Data { .. } | Order(_))
    }
}

/// What a lane counts; read by `status`.
#[derive(Debug, Default)]
pub struct Counters {
    /// Payload bytes of `DATA` sent.
    pub sent: AtomicU64,
    /// Payload bytes of `DATA` received.
    pub received: AtomicU64,
    /// Streams ever opened, by either end.
    pub streams: AtomicU64,
    /// Times that a sender had to wait for credit.
    pub stalls: AtomicU64,
    /// Last round trip in microseconds, smoothed; 0 before the first.
    pub round_trip: AtomicU64,
    recent: load::Recent,
}

impl Counters {
    /// What only rises.
    pub fn totals(&self) -> Totals {
        let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        Totals {
            sent: read(&self.sent),
            received: read(&self.received),
            streams: read(&self.streams),
            stalls: read(&self.stalls),
        }
    }
}

/// What lanes have counted together, those that are gone included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Payload bytes of `DATA` sent.
    pub sent: u64,
    /// Payload bytes of `DATA` received.
    pub received: u64,
    /// Streams ever opened, by either end.
    pub streams: u64,
    /// Times that a sender had to wait for credit.
    pub stalls: u64,
}

impl std::ops::Add for Totals {
    type Output = Totals;

    fn add(self, other: Totals) -> Totals {
        Totals {
            sent: self.sent + other.sent,
            received: self.received + other.received,
            streams: self.streams + other.streams,
            stalls: self.stalls + other.stalls,
        }
    }
}

#[derive(Default)]
struct Queues {
    streams: HashMap<u32, Arc<stream::Shared>>,
    urgent: VecDeque<Arc<stream::Shared>>,
    ready: VecDeque<Arc<stream::Shared>>,
    /// Those that wait for room.
    line: Line,
    ping: Option<u64>,
    pong: Option<u64>,
    go_away: Option<GoAway>,
    /// Roles and policies that are to be sent go before all that is opened later.
    role: Latest<RoleIs>,
    policy: Latest<Arc<Push>>,
    /// The peer told us to go away.
    sent_away: bool,
    /// We tell the peer to go away; when we cut.
    leaving: Option<Instant>,
    /// The stamp of the `PING` behind our `GOAWAY`: its answer shows that the peer knows.
    away_stamp: Option<u64>,
    /// The peer knows that we are leaving, and opens no more.
    away_known: bool,
    close: Option<String>,
    next_id: u32,
    last_peer_id: u32,
    /// The lane ended: nothing is queued any more.
    ended: Option<Refusal>,
    waker: Option<Waker>,
}

/// What is told anew with each change: of several that wait only the newest is sent.
struct Latest<T> {
    newest: Option<u64>,
    waits: Option<T>,
}

impl<T> Default for Latest<T> {
    fn default() -> Self {
        Latest { newest: None, waits: None }
    }
}

impl<T> Latest<T> {
    /// Who is late changes nothing.
    fn tell(&mut self, epoch: u64, what: T) {
        if self.newest.is_none_or(|newest| newest < epoch) {
            (self.newest, self.waits) = (Some(epoch), Some(what));
        }
    }
}

/// What the lane's task, its streams and its handle share.
pub(super) struct Shared {
    settings: Settings,
    home: Home,
    peer: Hello,
    queues: Mutex<Queues>,
    room: Room,
    counters: Counters,
    /// Wakes who waits for the lane to close.
    changed: Notify,
    told: watch::Sender<Told>,
}

impl Shared {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn peer(&self) -> &Hello {
        &self.peer
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// A new stream's window.
    fn window(&self) -> Result<ReceiveWindow, Refusal> {
        ReceiveWindow::new(&self.settings.budget).ok_or_else(|| {
            Refusal::new(Code::Limit, "so many connections are open that the memory for them is used up")
        })
    }

    pub(super) fn round_trip(&self) -> Duration {
        Duration::from_micros(self.counters.round_trip.load(Ordering::Relaxed))
    }

    pub(super) fn count_stall(&self) {
        self.counters.stalls.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn push_urgent(&self, stream: Arc<stream::Shared>) {
        self.push(|queues| queues.urgent.push_back(stream));
    }

    pub(super) fn push_ready(&self, stream: Arc<stream::Shared>) {
        self.push(|queues| queues.ready.push_back(stream));
    }

    fn push(&self, change: impl FnOnce(&mut Queues)) {
        let mut queues = self.queues();
        if queues.ended.is_some() {
            return;
        }
        change(&mut queues);
        let waker = queues.waker.take();
        drop(queues);
        waker.into_iter().for_each(Waker::wake);
    }

    pub(super) fn forget(&self, id: u32) {
        let mut queues = self.queues();
        let gone = queues.streams.remove(&id);
        let waker = if queues.streams.is_empty() { queues.waker.take() } else { None };
        drop(queues);
        drop(gone);
        waker.into_iter().for_each(Waker::wake);
    }
}

/// What a lane sends next.
enum Turn {
    /// This stream's frames that go before all data.
    Urgent(Arc<stream::Shared>),
    /// This stream's data; `true`: nobody else waits to send.
    Data(Arc<stream::Shared>, bool),
}

impl Queues {
    /// True where no stream should be opened: the lane ended, or one of its ends is leaving.
    fn is_closing(&self) -> bool {
        self.sent_away || self.leaving.is_some() || self.close.is_some() || self.ended.is_some()
    }

    /// What is sent next; nothing where a role or a policy goes first. Chooses under one lock: a stream is announced before it is ready to send, so that what is urgent must
    /// not be looked at earlier than what is ready.
    fn next_turn(&mut self) -> Option<Turn> {
        // What is opened by now may be behind it.
        if self.role.waits.is_some() || self.policy.waits.is_some() {
            return None;
        }
        if let Some(stream) = self.urgent.pop_front() {
            return Some(Turn::Urgent(stream));
        }
        self.ready.pop_front().map(|stream| Turn::Data(stream, self.ready.is_empty()))
    }
}

/// The handle of one lane.
#[derive(Clone)]
pub struct Lane {
    shared: Arc<Shared>,
}

impl Lane {
    /// Makes a lane of an upgraded websocket; it lives where it is made. The future drives it and says why it ended; the receiver
    /// gives the streams that the peer opens.
    pub fn new<S>(
        upgraded: Upgraded<S>,
        peer: Hello,
        settings: Settings,
    ) -> (Lane, mpsc::Receiver<Incoming>, impl Future<Output = LaneEnd> + Send)
    where
        S: Source + AsyncWrite + Unpin + Send,
    {
        // As many as there may be streams: a burst arrives whole before its handler has a turn.
        let (sender, receiver) =
            mpsc::channel((settings.max_streams as usize).clamp(1, Semaphore::MAX_PERMITS));
        let first = if upgraded.side == Side::Client { 1 } else { 2 };
        let shared = Arc::new(Shared {
            settings,
            home: threads::current(),
            peer,
            queues: Mutex::new(Queues { next_id: first, ..Queues::default() }),
            room: Room::default(),
            counters: Counters::default(),
            changed: Notify::new(),
            told: watch::Sender::default(),
        });
        let lane = Lane { shared: shared.clone() };
        (lane, receiver, driver::Driver::new(upgraded, shared, sender).run())
    }

    /// Opens a stream. Bytes may be sent at once, before the answer; what `open` says of credit is filled in.
    ///
    /// # Errors
    /// The lane takes no more, or a limit of this end or the peer's is reached.
    pub fn open(&self, open: Open) -> Result<Stream, Refusal> {
        let shared = &self.shared;
        // Linux lets an application connect() to port 0; the peer would take the OPEN for a fault of ours.
        if open.target.port == 0 {
            return Err(Refusal::new(Code::Refused, format!("{}: nobody listens on port 0", open.target)));
        }
        let credit = shared.peer.initial_credit.min(credit::LARGEST);
        let mut queues = shared.queues();
        if let Some(refusal) = &queues.ended {
            return Err(refusal.clone());
        }
        if queues.is_closing() {
            return Err(Refusal::new(Code::TunnelLost, "the lane is closing"));
        }
        if queues.streams.len() >= shared.peer.max_streams as usize {
            return Err(Refusal::new(
                Code::Limit,
                format!("the peer takes {} streams on a lane", shared.peer.max_streams),
            ));
        }
        let id = queues.next_id;
        // Ids are used once. A lane that has few left is replaced, as any lane that is leaving.
        let next_id = id
            .checked_add(2)
            .ok_or_else(|| Refusal::new(Code::TunnelLost, "the lane's stream ids are used up"))?;
        let mut window = shared.window()?;
        window.lift(&shared.settings.budget);
        queues.next_id = next_id;
        let stream = Stream::opening(id, shared.clone(), credit, window, open);
        queues.streams.insert(id, stream.shared().clone());
        // Under the same lock as its number was given: the peer takes them in their order only.
        queues.urgent.push_back(stream.shared().clone());
        let waker = queues.waker.take();
        let last = queues.next_id > LAST_ID;
        drop(queues);
        waker.into_iter().for_each(Waker::wake);
        shared.counters.open();
        if last {
            self.go_away(LAST_STREAMS, "its stream numbers are used up");
        }
        Ok(stream)
    }

    /// Tells a worker its role, where it knows roles. Never waits; goes before all that is opened later. Of two
    /// calls the one with the higher epoch counts, and it alone is sent where the lane has sent neither.
    pub fn tell_role(&self, told: RoleIs) {
        if self.shared.peer.capabilities.has(Capabilities::ROLE) {
            self.shared.push(|queues| queues.role.tell(told.epoch, told));
        }
    }

    /// Tells a worker what it may dial, where it knows policies; as [`tell_role`](Self::tell_role).
    pub fn tell_policy(&self, policy: &Arc<Push>) {
        if self.shared.peer.capabilities.has(Capabilities::POLICY) {
            self.shared.push(|queues| queues.policy.tell(policy.epoch(), policy.clone()));
        }
    }

    /// What the peer has told. An `OPEN` is given to the lane's receiver only after what came before it stands here.
    pub fn told(&self) -> watch::Receiver<Told> {
        self.shared.told.subscribe()
    }

    /// Asks the peer to open no more, lets streams end, and closes when the last did or at the deadline.
    pub fn go_away(&self, deadline: Duration, reason: &str) {
        self.shared.push(|queues| {
            queues.leaving = Some(Instant::now() + deadline);
            queues.go_away = Some(GoAway { deadline, reason: reason.to_owned() });
        });
        self.shared.changed.notify_waiters();
    }

    /// Closes the lane now; its streams are lost.
    pub fn close(&self, reason: &str) {
        self.shared.push(|queues| queues.close = Some(reason.to_owned()));
        self.shared.changed.notify_waiters();
    }

    /// True where no stream should be opened here: it ended, or one of its ends is leaving.
    pub fn is_closing(&self) -> bool {
        self.shared.queues().is_closing()
    }

    /// Waits until [`is_closing`](Self::is_closing).
    pub async fn closing(&self) {
        loop {
            let changed = self.shared.changed.notified();
            if self.is_closing() {
                return;
            }
            changed.await;
        }
    }

    /// True where a new stream would be refused, or would wait for all that is queued.
    pub fn is_full(&self) -> bool {
        self.streams() >= self.shared.peer.max_streams as usize || self.shared.is_full()
    }

    /// The thread that it lives on.
    pub fn home(&self) -> Home {
        self.shared.home
    }

    /// Streams open now.
    pub fn streams(&self) -> usize {
        self.shared.queues().streams.len()
    }

    /// The peer's `HELLO` or `WELCOME`.
    pub fn peer(&self) -> &Hello {
        &self.shared.peer
    }

    /// What the lane counted.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lane({} of {})", self.shared.peer.lane, self.shared.peer.name)
    }
}
