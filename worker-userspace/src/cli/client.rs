//! Requests to a daemon: through its control socket, or to an appliance in the network.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use dworker::config::{ApplianceUrl, read_roots};
use dworker::inspect::api::HEALTH;
use dworker::target::Target;
use dworker::tunnel::dial::{Appliance, DialError, Words};
use dworker::tunnel::tls;
use dworker::tunnel::transport::Way;
use dworker::web::Problem;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Failure, Whom};

/// Time to connect, and time for an answer.
const DEADLINE: Duration = Duration::from_secs(30);
/// Time for a daemon to say that it is there.
const SOON: Duration = Duration::from_secs(3);
/// The largest answer that is read.
const LARGEST: usize = 256 << 20;

/// A connection to a daemon.
pub(super) struct Client {
    sender: SendRequest<Full<Bytes>>,
    /// Names the daemon in messages.
    name: String,
    host: HeaderValue,
    token: Option<HeaderValue>,
    patience: Duration,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.name)
    }
}

impl Client {
    /// Connects.
    pub(super) async fn new(whom: &Whom) -> Result<Client, Failure> {
        match &whom.url {
            None => Client::at(&whom.socket).await,
            Some(url) => {
                let token = token(whom)?;
                let url = ApplianceUrl::parse(url, whom.insecure_plaintext)
                    .map_err(|error| Failure::Usage(format!("--url {url:?}: {error}")))?;
                remote(url, whom.ca_file.as_deref(), token).await
            }
        }
    }

