//! What the pages show, gathered from where it is kept: records, live nodes, connections, events.

use std::collections::HashMap;
use std::time::{Duration, UNIX_EPOCH};

use jiff::Timestamp;

use super::connections::Which;
use super::plot::Throughput;
use super::worker::{Detail, Node};
use super::workers::{Roles, State, Sums};
use super::{Page, clouds, connections, events, worker_form, workers};
use crate::appliance::admin::{AdminError, CloudFilter, Listed, Page as Part, Ref, WorkerFilter};
use crate::appliance::audit::{Event, EventKind, EventQuery};
use crate::appliance::records::{self, Cloud, Origin};
use crate::inspect::ledger::{Filter, FlowReport};
use crate::inspect::status::{GroupStatus, NodeRole, NodeStatus, Rate};
use crate::tunnel::message::{Id, id_text};

/// Rows of a full page of workers or clouds.
const ROWS: usize = 50;
/// Rows of a full page of connections.
const CONNECTIONS: usize = 200;
/// Rows of a full page of events.
const EVENTS: usize = 100;
/// Events on a worker's page.
const RECENT: u32 = 8;

/// The page that is asked for, or the last one: a list may have become shorter.
fn last_at_most<T>(page: usize, ask: impl Fn(Part) -> Listed<T>) -> (usize, Listed<T>) {
    let part = |page: usize| Part { offset: page.saturating_mul(ROWS), limit: ROWS };
    let found = ask(part(page));
    if page == 0 || !found.items.is_empty() {
        return (page, found);
    }
    let last = found.total.saturating_sub(1) / ROWS;
    (last, ask(part(last)))
}

/// What is searched for; nothing, where the field is empty.
fn text(query: &str) -> Option<String> {
    Some(query.trim()).filter(|text| !text.is_empty()).map(str::to_owned)
}

fn throughput(history: &[Rate]) -> Throughput {
    Throughput {
        up: history.iter().map(|rate| rate.sent as f64).collect(),
        down: history.iter().map(|rate| rate.received as f64).collect(),
    }
}

fn round_trip(node: &NodeStatus) -> Option<Duration> {
    node.sums().rtt_us.map(Duration::from_micros)
}

/// The proxy host that a cloud adds to its worker.
fn proxy_host(cloud: &Cloud) -> String {
    cloud.api_url.target().to_string()
}

impl Page {
    /// How a worker is; `seen`: a node of it has connected before.
    fn state(&self, worker: &records::Worker, seen: bool) -> State {
        let up = || self.registry.group(worker.id).is_some_and(|group| group.is_up());
        match worker.enabled {
            false => State::Disabled,
            true if up() => State::Up,
            true if seen => State::Down,
            true => State::Waiting,
        }
    }

    fn sums(&self) -> Sums {
        let workers = self.admin.workers(&WorkerFilter::default(), Part { offset: 0, limit: 0 }).total;
        let mut sums = Sums { workers, ..Sums::default() };
        for group in self.registry.groups() {
            let rate = group.rate();
            sums.up += usize::from(group.is_up());
            sums.nodes += group.sessions().len();
            sums.streams += group.streams();
            sums.rate.0 += rate.sent as f64;
            sums.rate.1 += rate.received as f64;
        }
        sums
    }

    /// A page of workers.
    pub(super) fn workers(&self, query: &str, page: usize) -> workers::List {
        let filter = WorkerFilter { text: text(query), ..WorkerFilter::default() };
        let (page, found) = last_at_most(page, |part| self.admin.workers(&filter, part));
        let rows = found.items.iter().map(|worker| self.worker_row(worker)).collect();
        workers::List {
            sums: self.sums(),
            query: query.to_owned(),
            found: found.total,
            page,
            size: ROWS,
            rows,
        }
    }

