//! Distributed workers.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{HeaderValue, LOCATION};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::nodes::Node;
use super::revision::{IfMatch, Tagged};
use crate::appliance::admin::{
    CloudFilter, EditWorker, HostList, NewWorker, Page as Part, Warning, WorkerFilter,
};
use crate::appliance::login::Caller;
use crate::appliance::records::{self, Origin};
use crate::inspect::status::{GroupStatus, NodeRole, Rate};
use crate::web::Problem;
use crate::web::extract::{Json, Path, Query};
use crate::web::paging::{Limit, Page, Place, cursor};

/// How long a replaced key goes on to work, unless the request says.
const GRACE: Duration = Duration::from_secs(24 * 3600);

/// A distributed worker: the processes at one site that share a key.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Worker {
    /// Its number; never used again after a removal.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// For people.
    pub description: String,
    /// What it carries, apart from its clouds.
    pub proxy_hosts: Vec<String>,
    /// False: its key is refused, and it carries nothing.
    pub enabled: bool,
    /// Whether its nodes may open streams to other workers' proxy hosts.
    pub may_open: bool,
    /// Who manages it.
    pub origin: Origin,
    /// When it was added.
    #[schema(value_type = String, format = DateTime)]
    pub created: Timestamp,
    /// When it was changed last.
    #[schema(value_type = String, format = DateTime)]
    pub changed: Timestamp,
    /// Who changed it last.
    pub changed_by: String,
    /// When its key was changed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub rotated: Option<Timestamp>,
    /// SHA-256 of its key, as `dworker key hash` prints it: no secret.
    #[serde(default)]
    #[schema(required = true)]
    pub key_sha256: String,
    /// Until when the key before works too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub previous_key_until: Option<Timestamp>,
    /// Counts its changes; a save may say which one it is based on.
    pub revision: i64,
    /// What is live of it.
    pub live: Live,
}

/// What is live of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Live {
    /// True where a node is connected that takes new streams.
    pub up: bool,
    /// The host name of the node that carries new streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<String>,
    /// Nodes that are connected.
    pub connected: usize,
    /// Smoothed round trip to the primary in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// Streams open now.
    pub streams: usize,
    /// What it carried in the last second.
    pub rate: Rate,
}

impl Live {
    /// The state of a group; `None`: it is disabled.
    pub(super) fn of(group: Option<&GroupStatus>) -> Live {
        let nodes = group.map_or(&[][..], |group| &group.nodes);
        let primary = group.and_then(GroupStatus::primary);
        Live {
            up: group.is_some_and(|group| group.up),
            primary: primary.map(|node| node.name.clone()),
            connected: nodes.iter().filter(|node| node.role != NodeRole::Leaving).count(),
            rtt_us: primary.and_then(|node| node.sums().rtt_us),
            streams: group.map_or(0, GroupStatus::streams),
            rate: group.map(|group| group.rate).unwrap_or_default(),
        }
    }
}

/// A worker with all that belongs to it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WorkerDetail {
    /// The worker.
    #[serde(flatten)]
    pub worker: Worker,
    /// Its nodes, in the order in which they become primary.
    pub nodes: Vec<Node>,
    /// The names of the clouds that it carries.
    pub clouds: Vec<String>,
}

/// A worker that was saved.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WorkerSaved {
    /// The worker.
    #[serde(flatten)]
    pub worker: Worker,
    /// Its new key, where one was made: shown now, and never again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What was saved but is hardly meant.
    pub warnings: Vec<Odd>,
}

/// What was saved but is hardly meant.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Odd {
    /// The field.
    pub field: String,
    /// What is odd, and what to do.
    pub detail: String,
}

impl From<Warning> for Odd {
    fn from(warning: Warning) -> Odd {
        Odd { field: warning.field.to_owned(), detail: warning.to_string() }
    }
}

/// A worker to add.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = WorkerNew)]
pub(super) struct New {
    /// 1 to 63 of `a-z`, `0-9` and `-`, not digits alone; unique.
    #[schema(pattern = "^[0-9]*[a-z-][a-z0-9-]*$", max_length = 63)]
    name: String,
    /// For people.
    #[serde(default)]
    #[schema(max_length = 1000)]
    description: String,
    /// What it carries, apart from its clouds.
    #[serde(default)]
    proxy_hosts: HostList,
    /// Whether its key works at once.
    #[serde(default = "yes")]
    #[schema(default = true)]
    enabled: bool,
    /// Whether its nodes may open streams to other workers' proxy hosts.
    #[serde(default)]
    may_open: bool,
}

