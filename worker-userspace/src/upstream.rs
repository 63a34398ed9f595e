//! The proxy that a worker goes through: `CONNECT` to it, to the appliance and to targets.
//!
//! What must hold: each step has a deadline, and the answer a limit; a byte that comes behind the answer is the
//! target's and stays where it is; what failed keeps its meaning, and the text names the proxy, never its password.
//!
//! | room | concern |
//! |---|---|
//! | [`answer`] | the head of an answer, and what a refusal in it means |

pub mod answer;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsStream;

use crate::basic;
use crate::config::{self, FileError};
use crate::connect;
use crate::refusal::{Code, Refusal};
use crate::resolve::Resolver;
use crate::target::{Host, NoProxy, Target};
use crate::tunnel::tls::{End, Trust, Unsecured};
use crate::tunnel::transport::Way;
use answer::{Answer, Head, Said};

/// Bytes of an answer that are looked at in one go.
const LOOK: usize = 2048;

/// How long the addresses of the proxy's name are kept: each target's dial needs them.
const KEPT: Duration = Duration::from_secs(5);

/// A proxy, and what is not for it.
pub struct Upstream {
    /// Its URL without user and password, as messages show it.
    name: Arc<str>,
    host: Host,
    port: u16,
    tls: Option<Arc<Trust>>,
    /// The line that says who this worker is.
    authorization: Option<String>,
    no_proxy: NoProxy,
    resolver: Resolver,
}

/// Without the password.
impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Upstream({})", self.name)
    }
}

/// Why a proxy did not lead to a target. One line with the remedy, without secrets.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.text())]
pub struct UpstreamError {
    proxy: Arc<str>,
    has_login: bool,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    Resolve(Refusal),
    Connect(SocketAddr, io::Error),
    Tls(Unsecured),
    /// A step before the proxy was asked, and the time that it had.
    Slow(Step, Duration),
    /// No answer to the question for this target, in the time that it had.
    Silent(Target, Duration),
    Io(io::Error),
    Closed,
    TooLong,
    NotHttp,
    Refused(Target, Said),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Connect,
    Tls,
}

impl UpstreamError {
    fn text(&self) -> String {
        let UpstreamError { proxy, .. } = self;
        match &self.cause {
            Cause::Resolve(e) => {
                format!(
                    "can't resolve the proxy {proxy}: {}: check `proxy_address` and this host's DNS",
                    e.text
                )
            }
            Cause::Connect(address, e) => format!(
                "can't connect to the proxy {proxy} at {address}: {e}: check `proxy_address`, and whether the proxy runs"
            ),
            Cause::Tls(e) => format!("TLS with the proxy {proxy}: {e}"),
            Cause::Slow(Step::Connect, within) => format!(
                "can't connect to the proxy {proxy}: no answer within {within:?}: check `proxy_address` and what filters the way to it"
            ),
            Cause::Slow(Step::Tls, within) => {
                format!("TLS with the proxy {proxy}: no answer within {within:?}")
            }
            Cause::Silent(target, within) => {
                format!("the proxy {proxy} did not connect to {target} within {within:?}")
            }
            Cause::Io(e) => format!("the connection to the proxy {proxy} failed: {e}"),
            Cause::Closed => format!("the proxy {proxy} closed the connection without an answer"),
            Cause::TooLong => {
                format!("the answer of the proxy {proxy} has no end within {} bytes", answer::LONGEST)
            }
            Cause::NotHttp => {
                format!(
                    "what listens at {proxy} does not answer as an HTTP proxy: check the port in `proxy_address`, and whether it begins with \"https://\""
                )
            }
            Cause::Refused(target, said) => said.text(proxy, target, self.has_login),
        }
    }

    /// What an application's `connect()` is told of it.
    pub fn refusal(&self) -> Refusal {
        let (code, errno) = match &self.cause {
            Cause::Refused(_, said) => said.meaning(),
            Cause::Silent(..) => (Code::Timeout, libc::ETIMEDOUT),
            _ => (Code::ProxyDown, 0),
        };
        Refusal { code, errno, text: self.to_string() }
    }

