//! Recording never waits, whatever the store does; what is lost is counted; nothing secret is kept.

use std::pin::Pin;
use std::sync::atomic::AtomicBool;

use tokio::sync::Semaphore;

use super::*;
use crate::appliance::store::sqlite::Sqlite;
use crate::appliance::store::{Change, Pending, Saved, Snapshot, StoreError};

const LIMITS: Limits = Limits { age: Duration::from_secs(3600), count: 1000 };

/// A store in memory that can be made to wait or to fail.
#[derive(Debug)]
struct Slow {
    kept: std::sync::Mutex<Vec<Event>>,
    /// Each save takes one.
    gate: Semaphore,
    /// A save has begun.
    begun: Semaphore,
    broken: AtomicBool,
    /// How many saves there were.
    saves: AtomicU64,
    /// What pruning was asked for.
    pruned: std::sync::Mutex<Vec<(Timestamp, u64, u32)>>,
    /// Each step of pruning takes one.
    prunes: Semaphore,
    /// A step of pruning has begun.
    pruning: Semaphore,
    /// How many steps there are: the last one is not a whole one.
    steps: usize,
}

impl Slow {
    fn new(saves: usize) -> Arc<Slow> {
        Slow::pruned_in(saves, 3, 3)
    }

    /// With so many steps of pruning, of which so many are let through.
    fn pruned_in(saves: usize, steps: usize, prunes: usize) -> Arc<Slow> {
        Arc::new(Slow {
            kept: std::sync::Mutex::default(),
            gate: Semaphore::new(saves),
            begun: Semaphore::new(0),
            broken: AtomicBool::new(false),
            saves: AtomicU64::new(0),
            pruned: std::sync::Mutex::default(),
            prunes: Semaphore::new(prunes),
            pruning: Semaphore::new(0),
            steps,
        })
    }

    fn texts(&self) -> Vec<String> {
        self.kept.lock().unwrap().iter().map(|event| event.text.clone()).collect()
    }
}

impl Store for Slow {
    fn load(&self) -> Pending<'_, Snapshot> {
        Box::pin(async { Ok(Snapshot::default()) })
    }

    fn save<'a>(&'a self, _: &'a [Change], events: Vec<Event>) -> Pending<'a, Saved> {
        Box::pin(async move {
            self.begun.add_permits(1);
            self.gate.acquire().await.expect("open").forget();
            self.saves.fetch_add(1, Ordering::SeqCst);
            if self.broken.load(Ordering::SeqCst) {
                return Err(StoreError::Full { path: "registry.db".into() });
            }
            self.kept.lock().unwrap().extend(events.iter().cloned());
            Ok(Saved { ids: Vec::new(), events })
        })
    }

    fn events<'a>(&'a self, _: &'a EventQuery) -> Pending<'a, Vec<Event>> {
        Box::pin(async { Ok(self.kept.lock().unwrap().clone()) })
    }

    fn prune(&self, before: Timestamp, keep: u64, step: u32) -> Pending<'_, u64> {
        Box::pin(async move {
            self.pruning.add_permits(1);
            self.prunes.acquire().await.expect("open").forget();
            let mut pruned = self.pruned.lock().unwrap();
            pruned.push((before, keep, step));
            Ok(if pruned.len() < self.steps { u64::from(step) } else { 1 })
        })
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {})
    }
}

fn event(text: impl Into<String>) -> NewEvent {
    Actor::local("admin").did(EventKind::StreamOpened, "vc.example:443", text)
}

fn audit(store: Arc<dyn Store>) -> (Audit, Drain) {
    let drain = Drain::new(Duration::from_secs(10));
    (Audit::start(store, LIMITS, &drain), drain)
}

