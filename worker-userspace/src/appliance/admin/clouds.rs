//! Clouds: added, changed, given to a worker, removed.

use std::sync::Arc;

use serde::Deserialize;
use utoipa::ToSchema;

use super::error::{AdminError, Problem, Warning};
use super::input::Form;
use super::spelling::Concern;
use super::state::State;
use super::{Admin, Listed, Page, Plan, Ref};
use crate::appliance::audit::{Actor, EventKind};
use crate::appliance::records::{Cloud, CloudType, now};
use crate::appliance::store::Change;
use crate::config::quote;

/// Clouds that one registry may have.
const MOST_CLOUDS: usize = 10_000;

/// A cloud that is to be added.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NewCloud {
    /// For people; 1 to 100 characters, not digits alone, unique in either case.
    pub name: String,
    /// The word for its type, see [`CloudType`].
    pub kind: String,
    /// Where its API is: `http[s]://host[:port][/path]`.
    pub api_url: String,
    /// The worker that carries it; `None`: it is reached without one.
    pub worker: Option<Ref>,
}

/// What is to be changed about a cloud; `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EditCloud {
    /// Another name.
    pub name: Option<String>,
    /// Another type.
    pub kind: Option<String>,
    /// Another place of its API.
    pub api_url: Option<String>,
    /// Another worker, or none.
    pub worker: Option<Option<Ref>>,
}

/// Which clouds are asked for.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
pub struct CloudFilter {
    /// With this in their name or API URL; letters in either case.
    #[serde(default)]
    pub text: Option<String>,
    /// Of this type.
    #[serde(default)]
    pub kind: Option<CloudType>,
    /// Carried by the worker with this id.
    #[serde(default)]
    pub worker: Option<i64>,
}

impl CloudFilter {
    fn admits(&self, cloud: &Cloud) -> bool {
        let has = |text: &String| {
            cloud.name.to_lowercase().contains(text) || cloud.api_url.as_str().to_lowercase().contains(text)
        };
        self.kind.is_none_or(|kind| kind == cloud.kind)
            && self.worker.is_none_or(|worker| cloud.worker == Some(worker))
            && self.text.as_ref().is_none_or(has)
    }
}

impl Admin {
    /// A page of clouds, by name.
    pub fn clouds(&self, filter: &CloudFilter, page: Page) -> Listed<Cloud> {
        let filter = CloudFilter { text: filter.text.as_ref().map(|text| text.to_lowercase()), ..*filter };
        let state = self.state();
        let mut found: Vec<Arc<Cloud>> =
            state.clouds.values().filter(|cloud| filter.admits(cloud)).cloned().collect();
        found.sort_by_cached_key(|cloud| (cloud.name.to_lowercase(), cloud.id));
        Listed::of(found, page)
    }

    /// One cloud.
    ///
    /// # Errors
    /// There is none.
    pub fn cloud(&self, which: &Ref) -> Result<Arc<Cloud>, AdminError> {
        self.state().cloud(which)
    }

    /// Adds a cloud. With a worker, the host and port of its API URL are that worker's proxy host.
    ///
    /// # Errors
    /// Values that make no sense, a name that is another's, a host that another worker carries, or the store.
    pub async fn add_cloud(
        &self,
        new: NewCloud,
        actor: &Actor,
    ) -> Result<(Arc<Cloud>, Vec<Warning>), AdminError> {
        let subject = new.name.clone();
        let result = self.add_cloud_untold(new, actor).await;
        self.told(actor, &subject, result)
    }

