//! Carries a connection from its entry to the far end's dial, and on: the one path of all entries.
//!
//! What must hold: a connection that a carrier lost before the target was dialled is asked for again, where that
//! can't do anything twice at the target; what may have reached the target is never sent a second time; once the
//! target is dialled, nothing stands between the splice and the stream.

mod hello;

use std::io::ErrorKind;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

use crate::inspect::ledger::{FlowGuard, Meter};
use crate::refusal::{Code, Refusal};
use crate::route::{Request, Router, open_or_wait};
use crate::splice::{Reads, broken, splice, unread};
use crate::tunnel::message::OpenOk;
use crate::tunnel::stream::Stream;

/// Most bytes that are kept, to be sent again where a carrier is lost. The longest `ClientHello`s, with the keys
/// of post-quantum groups, are 2 KiB; what is longer is nothing that may be sent twice.
const KEPT: usize = 16 * 1024;
/// How late the far end's answer may be: it keeps the dial's deadline itself, so who is later is broken.
const LATE: Duration = Duration::from_secs(5);
/// Wait before the second retry and, doubled each time, those after it: what fails at once must not spin.
const PAUSE: Duration = Duration::from_millis(50);
/// The longest of these waits.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// One connection that is to be carried.
#[derive(Clone, Copy)]
pub struct Carry<'a> {
    /// Who knows the carriers.
    pub router: &'a dyn Router,
    /// The connection, and what becomes of it.
    pub flow: &'a FlowGuard,
    /// How long the dial at the far end may take, retries included.
    pub deadline: Duration,
}

impl Carry<'_> {
    /// Carries a socket whose owner takes it for connected already: what it says first goes ahead of the dial.
    ///
    /// # Errors
    /// Why the connection was not made or was cut. The socket is then to be closed with a reset.
    pub async fn socket(self, socket: &mut TcpStream) -> Result<(), Refusal> {
        // Both apart from the task: what it takes to open is much, and is given back before the connection is idle.
        let (stream, until) = Box::pin(self.begin(socket)).await?;
        let answer = Box::pin(self.settle(&stream, until));
        tokio::try_join!(answer, splice(socket, &stream, &self.flow.meter, Reads::Up)).map(|_| ())
    }

    /// A stream from which on nothing can be tried again, and until when its answer may come, where it has none yet.
    async fn begin(self, socket: &TcpStream) -> Result<(Stream, Option<Instant>), Refusal> {
        let meter = &self.flow.meter;
        let mut attempts = Attempts::new(self);
        let mut early = Early::default();
        loop {
            let stream = tokio::select! {
                biased;
                stream = attempts.open() => stream?,
                error = broken(socket) => return Err(unread(error)),
            };
            early.sent = 0;
            let refusal = tokio::select! {
                biased;
                answer = self.answer(&stream, attempts.until) => match answer {
                    Ok(()) => {
                        early.catch_up(&stream).await?;
                        return Ok((stream, None));
                    }
                    Err(refusal) => refusal,
                },
                fed = early.feed(socket, &stream, meter) => {
                    fed.inspect_err(|refusal| stream.reset(refusal.clone()))?;
                    return Ok((stream, Some(attempts.until)));
                }
            };
            match early.may_be_sent_twice() {
                true => attempts.again(refusal).await?,
                false => return Err(refusal),
            }
        }
    }

    /// Waits for the answer, where it is still to come.
    async fn settle(self, stream: &Stream, until: Option<Instant>) -> Result<(), Refusal> {
        match until {
            Some(until) => self.answer(stream, until).await,
            None => Ok(()),
        }
    }

    /// Waits for the far end's dial.
    async fn answer(self, stream: &Stream, until: Instant) -> Result<(), Refusal> {
        let ok = answer(stream, until).await?;
        self.flow.dialled(ok);
        Ok(())
    }

    /// A stream whose target is dialled, for a client that says nothing before it knows.
    ///
    /// # Errors
    /// Why the connection was not made.
    pub async fn dial(self) -> Result<Stream, Refusal> {
        let mut attempts = Attempts::new(self);
        loop {
            let stream = attempts.open().await?;
            match self.answer(&stream, attempts.until).await {
                Ok(()) => return Ok(stream),
                Err(refusal) => attempts.again(refusal).await?,
            }
        }
    }
}

