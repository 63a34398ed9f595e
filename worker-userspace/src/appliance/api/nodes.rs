//! Nodes: the worker processes that have ever connected with a worker's key.

use std::collections::HashMap;
use std::net::IpAddr;

use axum::extract::State;
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use crate::appliance::admin::{Page as Part, WorkerFilter};
use crate::appliance::login::Caller;
use crate::appliance::records;
use crate::inspect::status::{GroupStatus, NodeRole, NodeStatus};
use crate::tunnel::message::{Id, id_text, parse_id};
use crate::web::Problem;
use crate::web::extract::{Json, Path, Query};
use crate::web::paging::{Limit, Page, Place, cursor};

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Its own id, the same over restarts: 32 hexadecimal digits.
    pub id: String,
    /// The name of its worker.
    pub worker: String,
    /// Its host's name.
    pub host_name: String,
    /// Version of its software.
    pub software: String,
    /// Where it connected from, the last time.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// The lowest is primary; those without one come behind all numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// When it connected for the first time: decides among equal priorities.
    #[schema(value_type = String, format = DateTime)]
    pub first_seen: Timestamp,
    /// When it was last known to be connected.
    #[schema(value_type = String, format = DateTime)]
    pub last_seen: Timestamp,
    /// What it does now.
    pub role: NodeRole,
    /// Since when its session lasts, where it is connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub connected_since: Option<Timestamp>,
    /// Lanes that are up or leaving.
    pub lanes: usize,
    /// Smoothed round trip in microseconds, the best of its lanes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// Streams open now.
    pub streams: usize,
    /// Payload bytes sent to it, in this session.
    pub bytes_sent: u64,
    /// Payload bytes received from it, in this session.
    pub bytes_received: u64,
}

impl Node {
    fn of(worker: &str, known: &records::Node, live: Option<&NodeStatus>) -> Node {
        let sums = live.map(NodeStatus::sums).unwrap_or_default();
        Node {
            id: id_text(&known.id),
            worker: worker.to_owned(),
            host_name: known.host_name.clone(),
            software: known.software.clone(),
            address: known.address,
            priority: known.priority,
            first_seen: known.first_seen,
            last_seen: if live.is_some() { records::now() } else { known.last_seen },
            role: live.map_or(NodeRole::Offline, |live| live.role),
            connected_since: live.and_then(|live| Timestamp::from_second(live.since.try_into().ok()?).ok()),
            lanes: live.map_or(0, |live| live.lanes.len()),
            rtt_us: sums.rtt_us,
            streams: sums.streams,
            bytes_sent: sums.bytes_sent,
            bytes_received: sums.bytes_received,
        }
    }
}

/// What to change about a node.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NodeEdit)]
pub(super) struct Edit {
    /// Its place: the lowest is primary; `null` puts it behind all numbers.
    #[serde(deserialize_with = "given")]
    #[schema(required = true)]
    priority: Option<i32>,
}

/// A value that must be there, if only as `null`.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i32>, D::Error> {
    Option::deserialize(deserializer)
}

/// Which nodes are asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// Only those that do this now.
    #[param(inline)]
    role: Option<NodeRole>,
    /// How many at most, 1 to 500.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500, default = 100)]
    limit: Limit,
    /// `next` of the page before.
    cursor: Option<String>,
}

impl Api {
    /// A worker's nodes, in the order in which they become primary.
    pub(super) fn nodes_of(&self, worker: &records::Worker) -> Vec<Node> {
        let live = self.registry.group(worker.id).map(|group| group.status());
        let connected = live.iter().flat_map(GroupStatus::each_node);
        let connected: HashMap<&str, &NodeStatus> = connected.map(|node| (&*node.id, node)).collect();
        let known = self.admin.nodes(worker.id);
        let node = |known: &std::sync::Arc<records::Node>| {
            Node::of(&worker.name, known, connected.get(&*id_text(&known.id)).copied())
        };
        known.iter().map(node).collect()
    }

