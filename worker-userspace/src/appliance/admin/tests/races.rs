//! Two at once, callers that go away, and a store that fails.

use std::sync::atomic::AtomicU32;

use axum::Router;
use axum::routing::post;
use http::{Request, StatusCode};
use tower::ServiceExt;

use super::*;
use crate::appliance::login::Login;
use crate::appliance::store::{Change, Pending, Saved, Snapshot};
use crate::web::layers::around;

#[tokio::test]
async fn a_change_that_is_based_on_an_older_state_says_who_was_faster() {
    let house = House::new().await;
    let a = house.add("site-a", "a.example").await.expect("a worker");
    let describe = |text: &str| EditWorker { description: Some(text.into()), ..EditWorker::default() };
    let other = Actor::local("somebody else");
    let (first, _) =
        house.admin.edit_worker(a.id, describe("one"), Some(1), &other).await.expect("the first");
    let error = house.admin.edit_worker(a.id, describe("two"), Some(1), &me()).await.expect_err("the second");
    let at = format!("{:.0}", first.changed);
    assert_eq!(
        error.to_string(),
        format!(
            "worker site-a has changed since you loaded it: somebody else changed it at {at}; load it again, and make \
             your change to that"
        )
    );
    assert!(matches!(error, AdminError::Conflict { expected: 1, revision: 2, .. }));
    // Without a revision the last wins, and what it does not name stays.
    let enabled = EditWorker { enabled: Some(false), ..EditWorker::default() };
    let (last, _) = house.admin.edit_worker(a.id, enabled, None, &me()).await.expect("the last");
    assert_eq!((last.description.as_str(), last.enabled, last.revision), ("one", false, 3));
    let (cloud, _) = house.add_cloud("C", "https://c.example", None).await.expect("a cloud");
    house.admin.assign(cloud.id, Some("site-a".into()), &other).await.expect("the first");
    let rename = EditCloud { name: Some("D".into()), ..EditCloud::default() };
    let error = house.admin.edit_cloud(cloud.id, rename, Some(1), &me()).await.expect_err("the second");
    assert!(
        error.to_string().starts_with("cloud \"C\" has changed since you loaded it: somebody else"),
        "{error}"
    );
    let events = house.events().await;
    assert_eq!(events.iter().filter(|event| event.starts_with("save-refused ")).count(), 2, "{events:?}");
    // A removal is a change like others.
    let error = house.admin.remove_cloud(cloud.id, Some(1), &me()).await.expect_err("an old state");
    assert!(matches!(error, AdminError::Conflict { expected: 1, revision: 2, .. }), "{error}");
    let error = house.admin.remove_worker(a.id, Some(2), &me()).await.expect_err("an old state");
    assert!(matches!(error, AdminError::Conflict { expected: 2, revision: 3, .. }), "{error}");
    house.admin.remove_cloud(cloud.id, Some(2), &me()).await.expect("the present state");
    house.admin.remove_worker(a.id, Some(3), &me()).await.expect("the present state");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_at_once_nothing_is_lost() {
    let house = House::new().await;
    let a = house.add("site-a", "").await.expect("a worker").id;
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..40 {
        let admin = house.admin.clone();
        tasks.spawn(async move {
            let actor = Actor::local(format!("actor {i}"));
            // One of these pairs wins, and both name the same host.
            let _ = admin
                .add_worker(worker(&format!("w{}", i / 2), &format!("h{}.example", i / 2)), &actor)
                .await;
            let edit = EditWorker { description: Some(format!("by {i}")), ..EditWorker::default() };
            loop {
                let revision = admin.worker(&a.into()).expect("it").revision;
                match admin.edit_worker(a, edit.clone(), Some(revision), &actor).await {
                    Ok(_) => return,
                    Err(AdminError::Conflict { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(
        house.admin.worker(&a.into()).expect("it").revision,
        41,
        "each edit was based on the one before"
    );
    assert_eq!(house.admin.workers(&WorkerFilter::default(), Page::ALL).total, 21);
    assert_eq!(house.roster(), house.admin.roster());
    let all = house.store.load().await.expect("all");
    assert_eq!(all.workers.len(), 21);
    let revisions: Vec<i64> =
        house.published.lock().unwrap().iter().map(|roster| roster.groups.len() as i64).collect();
    assert!(revisions.is_sorted(), "rosters came out of order: {revisions:?}");
}

/// A store whose saves fail, before or after they have happened, or wait to be let through.
#[derive(Debug)]
pub(super) struct Unsure {
    store: Arc<Sqlite>,
    /// Saves to come that fail before they happen.
    pub(super) before: AtomicU32,
    /// Saves to come that happen and fail all the same.
    after: AtomicU32,
    gate: tokio::sync::Semaphore,
}

fn one_of(counter: &AtomicU32) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

impl Store for Unsure {
    fn load(&self) -> Pending<'_, Snapshot> {
        self.store.load()
    }

    fn save<'a>(&'a self, changes: &'a [Change], events: Vec<Event>) -> Pending<'a, Saved> {
        Box::pin(async move {
            self.gate.acquire().await.expect("open").forget();
            let full = || StoreError::Full { path: "registry.db".into() };
            if one_of(&self.before) {
                return Err(full());
            }
            let saved = self.store.save(changes, events).await?;
            if one_of(&self.after) { Err(full()) } else { Ok(saved) }
        })
    }

    fn events<'a>(&'a self, query: &'a EventQuery) -> Pending<'a, Vec<Event>> {
        self.store.events(query)
    }

    fn prune(&self, before: Timestamp, keep: u64, step: u32) -> Pending<'_, u64> {
        self.store.prune(before, keep, step)
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.store.close()
    }
}

/// A house whose store is unsure.
pub(super) async fn unsure(permits: usize) -> (House, Arc<Unsure>, Login) {
    let house = House::new().await;
    let store = Arc::new(Unsure {
        store: house.store.clone(),
        before: AtomicU32::new(0),
        after: AtomicU32::new(0),
        gate: tokio::sync::Semaphore::new(permits),
    });
    let login = Login::new(true, |_| {});
    let publish = Doors { rosters: house.published.clone(), login: login.clone() };
    let admin =
        Admin::start(store.clone(), house.audit.clone(), publish, house.names.clone(), &house.drain).await;
    let admin = admin.expect("an administration");
    (House { admin, ..house }, store, login)
}

/// What is in force, and the door.
struct Doors {
    rosters: Arc<Mutex<Vec<Roster>>>,
    login: Login,
}

impl Publish for Doors {
    fn publish(&self, roster: Roster) {
        self.rosters.lock().unwrap().push(roster);
    }

    fn admit(&self, token: Option<KeyHash>) {
        self.login.set_token(token);
    }
}

#[tokio::test]
async fn what_was_answered_with_an_error_is_asked_of_the_store() {
    let (house, store, _) = unsure(1000).await;
    store.before.store(1, Ordering::SeqCst);
    let error = house.add("site-a", "a.example").await.expect_err("a full disk").to_string();
    assert_eq!(
        error,
        "the registry: registry.db: no space is left on its file system: make room; the change was not saved"
    );
    assert_eq!(house.carried(), []);
    house.add("site-a", "a.example").await.expect("there is room again");
    store.after.store(1, Ordering::SeqCst);
    assert!(house.add("site-b", "b.example").await.is_err());
    // It is there, so it counts: nothing else can take its name or its host.
    assert_eq!(house.carried().len(), 2);
    assert!(matches!(house.add("site-b", "").await, Err(AdminError::NameTaken { .. })));
    assert!(matches!(house.add("site-c", "b.example").await, Err(AdminError::PatternTaken(_))));
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_a_whole_change() {
    let (house, store, _) = unsure(0).await;
    let mut published = house.admin.subscribe();
    let mut call = Box::pin(house.add("site-a", "a.example"));
    // Until it waits for the store.
    tokio::select! {
        biased;
        _ = &mut call => panic!("the store did not wait"),
        () = tokio::task::yield_now() => {}
    }
    drop(call);
    store.gate.add_permits(1);
    let event = tokio::time::timeout(Duration::from_secs(10), published.recv()).await;
    let event = event.expect("the change was dropped").expect("an event");
    assert_eq!((event.kind, event.subject.as_str()), (EventKind::WorkerAdded, "site-a"));
    assert_eq!(house.carried(), [("site-a".into(), vec!["a.example".into()])]);
}

#[tokio::test]
async fn a_new_token_is_in_force_once_it_is_saved_whoever_waits_for_it() {
    let (house, store, login) = unsure(1).await;
    let source = "192.0.2.7".parse().expect("an address");
    let opens = |token: &str| login.sign_in(source, &http::HeaderMap::new(), token).is_ok();
    house.admin.set_admin_token(KeyHash::of("first"), &me()).await.expect("a token");
    assert!(opens("first") && !opens("second"));

    let mut published = house.admin.subscribe();
    let (administrator, actor) = (house.admin.clone(), me());
    let mut call = Box::pin(administrator.set_admin_token(KeyHash::of("second"), &actor));
    // Until it waits for the store.
    tokio::select! {
        biased;
        _ = &mut call => panic!("the store did not wait"),
        () = tokio::task::yield_now() => {}
    }
    drop(call);
    assert!(opens("first"), "it is not saved yet");
    store.gate.add_permits(1);
    let event = tokio::time::timeout(Duration::from_secs(10), published.recv()).await;
    let event = event.expect("the change was dropped").expect("an event");
    assert_eq!(event.kind, EventKind::TokenChanged);
    assert!(opens("second") && !opens("first"));

    // Saved and answered with an error all the same: what the store has is in force.
    store.after.store(1, Ordering::SeqCst);
    store.gate.add_permits(1);
    house.admin.set_admin_token(KeyHash::of("third"), &me()).await.expect_err("a full disk");
    assert!(opens("third") && !opens("second"));
}

/// A store in memory, so that the clock may be paused; it holds changes until it is told to let them through.
#[derive(Debug)]
struct Held {
    /// A save has begun.
    begun: tokio::sync::Semaphore,
    gate: tokio::sync::Semaphore,
    ids: AtomicU32,
}

impl Store for Held {
    fn load(&self) -> Pending<'_, Snapshot> {
        Box::pin(async { Ok(Snapshot::default()) })
    }

    fn save<'a>(&'a self, changes: &'a [Change], events: Vec<Event>) -> Pending<'a, Saved> {
        Box::pin(async move {
            if !changes.is_empty() {
                self.begun.add_permits(1);
                self.gate.acquire().await.expect("open").forget();
            }
            let ids = changes.iter().map(|_| i64::from(self.ids.fetch_add(1, Ordering::SeqCst)));
            Ok(Saved { ids: ids.collect(), events })
        })
    }

    fn events<'a>(&'a self, _: &'a EventQuery) -> Pending<'a, Vec<Event>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn prune(&self, _: Timestamp, _: u64, _: u32) -> Pending<'_, u64> {
        Box::pin(async { Ok(0) })
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {})
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_answered_with_an_error_does_not_happen_later() {
    let closed = || tokio::sync::Semaphore::new(0);
    let store = Arc::new(Held { begun: closed(), gate: closed(), ids: AtomicU32::new(1) });
    let drain = Drain::new(Duration::from_secs(10));
    let audit = Audit::start(store.clone(), LIMITS, &drain);
    let admin = Admin::start(store.clone(), audit, |_: Roster| {}, Names::default(), &drain).await;
    let admin = admin.expect("an administration");
    let adds = admin.clone();
    let add = async move |name: String| match adds.add_worker(worker(&name, ""), &me()).await {
        Ok(_) => StatusCode::CREATED,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let router = around(Router::new().route("/api/v1/workers", post(add)));
    let ask = |name: &'static str| {
        let request = Request::post("/api/v1/workers").body(name.to_owned()).expect("a request");
        let answer = router.clone().oneshot(request.map(axum::body::Body::from));
        tokio::spawn(async move { answer.await.expect("an answer").status() })
    };
    let first = ask("first");
    store.begun.acquire().await.expect("open").forget();
    let (second, third) = (ask("second"), ask("third"));
    // They have waited for the first for as long as a request may take: they did not happen.
    assert_eq!(second.await.expect("no panic"), StatusCode::REQUEST_TIMEOUT);
    assert_eq!(third.await.expect("no panic"), StatusCode::REQUEST_TIMEOUT);
    // The first may happen still, so nobody has said that it did not, however long it takes.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!first.is_finished());
    store.gate.add_permits(100);
    assert_eq!(first.await.expect("no panic"), StatusCode::CREATED);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let names = admin.workers(&WorkerFilter::default(), Page::ALL).items;
    assert_eq!(names.iter().map(|worker| worker.name.as_str()).collect::<Vec<_>>(), ["first"]);
}