/// Waits for the answer of a far end that dials until `until`. One that lives and does not answer is given up a
/// little later, and told so.
///
/// # Errors
/// What the far end says, or that it says nothing.
pub async fn answer(stream: &Stream, until: Instant) -> Result<OpenOk, Refusal> {
    if let Ok(answer) = timeout_at(until + LATE, stream.opened()).await {
        return answer;
    }
    let text = format!("no answer from the carrier, {LATE:?} after its dial was to end");
    let refusal = Refusal::new(Code::Timeout, text);
    stream.reset(refusal.clone());
    Err(refusal)
}

/// The carriers that were tried.
struct Attempts<'a> {
    carry: Carry<'a>,
    until: Instant,
    retries: u32,
}

impl Attempts<'_> {
    fn new(carry: Carry<'_>) -> Attempts<'_> {
        Attempts { carry, until: Instant::now() + carry.deadline, retries: 0 }
    }

    async fn open(&self) -> Result<Stream, Refusal> {
        let Carry { router, flow, .. } = self.carry;
        let deadline = self.until.saturating_duration_since(Instant::now());
        let request = Request { target: flow.target.clone(), deadline, trace: flow.trace };
        let opened = open_or_wait(router, &request).await?;
        flow.carried_by(opened.carrier);
        flow.goes_by(&opened.stream);
        Ok(opened.stream)
    }

    /// Whether to try again: only what says nothing about the target, only while there is time.
    async fn again(&mut self, refusal: Refusal) -> Result<(), Refusal> {
        let pause = match self.retries {
            0 => Duration::ZERO,
            n => PAUSE.saturating_mul(1 << (n - 1).min(8)).min(LONGEST_PAUSE),
        };
        if !refusal.code.is_of_carrier() || Instant::now() + pause >= self.until {
            return Err(refusal);
        }
        let flow = self.carry.flow;
        tracing::info!(target = %flow.target, trace = format_args!("{:016x}", flow.trace), "tried again: {refusal}");
        sleep(pause).await;
        self.retries += 1;
        flow.retried();
        Ok(())
    }
}

/// What a socket's owner said before the target was dialled.
#[derive(Default)]
struct Early {
    /// Kept to be sent again, while it may be.
    kept: Vec<u8>,
    /// So much of it went into the present stream.
    sent: usize,
    /// The owner ended its direction.
    ended: bool,
    /// Something went that can't be sent again.
    spoiled: bool,
}

impl Early {
    /// Sends what was kept and the present stream has not had.
    ///
    /// # Errors
    /// The stream failed.
    async fn catch_up(&mut self, stream: &Stream) -> Result<(), Refusal> {
        while self.sent < self.kept.len() {
            let rest = &self.kept[self.sent..];
            let part = &rest[..stream.sendable().await?.min(rest.len())];
            stream.send(BytesMut::from(part));
            self.sent += part.len();
        }
        Ok(())
    }

    /// Sends what was kept and then what the socket has, until something comes that can't be kept. Whoever drops
    /// the future may call it again: nothing is read and not sent.
    ///
    /// # Errors
    /// The socket failed. That the stream failed is left to who waits for its answer.
    async fn feed(&mut self, socket: &TcpStream, stream: &Stream, meter: &Meter) -> Result<(), Refusal> {
        if self.catch_up(stream).await.is_err() {
            return std::future::pending().await;
        }
        while !self.ended {
            socket.readable().await.map_err(unread)?;
            let Ok(room) = stream.sendable().await else { return std::future::pending().await };
            let mut buffer = BytesMut::with_capacity(room.min(KEPT));
            match socket.try_read_buf(&mut buffer) {
                Ok(0) => self.ended = true,
                Ok(n) => {
                    meter.up.fetch_add(n as u64, Ordering::Relaxed);
                    self.keep(&buffer);
                    stream.send(buffer);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => stream.pass(),
                Err(error) => return Err(unread(error)),
            }
            if self.spoiled {
                return Ok(());
            }
        }
        stream.finish();
        // An owner that has said all may be gone before the answer comes.
        Err(unread(broken(socket).await))
    }

    fn keep(&mut self, bytes: &[u8]) {
        let first = self.kept.first().or(bytes.first());
        // Most of what is not TLS costs no copy; the rest is looked at only where a carrier is lost.
        self.spoiled = self.kept.len() + bytes.len() > KEPT || first != Some(&hello::FIRST_BYTE);
        match self.spoiled {
            true => self.kept = Vec::new(),
            false => {
                self.kept.extend_from_slice(bytes);
                self.sent = self.kept.len();
            }
        }
    }

    /// True where a target that received it, perhaps, is none the worse for receiving it again.
    fn may_be_sent_twice(&self) -> bool {
        !self.spoiled && (self.kept.is_empty() || hello::is_plain_hello(&self.kept))
    }
}

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