    fn worker_row(&self, worker: &records::Worker) -> workers::Row {
        let known = self.admin.nodes(worker.id);
        let group = self.registry.group(worker.id);
        let live = group.as_ref().map(|group| group.status());
        let mut roles = Roles::default();
        let connected = live.iter().flat_map(GroupStatus::each_node).map(|node| node.role);
        let offline = known.iter().filter(|node| !is_connected(node, live.as_ref()));
        for role in connected.chain(offline.map(|_| NodeRole::Offline)) {
            match role {
                NodeRole::Primary => roles.primary += 1,
                NodeRole::Standby => roles.standby += 1,
                NodeRole::Leaving => roles.leaving += 1,
                NodeRole::Offline => roles.offline += 1,
            }
        }
        let own = || worker.proxy_hosts.iter().map(ToString::to_string).collect();
        workers::Row {
            id: worker.id,
            name: worker.name.clone(),
            description: worker.description.clone(),
            state: self.state(worker, !known.is_empty()),
            roles,
            proxy_hosts: live.as_ref().map_or_else(own, |live| live.proxy_hosts.clone()),
            streams: live.as_ref().map_or(0, GroupStatus::streams),
            throughput: group.map(|group| throughput(&group.history())).unwrap_or_default(),
            round_trip: live.as_ref().and_then(GroupStatus::primary).and_then(round_trip),
        }
    }

    /// A worker's record.
    pub(super) fn record(&self, id: i64) -> Result<std::sync::Arc<records::Worker>, AdminError> {
        self.admin.worker(&Ref::Id(id))
    }

    /// Whether a node has a session now.
    pub(super) fn is_connected(&self, worker: i64, node: &Id) -> bool {
        self.registry.group(worker).is_some_and(|group| group.connected().contains(node))
    }

    /// The number of a worker's open streams, for a question about it.
    pub(super) fn worker_streams(&self, id: i64) -> usize {
        self.registry.group(id).map_or(0, |group| group.streams())
    }

    /// A worker's clouds.
    pub(super) fn clouds_of(&self, worker: i64) -> Vec<(i64, String, String)> {
        let filter = CloudFilter { worker: Some(worker), ..CloudFilter::default() };
        let clouds = self.admin.clouds(&filter, Part::ALL);
        clouds.items.iter().map(|cloud| (cloud.id, cloud.name.clone(), proxy_host(cloud))).collect()
    }

    /// One worker.
    pub(super) async fn worker(&self, id: i64) -> Result<Detail, AdminError> {
        let worker = self.record(id)?;
        let events = self.admin.events(&recent(&worker)).await?;
        Ok(self.detail(&worker, events))
    }

    /// One worker, with what happened to it.
    pub(super) fn detail(&self, worker: &records::Worker, events: Vec<Event>) -> Detail {
        let id = worker.id;
        let known = self.admin.nodes(id);
        let group = self.registry.group(id);
        let live = group.as_ref().map(|group| group.status());
        let now = Timestamp::now();
        Detail {
            id,
            name: worker.name.clone(),
            description: worker.description.clone(),
            state: self.state(worker, !known.is_empty()),
            enabled: worker.enabled,
            from_file: worker.origin == Origin::File,
            may_open: worker.may_open,
            proxy_hosts: worker.proxy_hosts.iter().map(ToString::to_string).collect(),
            clouds: self.clouds_of(id),
            nodes: nodes(&known, live.as_ref(), now),
            throughput: group.map(|group| throughput(&group.history())).unwrap_or_default(),
            created: worker.created,
            rotated: worker.rotated,
            grace: worker.key_in_grace(now).map(|(_, until)| until),
            changed: (worker.changed, worker.changed_by.clone()),
            events,
            now,
        }
    }

    /// The form of a worker as it is.
    pub(super) fn worker_form(&self, id: i64) -> Result<worker_form::Form, AdminError> {
        let worker = self.record(id)?;
        let hosts: Vec<String> = worker.proxy_hosts.iter().map(ToString::to_string).collect();
        Ok(worker_form::Form {
            existing: Some((id, worker.name.clone())),
            from_file: worker.origin == Origin::File,
            name: worker.name.clone(),
            description: worker.description.clone(),
            proxy_hosts: hosts.join(", "),
            enabled: worker.enabled,
            may_open: worker.may_open,
            revision: worker.revision,
        })
    }

