//! HTTP `CONNECT` (RFC 9110, 9.3.6).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::answer::answer;
use super::{Client, HANDSHAKE, PATIENCE, Proxy, WRONG, forward, tell, tune};
use crate::accept::Place;
use crate::inspect::ledger::{Entry, FlowGuard};
use crate::refusal::{Code, Refusal};
use crate::target::Target;
use crate::tunnel::stream::Stream;

/// Most bytes of a request's head, and so of what a client may send right behind it.
const HEAD: usize = 16 * 1024;
/// Most headers of a request.
const HEADERS: usize = 64;
const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

type Answered = Response<Full<Bytes>>;

impl Proxy {
    /// Serves one connection until it is handed over to what it asked for, or ends.
    pub(super) async fn http(self, socket: TcpStream, source: SocketAddr, place: Place) {
        tune(&socket);
        let place = Mutex::new(Some(place));
        let service = service_fn(|request| self.answer(request, source, &place));
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            // Between two requests too.
            .header_read_timeout(HANDSHAKE)
            .max_buf_size(HEAD)
            .max_headers(HEADERS)
            // A client may have said all that it wants to say before it is connected.
            .half_close(true)
            .serve_connection(TokioIo::new(socket), service)
            .with_upgrades();
        tokio::pin!(serving);
        let unknown = async {
            sleep(PATIENCE).await;
            if held(&place).is_none() {
                std::future::pending().await
            }
        };
        let served = tokio::select! {
            served = &mut serving => served,
            () = unknown => return tracing::debug!(%source, "an HTTP client asked for nothing in {PATIENCE:?}"),
            () = self.drain.stopping() => {
                // What is being dialled is answered.
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        if let Err(error) = served {
            tracing::debug!(%source, "an HTTP client's connection ended: {error}");
        }
    }

    async fn answer(
        &self,
        mut request: Request<Incoming>,
        source: SocketAddr,
        place: &Mutex<Option<Place>>,
    ) -> Result<Answered, Infallible> {
        let user = match self.user(&request) {
            Ok(user) => user,
            Err(Unknown { wrong }) => {
                if wrong {
                    tracing::warn!(%source, "refused an HTTP client: wrong user or password (407)");
                    sleep(WRONG).await;
                }
                return Ok(who_are_you(wrong));
            }
        };
        if request.method() != Method::CONNECT {
            let text = "this proxy takes CONNECT only, as for https:// or with `curl --proxytunnel`";
            let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, "http_request_denied", text);
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("CONNECT"));
            return Ok(response);
        }
        let Some(target) = target(request.uri()) else {
            let text = "CONNECT needs HOST:PORT, with an IPv6 address in brackets";
            return Ok(refuse(StatusCode::BAD_REQUEST, "http_request_error", text));
        };
        // From here on it waits for others, not others for it.
        drop(held(place).take());
        let flow = self.flow(Entry::Connect, &Client { source, user }, target);
        let upgrade = hyper::upgrade::on(&mut request);
        match self.dial(&flow).await {
            Ok(stream) => {
                self.drain.spawn("HTTP client's connection", connected(upgrade, stream, flow));
                Ok(Response::default())
            }
            Err(refusal) => {
                tell(&flow, &refusal);
                let answer = answer(refusal.code);
                let response = refuse(answer.status, answer.error, &refusal.to_string());
                flow.end(Err(refusal));
                Ok(response)
            }
        }
    }

    /// The user that a request proves to come from, where one is asked for.
    fn user(&self, request: &Request<Incoming>) -> Result<Option<String>, Unknown> {
        let Some(credentials) = &self.credentials else { return Ok(None) };
        let given = request.headers().get(PROXY_AUTHORIZATION);
        let user = given.and_then(|value| value.to_str().ok()).and_then(|v| credentials.check_basic(v));
        user.map(|user| Some(user.to_owned())).ok_or(Unknown { wrong: given.is_some() })
    }
}

fn held(place: &Mutex<Option<Place>>) -> MutexGuard<'_, Option<Place>> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request without credentials, or with wrong ones.
struct Unknown {
    wrong: bool,
}

/// Takes the connection over when the client has its answer.
async fn connected(upgrade: OnUpgrade, stream: Stream, flow: FlowGuard) {
    let outcome = match upgrade.await.map(|upgraded| upgraded.downcast::<TokioIo<TcpStream>>()) {
        Ok(Ok(parts)) => {
            let mut socket = parts.io.into_inner();
            forward(&mut socket, &stream, BytesMut::from(parts.read_buf), &flow).await
        }
        Ok(Err(_)) => Err(Refusal::new(Code::Other, "the connection is not ours; this is a bug")),
        Err(error) => {
            Err(Refusal::new(Code::Reset, format!("the client was gone before it was connected: {error}")))
        }
    };
    if let Err(refusal) = &outcome {
        stream.reset(refusal.clone());
        tell(&flow, refusal);
    }
    flow.end(outcome);
}

fn target(uri: &Uri) -> Option<Target> {
    let authority = uri.authority()?;
    let is_plain =
        uri.scheme().is_none() && uri.path_and_query().is_none() && !authority.as_str().contains('@');
    let (host, port) = (authority.host().parse().ok()?, authority.port_u16()?);
    is_plain.then_some(Target { host, port })
}

fn who_are_you(wrong: bool) -> Answered {
    let text = match wrong {
        true => "wrong user or password: compare `proxy.user` and `proxy.password_file` of this proxy",
        false => "this proxy asks for a user and a password",
    };
    let mut response = refuse(StatusCode::PROXY_AUTHENTICATION_REQUIRED, "http_request_denied", text);
    let realm = HeaderValue::from_static("Basic realm=\"dworker\", charset=\"UTF-8\"");
    response.headers_mut().insert(PROXY_AUTHENTICATE, realm);
    // The next try may come on the same connection.
    response.headers_mut().remove(CONNECTION);
    response
}

/// An answer that says why, once for programs and once for people.
pub(super) fn refuse(status: StatusCode, error: &str, text: &str) -> Answered {
    let mut response = Response::new(Full::from(format!("{text}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    if let Ok(value) = format!("dworker; error={error}; details=\"{}\"", quoted(text)).try_into() {
        headers.insert(PROXY_STATUS, value);
    }
    response
}

/// A text as the string of a structured field (RFC 9651, 3.3.3).
fn quoted(text: &str) -> String {
    let plain = text.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' });
    plain.flat_map(|c| matches!(c, '"' | '\\').then_some('\\').into_iter().chain([c])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_host_and_a_port_are_a_target() {
        for (text, target) in [
            ("vcenter.corp.example:443", Some("vcenter.corp.example:443")),
            ("VCENTER.corp.example.:443", Some("vcenter.corp.example:443")),
            ("10.20.0.5:8443", Some("10.20.0.5:8443")),
            ("[2001:db8::5]:443", Some("[2001:db8::5]:443")),
            ("[::ffff:10.20.0.5]:443", Some("10.20.0.5:443")),
            ("vcenter.corp.example", None),
            ("[2001:db8::5]", None),
            ("user@vcenter.corp.example:443", None),
            ("10.20:443", None),
            ("http://vcenter.corp.example:443/", None),
            ("/", None),
        ] {
            let uri: Uri = text.parse().expect(text);
            assert_eq!(super::target(&uri).map(|t| t.to_string()).as_deref(), target, "{text}");
        }
    }

    #[test]
    fn what_a_far_end_says_stays_within_its_quotes() {
        assert_eq!(quoted("a \"b\" \\ c\r\nX: ü"), "a \\\"b\\\" \\\\ c??X: ?");
    }
}
