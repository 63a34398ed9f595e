//! The file itself: who may read it, which files are refused, and that a refusal changes nothing.

use std::os::unix::fs::MetadataExt;

use tempfile::TempDir;

use super::*;
use crate::appliance::audit::EventKind;
use crate::appliance::records::{Cloud, CloudType, Node, Origin, Worker, now};
use crate::config::{ApiUrl, Key};

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

async fn open(directory: &TempDir) -> Sqlite {
    Sqlite::open(directory.path()).await.expect("a store")
}

/// Makes a registry and runs SQL on it, as somebody with `sqlite3` might.
async fn edited(sql: &'static str) -> TempDir {
    let directory = directory();
    let store = open(&directory).await;
    store.save(&[Change::Worker(worker().into())], vec![event("one")]).await.expect("a save");
    raw_sql(sql).execute(&store.writer).await.expect(sql);
    store.close().await;
    directory
}

fn worker() -> Worker {
    let at = now();
    Worker {
        id: 0,
        name: "site-a".into(),
        description: String::new(),
        proxy_hosts: vec![
            "vc.example:443".parse().expect("a pattern"),
            "10.0.0.0/8".parse().expect("a pattern"),
        ],
        enabled: true,
        may_open: false,
        origin: Origin::Registry,
        key: Key::generate().expect("randomness").hash(),
        previous_key: Some((Key::generate().expect("randomness").hash(), at)),
        created: at,
        rotated: Some(at),
        changed: at,
        changed_by: "admin".into(),
        revision: 1,
    }
}

fn event(text: &str) -> Event {
    let (actor, subject) = ("admin".to_owned(), "site-a".to_owned());
    let source = Some("2001:db8::1".parse().expect("an address"));
    Event { id: 0, time: now(), kind: EventKind::WorkerAdded, actor, subject, text: text.into(), source }
}

async fn refused(directory: &TempDir) -> String {
    let file = directory.path().join(FILE);
    let before = fs::read(&file).expect("the file");
    let error = Sqlite::open(directory.path()).await.expect_err("it was opened").to_string();
    assert_eq!(fs::read(&file).expect("the file"), before, "the file was changed: {error}");
    error.replace(&directory.path().display().to_string(), "DIR")
}

#[tokio::test]
async fn all_records_come_back_as_they_were() {
    let directory = directory();
    let store = open(&directory).await;
    let at = now();
    let saved = store.save(&[Change::Worker(worker().into())], Vec::new()).await.expect("a worker");
    let mut kept = Worker { id: saved.ids[0], ..store.load().await.expect("all").workers.remove(0) };
    let node = Node {
        worker: kept.id,
        id: [7; 16],
        host_name: "host".into(),
        software: "1.0".into(),
        address: "192.0.2.1".parse().expect("an address"),
        priority: Some(-1),
        first_seen: at,
        last_seen: at,
    };
    let cloud = Cloud {
        id: 0,
        name: "A'; DROP TABLE clouds; --".into(),
        kind: CloudType::VmwareCloudAws,
        api_url: ApiUrl::parse("https://VC.example/sdk").expect("a URL"),
        worker: Some(kept.id),
        created: at,
        changed: at,
        changed_by: "\u{1f600} \u{202e}".into(),
        revision: 1,
    };
    kept.revision = 2;
    kept.proxy_hosts.reverse();
    kept.previous_key = None;
    let token = Key::generate().expect("randomness").hash();
    let changes = [
        Change::Worker(kept.clone().into()),
        Change::Node(node.clone().into()),
        Change::Cloud(cloud.clone().into()),
        Change::AdminToken(token),
    ];
    let saved = store.save(&changes, vec![event("one"), event("two")]).await.expect("a save");
    store.close().await;
    let all = open(&directory).await.load().await.expect("all");
    assert_eq!(all.workers, [kept]);
    assert_eq!(all.nodes, [node]);
    assert_eq!(all.clouds, [Cloud { id: saved.ids[2], ..cloud }]);
    assert_eq!(all.admin_token, Some(token));
}

