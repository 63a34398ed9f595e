//! Queries by TCP: what a resolver said was too long for UDP, zone transfers, and libraries that prefer it.
//!
//! A connection carries any number of queries, with their answers in any order: ours at once, the resolver's
//! through one connection to it that is opened when first needed. Backpressure goes through: who does not
//! read is not read from, in both directions, so nothing piles up here but [`MOST_WAITING`] queries.

use std::borrow::Cow;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::answer::{self, Verdict};
use super::server::{Shared, log_panic, until};
use super::strip::strip;
use crate::accept;

/// A connection on which no message went in either direction for this long is closed.
const IDLE: Duration = Duration::from_secs(30);

/// How long a resolver has to accept.
const CONNECT: Duration = Duration::from_secs(10);

/// Queries of one connection that wait to be written to the resolver; the next one is not read before.
const MOST_WAITING: usize = 64;

/// Serves one listener until `stopped`, then until its connections are done.
pub(super) async fn serve(
    listener: TcpListener,
    port: u16,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut tasks = JoinSet::new();
    let mut gate = shared.gate.clone();
    loop {
        tokio::select! {
            () = until(&mut stopped) => break,
            Some(done) = tasks.join_next() => done.unwrap_or_else(log_panic),
            (stream, source) = accept::next(&mut gate, "a DNS connection", || listener.accept()) => {
                admit(stream, source, port, &shared, &mut tasks);
            }
        }
    }
    drop(listener);
    while let Some(done) = tasks.join_next().await {
        done.unwrap_or_else(log_panic);
    }
}

/// Starts a captured connection's task, within the limit; any other gets a reset.
fn admit(stream: TcpStream, source: SocketAddr, port: u16, shared: &Arc<Shared>, tasks: &mut JoinSet<()>) {
    let captured = shared.resolvers.take_flow(port, source, stream.as_fd());
    let resolver = shared.resolvers.resolver_of(port).filter(|_| captured);
    let permit = shared.connections.clone().try_acquire_owned().ok();
    let (Some(resolver), Some(permit)) = (resolver, permit) else {
        tracing::debug!(port, %source, captured, "refused a DNS connection");
        shared.counters.dropped.add();
        return reset(stream);
    };
    shared.note_use(port);
    let shared = shared.clone();
    tasks.spawn(async move {
        let _permit = permit;
        serve_connection(stream, resolver, &shared).await;
    });
}

/// Closes with RST: the peer must not take what happened for an orderly end.
fn reset(stream: TcpStream) {
    // Where it fails the connection is gone already.
    let _ = stream.set_zero_linger();
}

async fn serve_connection(mut stream: TcpStream, resolver: IpAddr, shared: &Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let (reader, writer) = stream.split();
    let resolver = SocketAddr::new(resolver, shared.settings.upstream_port);
    let (forward, forwarded) = mpsc::channel(MOST_WAITING);
    let client = Client {
        writer: tokio::sync::Mutex::new(writer),
        activity: Activity::new(),
        upstream_gone: Notify::new(),
        shared,
    };
    let served = async {
        tokio::try_join!(client.serve_queries(reader, forward), client.serve_upstream(resolver, forwarded))?;
        // Half of the connection may be closed already.
        client.writer.lock().await.shutdown().await
    };
    let ended = tokio::select! {
        ended = served => ended,
        () = client.activity.idle() => Ok(()),
    };
    if let Err(error) = ended {
        tracing::debug!(%resolver, "a DNS connection broke: {error}");
        reset(stream);
    }
}

/// One captured connection.
struct Client<'a, W> {
    writer: tokio::sync::Mutex<W>,
    activity: Activity,
    /// The resolver closed its connection: no more queries are taken, as it would have taken none.
    upstream_gone: Notify,
    shared: &'a Arc<Shared>,
}

