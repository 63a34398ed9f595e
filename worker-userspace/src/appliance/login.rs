//! Who may administer: the admin token, the sessions of browsers, and how often one may try.
//!
//! What must hold: of the token and of sessions only hashes are kept, and none of them is ever in a log, in an
//! event, or in another answer than the one that made it; what a browser sends by itself (its cookie) changes
//! nothing unless the request comes from our own page; failures are events; nobody's failures keep the owner of the
//! right token out.
//!
//! | room | concern |
//! |---|---|
//! | [`sessions`] | browsers that are signed in |
//! | [`limits`] | how often a token that does not work is worth an answer and an event |
//!
//! # For routes
//!
//! [`guard`] stands before every route that is not for everybody; it answers with a problem document. The page
//! has its own before its routes, made of [`Login::pass`], and answers who is [`Denied`] as it likes. Behind either of them a
//! handler takes [`Caller`] (who asks, and the `Actor` of events), which refuses where nobody stands before the
//! route. A page takes the CSRF token from [`Caller::session`] and puts it into each form as the field `csrf`, or
//! into the header `X-CSRF-Token` of each request of a script; both are checked before the handler runs.
//! [`Login::sign_in`] gives the cookie for `Set-Cookie`, [`Login::sign_out`] the one that removes it.

mod limits;
mod sessions;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Form, FromRequest, FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, HOST, ORIGIN};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use rand::rand_core::OsError;
use serde::Deserialize;

pub use sessions::Session;

use super::audit::{Actor, EventKind, NewEvent};
use super::strangers::Stranger;
use crate::accept;
use crate::config::{KeyHash, secret};
use crate::inspect::api::Insider;
use crate::web::layers::{self, LARGEST_BODY};
use crate::web::{Kind, Peer, Problem};
use limits::{Limited, Limits};
use sessions::Sessions;

/// What an admin token begins with.
const PREFIX: &str = "dwa_";
/// The header with a session's CSRF token.
const CSRF_HEADER: &str = "x-csrf-token";
/// The path whose requests are no use of a session: they come by themselves, for as long as a page is open.
pub const STREAM: &str = "/api/v1/stream";
/// What the paths of the page's streams begin with; they are no use either.
pub const LIVE: &str = "/live/";

/// A new admin token: `dwa_` and 32 random bytes in base64url.
///
/// # Errors
/// The kernel gave no randomness.
pub fn new_token() -> Result<String, OsError> {
    secret(PREFIX)
}

/// The door. Clones are the same.
#[derive(Clone)]
pub struct Login(Arc<Door>);

struct Door {
    /// Whether clients come over TLS.
    tls: bool,
    token: RwLock<Token>,
    sessions: Mutex<Sessions>,
    limits: Mutex<Limits>,
    record: Box<dyn Fn(NewEvent) + Send + Sync>,
}

#[derive(Debug, Clone, Copy)]
struct Token {
    /// `None` where none was made yet: nobody signs in.
    hash: Option<KeyHash>,
    /// Counts changes.
    epoch: u64,
}

/// Who asks, by a credential that works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Somebody with the admin token.
    Token {
        /// Where the request came from.
        source: IpAddr,
        /// Which token: it may be replaced while a request lasts.
        epoch: u64,
    },
    /// A browser that is signed in.
    Browser {
        /// Where the request came from.
        source: IpAddr,
        /// Its session.
        session: Session,
    },
    /// A process on this host, by way of the control socket.
    Process {
        /// Its user.
        uid: u32,
    },
}

impl Caller {
    /// As events show it.
    pub fn actor(&self) -> Actor {
        match self {
            Caller::Token { source, .. } => Actor::at("admin (token)", *source),
            Caller::Browser { source, .. } => Actor::at("admin (browser)", *source),
            Caller::Process { uid: 0 } => Actor::local("root (control socket)"),
            Caller::Process { uid } => Actor::local(format!("uid {uid} (control socket)")),
        }
    }

