//! What is live, as it changes: server-sent events.
//!
//! What must hold: there are only so many streams, and each ends when its reader does not keep up or may not
//! look any more; what all readers see is worked out once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, MissedTickBehavior, interval};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::workers::Live;
use crate::appliance::login::Caller;
use crate::appliance::registry::Registry;
use crate::inspect::ledger::{Filter, FlowReport, Ledger, Phase};
use crate::inspect::status::{GroupStatus, LaneSums, NodeRole, NodeStatus};
use crate::web::extract::Query;
use crate::web::sse::{self, Gone, Sender};
use crate::web::{Kind, Problem};

/// Messages that wait for a reader.
const QUEUE: usize = 16;
/// Streams at once.
const MOST: usize = 32;
/// How often it is looked for changes.
const PERIOD: Duration = Duration::from_secs(1);
/// Periods without a change until the stream says that it is alive.
const QUIET: u32 = 15;
/// Open connections that a message lists.
const LISTED: usize = 100;

/// What is live of one worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct WorkerLive {
    /// Its number.
    id: i64,
    /// Its name.
    name: String,
    /// All nodes together.
    live: Live,
    /// Its connected nodes, the primary first.
    nodes: Vec<NodeLive>,
}

/// What is live of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
struct NodeLive {
    id: String,
    host_name: String,
    role: NodeRole,
    rtt_us: Option<u64>,
    streams: usize,
    bytes_sent: u64,
    bytes_received: u64,
}

impl WorkerLive {
    fn of(group: &GroupStatus) -> WorkerLive {
        let node = |node: &NodeStatus| {
            let LaneSums { rtt_us, streams, bytes_sent, bytes_received } = node.sums();
            let (id, host_name) = (node.id.clone(), node.name.clone());
            NodeLive { id, host_name, role: node.role, rtt_us, streams, bytes_sent, bytes_received }
        };
        WorkerLive {
            id: group.id,
            name: group.name.clone(),
            live: Live::of(Some(group)),
            nodes: group.nodes.iter().map(node).collect(),
        }
    }
}

/// The message `workers`: at first all enabled workers, then those that changed.
#[derive(Debug, Serialize, ToSchema)]
struct Workers<'a> {
    changed: Vec<&'a WorkerLive>,
    /// The numbers of those that are disabled or removed now.
    gone: Vec<i64>,
}

/// The message `connections`.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
struct Connections {
    /// Open now.
    open: usize,
    /// Ever seen.
    total: u64,
    /// The newest of the open ones.
    items: Vec<FlowReport>,
}

/// What all streams share.
#[derive(Debug)]
pub(super) struct Streams {
    places: Arc<Semaphore>,
    seen: Mutex<Seen>,
}

/// What was seen last, and when.
#[derive(Debug, Clone, Default)]
struct Seen {
    at: Option<Instant>,
    workers: Arc<HashMap<i64, WorkerLive>>,
    connections: Arc<Connections>,
}

impl Default for Streams {
    fn default() -> Streams {
        Streams { places: Arc::new(Semaphore::new(MOST)), seen: Mutex::default() }
    }
}

impl Streams {
    fn see(&self, registry: &Registry, ledger: &Ledger) -> Seen {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.at.is_none_or(|at| at.elapsed() >= PERIOD / 2) {
            let workers = registry.groups().into_iter().map(|group| WorkerLive::of(&group.status()));
            let open = Filter { phase: Some(Phase::Open), limit: Some(LISTED), ..Filter::default() };
            *seen = Seen {
                at: Some(Instant::now()),
                workers: Arc::new(workers.map(|worker| (worker.id, worker)).collect()),
                connections: Arc::new(Connections {
                    open: ledger.open_count(),
                    total: ledger.total(),
                    items: ledger.list(&open),
                }),
            };
        }
        seen.clone()
    }
}

/// What a stream is about.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// `workers`, `connections`, `events`, separated by commas; all where absent.
    topics: Option<String>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Topics {
    workers: bool,
    connections: bool,
    events: bool,
}

impl Topics {
    fn of(text: Option<&str>) -> Result<Topics, Problem> {
        let Some(text) = text else { return Ok(Topics { workers: true, connections: true, events: true }) };
        let mut topics = Topics::default();
        for word in text.split(',').map(str::trim) {
            match word {
                "workers" => topics.workers = true,
                "connections" => topics.connections = true,
                "events" => topics.events = true,
                _ => {
                    let detail = "write some of workers, connections and events, separated by commas";
                    let problem = Problem::new(Kind::Malformed, format!("the parameter topics: {detail}"));
                    return Err(problem.with("topics", detail));
                }
            }
        }
        Ok(topics)
    }
}