    /// A page of clouds.
    pub(super) fn clouds(&self, query: &str, page: usize) -> clouds::List {
        let filter = CloudFilter { text: text(query), ..CloudFilter::default() };
        let (page, found) = last_at_most(page, |part| self.admin.clouds(&filter, part));
        let all = self.admin.clouds(&CloudFilter::default(), Part { offset: 0, limit: 0 }).total;
        let row = |cloud: &std::sync::Arc<Cloud>| clouds::Row {
            id: cloud.id,
            name: cloud.name.clone(),
            kind: cloud.kind,
            api_url: cloud.api_url.to_string(),
            proxy_host: proxy_host(cloud),
            worker: cloud.worker.and_then(|id| self.carrier(id)),
        };
        let rows = found.items.iter().map(row).collect();
        clouds::List { query: query.to_owned(), all, found: found.total, page, size: ROWS, rows }
    }

    fn carrier(&self, worker: i64) -> Option<clouds::Carrier> {
        let worker = self.record(worker).ok()?;
        let state = self.state(&worker, !self.admin.nodes(worker.id).is_empty());
        Some(clouds::Carrier { id: worker.id, name: worker.name.clone(), state })
    }

    /// The form of a cloud as it is.
    pub(super) fn cloud_form(&self, id: i64) -> Result<clouds::Form, AdminError> {
        let cloud = self.admin.cloud(&Ref::Id(id))?;
        Ok(clouds::Form {
            existing: Some((id, cloud.name.clone())),
            name: cloud.name.clone(),
            kind: cloud.kind.word().to_owned(),
            api_url: cloud.api_url.to_string(),
            worker: cloud.worker.map(|id| id.to_string()).unwrap_or_default(),
            revision: cloud.revision,
        })
    }

    /// The workers that a cloud may have: number and name.
    pub(super) fn choices(&self) -> Vec<(i64, String)> {
        let all = self.admin.workers(&WorkerFilter::default(), Part::ALL);
        all.items.iter().map(|worker| (worker.id, worker.name.clone())).collect()
    }

    /// A page of the connections: the newest, or those that came before the one with the number `before`.
    pub(super) fn connections(&self, query: &str, which: Which, before: Option<u64>) -> connections::List {
        let filter =
            Filter { phase: which.phase(), text: text(query), limit: Some(CONNECTIONS), ..Filter::default() };
        let ask = |after| (after, self.ledger.find(&Filter { after, ..filter.clone() }));
        let (before, found) = match ask(before) {
            // All that stood there has ended and is forgotten.
            (Some(_), found) if found.items.is_empty() => ask(None),
            asked => asked,
        };
        let known = self.choices().into_iter().map(|(id, name)| (name, id)).collect::<HashMap<_, _>>();
        let [up, down] = self.ledger.rates();
        connections::List {
            query: query.to_owned(),
            which,
            open: self.ledger.open_count(),
            total: self.ledger.total(),
            rate: (up as f64, down as f64),
            before,
            newer: found.newer,
            found: found.total,
            rows: found.items.iter().map(|flow| connection(flow, &known)).collect(),
        }
    }

    /// An open connection.
    pub(super) fn connection(&self, id: u64) -> Option<connections::Row> {
        let row = connection(&self.ledger.get(id)?, &HashMap::new());
        Some(row).filter(connections::Row::is_open)
    }

    /// A page of events.
    pub(super) async fn events(
        &self,
        query: &str,
        kind: Option<EventKind>,
        before: Option<i64>,
    ) -> Result<events::List, AdminError> {
        let rows = self.admin.events(&events_asked(query, kind, before)).await?;
        Ok(event_list(query, kind, before, rows))
    }
}

/// The question for a page of events.
pub(super) fn events_asked(query: &str, kind: Option<EventKind>, before: Option<i64>) -> EventQuery {
    EventQuery {
        kinds: kind.into_iter().collect(),
        text: text(query),
        before,
        // One more tells that there are older ones.
        limit: EVENTS as u32 + 1,
        ..EventQuery::default()
    }
}

/// A page of events, from the answer to that question.
pub(super) fn event_list(
    query: &str,
    kind: Option<EventKind>,
    before: Option<i64>,
    mut rows: Vec<Event>,
) -> events::List {
    let more = rows.len() > EVENTS;
    rows.truncate(EVENTS);
    events::List { kind, query: query.to_owned(), before, rows, more }
}

