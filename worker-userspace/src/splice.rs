//! Copies both ways between a connection and a stream, or between two streams. Of what a connection is made, TCP alone
//! or below TLS, is `wire`'s and `secured`'s to know.
//!
//! What must hold: not a byte is lost or altered; each direction ends by itself, so that a half-closed
//! connection gets its answer; what was cut ends in a reset on the other side, never in a clean end, and what
//! came before a reset arrives before it where its receiver has room. An idle connection holds no buffer.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::coop::consume_budget;
use tokio::time::timeout;

use crate::inspect::ledger::Meter;
use crate::refusal::{Code, Refusal};
use crate::tunnel::pieces::{Slices, advance};
use crate::tunnel::stream::{LARGEST_SEND, Stream};
use crate::tunnel::transport::Way;
use secured::Secured;
use wire::Wire;

mod secured;
mod wire;

/// First size of a read; it doubles while reads fill it.
const FIRST_READ: usize = 8 * 1024;

/// Pieces that are written at once: as many full records as a lane reads in its longest turn (512 KiB), and some. One left over
/// would be a call and a packet.
const PIECES: usize = 36;

/// How long what came before a reset waits for room at its receiver.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Which of a [`Meter`]'s directions a socket's reads count for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// The socket is the opener's.
    Up,
    /// The socket is the target's.
    Down,
}

impl Reads {
    /// What counts the bytes that are read from the socket, and what those that are written to it.
    fn counters(self, meter: &Meter) -> (&AtomicU64, &AtomicU64) {
        match self {
            Reads::Up => (&meter.up, &meter.down),
            Reads::Down => (&meter.down, &meter.up),
        }
    }
}

/// Makes the peer of a socket see a reset when the socket is closed, whoever closes it: this task, or the
/// kernel after a crash.
pub fn reset_on_close(socket: &TcpStream) {
    // The socket may be beyond that already; then its peer has been told.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

fn end_on_close(socket: &TcpStream) {
    let _ = SockRef::from(socket).set_linger(None);
}

/// Copies between a socket and a stream until both directions ended or one failed. On failure the stream is
/// reset, and so is the socket when its owner closes it.
///
/// # Errors
/// Why the connection was cut.
pub fn splice<'a>(
    socket: &'a mut TcpStream,
    stream: &'a Stream,
    meter: &'a Meter,
    reads: Reads,
) -> impl Future<Output = Result<(), Refusal>> + Send + 'a {
    copy(&*socket, stream, meter, reads)
}

/// As [`splice`], whatever leads to the target; closes it, too.
///
/// # Errors
/// Why the connection was cut.
#[allow(clippy::manual_async_fn, reason = "an async fn has room for its arguments twice")]
pub fn splice_over<'a>(
    way: Way,
    stream: &'a Stream,
    meter: &'a Meter,
    reads: Reads,
) -> impl Future<Output = Result<(), Refusal>> + Send + 'a {
    async move {
        match way {
            Way::Plain(ref tcp) => copy(tcp, stream, meter, reads).await,
            Way::Tls(tls) => {
                // Few connections need it, and all would carry the room for it.
                let secured = Box::new(Secured::from(*tls));
                Box::pin(copy(&*secured, stream, meter, reads)).await
            }
        }
    }
}

async fn copy<W: Wire + Sync>(wire: &W, stream: &Stream, meter: &Meter, reads: Reads) -> Result<(), Refusal> {
    let (sent, received) = reads.counters(meter);
    // Until both directions have ended, every way out of here is a cut and must look like one.
    reset_on_close(wire.tcp());
    let mut chunks = VecDeque::new();
    let written = Notify::new();
    let outcome = tokio::try_join!(
        async {
            wire_to_stream(wire, stream, sent).await?;
            Box::pin(half_closed(wire.tcp(), &written)).await
        },
        async {
            stream_to_wire(stream, wire, &mut chunks, received).await?;
            written.notify_one();
            Ok(())
        }
    );
    match outcome {
        Ok(((), ())) => {
            end_on_close(wire.tcp());
            Ok(())
        }
        Err(refusal) => {
            // TCP too delivers what came before a reset, as far as there is room for it.
            stream.take_arrived(&mut chunks);
            last_words(wire, &mut chunks, received);
            last_answer(wire, stream, sent);
            stream.reset(refusal.clone());
            Err(refusal)
        }
    }
}