    /// The daemon at this control socket.
    pub(super) async fn at(path: &Path) -> Result<Client, Failure> {
        let name = path.display().to_string();
        let socket = UnixStream::connect(path).await.map_err(|error| {
            let remedy = match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    "run this as root, or ask an appliance with `--url` and its admin token"
                }
                _ => "is dworker running, and is this its `control_socket`?",
            };
            Failure::Failed(format!("{name}: {error}: {remedy}"))
        })?;
        let host = HeaderValue::from_static("localhost");
        Ok(Client {
            sender: shake(TokioIo::new(socket), &name).await?,
            name,
            host,
            token: None,
            patience: DEADLINE,
        })
    }

    /// The daemon at this control socket, where one answers soon. `None`: nobody is there, or the service manager keeps
    /// the socket for one that is to come.
    pub(super) async fn answering(path: &Path) -> Result<Option<Client>, Failure> {
        let nobody = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused, io::ErrorKind::WouldBlock];
        if UnixStream::connect(path).await.is_err_and(|error| nobody.contains(&error.kind())) {
            return Ok(None);
        }
        let mut client = Client::at(path).await?.patient(SOON);
        let alive = client.exchange(Method::GET, HEALTH, None).await.is_ok();
        Ok(alive.then(|| client.patient(DEADLINE)))
    }

    /// Waits for answers as long as this.
    pub(super) fn patient(self, patience: Duration) -> Client {
        Client { patience, ..self }
    }

    /// Asks, and reads the answer.
    pub(super) async fn ask<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, Failure> {
        let (status, bytes) = self.exchange(method, path, body).await?;
        // No content is an answer too.
        let bytes = if bytes.is_empty() { &b"null"[..] } else { &bytes };
        if status.is_success() {
            return serde_json::from_slice(bytes).map_err(|error| {
                self.failed(format!("the answer can't be read: {error}: is the daemon of another version?"))
            });
        }
        match serde_json::from_slice::<Problem>(bytes) {
            Ok(problem) => Err(Failure::Refused(problem)),
            Err(_) => Err(self.failed(format!("the answer was {status}: is it a dworker of this version?"))),
        }
    }

    /// All items of a list, page after page, at most `most`. `path` has a query already.
    pub(super) async fn all(&mut self, path: &str, most: usize) -> Result<Vec<Value>, Failure> {
        let mut items: Vec<Value> = Vec::new();
        let mut cursor = String::new();
        while items.len() < most {
            let limit = (most - items.len()).min(500);
            let mut page: Value =
                self.ask(Method::GET, &format!("{path}&limit={limit}{cursor}"), None).await?;
            if let Value::Array(found) = page["items"].take() {
                items.extend(found);
            }
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        Ok(items)
    }

    /// Follows server-sent events, each a name and its data, until `take` says no more. The first one is `begin`: from
    /// then on nothing is missed. False: the daemon ended it.
    pub(super) async fn follow(
        &mut self,
        path: &str,
        mut take: impl FnMut(&str, &str) -> Result<bool, Failure>,
    ) -> Result<bool, Failure> {
        let mut request = Request::builder()
            .uri(path)
            .header(HOST, &self.host)
            .header(ACCEPT, "text/event-stream")
            .body(Full::default())
            .map_err(|error| Failure::Usage(format!("{path:?} makes no request: {error}")))?;
        if let Some(token) = &self.token {
            request.headers_mut().insert(AUTHORIZATION, token.clone());
        }
        let sender = &mut self.sender;
        let asking = async {
            sender.ready().await.map_err(|error| error.to_string())?;
            sender.send_request(request).await.map_err(|error| error.to_string())
        };
        let answer = match timeout(DEADLINE, asking).await {
            Ok(answer) => answer.map_err(|error| self.failed(error))?,
            Err(_) => return Err(self.failed(format!("no answer within {DEADLINE:?}"))),
        };
        let (status, mut body) = (answer.status(), answer.into_body());
        if !status.is_success() {
            let body = Limited::new(body, LARGEST).collect().await.map_err(|error| self.failed(error))?;
            return Err(match serde_json::from_slice::<Problem>(&body.to_bytes()) {
                Ok(problem) => Failure::Refused(problem),
                Err(_) => self.failed(format!("the answer was {status}: is it a dworker of this version?")),
            });
        }
        take("begin", "")?;
        let mut events = Events::default();
        // One that is killed ends it in the middle.
        while let Some(Ok(frame)) = body.frame().await {
            events.push(frame.data_ref().map(|bytes| &bytes[..]).unwrap_or_default());
            while let Some((name, data)) = events.next() {
                if !take(&name, &data)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    async fn exchange(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.host)
            .header(ACCEPT, "application/json");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token);
        }
        let body = body.map(ToString::to_string).unwrap_or_default();
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Failure::Usage(format!("{path:?} makes no request: {error}")))?;
        let sender = &mut self.sender;
        let exchange = async {
            sender.ready().await.map_err(|error| error.to_string())?;
            let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let status = response.status();
            let body = Limited::new(response.into_body(), LARGEST).collect().await;
            Ok::<_, String>((status, body.map_err(|error| error.to_string())?.to_bytes()))
        };
        match timeout(self.patience, exchange).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.failed(error)),
            Err(_) => Err(self.failed(format!("no answer within {:?}", self.patience))),
        }
    }

    fn failed(&self, why: impl fmt::Display) -> Failure {
        Failure::Failed(format!("{}: {why}", self.name))
    }
}

/// Server-sent events in the pieces that arrive.
#[derive(Debug, Default)]
struct Events(Vec<u8>);

impl Events {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next whole one; comments are none.
    fn next(&mut self) -> Option<(String, String)> {
        loop {
            let end = self.0.windows(2).position(|two| two == b"\n\n")?;
            let event: Vec<u8> = self.0.drain(..end + 2).collect();
            let text = String::from_utf8_lossy(&event);
            let field = |name: &str| -> Vec<&str> {
                text.lines().filter_map(|line| line.strip_prefix(name)).collect()
            };
            let data = field("data: ");
            if !data.is_empty() {
                return Some((field("event: ").concat(), data.join("\n")));
            }
        }
    }
}

/// The admin token, from wherever it may stand.
fn token(whom: &Whom) -> Result<HeaderValue, Failure> {
    let text = match (&whom.token_file, &whom.token) {
        (Some(path), _) => token_in(path)?,
        (None, Some(token)) => token.clone(),
        (None, None) => {
            let remedy = "name a file with the admin token in --token-file, or put it into DWORKER_TOKEN";
            return Err(Failure::Usage(format!("--url needs a token: {remedy}")));
        }
    };
    let header = HeaderValue::try_from(format!("Bearer {}", text.trim()));
    let mut header =
        header.map_err(|_| Failure::Usage("the admin token has a character that none has".into()))?;
    header.set_sensitive(true);
    Ok(header)
}

