//! `kill -9` in the middle of saves: what was answered is there, nothing is there by halves, the file is sound.
//!
//! A process saves as fast as it can, in several ways at once, and says what was answered. It is killed, the store
//! is opened again, and all of it is compared. It is no `libtest` test because the same program is also the process
//! that is killed ([`saver`]).

#[path = "../alone/mod.rs"]
mod alone;
mod saver;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use dworker::appliance::admin::{Admin, CloudFilter, Page, Ref, SystemResolver, WorkerFilter};
use dworker::appliance::audit::{Audit, EventKind, EventQuery, Limits};
use dworker::appliance::roster::Roster;
use dworker::appliance::store::Store;
use dworker::appliance::store::sqlite::Sqlite;
use dworker::drain::Drain;
use saver::{EDITED, Said};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

/// How often the process is killed in the middle of saves.
const KILLS: u64 = 50;
/// How often it is killed while it makes a new file.
const KILLS_AT_FIRST: u64 = 10;

const TESTS: &[(&str, fn())] = &[
    ("what_was_answered_survives_kills_and_nothing_is_there_by_halves", saves),
    ("a_kill_while_the_file_is_made_leaves_one_that_can_be_opened", first_starts),
];

fn main() -> ExitCode {
    if let Some(directory) = saver::is_wanted() {
        return saver::save(&directory);
    }
    alone::run(TESTS, || {})
}

/// All that any process was answered.
#[derive(Debug, Default)]
struct Answered {
    /// The newest generation of each worker that is edited all the time.
    generations: BTreeMap<String, u64>,
    /// Workers that were added, with their key's hash.
    added: BTreeMap<String, String>,
    /// Those of them that were to be removed.
    removing: BTreeSet<String>,
    /// Those that were removed.
    removed: BTreeSet<String>,
    /// Nodes and recorded events.
    noted: BTreeSet<String>,
    /// All answers.
    count: u64,
}

impl Answered {
    fn hear(&mut self, line: &str) {
        match Said::parse(line) {
            Said::Ready => return,
            Said::Edited(worker, generation) => {
                let newest = self.generations.entry(worker).or_default();
                *newest = generation.max(*newest);
            }
            Said::Added(worker, hash) => drop(self.added.insert(worker, hash)),
            Said::Removing(worker) => drop(self.removing.insert(worker)),
            Said::Removed(worker) => drop(self.removed.insert(worker)),
            Said::Noted(text) => drop(self.noted.insert(text)),
        }
        self.count += 1;
    }
}

/// Starts the process, kills it `later` than it has said `lines` lines, and hears all that it said.
fn kill_after(directory: &Path, lines: u64, later: Duration, answered: &mut Answered) {
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    let mut process = saver::want(&mut command, directory).stdout(Stdio::piped()).spawn().expect("a process");
    let said = BufReader::new(process.stdout.take().expect("its output"));
    let mut heard = 0;
    for line in said.lines() {
        answered.hear(&line.expect("a line"));
        heard += 1;
        if heard == lines {
            // An answer always comes at the same place of a save; the kill must come at each.
            std::thread::sleep(later);
            process.kill().expect("it runs");
        }
    }
    let status = process.wait().expect("its end");
    assert!(heard >= lines, "it ended by itself after {heard} lines: {status}");
}

fn saves() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut answered = Answered::default();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for round in 0..KILLS {
        let before = answered.count;
        // From the first answer to some dozens, in a scattered order.
        let later = Duration::from_micros(round * 7919 % 8000);
        kill_after(directory.path(), 2 + round * 17 % 60, later, &mut answered);
        assert!(answered.count > before, "round {round}: nothing was answered");
        runtime.block_on(compare(directory.path(), &answered));
    }
    let (edits, added) = (answered.generations.values().sum::<u64>(), answered.added.len());
    println!("{KILLS} kills, {} answers: {edits} edits, {added} workers", answered.count);
    assert!(edits > KILLS && added as u64 > KILLS && answered.removed.len() > 1 && answered.noted.len() > 1);
}