/// Who has ended its direction may be gone later, and nobody reads from it any more.
async fn half_closed(tcp: &TcpStream, written: &Notify) -> Result<(), Refusal> {
    tokio::select! {
        error = broken(tcp) => Err(unread(error)),
        () = written.notified() => Ok(()),
    }
}

async fn wire_to_stream<W: Wire>(wire: &W, stream: &Stream, meter: &AtomicU64) -> Result<(), Refusal> {
    let mut size = FIRST_READ;
    let mut broke: Option<Refusal> = None;
    loop {
        readable(wire, stream).await?;
        // Asked last, with no wait between the answer and the send: what has room now is not the room of
        // thousands of idle connections that all become readable at once.
        let allowed = if let Some(allowed) = stream.sendable_now().await {
            allowed?
        } else if let Some(refusal) = &broke {
            // The socket still has what came before; it is passed on for as long as somebody takes it.
            match Box::pin(timeout(LAST_WAIT, stream.sendable())).await {
                Ok(allowed) => allowed?,
                Err(_) => return Err(refusal.clone()),
            }
        } else {
            match Box::pin(room(wire.tcp(), stream)).await {
                Ok(allowed) => allowed?,
                Err(error) => {
                    broke = Some(unread(error));
                    continue;
                }
            }
        };
        let wanted = size.min(allowed);
        let mut buffer = BytesMut::with_capacity(wanted);
        match wire.try_read(&mut buffer) {
            Ok(0) => {
                if let Some(refusal) = broke {
                    return Err(refusal);
                }
                stream.finish();
                return Ok(());
            }
            Ok(n) => {
                meter.fetch_add(n as u64, Ordering::Relaxed);
                size = match n < wanted {
                    true => size.min(n * 2).max(FIRST_READ),
                    false if wanted < size => size,
                    false => (size * 2).min(LARGEST_SEND),
                };
                stream.send(buffer);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => stream.pass(),
            Err(e) => return Err(broke.unwrap_or_else(|| unread(e))),
        }
    }
}

/// Waits until there may be something to read. By tokio's own memory of who waits, as all that an idle connection waits
/// for: a future of tokio's for it takes five times the room.
async fn readable<W: Wire>(wire: &W, stream: &Stream) -> Result<(), Refusal> {
    poll_fn(|cx| match wire.holds() || wire.tcp().poll_read_ready(cx).map_err(unread)?.is_ready() {
        true => Poll::Ready(Ok(())),
        false => stream.poll_failed(cx).map(Err),
    })
    .await
}

/// What may be sent, once that is something; or how the socket failed before.
async fn room(tcp: &TcpStream, stream: &Stream) -> io::Result<Result<usize, Refusal>> {
    tokio::select! {
        biased;
        allowed = stream.sendable() => Ok(allowed),
        error = broken(tcp) => Err(error),
    }
}

pub(crate) fn unread(error: io::Error) -> Refusal {
    const DOING: &str = "reading from the connection";
    match error.kind() {
        // TCP alone has no such end.
        io::ErrorKind::UnexpectedEof => {
            Refusal::new(Code::Reset, format!("{DOING}: the proxy ended it without TLS's farewell"))
        }
        _ => Refusal::from_io(&error, DOING),
    }
}

/// Waits until the socket has failed: a reset must be noticed where nobody may read, too.
pub(crate) async fn broken(socket: &TcpStream) -> io::Error {
    loop {
        if let Err(error) = socket.ready(Interest::ERROR).await {
            return error;
        }
        let pending = || socket.take_error()?.ok_or(io::ErrorKind::WouldBlock.into());
        match socket.try_io(Interest::ERROR, pending) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(error) | Err(error) => return error,
        }
    }
}

