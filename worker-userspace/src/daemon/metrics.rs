//! What Prometheus reads of a daemon: collected from what the roles count anyway, when somebody asks; and the listener
//! where anybody may.
//!
//! What must hold: however many ask there, and however often, it is collected once in [`FRESH`], and never on a thread that
//! carries connections; who reads slowly or not at all keeps nobody else out.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::routing::get;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tower::ServiceExt;

use super::listening::Listening;
use super::readiness::Believed;
use super::{Roles, StartError};
use crate::accept;
use crate::appliance::registry::Group;
use crate::config::Metrics;
use crate::drain::Drain;
use crate::inspect::ledger::{Entry, Tally};
use crate::inspect::metrics::{self, Exposition, MEDIA_TYPE, PATH};
use crate::inspect::status::{GroupStatus, LaneStatus, NodeRole, NodeStatus};
use crate::sockets::name;
use crate::steer::kernel::Counter;
use crate::steer::steering::Counted;
use crate::telemetry;
use crate::tunnel::lane::Totals;
use crate::tunnel::message::Role;
use crate::web::layers::around;
use crate::worker::Uplink;

mod process;
mod seats;

use seats::{Seat, Seats};

/// How long what was collected is what everybody gets.
const FRESH: Duration = Duration::from_secs(1);
/// Time for a request's head, and between two requests.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long a connection lasts, and how long it may take to end then.
const LIFE: [Duration; 2] = [Duration::from_secs(600), Duration::from_secs(10)];

/// What was collected, or why it was not.
pub(super) type Collected = Result<Bytes, StatusCode>;

/// Nothing yet.
pub(super) fn nothing() -> Believed<Collected> {
    Believed::lasting(FRESH)
}

/// The same metrics for the control socket: whoever reaches that may have them anew each time, one after the other.
pub(super) fn routes(roles: &Arc<Roles>) -> Router {
    let roles = roles.clone();
    let answer = async move || {
        let collected = roles.collected.anew(collect(&roles)).await;
        collected.map(|text| ([(CONTENT_TYPE, MEDIA_TYPE)], text))
    };
    Router::new().route(PATH, get(answer))
}

/// The kernel is asked, the descriptors are counted, and locks are waited for.
async fn collect(roles: &Arc<Roles>) -> Collected {
    let roles = roles.clone();
    let collected = spawn_blocking(move || Bytes::from(roles.metrics())).await;
    collected.map_err(|error| {
        tracing::error!("collecting the metrics: {error}");
        StatusCode::INTERNAL_SERVER_ERROR
    })
}

