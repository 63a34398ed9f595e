//! How a lane comes up: TCP, TLS, the HTTP upgrade, `HELLO` and `WELCOME`.
//!
//! What must hold: each step has a deadline; a peer without the right key learns nothing but 401; what
//! failed is told with the remedy, because a worker that does not connect is what people look at first.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use http::{Request, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::Error as WebsocketFailure;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::dial::{Appliance, DialError, Words};
use super::frame::{FrameError, Piece, Type, put_message};
use super::lane::Upgraded;
use super::message::{Capabilities, Hello, MessageError, VERSION};
use super::tls::expiry::Expiry;
use super::tls::{TlsError, Trust, trust};
use super::transport::{Transport, Way, tune};
use super::websocket::{self, Event, Opcode, Side, WebsocketError};
use crate::config::{self, FileError};
use crate::target::Target;
use crate::upstream::{Upstream, UpstreamError};

/// Where a worker's websockets arrive.
pub const PATH: &str = "/tunnel/v1";
/// The websocket subprotocol that both ends must name.
pub const SUBPROTOCOL: &str = "dworker.v1";
/// The header of a 403 that asks for a client certificate, and its value.
pub const WANTS: (&str, &str) = ("dworker-wants", "client-certificate");
/// The websocket's close code of who goes in good order before a greeting.
pub const GOODBYE: u16 = 1000;
/// Time for each step of the handshake.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// Time for a proxy to be reached and to connect to the appliance: it resolves the name and dials itself.
const PROXY_DEADLINE: Duration = Duration::from_secs(10);

/// Why a lane did not come up. Shown to the administrator of the end that it happened at.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The appliance was not reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The proxy did not lead to the appliance.
    #[error(transparent)]
    Proxy(#[from] UpstreamError),
    /// The appliance does not know the key.
    #[error(
        "the appliance refused `worker_key` (401): no enabled worker there has this key; it may be disabled, removed, or \
         its key replaced: `dworker events --kind key-refused` at the appliance says which"
    )]
    Unauthorized,
    /// The appliance wants a client certificate.
    #[error(
        "the appliance wants a client certificate (403): set `client_certificate` and `client_key`, signed by the CA of \
         its `client_ca_file`"
    )]
    NoCertificate,
    /// The appliance does not take the client certificate.
    #[error(
        "the appliance refused the TLS handshake ({0}): `client_certificate` must be valid, for `clientAuth`, and signed by \
         the CA of its `client_ca_file`; its log says what is wrong"
    )]
    Certificate(String),
    /// The appliance answered something else than an upgrade.
    #[error(
        "the answer was {0}, not a websocket: is `appliance_url` an appliance, and does a proxy in between let websockets pass?"
    )]
    Status(StatusCode),
    /// No HTTP that we understand.
    #[error("the websocket handshake failed: {0}")]
    Upgrade(String),
    /// A step took too long.
    #[error("{step} took longer than {DEADLINE:?}")]
    Timeout {
        /// The step.
        step: Step,
    },
    /// The connection failed during `HELLO` and `WELCOME`.
    #[error("the connection failed during the greeting: {0}")]
    Io(#[from] io::Error),
    /// The peer closed during the greeting.
    #[error("the peer closed during the greeting{}", .0.map(|code| format!(" (code {code})")).unwrap_or_default())]
    Closed(Option<u16>),
    /// The peer broke RFC 6455 during the greeting.
    #[error("protocol error in the greeting: {0}")]
    Websocket(#[from] WebsocketError),
    /// The peer broke the framing during the greeting.
    #[error("protocol error in the greeting: {0}")]
    Frame(#[from] FrameError),
    /// The peer's greeting is malformed.
    #[error("protocol error in the greeting: {0}")]
    Message(#[from] MessageError),
    /// Another frame came instead of the greeting.
    #[error("protocol error in the greeting: {0:?} instead")]
    NotGreeting(Type),
    /// The peer speaks no version that we do.
    #[error("the peer speaks protocol version {0}; this end speaks {VERSION}: update the older of the two")]
    Version(u16),
}

/// The steps that have a deadline each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Looking the appliance's name up, and TCP.
    Connect,
    /// TLS.
    Tls,
    /// The HTTP upgrade.
    Upgrade,
    /// `HELLO` and `WELCOME`.
    Greeting,
    /// A farewell before any of that.
    Goodbye,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Connect => "connecting to the appliance",
            Step::Tls => "the TLS handshake",
            Step::Upgrade => "the websocket handshake",
            Step::Greeting => "the greeting",
            Step::Goodbye => "the goodbye",
        })
    }
}

