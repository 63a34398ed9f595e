//! The one place for every change of the registry: used by the API, the page, the command line and the start.
//!
//! What must hold: a change is judged as a whole, then saved, then in force, then answered; one at a time, whoever
//! asks. Who goes away before the save takes it back; once the save has begun it goes to its end, even where nobody
//! waits for the answer any more. What was answered with an error did not happen; a saved change has its event.
//!
//! | file | concern |
//! |---|---|
//! | `admin.rs` | questions, and the way of every change |
//! | `admin/state.rs` | all records in memory; what two workers may not both have; the roster |
//! | `admin/input.rs` | what people write into a form |
//! | `admin/error.rs` | why a change is refused, what is odd about it |
//! | `admin/workers.rs`, `clouds.rs`, `nodes.rs`, `files.rs` | the changes |
//! | `admin/spelling.rs` | a name here and an address there |

mod clouds;
mod error;
mod files;
mod input;
mod nodes;
mod spelling;
mod state;
#[cfg(test)]
mod tests;
mod workers;

pub use clouds::{CloudFilter, EditCloud, NewCloud};
pub use error::{AdminError, Holder, Problem, Taken, Warning};
pub use input::HostList;
pub use nodes::NodeSeen;
pub use spelling::{Resolve, SystemResolver};
pub use workers::{EditWorker, NewWorker, WorkerFilter};

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::{OwnedMutexGuard, broadcast};
use utoipa::ToSchema;

use super::audit::{Actor, Audit, Event, EventKind, EventQuery, NewEvent, clean, stamp};
use super::records::now;
use super::roster::Roster;
use super::store::{Change, Store, StoreError};
use crate::config::{KeyHash, is_number, quote};
use crate::drain::Drain;
use crate::tunnel::message::Id;
use crate::web::layers::no_return;
use state::State;

/// What lives by the records. It is told after each save what counts now, in the order of the saves, and must not wait.
pub trait Publish: Send + Sync + 'static {
    /// This is the roster now.
    fn publish(&self, roster: Roster);

    /// This is the admin token now; mostly it is the one that it was.
    fn admit(&self, token: Option<KeyHash>) {
        let _ = token;
    }

    /// The nodes of a worker that are connected now.
    fn connected(&self, worker: i64) -> Vec<Id> {
        let _ = worker;
        Vec::new()
    }
}

impl<F: Fn(Roster) + Send + Sync + 'static> Publish for F {
    fn publish(&self, roster: Roster) {
        self(roster);
    }
}

/// Judges a roster before it is saved. It must not wait.
pub trait Check: Send + Sync + 'static {
    /// Whether `roster` can be put into force.
    ///
    /// # Errors
    /// Why not: each line names the thing, the value and the remedy.
    fn check(&self, roster: &Roster) -> Result<(), Vec<String>>;
}

/// Which worker or cloud.
///
/// Numbers come first, so that no name that somebody gives changes what a path means. Names of digits alone are not
/// given any more; who has one is found by it where nobody has that number, and by its own number always.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(untagged, expecting = "write a number or a name")]
pub enum Ref {
    /// By its number.
    Id(i64),
    /// By its number or its name, as people write it.
    Text(String),
}

impl Ref {
    /// The one of `records` that is meant.
    fn find<'r, T>(
        &self,
        records: &'r BTreeMap<i64, Arc<T>>,
        name: impl Fn(&T) -> &str,
    ) -> Option<&'r Arc<T>> {
        let text = match self {
            Ref::Id(id) => return records.get(id),
            Ref::Text(text) => text,
        };
        let id = if is_number(text) { text.parse().ok() } else { None };
        let numbered = id.and_then(|id: i64| records.get(&id));
        numbered.or_else(|| records.values().find(|record| name(record) == text))
    }
}

impl fmt::Display for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ref::Id(id) => write!(f, "{id}"),
            Ref::Text(text) => f.write_str(&quote(text)),
        }
    }
}

impl From<i64> for Ref {
    fn from(id: i64) -> Ref {
        Ref::Id(id)
    }
}

impl From<&str> for Ref {
    fn from(text: &str) -> Ref {
        Ref::Text(text.to_owned())
    }
}

/// Which part of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// How many come before it.
    pub offset: usize,
    /// At most so many.
    pub limit: usize,
}

impl Page {
    /// The whole list.
    pub const ALL: Page = Page { offset: 0, limit: usize::MAX };
}

/// A part of a list.
#[derive(Debug, Clone)]
pub struct Listed<T> {
    /// The items of the page.
    pub items: Vec<Arc<T>>,
    /// How many there are on all pages.
    pub total: usize,
}