    fn find_node(&self, worker: &str, node: &str) -> Result<(std::sync::Arc<records::Worker>, Id), Problem> {
        let worker = self.find_worker(worker)?;
        let id = parse_id(node)
            .ok_or_else(|| Problem::not_found("a node is named by its id, 32 hexadecimal digits"))?;
        Ok((worker, id))
    }

    fn node_view(&self, worker: &records::Worker, id: &Id) -> Result<Node, Problem> {
        let id = id_text(id);
        let found = self.nodes_of(worker).into_iter().find(|node| node.id == id);
        found.ok_or_else(|| Problem::not_found(format!("worker {} has no node {id}", worker.name)))
    }
}

fn page(nodes: Vec<Node>, asked: Asked) -> Result<Json<Page<Node>>, Problem> {
    let place = |node: &Node| Place(format!("{}\0{}", node.worker, node.id));
    let after = cursor::<Place>(asked.cursor.as_deref())?;
    let mut nodes: Vec<Node> =
        nodes.into_iter().filter(|node| asked.role.is_none_or(|role| role == node.role)).collect();
    nodes.sort_by_cached_key(place);
    let behind =
        nodes.into_iter().skip_while(|node| after.as_ref().is_some_and(|after| place(node) <= *after));
    Ok(Json(Page::cut(behind, asked.limit, place)))
}

/// All nodes, by worker and id
#[utoipa::path(get, path = "/api/v1/nodes", tag = "nodes", params(Asked), responses((status = 200, body = Page<Node>)))]
pub(super) async fn list(
    State(api): State<Api>,
    Query(asked): Query<Asked>,
) -> Result<Json<Page<Node>>, Problem> {
    let workers = api.admin.workers(&WorkerFilter::default(), Part::ALL).items;
    page(workers.iter().flat_map(|worker| api.nodes_of(worker)).collect(), asked)
}

/// A worker's nodes, by id
#[utoipa::path(
    get, path = "/api/v1/workers/{worker}/nodes", tag = "nodes",
    params(("worker" = String, Path, description = "Its number or its name"), Asked),
    responses((status = 200, body = Page<Node>))
)]
pub(super) async fn list_of_worker(
    State(api): State<Api>,
    Path(worker): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Json<Page<Node>>, Problem> {
    page(api.nodes_of(&*api.find_worker(&worker)?), asked)
}

/// Give a node its place in its worker's order
#[utoipa::path(
    patch, path = "/api/v1/workers/{worker}/nodes/{node}", tag = "nodes", request_body = Edit,
    params(
        ("worker" = String, Path, description = "Its number or its name"),
        ("node" = String, Path, description = "The node's id"),
    ),
    responses((status = 200, body = Node))
)]
pub(super) async fn edit(
    State(api): State<Api>,
    caller: Caller,
    Path((worker, node)): Path<(String, String)>,
    Json(edit): Json<Edit>,
) -> Result<Json<Node>, Problem> {
    let (worker, id) = api.find_node(&worker, &node)?;
    api.admin.set_node_priority(worker.id, id, edit.priority, &caller.actor()).await?;
    Ok(Json(api.node_view(&worker, &id)?))
}

/// Forget a node that is gone
///
/// One that is connected is refused (409): disable its worker, or stop its process, first. Where it connects again it is a new one, behind all others of its priority.
#[utoipa::path(
    delete, path = "/api/v1/workers/{worker}/nodes/{node}", tag = "nodes",
    params(
        ("worker" = String, Path, description = "Its number or its name"),
        ("node" = String, Path, description = "The node's id"),
    ),
    responses((status = 204))
)]
pub(super) async fn forget(
    State(api): State<Api>,
    caller: Caller,
    Path((worker, node)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let (worker, id) = api.find_node(&worker, &node)?;
    api.admin.forget_node(worker.id, id, &caller.actor()).await?;
    Ok(StatusCode::NO_CONTENT)
}
