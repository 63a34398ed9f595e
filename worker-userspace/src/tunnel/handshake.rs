//! How a lane comes up: TCP, TLS, the HTTP upgrade, `HELLO` and `WELCOME`.
//!
//! What must hold: each step has a deadline; a peer without the right key learns nothing but 401; what
//! failed is told with the remedy, because a worker that does not connect is what people look at first.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use http::{Request, StatusCode};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::Error as WebsocketFailure;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::frame::{FrameError, Piece, Type, put_message};
use super::lane::Upgraded;
use super::message::{Hello, MessageError, VERSION};
use super::transport::{Transport, tune};
use super::websocket::{self, Event, Opcode, Side, WebsocketError};
use crate::connect;
use crate::target::{Host, Target};
use crate::upstream::{Upstream, UpstreamError};

/// Where a worker's websockets arrive.
pub const PATH: &str = "/tunnel/v1";
/// The websocket subprotocol that both ends must name.
pub const SUBPROTOCOL: &str = "dworker.v1";
/// Time for each step of the handshake.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// Time for a proxy to be reached and to connect to the appliance: it resolves the name and dials itself.
const PROXY_DEADLINE: Duration = Duration::from_secs(10);

/// Why a lane did not come up. Shown to the administrator of the end that it happened at.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The appliance's name has no address.
    #[error("can't resolve {host}: {source}: check `appliance_url` and this host's DNS")]
    Resolve {
        /// The name.
        host: Host,
        /// What the resolver says.
        #[source]
        source: io::Error,
    },
    /// No address of the appliance took the connection.
    #[error("can't connect to {address}: {source}: check `appliance_url` and what filters the way to it")]
    Connect {
        /// The last address tried.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The proxy did not lead to the appliance.
    #[error(transparent)]
    Proxy(#[from] UpstreamError),
    /// The TLS handshake failed.
    #[error("TLS with {host}: {source}{}", tls_remedy(.source))]
    Tls {
        /// The name that the certificate must have.
        host: Host,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The appliance does not know the key.
    #[error(
        "the appliance refused `worker_key` (401): its groups have no such key; compare `dworker key hash`"
    )]
    Unauthorized,
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
        step: &'static str,
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

fn tls_remedy(error: &io::Error) -> &'static str {
    use rustls::{CertificateError as C, Error as E};
    match error.get_ref().and_then(|inner| inner.downcast_ref::<E>()) {
        Some(E::InvalidCertificate(C::UnknownIssuer | C::BadSignature)) => {
            ": put the certificate of the CA that signed it into a PEM file and name it in `ca_file`"
        }
        Some(E::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. })) => {
            ": write a name that the certificate has in `appliance_url`, or renew the certificate with this one"
        }
        Some(E::InvalidCertificate(C::Expired | C::ExpiredContext { .. })) => {
            ": renew the appliance's certificate, or set this host's clock"
        }
        Some(E::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. })) => {
            ": set this host's clock"
        }
        // What `openssl req -x509` makes unless told otherwise. The error's type is webpki's; we have only its name.
        Some(E::InvalidCertificate(C::Other(other))) if other.to_string().contains("CaUsedAsEndEntity") => {
            ": it is a CA's own; make the appliance one with `CA:FALSE` and its name as `subjectAltName`"
        }
        Some(E::InvalidMessage(_)) => {
            ": what listens there speaks no TLS; check host and port of `appliance_url`, or whether the appliance \
             has `insecure_plaintext`"
        }
        _ => "",
    }
}

async fn within<T>(step: &'static str, work: impl Future<Output = T>) -> Result<T, HandshakeError> {
    timeout(DEADLINE, work).await.map_err(|_| HandshakeError::Timeout { step })
}