#[tokio::test]
async fn a_save_is_whole_or_not_there() {
    let directory = directory();
    let store = open(&directory).await;
    let first = store.save(&[Change::Worker(worker().into())], Vec::new()).await.expect("a worker").ids[0];
    let other = Worker { name: "site-b".into(), ..worker() };
    let stale = Worker { id: first, revision: 7, ..worker() };
    let changes = [Change::Worker(other.into()), Change::Worker(stale.into())];
    let error = store.save(&changes, vec![event("lost")]).await.expect_err("a stale change");
    assert!(matches!(error, StoreError::Raced { .. }), "{error}");
    let all = store.load().await.expect("all");
    assert_eq!(all.workers.len(), 1);
    assert_eq!(all.workers[0].revision, 1);
    assert_eq!(store.events(&EventQuery::default()).await.expect("events"), []);
    // A number is never given twice.
    store.save(&[Change::RemoveWorker(first)], Vec::new()).await.expect("a removal");
    let again = store.save(&[Change::Worker(worker().into())], Vec::new()).await.expect("a worker").ids[0];
    assert!(again > first, "{again}");
    assert!(matches!(
        store.save(&[Change::RemoveWorker(first)], Vec::new()).await,
        Err(StoreError::Raced { .. })
    ));
}

#[tokio::test]
async fn only_the_owner_may_read_it_and_each_save_is_on_disk() {
    let directory = directory();
    let file = directory.path().join(FILE);
    fs::write(&file, "").expect("a file");
    fs::set_permissions(&file, Permissions::from_mode(0o664)).expect("a mode");
    let store = open(&directory).await;
    store.save(&[], vec![event("one")]).await.expect("a save");
    let mode = |name: &str| fs::metadata(directory.path().join(name)).expect(name).mode() & 0o777;
    assert_eq!([mode("registry.db"), mode("registry.db-wal"), mode("registry.db-shm")], [0o600; 3]);
    let pragma = async |sql: &'static str| -> String {
        let row = sqlx::query(sql).fetch_one(&store.writer).await.expect(sql);
        use sqlx::Row;
        row.try_get::<String, _>(0).unwrap_or_else(|_| row.get::<i64, _>(0).to_string())
    };
    assert_eq!(pragma("PRAGMA journal_mode").await, "wal");
    assert_eq!(pragma("PRAGMA synchronous").await, "2", "FULL");
    assert_eq!(pragma("PRAGMA foreign_keys").await, "1");
    assert_eq!(pragma("PRAGMA busy_timeout").await, "3000");
}

#[tokio::test]
async fn what_a_newer_version_made_is_refused() {
    let directory = edited("PRAGMA user_version = 3").await;
    assert_eq!(
        refused(&directory).await,
        "DIR/registry.db: made by a newer dworker: its schema is 3, and this dworker knows schemas up to 2: install the \
         newer version again, or put back the file of a backup; nothing was changed"
    );
}

#[tokio::test]
async fn other_files_are_refused() {
    let directory = directory();
    let file = directory.path().join(FILE);
    fs::write(&file, b"[appliance]\nlisten = 1\n".repeat(100)).expect("a file");
    let error = refused(&directory).await;
    assert!(
        error.starts_with("DIR/registry.db: not a dworker registry: file is not a database: move"),
        "{error}"
    );
    for sql in ["PRAGMA application_id = 1", "PRAGMA application_id = 0; PRAGMA user_version = 0"] {
        let directory = edited(sql).await;
        let error = refused(&directory).await;
        assert!(error.contains("an SQLite database of another program"), "{sql}: {error}");
    }
}

