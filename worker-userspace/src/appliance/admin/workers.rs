//! Workers: added, changed, given other keys, removed.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use utoipa::ToSchema;

use super::error::{AdminError, Problem, Warning};
use super::input::{Form, HostList};
use super::spelling::Concern;
use super::state::State;
use super::{Admin, Done, Listed, Page, Plan, Ref};
use crate::appliance::audit::{Actor, EventKind};
use crate::appliance::records::{Origin, Worker, now};
use crate::appliance::store::Change;
use crate::config::{Key, KeyHash, quote};
use crate::target::Pattern;

/// Workers that one registry may have.
const MOST_WORKERS: usize = 10_000;
/// The longest that a replaced key may go on to work.
const LONGEST_GRACE: Duration = Duration::from_secs(30 * 24 * 3600);

/// A worker that is to be added: the seed's form.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NewWorker {
    /// 1 to 63 of `a-z`, `0-9` and `-`, not digits alone; unique.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    /// What it carries, apart from its clouds; may be empty.
    pub proxy_hosts: HostList,
    /// Whether its key works at once.
    pub enabled: bool,
    /// Whether its nodes may open streams to other workers' proxy hosts.
    pub may_open: bool,
}

/// What is to be changed about a worker; `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EditWorker {
    /// Another name.
    #[serde(default)]
    pub name: Option<String>,
    /// Another description.
    #[serde(default)]
    pub description: Option<String>,
    /// Other proxy hosts, in place of all.
    #[serde(default)]
    pub proxy_hosts: Option<HostList>,
    /// Whether its key works.
    #[serde(default)]
    pub enabled: Option<bool>,
    /// Whether its nodes may open streams to other workers' proxy hosts.
    #[serde(default)]
    pub may_open: Option<bool>,
}

/// Which workers are asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WorkerFilter {
    /// With this in their name, description or proxy hosts; letters in either case.
    pub text: Option<String>,
    /// Only enabled or only disabled ones.
    pub enabled: Option<bool>,
    /// Only those of the file or only those of the registry.
    pub origin: Option<Origin>,
}

impl WorkerFilter {
    fn admits(&self, worker: &Worker) -> bool {
        let has = |text: &String| {
            let has = |field: &str| field.to_lowercase().contains(text);
            has(&worker.name)
                || has(&worker.description)
                || worker.proxy_hosts.iter().any(|pattern| has(&pattern.to_string()))
        };
        self.enabled.is_none_or(|enabled| enabled == worker.enabled)
            && self.origin.is_none_or(|origin| origin == worker.origin)
            && self.text.as_ref().is_none_or(has)
    }
}

impl Admin {
    /// A page of workers, by name.
    pub fn workers(&self, filter: &WorkerFilter, page: Page) -> Listed<Worker> {
        let filter = WorkerFilter { text: filter.text.as_ref().map(|text| text.to_lowercase()), ..*filter };
        let state = self.state();
        let mut found: Vec<Arc<Worker>> =
            state.workers.values().filter(|worker| filter.admits(worker)).cloned().collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Listed::of(found, page)
    }

    /// One worker.
    ///
    /// # Errors
    /// There is none.
    pub fn worker(&self, which: &Ref) -> Result<Arc<Worker>, AdminError> {
        self.state().worker(which)
    }

    /// Adds a worker and makes its key, which is shown now and never again.
    ///
    /// # Errors
    /// Values that make no sense, a name or a pattern that is another's, or the store.
    pub async fn add_worker(
        &self,
        new: NewWorker,
        actor: &Actor,
    ) -> Result<(Arc<Worker>, Key, Vec<Warning>), AdminError> {
        let subject = new.name.clone();
        let result = self.add_worker_untold(new, actor).await;
        self.told(actor, &subject, result)
    }