/// Where and how a worker dials.
#[derive(Clone)]
pub struct Dial {
    /// The appliance's host, which its certificate must name.
    pub host: Host,
    /// Its port.
    pub port: u16,
    /// TLS; `None` for plaintext.
    pub tls: Option<Arc<ClientConfig>>,
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
    /// Makes one lane: returns it with the appliance's `WELCOME`.
    ///
    /// # Errors
    /// Each step's own; see [`HandshakeError`].
    pub async fn lane(&self, hello: &Hello) -> Result<(Upgraded<Transport>, Hello), HandshakeError> {
        let way = match self.through() {
            None => Transport::Plain(within("connecting to the appliance", self.connect()).await??),
            Some(proxy) => proxy.connect(&self.target(), PROXY_DEADLINE).await?.0,
        };
        tune(way.tcp())?;
        let transport = match &self.tls {
            None => way,
            Some(config) => within("the TLS handshake", self.secure(way, config.clone())).await??,
        };
        let upgraded = within("the websocket handshake", self.upgrade(transport)).await??;
        within("the greeting", greet(upgraded, hello)).await?
    }

    fn target(&self) -> Target {
        Target { host: self.host.clone(), port: self.port }
    }

    /// The proxy that leads to the appliance; `None` where none does.
    pub fn through(&self) -> Option<&Arc<Upstream>> {
        self.proxy.as_ref().filter(|proxy| proxy.carries(&self.target()))
    }

    async fn connect(&self) -> Result<TcpStream, HandshakeError> {
        let resolve = |source| HandshakeError::Resolve { host: self.host.clone(), source };
        let addresses = match &self.host {
            Host::Addr(addr) => vec![*addr],
            Host::Name(name) => {
                let found = tokio::net::lookup_host((name.as_str(), self.port)).await.map_err(resolve)?;
                connect::interleaved(found.map(|address| address.ip()).collect())
            }
        };
        let addresses = addresses.into_iter().map(|addr| SocketAddr::new(addr, self.port)).collect();
        let (tcp, _) = connect::first(addresses).await.map_err(|failed| match failed {
            Some((address, source)) => HandshakeError::Connect { address, source },
            None => resolve(io::Error::new(io::ErrorKind::NotFound, "it has no address")),
        })?;
        Ok(tcp)
    }

    async fn secure(&self, way: Transport, config: Arc<ClientConfig>) -> Result<Transport, HandshakeError> {
        let name = match &self.host {
            Host::Addr(addr) => ServerName::IpAddress((*addr).into()),
            Host::Name(name) => ServerName::try_from(name.as_str().to_owned())
                .map_err(|e| HandshakeError::Upgrade(format!("{name}: {e}")))?,
        };
        let connector = TlsConnector::from(config);
        let failed = |source| HandshakeError::Tls { host: self.host.clone(), source };
        Ok(match way {
            Transport::Plain(tcp) => {
                Transport::Tls(Box::new(connector.connect(name, tcp).await.map_err(failed)?.into()))
            }
            Transport::Tls(tls) => {
                Transport::TlsInTls(Box::new(connector.connect(name, *tls).await.map_err(failed)?.into()))
            }
            // Two proxies one behind the other are not configured.
            Transport::TlsInTls(_) => return Err(HandshakeError::Upgrade("TLS in TLS in TLS".into())),
        })
    }

    async fn upgrade(&self, transport: Transport) -> Result<Upgraded<Transport>, HandshakeError> {
        let upgrade = |e: WebsocketFailure| match e {
            WebsocketFailure::Http(answer) if answer.status() == StatusCode::UNAUTHORIZED => {
                HandshakeError::Unauthorized
            }
            WebsocketFailure::Http(answer) => HandshakeError::Status(answer.status()),
            WebsocketFailure::Protocol(e) if self.tls.is_none() => HandshakeError::Upgrade(format!(
                "{e}: what listens there speaks no plain HTTP; write \"https://\" in `appliance_url` if it speaks TLS"
            )),
            other => HandshakeError::Upgrade(other.to_string()),
        };
        let scheme = if self.tls.is_some() { "wss" } else { "ws" };
        let mut request: Request<()> =
            format!("{scheme}://{}{PATH}", self.target()).into_client_request().map_err(upgrade)?;
        let headers = request.headers_mut();
        headers.insert(AUTHORIZATION, self.key.clone());
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        let (websocket, _) = client_async(request, transport).await.map_err(upgrade)?;
        // Nothing can have been read behind the answer: the appliance speaks only after our HELLO.
        Ok(Upgraded::new(websocket.into_inner(), Side::Client, BytesMut::new()))
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
    let hello = within("the greeting", greeting).await??;
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