/// Why a worker can't dial at all: one of its files.
#[derive(Debug, thiserror::Error)]
pub enum Unprepared {
    /// What TLS needs.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Another one.
    #[error(transparent)]
    File(#[from] FileError),
    /// The key.
    #[error("worker_key: it can't stand in a header")]
    Key,
}

async fn within<T>(step: Step, work: impl Future<Output = T>) -> Result<T, HandshakeError> {
    timeout(DEADLINE, work).await.map_err(|_| HandshakeError::Timeout { step })
}

/// Where a worker dials, and the key that it shows there.
#[derive(Clone)]
pub struct Dial {
    /// Where to.
    pub appliance: Appliance,
    /// The worker key, for the `Authorization` header.
    pub key: HeaderValue,
    /// The proxy that is in between, unless it is not for the appliance.
    pub proxy: Option<Arc<Upstream>>,
}

/// The `Authorization` header of a key; its value is never shown by `Debug`.
pub fn authorization(key: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {key}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The key in an `Authorization` header.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

impl Dial {
    /// As a configuration says; the certificates that are used and shown are noted in `expiry`.
    ///
    /// # Errors
    /// A file that it names can't be used.
    pub fn of(worker: &config::Worker, expiry: &Expiry) -> Result<Dial, Unprepared> {
        let read = || {
            let (ca_file, ca_dir) = (worker.ca_file.clone(), worker.ca_dir.clone());
            Trust::read(trust::Files { ca_file, ca_dir, identity: worker.identity.clone() }, expiry.clone())
        };
        let tls = (!worker.appliance.plaintext).then(read).transpose()?;
        let proxy = match &worker.upstream {
            Some(proxy) => {
                let trust = proxy.tls.then(|| tls.clone().map_or_else(read, Ok)).transpose()?;
                Some(Arc::new(Upstream::new(proxy, trust)?))
            }
            None => None,
        };
        let key = authorization(worker.key.read()?.reveal()).ok_or(Unprepared::Key)?;
        let at = Target { host: worker.appliance.host.clone(), port: worker.appliance.port };
        Ok(Dial { appliance: Appliance { at, tls, words: Words::CONFIGURATION }, key, proxy })
    }

    /// Makes one lane: returns it with the appliance's `WELCOME`.
    ///
    /// # Errors
    /// Each step's own; see [`HandshakeError`].
    pub async fn lane(&self, hello: &Hello) -> Result<(Upgraded<Transport>, Hello), HandshakeError> {
        let transport = self.reach().await?;
        let upgraded = within(Step::Upgrade, self.upgrade(transport)).await??;
        let (upgraded, welcome) = within(Step::Greeting, greet(upgraded, hello)).await??;
        // What it says of TLS is worth nothing where this end has none.
        let both = welcome.capabilities.has(Capabilities::SEALED) && self.appliance.tls.is_some();
        let capabilities = welcome.capabilities.with(Capabilities::SEALED, both);
        Ok((upgraded, Hello { capabilities, ..welcome }))
    }

    /// A connection to the appliance, through the proxy where one leads there, in TLS where it has that.
    ///
    /// # Errors
    /// Each step's own.
    pub async fn reach(&self) -> Result<Transport, HandshakeError> {
        let way = match self.through() {
            None => Way::Plain(within(Step::Connect, self.appliance.connect()).await??),
            Some(proxy) => proxy.connect(&self.appliance.at, Instant::now() + PROXY_DEADLINE).await?.0,
        };
        tune(way.tcp())?;
        within(Step::Tls, self.appliance.secure(way)).await?.map_err(HandshakeError::from)
    }

    /// Finds out whether the appliance would take this worker, and goes away before it is one: no session begins, so none
    /// is replaced.
    ///
    /// # Errors
    /// Each step's own, up to the upgrade.
    pub async fn knock(&self) -> Result<(), HandshakeError> {
        let transport = self.reach().await?;
        let mut upgraded = within(Step::Upgrade, self.upgrade(transport)).await??;
        let key = rand::random::<[u8; 4]>();
        let mut code = GOODBYE.to_be_bytes();
        let mut message = BytesMut::new();
        websocket::put_header(&mut message, Opcode::Close, code.len(), Some(key));
        websocket::mask(&mut code, key, 0);
        message.extend_from_slice(&code);
        // It was let in: whether the goodbye arrives changes nothing.
        let goodbye = async {
            upgraded.io.write_all(&message).await?;
            upgraded.io.shutdown().await
        };
        let _ = within(Step::Goodbye, goodbye).await;
        Ok(())
    }

    /// The proxy that leads to the appliance; `None` where none does.
    pub fn through(&self) -> Option<&Arc<Upstream>> {
        self.proxy.as_ref().filter(|proxy| proxy.carries(&self.appliance.at))
    }

    async fn upgrade(&self, transport: Transport) -> Result<Upgraded<Transport>, HandshakeError> {
        let Appliance { at, tls, .. } = &self.appliance;
        let upgrade = |e: WebsocketFailure| match e {
            WebsocketFailure::Http(answer) if answer.status() == StatusCode::UNAUTHORIZED => {
                HandshakeError::Unauthorized
            }
            WebsocketFailure::Http(answer)
                if answer.headers().get(WANTS.0).is_some_and(|wants| wants == WANTS.1) =>
            {
                HandshakeError::NoCertificate
            }
            WebsocketFailure::Http(answer) => HandshakeError::Status(answer.status()),
            // In TLS 1.3 it comes when this end's handshake has long ended.
            WebsocketFailure::Io(e) if alert(&e).is_some() => HandshakeError::Certificate(e.to_string()),
            WebsocketFailure::Protocol(e) if tls.is_none() => HandshakeError::Upgrade(format!(
                "{e}: what listens there speaks no plain HTTP; write \"https://\" in `appliance_url` if it speaks TLS"
            )),
            other => HandshakeError::Upgrade(other.to_string()),
        };
        let scheme = if tls.is_some() { "wss" } else { "ws" };
        let mut request: Request<()> =
            format!("{scheme}://{at}{PATH}").into_client_request().map_err(upgrade)?;
        let headers = request.headers_mut();
        headers.insert(AUTHORIZATION, self.key.clone());
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        let (websocket, _) = client_async(request, transport).await.map_err(upgrade)?;
        // Nothing can have been read behind the answer: the appliance speaks only after our HELLO.
        Ok(Upgraded::new(websocket.into_inner(), Side::Client, BytesMut::new()))
    }
}

/// The alert of TLS that the peer sent.
fn alert(error: &io::Error) -> Option<rustls::AlertDescription> {
    match error.get_ref()?.downcast_ref()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

/// The headers that accept an upgrade to our subprotocol, or what is wrong with the request.
///
/// # Errors
/// The status to answer with, and a line for the log.
pub fn accept_upgrade(
    headers: &HeaderMap,
) -> Result<[(HeaderName, HeaderValue); 4], (StatusCode, &'static str)> {
    use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
    let has = |name: HeaderName, token: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    };
    if !has(CONNECTION, "upgrade") || !has(UPGRADE, "websocket") || !has(SEC_WEBSOCKET_VERSION, "13") {
        return Err((StatusCode::UPGRADE_REQUIRED, "not a websocket upgrade of version 13"));
    }
    if !has(SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
        return Err((StatusCode::BAD_REQUEST, "without the subprotocol dworker.v1"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or((StatusCode::BAD_REQUEST, "without Sec-WebSocket-Key"))?;
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()))
        .map_err(|_| (StatusCode::BAD_REQUEST, "with a malformed Sec-WebSocket-Key"))?;
    Ok([
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static("websocket")),
        (SEC_WEBSOCKET_ACCEPT, accept),
        (SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL)),
    ])
}

/// The connecting end's greeting: `HELLO`, then the peer's `WELCOME`.
async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    mut upgraded: Upgraded<S>,
    hello: &Hello,
) -> Result<(Upgraded<S>, Hello), HandshakeError> {
    send(&mut upgraded, Type::Hello, hello).await?;
    let welcome = receive(&mut upgraded, Type::Welcome).await?;
    Ok((upgraded, welcome))
}

