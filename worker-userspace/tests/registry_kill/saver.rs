//! The process that saves until it is killed. After each answer it says a line; a line that was said was answered.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use dworker::appliance::admin::{
    Admin, AdminError, EditWorker, HostList, NewCloud, NewWorker, NodeSeen, Ref, SystemResolver,
};
use dworker::appliance::audit::{Actor, Audit, EventKind, Limits};
use dworker::appliance::roster::Roster;
use dworker::appliance::store::sqlite::Sqlite;
use dworker::drain::Drain;

/// Proxy hosts of a worker that is edited: enough that a save is many rows.
pub(crate) const HOSTS: usize = 40;
/// What the names of those workers begin with.
pub(crate) const EDITED: &str = "edited-";
/// How many there are.
const EDITORS: usize = 3;
const VARIABLE: &str = "DWORKER_TEST_SAVER";

/// What was answered.
pub(crate) enum Said {
    /// It begins.
    Ready,
    /// A worker was brought to a generation.
    Edited(String, u64),
    /// A worker was added and has a key with this hash.
    Added(String, String),
    /// A worker is about to be removed.
    Removing(String),
    /// And was.
    Removed(String),
    /// An event with this text was kept.
    Noted(String),
}

impl Said {
    fn say(&self) {
        match self {
            Said::Ready => println!("ready"),
            Said::Edited(worker, generation) => println!("edited {worker} {generation}"),
            Said::Added(worker, hash) => println!("added {worker} {hash}"),
            Said::Removing(worker) => println!("removing {worker}"),
            Said::Removed(worker) => println!("removed {worker}"),
            Said::Noted(text) => println!("noted {text}"),
        }
    }

    pub(crate) fn parse(line: &str) -> Said {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["ready"] => Said::Ready,
            ["edited", worker, generation] => Said::Edited(worker.into(), generation.parse().expect(line)),
            ["added", worker, hash] => Said::Added(worker.into(), hash.into()),
            ["removing", worker] => Said::Removing(worker.into()),
            ["removed", worker] => Said::Removed(worker.into()),
            ["noted", text] => Said::Noted(text.into()),
            _ => panic!("the process said {line:?}"),
        }
    }
}

/// Makes a command of this program one that saves.
pub(crate) fn want<'c>(command: &'c mut Command, directory: &Path) -> &'c mut Command {
    command.env(VARIABLE, directory)
}

/// The directory, where this process is to save.
pub(crate) fn is_wanted() -> Option<PathBuf> {
    env::var_os(VARIABLE).map(PathBuf::from)
}

/// The proxy hosts of a generation.
pub(crate) fn hosts(worker: &str, generation: u64) -> Vec<String> {
    (0..HOSTS).map(|i| format!("h{i}.g{generation}.{worker}.example")).collect()
}

/// Saves until it is killed.
pub(crate) fn save(directory: &Path) -> ExitCode {
    Said::Ready.say();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let store = Arc::new(Sqlite::open(directory).await.expect("a store"));
        let drain = Drain::new(Duration::from_secs(60));
        let limits = Limits { age: Duration::from_secs(86400), count: 1_000_000 };
        let audit = Audit::start(store.clone(), limits, &drain);
        let admin =
            Admin::start(store, audit.clone(), |_: Roster| {}, SystemResolver::default(), &drain).await;
        let admin = admin.expect("an administration");
        admin.sync_file_groups(&[]).await.expect("no groups");
        let mut tasks = tokio::task::JoinSet::new();
        for i in 0..EDITORS {
            tasks.spawn(edit(admin.clone(), format!("{EDITED}{i}")));
        }
        tasks.spawn(come_and_go(admin.clone()));
        tasks.spawn(note(admin, audit));
        let ended = tasks.join_next().await;
        eprintln!("a task ended: {ended:?}");
    });
    ExitCode::FAILURE
}

fn me() -> Actor {
    Actor::local("saver")
}

async fn edit(admin: Admin, name: String) {
    let worker = match admin.worker(&Ref::from(name.as_str())) {
        Ok(worker) => worker,
        Err(_) => {
            let new = NewWorker {
                name: name.clone(),
                description: "generation 0".into(),
                proxy_hosts: HostList::List(hosts(&name, 0)),
                enabled: true,
                may_open: false,
            };
            admin.add_worker(new, &me()).await.expect("a worker").0
        }
    };
    let first: u64 = worker.description.strip_prefix("generation ").expect("one").parse().expect("a number");
    for generation in first + 1.. {
        let edit = EditWorker {
            description: Some(format!("generation {generation}")),
            proxy_hosts: Some(HostList::List(hosts(&name, generation))),
            ..EditWorker::default()
        };
        admin.edit_worker(worker.id, edit, None, &me()).await.expect("an edit");
        Said::Edited(name.clone(), generation).say();
    }
}

/// Adds workers with a cloud, gives them other keys, and removes every other one.
async fn come_and_go(admin: Admin) {
    for n in 0_u64.. {
        let name = format!("w-{}-{n}", std::process::id());
        let new = NewWorker {
            name: name.clone(),
            proxy_hosts: HostList::Text(format!("a.{name}.example, b.{name}.example:443, *.{name}.example")),
            enabled: true,
            ..NewWorker::default()
        };
        let (worker, ..) = admin.add_worker(new, &me()).await.expect("a worker");
        let (worker, key, _) =
            admin.rotate_key(worker.id, Duration::from_secs(60), true, &me()).await.expect("a key");
        Said::Added(name.clone(), key.hash().to_string()).say();
        let cloud = NewCloud {
            name: name.clone(),
            kind: "nutanix".into(),
            api_url: format!("https://cloud.{name}.example:9440/"),
            worker: Some(Ref::Id(worker.id)),
        };
        let (cloud, _) = admin.add_cloud(cloud, &me()).await.expect("a cloud");
        if n % 2 == 0 {
            Said::Removing(name.clone()).say();
            match admin.remove_worker(worker.id, None, &me()).await {
                Err(AdminError::InUse { .. }) => {}
                other => panic!("a worker that a cloud needs: {other:?}"),
            }
            admin.remove_cloud(cloud.id, None, &me()).await.expect("a removal");
            admin.remove_worker(worker.id, None, &me()).await.expect("a removal");
            Said::Removed(name).say();
        }
    }
}

/// Notes nodes and events.
async fn note(admin: Admin, audit: Audit) {
    for n in 0_u64.. {
        let text = format!("note-{}-{n}-end", std::process::id());
        audit.record(me().did(EventKind::StreamOpened, "vc.example:443", &text));
        audit.flush().await;
        Said::Noted(text).say();
        let Ok(worker) = admin.worker(&Ref::Text(format!("{EDITED}0"))) else { continue };
        let host_name = format!("host-{}-{n}-end", std::process::id());
        let mut id = [0; 16];
        id[..8].copy_from_slice(&n.to_be_bytes());
        id[8..12].copy_from_slice(&std::process::id().to_be_bytes());
        let address = std::net::Ipv4Addr::LOCALHOST.into();
        admin.node_seen(
            worker.id,
            NodeSeen { id, host_name: host_name.clone(), software: "1".into(), address },
        );
        admin.keep_seen_now().await;
        if admin.nodes(worker.id).iter().any(|node| node.host_name == host_name) {
            // Its event came in the same transaction.
            Said::Noted(host_name).say();
        }
    }
}