impl<T> Listed<T> {
    fn of(items: Vec<Arc<T>>, page: Page) -> Listed<T> {
        let total = items.len();
        Listed { items: items.into_iter().skip(page.offset).take(page.limit).collect(), total }
    }
}

/// The registry's administration. Clones are the same.
#[derive(Clone)]
pub struct Admin {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    audit: Audit,
    publish: Box<dyn Publish>,
    resolve: Box<dyn Resolve>,
    checks: Mutex<Vec<Box<dyn Check>>>,
    state: RwLock<Arc<State>>,
    /// One change at a time.
    writing: Arc<tokio::sync::Mutex<()>>,
    /// Held while nothing may be saved, because another process may take over.
    standing: Mutex<Option<OwnedMutexGuard<()>>>,
    /// Another process saves now.
    handed_over: AtomicBool,
    /// A save failed, so nobody knows whether it happened.
    doubtful: AtomicBool,
    seen: nodes::SeenQueue,
}

/// A change that was judged by itself, before it is judged with all the others.
struct Plan {
    changes: Vec<Change>,
    events: Vec<NewEvent>,
    /// False where routing is not concerned: nothing is judged or published. True publishes in any case.
    routing: bool,
}

/// A change that is in force.
struct Done {
    state: Arc<State>,
    /// The ids of the changed records.
    ids: Vec<i64>,
}

