//! What every daemon answers over HTTP, whatever its roles: its status, and whether it is well.

use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::status::Status;
use crate::web::extract::Json;

/// Where the path of the status is.
pub const STATUS: &str = "/api/v1/status";

/// An answer that takes a moment.
type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What a daemon says of itself. Clones are the same.
#[derive(Clone)]
pub struct Reports {
    /// All of it.
    pub status: Arc<dyn Fn() -> Status + Send + Sync>,
    /// Why it is not ready; empty where it is.
    pub unready: Arc<dyn Fn() -> Pending<Vec<String>> + Send + Sync>,
}

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
    /// What it does not; empty where it is ready.
    pub reasons: Vec<String>,
}

/// The routes for everybody.
pub fn open() -> OpenApiRouter<Reports> {
    OpenApiRouter::default().routes(routes!(health)).routes(routes!(readiness))
}

/// The routes for who may look into the daemon.
pub fn guarded() -> OpenApiRouter<Reports> {
    OpenApiRouter::default().routes(routes!(status))
}

/// All of them, for the control socket of a daemon that has no others.
pub fn alone(reports: Reports) -> Router {
    open().merge(guarded()).with_state(reports).split_for_parts().0
}

/// Whether the daemon is alive
#[utoipa::path(get, path = "/healthz", tag = "daemon", security(()), responses((status = 200, body = Health)))]
async fn health() -> Json<Health> {
    Json(Health { status: "ok".into() })
}

/// Whether the daemon does all that its configuration asks for
#[utoipa::path(
    get, path = "/readyz", tag = "daemon", security(()),
    responses((status = 200, body = Readiness), (status = 503, body = Readiness))
)]
async fn readiness(State(reports): State<Reports>) -> Response {
    let reasons = (reports.unready)().await;
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready: reasons.is_empty(), reasons })).into_response()
}

/// All that the daemon says of itself
#[utoipa::path(get, path = "/api/v1/status", tag = "daemon", responses((status = 200, body = Status)))]
async fn status(State(reports): State<Reports>) -> Json<Status> {
    Json((reports.status)())
}