/// Opens the listeners. The default address gives way to whoever else listens there: to another daemon, most likely.
pub(super) fn listen(roles: &Roles, listening: Listening<'_>) -> Result<Vec<TcpListener>, StartError> {
    let config = &roles.config.metrics;
    let mut listeners = Vec::new();
    for address in &config.listen {
        match listening.on("metrics.listen", name::METRICS, *address) {
            Ok(listener) => listeners.push(listener),
            Err(error) if *address == Metrics::ADDRESS => {
                tracing::warn!("no metrics: {error}; set another `metrics.listen`, or `[]` for none");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(listeners)
}

/// Serves them.
pub(super) fn serve(roles: &Arc<Roles>, listeners: Vec<TcpListener>, drain: &Drain) {
    let roles = roles.clone();
    let answer = async move || {
        let collected = roles.collected.or(collect(&roles)).await;
        collected.map(|text| ([(CONTENT_TYPE, MEDIA_TYPE)], text))
    };
    let router = around(Router::new().route(PATH, get(answer)));
    let seats = Seats::default();
    for listener in listeners {
        if let Ok(address) = listener.local_addr() {
            tracing::info!(listen = %address, "metrics are at http://{address}{PATH}");
        }
        let (router, seats, served) = (router.clone(), seats.clone(), drain.clone());
        drain.spawn("metrics", async move {
            let take = |tcp, peer: SocketAddr| {
                let (router, drain, seat) = (router.clone(), served.clone(), seats.take());
                served.spawn("metrics connection", async move {
                    let serving = timeout(LIFE[0] + LIFE[1], connection(tcp, router, &drain, &seat));
                    tokio::select! {
                        served = serving => {
                            if let Ok(Err(error)) = served {
                                tracing::debug!(%peer, "a connection for metrics failed: {error}");
                            }
                        }
                        () = seat.wanted() => tracing::debug!(%peer, "closed who reads metrics: others want the place"),
                    }
                });
            };
            accept::each(&listener, &served, "who reads metrics", take).await;
        });
    }
}

async fn connection(tcp: TcpStream, router: Router, drain: &Drain, seat: &Seat) -> io::Result<()> {
    let service = service_fn(move |request: Request<Incoming>| {
        seat.touch();
        router.clone().oneshot(request.map(Body::new))
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(DEADLINE)
        .serve_connection(TokioIo::new(tcp), service);
    tokio::pin!(serving);
    tokio::select! {
        served = &mut serving => return served.map_err(io::Error::other),
        () = drain.stopping() => {}
        () = sleep(LIFE[0]) => {}
    }
    serving.as_mut().graceful_shutdown();
    timeout(LIFE[1], serving).await.map_err(io::Error::from)?.map_err(io::Error::other)
}

/// Who is at the other end of lanes.
struct Peer {
    side: &'static str,
    /// The worker's name; a worker does not know its own.
    worker: String,
    up: bool,
    totals: Totals,
    /// By what the node does.
    sessions: Vec<(&'static str, Vec<LaneStatus>)>,
    /// The same for nodes; only an appliance knows them.
    nodes: Option<BTreeMap<&'static str, u64>>,
}

/// What a node does that is connected.
const ROLES: [NodeRole; 3] = [NodeRole::Primary, NodeRole::Standby, NodeRole::Leaving];
/// What a worker does that was told nothing of it.
const UNKNOWN: &str = "unknown";

impl Peer {
    fn of_group(group: &Group) -> Peer {
        let totals = group.totals();
        let status = group.status();
        let mut nodes: BTreeMap<_, _> = ROLES.map(|role| (role.word(), 0)).into();
        for node in GroupStatus::each_node(&status) {
            *nodes.entry(node.role.word()).or_default() += 1;
        }
        let sessions = status.nodes.into_iter().map(|NodeStatus { role, lanes, .. }| (role.word(), lanes));
        Peer {
            side: "appliance",
            worker: status.name,
            up: status.up,
            totals,
            sessions: sessions.collect(),
            nodes: Some(nodes),
        }
    }

    fn of_uplink(uplink: &Uplink) -> Peer {
        let session = uplink.session();
        let lanes: Vec<_> = session.lanes().iter().map(|lane| LaneStatus::of(lane)).collect();
        let role = uplink.told().role.map_or(UNKNOWN, |told| told.role.word());
        Peer {
            side: "worker",
            worker: String::new(),
            up: session.is_up(),
            totals: session.totals(),
            sessions: if lanes.is_empty() { Vec::new() } else { vec![(role, lanes)] },
            nodes: None,
        }
    }

    /// What sessions can do at this end.
    fn roles(&self) -> Vec<&'static str> {
        match self.nodes {
            Some(_) => ROLES.map(NodeRole::word).to_vec(),
            None => vec![Role::Primary.word(), Role::Standby.word(), UNKNOWN],
        }
    }

    fn lanes(&self) -> impl Iterator<Item = &LaneStatus> {
        self.sessions.iter().flat_map(|(_, lanes)| lanes)
    }
}

impl Roles {
    /// All that is counted, as Prometheus reads it.
    pub(super) fn metrics(&self) -> String {
        let mut out = Exposition::default();
        out.put(&metrics::BUILD_INFO, [([env!("CARGO_PKG_VERSION")], 1)]);
        self.connections(&mut out);
        self.tunnels(&mut out);
        if let Some(registry) = &self.registry {
            out.put_one(&metrics::KEYS_REFUSED, registry.refused_keys());
        }
        let mut ends: BTreeMap<&str, i64> = BTreeMap::new();
        for (source, noted) in self.expiry.report() {
            let end = noted.facts.not_after.as_second();
            ends.entry(source.word()).and_modify(|first| *first = end.min(*first)).or_insert(end);
        }
        out.put(&metrics::CERTIFICATE_EXPIRY, ends.into_iter().map(|(source, end)| ([source], end)));
        if let Some(steering) = &self.steering {
            out.put_one(&metrics::STEERING_ENABLED, u8::from(!steering.is_off()));
            out.put_one(&metrics::STEERING_CGROUPS_MISSING, steering.missing_cgroups().len());
            steered(&mut out, &steering.counted());
        }
        out.put_one(&metrics::LOG_LEFT_OUT, telemetry::left_out());
        process::put(&mut out);
        out.text()
    }

    fn connections(&self, out: &mut Exposition) {
        let census = self.ledger.census();
        let has = |entry: &Entry| match entry {
            Entry::Captured => self.steering.is_some(),
            Entry::Connect => self.proxy.as_ref().is_some_and(|proxy| !proxy.http.is_empty()),
            Entry::Socks => self.proxy.as_ref().is_some_and(|proxy| !proxy.socks.is_empty()),
            Entry::Relayed => self.appliance.is_some(),
            Entry::Egress => self.uplink.is_some(),
        };
        let all: Vec<(&str, &Tally)> = Entry::ALL
            .iter()
            .filter(|entry| has(entry))
            .map(|entry| (entry.word(), census.of(*entry)))
            .collect();
        let each = |count: fn(&Tally) -> u64| all.iter().map(move |(entry, tally)| ([*entry], count(tally)));
        out.put(&metrics::CONNECTIONS_OPEN, each(|tally| tally.open));
        out.put(&metrics::CONNECTIONS_TOTAL, each(|tally| tally.total));
        let opens = |(entry, tally): &(&'static str, &Tally)| {
            let entry = *entry;
            tally.opens.each("opened").map(move |(result, n)| ([entry, result], n)).collect::<Vec<_>>()
        };
        out.put(&metrics::CONNECTION_OPENS, all.iter().flat_map(opens));
        let ends = |(entry, tally): &(&'static str, &Tally)| {
            let entry = *entry;
            tally.ends.each("closed").map(move |(result, n)| ([entry, result], n)).collect::<Vec<_>>()
        };
        out.put(&metrics::CONNECTION_ENDS, all.iter().flat_map(ends));
        let bytes = |(entry, tally): &(&'static str, &Tally)| {
            [([*entry, "up"], tally.bytes[0]), ([*entry, "down"], tally.bytes[1])]
        };
        out.put(&metrics::CONNECTION_BYTES, all.iter().flat_map(bytes));
        out.put(&metrics::CONNECTION_RETRIES, each(|tally| tally.retries));
        out.put_dials(&metrics::DIAL_SECONDS, &census.dials);
    }

    fn tunnels(&self, out: &mut Exposition) {
        let groups = self.registry.iter().flat_map(|registry| registry.groups());
        let mut peers: Vec<Peer> = groups.map(|group| Peer::of_group(&group)).collect();
        peers.extend(self.uplink.as_ref().map(|uplink| Peer::of_uplink(uplink)));
        let each = |count: fn(&Peer) -> u64| {
            peers.iter().map(move |peer| ([peer.side, peer.worker.as_str()], count(peer)))
        };
        out.put_named(&metrics::TUNNEL_UP, each(|peer| u64::from(peer.up)));
        let nodes = peers.iter().filter_map(|peer| Some((peer.worker.as_str(), peer.nodes.as_ref()?)));
        let nodes =
            nodes.flat_map(|(worker, nodes)| nodes.iter().map(move |(role, n)| ([worker, *role], *n)));
        out.put_named(&metrics::TUNNEL_NODES, nodes);
        let roles = || peers.iter().flat_map(|peer| peer.roles().into_iter().map(move |role| (peer, role)));
        let sessions = roles().map(|(peer, role)| {
            let count = peer.sessions.iter().filter(|(does, _)| *does == role).count();
            ([peer.side, peer.worker.as_str(), role], count)
        });
        out.put_named(&metrics::TUNNEL_SESSIONS, sessions);
        out.put_named(&metrics::TUNNEL_LANES, each(|peer| peer.lanes().count() as u64));
        out.put_named(
            &metrics::TUNNEL_STREAMS_OPEN,
            each(|peer| peer.lanes().map(|lane| lane.streams as u64).sum()),
        );
        out.put_named(&metrics::TUNNEL_STREAMS, each(|peer| peer.totals.streams));
        let bytes = peers.iter().flat_map(|Peer { side, worker, totals, .. }| {
            [([*side, worker, "sent"], totals.sent), ([*side, worker, "received"], totals.received)]
        });
        out.put_named(&metrics::TUNNEL_BYTES, bytes);
        out.put_named(&metrics::TUNNEL_STALLS, each(|peer| peer.totals.stalls));
        let rtts = roles().filter_map(|(peer, role)| {
            let lanes = peer.sessions.iter().filter(|(does, _)| *does == role).flat_map(|(_, lanes)| lanes);
            let slowest = lanes.filter_map(|lane| lane.rtt_us).max()?;
            Some(([peer.side, peer.worker.as_str(), role], slowest as f64 / 1e6))
        });
        out.put_named(&metrics::TUNNEL_RTT, rtts);
    }
}

fn steered(out: &mut Exposition, counted: &Counted) {
    out.put_one(&metrics::STEERING_RULES, counted.rules);
    out.put_one(&metrics::STEERING_NAMES, counted.names);
    let links = |alive| {
        let links = counted.programs.iter().flat_map(|program| &program.links);
        links.filter(|link| link.alive == alive).count()
    };
    out.put(&metrics::STEERING_LINKS, [(["alive"], links(true)), (["dead"], links(false))]);
    // Each connection has one verdict; these two count something else.
    let other = [Counter::Mptcp, Counter::EventsLost];
    let verdicts = counted.counters.iter().filter(|(counter, _)| !other.contains(counter));
    out.put(&metrics::STEERING_VERDICTS, verdicts.map(|(counter, n)| ([counter.word()], *n)));
    for (metric, wanted) in [&metrics::STEERING_MPTCP, &metrics::STEERING_EVENTS_LOST].into_iter().zip(other)
    {
        if let Some((_, n)) = counted.counters.iter().find(|(counter, _)| *counter == wanted) {
            out.put_one(metric, n);
        }
    }
    let programs = || counted.programs.iter();
    out.put(&metrics::PROGRAM_RUNS, programs().map(|program| ([program.name], program.run_count)));
    let seconds = programs().map(|program| ([program.name], program.run_time.as_secs_f64()));
    out.put(&metrics::PROGRAM_SECONDS, seconds);
    let dns = counted.dns;
    out.put_one(&metrics::DNS_QUERIES, dns.queries);
    let outcomes = [
        (["answered"], dns.answered),
        (["forwarded"], dns.forwarded),
        (["stripped"], dns.stripped),
        (["failed"], dns.failed),
        (["dropped"], dns.dropped),
    ];
    out.put(&metrics::DNS_OUTCOMES, outcomes);
}
