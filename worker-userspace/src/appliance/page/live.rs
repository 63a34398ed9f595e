//! What changes while one looks: server-sent events with the page's own HTML, each second where it differs.
//!
//! What must hold: a stream ends when its session does and when the daemon stops; a browser that reads slowly
//! waits for itself only; there are only so many streams.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use maud::Markup;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::connections::Which;
use super::follow::Followed;
use super::routes::Asked;
use super::{Page, clouds, connections, events, worker, workers};
use crate::appliance::admin::AdminError;
use crate::appliance::login::Caller;
use crate::web::extract::{Path, Query};
use crate::web::{Kind, Problem, sse};

/// Streams at once. Each open tab that is looked at has one.
pub(super) const MOST: usize = 128;
/// When it may be tried again where there are as many.
const LATER: Duration = Duration::from_secs(30);
/// How often the content is looked at.
const TICK: Duration = Duration::from_secs(1);
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
    stream(page, caller, asked, |page, asked| async move {
        Ok(workers::live_list(&page.workers(&asked.q, asked.page)))
    })
}

async fn one_worker(State(page): Shared, caller: Caller, Path(id): Path<i64>) -> Response {
    let csrf = caller.session().map(|session| session.csrf().to_owned()).unwrap_or_default();
    stream(page, caller, csrf, move |page, csrf| async move {
        page.worker(id).await.map(|detail| worker::live_detail(&csrf, &detail))
    })
}

async fn all_clouds(State(page): Shared, caller: Caller, Query(asked): Query<Asked>) -> Response {
    stream(page, caller, asked, |page, asked| async move {
        Ok(clouds::live_list(&page.clouds(&asked.q, asked.page)))
    })
}

async fn all_connections(State(page): Shared, caller: Caller, Query(asked): Query<Asked>) -> Response {
    stream(page, caller, asked, |page, asked| async move {
        Ok(connections::live_list(&page.connections(&asked.q, Which::of(&asked.state), asked.before_id())))
    })
}

async fn all_events(State(page): Shared, caller: Caller, Query(asked): Query<Asked>) -> Response {
    let kind = asked.kind.parse().ok();
    stream(page, caller, Followed::new(asked.q, kind), |page, followed| async move {
        followed.list(&page).await.map(|found| events::live_list(&found))
    })
}

/// A stream of what `make` gives for `asked`.
fn stream<A, F, M>(page: Arc<Page>, caller: Caller, asked: A, make: F) -> Response
where
    A: Send + Sync + 'static,
    F: Fn(Arc<Page>, Arc<A>) -> M + Send + Sync + 'static,
    M: Future<Output = Result<Markup, AdminError>> + Send,
{
    let Ok(place) = page.streams.clone().try_acquire_owned() else {
        let detail = format!("{MOST} pages are looked at already");
        return Problem::new(Kind::Unavailable, detail).retry_after(LATER).into_response();
    };
    // One at a time, since each has the whole page.
    let (send, response) = sse::channel(1);
    let drain = page.drain.clone();
    let asked = Arc::new(asked);
    page.drain.clone().spawn("live page", async move {
        let make = || make(page.clone(), asked.clone());
        tokio::select! {
            () = feed(&page, &caller, make, &send) => {}
            () = drain.stopping() => {}
            () = send.closed() => {}
        }
        drop(place);
    });
    response
}

async fn feed<M>(page: &Page, caller: &Caller, make: impl Fn() -> M, send: &sse::Sender)
where
    M: Future<Output = Result<Markup, AdminError>>,
{
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut last, mut said) = (String::new(), Instant::now());
    loop {
        ticks.tick().await;
        if !page.login.still_admits(caller) {
            break;
        }
        let sent = match make().await {
            Ok(html) if html.0 != last => {
                last = html.into_string();
                send.send_text("page", &last).await
            }
            Err(AdminError::NotFound { .. }) => break,
            // What can't be read now stays as it was.
            Ok(_) | Err(_) if said.elapsed() < STILL => continue,
            Ok(_) => send.send_text("still", "").await,
            Err(error) => {
                tracing::warn!("a page is not up to date: {error}");
                send.send_text("still", "").await
            }
        };
        said = Instant::now();
        if sent.is_err() {
            return;
        }
    }
    // The page has to be asked for anew. Who does not read that reads nothing.
    let _ = send.send_text("end", "").await;
}
