//! Connections: those open now and the last that ended, with what each has carried.

use axum::extract::State;
use http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use crate::appliance::login::Caller;
use crate::appliance::watch::close_by_hand;
use crate::inspect::ledger::{Entry, Filter, FlowReport, Phase};
use crate::web::Problem;
use crate::web::extract::{Json, Path, Query};
use crate::web::paging::{Limit, Page, cursor};

/// Which connections are asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// Only those still `open`, only those that have `ended`, or of these only those that `failed`.
    #[param(inline)]
    phase: Option<Phase>,
    /// With this in their target, trace, state, reason, process, user, worker or addresses; letters in either case.
    text: Option<String>,
    /// With this in their target; letters in either case.
    target: Option<String>,
    /// Carried by this worker, or by this node of it (`worker/host`).
    carrier: Option<String>,
    /// How they came in.
    #[param(inline)]
    entry: Option<Entry>,
    /// Of this process.
    pid: Option<u32>,
    /// How many at most, 1 to 500.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500, default = 100)]
    limit: Limit,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// Connections, newest first
#[utoipa::path(
    get, path = "/api/v1/connections", tag = "connections", params(Asked),
    responses((status = 200, body = Page<FlowReport>))
)]
pub(super) async fn list(
    State(api): State<Api>,
    Query(asked): Query<Asked>,
) -> Result<Json<Page<FlowReport>>, Problem> {
    let filter = Filter {
        phase: asked.phase,
        text: asked.text,
        target: asked.target,
        carrier: asked.carrier,
        entry: asked.entry,
        pid: asked.pid,
        after: cursor(asked.cursor.as_deref())?,
        // One more says whether there is another page.
        limit: Some(asked.limit.items() + 1),
    };
    Ok(Json(Page::cut(api.ledger.list(&filter), asked.limit, |flow| flow.id)))
}

fn unknown(id: u64) -> Problem {
    Problem::not_found(format!("there is no connection {id}: it has ended, and was forgotten"))
}

/// One connection
#[utoipa::path(
    get, path = "/api/v1/connections/{id}", tag = "connections",
    params(("id" = u64, Path, description = "Its number")),
    responses((status = 200, body = FlowReport))
)]
pub(super) async fn show(State(api): State<Api>, Path(id): Path<u64>) -> Result<Json<FlowReport>, Problem> {
    api.ledger.get(id).map(Json).ok_or_else(|| unknown(id))
}

/// Close a connection, with a reset at both ends
#[utoipa::path(
    delete, path = "/api/v1/connections/{id}", tag = "connections",
    params(("id" = u64, Path, description = "Its number")),
    responses((status = 204))
)]
pub(super) async fn close(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<u64>,
) -> Result<StatusCode, Problem> {
    let flow = api.ledger.get(id).ok_or_else(|| unknown(id))?;
    if !close_by_hand(&api.ledger, &api.audit, id, caller.actor()) {
        return Err(Problem::not_found(format!("connection {id} has ended already: {}", flow.state)));
    }
    Ok(StatusCode::NO_CONTENT)
}
