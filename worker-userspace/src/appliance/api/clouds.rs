//! Clouds: managed endpoints, each carried by a worker or by none.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{HeaderValue, LOCATION};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::revision::{IfMatch, Tagged};
use super::workers::Odd;
use crate::appliance::admin::{CloudFilter, EditCloud, NewCloud, Page as Part, Ref, Warning};
use crate::appliance::login::Caller;
use crate::appliance::records::{self, CloudType};
use crate::web::Problem;
use crate::web::extract::{Json, Path, Query};
use crate::web::paging::{Limit, Page, Place, cursor};

/// A managed endpoint.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Cloud {
    /// Its number; never used again after a removal.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: CloudType,
    /// Where its API is.
    pub api_url: String,
    /// Host and port of its API: what its worker carries.
    pub proxy_host: String,
    /// The worker that carries it; absent where it is reached without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<Carrier>,
    /// When it was added.
    #[schema(value_type = String, format = DateTime)]
    pub created: Timestamp,
    /// When it was changed last.
    #[schema(value_type = String, format = DateTime)]
    pub changed: Timestamp,
    /// Who changed it last.
    pub changed_by: String,
    /// Counts its changes; a save may say which one it is based on.
    pub revision: i64,
}

/// The worker that carries a cloud.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Carrier {
    /// Its number.
    pub id: i64,
    /// Its name.
    pub name: String,
}

/// A cloud that was saved.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CloudSaved {
    /// The cloud.
    #[serde(flatten)]
    pub cloud: Cloud,
    /// What was saved but is hardly meant.
    pub warnings: Vec<Odd>,
}

/// A cloud to add.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CloudNew)]
pub(super) struct New {
    /// For people; unique, not digits alone.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// `vmware`, `vmwareCloudAws`, `nutanix`, `openstack`, `xenserver` or `macstadium`.
    #[serde(rename = "type")]
    #[schema(value_type = CloudType)]
    kind: String,
    /// Where its API is: `http[s]://host[:port][/path]`.
    #[schema(pattern = "^https?://", max_length = 2000)]
    api_url: String,
    /// The worker that carries it, by number or name; none where absent or `null`.
    worker: Option<Ref>,
}

/// What to change about a cloud; what is absent stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CloudEdit)]
pub(super) struct Edit {
    /// Another name.
    #[schema(min_length = 1, max_length = 100)]
    name: Option<String>,
    /// Another type.
    #[serde(rename = "type")]
    #[schema(value_type = Option<CloudType>)]
    kind: Option<String>,
    /// Another place of its API.
    #[schema(pattern = "^https?://", max_length = 2000)]
    api_url: Option<String>,
    /// Another worker, by number or name; `null`: none.
    #[serde(default, deserialize_with = "some")]
    #[schema(value_type = Option<Ref>)]
    worker: Option<Option<Ref>>,
    /// The revision that the change is based on: another one is a conflict (409).
    revision: Option<i64>,
}

/// What is there, if only as `null`.
fn some<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<Ref>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Which clouds are asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// With this in their name or API URL; letters in either case.
    text: Option<String>,
    /// Of this type.
    #[serde(rename = "type")]
    #[param(inline)]
    kind: Option<CloudType>,
    /// Carried by this worker, by number or name.
    worker: Option<String>,
    /// How many at most, 1 to 500.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500, default = 100)]
    limit: Limit,
    /// `next` of the page before.
    cursor: Option<String>,
}

impl Api {
    fn cloud_view(&self, cloud: &records::Cloud) -> Cloud {
        let worker = cloud.worker.and_then(|id| self.admin.worker(&Ref::Id(id)).ok());
        Cloud {
            id: cloud.id,
            name: cloud.name.clone(),
            kind: cloud.kind,
            api_url: cloud.api_url.to_string(),
            proxy_host: cloud.api_url.target().to_string(),
            worker: worker.map(|worker| Carrier { id: worker.id, name: worker.name.clone() }),
            created: cloud.created,
            changed: cloud.changed,
            changed_by: cloud.changed_by.clone(),
            revision: cloud.revision,
        }
    }

    fn find_cloud(&self, text: &str) -> Result<Arc<records::Cloud>, Problem> {
        Ok(self.admin.cloud(&text.into())?)
    }

    fn cloud_saved(
        &self,
        status: StatusCode,
        cloud: &records::Cloud,
        warnings: Vec<Warning>,
    ) -> Tagged<CloudSaved> {
        let warnings = warnings.into_iter().map(Odd::from).collect();
        Tagged(status, cloud.revision, CloudSaved { cloud: self.cloud_view(cloud), warnings })
    }
}

