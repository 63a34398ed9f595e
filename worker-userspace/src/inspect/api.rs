//! What every daemon answers over HTTP, whatever its roles: its status, and whether it is well.

use std::pin::Pin;
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::{Extension, Router};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::status::Status;
use super::why::{Asked, Why, WhyError};
use crate::web::extract::{Json, Query};
use crate::web::{Kind, Peer, Problem};

/// Where every daemon says that it is alive.
pub const HEALTH: &str = "/healthz";
/// Where the path of the status is.
pub const STATUS: &str = "/api/v1/status";
/// Where it is asked what would happen to a connection.
pub const WHY: &str = "/api/v1/why";
/// Where a daemon is asked to reload, or with GET what that would bring: on the control socket only, as the next four.
pub const RELOAD: &str = "/api/v1/reload";
/// Where it is asked what it logs, and told to log something else.
pub const LOG: &str = "/api/v1/log";
/// Where it is asked to try its proxy hosts.
pub const PROBE: &str = "/api/v1/probe";
/// Where it is asked to capture again.
pub const STEER_ON: &str = "/api/v1/steering/on";
/// Where it is asked to capture nothing.
pub const STEER_OFF: &str = "/api/v1/steering/off";

/// An answer that takes a moment.
type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What a status lists in any case, where there is so much that it does not list all.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Wanted {
    /// A connection's number or trace, a stream's key, or a name or an address of it.
    pub item: Option<String>,
}

/// What a daemon says of itself. Clones are the same.
#[derive(Clone)]
pub struct Reports {
    /// All of it; blocks for a moment.
    pub status: Arc<dyn Fn(Wanted) -> Status + Send + Sync>,
    /// Why it is not ready; empty where it is. Anybody may ask, as often as they like.
    pub unready: Arc<dyn Fn() -> Pending<Vec<Lack>> + Send + Sync>,
    /// What would happen to a connection, and why.
    pub why: Arc<dyn Fn(Asked) -> Pending<Result<Why, WhyError>> + Send + Sync>,
}

/// Something that the configuration asks for and that is not so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// The part of the daemon that lacks it: a word for everybody.
    pub part: &'static str,
    /// What exactly, with addresses and paths: for who may look into the daemon.
    pub detail: String,
}

/// The mark, among a request's extensions, of who may look into the daemon, on routes that are for everybody. Who
/// comes through the control socket needs none.
#[derive(Debug, Clone, Copy)]
pub struct Insider;

/// Whether the daemon is alive.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
}

/// Whether the daemon does all that its configuration asks for.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    /// True where it does.
    pub ready: bool,
    /// What it does not; empty where it is ready. In full for who shows a credential that works, and on the control
    /// socket. Everybody else is told which parts: `stopping`, `registry`, `worker` (not connected to its appliance) or
    /// `steering`, each once.
    pub reasons: Vec<String>,
}

/// The routes for everybody.
pub fn open() -> OpenApiRouter<Reports> {
    OpenApiRouter::default().routes(routes!(health)).routes(routes!(readiness))
}

/// The routes for who may look into the daemon.
pub fn guarded() -> OpenApiRouter<Reports> {
    OpenApiRouter::default().routes(routes!(status)).routes(routes!(why))
}

/// All of them, for the control socket of a daemon that has no others.
pub fn alone(reports: Reports) -> Router {
    let routes = open().merge(guarded()).with_state(reports).split_for_parts().0;
    routes.route("/api/v1/{*path}", any(no_registry))
}

/// What an appliance answers and other daemons don't.
async fn no_registry() -> Problem {
    Problem::new(Kind::OtherRole, "this daemon is a worker and has no registry: ask the appliance")
}

/// Whether the daemon is alive
#[utoipa::path(get, path = "/healthz", tag = "daemon", security(()), responses((status = 200, body = Health)))]
async fn health() -> Json<Health> {
    Json(Health { status: "ok".into() })
}

/// Whether the daemon does all that its configuration asks for
///
/// For everybody, as load balancers need it; only who may look into the daemon is told why it does not. What costs
/// something to find out is believed for 5 seconds.
#[utoipa::path(
    get, path = "/readyz", tag = "daemon", security((), ("token" = []), ("session" = [])),
    responses((status = 200, body = Readiness), (status = 503, body = Readiness))
)]
async fn readiness(
    State(reports): State<Reports>,
    peer: Option<Extension<Peer>>,
    insider: Option<Extension<Insider>>,
) -> Response {
    let is_insider = insider.is_some() || matches!(peer, Some(Extension(Peer::Process { .. })));
    let lacks = (reports.unready)().await.into_iter();
    let mut reasons: Vec<String> = match is_insider {
        true => lacks.map(|lack| lack.detail).collect(),
        false => lacks.map(|lack| lack.part.to_owned()).collect(),
    };
    reasons.dedup();
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready: reasons.is_empty(), reasons })).into_response()
}