    async fn add_worker_untold(
        &self,
        new: NewWorker,
        actor: &Actor,
    ) -> Result<(Arc<Worker>, Key, Vec<Warning>), AdminError> {
        let mut form = Form::default();
        let name = form.worker_name(&new.name);
        let description = form.description(&new.description);
        let proxy_hosts = form.proxy_hosts(&new.proxy_hosts);
        let mut warnings = form.finish()?;
        let key = Key::generate().map_err(|error| AdminError::Randomness(error.to_string()))?;
        let (hash, actor) = (key.hash(), actor.clone());
        let plan = move |state: &State| {
            state.free_worker_name(&name, None)?;
            if state.workers.len() >= MOST_WORKERS {
                return Err(AdminError::invalid(Problem::new(
                    "name",
                    &name,
                    format!("there are {MOST_WORKERS} workers, and more can't be kept"),
                    "remove workers that nobody uses",
                )));
            }
            let text =
                format!("with {}{}", listed(&proxy_hosts), if new.enabled { "" } else { ", disabled" });
            let at = now();
            let worker = Worker {
                id: 0,
                name: name.clone(),
                description,
                proxy_hosts,
                enabled: new.enabled,
                may_open: new.may_open,
                origin: Origin::Registry,
                key: hash,
                previous_key: None,
                created: at,
                rotated: None,
                changed: at,
                changed_by: actor.signature(),
                revision: 1,
            };
            Ok(Plan {
                changes: vec![Change::Worker(Arc::new(worker))],
                events: vec![
                    actor.did(EventKind::WorkerAdded, &name, text),
                    actor.did(EventKind::KeyShown, &name, "its new key was shown"),
                ],
                routing: true,
            })
        };
        let done = self.commit(plan).await?;
        let id = done.ids.first().copied().unwrap_or_default();
        let worker = done.state.worker(&Ref::Id(id))?;
        warnings.extend(self.spelling(&done.state, Concern::Worker(id)).await);
        Ok((worker, key, warnings))
    }

    /// Changes a worker. With a `revision` only where it has that one.
    ///
    /// # Errors
    /// As for adding; the revision is another; the configuration file says what was to be changed.
    pub async fn edit_worker(
        &self,
        id: i64,
        edit: EditWorker,
        revision: Option<i64>,
        actor: &Actor,
    ) -> Result<(Arc<Worker>, Vec<Warning>), AdminError> {
        let (done, mut warnings) = self.save_worker(id, edit, revision, actor).await?;
        warnings.extend(self.spelling(&done.state, Concern::Worker(id)).await);
        Ok((done.state.worker(&Ref::Id(id))?, warnings))
    }

    /// Changes a worker, and tells of it. Gives the warnings that need no look-up.
    async fn save_worker(
        &self,
        id: i64,
        edit: EditWorker,
        revision: Option<i64>,
        actor: &Actor,
    ) -> Result<(Done, Vec<Warning>), AdminError> {
        let result = self.save_worker_untold(id, edit, revision, actor).await;
        self.told(actor, &self.worker_subject(id), result)
    }

    async fn save_worker_untold(
        &self,
        id: i64,
        edit: EditWorker,
        revision: Option<i64>,
        actor: &Actor,
    ) -> Result<(Done, Vec<Warning>), AdminError> {
        let mut form = Form::default();
        let name = edit.name.as_ref().map(|name| form.worker_name(name));
        let description = edit.description.as_ref().map(|text| form.description(text));
        let proxy_hosts = edit.proxy_hosts.as_ref().map(|list| form.proxy_hosts(list));
        let warnings = form.finish()?;
        let actor = actor.clone();
        let plan = move |state: &State| {
            let old = state.worker(&Ref::Id(id))?;
            let current = (old.revision, &*old.changed_by, old.changed);
            super::based_on(revision, current, || format!("worker {}", old.name))?;
            let mut new = Worker::clone(&old);
            new.name = name.unwrap_or(new.name);
            new.description = description.unwrap_or(new.description);
            new.proxy_hosts = proxy_hosts.unwrap_or(new.proxy_hosts);
            new.enabled = edit.enabled.unwrap_or(new.enabled);
            new.may_open = edit.may_open.unwrap_or(new.may_open);
            said_by_file(&old, &new)?;
            state.free_worker_name(&new.name, Some(&old))?;
            Ok(change(&old, new, &actor))
        };
        Ok((self.commit(plan).await?, warnings))
    }

    /// Enables or disables a worker. Disabled, its key is refused and its nodes are cut. Waits for no look-up: nothing
    /// that is spelled changes.
    ///
    /// # Errors
    /// There is no such worker, or the store.
    pub async fn set_enabled(
        &self,
        id: i64,
        enabled: bool,
        actor: &Actor,
    ) -> Result<Arc<Worker>, AdminError> {
        let edit = EditWorker { enabled: Some(enabled), ..EditWorker::default() };
        let (done, _) = self.save_worker(id, edit, None, actor).await?;
        done.state.worker(&Ref::Id(id))
    }

    /// Gives a worker another key, which is shown now and never again. The old one goes on to work for `grace`.
    /// One that is in its grace already ends with `force`, which a warning tells; without, nothing happens.
    ///
    /// # Errors
    /// There is no such worker, the configuration file says its key, the grace is too long, a key is in its grace, or
    /// the store.
    pub async fn rotate_key(
        &self,
        id: i64,
        grace: Duration,
        force: bool,
        actor: &Actor,
    ) -> Result<(Arc<Worker>, Key, Vec<Warning>), AdminError> {
        let result = self.rotate_key_untold(id, grace, force, actor).await;
        self.told(actor, &self.worker_subject(id), result)
    }