fn yes() -> bool {
    true
}

/// What to change about a worker; what is absent stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = WorkerEdit)]
pub(super) struct Edit {
    /// Another name.
    #[schema(pattern = "^[0-9]*[a-z-][a-z0-9-]*$", max_length = 63)]
    name: Option<String>,
    /// Another description.
    #[schema(max_length = 1000)]
    description: Option<String>,
    /// Other proxy hosts, in place of all.
    proxy_hosts: Option<HostList>,
    /// Whether its key works. Disabled, its nodes are cut.
    enabled: Option<bool>,
    /// Whether its nodes may open streams to other workers' proxy hosts.
    may_open: Option<bool>,
    /// The revision that the change is based on: another one is a conflict (409).
    revision: Option<i64>,
}

/// How a worker gets another key.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = KeyRotation)]
pub(super) struct Rotation {
    /// Seconds for which the old key goes on to work, at most 30 days.
    #[schema(maximum = 2_592_000, default = 86_400)]
    grace: Option<u64>,
    /// Whether a key that is in its grace already may end now; else that is a conflict (409).
    #[serde(default)]
    force: bool,
}

/// Which workers are asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// With this in their name, description or proxy hosts; letters in either case.
    text: Option<String>,
    /// Only enabled or only disabled ones.
    enabled: Option<bool>,
    /// Only those of the configuration file (`file`) or only those of the registry (`registry`).
    #[param(inline)]
    origin: Option<Origin>,
    /// How many at most, 1 to 500.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500, default = 100)]
    limit: Limit,
    /// `next` of the page before.
    cursor: Option<String>,
}

impl Api {
    /// A worker as the API shows it.
    pub(super) fn worker_view(&self, worker: &records::Worker) -> Worker {
        let group = self.registry.group(worker.id).map(|group| group.status());
        Worker {
            id: worker.id,
            name: worker.name.clone(),
            description: worker.description.clone(),
            proxy_hosts: worker.proxy_hosts.iter().map(ToString::to_string).collect(),
            enabled: worker.enabled,
            may_open: worker.may_open,
            origin: worker.origin,
            created: worker.created,
            changed: worker.changed,
            changed_by: worker.changed_by.clone(),
            rotated: worker.rotated,
            key_sha256: worker.key.to_string(),
            previous_key_until: worker.key_in_grace(Timestamp::now()).map(|(_, until)| until),
            revision: worker.revision,
            live: Live::of(group.as_ref()),
        }
    }

    pub(super) fn find_worker(&self, text: &str) -> Result<Arc<records::Worker>, Problem> {
        Ok(self.admin.worker(&text.into())?)
    }

    fn saved(&self, worker: &records::Worker, key: Option<String>, warnings: Vec<Warning>) -> WorkerSaved {
        let warnings = warnings.into_iter().map(Odd::from).collect();
        WorkerSaved { worker: self.worker_view(worker), key, warnings }
    }
}

/// Workers, by name
#[utoipa::path(get, path = "/api/v1/workers", tag = "workers", params(Asked), responses((status = 200, body = Page<Worker>)))]
pub(super) async fn list(
    State(api): State<Api>,
    Query(asked): Query<Asked>,
) -> Result<Json<Page<Worker>>, Problem> {
    let after = cursor::<Place>(asked.cursor.as_deref())?;
    let filter = WorkerFilter { text: asked.text, enabled: asked.enabled, origin: asked.origin };
    let all = api.admin.workers(&filter, Part::ALL).items;
    let behind =
        all.into_iter().skip_while(|worker| after.as_ref().is_some_and(|after| worker.name <= after.0));
    let page = Page::cut(behind, asked.limit, |worker| Place(worker.name.clone()));
    Ok(Json(page.map(|worker| api.worker_view(&worker))))
}