async fn stream_to_wire<W: Wire>(
    stream: &Stream,
    wire: &W,
    chunks: &mut VecDeque<BytesMut>,
    meter: &AtomicU64,
) -> Result<(), Refusal> {
    while stream.receive(chunks).await? {
        while !chunks.is_empty() {
            let write = || {
                if chunks.is_empty() {
                    stream.take_arrived(chunks);
                }
                if chunks.is_empty() {
                    // What had been given back went with a reset; `receive` says why.
                    return Ok(0);
                }
                let n = wire.try_write(&Slices::<PIECES>::of(chunks)).and_then(some);
                if n.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock) {
                    stream.give_back(chunks);
                }
                n
            };
            let n = written(wire, stream, write).await?;
            advance(chunks, n);
            meter.fetch_add(n as u64, Ordering::Relaxed);
            stream.consumed(n);
            consume_budget().await;
        }
        written(wire, stream, || wire.try_flush()).await?;
        // What was grown for a burst is not kept while idle.
        *chunks = VecDeque::new();
    }
    let end = || match wire.try_end() {
        // The peer closed its reading side meanwhile; it has all that it wanted.
        Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(()),
        ended => ended,
    };
    written(wire, stream, end).await
}

/// Does what the socket need not have room for, or waits for the room.
async fn written<W: Wire, T>(
    wire: &W,
    stream: &Stream,
    mut step: impl FnMut() -> io::Result<T>,
) -> Result<T, Refusal> {
    let lost = |e: io::Error| Refusal::from_io(&e, "writing to the connection");
    poll_fn(|cx| {
        loop {
            match step() {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done.map_err(lost)),
            }
            if wire.tcp().poll_write_ready(cx).map_err(lost)?.is_pending() {
                // The other direction may have ended: nobody else would notice while this one is blocked.
                return stream.poll_failed(cx).map(Err);
            }
        }
    })
    .await
}

fn some(n: usize) -> io::Result<usize> {
    if n == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(n) }
}

/// Writes what the socket takes without a wait. Past tokio, which may not know yet what the kernel knows.
fn last_words<W: Wire>(wire: &W, chunks: &mut VecDeque<BytesMut>, meter: &AtomicU64) {
    // What fails here is the failure that is reported already, or a lack of room. Where no chunk is left, the wire itself
    // may still have some of it.
    while let Ok(n) = wire.write_now(&Slices::<PIECES>::of(chunks)) {
        if n == 0 {
            return;
        }
        advance(chunks, n);
        meter.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// Sends what there is to read, as far as the stream has room for it without a wait.
fn last_answer<W: Wire>(wire: &W, stream: &Stream, meter: &AtomicU64) {
    loop {
        let mut buffer = BytesMut::zeroed(stream.room().min(LARGEST_SEND));
        if buffer.is_empty() {
            return;
        }
        let Ok(n @ 1..) = wire.read_now(&mut buffer) else { return };
        buffer.truncate(n);
        meter.fetch_add(n as u64, Ordering::Relaxed);
        stream.send(buffer);
    }
}

/// Copies between two streams of different lanes: the appliance between two workers.
///
/// # Errors
/// Why the connection was cut. Both streams are still to be reset.
pub async fn relay(near: &Stream, far: &Stream, meter: &Meter) -> Result<(), Refusal> {
    tokio::try_join!(stream_to_stream(near, far, &meter.up), stream_to_stream(far, near, &meter.down))?;
    Ok(())
}

async fn stream_to_stream(from: &Stream, to: &Stream, meter: &AtomicU64) -> Result<(), Refusal> {
    let mut chunks: VecDeque<BytesMut> = VecDeque::new();
    loop {
        let more = tokio::select! {
            more = from.receive(&mut chunks) => more?,
            // The other direction may have ended: nobody else would notice while this one is quiet.
            refusal = to.failed() => return Err(refusal),
        };
        if !more {
            break;
        }
        while !chunks.is_empty() {
            let allowed = match to.sendable_now().await {
                Some(allowed) => allowed?,
                None => {
                    from.give_back(&mut chunks);
                    let allowed = tokio::select! {
                        // What came before a reset goes before it, where it need not wait.
                        biased;
                        allowed = to.sendable() => allowed?,
                        refusal = from.failed() => return Err(refusal),
                    };
                    from.take_arrived(&mut chunks);
                    allowed
                }
            };
            let Some(mut chunk) = chunks.pop_front() else { break };
            if chunk.len() > allowed {
                chunks.push_front(chunk.split_off(allowed));
            }
            let n = chunk.len();
            to.send(chunk);
            meter.fetch_add(n as u64, Ordering::Relaxed);
            from.consumed(n);
        }
    }
    to.finish();
    Ok(())
}

#[cfg(test)]
mod tests;