/// All that the daemon says of itself
///
/// Of connections and names at most 1,024 of each.
#[utoipa::path(
    get, path = "/api/v1/status", tag = "daemon", params(Wanted), responses((status = 200, body = Status))
)]
async fn status(
    State(reports): State<Reports>,
    Query(wanted): Query<Wanted>,
) -> Result<Json<Status>, Problem> {
    // The kernel's tables are read, and many connections take their time.
    let status = spawn_blocking(move || (reports.status)(wanted)).await;
    status.map(Json).map_err(|panicked| Problem::new(Kind::Internal, panicked.to_string()))
}

/// What would happen to a connection from this host, and why
///
/// Nothing is connected to, and no name gets an address by being asked for.
#[utoipa::path(get, path = "/api/v1/why", tag = "daemon", params(Asked), responses((status = 200, body = Why)))]
async fn why(State(reports): State<Reports>, Query(asked): Query<Asked>) -> Result<Json<Why>, Problem> {
    let answer = (reports.why)(asked).await;
    answer.map(Json).map_err(|error| match error {
        WhyError::Asked { field, detail } => Problem::invalid(field, detail),
        WhyError::Silent(detail) => Problem::new(Kind::Unavailable, detail),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::body::to_bytes;
    use http::Request;
    use tower::ServiceExt;

    #[tokio::test]
    async fn who_asks_a_worker_for_the_registry_is_sent_to_the_appliance() {
        let reports = Reports {
            status: Arc::new(|_| unreachable!("nobody asked for it")),
            why: Arc::new(|_| unreachable!("nobody asked for it")),
            unready: Arc::new(|| Box::pin(std::future::ready(Vec::new()))),
        };
        let around = crate::web::layers::around(alone(reports));
        for (path, status, says) in [
            ("/api/v1/workers", 501, "this daemon is a worker and has no registry: ask the appliance"),
            ("/api/v1/workers/site-a/key", 501, "ask the appliance"),
            ("/api/v2/workers", 404, "there is nothing at this path"),
            ("/healthz", 200, "ok"),
        ] {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let response = around.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), status, "{path}");
            let body = to_bytes(response.into_body(), 1 << 16).await.unwrap();
            let body = String::from_utf8_lossy(&body);
            assert!(body.contains(says), "{path}: {body}");
        }
    }

    #[tokio::test]
    async fn strangers_are_told_which_part_is_not_ready_and_insiders_why() {
        let lack = |part, detail: &str| Lack { part, detail: detail.to_owned() };
        let lacks = vec![
            lack("registry", "the registry: /var/lib/dworker is full"),
            lack("steering", "nothing is captured in /a"),
            lack("steering", "nothing is captured in /b"),
        ];
        let reports = Reports {
            status: Arc::new(|_| unreachable!("nobody asked for it")),
            why: Arc::new(|_| unreachable!("nobody asked for it")),
            unready: Arc::new(move || Box::pin(std::future::ready(lacks.clone()))),
        };
        let network = Peer::Network(([192, 0, 2, 7], 50_000).into());
        let socket = Peer::Process { uid: 0 };
        let whole: Vec<&str> = vec![
            "the registry: /var/lib/dworker is full",
            "nothing is captured in /a",
            "nothing is captured in /b",
        ];
        let parts = vec!["registry", "steering"];
        for (peer, insider, expected) in [
            (None, false, &parts),
            (Some(network), false, &parts),
            (Some(network), true, &whole),
            (Some(socket), false, &whole),
        ] {
            let mut request = Request::get("/readyz").body(Body::empty()).unwrap();
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            if insider {
                request.extensions_mut().insert(Insider);
            }
            let response = alone(reports.clone()).oneshot(request).await.unwrap();
            assert_eq!(response.status(), 503);
            let body = to_bytes(response.into_body(), 1 << 16).await.unwrap();
            let told: Readiness = serde_json::from_slice(&body).unwrap();
            assert!(!told.ready);
            assert_eq!(&told.reasons, expected, "{peer:?}");
        }
    }
}