    async fn rotate_key_untold(
        &self,
        id: i64,
        grace: Duration,
        force: bool,
        actor: &Actor,
    ) -> Result<(Arc<Worker>, Key, Vec<Warning>), AdminError> {
        if grace > LONGEST_GRACE {
            return Err(AdminError::invalid(Problem {
                field: "grace",
                value: format!("{} s", grace.as_secs()),
                problem: "a key that was replaced should not work for so long".into(),
                remedy: format!("choose at most {} s (30 days)", LONGEST_GRACE.as_secs()),
            }));
        }
        let key = Key::generate().map_err(|error| AdminError::Randomness(error.to_string()))?;
        let (hash, actor) = (key.hash(), actor.clone());
        let ended = Arc::new(OnceLock::new());
        let ends = ended.clone();
        let plan = move |state: &State| {
            let old = state.worker(&Ref::Id(id))?;
            if old.origin == Origin::File {
                return Err(AdminError::ManagedByFile {
                    worker: old.name.clone(),
                    fields: "key_sha256".into(),
                });
            }
            let at = now();
            let in_grace = old.key_in_grace(at);
            if let (Some((key, until)), false) = (in_grace, force) {
                return Err(AdminError::InGrace { worker: old.name.clone(), key, until });
            }
            let until = SignedDuration::try_from(grace).ok().and_then(|grace| at.checked_add(grace).ok());
            let previous_key = until.filter(|until| *until > at).map(|until| (old.key, until));
            let mut text = match previous_key {
                Some((_, until)) => format!("a new key was shown; the old one works until {until:.0}"),
                None => "a new key was shown; the old one works no more".to_owned(),
            };
            if let Some((key, until)) = in_grace {
                text += &format!(
                    "; nor does the one before that ({}), which was to work until {until:.0}",
                    key.short()
                );
                let _ = ends.set((key, until));
            }
            let worker = Worker {
                key: hash,
                previous_key,
                rotated: Some(at),
                changed: at,
                changed_by: actor.signature(),
                revision: old.revision + 1,
                ..Worker::clone(&old)
            };
            Ok(Plan {
                events: vec![actor.did(EventKind::KeyRotated, &worker.name, text)],
                changes: vec![Change::Worker(Arc::new(worker))],
                routing: true,
            })
        };
        let done = self.commit(plan).await?;
        let warning = |(key, until): &(KeyHash, Timestamp)| Warning {
            field: "key",
            about: key.short(),
            problem: format!(
                "the key before the old one ({}), which was to work until {until:.0}, has ended now",
                key.short()
            ),
            remedy: "give the new key to the nodes that still have it".into(),
        };
        Ok((done.state.worker(&Ref::Id(id))?, key, ended.get().map(warning).into_iter().collect()))
    }

    /// Removes a worker and forgets its nodes. With a `revision` only that state of it.
    ///
    /// # Errors
    /// There is no such worker, it was changed since, it stands in the configuration file, clouds use it, or the store.
    pub async fn remove_worker(
        &self,
        id: i64,
        revision: Option<i64>,
        actor: &Actor,
    ) -> Result<(), AdminError> {
        let subject = self.worker_subject(id);
        let by = actor.clone();
        let plan = move |state: &State| {
            let worker = state.worker(&Ref::Id(id))?;
            let current = (worker.revision, &*worker.changed_by, worker.changed);
            super::based_on(revision, current, || format!("worker {}", worker.name))?;
            if worker.origin == Origin::File {
                return Err(AdminError::ManagedByFile {
                    worker: worker.name.clone(),
                    fields: "existence".into(),
                });
            }
            let clouds: Vec<String> = state.clouds_of(id).map(|cloud| cloud.name.clone()).collect();
            if !clouds.is_empty() {
                return Err(AdminError::InUse { worker: worker.name.clone(), clouds });
            }
            let text = format!("it carried {}", listed(&worker.proxy_hosts));
            Ok(Plan {
                changes: vec![Change::RemoveWorker(id)],
                events: vec![by.did(EventKind::WorkerRemoved, &worker.name, text)],
                routing: true,
            })
        };
        let result = self.commit(plan).await.map(drop);
        self.told(actor, &subject, result)
    }

    /// What is odd about a worker now: what a save would warn of.
    ///
    /// # Errors
    /// There is no such worker.
    pub async fn worker_warnings(&self, id: i64) -> Result<Vec<Warning>, AdminError> {
        let state = self.state();
        state.worker(&Ref::Id(id))?;
        Ok(self.spelling(&state, Concern::Worker(id)).await)
    }

    /// How events name a worker that may not exist.
    pub(super) fn worker_subject(&self, id: i64) -> String {
        self.worker(&Ref::Id(id)).map_or_else(|_| id.to_string(), |worker| worker.name.clone())
    }
}

