//! The paths of connections and events.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::Redirect;
use axum::routing::get;
use maud::Markup;

use super::Asked;
use crate::appliance::login::Caller;
use crate::appliance::page::connections::Which;
use crate::appliance::page::{Page, connections, events};
use crate::appliance::watch::close_by_hand;
use crate::web::Problem;
use crate::web::extract::{Path, Query};

pub(super) fn router() -> Router<Arc<Page>> {
    Router::new()
        .route("/connections", get(list))
        .route("/connections/{id}/close", get(ask_close).post(close))
        .route("/events", get(list_events))
}

type Shared = State<Arc<Page>>;

async fn list(State(page): Shared, caller: Caller, Query(asked): Query<Asked>) -> Markup {
    let frame = page.frame(&caller, "/connections");
    connections::list(&frame, &page.connections(&asked.q, Which::of(&asked.state), asked.before_id()))
}

fn gone() -> Problem {
    Problem::not_found("This connection is not open any more.")
}

async fn ask_close(State(page): Shared, caller: Caller, Path(id): Path<u64>) -> Result<Markup, Problem> {
    let row = page.connection(id).ok_or_else(gone)?;
    Ok(connections::close(&page.frame(&caller, "/connections"), id, &row.target, row.process.as_deref()))
}

async fn close(State(page): Shared, caller: Caller, Path(id): Path<u64>) -> Result<Redirect, Problem> {
    let row = page.connection(id).ok_or_else(gone)?;
    if !close_by_hand(&page.ledger, &page.audit, id, caller.actor()) {
        return Err(gone());
    }
    Ok(page.done(&caller, "/connections", format!("The connection to {} is closed.", row.target), &[]))
}

async fn list_events(
    State(page): Shared,
    caller: Caller,
    Query(asked): Query<Asked>,
) -> Result<Markup, Problem> {
    // A kind that this version does not know is no kind.
    let found = page.events(&asked.q, asked.kind.parse().ok(), asked.before).await?;
    Ok(events::list(&page.frame(&caller, "/events"), &found))
}
