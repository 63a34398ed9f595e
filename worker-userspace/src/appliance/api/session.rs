//! Signing in and out, and the admin token.

use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::SET_COOKIE;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Api;
use crate::appliance::login::{Caller, new_token};
use crate::config::KeyHash;
use crate::web::extract::Json;
use crate::web::{Kind, Peer, Problem};

/// What a browser signs in with.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SignIn {
    /// The admin token.
    #[schema(format = Password)]
    token: String,
}

/// Who asks.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Session {
    /// As events show it.
    pub actor: String,
    /// What `X-CSRF-Token` must say in each request that changes something; only where a cookie signs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub csrf: Option<String>,
    /// How many seconds the session lasts at most; only where a cookie signs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lasts_s: Option<u64>,
}

/// A new admin token.
#[derive(Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// The token: shown now, and never again.
    pub token: String,
}

/// Sign in with the admin token
///
/// For browsers: the answer sets a cookie. Everybody else sends the token with each request, as
/// `Authorization: Bearer dwa_...`, and needs no session.
#[utoipa::path(
    post, path = "/api/v1/session", tag = "session", request_body = SignIn, security(()),
    responses((status = 201, body = Session, headers(("Set-Cookie" = String))))
)]
pub(super) async fn sign_in(
    State(api): State<Api>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
    Json(SignIn { token }): Json<SignIn>,
) -> Result<Response, Problem> {
    let Some(source) = peer.and_then(|Extension(peer)| peer.address()) else {
        return Err(Problem::new(Kind::Conflict, "the control socket needs no session"));
    };
    let signed = api.login.sign_in(source, &headers, &token)?;
    let caller = Caller::Browser { source, session: signed.session };
    Ok((StatusCode::CREATED, [(SET_COOKIE, signed.cookie)], Json(Session::of(&caller))).into_response())
}

impl Session {
    fn of(caller: &Caller) -> Session {
        Session {
            actor: caller.actor().name,
            csrf: caller.session().map(|session| session.csrf().to_owned()),
            lasts_s: caller.session().map(|session| session.lasts().as_secs()),
        }
    }
}

/// Who asks
#[utoipa::path(get, path = "/api/v1/session", tag = "session", responses((status = 200, body = Session)))]
pub(super) async fn show(caller: Caller) -> Json<Session> {
    Json(Session::of(&caller))
}

/// Sign out
#[utoipa::path(delete, path = "/api/v1/session", tag = "session", responses((status = 204, headers(("Set-Cookie" = String)))))]
pub(super) async fn sign_out(State(api): State<Api>, caller: Caller) -> Response {
    let cookie = api.login.sign_out(&caller);
    (StatusCode::NO_CONTENT, [(SET_COOKIE, cookie)]).into_response()
}

/// Make another admin token
///
/// Through the control socket only: who has a token that leaked can't lock the others out. All sessions end.
#[utoipa::path(post, path = "/api/v1/token", tag = "session", responses((status = 200, body = Token)))]
pub(super) async fn reset_token(State(api): State<Api>, caller: Caller) -> Result<Json<Token>, Problem> {
    if !matches!(caller, Caller::Process { .. }) {
        let detail = "the admin token is made anew on the appliance only: `dworker token reset`";
        return Err(Problem::new(Kind::Forbidden, detail));
    }
    let token = new_token().map_err(|error| {
        Problem::new(Kind::Internal, format!("the kernel gave no randomness for a token: {error}"))
    })?;
    api.admin.set_admin_token(KeyHash::of(&token), &caller.actor()).await?;
    Ok(Json(Token { token }))
}