#[tokio::test]
async fn a_damaged_file_is_refused() {
    let directory = edited("PRAGMA wal_checkpoint(TRUNCATE)").await;
    let file = directory.path().join(FILE);
    let whole = fs::read(&file).expect("the file");
    // Page 1 with the schema stays; what it points to is gone or garbage.
    fs::write(&file, &whole[..8192]).expect("a file");
    let error = refused(&directory).await;
    assert!(error.starts_with("DIR/registry.db: the registry is damaged: "), "{error}");
    let mut garbage = whole.clone();
    garbage[4096..].fill(0xa5);
    fs::write(&file, &garbage).expect("a file");
    let error = refused(&directory).await;
    assert!(error.starts_with("DIR/registry.db: the registry is damaged: "), "{error}");
    // And with the right bytes it is what it was.
    fs::write(&file, &whole).expect("a file");
    assert_eq!(open(&directory).await.load().await.expect("all").workers.len(), 1);
}

#[tokio::test]
async fn what_makes_no_sense_is_named() {
    for (sql, says) in [
        ("UPDATE proxy_hosts SET pattern = 'a b' WHERE position = 0", "proxy_hosts of worker 1: pattern: "),
        ("UPDATE workers SET key_sha256 = 'x'", "worker 1: key_sha256: "),
        ("UPDATE workers SET origin = 'x'", "worker 1: origin: "),
        ("UPDATE workers SET created = 'x'", "worker 1: created: "),
        ("INSERT INTO clouds VALUES (5, 'c', 'aws', 'u', NULL, 1, 1, 'a', 1)", "cloud 5: type: "),
        (
            "INSERT INTO clouds VALUES (5, 'c', 'vmware', 'u', NULL, 1, 1, 'a', 1)",
            "cloud 5: api_url: not a URL",
        ),
    ] {
        let directory = edited(sql).await;
        let error = open(&directory).await.load().await.expect_err(sql).to_string();
        assert!(error.contains(&format!("the registry is damaged: {says}")), "{sql}: {error}");
    }
}

#[tokio::test]
async fn events_are_found_by_each_filter() {
    let directory = directory();
    let store = open(&directory).await;
    let at = |seconds: i64| Timestamp::from_second(seconds).expect("a time");
    let made = [
        (1, EventKind::WorkerAdded, "site-a", "100% of it"),
        (2, EventKind::NodeAdded, "site-a/host", "x_y"),
        (3, EventKind::NodeAdded, "site-a-2/host", "a\\b"),
        (4, EventKind::CloudAdded, "site-a0", "SELECT 'x'"),
    ];
    let events = made.map(|(time, kind, subject, text)| {
        let (actor, subject, text) = ("admin".into(), subject.into(), text.into());
        let source = (time == 3).then(|| [192, 0, 2, 77].into());
        Event { id: 0, time: at(time), kind, actor, subject, text, source }
    });
    store.save(&[], events.into()).await.expect("a save");
    let all = EventQuery::default();
    let kept = store.events(&all).await.expect("events");
    let subject = |subject: &str| EventQuery { subject: Some(subject.into()), ..all.clone() };
    let text = |text: &str| EventQuery { text: Some(text.into()), ..all.clone() };
    for (query, times) in [
        (all.clone(), &[4, 3, 2, 1][..]),
        (EventQuery { limit: 2, ..all.clone() }, &[4, 3]),
        (EventQuery { before: Some(3), ..all.clone() }, &[2, 1]),
        (EventQuery { kinds: vec![EventKind::NodeAdded, EventKind::CloudAdded], ..all.clone() }, &[4, 3, 2]),
        (EventQuery { since: Some(at(2)), until: Some(at(4)), ..all.clone() }, &[3, 2]),
        (subject("site-a"), &[2, 1]),
        (subject("site-a/host"), &[2]),
        (subject("' OR 1 = 1 --"), &[]),
        (text("ADMIN"), &[4, 3, 2, 1]),
        (text("%"), &[1]),
        (text("x_y"), &[2]),
        (text("_"), &[2]),
        (text("\\"), &[3]),
        (text("'x'"), &[4]),
        (text("site-a/"), &[2]),
        (text("192.0.2.77"), &[3]),
    ] {
        let found = store.events(&query).await.expect("events");
        let found: Vec<i64> = found.iter().map(|event| event.time.as_second()).collect();
        assert_eq!(found, times, "{query:?}");
        if query.before.is_none() && query.limit == all.limit {
            let meant = kept.iter().filter(|event| query.means(event));
            let meant: Vec<i64> = meant.map(|event| event.time.as_second()).collect();
            assert_eq!(meant, times, "who follows what happens judges as the store does: {query:?}");
        }
    }
}