    /// True where it may be that the proxy's name, if it has one, is all that was not found.
    pub fn may_be_unresolved(&self) -> bool {
        matches!(self.cause, Cause::Resolve(_) | Cause::Slow(Step::Connect, _))
    }

    /// True where the proxy does not take the user and the password, or wants some.
    pub fn wants_login(&self) -> bool {
        matches!(&self.cause, Cause::Refused(_, said) if said.wants_login())
    }

    /// True where it says nothing of the target: the proxy would answer alike for another address of it.
    pub fn is_the_proxys(&self) -> bool {
        match &self.cause {
            Cause::Refused(_, said) => said.is_of_the_client(),
            Cause::Silent(..) => false,
            _ => true,
        }
    }
}

/// A connection to a proxy that was asked for nothing yet.
#[derive(Debug)]
pub struct Reached<'u> {
    proxy: &'u Upstream,
    way: Way,
    address: SocketAddr,
}

impl Upstream {
    /// The proxy of a configuration; `tls` is who vouches for it, where it has a certificate.
    ///
    /// # Errors
    /// The file with its password can't be read.
    pub fn new(config: &config::Upstream, tls: Option<Arc<Trust>>) -> Result<Upstream, FileError> {
        let authorization = match &config.login {
            Some(login) => {
                let token = basic::token(&login.user, login.password.read()?.reveal());
                Some(format!("Proxy-Authorization: Basic {token}\r\n"))
            }
            None => None,
        };
        Ok(Upstream {
            name: config.to_string().into(),
            host: config.host.clone(),
            port: config.port,
            tls,
            authorization,
            no_proxy: config.no_proxy.clone(),
            resolver: Resolver::keeping(KEPT),
        })
    }

    /// Its URL, without user and password.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is dialled without it.
    pub fn no_proxy(&self) -> &NoProxy {
        &self.no_proxy
    }

    /// True where `target` is for the proxy.
    pub fn carries(&self, target: &Target) -> bool {
        !self.no_proxy.exempts(target)
    }

    /// A connection through the proxy to `target`, which the proxy resolves, before `until`; and the proxy's address.
    ///
    /// # Errors
    /// The proxy is not reached, or does not connect.
    pub async fn connect(&self, target: &Target, until: Instant) -> Result<(Way, SocketAddr), UpstreamError> {
        self.reach(until).await?.ask(target, until).await
    }

    /// A connection to the proxy, before `until`.
    ///
    /// # Errors
    /// The proxy is not reached, or its certificate is not taken.
    pub async fn reach(&self, until: Instant) -> Result<Reached<'_>, UpstreamError> {
        let allowed = left(until);
        let slow = |step| move |_| Cause::Slow(step, allowed);
        let reaching = async {
            let (tcp, address) = timeout_at(until, self.dial(until)).await.map_err(slow(Step::Connect))??;
            let way = match &self.tls {
                None => Way::Plain(tcp),
                Some(trust) => {
                    let tls = timeout_at(until, trust.secure(tcp, &self.host, End::Proxy));
                    Way::Tls(Box::new(tls.await.map_err(slow(Step::Tls))?.map_err(Cause::Tls)?))
                }
            };
            Ok(Reached { proxy: self, way, address })
        };
        reaching.await.map_err(|cause| self.error(cause))
    }

    fn error(&self, cause: Cause) -> UpstreamError {
        UpstreamError { proxy: self.name.clone(), has_login: self.authorization.is_some(), cause }
    }

    async fn dial(&self, until: Instant) -> Result<(TcpStream, SocketAddr), Cause> {
        let addresses = match &self.host {
            Host::Addr(addr) => vec![*addr],
            Host::Name(name) => {
                self.resolver.look_up(name, until, left(until)).await.map_err(Cause::Resolve)?
            }
        };
        let addresses = addresses.into_iter().map(|addr| SocketAddr::new(addr, self.port)).collect();
        let (tcp, address) = connect::first(addresses).await.map_err(|failed| match failed {
            Some((address, error)) => Cause::Connect(address, error),
            None => Cause::Resolve(Refusal::new(Code::NameNotFound, "it has no address".to_owned())),
        })?;
        tcp.set_nodelay(true).map_err(Cause::Io)?;
        Ok((tcp, address))
    }

    fn request(&self, target: &Target) -> String {
        let authorization = self.authorization.as_deref().unwrap_or_default();
        let version = env!("CARGO_PKG_VERSION");
        format!(
            "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}User-Agent: dworker/{version}\r\n\r\n"
        )
    }
}

