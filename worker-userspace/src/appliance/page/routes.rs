//! The page's paths: who may ask, what is done, what is shown then.
//!
//! What changes something is a POST, which ends in a redirect; so a reload never does it twice. What is wrong with a
//! form is shown beside its fields, with all that was typed.

mod clouds;
mod connections;
#[cfg(test)]
mod tests;
mod workers;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Form, Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{any, get, post};
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, RETRY_AFTER, SET_COOKIE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use maud::{DOCTYPE, Markup, html};
use serde::Deserialize;

use super::layout::{Flash, Frame};
use super::parts::Wrong;
use super::sign_in::{self, Say};
use super::{Page, assets, live};
use crate::appliance::admin::{AdminError, Warning};
use crate::appliance::login::{Caller, Denied, LIVE};
use crate::web::extract::Query;
use crate::web::layers;
use crate::web::{Peer, Problem};

/// No inline script or style, nothing from elsewhere, and nobody frames it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
/// The longest path that a sign-in leads on to.
const LONGEST_NEXT: usize = 512;

/// All paths. The machinery around them (sizes, deadlines) is not here.
pub(super) fn router(page: Arc<Page>) -> Router {
    let inside = Router::new()
        .merge(workers::router())
        .merge(clouds::router())
        .merge(connections::router())
        .merge(live::router())
        .route("/", get(async || Redirect::to("/workers")))
        .route("/sign-out", post(sign_out))
        .route_layer(from_fn_with_state(page.clone(), door));
    Router::new()
        .route("/sign-in", get(show_sign_in).post(do_sign_in))
        .route("/assets/{hash}/{name}", get(assets::serve))
        .merge(inside)
        // Also for what nobody knows there is a page.
        .route("/{*path}", any(async || StatusCode::NOT_FOUND))
        .layer(from_fn(dress))
        .with_state(page)
}

/// Lets those pass who are signed in; others are led to the sign-in.
async fn door(State(page): State<Arc<Page>>, request: Request, next: Next) -> Response {
    let path = request.uri().path_and_query().map(|path| path.as_str().to_owned()).unwrap_or_default();
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let from_elsewhere = request.headers().get("sec-fetch-site").is_some_and(|site| site == "cross-site");
    let is_stream = path.starts_with(LIVE);
    let denied = match page.login.pass(request, next).await {
        Ok(response) => return response,
        Err(denied) => denied,
    };
    match denied {
        _ if is_stream => denied.into_response(),
        // The cookie is strict: whoever follows a link from another site's page comes without it, and only there.
        Denied::NoCredential if is_read && from_elsewhere => Html(again(&path).into_string()).into_response(),
        Denied::NoCredential | Denied::SessionOver => {
            let why = if denied == Denied::SessionOver { "ended" } else { "" };
            // What was posted is lost; the page of the form is where to go on.
            Redirect::to(&format!("/sign-in{}", super::query(&[("why", why), ("next", &path)])))
                .into_response()
        }
        denied => Problem::from(denied).into_response(),
    }
}

/// A page that asks for `path` once more, from here.
fn again(path: &str) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head { meta charset="utf-8"; meta http-equiv="refresh" content={ "0; url=" (path) }; title { "dworker" } }
            body { p { a href=(path) { "Go on" } } }
        }
    }
}

/// Gives each answer the headers of a page, and each error a page.
async fn dress(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    if layers::is_api(&path) {
        return response;
    }
    let status = response.status();
    let is_page =
        response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
    if (status.is_client_error() || status.is_server_error()) && !is_page {
        response = error_page(response, &path);
    }
    const HEADERS: [(HeaderName, &str); 3] = [
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, POLICY),
        // Without the origin in its own requests the page could not show that they are its own.
        (REFERRER_POLICY, "same-origin"),
    ];
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

fn error_page(mut response: Response, path: &str) -> Response {
    let status = response.status();
    let problem = response.extensions_mut().remove::<Problem>();
    let detail = match (&problem, status) {
        (Some(problem), _) => problem.detail.as_str(),
        (None, StatusCode::NOT_FOUND) => "Nothing is at this address. It may have been removed.",
        (None, StatusCode::METHOD_NOT_ALLOWED) => "This address does not take such a request.",
        (None, _) => "The appliance could not read this request.",
    };
    // What is only too much for now explains itself.
    let trace =
        (status == StatusCode::INTERNAL_SERVER_ERROR).then(|| format!("{:016x}", rand::random::<u64>()));
    if let Some(trace) = &trace {
        tracing::error!(%trace, %path, "the page failed: {detail}");
    }
    let page = sign_in::problem(status, detail, trace.as_deref());
    let mut dressed = (status, Html(page.into_string())).into_response();
    for name in [RETRY_AFTER, http::header::ALLOW] {
        if let Some(value) = response.headers_mut().remove(&name) {
            dressed.headers_mut().insert(name, value);
        }
    }
    dressed
}

