//! Workers of the configuration file: at each start the registry is made to say what the file says.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::error::AdminError;
use super::state::State;
use super::workers::{change, listed};
use super::{Admin, Plan, clouds};
use crate::appliance::audit::{Actor, EventKind};
use crate::appliance::records::{Cloud, Origin, Worker, now};
use crate::appliance::store::Change;
use crate::config::Group;

/// Who changes what the file says.
const ACTOR: &str = "configuration file";

impl Admin {
    /// Takes over `[[appliance.groups]]`: adds, changes and removes workers of the file, by name, and publishes the
    /// roster. Clouds of a worker that is gone are without a worker then.
    ///
    /// # Errors
    /// A group has the name, a pattern or the key of a worker that the registry manages, or the store.
    pub async fn sync_file_groups(&self, groups: &[Group]) -> Result<(), AdminError> {
        let groups = groups.to_vec();
        self.commit(move |state| plan(state, groups)).await.map(drop)
    }
}

fn plan(state: &State, groups: Vec<Group>) -> Result<Plan, AdminError> {
    let actor = Actor::local(ACTOR);
    let mut plan = Plan { changes: Vec::new(), events: Vec::new(), routing: true };
    let named: HashSet<String> = groups.iter().map(|group| group.name.clone()).collect();
    let kept: HashMap<&str, &Arc<Worker>> = state.workers.values().map(|w| (w.name.as_str(), w)).collect();
    for gone in state.workers.values().filter(|w| w.origin == Origin::File && !named.contains(&w.name)) {
        for cloud in state.clouds_of(gone.id) {
            let alone = Cloud { worker: None, ..Cloud::clone(cloud) };
            let freed = clouds::change(state, cloud, alone, &actor);
            plan.changes.extend(freed.changes);
            plan.events.extend(freed.events);
        }
        plan.changes.push(Change::RemoveWorker(gone.id));
        let text = "it stands in the configuration file no more";
        plan.events.push(actor.did(EventKind::WorkerRemoved, &gone.name, text));
    }
    for Group { name, key, proxy_hosts, may_open } in groups {
        match kept.get(name.as_str()) {
            Some(other) if other.origin == Origin::Registry => {
                return Err(AdminError::GroupNameTaken { name });
            }
            Some(old) => {
                let rotated = if key == old.key { old.rotated } else { Some(now()) };
                let new = Worker { key, proxy_hosts, may_open, rotated, ..Worker::clone(old) };
                let changed = change(old, new, &actor);
                plan.changes.extend(changed.changes);
                plan.events.extend(changed.events);
            }
            None => {
                let at = now();
                let text = format!("with {}", listed(&proxy_hosts));
                plan.events.push(actor.did(EventKind::WorkerAdded, &name, text));
                plan.changes.push(Change::Worker(Arc::new(Worker {
                    id: 0,
                    name,
                    description: String::new(),
                    proxy_hosts,
                    enabled: true,
                    may_open,
                    origin: Origin::File,
                    key,
                    previous_key: None,
                    created: at,
                    rotated: None,
                    changed: at,
                    changed_by: ACTOR.into(),
                    revision: 1,
                })));
            }
        }
    }
    Ok(plan)
}
