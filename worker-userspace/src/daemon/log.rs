//! What is logged, asked for and changed through the control socket: whoever may reload a daemon may see what it does.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use serde::Deserialize;
use tokio::time::sleep;

use super::Roles;
use crate::appliance::audit::EventKind;
use crate::appliance::login::Caller;
use crate::config::{parse_duration, parse_log_filter};
use crate::drain::Drain;
use crate::inspect::api::LOG;
use crate::telemetry::{self, Filter};
use crate::web::extract::Json;
use crate::web::{Kind, Peer, Problem};

/// The longest change that ends by itself.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone)]
struct Shared {
    roles: Arc<Roles>,
    drain: Drain,
}

/// A filter that is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    filter: String,
    /// How long it holds; for good where this is missing.
    #[serde(default, rename = "for")]
    lasts: Option<String>,
}

pub(super) fn routes(roles: &Arc<Roles>, drain: &Drain) -> Router {
    let shared = Shared { roles: roles.clone(), drain: drain.clone() };
    Router::new().route(LOG, get(show).put(change)).with_state(shared)
}

async fn show() -> Response {
    match telemetry::filter() {
        Some(filter) => Json(filter).into_response(),
        None => Problem::new(Kind::Unavailable, "there is no log").into_response(),
    }
}

async fn change(
    State(shared): State<Shared>,
    peer: Option<Extension<Peer>>,
    Json(wanted): Json<Wanted>,
) -> Result<Json<Filter>, Problem> {
    let filter = parse_log_filter(&wanted.filter).map_err(|wrong| Problem::invalid("filter", wrong))?;
    let lasts = wanted.lasts.as_deref().map(|text| parse_duration(text, LONGEST)).transpose();
    let lasts = lasts.map_err(|wrong| Problem::invalid("for", wrong))?;
    let caller = peer.and_then(|Extension(peer)| match peer {
        Peer::Process { uid } => Some(Caller::Process { uid }),
        Peer::Network(_) => None,
    });
    let actor = caller.map(|caller| caller.actor());
    let by = actor.as_ref().map_or("nobody known", |actor| actor.name.as_str());
    let during = wanted.lasts.map(|lasts| format!(", for {lasts}")).unwrap_or_default();
    // By the filter from before: the new one may leave it out.
    tracing::warn!("the log's filter is {filter:?} from now on{during}, as {by} wants it");
    let (now, number) =
        telemetry::change_filter(&filter, lasts).map_err(|why| Problem::invalid("filter", why))?;
    if let (Some(appliance), Some(actor)) = (&shared.roles.appliance, &actor) {
        appliance.record(actor.did(EventKind::LogChanged, "dworker", format!("{filter}{during}")));
    }
    if let Some(lasts) = lasts {
        let drain = shared.drain.clone();
        shared.drain.spawn("the log's filter", async move {
            tokio::select! {
                () = sleep(lasts) => {}
                // Who only lets connections end would go on with it for hours.
                () = drain.stopping() => {}
            }
            if let Some(filter) = telemetry::put_filter_back(number) {
                tracing::warn!("the log's filter is {filter:?} again");
            }
        });
    }
    Ok(Json(now))
}