/// The listening end's greeting: takes the peer's `HELLO` and answers `WELCOME`.
///
/// # Errors
/// The peer is too slow, closes, or breaks the protocol.
pub async fn welcome<S: AsyncRead + AsyncWrite + Unpin>(
    mut upgraded: Upgraded<S>,
    ours: &Hello,
) -> Result<(Upgraded<S>, Hello), HandshakeError> {
    let greeting = async {
        let hello = receive(&mut upgraded, Type::Hello).await?;
        // The connecting end numbers the lanes of its session.
        send(&mut upgraded, Type::Welcome, &Hello { lane: hello.lane, ..ours.clone() }).await?;
        Ok::<_, HandshakeError>(hello)
    };
    let hello = within(Step::Greeting, greeting).await??;
    Ok((upgraded, hello))
}

async fn send<S: AsyncWrite + Unpin>(
    upgraded: &mut Upgraded<S>,
    kind: Type,
    hello: &Hello,
) -> Result<(), HandshakeError> {
    let mut payload = BytesMut::new();
    put_message(&mut payload, 0, kind, |out| hello.write(out));
    let key = (upgraded.side == Side::Client).then(rand::random::<[u8; 4]>);
    let mut message = BytesMut::new();
    websocket::put_header(&mut message, Opcode::Binary, payload.len(), key);
    if let Some(key) = key {
        websocket::mask(&mut payload, key, 0);
    }
    message.extend_from_slice(&payload);
    upgraded.io.write_all(&message).await?;
    upgraded.io.flush().await?;
    Ok(())
}