    /// The session, where a browser asks.
    pub fn session(&self) -> Option<&Session> {
        match self {
            Caller::Browser { session, .. } => Some(session),
            _ => None,
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Caller, Problem> {
        parts.extensions.get().cloned().ok_or_else(|| Denied::NoCredential.into())
    }
}

/// Why somebody was not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Neither token nor session.
    #[error("send the admin token as `Authorization: Bearer dwa_...`, or sign in")]
    NoCredential,
    /// The token is not the admin token.
    #[error("this is not the admin token; `dworker token reset` on the appliance makes another one")]
    WrongToken,
    /// There is no token yet.
    #[error("no admin token has been made; `dworker token reset` on the appliance makes one")]
    NoToken,
    /// The session has ended.
    #[error("the session is over: sign in again")]
    SessionOver,
    /// Too many failures, this one among them.
    #[error(
        "too many attempts failed, and this one too: try again in {} s; the right admin token is let in at any time",
        .0.as_secs().max(1)
    )]
    Limited(Duration),
    /// A browser sent it from another site's page.
    #[error("the request does not come from this appliance's own page: its `Origin` is another")]
    CrossSite,
    /// A browser sent it without the session's CSRF token.
    #[error(
        "without the session's CSRF token: send it as the header `X-CSRF-Token`, or as the form field `csrf`"
    )]
    Csrf,
    /// The body could not be read, or is too large.
    #[error("{0}")]
    Body(Problem),
    /// The kernel gave no randomness for a session.
    #[error("the kernel gave no randomness for a session: {0}")]
    Randomness(String),
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Problem {
        let kind = match &denied {
            Denied::NoCredential | Denied::WrongToken | Denied::NoToken | Denied::SessionOver => {
                Kind::Unauthorised
            }
            Denied::Limited(wait) => {
                return Problem::new(Kind::Limited, denied.to_string()).retry_after(*wait);
            }
            Denied::CrossSite | Denied::Csrf => Kind::Forbidden,
            Denied::Body(problem) => return problem.clone(),
            Denied::Randomness(_) => Kind::Internal,
        };
        Problem::new(kind, denied.to_string())
    }
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        Problem::from(self).into_response()
    }
}

/// A sign-in that worked.
#[derive(Clone)]
pub struct SignedIn {
    /// The session.
    pub session: Session,
    /// What `Set-Cookie` must say.
    pub cookie: HeaderValue,
}

impl Login {
    /// A door that opens to nobody until it [has a token](Login::set_token). `tls`: clients come over TLS. `record`
    /// keeps events, and must not wait.
    pub fn new(tls: bool, record: impl Fn(NewEvent) + Send + Sync + 'static) -> Login {
        Login(Arc::new(Door {
            tls,
            token: RwLock::new(Token { hash: None, epoch: 0 }),
            sessions: Mutex::default(),
            limits: Mutex::new(Limits::new()),
            record: Box::new(record),
        }))
    }

    /// Opens to who has the token with this hash, and to nobody else. Where it is another one than before, all
    /// sessions end.
    pub fn set_token(&self, hash: Option<KeyHash>) {
        let mut token = self.0.token.write().unwrap_or_else(PoisonError::into_inner);
        if token.hash == hash {
            return;
        }
        *token = Token { hash, epoch: token.epoch + 1 };
        drop(token);
        // After the epoch: a session that begins later finds that it has risen.
        self.sessions().end_all();
    }

    fn token(&self) -> Token {
        *self.0.token.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, event: NewEvent) {
        (self.0.record)(event);
    }

    /// Judges a token, `None` where it may not even be tried; failures are counted, and are events.
    ///
    /// The right one passes, whatever failed before, here or elsewhere. Nobody guesses 256 bits, so all that limits keep
    /// away is noise; and were the right one limited, strangers and forgotten scripts would lock its owner out.
    fn judge(&self, token: Option<&str>, source: IpAddr) -> Result<u64, Denied> {
        let ours = self.token();
        // The hash is compared, in constant time, whatever the token looks like.
        let given = token.map(KeyHash::of);
        if ours.hash.is_some() && ours.hash == given {
            return Ok(ours.epoch);
        }
        let mut limits = self.0.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = limits.failed(accept::source(source));
        drop(limits);
        let actor = Actor::at("unknown", source);
        if let Err(Limited { wait, first }) = outcome {
            if first {
                let text = "too many attempts with a wrong admin token; more are refused for a while";
                self.record(actor.did(EventKind::LoginLimited, "admin", text));
                tracing::warn!(%source, "{text}");
            }
            return Err(Denied::Limited(wait));
        }
        let (denied, text) = match (given, ours.hash) {
            (None, _) => (Denied::CrossSite, "a sign-in from another site's page"),
            (_, None) => (Denied::NoToken, "a token, but none has been made"),
            _ => (Denied::WrongToken, "a wrong admin token"),
        };
        self.record(actor.did(EventKind::LoginFailed, "admin", text));
        tracing::warn!(%source, "refused: {text}");
        Err(denied)
    }