impl Reached<'_> {
    /// Asks for `target`, which the proxy resolves, and waits for the answer until `until`. Gives the way to the
    /// target, and the proxy's address.
    ///
    /// # Errors
    /// The proxy does not connect.
    pub async fn ask(self, target: &Target, until: Instant) -> Result<(Way, SocketAddr), UpstreamError> {
        let Reached { proxy, mut way, address } = self;
        let allowed = left(until);
        let request = proxy.request(target);
        let asking = async {
            match &mut way {
                Way::Plain(tcp) => ask(tcp, &request).await,
                Way::Tls(tls) => ask_secured(tls, &request).await,
            }
        };
        let answered = match timeout_at(until, asking).await {
            Err(_) => Err(Cause::Silent(target.clone(), allowed)),
            Ok(Ok(Answer::Refused(said))) => Err(Cause::Refused(target.clone(), said)),
            Ok(Ok(Answer::Connected)) => Ok(()),
            Ok(Err(cause)) => Err(cause),
        };
        answered.map(|()| (way, address)).map_err(|cause| proxy.error(cause))
    }
}

/// The time until then as messages show it: a few microseconds have always passed.
pub(crate) fn left(until: Instant) -> Duration {
    let left = until.saturating_duration_since(Instant::now()) + Duration::from_micros(500);
    Duration::from_millis(left.as_millis().try_into().unwrap_or(u64::MAX))
}

/// Asks over TCP. What stands behind the answer stays in the kernel, so the socket is the target's as it is.
async fn ask(tcp: &mut TcpStream, request: &str) -> Result<Answer, Cause> {
    tcp.write_all(request.as_bytes()).await.map_err(Cause::Io)?;
    let mut head = Head::default();
    let mut seen = [0; LOOK];
    loop {
        let n = tcp.peek(&mut seen).await.map_err(Cause::Io)?;
        let (taken, answer) = take(&mut head, &seen[..n])?;
        tcp.read_exact(&mut seen[..taken]).await.map_err(Cause::Io)?;
        if let Some(answer) = answer {
            return Ok(answer);
        }
    }
}

/// Asks over TLS. What stands behind the answer stays in the TLS session.
async fn ask_secured(tls: &mut TlsStream<TcpStream>, request: &str) -> Result<Answer, Cause> {
    tls.write_all(request.as_bytes()).await.map_err(Cause::Io)?;
    tls.flush().await.map_err(Cause::Io)?;
    let mut head = Head::default();
    loop {
        let (taken, answer) = take(&mut head, tls.fill_buf().await.map_err(Cause::Io)?)?;
        tls.consume(taken);
        if let Some(answer) = answer {
            return Ok(answer);
        }
    }
}

/// Takes what is the answer's of what has come, and tells how much that was.
fn take(head: &mut Head, seen: &[u8]) -> Result<(usize, Option<Answer>), Cause> {
    if seen.is_empty() {
        return Err(Cause::Closed);
    }
    head.take(seen).map_err(|wrong| match wrong {
        answer::Wrong::TooLong => Cause::TooLong,
        answer::Wrong::NotHttp => Cause::NotHttp,
    })
}

#[cfg(test)]
mod tests;