/// Clouds, by name
#[utoipa::path(get, path = "/api/v1/clouds", tag = "clouds", params(Asked), responses((status = 200, body = Page<Cloud>)))]
pub(super) async fn list(
    State(api): State<Api>,
    Query(asked): Query<Asked>,
) -> Result<Json<Page<Cloud>>, Problem> {
    // As the list is ordered; no name has a NUL.
    let place =
        |cloud: &Arc<records::Cloud>| Place(format!("{}\0{:019}", cloud.name.to_lowercase(), cloud.id));
    let after = cursor::<Place>(asked.cursor.as_deref())?;
    let worker = asked.worker.map(|worker| api.find_worker(&worker)).transpose()?;
    let filter = CloudFilter { text: asked.text, kind: asked.kind, worker: worker.map(|worker| worker.id) };
    let all = api.admin.clouds(&filter, Part::ALL).items;
    let behind =
        all.into_iter().skip_while(|cloud| after.as_ref().is_some_and(|after| place(cloud) <= *after));
    Ok(Json(Page::cut(behind, asked.limit, place).map(|cloud| api.cloud_view(&cloud))))
}

/// Add a cloud
///
/// With a worker, host and port of its API URL are one of that worker's proxy hosts.
#[utoipa::path(
    post, path = "/api/v1/clouds", tag = "clouds", request_body = New,
    responses((status = 201, body = CloudSaved, headers(("ETag" = String), ("Location" = String))))
)]
pub(super) async fn add(
    State(api): State<Api>,
    caller: Caller,
    Json(new): Json<New>,
) -> Result<Response, Problem> {
    let New { name, kind, api_url, worker } = new;
    let (cloud, warnings) =
        api.admin.add_cloud(NewCloud { name, kind, api_url, worker }, &caller.actor()).await?;
    let mut response = api.cloud_saved(StatusCode::CREATED, &cloud, warnings).into_response();
    if let Ok(location) = HeaderValue::try_from(format!("/api/v1/clouds/{}", cloud.id)) {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

/// One cloud
#[utoipa::path(
    get, path = "/api/v1/clouds/{cloud}", tag = "clouds",
    params(("cloud" = String, Path, description = "Its number or its name")),
    responses((status = 200, body = Cloud, headers(("ETag" = String))))
)]
pub(super) async fn show(
    State(api): State<Api>,
    Path(cloud): Path<String>,
) -> Result<Tagged<Cloud>, Problem> {
    let cloud = api.find_cloud(&cloud)?;
    Ok(Tagged(StatusCode::OK, cloud.revision, api.cloud_view(&cloud)))
}

/// Change a cloud, or give it to a worker
#[utoipa::path(
    patch, path = "/api/v1/clouds/{cloud}", tag = "clouds", request_body = Edit,
    params(
        ("cloud" = String, Path, description = "Its number or its name"),
        ("If-Match" = Option<String>, Header, description = "The `ETag` that the change is based on: another one is refused (412)"),
    ),
    responses((status = 200, body = CloudSaved, headers(("ETag" = String))))
)]
pub(super) async fn edit(
    State(api): State<Api>,
    caller: Caller,
    Path(cloud): Path<String>,
    based_on: IfMatch,
    Json(edit): Json<Edit>,
) -> Result<Tagged<CloudSaved>, Problem> {
    let old = api.find_cloud(&cloud)?;
    let revision = based_on.expect(&format!("cloud {}", old.name), old.revision, edit.revision)?;
    let Edit { name, kind, api_url, worker, revision: _ } = edit;
    let edit = EditCloud { name, kind, api_url, worker };
    let saved = api.admin.edit_cloud(old.id, edit, revision, &caller.actor()).await;
    let (cloud, warnings) = saved.map_err(|error| based_on.refused(error))?;
    Ok(api.cloud_saved(StatusCode::OK, &cloud, warnings))
}

/// Remove a cloud
#[utoipa::path(
    delete, path = "/api/v1/clouds/{cloud}", tag = "clouds",
    params(
        ("cloud" = String, Path, description = "Its number or its name"),
        ("If-Match" = Option<String>, Header, description = "The `ETag` that the removal is based on: another one is refused (412)"),
    ),
    responses((status = 204))
)]
pub(super) async fn remove(
    State(api): State<Api>,
    caller: Caller,
    Path(cloud): Path<String>,
    based_on: IfMatch,
) -> Result<StatusCode, Problem> {
    let old = api.find_cloud(&cloud)?;
    let revision = based_on.expect(&format!("cloud {}", old.name), old.revision, None)?;
    let removed = api.admin.remove_cloud(old.id, revision, &caller.actor()).await;
    removed.map_err(|error| based_on.refused(error))?;
    Ok(StatusCode::NO_CONTENT)
}