#[tokio::test(start_paused = true)]
async fn recording_never_waits_and_what_is_lost_is_counted() {
    let store = Slow::new(0);
    let (audit, drain) = audit(store.clone());
    audit.record(event("first"));
    // The writer has taken it and waits for the store; the queue is empty.
    store.begun.acquire().await.expect("open").forget();
    for i in 0..QUEUE + 7 {
        audit.record(event(format!("{i}")));
    }
    store.gate.add_permits(1000);
    audit.flush().await;
    let kept = store.kept.lock().unwrap().clone();
    let (lost, events): (Vec<&Event>, Vec<&Event>) =
        kept.iter().partition(|e| e.kind == EventKind::EventsLost);
    assert_eq!(events.len(), QUEUE + 1);
    assert_eq!(lost.iter().map(|e| e.text.as_str()).collect::<Vec<_>>(), ["7 events were not kept"]);
    // All of it in few transactions.
    assert_eq!(store.saves.load(Ordering::SeqCst), 1 + QUEUE.div_ceil(writer::BATCH) as u64);
    assert_eq!(drain.finish().await, 0);
}

/// Each time that the writer is woken costs who records as much as the event; who waits does not wait for that.
#[tokio::test(start_paused = true)]
async fn events_that_come_one_by_one_are_kept_together_and_who_asks_is_not_kept_waiting() {
    let store = Slow::new(1000);
    let (audit, drain) = audit(store.clone());
    let began = tokio::time::Instant::now();
    for i in 0..20 {
        audit.record(event(format!("{i}")));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(audit.queue.capacity(), QUEUE - 19, "the first alone has woken the writer");
    assert_eq!(store.texts().len(), 0, "they are gathered still");
    audit.flush().await;
    assert_eq!(began.elapsed(), Duration::from_millis(20), "as soon as somebody asks");
    assert_eq!((store.texts().len(), store.saves.load(Ordering::SeqCst)), (20, 1));
    audit.record(event("last"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(store.texts().len(), 21, "nobody has to ask");
    // A burst is kept as it comes: what fills the queue is lost.
    let began = tokio::time::Instant::now();
    for i in 0..4 * QUEUE {
        audit.record(event(format!("{i}")));
        if i % 64 == 0 {
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    audit.flush().await;
    assert_eq!(store.texts().len(), 21 + 4 * QUEUE);
    assert_eq!(drain.finish().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_costs_time_and_no_events() {
    let store = Slow::new(1000);
    let (audit, drain) = audit(store.clone());
    store.broken.store(true, Ordering::SeqCst);
    audit.record(event("one"));
    audit.record(event("two"));
    audit.flush().await;
    assert_eq!(store.texts(), [""; 0]);
    store.broken.store(false, Ordering::SeqCst);
    // Tried again even where nothing happens for a long time.
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(store.texts(), ["one", "two"]);
    audit.record(event("three"));
    audit.flush().await;
    assert_eq!(store.texts(), ["one", "two", "three"]);
    assert_eq!(drain.finish().await, 0);
}

#[tokio::test(start_paused = true)]
async fn while_a_store_fails_only_what_does_not_fit_is_lost() {
    let store = Slow::new(1000);
    let (audit, drain) = audit(store.clone());
    store.broken.store(true, Ordering::SeqCst);
    audit.record(event("first"));
    audit.flush().await;
    for i in 0..QUEUE + 7 {
        audit.record(event(format!("{i}")));
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    let tried = store.saves.load(Ordering::SeqCst);
    assert!((10..100).contains(&tried), "{tried} times, with pauses");
    store.broken.store(false, Ordering::SeqCst);
    audit.flush().await;
    let (lost, kept): (Vec<String>, Vec<String>) =
        store.texts().into_iter().partition(|text| text.contains("not kept"));
    assert_eq!(lost, ["7 events were not kept"]);
    let all = (0..QUEUE).map(|i| i.to_string());
    assert_eq!(kept, std::iter::once("first".to_owned()).chain(all).collect::<Vec<_>>(), "in their order");
    assert_eq!(drain.finish().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_stop_tries_a_store_that_fails_once_more_and_ends() {
    for fails in [true, false] {
        let store = Slow::new(1000);
        let (audit, drain) = audit(store.clone());
        store.broken.store(true, Ordering::SeqCst);
        audit.record(event("one"));
        audit.flush().await;
        for i in 0..1000 {
            audit.record(event(format!("{i}")));
        }
        store.broken.store(fails, Ordering::SeqCst);
        let (began, tried) = (tokio::time::Instant::now(), store.saves.load(Ordering::SeqCst));
        assert_eq!(drain.finish().await, 0);
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        let kept = if fails { 0 } else { 1001 };
        assert_eq!(store.texts().len(), kept);
        assert!(!fails || store.saves.load(Ordering::SeqCst) <= tried + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_keeps_what_was_recorded_before_it() {
    let store = Slow::new(1000);
    let (audit, drain) = audit(store.clone());
    for i in 0..1000 {
        audit.record(event(format!("{i}")));
    }
    assert_eq!(drain.finish().await, 0);
    assert_eq!(store.texts(), (0..1000).map(|i| i.to_string()).collect::<Vec<_>>());
    // Later ones have nobody to keep them; nobody waits for that.
    audit.record(event("late"));
    audit.flush().await;
    assert_eq!(store.texts().len(), 1000);
}

#[tokio::test(start_paused = true)]
async fn old_events_are_removed_in_small_steps() {
    let store = Slow::new(1000);
    let (_audit, drain) = audit(store.clone());
    tokio::time::sleep(Duration::from_secs(61)).await;
    let pruned = store.pruned.lock().unwrap().clone();
    assert_eq!(pruned.len(), 3, "until a step removes less than it may");
    let age = Timestamp::now().duration_since(pruned[0].0).as_secs();
    assert!((3600..3700).contains(&age), "{age}");
    assert!(pruned.iter().all(|(_, keep, step)| (*keep, *step) == (1000, 500)), "{pruned:?}");
    assert_eq!(drain.finish().await, 0);
}

#[tokio::test(start_paused = true)]
async fn what_happens_while_old_events_are_removed_is_kept() {
    const STEPS: usize = 20;
    let store = Slow::pruned_in(1000, STEPS, 0);
    let (audit, drain) = audit(store.clone());
    for step in 0..STEPS {
        // The writer is in this step.
        store.pruning.acquire().await.expect("open").forget();
        assert_eq!(store.texts().len(), step * 256, "before step {step}");
        // More in all than the queue holds.
        for i in 0..256 {
            audit.record(event(format!("{}", step * 256 + i)));
        }
        store.prunes.add_permits(1);
    }
    audit.flush().await;
    assert_eq!(store.texts(), (0..STEPS * 256).map(|i| i.to_string()).collect::<Vec<_>>());
    const { assert!(STEPS * 256 > QUEUE) };
    assert_eq!(store.pruned.lock().unwrap().len(), STEPS, "and all of them are removed");
    assert_eq!(drain.finish().await, 0);
}

#[tokio::test]
async fn live_views_hear_what_is_kept() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Arc::new(Sqlite::open(directory.path()).await.expect("a store"));
    let (audit, drain) = audit(store.clone());
    let mut live = audit.subscribe();
    let key = format!("dwk_{}", "k".repeat(43));
    audit.record(NewEvent {
        kind: EventKind::LoginFailed,
        actor: format!("{key}@192.0.2.1"),
        subject: format!("https://root:pw@vc.example/{key}"),
        text: format!("tried {key}, dwa_{}\n<b>{}", "t".repeat(43), "x".repeat(3000)),
        source: None,
    });
    let event =
        tokio::time::timeout(Duration::from_secs(10), live.recv()).await.expect("in time").expect("an event");
    assert_eq!(event.id, 1);
    assert_eq!(event.actor, "***@192.0.2.1");
    assert_eq!(event.subject, "https://***@vc.example/***");
    assert!(
        event.text.starts_with("tried ***, ***\u{fffd}<b>xxx") && event.text.ends_with("x…"),
        "{}",
        event.text
    );
    assert_eq!(event.text.chars().count(), LONGEST_TEXT + 1);
    assert_eq!(store.events(&EventQuery::default()).await.expect("events"), [Event::clone(&event)]);
    assert_eq!(drain.finish().await, 0);
}

#[test]
fn each_kind_has_a_word_of_its_own() {
    let mut words = std::collections::HashSet::new();
    for kind in EventKind::ALL {
        assert!(words.insert(kind.word()), "{kind}");
        assert_eq!(kind.word().parse(), Ok(*kind));
        assert_eq!(serde_json::to_value(kind).expect("JSON"), kind.word());
    }
    let error = "worker".parse::<EventKind>().expect_err("no kind").to_string();
    assert!(error.starts_with("no kind of event: the kinds are worker-added, "), "{error}");
}