impl Form {
    /// The warnings, or all problems.
    pub(super) fn finish(self) -> Result<Vec<Warning>, AdminError> {
        if self.problems.is_empty() { Ok(self.warnings) } else { Err(AdminError::Invalid(self.problems)) }
    }
}

impl State {
    pub(super) fn worker(&self, which: &Ref) -> Result<Arc<Worker>, AdminError> {
        let found = which.find(&self.workers, |worker| &worker.name);
        found.cloned().ok_or_else(|| AdminError::NotFound { what: "worker", name: which.to_string() })
    }

    /// Refuses a new name that another worker has, or that is none.
    fn free_worker_name(&self, name: &str, old: Option<&Worker>) -> Result<(), AdminError> {
        if old.is_some_and(|old| old.name == name) {
            return Ok(());
        }
        super::no_number(name, "site-")?;
        match self.workers.values().any(|other| other.name == name) {
            true => Err(AdminError::NameTaken { what: "worker", name: quote(name) }),
            false => Ok(()),
        }
    }
}

/// Refuses changes of what `[[appliance.groups]]` says.
fn said_by_file(old: &Worker, new: &Worker) -> Result<(), AdminError> {
    let changed = [
        ("name", old.name != new.name),
        ("proxy_hosts", old.proxy_hosts != new.proxy_hosts),
        ("may_open", old.may_open != new.may_open),
    ];
    let fields: Vec<&str> =
        changed.into_iter().filter(|(_, changed)| *changed).map(|(field, _)| field).collect();
    if old.origin == Origin::Registry || fields.is_empty() {
        return Ok(());
    }
    Err(AdminError::ManagedByFile { worker: old.name.clone(), fields: fields.join(" and ") })
}

/// The plan that makes `old` into `new`; nothing, where they are the same.
pub(super) fn change(old: &Worker, mut new: Worker, actor: &Actor) -> Plan {
    let mut events = Vec::new();
    let texts = differences(old, &new);
    if !texts.is_empty() {
        events.push(actor.did(EventKind::WorkerChanged, &new.name, texts.join("; ")));
    }
    if old.enabled != new.enabled {
        let (kind, text) = match new.enabled {
            true => (EventKind::WorkerEnabled, "its key works"),
            false => (EventKind::WorkerDisabled, "its key is refused, and its nodes are cut"),
        };
        events.push(actor.did(kind, &new.name, text));
    }
    if events.is_empty() {
        return Plan { changes: Vec::new(), events, routing: false };
    }
    new.changed = now();
    new.changed_by = actor.signature();
    new.revision = old.revision + 1;
    Plan { changes: vec![Change::Worker(Arc::new(new))], events, routing: true }
}

/// What is different, for the event.
fn differences(old: &Worker, new: &Worker) -> Vec<String> {
    let mut texts = Vec::new();
    if old.name != new.name {
        texts.push(format!("name: {} became {}", old.name, new.name));
    }
    if old.description != new.description {
        texts.push(format!("description: {} became {}", quote(&old.description), quote(&new.description)));
    }
    if old.proxy_hosts != new.proxy_hosts {
        let without = |these: &[Pattern], those: &[Pattern]| -> Vec<Pattern> {
            let those: std::collections::HashSet<&Pattern> = those.iter().collect();
            these.iter().filter(|pattern| !those.contains(pattern)).cloned().collect()
        };
        let added = without(&new.proxy_hosts, &old.proxy_hosts);
        let removed = without(&old.proxy_hosts, &new.proxy_hosts);
        match (added.is_empty(), removed.is_empty()) {
            (true, true) => texts.push("proxy hosts: another order".into()),
            (false, true) => texts.push(format!("proxy hosts: added {}", listed(&added))),
            (true, false) => texts.push(format!("proxy hosts: removed {}", listed(&removed))),
            (false, false) => {
                texts.push(format!("proxy hosts: added {}, removed {}", listed(&added), listed(&removed)));
            }
        }
    }
    if old.may_open != new.may_open {
        let may = if new.may_open { "may" } else { "may not" };
        texts.push(format!("its nodes {may} open streams to other workers' proxy hosts"));
    }
    if old.key != new.key {
        texts.push("another key".into());
    }
    texts
}

/// The first few patterns, and how many more.
pub(super) fn listed(patterns: &[Pattern]) -> String {
    const SHOWN: usize = 20;
    if patterns.is_empty() {
        return "no proxy host of its own".into();
    }
    let mut shown: Vec<String> = patterns.iter().take(SHOWN).map(ToString::to_string).collect();
    if patterns.len() > SHOWN {
        shown.push(format!("and {} more", patterns.len() - SHOWN));
    }
    shown.join(" ")
}