/// Prunes by number until nothing is left to do.
async fn prune_to(store: &Sqlite, keep: u64, step: u32) {
    while store.prune(Timestamp::UNIX_EPOCH, keep, step).await.expect("a step") > 0 {}
}

/// How many events of a kind there are, and the text of the oldest.
async fn of_kind(store: &Sqlite, kind: EventKind) -> (usize, String) {
    let query = EventQuery { kinds: vec![kind], limit: 1000, ..EventQuery::default() };
    let events = store.events(&query).await.expect("events");
    (events.len(), events.last().map(|event| event.text.clone()).unwrap_or_default())
}

/// So many events of a kind, with their numbers as texts.
fn many(kind: EventKind, count: usize) -> Vec<Event> {
    (0..count).map(|n| Event { kind, ..event(&n.to_string()) }).collect()
}

#[tokio::test]
async fn what_comes_by_itself_takes_no_place_from_what_people_did() {
    let directory = directory();
    let store = open(&directory).await;
    for (kind, count) in [
        (EventKind::WorkerChanged, 20),
        (EventKind::StreamRefused, 300),
        (EventKind::NodeConnected, 60),
        (EventKind::StreamOpened, 300),
    ] {
        store.save(&[], many(kind, count)).await.expect("a save");
    }
    let of = async |kind| of_kind(&store, kind).await;
    // Who is alone may have all that nobody else needs.
    prune_to(&store, 380, 7).await;
    assert_eq!(of(EventKind::StreamRefused).await, (0, String::new()), "the oldest of its class go first");
    assert_eq!(of(EventKind::StreamOpened).await, (300, "0".into()));
    prune_to(&store, 150, 1000).await;
    assert_eq!(of(EventKind::WorkerChanged).await, (20, "0".into()));
    assert_eq!(of(EventKind::NodeConnected).await, (60, "0".into()));
    assert_eq!(of(EventKind::StreamOpened).await, (70, "230".into()));
    // A class is sure of its third, whatever the others are.
    prune_to(&store, 90, 1000).await;
    assert_eq!(of(EventKind::WorkerChanged).await, (20, "0".into()));
    assert_eq!((of(EventKind::NodeConnected).await.0, of(EventKind::StreamOpened).await.0), (40, 30));
    store.save(&[], many(EventKind::WorkerChanged, 1000)).await.expect("a save");
    prune_to(&store, 90, 1000).await;
    assert_eq!(of(EventKind::WorkerChanged).await, (30, "970".into()));
    assert_eq!((of(EventKind::NodeConnected).await.0, of(EventKind::StreamOpened).await.0), (30, 30));
}

/// Live views show what a save gives back, and ask for what comes behind it.
#[tokio::test]
async fn each_event_of_a_save_has_the_id_that_it_is_found_by() {
    let directory = directory();
    let store = open(&directory).await;
    // More than one statement takes.
    let made = (0..150).map(|n| Event { text: format!("number {n}"), ..event("x") }).collect();
    let saved = store.save(&[], made).await.expect("a save").events;
    let query = EventQuery { limit: 1000, ..EventQuery::default() };
    let mut kept = store.events(&query).await.expect("events");
    kept.reverse();
    let ids =
        |events: &[Event]| events.iter().map(|event| (event.id, event.text.clone())).collect::<Vec<_>>();
    assert_eq!(ids(&saved), ids(&kept));
    assert_eq!(saved[149].text, "number 149");
}