    async fn add_cloud_untold(
        &self,
        new: NewCloud,
        actor: &Actor,
    ) -> Result<(Arc<Cloud>, Vec<Warning>), AdminError> {
        let mut form = Form::default();
        let name = form.cloud_name(&new.name);
        let kind = form.cloud_type(&new.kind);
        let api_url = form.api_url(&new.api_url);
        let Some((kind, api_url)) = kind.zip(api_url) else {
            return Err(AdminError::Invalid(form.problems));
        };
        let mut warnings = form.finish()?;
        let actor = actor.clone();
        let plan = move |state: &State| {
            let at = now();
            let cloud = Cloud {
                id: 0,
                name,
                kind,
                api_url,
                worker: new.worker.as_ref().map(|which| state.carrier(which)).transpose()?,
                created: at,
                changed: at,
                changed_by: actor.signature(),
                revision: 1,
            };
            state.free_cloud_name(&cloud.name, None)?;
            if state.clouds.len() >= MOST_CLOUDS {
                return Err(AdminError::invalid(Problem::new(
                    "name",
                    &cloud.name,
                    format!("there are {MOST_CLOUDS} clouds, and more can't be kept"),
                    "remove clouds that nobody uses",
                )));
            }
            let text = format!("{} at {}, {}", cloud.kind, cloud.api_url, state.carrier_name(cloud.worker));
            Ok(Plan {
                events: vec![actor.did(EventKind::CloudAdded, &cloud.name, text)],
                changes: vec![Change::Cloud(Arc::new(cloud))],
                routing: true,
            })
        };
        let done = self.commit(plan).await?;
        let id = done.ids.first().copied().unwrap_or_default();
        warnings.extend(self.spelling(&done.state, Concern::Cloud(id)).await);
        Ok((done.state.cloud(&Ref::Id(id))?, warnings))
    }

    /// Changes a cloud. With a `revision` only where it has that one.
    ///
    /// # Errors
    /// As for adding; the revision is another.
    pub async fn edit_cloud(
        &self,
        id: i64,
        edit: EditCloud,
        revision: Option<i64>,
        actor: &Actor,
    ) -> Result<(Arc<Cloud>, Vec<Warning>), AdminError> {
        let result = self.edit_cloud_untold(id, edit, revision, actor).await;
        self.told(actor, &self.cloud_subject(id), result)
    }

    async fn edit_cloud_untold(
        &self,
        id: i64,
        edit: EditCloud,
        revision: Option<i64>,
        actor: &Actor,
    ) -> Result<(Arc<Cloud>, Vec<Warning>), AdminError> {
        let mut form = Form::default();
        let name = edit.name.as_ref().map(|name| form.cloud_name(name));
        let kind = edit.kind.as_ref().and_then(|kind| form.cloud_type(kind));
        let api_url = edit.api_url.as_ref().and_then(|url| form.api_url(url));
        let mut warnings = form.finish()?;
        let actor = actor.clone();
        let plan = move |state: &State| {
            let old = state.cloud(&Ref::Id(id))?;
            let current = (old.revision, &*old.changed_by, old.changed);
            super::based_on(revision, current, || format!("cloud {}", quote(&old.name)))?;
            let worker = match edit.worker {
                None => old.worker,
                Some(which) => which.as_ref().map(|which| state.carrier(which)).transpose()?,
            };
            let new = Cloud {
                name: name.unwrap_or_else(|| old.name.clone()),
                kind: kind.unwrap_or(old.kind),
                api_url: api_url.unwrap_or_else(|| old.api_url.clone()),
                worker,
                ..Cloud::clone(&old)
            };
            state.free_cloud_name(&new.name, Some(&old))?;
            Ok(change(state, &old, new, &actor))
        };
        let done = self.commit(plan).await?;
        warnings.extend(self.spelling(&done.state, Concern::Cloud(id)).await);
        Ok((done.state.cloud(&Ref::Id(id))?, warnings))
    }

    /// Gives a cloud to a worker, or to none.
    ///
    /// # Errors
    /// There is no such cloud or worker, another worker carries the cloud's host, or the store.
    pub async fn assign(
        &self,
        id: i64,
        worker: Option<Ref>,
        actor: &Actor,
    ) -> Result<(Arc<Cloud>, Vec<Warning>), AdminError> {
        let edit = EditCloud { worker: Some(worker), ..EditCloud::default() };
        self.edit_cloud(id, edit, None, actor).await
    }