/// The question for what happened to a worker of late.
pub(super) fn recent(worker: &records::Worker) -> EventQuery {
    EventQuery { subject: Some(worker.name.clone()), limit: RECENT, ..EventQuery::default() }
}

fn is_connected(node: &records::Node, live: Option<&GroupStatus>) -> bool {
    let id = id_text(&node.id);
    live.is_some_and(|live| live.nodes.iter().any(|live| live.id == id))
}

/// The nodes that are connected, then those that were.
fn nodes(known: &[std::sync::Arc<records::Node>], live: Option<&GroupStatus>, now: Timestamp) -> Vec<Node> {
    let record = |id: &str| known.iter().find(|node| id_text(&node.id) == id);
    let connected = live.into_iter().flat_map(GroupStatus::each_node).map(|node| {
        let record = record(&node.id);
        let since = UNIX_EPOCH + Duration::from_secs(node.since);
        let since = Timestamp::try_from(since).unwrap_or(now);
        Node {
            id: node.id.clone(),
            host_name: node.name.clone(),
            role: node.role,
            round_trip: round_trip(node),
            lanes: node.lanes.len(),
            streams: node.sums().streams,
            version: node.software.clone(),
            address: node.address.ip().to_canonical().to_string(),
            first_seen: record.map_or(since, |record| record.first_seen),
            last_seen: now,
            priority: record.and_then(|record| record.priority),
        }
    });
    let offline = known.iter().filter(|node| !is_connected(node, live)).map(|node| Node {
        id: id_text(&node.id),
        host_name: node.host_name.clone(),
        role: NodeRole::Offline,
        round_trip: None,
        lanes: 0,
        streams: 0,
        version: node.software.clone(),
        address: node.address.to_string(),
        first_seen: node.first_seen,
        last_seen: node.last_seen,
        priority: node.priority,
    });
    connected.chain(offline).collect()
}

/// A connection's row; `known` has the workers' numbers by their names.
fn connection(flow: &FlowReport, known: &HashMap<String, i64>) -> connections::Row {
    let source = || flow.source.map(|source| source.to_string());
    let who = match (&flow.process, &flow.user, &flow.from) {
        (Some(process), _, _) => Some(format!("{} {}", process.comm, process.pid)),
        (None, Some(user), _) => Some(user.clone()),
        (None, None, Some(from)) => Some(format!("worker {from}")),
        (None, None, None) => source(),
    };
    let (worker, node) =
        match flow.carrier.as_deref().map(|carrier| carrier.split_once('/').unwrap_or((carrier, ""))) {
            Some((worker, node)) => (
                Some((worker.to_owned(), known.get(worker).copied())),
                Some(node).filter(|node| !node.is_empty()).map(str::to_owned),
            ),
            None => (None, None),
        };
    let open = flow.is_open();
    connections::Row {
        id: flow.id,
        trace: flow.trace.clone(),
        entry: flow.entry.title(),
        target: flow.target.clone(),
        process: who,
        worker,
        node,
        state: flow.state.clone(),
        reason: flow.reason.clone(),
        bytes: (flow.bytes_up, flow.bytes_down),
        rate: open.then_some((flow.rate_up as f64, flow.rate_down as f64)),
        age: Duration::from_millis(flow.age_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(id: u8, role: NodeRole) -> NodeStatus {
        NodeStatus {
            id: id_text(&[id; 16]),
            name: format!("node{id}"),
            role,
            software: "1".into(),
            address: ([192, 0, 2, id], 1).into(),
            since: 0,
            lanes: vec![],
        }
    }

    /// Its old session ends what it carries while the new one has taken over.
    #[test]
    fn a_node_that_came_again_has_one_row() {
        use NodeRole::{Leaving, Primary, Standby};
        let sessions = [session(1, Primary), session(2, Standby), session(1, Leaving)];
        let status = GroupStatus {
            id: 1,
            name: "site".into(),
            proxy_hosts: vec![],
            up: true,
            may_open: false,
            rate: Rate::default(),
            nodes: sessions.to_vec(),
        };
        let rows = nodes(&[], Some(&status), Timestamp::now());
        let shown: Vec<_> = rows.iter().map(|row| (row.host_name.as_str(), row.role)).collect();
        assert_eq!(shown, [("node1", Primary), ("node2", Standby)]);
    }
}
