//! Dials the appliance, as a worker does, up to where a session would begin.

use std::time::Duration;

use http::header::{DATE, HOST};
use http::{HeaderValue, Request};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use tokio::time::{Instant, timeout};

use crate::config::Worker;
use crate::doctor::facts::{Dialled, Kind, Obstacle};
use crate::inspect::api::HEALTH;
use crate::refusal::Code;
use crate::target::{Host, Target};
use crate::tunnel::dial::DialError;
use crate::tunnel::handshake::{Dial, HandshakeError, Step};
use crate::tunnel::tls::expiry::Expiry;
use crate::tunnel::transport::Transport;
use crate::upstream::UpstreamError;

/// Time for an answer, and for a proxy.
const PATIENCE: Duration = Duration::from_secs(5);

/// Dials, and notes the certificates that it is shown in `expiry`.
pub(super) async fn dial(worker: &Worker, expiry: &Expiry) -> Dialled {
    let at = Target { host: worker.appliance.host.clone(), port: worker.appliance.port };
    let mut dialled = Dialled {
        appliance: at.to_string(),
        through: None,
        reached: Ok(Duration::ZERO),
        date: None,
        admitted: None,
        proxy: None,
    };
    let dial = match Dial::of(worker, expiry) {
        Ok(dial) => dial,
        Err(error) => {
            let text = error.to_string();
            dialled.reached = Err(Obstacle { kind: Kind::Files, text, is_unresolved: false });
            return dialled;
        }
    };
    match (dial.through(), &dial.proxy) {
        (Some(proxy), _) => dialled.through = Some(proxy.name().to_owned()),
        (None, Some(proxy)) => {
            let reached = proxy.reach(Instant::now() + PATIENCE).await.map(drop);
            let reached = reached.map_err(|error| of_proxy(&error, worker));
            dialled.proxy = Some((proxy.name().to_owned(), reached));
        }
        (None, None) => {}
    }
    let start = Instant::now();
    let transport = match dial.reach().await {
        Ok(transport) => transport,
        Err(error) => {
            dialled.reached = Err(obstacle(&error, worker));
            return dialled;
        }
    };
    dialled.reached = Ok(start.elapsed());
    dialled.date = timeout(PATIENCE, date(transport, &dialled.appliance)).await.ok().flatten();
    dialled.admitted = Some(dial.knock().await.map_err(|error| obstacle(&error, worker)));
    dialled
}

/// The time that the appliance says it is, with this host's.
async fn date(transport: Transport, appliance: &str) -> Option<(Timestamp, Timestamp)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(transport)).await.ok()?;
    // It ends with the sender.
    tokio::spawn(async move { drop(connection.await) });
    let request = Request::get(HEALTH).header(HOST, HeaderValue::try_from(appliance).ok()?);
    let response = sender.send_request(request.body(Empty::<Bytes>::new()).ok()?).await.ok()?;
    let ours = Timestamp::now();
    let theirs = response.headers().get(DATE)?.to_str().ok()?;
    // `GMT` is one of the zones that RFC 2822 calls obsolete, and the parser takes.
    Some((rfc2822::parse(theirs).ok()?.timestamp(), ours))
}

fn of_proxy(error: &UpstreamError, worker: &Worker) -> Obstacle {
    let kind = match error.refusal().code {
        _ if error.wants_login() => Kind::ProxyLogin,
        Code::ProxyDenied => Kind::ProxyDenied,
        Code::ProxyDown => Kind::ProxyDown,
        _ => Kind::ProxyTarget,
    };
    let is_named = worker.upstream.as_ref().is_some_and(|proxy| is_name(&proxy.host));
    Obstacle { kind, text: error.to_string(), is_unresolved: is_named && error.may_be_unresolved() }
}

fn is_name(host: &Host) -> bool {
    matches!(host, Host::Name(_))
}

fn obstacle(error: &HandshakeError, worker: &Worker) -> Obstacle {
    // Time for connecting is time for the look-up, too.
    let is_unresolved = match error {
        HandshakeError::Dial(DialError::Resolve { .. }) => true,
        HandshakeError::Timeout { step: Step::Connect } => is_name(&worker.appliance.host),
        _ => false,
    };
    let kind = match error {
        HandshakeError::Proxy(error) => return of_proxy(error, worker),
        HandshakeError::Dial(DialError::Resolve { .. }) => Kind::Name,
        HandshakeError::Dial(DialError::Connect { .. }) => Kind::Connect,
        HandshakeError::Dial(DialError::Tls { source, .. }) => {
            source.finding().map_or(Kind::Tls, |finding| Kind::Certificate(finding.fault))
        }
        HandshakeError::Unauthorized => Kind::Key,
        HandshakeError::NoCertificate | HandshakeError::Certificate(_) => Kind::ClientCertificate,
        HandshakeError::Timeout { step: Step::Connect } => Kind::Connect,
        HandshakeError::Timeout { step: Step::Tls } => Kind::Tls,
        _ => Kind::Upgrade,
    };
    Obstacle { kind, text: error.to_string(), is_unresolved }
}