/// The token that stands alone in a file.
fn token_in(path: &Path) -> Result<String, Failure> {
    let wrong = |what: &str| {
        let remedy =
            "name a file that you may read, with the admin token alone (`dworker token reset` makes one)";
        Failure::Usage(format!("--token-file {}: {what}: {remedy}", path.display()))
    };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error.to_string()))?;
    match text.trim() {
        "" => Err(wrong("it is empty")),
        token if token.contains(|c: char| !c.is_ascii_graphic()) => {
            Err(wrong("more than a token stands in it"))
        }
        token => Ok(token.to_owned()),
    }
}

async fn remote(url: ApplianceUrl, ca_file: Option<&Path>, token: HeaderValue) -> Result<Client, Failure> {
    let at = Target { host: url.host, port: url.port };
    let name = at.to_string();
    let failed = |why: String| Failure::Failed(format!("{name}: {why}"));
    let tls = match url.plaintext {
        true => None,
        false => {
            let extra = ca_file.map(read_roots).transpose();
            let extra = extra.map_err(|error| Failure::Failed(format!("--ca-file: {error}")))?;
            Some(tls::client(extra.unwrap_or_default()).map_err(|error| failed(error.to_string()))?)
        }
    };
    let appliance = Appliance { at, tls, words: Words::OPTIONS };
    let dialling = async { appliance.secure(Way::Plain(appliance.connect().await?)).await };
    let transport = match timeout(DEADLINE, dialling).await {
        Ok(transport) => transport.map_err(|error: DialError| Failure::Failed(error.to_string()))?,
        Err(_) => return Err(failed(format!("not connected within {DEADLINE:?}"))),
    };
    let host = HeaderValue::try_from(&name).map_err(|error| failed(error.to_string()))?;
    Ok(Client {
        sender: shake(TokioIo::new(transport), &name).await?,
        name,
        host,
        token: Some(token),
        patience: DEADLINE,
    })
}

async fn shake<S>(io: TokioIo<S>, name: &str) -> Result<SendRequest<Full<Bytes>>, Failure>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) =
        http1::handshake(io).await.map_err(|error| Failure::Failed(format!("{name}: {error}")))?;
    // It ends with the sender; what went wrong is the request's to tell.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

/// An answer as what it should be.
pub(super) fn one<T: DeserializeOwned>(value: &Value) -> Result<T, Failure> {
    T::deserialize(value).map_err(|error| {
        Failure::Failed(format!("the answer can't be read: {error}: is the daemon of another version?"))
    })
}

/// A part of a path or a query, so that nothing in it means anything.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => out.push(byte.into()),
            // A lone dot, or two, would be a step in the path.
            byte => out += &format!("%{byte:02X}"),
        }
    }
    out
}

/// The beginning of a query: the parameters that are there.
pub(super) fn query(parameters: &[(&str, Option<&str>)]) -> String {
    let present = parameters.iter().filter_map(|(key, value)| Some(format!("{key}={}", quoted((*value)?))));
    format!("?{}", present.collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_whatever_pieces() {
        let text = b":\n\nevent: a\ndata: 1\n\nevent: b\ndata: x\ndata: y\n\nevent: c";
        for size in 1..text.len() {
            let (mut events, mut found) = (Events::default(), Vec::new());
            for piece in text.chunks(size) {
                events.push(piece);
                found.extend(std::iter::from_fn(|| events.next()));
            }
            let expected = [("a", "1"), ("b", "x\ny")].map(|(name, data)| (name.to_owned(), data.to_owned()));
            assert_eq!(found, expected, "{size}");
        }
    }

    #[test]
    fn what_people_write_stays_in_its_place() {
        assert_eq!(quoted("site-a"), "site-a");
        assert_eq!(quoted("../x?y#z ü"), "%2E%2E%2Fx%3Fy%23z%20%C3%BC");
        assert_eq!(query(&[("text", Some("a b")), ("kind", None), ("x", Some("&"))]), "?text=a%20b&x=%26");
        assert_eq!(query(&[("text", None)]), "?");
    }
}