#[tokio::test]
async fn old_events_go_in_steps() {
    let directory = directory();
    let store = open(&directory).await;
    let aged = |seconds: i64| Event { time: Timestamp::from_second(seconds).expect("a time"), ..event("x") };
    store.save(&[], (0..100).map(aged).collect()).await.expect("a save");
    let count = async || {
        store.events(&EventQuery { limit: 1000, ..EventQuery::default() }).await.expect("events").len()
    };
    let at = |seconds: i64| Timestamp::from_second(seconds).expect("a time");
    assert_eq!(store.prune(at(0), 90, 4).await.expect("a step"), 4);
    assert_eq!(store.prune(at(0), 90, 100).await.expect("a step"), 6);
    assert_eq!(store.prune(at(0), 90, 100).await.expect("a step"), 0);
    assert_eq!(count().await, 90);
    assert_eq!(store.prune(at(30), 90, 15).await.expect("a step"), 15);
    assert_eq!(store.prune(at(30), 90, 15).await.expect("a step"), 5);
    assert_eq!(count().await, 70);
}

#[tokio::test]
async fn a_save_that_nobody_waits_for_leaves_the_next_one_alone() {
    let directory = directory();
    let store = open(&directory).await;
    for turns in 0..200 {
        let events = vec![event("dropped"), event("dropped too")];
        let mut save = store.save(&[], events);
        for _ in 0..turns {
            tokio::select! {
                biased;
                _ = &mut save => break,
                () = tokio::task::yield_now() => {}
            }
        }
        drop(save);
        store.save(&[], vec![event("one")]).await.expect("a save");
    }
}

#[tokio::test]
async fn a_probe_writes_to_the_disk() {
    let directory = directory();
    let store = open(&directory).await;
    let wal = || fs::metadata(directory.path().join("registry.db-wal")).expect("the WAL").len();
    store.probe().await.expect("a probe");
    let before = wal();
    store.probe().await.expect("a probe");
    assert!(wal() > before, "nothing was written");
}

#[tokio::test]
async fn events_of_the_first_schema_get_their_classes() {
    let directory = directory();
    prepare(&directory.path().join(FILE)).expect("a file");
    let options = SqliteConnectOptions::new().filename(directory.path().join(FILE));
    let mut connection = SqliteConnection::connect_with(&options).await.expect("a connection");
    raw_sql(STEPS[0]).execute(&mut connection).await.expect("the first schema");
    // The first schema is older than this one.
    let kinds = EventKind::ALL.iter().filter(|kind| **kind != EventKind::LogChanged);
    let words = kinds.map(|kind| kind.word()).chain(["of-another-version"]);
    for word in words.clone() {
        let insert = "INSERT INTO events (time, kind, actor, subject, text) VALUES (1, ?, 'a', 's', 't')";
        sqlx::query(insert).bind(word).execute(&mut connection).await.expect("an event");
    }
    connection.close().await.expect("an end");
    let store = open(&directory).await;
    let all: Vec<(String, String)> = sqlx::query_as("SELECT kind, class FROM events ORDER BY id")
        .fetch_all(&store.writer)
        .await
        .expect("all");
    let class = |word: &str| word.parse().unwrap_or(EventKind::Other).class().word().to_owned();
    assert_eq!(all, words.map(|word| (word.to_owned(), class(word))).collect::<Vec<_>>());
    // And they are counted, as those are that come and go.
    store.save(&[], many(EventKind::NodeAdded, 5)).await.expect("a save");
    prune_to(&store, 20, 3).await;
    let counted: Vec<(String, i64)> = sqlx::query_as("SELECT class, count FROM event_counts ORDER BY class")
        .fetch_all(&store.writer)
        .await
        .expect("counts");
    let there: Vec<(String, i64)> =
        sqlx::query_as("SELECT class, count(*) FROM events GROUP BY class ORDER BY class")
            .fetch_all(&store.writer)
            .await
            .expect("events");
    assert_eq!((counted.iter().map(|(_, n)| n).sum::<i64>(), &counted), (20, &there));
}
