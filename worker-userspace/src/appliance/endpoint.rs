//! The port that workers dial and people sign in at: TCP, TLS, HTTP, the upgrade to a lane, and the way to the
//! API and the page for everything else.
//!
//! What must hold: who has no key learns nothing but 401; each step has a deadline and each queue a bound,
//! so that strangers can't use the appliance up; an error in one connection touches no other.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::BytesMut;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tower::ServiceExt;

use super::registry::{Admission, Registry, node};
use super::strangers::{self, Stranger};
use crate::accept::{self, Place};
use crate::drain::Drain;
use crate::inspect::ledger::Ledger;
use crate::tunnel::handshake::{self, DEADLINE, HandshakeError, PATH, WANTS, accept_upgrade, bearer};
use crate::tunnel::lane::{Lane, Settings, Upgraded};
use crate::tunnel::message::{Capabilities, Hello};
use crate::tunnel::tls::Listener;
use crate::tunnel::transport::{Transport, tune};
use crate::tunnel::websocket::Side;
use crate::web::Peer;

/// Time for a worker to hear why its lane is not wanted.
const FAREWELL: Duration = Duration::from_secs(1);
/// Time for a connection to show a credential that works.
const INTRODUCTION: Duration = Duration::from_secs(30);
/// Most header bytes of a request.
const HEADERS: usize = 16 * 1024;

/// What all connections of the endpoint share.
#[derive(Clone)]
pub struct Endpoint {
    /// TLS; `None` for plaintext.
    pub tls: Option<Arc<Listener>>,
    /// Who may connect, and who is.
    pub registry: Arc<Registry>,
    /// Where connections are written down.
    pub ledger: Ledger,
    /// How lanes are run.
    pub settings: Settings,
    /// What this end says of itself.
    pub hello: Hello,
    /// What answers all requests but the workers'. Its requests have a [`Peer`] among their extensions.
    pub web: Router,
    /// Stops it.
    pub drain: Drain,
}

impl Endpoint {
    /// Accepts connections until the drain begins.
    pub async fn serve(self, listener: TcpListener) {
        let take = |tcp, peer, place| {
            let endpoint = self.clone();
            self.drain.spawn("endpoint connection", async move {
                if let Err(error) = endpoint.connection(tcp, peer, place).await {
                    tracing::debug!(%peer, "connection ended: {error}");
                }
            });
        };
        accept::each_in_place(&listener, &self.drain, "a worker", &strangers::places(), take).await;
    }

    /// Serves one connection. The place is held until the peer is known or gone.
    async fn connection(&self, tcp: TcpStream, peer: SocketAddr, place: Place) -> io::Result<()> {
        tune(&tcp)?;
        let (transport, is_certified) = match &self.tls {
            None => (Transport::Plain(tcp), true),
            Some(listener) => {
                let handshake = timeout(DEADLINE, listener.accept(tcp, peer));
                let accepted = handshake.await.map_err(|_| io::ErrorKind::TimedOut)??;
                (Transport::Tls(Box::new(accepted.stream)), accepted.is_certified)
            }
        };
        let stranger = Stranger::new(place);
        let shown = stranger.clone();
        let service = service_fn(move |request| self.answer(request, peer, is_certified, shown.clone()));
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            // Between two requests too.
            .header_read_timeout(DEADLINE)
            .max_buf_size(HEADERS)
            .max_headers(64)
            .serve_connection(TokioIo::new(transport), service)
            .with_upgrades();
        tokio::pin!(serving);
        let unknown = async {
            sleep(INTRODUCTION).await;
            if stranger.is_known() {
                std::future::pending().await
            }
        };
        tokio::select! {
            served = &mut serving => return served.map_err(io::Error::other),
            () = unknown => return Err(io::ErrorKind::TimedOut.into()),
            () = self.drain.stopping() => {}
        }
        if !stranger.is_known() {
            return Ok(());
        }
        // What is being answered is answered to its end.
        serving.as_mut().graceful_shutdown();
        serving.await.map_err(io::Error::other)
    }

    async fn answer(
        &self,
        mut request: Request<Incoming>,
        peer: SocketAddr,
        is_certified: bool,
        stranger: Stranger,
    ) -> Result<Response<Body>, Infallible> {
        if request.uri().path() == PATH {
            return Ok(self.tunnel(request, peer, is_certified));
        }
        request.extensions_mut().insert(Peer::Network(peer));
        request.extensions_mut().insert(stranger.clone());
        let mut response = self.web.clone().oneshot(request.map(Body::new)).await?;
        if !stranger.may_stay() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }

    /// Answers a worker that asks for a lane.
    fn tunnel(&self, mut request: Request<Incoming>, peer: SocketAddr, is_certified: bool) -> Response<Body> {
        let status = |status| {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = status;
            // A stranger gets one answer.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            response
        };
        let key = bearer(request.headers());
        let Some(admission) = key.and_then(|key| self.registry.authenticate(key)) else {
            self.registry.refused(key, peer);
            tracing::warn!(%peer, "refused a websocket: no group has its key (401)");
            return status(StatusCode::UNAUTHORIZED);
        };
        if !is_certified {
            tracing::warn!(
                %peer,
                "refused a websocket: the worker has no client certificate, and `appliance.client_certificates` \
                 requires one (403)"
            );
            let mut response = status(StatusCode::FORBIDDEN);
            response.headers_mut().insert(WANTS.0, HeaderValue::from_static(WANTS.1));
            return response;
        }
        let headers = match accept_upgrade(request.headers()) {
            Ok(headers) => headers,
            Err((code, why)) => {
                tracing::warn!(%peer, "refused a request {why} ({code})");
                return status(code);
            }
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let endpoint = self.clone();
        self.drain.spawn("lane", async move {
            match upgrade.await.map(|upgraded| upgraded.downcast::<TokioIo<Transport>>()) {
                Ok(Ok(parts)) => {
                    let read = BytesMut::from(&parts.read_buf[..]);
                    let upgraded = Upgraded::new(parts.io.into_inner(), Side::Server, read);
                    endpoint.greet(upgraded, admission, peer).await;
                }
                Ok(Err(_)) => tracing::error!(%peer, "the upgraded connection is not ours; this is a bug"),
                Err(error) => tracing::warn!(%peer, "the upgrade failed: {error}"),
            }
        });
        let mut response = status(StatusCode::SWITCHING_PROTOCOLS);
        for (name, value) in headers {
            response.headers_mut().insert(name, value);
        }
        response
    }

    async fn greet(self, upgraded: Upgraded<Transport>, admission: Admission, peer: SocketAddr) {
        let name = self.name(&admission);
        let capabilities = self.hello.capabilities.with(Capabilities::SEALED, self.tls.is_some());
        let ours = Hello { capabilities, ..self.hello.clone() };
        let (upgraded, hello) = match handshake::welcome(upgraded, &ours).await {
            Ok(greeted) => greeted,
            // `dworker doctor` knocks and goes.
            Err(HandshakeError::Closed(Some(handshake::GOODBYE))) => {
                return tracing::debug!(%peer, group = %name, "somebody with a worker's key looked whether it is taken");
            }
            Err(error) => return tracing::warn!(%peer, group = %name, "a worker's greeting failed: {error}"),
        };
        // As at the worker: its lanes are on as many threads as there are, one after the other.
        let first = usize::from(hello.session[0]);
        let thread = self.settings.threads.at(first + usize::from(hello.lane));
        self.drain.clone().spawn_on(&thread, "lane", async move {
            match upgraded.try_map(Transport::moved) {
                Ok(upgraded) => self.lane(upgraded, hello, admission, peer).await,
                Err(error) => tracing::warn!(%peer, group = %name, "a lane has no place: {error}"),
            }
        });
    }

    fn name(&self, admission: &Admission) -> String {
        self.registry.group(admission.group).map(|group| group.config.name.clone()).unwrap_or_default()
    }

    async fn lane(
        &self,
        upgraded: Upgraded<Transport>,
        hello: Hello,
        admission: Admission,
        peer: SocketAddr,
    ) {
        let (name, node) = (self.name(&admission), node(&hello));
        let (lane, incoming, driver) = Lane::new(upgraded, hello, self.settings.clone());
        let connected = match self.registry.connect(admission, lane.clone(), peer) {
            Ok(connected) => connected,
            Err(refusal) => {
                tracing::warn!(%peer, group = %name, %node, "refused a lane: {refusal}");
                // The worker must hear why: it tries again and again.
                lane.go_away(FAREWELL, &refusal.to_string());
                driver.await;
                return;
            }
        };
        tracing::info!(%peer, group = %name, %node, lane = lane.peer().lane, "a worker's lane is up");
        let serving = super::peer::serve(
            incoming,
            admission.group,
            self.registry.clone(),
            self.ledger.clone(),
            self.drain.clone(),
        );
        let leaving = async {
            self.drain.stopping().await;
            lane.go_away(self.drain.deadline(), "the appliance is stopping");
            std::future::pending().await
        };
        let closing = async {
            lane.closing().await;
            connected.leaving();
            std::future::pending().await
        };
        // A task of its own: what moves bytes looks at nothing else.
        let driver = self.drain.spawn_for("lane's driver", driver);
        tokio::pin!(driver);
        let end = tokio::select! {
            end = &mut driver => end,
            // Ends when the lane does, a moment before the driver has said its last words.
            () = serving => driver.await,
            end = leaving => end,
            end = closing => end,
        };
        drop(connected);
        match end.is_fault() {
            true => tracing::warn!(%peer, group = %name, %node, "a worker's lane is down: {end}"),
            false => tracing::info!(%peer, group = %name, %node, "a worker's lane is down: {end}"),
        }
    }
}
