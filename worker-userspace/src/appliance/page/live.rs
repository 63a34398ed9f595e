//! What changes while one looks: server-sent events with the page's own HTML, each second where it differs.
//!
//! What must hold: a stream ends when its session does and when the daemon stops; a browser that reads slowly
//! waits for itself only; there are only so many streams.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use hyper::body::Frame;
use maud::Markup;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::connections::Which;
use super::follow::Followed;
use super::routes::Asked;
use super::{Page, clouds, connections, events, worker, workers};
use crate::appliance::login::Caller;
use crate::web::extract::{Path, Query};

/// Streams at once. Each open tab that is looked at has one.
pub(super) const MOST: usize = 128;
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
        Some(workers::live_list(&page.workers(&asked.q, asked.page)))
    })
}

async fn one_worker(State(page): Shared, caller: Caller, Path(id): Path<i64>) -> Response {
    let csrf = caller.session().map(|session| session.csrf().to_owned()).unwrap_or_default();
    stream(page, caller, csrf, move |page, csrf| async move {
        page.worker(id).await.ok().map(|detail| worker::live_detail(&csrf, &detail))
    })
}

async fn all_clouds(State(page): Shared, caller: Caller, Query(asked): Query<Asked>) -> Response {
    stream(page, caller, asked, |page, asked| async move {
        Some(clouds::live_list(&page.clouds(&asked.q, asked.page)))
    })
}

async fn all_connections(State(page): Shared, caller: Caller, Query(asked): Query<Asked>) -> Response {
    stream(page, caller, asked, |page, asked| async move {
        Some(connections::live_list(&page.connections(&asked.q, Which::of(&asked.state))))
    })
}

async fn all_events(State(page): Shared, caller: Caller, Query(asked): Query<Asked>) -> Response {
    let kind = asked.kind.parse().ok();
    stream(page, caller, Followed::new(asked.q, kind), |page, followed| async move {
        followed.list(&page).await.ok().map(|found| events::live_list(&found))
    })
}

/// A stream of what `make` gives for `asked`; where that is `None`, the page has to be asked for anew.
fn stream<A, F, M>(page: Arc<Page>, caller: Caller, asked: A, make: F) -> Response
where
    A: Send + Sync + 'static,
    F: Fn(Arc<Page>, Arc<A>) -> M + Send + Sync + 'static,
    M: Future<Output = Option<Markup>> + Send,
{
    let Ok(place) = page.streams.clone().try_acquire_owned() else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    // One at a time: a browser that does not read holds up its own stream only.
    let (send, receive) = mpsc::channel(1);
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
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")];
    (headers, Body::new(Stream(receive))).into_response()
}

async fn feed<M>(page: &Page, caller: &Caller, make: impl Fn() -> M, send: &mpsc::Sender<Bytes>)
where
    M: Future<Output = Option<Markup>>,
{
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut last, mut said) = (String::new(), Instant::now());
    loop {
        ticks.tick().await;
        let content = match page.login.still_admits(caller) {
            true => make().await,
            false => None,
        };
        let (message, is_end) = match content.map(Markup::into_string) {
            None => (event("end", ""), true),
            Some(html) if html != last => {
                let message = event("page", &html);
                last = html;
                (message, false)
            }
            Some(_) if said.elapsed() >= STILL => (event("still", ""), false),
            Some(_) => continue,
        };
        said = Instant::now();
        if send.send(message.into()).await.is_err() || is_end {
            return;
        }
    }
}

/// An event as the stream has it.
fn event(name: &str, data: &str) -> String {
    let mut text = format!("event: {name}\n");
    for line in data.split(['\n', '\r']) {
        let _ = writeln!(text, "data: {line}");
    }
    text.push('\n');
    text
}

/// The body of a stream.
struct Stream(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_holds_all_lines_and_no_line_ends_it() {
        assert_eq!(event("page", "<p>\n\na\rb"), "event: page\ndata: <p>\ndata: \ndata: a\ndata: b\n\n");
        assert_eq!(event("end", ""), "event: end\ndata: \n\n");
    }
}