    /// Begins a session for a browser at `source` that shows the admin token.
    ///
    /// # Errors
    /// The token is wrong, or another site's page sends this.
    pub fn sign_in(&self, source: IpAddr, headers: &HeaderMap, token: &str) -> Result<SignedIn, Denied> {
        let is_ours = self.origin(headers) != Origin::Other;
        let epoch = self.judge(is_ours.then_some(token.trim()), source)?;
        self.begin(source, epoch)
    }

    /// Begins a session for who has shown the token of `epoch`, which may have been replaced since.
    fn begin(&self, source: IpAddr, epoch: u64) -> Result<SignedIn, Denied> {
        let mut sessions = self.sessions();
        if self.token().epoch != epoch {
            return Err(Denied::WrongToken);
        }
        let (session, value) = sessions.begin().map_err(|error| Denied::Randomness(error.to_string()))?;
        drop(sessions);
        self.record(Actor::at("admin (browser)", source).did(EventKind::LoginOk, "admin", "signed in"));
        Ok(SignedIn { session, cookie: self.cookie(&value, "") })
    }

    /// Ends a browser's session; the cookie for `Set-Cookie` removes the one that the browser has.
    pub fn sign_out(&self, caller: &Caller) -> HeaderValue {
        if let Some(session) = caller.session() {
            self.sessions().end(session);
            self.record(caller.actor().did(EventKind::Logout, "admin", "signed out"));
        }
        self.cookie("", "; Max-Age=0")
    }

    /// True while what let the caller in still does: for answers that last.
    pub fn still_admits(&self, caller: &Caller) -> bool {
        match caller {
            Caller::Token { epoch, .. } => *epoch == self.token().epoch,
            Caller::Browser { session, .. } => self.sessions().lasts(session),
            Caller::Process { .. } => true,
        }
    }

    /// Lets a request through to its route, which finds the [`Caller`].
    ///
    /// # Errors
    /// Why it may not pass.
    pub async fn pass(&self, request: Request, next: Next) -> Result<Response, Denied> {
        let (request, caller) = self.admit(request).await?;
        let path = request.uri().path().to_owned();
        let response = match layers::is_too_large(request.headers()) {
            true => layers::too_large().into_response(),
            false => next.run(request).await,
        };
        if response.status() == StatusCode::PAYLOAD_TOO_LARGE {
            let text = format!("a body of more than {LARGEST_BODY} bytes for {path}");
            self.record(caller.actor().did(EventKind::RequestRefused, "admin", text));
        }
        Ok(response)
    }

    /// The request with its caller among its extensions.
    async fn admit(&self, request: Request) -> Result<(Request, Caller), Denied> {
        let (mut parts, mut body) = request.into_parts();
        let caller = self.recognise(&parts)?;
        let is_safe = matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
        if let Caller::Browser { source, session } = &caller
            && !is_safe
        {
            if self.origin(&parts.headers) != Origin::Ours {
                return Err(self.smells(*source, Denied::CrossSite));
            }
            if !has_csrf(&parts.headers, &mut body, session.csrf()).await.map_err(Denied::Body)? {
                return Err(self.smells(*source, Denied::Csrf));
            }
        }
        parts.extensions.insert(caller.clone());
        Ok((Request::from_parts(parts, body), caller))
    }

    /// Whose credential a request shows. It may not change anything yet: a browser sends its cookie by itself.
    fn recognise(&self, parts: &Parts) -> Result<Caller, Denied> {
        let Some(source) = parts.extensions.get::<Peer>().and_then(|peer| peer.address()) else {
            return Err(Denied::NoCredential);
        };
        let caller = match bearer(&parts.headers) {
            Some(token) => Caller::Token { source, epoch: self.judge(Some(token), source)? },
            None => {
                let cookie = self.find_cookie(&parts.headers).ok_or(Denied::NoCredential)?;
                let path = parts.uri.path();
                let is_use = path != STREAM && !path.starts_with(LIVE);
                let session = self.sessions().find(cookie, is_use).ok_or(Denied::SessionOver)?;
                Caller::Browser { source, session }
            }
        };
        if let Some(stranger) = parts.extensions.get::<Stranger>() {
            stranger.known();
        }
        Ok(caller)
    }

