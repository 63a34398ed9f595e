//! Queries by UDP.
//!
//! Each forwarded query has a socket of its own, with a port that the kernel picks at random and connected to
//! the resolver: so an answer is guessed as hard as if the application had asked itself, and the resolver's
//! ICMP errors find their query. An error is passed on as SERVFAIL: the application would have seen
//! `ECONNREFUSED` or `ENETUNREACH` and gone to its next resolver at once, and that is what SERVFAIL makes it do;
//! silence would cost it seconds. A resolver's silence stays silence.

use std::borrow::Cow;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::answer::{self, Verdict};
use super::server::{Shared, log_panic, until};
use super::strip::strip;
use super::wire;

/// Longer than any resolver library waits before it asks again.
const DEADLINE: Duration = Duration::from_secs(10);

/// The largest datagram there is.
const LARGEST: usize = 65535;

/// How long to wait after the socket itself failed (no memory), so that this does not spin.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves one socket until `stopped`, then until the queries in flight are done.
pub(super) async fn serve(
    socket: Arc<UdpSocket>,
    port: u16,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; LARGEST];
    let mut gate = shared.gate.clone();
    loop {
        let (length, source) = tokio::select! {
            () = until(&mut stopped) => break,
            Some(done) = tasks.join_next() => {
                done.unwrap_or_else(log_panic);
                continue;
            }
            ready = gate.through(|| socket.readable()) => match ready.and_then(|()| socket.try_recv_from(&mut buffer)) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => {
                    tracing::warn!(port, "receiving DNS queries: {error}");
                    sleep(PAUSE).await;
                    continue;
                }
            }
        };
        // A port that stands for nobody yet is asked by nobody whom the kernel captured.
        let Some(resolver) = shared.resolvers.resolver_of(port) else {
            shared.counters.dropped.add();
            continue;
        };
        shared.note_use(port);
        let query = &buffer[..length];
        let reply_to = Reply { socket: socket.clone(), source, shared: shared.clone() };
        match shared.decide(query) {
            Verdict::Reply(reply) => reply_to.send(&reply).await,
            Verdict::Drop => {}
            Verdict::Assign(pending) => start(&mut tasks, &shared, async move {
                if let Some(reply) = reply_to.shared.assign(pending).await {
                    reply_to.send(&reply).await;
                }
            }),
            Verdict::Forward => {
                let query = query.to_vec();
                start(&mut tasks, &shared, async move { forward(&query, resolver, reply_to).await });
            }
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap_or_else(log_panic);
    }
}

/// Starts what a query waits for, within the limit; beyond it the query is dropped, as a network would do.
fn start(tasks: &mut JoinSet<()>, shared: &Arc<Shared>, work: impl Future<Output = ()> + Send + 'static) {
    match shared.queries.clone().try_acquire_owned() {
        Err(_) => shared.counters.dropped.add(),
        Ok(permit) => {
            tasks.spawn(async move {
                let _permit = permit;
                work.await;
            });
        }
    }
}

/// Where the reply to a query goes.
struct Reply {
    socket: Arc<UdpSocket>,
    source: SocketAddr,
    shared: Arc<Shared>,
}

impl Reply {
    async fn send(&self, reply: &[u8]) {
        if let Err(error) = self.socket.send_to(reply, self.source).await {
            tracing::debug!(source = %self.source, "a DNS reply was not sent: {error}");
            self.shared.counters.dropped.add();
        }
    }
}

async fn forward(query: &[u8], resolver: IpAddr, reply_to: Reply) {
    let shared = &reply_to.shared;
    shared.counters.forwarded.add();
    let resolver = SocketAddr::new(resolver, shared.settings.upstream_port);
    match timeout(DEADLINE, exchange(query, resolver)).await {
        Ok(Ok(reply)) => {
            let stripped = strip(&reply, &shared.names.prefixes());
            if let Cow::Owned(_) = stripped {
                shared.counters.stripped.add();
            }
            reply_to.send(&stripped).await;
        }
        Ok(Err(error)) => {
            tracing::debug!(%resolver, "a DNS query was not answered: {error}");
            shared.counters.failed.add();
            reply_to.send(&answer::servfail(query)).await;
        }
        Err(_) => {
            tracing::debug!(%resolver, "a DNS query was not answered in time");
            shared.counters.failed.add();
        }
    }
}

/// Asks the resolver and waits for the reply to this very query; others are passed over, as the application
/// itself would have done.
async fn exchange(query: &[u8], resolver: SocketAddr) -> io::Result<Vec<u8>> {
    let any = match resolver {
        SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(resolver).await?;
    socket.send(query).await?;
    loop {
        // An ICMP error makes a UDP socket ready for nothing but the error itself: reading alone would wait on.
        socket.ready(Interest::READABLE | Interest::ERROR).await?;
        // The buffer is made when there is something for it: a thousand queries may wait.
        let mut reply = Vec::with_capacity(LARGEST);
        match socket.try_recv_buf(&mut reply) {
            Ok(_) if is_reply_to(query, &reply) => return Ok(reply),
            Ok(_) => {
                tracing::debug!(%resolver, "passed over a datagram that answers another query");
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        let take_error = || Err(socket.take_error()?.unwrap_or_else(|| io::ErrorKind::WouldBlock.into()));
        match socket.try_io(Interest::ERROR, take_error) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
}

/// The same id, and the same questions but for their case; or none, as in many a FORMERR.
fn is_reply_to(query: &[u8], reply: &[u8]) -> bool {
    let same_questions = || match (wire::questions(query), wire::questions(reply)) {
        (Ok(asked), Ok(answered)) => answered.list.is_empty() || answered.list == asked.list,
        _ => false,
    };
    reply.len() >= wire::HEADER && wire::is_response(reply) && query[..2] == reply[..2] && same_questions()
}
