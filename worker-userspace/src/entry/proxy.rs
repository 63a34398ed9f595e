//! Entries for clients that know proxies: HTTP `CONNECT` and SOCKS5.
//!
//! What must hold: only what a proxy host names is reached, and only through the tunnel, never from here; a client
//! hears what became of the dial, in its protocol's words, before it says anything to the target; not a byte that it
//! sent ahead is lost; who is asked for a password gets no further without it; who says nothing is let go in time.
//!
//! A loop can't come of itself: nothing here repeats a request. A client that asks for this very port, through a
//! worker that may dial it, gets a second connection to it and must ask again.

mod answer;
mod credentials;
mod http;
mod socks;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};

pub use credentials::Credentials;

use super::DIAL;
use crate::accept::{self, Places};
use crate::carry::Carry;
use crate::drain::Drain;
use crate::inspect::ledger::{Entry, FlowGuard, Ledger, Origin};
use crate::refusal::Refusal;
use crate::route::Router;
use crate::splice::{Reads, reset_on_close, splice};
use crate::target::Target;
use crate::tunnel::stream::Stream;

/// Connections at once that have not said yet, by right, where they want to go.
const PLACES: usize = 1024;
/// Those of one other host.
const EACH: usize = 64;
/// How long they may take for a request.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long they may take for all their requests, until one is taken.
const PATIENCE: Duration = Duration::from_secs(30);
/// Wait before a wrong password is answered.
const WRONG: Duration = Duration::from_millis(500);
/// A client that vanished is noticed some time after this, while nothing moves.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// The entries. Clones are the same.
#[derive(Clone)]
pub struct Proxy {
    router: Arc<dyn Router>,
    ledger: Ledger,
    credentials: Option<Arc<Credentials>>,
    drain: Drain,
    places: Places,
}

impl Proxy {
    /// Entries that let everybody in, or those with these credentials.
    pub fn new(
        router: Arc<dyn Router>,
        ledger: Ledger,
        credentials: Option<Credentials>,
        drain: Drain,
    ) -> Proxy {
        let places = Places::new(PLACES, |source| if source.is_loopback() { PLACES } else { EACH });
        Proxy { router, ledger, credentials: credentials.map(Arc::new), drain, places }
    }

    /// Takes HTTP `CONNECT` until the drain begins.
    pub async fn serve_http(self, listener: TcpListener) {
        let take = |socket, source, place| {
            self.drain.spawn("HTTP client", self.clone().http(socket, source, place));
        };
        accept::each_in_place(&listener, &self.drain, "an HTTP client", &self.places, take).await;
    }

    /// Takes SOCKS5 until the drain begins.
    pub async fn serve_socks(self, listener: TcpListener) {
        let take = |socket, source, place| {
            self.drain.spawn("SOCKS client", self.clone().socks(socket, source, place));
        };
        accept::each_in_place(&listener, &self.drain, "a SOCKS client", &self.places, take).await;
    }

    /// Writes down what a client asked for.
    fn flow(&self, entry: Entry, client: &Client, target: Target) -> FlowGuard {
        let origin = Origin { source: Some(client.source), user: client.user.clone(), ..Origin::default() };
        self.ledger.open(entry, rand::random(), target, origin)
    }

    async fn dial(&self, flow: &FlowGuard) -> Result<Stream, Refusal> {
        Carry { router: &*self.router, flow, deadline: DIAL }.dial().await
    }
}

/// Who asks.
struct Client {
    source: SocketAddr,
    /// Where a password was asked for and given.
    user: Option<String>,
}

fn tune(socket: &TcpStream) {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE);
    // The connection may be gone already; then the next read says so.
    let _ = socket.set_nodelay(true);
    let _ = SockRef::from(socket).set_tcp_keepalive(&keepalive);
}

/// Copies, beginning with what the client sent `ahead` of the answer.
async fn forward(
    socket: &mut TcpStream,
    stream: &Stream,
    mut ahead: BytesMut,
    flow: &FlowGuard,
) -> Result<(), Refusal> {
    // The answer was given: from here on every way out is a cut and must look like one.
    reset_on_close(socket);
    while !ahead.is_empty() {
        let room = stream.sendable().await?;
        let part = ahead.split_to(room.min(ahead.len()));
        flow.meter.up.fetch_add(part.len() as u64, Ordering::Relaxed);
        stream.send(part);
    }
    splice(socket, stream, &flow.meter, Reads::Up).await
}

/// Says what became of a connection that was not made, or was cut.
fn tell(flow: &FlowGuard, refusal: &Refusal) {
    let source = flow.origin.source.map(|source| source.to_string()).unwrap_or_default();
    tracing::warn!(target = %flow.target, %source, trace = format_args!("{:016x}", flow.trace), "{refusal}");
}