    /// What smells of an attack is an event.
    fn smells(&self, source: IpAddr, denied: Denied) -> Denied {
        let actor = Actor::at("admin (browser)", source);
        self.record(actor.did(EventKind::RequestRefused, "admin", denied.to_string()));
        tracing::warn!(%source, "refused a request: {denied}");
        denied
    }

    fn cookie_name(&self) -> &'static str {
        // Browsers take the prefix only with `Secure`, and that only over TLS.
        if self.0.tls { "__Host-dworker" } else { "dworker" }
    }

    fn cookie(&self, value: &str, more: &str) -> HeaderValue {
        let secure = if self.0.tls { "; Secure" } else { "" };
        let text = format!("{}={value}; Path=/; HttpOnly; SameSite=Strict{secure}{more}", self.cookie_name());
        // Base64url and our own words always make a header.
        let mut value = HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""));
        value.set_sensitive(true);
        value
    }

    fn find_cookie<'h>(&self, headers: &'h HeaderMap) -> Option<&'h str> {
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs =
            cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.find(|(name, _)| *name == self.cookie_name()).map(|(_, value)| value)
    }

    /// Whose page sends a request, by what only browsers say and pages can't change.
    fn origin(&self, headers: &HeaderMap) -> Origin {
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        let site = text("sec-fetch-site").map(|site| site == "same-origin");
        let origin = text(ORIGIN.as_str()).map(|origin| {
            let host = text(HOST.as_str()).unwrap_or_default();
            match (self.0.tls, origin.split_once("://")) {
                (true, Some(("https", rest))) | (false, Some((_, rest))) => rest.eq_ignore_ascii_case(host),
                _ => false,
            }
        });
        match (site, origin) {
            (None, None) => Origin::Unknown,
            (site, origin) if site.unwrap_or(true) && origin.unwrap_or(true) => Origin::Ours,
            _ => Origin::Other,
        }
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login")
    }
}

/// Whose page sent a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// Our own.
    Ours,
    /// Another.
    Other,
    /// No browser says.
    Unknown,
}

/// The token of an `Authorization` header.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// True where the header, or the field of a form, has this CSRF token. A form's body is read for it, and put back.
async fn has_csrf(headers: &HeaderMap, body: &mut Body, csrf: &str) -> Result<bool, Problem> {
    #[derive(Deserialize)]
    struct Field {
        csrf: String,
    }
    let equal = |given: &str| KeyHash::of(given) == KeyHash::of(csrf);
    if let Some(given) = headers.get(CSRF_HEADER) {
        return Ok(equal(given.to_str().unwrap_or_default()));
    }
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !media_type.is_some_and(|text| text.starts_with("application/x-www-form-urlencoded")) {
        return Ok(false);
    }
    let bytes = axum::body::to_bytes(std::mem::take(body), LARGEST_BODY).await;
    let bytes = bytes.map_err(|_| layers::too_large())?;
    *body = Body::from(bytes.clone());
    let mut copy = Request::new(Body::from(bytes));
    *copy.method_mut() = Method::POST;
    copy.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    let field = Form::<Field>::from_request(copy, &()).await;
    Ok(field.is_ok_and(|Form(field)| equal(&field.csrf)))
}

/// Stands before the API's routes on the network: who has no credential gets a problem document.
pub async fn guard(State(login): State<Login>, request: Request, next: Next) -> Response {
    login.pass(request, next).await.unwrap_or_else(Denied::into_response)
}

/// Stands before routes that are for everybody: who shows a credential that works is an [`Insider`] there. One that does
/// not work is told and counted as elsewhere, and its owner served as everybody.
pub async fn greet(State(login): State<Login>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    if login.recognise(&parts).is_ok() {
        parts.extensions.insert(Insider);
    }
    next.run(Request::from_parts(parts, body)).await
}

/// Stands before the same routes on the control socket, whose file says who may connect.
pub async fn local(mut request: Request, next: Next) -> Response {
    if let Some(Peer::Process { uid }) = request.extensions().get::<Peer>().copied() {
        request.extensions_mut().insert(Caller::Process { uid });
    }
    next.run(request).await
}