    /// Removes a cloud. With a `revision` only that state of it.
    ///
    /// # Errors
    /// There is no such cloud, it was changed since, or the store.
    pub async fn remove_cloud(
        &self,
        id: i64,
        revision: Option<i64>,
        actor: &Actor,
    ) -> Result<(), AdminError> {
        let subject = self.cloud_subject(id);
        let by = actor.clone();
        let plan = move |state: &State| {
            let cloud = state.cloud(&Ref::Id(id))?;
            let current = (cloud.revision, &*cloud.changed_by, cloud.changed);
            super::based_on(revision, current, || format!("cloud {}", cloud.name))?;
            let text = format!("{} at {}", cloud.kind, cloud.api_url);
            Ok(Plan {
                changes: vec![Change::RemoveCloud(id)],
                events: vec![by.did(EventKind::CloudRemoved, &cloud.name, text)],
                routing: true,
            })
        };
        let result = self.commit(plan).await.map(drop);
        self.told(actor, &subject, result)
    }

    /// What is odd about a cloud now: what a save would warn of.
    ///
    /// # Errors
    /// There is no such cloud.
    pub async fn cloud_warnings(&self, id: i64) -> Result<Vec<Warning>, AdminError> {
        let state = self.state();
        state.cloud(&Ref::Id(id))?;
        Ok(self.spelling(&state, Concern::Cloud(id)).await)
    }

    fn cloud_subject(&self, id: i64) -> String {
        self.cloud(&Ref::Id(id)).map_or_else(|_| id.to_string(), |cloud| cloud.name.clone())
    }
}

impl State {
    fn cloud(&self, which: &Ref) -> Result<Arc<Cloud>, AdminError> {
        let found = which.find(&self.clouds, |cloud| &cloud.name);
        found.cloned().ok_or_else(|| AdminError::NotFound { what: "cloud", name: which.to_string() })
    }

    /// The id of the worker that is to carry a cloud.
    fn carrier(&self, which: &Ref) -> Result<i64, AdminError> {
        self.worker(which).map(|worker| worker.id).map_err(|_| {
            AdminError::invalid(Problem {
                field: "worker",
                value: which.to_string(),
                problem: "there is no such worker".into(),
                remedy: "choose one of the list, or none".into(),
            })
        })
    }

    /// How an event says who carries a cloud.
    fn carrier_name(&self, worker: Option<i64>) -> String {
        match worker.and_then(|id| self.workers.get(&id)) {
            Some(worker) => format!("carried by worker {}", worker.name),
            None => "without a worker".into(),
        }
    }

    /// Refuses a new name that another cloud has, in whatever case, or that is none.
    fn free_cloud_name(&self, name: &str, old: Option<&Cloud>) -> Result<(), AdminError> {
        if old.is_some_and(|old| old.name == name) {
            return Ok(());
        }
        super::no_number(name, "Cloud ")?;
        let (lower, but) = (name.to_lowercase(), old.map(|old| old.id));
        match self.clouds.values().any(|other| other.name.to_lowercase() == lower && Some(other.id) != but) {
            true => Err(AdminError::NameTaken { what: "cloud", name: quote(name) }),
            false => Ok(()),
        }
    }
}

/// The plan that makes `old` into `new`; nothing, where they are the same.
pub(super) fn change(state: &State, old: &Cloud, mut new: Cloud, actor: &Actor) -> Plan {
    let mut texts = Vec::new();
    if old.name != new.name {
        texts.push(format!("name: {} became {}", quote(&old.name), quote(&new.name)));
    }
    if old.kind != new.kind {
        texts.push(format!("type: {} became {}", old.kind, new.kind));
    }
    if old.api_url != new.api_url {
        texts.push(format!("API URL: {} became {}", old.api_url, new.api_url));
    }
    if old.worker != new.worker {
        texts.push(format!("{}; it was {}", state.carrier_name(new.worker), state.carrier_name(old.worker)));
    }
    if texts.is_empty() {
        return Plan { changes: Vec::new(), events: Vec::new(), routing: false };
    }
    new.changed = now();
    new.changed_by = actor.signature();
    new.revision = old.revision + 1;
    Plan {
        events: vec![actor.did(EventKind::CloudChanged, &new.name, texts.join("; "))],
        changes: vec![Change::Cloud(Arc::new(new))],
        routing: true,
    }
}
