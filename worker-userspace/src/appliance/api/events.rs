//! Events: who did what, and what happened to whom.

use axum::extract::State;
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use crate::appliance::audit::{Event, EventKind, EventQuery};
use crate::web::Problem;
use crate::web::extract::{Json, Query};
use crate::web::paging::{Limit, Page, cursor};
use crate::web::problem::Kind;

/// Which events are asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// Of these kinds, separated by commas.
    kind: Option<String>,
    /// Of this subject (a worker's or a cloud's name, `worker/node`), or of what lies below it.
    subject: Option<String>,
    /// Not before this time.
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
    /// Before this time.
    #[param(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
    /// With this in their actor, subject, text or source; letters A to Z in either case.
    text: Option<String>,
    /// How many at most, 1 to 500.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500, default = 100)]
    limit: Limit,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// Events, newest first
#[utoipa::path(get, path = "/api/v1/events", tag = "events", params(Asked), responses((status = 200, body = Page<Event>)))]
pub(super) async fn list(
    State(api): State<Api>,
    Query(asked): Query<Asked>,
) -> Result<Json<Page<Event>>, Problem> {
    let kinds = asked.kind.as_deref().unwrap_or_default().split(',').filter(|word| !word.is_empty());
    let kinds: Result<Vec<EventKind>, Problem> = kinds
        .map(|word| {
            word.trim().parse().map_err(|error: crate::appliance::audit::UnknownEventKind| {
                Problem::new(Kind::Malformed, format!("the parameter kind: {error}"))
                    .with("kind", error.to_string())
            })
        })
        .collect();
    let query = EventQuery {
        kinds: kinds?,
        subject: asked.subject,
        since: asked.since,
        until: asked.until,
        text: asked.text,
        before: cursor(asked.cursor.as_deref())?,
        // One more says whether there is another page.
        limit: asked.limit.items() as u32 + 1,
    };
    let events = api.admin.events(&query).await?;
    Ok(Json(Page::cut(events, asked.limit, |event| event.id)))
}
