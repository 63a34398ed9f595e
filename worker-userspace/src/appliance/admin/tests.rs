//! The administration on a real store, with a publisher and a resolver of the tests' own.

mod files;
mod input;
mod keys;
mod nodes;
mod races;
mod rules;
mod spelling;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::appliance::audit::Limits;
use crate::appliance::records::{Cloud, Worker};
use crate::appliance::store::sqlite::Sqlite;
use crate::target::{Name, Pattern};

/// A resolver that knows some names, and that is silent about `silent.example`.
#[derive(Clone, Default)]
struct Names {
    known: Arc<Mutex<HashMap<String, Vec<IpAddr>>>>,
    /// What it was asked for.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Resolve for Names {
    fn addresses(&self, name: &Name) -> Pin<Box<dyn Future<Output = Vec<IpAddr>> + Send>> {
        self.asked.lock().unwrap().push(name.to_string());
        let found = self.known.lock().unwrap().get(name.as_str()).cloned();
        let silent = name.as_str() == "silent.example";
        Box::pin(async move { if silent { std::future::pending().await } else { found.unwrap_or_default() } })
    }
}

/// A registry in a directory of its own.
struct House {
    admin: Admin,
    audit: Audit,
    store: Arc<Sqlite>,
    /// What was published, in order.
    published: Arc<Mutex<Vec<Roster>>>,
    /// Who is connected: workers and their nodes.
    connected: Arc<Mutex<HashSet<(i64, Id)>>>,
    names: Names,
    drain: Drain,
    directory: TempDir,
}

/// What lives by the records of a house.
struct Live {
    published: Arc<Mutex<Vec<Roster>>>,
    connected: Arc<Mutex<HashSet<(i64, Id)>>>,
}

impl Publish for Live {
    fn publish(&self, roster: Roster) {
        self.published.lock().unwrap().push(roster);
    }

    fn connected(&self, worker: i64) -> Vec<Id> {
        let all = self.connected.lock().unwrap();
        all.iter().filter(|(of, _)| *of == worker).map(|(_, node)| *node).collect()
    }
}

const LIMITS: Limits = Limits { age: Duration::from_secs(90 * 24 * 3600), count: 1_000_000 };

impl House {
    async fn new() -> House {
        House::open(tempfile::tempdir().expect("a directory")).await
    }

    async fn open(directory: TempDir) -> House {
        let store = Arc::new(Sqlite::open(directory.path()).await.expect("a store"));
        let drain = Drain::new(Duration::from_secs(10));
        let audit = Audit::start(store.clone(), LIMITS, &drain);
        let (published, connected) = (Arc::default(), Arc::default());
        let names = Names::default();
        let live = Live { published: Arc::clone(&published), connected: Arc::clone(&connected) };
        let admin = Admin::start(store.clone(), audit.clone(), live, names.clone(), &drain).await;
        let admin = admin.expect("an administration");
        House { admin, audit, store, published, connected, names, drain, directory }
    }

    /// Stops in order and opens the same directory again.
    async fn reopen(self) -> House {
        assert_eq!(self.drain.finish().await, 0);
        self.store.close().await;
        House::open(self.directory).await
    }

    /// What is in force.
    fn roster(&self) -> Roster {
        let roster = self.published.lock().unwrap().last().cloned().expect("nothing was published");
        assert_eq!(roster, self.admin.roster());
        roster
    }

    async fn add(&self, name: &str, hosts: &str) -> Result<Arc<Worker>, AdminError> {
        self.admin.add_worker(worker(name, hosts), &me()).await.map(|(worker, _, _)| worker)
    }

    async fn add_cloud(
        &self,
        name: &str,
        url: &str,
        worker: Option<&str>,
    ) -> Result<(Arc<Cloud>, Vec<Warning>), AdminError> {
        self.admin.add_cloud(cloud(name, url, worker), &me()).await
    }

    /// What each group of the roster carries.
    fn carried(&self) -> Vec<(String, Vec<String>)> {
        let shown = |patterns: &[Pattern]| patterns.iter().map(ToString::to_string).collect();
        let groups = self.roster().groups.into_iter();
        groups.map(|group| (group.name, shown(&group.proxy_hosts))).collect()
    }

    async fn events(&self) -> Vec<String> {
        self.audit.flush().await;
        let events = self.admin.events(&EventQuery::default()).await.expect("events");
        events.iter().rev().map(|e| format!("{} {}: {}", e.kind, e.subject, e.text)).collect()
    }
}

fn me() -> Actor {
    Actor::at("admin", "192.0.2.7".parse().expect("an address"))
}

fn worker(name: &str, hosts: &str) -> NewWorker {
    NewWorker { name: name.into(), proxy_hosts: hosts.into(), enabled: true, ..NewWorker::default() }
}

fn cloud(name: &str, url: &str, worker: Option<&str>) -> NewCloud {
    NewCloud { name: name.into(), kind: "vmware".into(), api_url: url.into(), worker: worker.map(Ref::from) }
}