/// What is live, as it changes
///
/// Server-sent events, whose data is JSON. `workers`: `{"changed": [...], "gone": [...]}`, at first with all enabled
/// workers; `connections`: `{"open": 1, "total": 7, "items": [...]}` with the newest of the open ones, each second
/// while there are any; `event`: an event as it is kept; `lost`: how many events were skipped, since they came
/// too fast. The stream ends when the session does.
#[utoipa::path(
    get, path = "/api/v1/stream", tag = "stream", params(Asked),
    responses((status = 200, description = "Server-sent events", content_type = "text/event-stream", body = String))
)]
pub(super) async fn show(
    State(api): State<Api>,
    caller: Caller,
    Query(asked): Query<Asked>,
) -> Result<Response, Problem> {
    let topics = Topics::of(asked.topics.as_deref())?;
    let Ok(place) = api.streams.places.clone().try_acquire_owned() else {
        let detail = format!("{MOST} streams are open already: close a page that shows live data");
        return Err(Problem::new(Kind::Unavailable, detail).retry_after(Duration::from_secs(10)));
    };
    let (sender, response) = sse::channel(QUEUE);
    let drain = api.drain.clone();
    let feeding = api.clone();
    drain.spawn("stream", async move {
        let stopping = feeding.drain.clone();
        tokio::select! {
            _ = feed(&feeding, &caller, topics, &sender, place) => {}
            () = sender.closed() => {}
            () = stopping.stopping() => {}
        }
    });
    Ok(response)
}

/// Writes messages until the reader is gone or may not look any more.
async fn feed(
    api: &Api,
    caller: &Caller,
    topics: Topics,
    sender: &Sender,
    _place: OwnedSemaphorePermit,
) -> Result<(), Gone> {
    let mut events = api.admin.subscribe();
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known: Option<Arc<HashMap<i64, WorkerLive>>> = None;
    let mut counted = None;
    let mut quiet = 0;
    loop {
        tokio::select! {
            event = events.recv(), if topics.events => match event {
                Ok(event) => sender.send("event", &*event).await?,
                Err(RecvError::Lagged(n)) => sender.send("lost", &n).await?,
                Err(RecvError::Closed) => return Ok(()),
            },
            _ = ticks.tick() => {
                if !api.login.still_admits(caller) {
                    return Ok(());
                }
                let seen = api.streams.see(&api.registry, &api.ledger);
                quiet += 1;
                if topics.workers && known.as_ref() != Some(&seen.workers) {
                    let message = changes(known.as_deref(), &seen.workers);
                    sender.send("workers", &message).await?;
                    known = Some(seen.workers);
                    quiet = 0;
                }
                let count = (seen.connections.open, seen.connections.total);
                if topics.connections && (counted != Some(count) || count.0 > 0) {
                    sender.send("connections", &*seen.connections).await?;
                    counted = Some(count);
                    quiet = 0;
                }
                if quiet >= QUIET {
                    sender.keep_alive().await?;
                    quiet = 0;
                }
            }
        }
    }
}

fn changes<'a>(known: Option<&HashMap<i64, WorkerLive>>, now: &'a HashMap<i64, WorkerLive>) -> Workers<'a> {
    let is_new = |worker: &&WorkerLive| known.and_then(|known| known.get(&worker.id)) != Some(*worker);
    let mut changed: Vec<&WorkerLive> = now.values().filter(is_new).collect();
    changed.sort_by(|a, b| a.name.cmp(&b.name));
    let mut gone: Vec<i64> = known
        .into_iter()
        .flat_map(|known| known.keys())
        .filter(|id| !now.contains_key(id))
        .copied()
        .collect();
    gone.sort_unstable();
    Workers { changed, gone }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(id: i64, streams: usize) -> (i64, WorkerLive) {
        let live = Live { streams, ..Live::of(None) };
        (id, WorkerLive { id, name: format!("w{id}"), live, nodes: vec![] })
    }

    #[test]
    fn only_what_changed_is_told() {
        let before = HashMap::from([worker(1, 0), worker(2, 0), worker(3, 0)]);
        let now = HashMap::from([worker(1, 0), worker(2, 1), worker(4, 0)]);
        let told = changes(Some(&before), &now);
        assert_eq!(told.changed.iter().map(|worker| worker.id).collect::<Vec<_>>(), [2, 4]);
        assert_eq!(told.gone, [3]);
        assert_eq!(changes(None, &now).changed.len(), 3);
    }

    #[test]
    fn topics_are_words() {
        let topics = Topics::of(Some("events, workers")).unwrap();
        assert!(topics.events && topics.workers && !topics.connections);
        assert!(Topics::of(None).unwrap().connections);
        assert_eq!(Topics::of(Some("")).unwrap_err().status, 400);
    }
}
