//! Copies between a stream and a connection in TLS: to a target behind a proxy that is itself spoken to in TLS.
//!
//! Apart from [`splice`](super::splice), which asks the socket itself what it has; here the session stands in between.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::ready;

use bytes::BytesMut;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite};
use tokio_rustls::TlsStream;

use super::{Reads, advance, end_on_close, reset_on_close, slices, splice};
use crate::inspect::ledger::Meter;
use crate::refusal::{Code, Refusal};
use crate::tunnel::stream::{LARGEST_SEND, Stream};
use crate::tunnel::transport::Transport;

/// A connection that one task reads from and writes to, in turns.
struct Shared<'t, S>(Mutex<Pin<&'t mut S>>);

/// As [`splice`], whatever the connection is made of.
///
/// # Errors
/// Why the connection was cut.
pub async fn splice_over(
    transport: &mut Transport,
    stream: &Stream,
    meter: &Meter,
    reads: Reads,
) -> Result<(), Refusal> {
    if let Transport::Plain(tcp) = transport {
        return splice(tcp, stream, meter, reads).await;
    }
    reset_on_close(transport.tcp());
    match transport {
        Transport::Plain(_) => {}
        Transport::Tls(tls) => splice_secured(tls, stream, meter, reads).await?,
        Transport::TlsInTls(tls) => splice_secured(tls, stream, meter, reads).await?,
    }
    end_on_close(transport.tcp());
    Ok(())
}

/// Copies until both directions ended or one failed. On failure the stream is reset.
async fn splice_secured<S: AsyncRead + AsyncWrite + Unpin>(
    tls: &mut TlsStream<S>,
    stream: &Stream,
    meter: &Meter,
    reads: Reads,
) -> Result<(), Refusal> {
    let (sent, received) = reads.counters(meter);
    let shared = Shared(Mutex::new(Pin::new(tls)));
    let outcome = tokio::try_join!(shared.read_into(stream, sent), shared.write_from(stream, received));
    if let Err(refusal) = &outcome {
        stream.reset(refusal.clone());
    }
    outcome.map(|_| ())
}

impl<'t, S: AsyncBufRead + AsyncWrite> Shared<'t, S> {
    fn lock(&self) -> MutexGuard<'_, Pin<&'t mut S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read_into(&self, stream: &Stream, meter: &AtomicU64) -> Result<(), Refusal> {
        loop {
            tokio::select! {
                come = self.read(0) => { come.map_err(unread)?; }
                refusal = stream.failed() => return Err(refusal),
            }
            // Asked last, as in `splice`: what has room now is not the room of thousands of idle connections.
            let allowed = stream.sendable().await?;
            let buffer = self.read(allowed.min(LARGEST_SEND)).await.map_err(unread)?;
            if buffer.is_empty() {
                stream.finish();
                return Ok(());
            }
            meter.fetch_add(buffer.len() as u64, Ordering::Relaxed);
            stream.send(buffer);
        }
    }

    /// Waits until there is something to read, or the end; takes at most `most` bytes of it.
    async fn read(&self, most: usize) -> io::Result<BytesMut> {
        poll_fn(|cx| {
            let mut tls = self.lock();
            let come = ready!(tls.as_mut().poll_fill_buf(cx))?;
            let taken = BytesMut::from(&come[..come.len().min(most)]);
            tls.as_mut().consume(taken.len());
            Ok(taken).into()
        })
        .await
    }

    async fn write_from(&self, stream: &Stream, meter: &AtomicU64) -> Result<(), Refusal> {
        let lost = |e: io::Error| Refusal::from_io(&e, "writing to the connection");
        let mut chunks = VecDeque::new();
        while stream.receive(&mut chunks).await? {
            while !chunks.is_empty() {
                let write = poll_fn(|cx| self.lock().as_mut().poll_write_vectored(cx, &slices(&chunks)));
                let n = tokio::select! {
                    n = write => n.and_then(some).map_err(lost)?,
                    refusal = stream.failed() => return Err(refusal),
                };
                advance(&mut chunks, n);
                meter.fetch_add(n as u64, Ordering::Relaxed);
                stream.consumed(n);
            }
            tokio::select! {
                flushed = poll_fn(|cx| self.lock().as_mut().poll_flush(cx)) => flushed.map_err(lost)?,
                refusal = stream.failed() => return Err(refusal),
            }
            chunks = VecDeque::new();
        }
        poll_fn(|cx| self.lock().as_mut().poll_shutdown(cx)).await.or_else(|e| match e.kind() {
            // The peer closed its reading side meanwhile; it has all that it wanted.
            ErrorKind::NotConnected => Ok(()),
            _ => Err(lost(e)),
        })
    }
}

fn some(n: usize) -> io::Result<usize> {
    if n == 0 { Err(ErrorKind::WriteZero.into()) } else { Ok(n) }
}

fn unread(error: io::Error) -> Refusal {
    match error.kind() {
        ErrorKind::UnexpectedEof => Refusal::new(
            Code::Reset,
            "reading from the connection: the proxy ended it without TLS's farewell",
        ),
        _ => super::unread(error),
    }
}