async fn receive<S: AsyncRead + Unpin>(
    upgraded: &mut Upgraded<S>,
    expected: Type,
) -> Result<Hello, HandshakeError> {
    loop {
        match upgraded.websocket.next(&mut upgraded.read)? {
            None => {
                if upgraded.io.read_buf(&mut upgraded.read).await? == 0 {
                    return Err(HandshakeError::Closed(None));
                }
            }
            Some(Event::Close(code)) => return Err(HandshakeError::Closed(code)),
            Some(Event::Ping(_) | Event::Pong) => {}
            Some(Event::Payload { mut bytes, end }) => {
                let piece = upgraded.frames.next(&mut bytes)?;
                if end && !bytes.has_remaining() {
                    upgraded.frames.end_of_message()?;
                }
                match piece {
                    None => {}
                    Some(Piece::Control(header, payload)) if header.kind == expected => {
                        // One frame, one message: what follows belongs to the lane.
                        if bytes.has_remaining() {
                            return Err(FrameError::Torn.into());
                        }
                        let hello = Hello::read(&payload)?;
                        if hello.version < 1 {
                            return Err(HandshakeError::Version(hello.version));
                        }
                        return Ok(hello);
                    }
                    Some(Piece::Control(header, _)) => return Err(HandshakeError::NotGreeting(header.kind)),
                    Some(Piece::Data(..)) => return Err(HandshakeError::NotGreeting(Type::Data)),
                }
            }
        }
    }
}