impl<W: AsyncWrite + Unpin> Client<'_, W> {
    /// Reads queries until the client or the resolver closes, and answers those that are ours.
    async fn serve_queries(
        &self,
        mut reader: impl AsyncRead + Unpin,
        forward: mpsc::Sender<Vec<u8>>,
    ) -> io::Result<()> {
        loop {
            let query = tokio::select! {
                read = read_message(&mut reader) => match read? {
                    Some(query) => query,
                    None => return Ok(()),
                },
                () = self.upstream_gone.notified() => return Ok(()),
            };
            self.activity.touch();
            match self.shared.decide(&query) {
                Verdict::Reply(reply) => self.reply(&reply).await?,
                Verdict::Assign(pending) => match self.shared.assign(pending).await {
                    Some(reply) => self.reply(&reply).await?,
                    // It is reset, and asks anew.
                    None => return Err(io::Error::other("another process takes over")),
                },
                Verdict::Forward => {
                    self.shared.counters.forwarded.add();
                    if forward.send(query).await.is_err() {
                        return Ok(());
                    }
                }
                Verdict::Drop => {}
            }
        }
    }

    async fn reply(&self, reply: &[u8]) -> io::Result<()> {
        write_message(&mut *self.writer.lock().await, reply).await?;
        self.activity.touch();
        Ok(())
    }

    /// Waits for the first query that is not ours, connects to the resolver, and relays until it closes.
    async fn serve_upstream(
        &self,
        resolver: SocketAddr,
        mut queries: mpsc::Receiver<Vec<u8>>,
    ) -> io::Result<()> {
        while let Some(first) = queries.recv().await {
            let connected = timeout(CONNECT, TcpStream::connect(resolver)).await;
            match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(upstream) => {
                    let ended = self.relay(upstream, first, &mut queries).await;
                    self.upstream_gone.notify_one();
                    return ended;
                }
                Err(error) => {
                    // What waited for the connection fails with it; a later query tries again.
                    tracing::debug!(%resolver, "a DNS connection was not accepted: {error}");
                    self.fail(&first).await?;
                    while let Ok(query) = queries.try_recv() {
                        self.fail(&query).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// SERVFAIL: the client's connection stands already, so this is the nearest to the refusal that it would
    /// have met, and other queries on it go on.
    async fn fail(&self, query: &[u8]) -> io::Result<()> {
        self.shared.counters.failed.add();
        self.reply(&answer::servfail(query)).await
    }

    async fn relay(
        &self,
        mut upstream: TcpStream,
        first: Vec<u8>,
        queries: &mut mpsc::Receiver<Vec<u8>>,
    ) -> io::Result<()> {
        let _ = upstream.set_nodelay(true);
        let (mut reader, mut writer) = upstream.split();
        let to_upstream = async {
            write_message(&mut writer, &first).await?;
            while let Some(query) = queries.recv().await {
                write_message(&mut writer, &query).await?;
            }
            // The client asks no more; the resolver may still answer.
            writer.shutdown().await?;
            std::future::pending::<io::Result<Infallible>>().await
        };
        let from_upstream = async {
            while let Some(reply) = read_message(&mut reader).await? {
                let stripped = strip(&reply, &self.shared.names.prefixes());
                if let Cow::Owned(_) = stripped {
                    self.shared.counters.stripped.add();
                }
                self.reply(&stripped).await?;
            }
            Ok(())
        };
        tokio::select! {
            ended = from_upstream => ended,
            Err(error) = to_upstream => Err(error),
        }
    }
}

/// When a message last went.
struct Activity(Mutex<Instant>);

impl Activity {
    fn new() -> Activity {
        Activity(Mutex::new(Instant::now()))
    }

    fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Ends when none went for [`IDLE`].
    async fn idle(&self) {
        loop {
            let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner) + IDLE;
            if Instant::now() >= until {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// The next message, with two bytes of length before it on the wire; `None` at the end.
async fn read_message(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    if reader.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut length[1..]).await?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    reader.read_exact(&mut message).await?;
    Ok(Some(message))
}

/// In one piece: some resolvers take a length that comes alone for a broken message.
async fn write_message(writer: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::Error::other("a DNS message over 64 KiB"))?;
    let mut framed = Vec::with_capacity(2 + message.len());
    framed.extend(length.to_be_bytes());
    framed.extend(message);
    writer.write_all(&framed).await
}