/// Add a worker, and make its key
///
/// The key is in this answer and in no other.
#[utoipa::path(
    post, path = "/api/v1/workers", tag = "workers", request_body = New,
    responses((status = 201, body = WorkerSaved, headers(("ETag" = String), ("Location" = String))))
)]
pub(super) async fn add(
    State(api): State<Api>,
    caller: Caller,
    Json(new): Json<New>,
) -> Result<Response, Problem> {
    let New { name, description, proxy_hosts, enabled, may_open } = new;
    let new = NewWorker { name, description, proxy_hosts, enabled, may_open };
    let (worker, key, warnings) = api.admin.add_worker(new, &caller.actor()).await?;
    let saved = api.saved(&worker, Some(key.reveal().to_owned()), warnings);
    let mut response = Tagged(StatusCode::CREATED, worker.revision, saved).into_response();
    if let Ok(location) = HeaderValue::try_from(format!("/api/v1/workers/{}", worker.id)) {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

/// One worker, with its nodes and clouds
#[utoipa::path(
    get, path = "/api/v1/workers/{worker}", tag = "workers",
    params(("worker" = String, Path, description = "Its number or its name")),
    responses((status = 200, body = WorkerDetail, headers(("ETag" = String))))
)]
pub(super) async fn show(
    State(api): State<Api>,
    Path(worker): Path<String>,
) -> Result<Tagged<WorkerDetail>, Problem> {
    let worker = api.find_worker(&worker)?;
    let filter = CloudFilter { worker: Some(worker.id), ..CloudFilter::default() };
    let clouds = api.admin.clouds(&filter, Part::ALL).items.iter().map(|cloud| cloud.name.clone()).collect();
    let detail = WorkerDetail { worker: api.worker_view(&worker), nodes: api.nodes_of(&worker), clouds };
    Ok(Tagged(StatusCode::OK, worker.revision, detail))
}

/// Change a worker
#[utoipa::path(
    patch, path = "/api/v1/workers/{worker}", tag = "workers", request_body = Edit,
    params(
        ("worker" = String, Path, description = "Its number or its name"),
        ("If-Match" = Option<String>, Header, description = "The `ETag` that the change is based on: another one is refused (412)"),
    ),
    responses((status = 200, body = WorkerSaved, headers(("ETag" = String))))
)]
pub(super) async fn edit(
    State(api): State<Api>,
    caller: Caller,
    Path(worker): Path<String>,
    based_on: IfMatch,
    Json(edit): Json<Edit>,
) -> Result<Tagged<WorkerSaved>, Problem> {
    let old = api.find_worker(&worker)?;
    let revision = based_on.expect(&format!("worker {}", old.name), old.revision, edit.revision)?;
    let Edit { name, description, proxy_hosts, enabled, may_open, revision: _ } = edit;
    let edit = EditWorker { name, description, proxy_hosts, enabled, may_open };
    let saved = api.admin.edit_worker(old.id, edit, revision, &caller.actor()).await;
    let (worker, warnings) = saved.map_err(|error| based_on.refused(error))?;
    Ok(Tagged(StatusCode::OK, worker.revision, api.saved(&worker, None, warnings)))
}

/// Remove a worker
///
/// Its nodes are cut and forgotten. A worker that clouds use is not removed.
#[utoipa::path(
    delete, path = "/api/v1/workers/{worker}", tag = "workers",
    params(
        ("worker" = String, Path, description = "Its number or its name"),
        ("If-Match" = Option<String>, Header, description = "The `ETag` that the removal is based on: another one is refused (412)"),
    ),
    responses((status = 204))
)]
pub(super) async fn remove(
    State(api): State<Api>,
    caller: Caller,
    Path(worker): Path<String>,
    based_on: IfMatch,
) -> Result<StatusCode, Problem> {
    let old = api.find_worker(&worker)?;
    let revision = based_on.expect(&format!("worker {}", old.name), old.revision, None)?;
    let removed = api.admin.remove_worker(old.id, revision, &caller.actor()).await;
    removed.map_err(|error| based_on.refused(error))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Give a worker another key
///
/// The key is in this answer and in no other. The old one goes on to work for a grace. Where the one before that is
/// still in its own, this is refused (409), or ends it now, with `force`.
#[utoipa::path(
    post, path = "/api/v1/workers/{worker}/key", tag = "workers", request_body = Rotation,
    params(("worker" = String, Path, description = "Its number or its name")),
    responses((status = 200, body = WorkerSaved, headers(("ETag" = String))))
)]
pub(super) async fn rotate_key(
    State(api): State<Api>,
    caller: Caller,
    Path(worker): Path<String>,
    Json(rotation): Json<Rotation>,
) -> Result<Tagged<WorkerSaved>, Problem> {
    let old = api.find_worker(&worker)?;
    let grace = rotation.grace.map_or(GRACE, Duration::from_secs);
    let (worker, key, warnings) =
        api.admin.rotate_key(old.id, grace, rotation.force, &caller.actor()).await?;
    let saved = api.saved(&worker, Some(key.reveal().to_owned()), warnings);
    Ok(Tagged(StatusCode::OK, worker.revision, saved))
}