impl Page {
    /// What a page of this session has in common with others; `path` is the page's own.
    pub(super) fn frame(&self, caller: &Caller, path: &str) -> Frame {
        let csrf = caller.session().map(|session| session.csrf().to_owned()).unwrap_or_default();
        let flash = self.flashes.said(&csrf, path);
        Frame { csrf, host: self.host.clone(), flash }
    }

    /// Goes on at `path`, which says what was done.
    pub(super) fn done(&self, caller: &Caller, path: &str, done: String, warnings: &[Warning]) -> Redirect {
        let warnings = warnings.iter().map(ToString::to_string).collect();
        if let Some(session) = caller.session() {
            self.flashes.say(session.csrf(), path, Flash { done, warnings });
        }
        Redirect::to(path)
    }
}

/// What is wrong with a form, where that is what an error says; `hosts` is the field that proxy hosts come from.
pub(super) fn wrongs(error: &AdminError, hosts: &'static str) -> Option<Vec<Wrong>> {
    let wrong = |field, text: String| Wrong { field, text };
    Some(match error {
        AdminError::Invalid(problems) => problems
            .iter()
            .map(|problem| {
                // The API's word for a field, where the form's is another.
                let field = if problem.field == "type" { "kind" } else { problem.field };
                wrong(field, format!("{}: {}: {}", problem.value, problem.problem, problem.remedy))
            })
            .collect(),
        AdminError::NameTaken { .. } => vec![wrong("name", error.to_string())],
        AdminError::PatternTaken(taken) => {
            taken.iter().map(|taken| wrong(hosts, taken.to_string())).collect()
        }
        AdminError::Refused(lines) => lines.iter().map(|line| wrong(hosts, line.clone())).collect(),
        AdminError::ManagedByFile { .. } | AdminError::Conflict { .. } => vec![wrong("", error.to_string())],
        _ => return None,
    })
}

/// The status of a form that was not saved.
pub(super) fn not_saved(error: &AdminError) -> StatusCode {
    match error {
        AdminError::Conflict { .. } | AdminError::NameTaken { .. } | AdminError::PatternTaken(_) => {
            StatusCode::CONFLICT
        }
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    }
}

/// The part of a list that is asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    pub(super) q: String,
    /// From 0.
    pub(super) page: usize,
    pub(super) state: String,
    pub(super) kind: String,
    pub(super) before: Option<i64>,
}

impl Asked {
    /// The same as the number of a connection.
    pub(super) fn before_id(&self) -> Option<u64> {
        self.before.and_then(|id| id.try_into().ok())
    }
}

/// Where a sign-in leads on to: a path of this appliance's pages, whatever is asked for.
fn next_path(asked: &str) -> &str {
    let is_local = asked.starts_with('/')
        && !asked.starts_with("//")
        && asked.len() <= LONGEST_NEXT
        && asked.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    let is_page = ![LIVE, "/sign-", "/api/"].iter().any(|other| asked.starts_with(other));
    if is_local && is_page { asked } else { "/" }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Before {
    why: String,
    next: String,
}

async fn show_sign_in(Query(before): Query<Before>) -> Markup {
    let say = match before.why.as_str() {
        "ended" => Say::Ended,
        "bye" => Say::Bye,
        _ => Say::Welcome,
    };
    sign_in::sign_in(&say, next_path(&before.next))
}

#[derive(Deserialize)]
struct Token {
    token: String,
    #[serde(default)]
    next: String,
}

async fn do_sign_in(
    State(page): State<Arc<Page>>,
    axum::Extension(peer): axum::Extension<Peer>,
    headers: HeaderMap,
    Form(form): Form<Token>,
) -> Response {
    let next = next_path(&form.next);
    let Some(source) = peer.address() else { return StatusCode::NOT_FOUND.into_response() };
    let denied = match page.login.sign_in(source, &headers, &form.token) {
        Ok(signed_in) => return ([(SET_COOKIE, signed_in.cookie)], Redirect::to(next)).into_response(),
        Err(denied) => denied,
    };
    let text = match &denied {
        Denied::WrongToken if form.token.trim().is_empty() => "Write the admin token here.".to_owned(),
        Denied::WrongToken => "This is not the admin token. Where it is lost, make another one.".to_owned(),
        Denied::NoToken => {
            "No admin token has been made yet: dworker token reset, on the appliance's host, makes one."
                .to_owned()
        }
        denied => {
            let mut text = denied.to_string();
            text[..1].make_ascii_uppercase();
            text + "."
        }
    };
    // Status and the time to wait are the problem's; the page is our own.
    let mut response = denied.into_response();
    response.extensions_mut().remove::<Problem>();
    let html = sign_in::sign_in(&Say::Wrong(text), next).into_string();
    let retry = response.headers().get(RETRY_AFTER).cloned();
    let mut response = (response.status(), Html(html)).into_response();
    retry.map(|retry| response.headers_mut().insert(RETRY_AFTER, retry));
    response
}

async fn sign_out(State(page): State<Arc<Page>>, caller: Caller) -> Response {
    ([(SET_COOKIE, page.login.sign_out(&caller))], Redirect::to("/sign-in?why=bye")).into_response()
}