impl Admin {
    /// Loads the records. Nothing is published before [`Admin::sync_file_groups`], which belongs to every start.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn start(
        store: Arc<dyn Store>,
        audit: Audit,
        publish: impl Publish,
        resolve: impl Resolve,
        drain: &Drain,
    ) -> Result<Admin, StoreError> {
        let state = State::from(store.load().await?);
        let inner = Arc::new(Inner {
            store,
            audit,
            publish: Box::new(publish),
            resolve: Box::new(resolve),
            checks: Mutex::default(),
            state: RwLock::new(Arc::new(state)),
            writing: Arc::default(),
            standing: Mutex::default(),
            handed_over: AtomicBool::new(false),
            doubtful: AtomicBool::new(false),
            seen: nodes::SeenQueue::default(),
        });
        let admin = Admin { inner };
        drain.spawn("registry", admin.clone().keep_seen(drain.clone()));
        Ok(admin)
    }

    /// From now on `check` judges each roster before it is saved.
    pub fn add_check(&self, check: impl Check) {
        self.inner.checks.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(check));
    }

    /// Saves nothing from when this returns: who wants to change something waits, until [`resume`](Self::resume) or
    /// [`hand_over`](Self::hand_over).
    pub async fn pause(&self) {
        let held = self.inner.writing.clone().lock_owned().await;
        *self.standing() = Some(held);
    }

    /// Goes on after [`pause`](Self::pause). The store is read again first: another process may have written to it.
    pub fn resume(&self) {
        self.inner.doubtful.store(true, Ordering::Relaxed);
        drop(self.standing().take());
    }

    /// Saves nothing any more: another process does. Who waits is told so.
    pub fn hand_over(&self) {
        self.inner.handed_over.store(true, Ordering::Relaxed);
        drop(self.standing().take());
    }

    fn standing(&self) -> MutexGuard<'_, Option<OwnedMutexGuard<()>>> {
        self.inner.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The roster of this moment.
    pub fn roster(&self) -> Roster {
        self.state().roster(Timestamp::now())
    }

    /// A page of events, newest first.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn events(&self, query: &EventQuery) -> Result<Vec<Event>, AdminError> {
        Ok(self.inner.store.events(query).await?)
    }

    /// New events as they are kept.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.inner.audit.subscribe()
    }

    /// SHA-256 of the admin token, where one was made.
    pub fn admin_token(&self) -> Option<KeyHash> {
        self.state().admin_token
    }

    /// Replaces the admin token. Once it is saved, the one before opens nothing, whoever waits for the answer.
    ///
    /// # Errors
    /// The store.
    pub async fn set_admin_token(&self, hash: KeyHash, actor: &Actor) -> Result<(), AdminError> {
        let event = actor.did(EventKind::TokenChanged, "admin", "the admin token was made anew");
        let plan = move |_: &State| {
            Ok(Plan { changes: vec![Change::AdminToken(hash)], events: vec![event], routing: false })
        };
        self.commit(plan).await.map(drop)
    }

    fn state(&self) -> Arc<State> {
        self.inner.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes a change. Until it is saved a caller that goes away takes it back; from then on it is made to its end.
    async fn commit<F>(&self, plan: F) -> Result<Done, AdminError>
    where
        F: FnOnce(&State) -> Result<Plan, AdminError>,
    {
        let inner = &self.inner;
        let one = inner.writing.clone().lock_owned().await;
        if inner.handed_over.load(Ordering::Relaxed) {
            return Err(AdminError::Stopping);
        }
        if inner.doubtful.load(Ordering::Relaxed) {
            self.reload().await?;
        }
        let before = self.state();
        let plan = plan(&before)?;
        if plan.changes.is_empty() && plan.events.is_empty() {
            if plan.routing {
                self.put(before.clone(), true);
            }
            return Ok(Done { state: before, ids: Vec::new() });
        }
        if plan.routing {
            let mut trial = State::clone(&before);
            let focus = trial.apply(&plan.changes, &State::trial_ids(&plan.changes));
            // What is removed, and a change of nodes, adds no pattern that could be refused.
            if !focus.is_empty() {
                trial.judge(&focus)?;
                self.check(&trial)?;
            }
        }
        no_return();
        let admin = self.clone();
        let save = async move {
            let _one = one;
            admin.save(&before, plan).await
        };
        match tokio::spawn(save).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(AdminError::Stopping),
        }
    }

    /// Saves what was judged, and puts it into force.
    async fn save(&self, before: &State, plan: Plan) -> Result<Done, AdminError> {
        let inner = &self.inner;
        let Plan { changes, events, routing } = plan;
        let events = events.into_iter().map(|event| clean(stamp(event))).collect();
        let saved = match inner.store.save(&changes, events).await {
            Ok(saved) => saved,
            Err(error) => {
                // It may have happened all the same, so the store is asked before anything else is judged.
                inner.doubtful.store(true, Ordering::Relaxed);
                if let Err(again) = self.reload().await {
                    tracing::error!("the registry can't be read: {again}");
                }
                return Err(error.into());
            }
        };
        let mut state = State::clone(before);
        state.apply(&changes, &saved.ids);
        let state = Arc::new(state);
        self.put(state.clone(), routing);
        inner.audit.publish(saved.events);
        Ok(Done { state, ids: saved.ids })
    }

    fn check(&self, trial: &State) -> Result<(), AdminError> {
        let checks = self.inner.checks.lock().unwrap_or_else(PoisonError::into_inner);
        if checks.is_empty() {
            return Ok(());
        }
        let roster = trial.roster(Timestamp::now());
        let said = checks.iter().filter_map(|check| check.check(&roster).err()).flatten();
        let said: Vec<String> = said.collect();
        if said.is_empty() { Ok(()) } else { Err(AdminError::Refused(said)) }
    }

    /// What the store has is what counts.
    async fn reload(&self) -> Result<(), StoreError> {
        let state = State::from(self.inner.store.load().await?);
        self.inner.doubtful.store(false, Ordering::Relaxed);
        self.put(Arc::new(state), true);
        Ok(())
    }

    fn put(&self, state: Arc<State>, routing: bool) {
        *self.inner.state.write().unwrap_or_else(PoisonError::into_inner) = state.clone();
        self.inner.publish.admit(state.admin_token);
        if routing {
            self.inner.publish.publish(state.roster(now()));
        }
    }

    /// Records a save that was refused.
    fn told<T>(&self, actor: &Actor, subject: &str, result: Result<T, AdminError>) -> Result<T, AdminError> {
        result.inspect_err(|error| {
            // An event is one line.
            let text = error.to_string().replace('\n', "; ");
            self.inner.audit.record(actor.did(EventKind::SaveRefused, subject, text));
        })
    }
}

/// Refuses a new name that would be taken for a number.
fn no_number(name: &str, example: &str) -> Result<(), AdminError> {
    if !is_number(name) {
        return Ok(());
    }
    let problem = "digits alone are taken for a number, which may be another's";
    Err(AdminError::invalid(Problem::new(
        "name",
        name,
        problem,
        format!("write it as in \"{example}{name}\""),
    )))
}

/// Refuses a change that is based on another revision than the current one.
fn based_on(
    revision: Option<i64>,
    (current, by, at): (i64, &str, Timestamp),
    what: impl Fn() -> String,
) -> Result<(), AdminError> {
    match revision {
        Some(expected) if expected != current => {
            Err(AdminError::Conflict { what: what(), expected, revision: current, by: by.to_owned(), at })
        }
        _ => Ok(()),
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("store", &self.inner.store).finish_non_exhaustive()
    }
}
