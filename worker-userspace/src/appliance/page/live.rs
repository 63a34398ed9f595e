//! What changes while one looks: server-sent events with the page's own HTML, each second where it differs.
//!
//! What must hold: a stream ends when its session does and when the daemon stops; a browser that reads slowly
//! waits for itself only; there are only so many streams, and what they show costs the same for one as for all.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::time::Instant;

use super::Page;
use super::connections::Which;
use super::routes::Asked;
use super::views::{Content, Shown, View};
use crate::appliance::login::Caller;
use crate::web::extract::{Path, Query};
use crate::web::{Kind, Problem, sse};

/// Streams at once. Each open tab that is looked at has one.
pub(super) const MOST: usize = 128;
/// When it may be tried again where there are as many.
const LATER: Duration = Duration::from_secs(30);
/// A sign of life where nothing changes, so that a browser notices a connection that is dead.
const STILL: Duration = Duration::from_secs(5);

pub(super) fn router() -> Router<Arc<Page>> {
    Router::new()
        .route("/live/workers", get(all_workers))
        .route("/live/workers/{id}", get(one_worker))
        .route("/live/clouds", get(all_clouds))
        .route("/live/connections", get(all_connections))
        .route("/live/events", get(all_events))
}

type Shared = State<Arc<Page>>;

async fn all_workers(State(page): Shared, caller: Caller, Query(asked): Query<Asked>) -> Response {
    stream(page, caller, Shown::Workers { query: asked.q, page: asked.page })
}

async fn one_worker(State(page): Shared, caller: Caller, Path(id): Path<i64>) -> Response {
    stream(page, caller, Shown::Worker(id))
}

async fn all_clouds(State(page): Shared, caller: Caller, Query(asked): Query<Asked>) -> Response {
    stream(page, caller, Shown::Clouds { query: asked.q, page: asked.page })
}

async fn all_connections(State(page): Shared, caller: Caller, Query(asked): Query<Asked>) -> Response {
    let (which, before) = (Which::of(&asked.state), asked.before_id());
    stream(page, caller, Shown::Connections { query: asked.q, which, before })
}

async fn all_events(State(page): Shared, caller: Caller, Query(asked): Query<Asked>) -> Response {
    let kind = asked.kind.parse().ok();
    stream(page, caller, Shown::Events { query: asked.q, kind })
}

/// A stream of what there is to see of `shown`.
fn stream(page: Arc<Page>, caller: Caller, shown: Shown) -> Response {
    let Ok(place) = page.streams.clone().try_acquire_owned() else {
        let detail = format!("{MOST} pages are looked at already");
        return Problem::new(Kind::Unavailable, detail).retry_after(LATER).into_response();
    };
    // One at a time, since each has the whole page.
    let (send, response) = sse::channel(1);
    let drain = page.drain.clone();
    page.drain.clone().spawn("live page", async move {
        let view = page.views.of(shown);
        tokio::select! {
            () = feed(&page, &caller, &view, &send) => {}
            () = drain.stopping() => {}
            () = send.closed() => {}
        }
        drop(place);
    });
    response
}

async fn feed(page: &Page, caller: &Caller, view: &View, send: &sse::Sender) {
    let csrf = caller.session().map(|session| session.csrf()).unwrap_or_default();
    let mut ticks = view.ticks();
    let (mut last, mut said): (Option<Arc<str>>, _) = (None, Instant::now());
    // At first nothing that is older than the page that asks.
    let mut since = Instant::now();
    while page.login.still_admits(caller) {
        let sent = match view.content(page, since).await {
            Content::Gone => break,
            Content::Html(html) if !last.as_ref().is_some_and(|last| Arc::ptr_eq(last, &html)) => {
                let sent = send.send_text("page", &html.replace(&page.mark, csrf)).await;
                last = Some(html);
                Some(sent)
            }
            _ if said.elapsed() >= STILL => Some(send.send_text("still", "").await),
            _ => None,
        };
        match sent {
            Some(Ok(())) => said = Instant::now(),
            Some(Err(_)) => return,
            None => {}
        }
        since = ticks.tick().await;
    }
    // The page has to be asked for anew. Who does not read that reads nothing.
    let _ = send.send_text("end", "").await;
}