fn first_starts() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for round in 0..KILLS_AT_FIRST {
        let directory = tempfile::tempdir().expect("a directory");
        // The first line is said before the file is made.
        let mut answered = Answered::default();
        kill_after(directory.path(), 1, Duration::from_millis(2 * round), &mut answered);
        runtime.block_on(compare(directory.path(), &answered));
    }
}

/// Opens the store and compares it with what was answered.
async fn compare(directory: &Path, answered: &Answered) {
    let store = Arc::new(Sqlite::open(directory).await.expect("a sound store"));
    let drain = Drain::new(Duration::from_secs(60));
    let limits = Limits { age: Duration::from_secs(86400), count: 1_000_000 };
    let audit = Audit::start(store.clone(), limits, &drain);
    let admin = Admin::start(store.clone(), audit, |_: Roster| {}, SystemResolver::default(), &drain).await;
    let admin = admin.expect("records that make sense");
    // As at each start.
    admin.sync_file_groups(&[]).await.expect("no two carry the same");
    for (name, generation) in &answered.generations {
        whole(&admin, name, *generation).await;
    }
    for (name, hash) in &answered.added {
        let kept = admin.worker(&Ref::from(name.as_str()));
        match (answered.removing.contains(name), answered.removed.contains(name)) {
            (_, true) => assert!(kept.is_err(), "{name} was removed"),
            (true, false) if kept.is_err() => {}
            (_, false) => assert_eq!(kept.expect(name).key.to_string(), *hash, "{name}"),
        }
    }
    // A worker and its cloud come and go one after the other: of what was added there is no trace by halves.
    for cloud in admin.clouds(&CloudFilter::default(), Page::ALL).items {
        assert!(cloud.worker.is_some_and(|id| admin.worker(&Ref::Id(id)).is_ok()), "{cloud:?}");
    }
    for worker in admin.workers(&WorkerFilter::default(), Page::ALL).items {
        let hosts = if worker.name.starts_with(EDITED) { saver::HOSTS } else { 3 };
        assert_eq!(worker.proxy_hosts.len(), hosts, "{}", worker.name);
    }
    for text in &answered.noted {
        let kinds = vec![EventKind::StreamOpened, EventKind::NodeAdded];
        let query = EventQuery { kinds, text: Some(text.clone()), ..EventQuery::default() };
        let found = admin.events(&query).await.expect("events");
        assert_eq!(found.len(), 1, "{text}: {found:?}");
    }
    assert_eq!(drain.finish().await, 0);
    store.close().await;
    sound(directory).await;
}

/// A worker that was edited is of one generation, at least the answered one, and each edit has its event.
async fn whole(admin: &Admin, name: &str, answered: u64) {
    let worker = admin.worker(&Ref::from(name)).expect(name);
    let generation: u64 = worker.description.strip_prefix("generation ").expect(name).parse().expect(name);
    assert!(generation >= answered, "{name}: {generation} is there, {answered} was answered");
    let hosts: Vec<String> = worker.proxy_hosts.iter().map(ToString::to_string).collect();
    assert_eq!(hosts, saver::hosts(name, generation), "{name}: a save by halves");
    let query = EventQuery {
        kinds: vec![EventKind::WorkerChanged],
        subject: Some(name.to_owned()),
        limit: EventQuery::MOST,
        ..EventQuery::default()
    };
    let events = admin.events(&query).await.expect("events");
    let changes = (worker.revision as usize - 1).min(EventQuery::MOST as usize);
    assert_eq!(events.len(), changes, "{name}: a change without its event, or an event without its change");
}

/// What SQLite itself says of the file.
async fn sound(directory: &Path) {
    let file = SqliteConnectOptions::new().filename(directory.join("registry.db"));
    let mut connection = file.connect().await.expect("the file");
    let said: Vec<String> =
        sqlx::query_scalar("PRAGMA integrity_check").fetch_all(&mut connection).await.expect("a check");
    assert_eq!(said, ["ok"]);
    let broken = sqlx::query("PRAGMA foreign_key_check").fetch_all(&mut connection).await.expect("a check");
    assert_eq!(broken.len(), 0, "rows point to nothing");
    connection.close().await.expect("closed");
}
