//! The registry at its largest: 2,000 workers, 10,000 proxy hosts, a million events. Prints each measure beside what
//! was promised, and fails where the median breaks a promise.

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dworker::appliance::admin::{
    Admin, CloudFilter, EditWorker, NewCloud, NewWorker, NodeSeen, Page, Ref, SystemResolver, WorkerFilter,
};
use dworker::appliance::audit::{Actor, Audit, Event, EventKind, EventQuery, Limits};
use dworker::appliance::login::{Login, new_token};
use dworker::appliance::page;
use dworker::appliance::registry::Registry;
use dworker::appliance::roster::Roster;
use dworker::appliance::store::Store;
use dworker::appliance::store::sqlite::Sqlite;
use dworker::config::KeyHash;
use dworker::drain::Drain;
use dworker::inspect::ledger::Ledger;
use dworker::target::Target;
use dworker::web::Peer;
use tower::ServiceExt;

const WORKERS: usize = 2_000;
/// Of each worker: 10,000 in all.
const HOSTS: usize = 5;
const CLOUDS: usize = 500;
const EVENTS: usize = 1_000_000;

/// One measure after the other, as lines of a table.
struct Table {
    broken: bool,
}

impl Table {
    fn line(&mut self, what: &str, promised: Option<Duration>, mut times: Vec<Duration>) {
        times.sort();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        let (median, worst) = (at(0.5), at(1.0));
        let verdict = match promised {
            Some(promised) if median > promised => {
                self.broken = true;
                "BROKEN"
            }
            Some(_) => "kept",
            None => "",
        };
        let promised = promised.map_or(String::new(), |promised| format!("{promised:?}"));
        let (median, p99, worst) = (show(median), show(at(0.99)), show(worst));
        println!("{what:<44} {promised:>9} {median:>9} {p99:>9} {worst:>9}  {verdict}");
    }
}

fn show(time: Duration) -> String {
    match time.as_nanos() {
        0..10_000 => format!("{} ns", time.as_nanos()),
        10_000..10_000_000 => format!("{:.2} ms", time.as_secs_f64() * 1e3),
        _ => format!("{:.0} ms", time.as_secs_f64() * 1e3),
    }
}

/// Times `count` calls.
async fn times(count: usize, mut call: impl AsyncFnMut(usize)) -> Vec<Duration> {
    let mut times = Vec::with_capacity(count);
    for i in 0..count {
        let start = Instant::now();
        call(i).await;
        times.push(start.elapsed());
    }
    times
}

fn me() -> Actor {
    Actor::local("bench")
}

fn hosts(worker: usize, generation: usize) -> String {
    let w = worker;
    format!(
        "vc{generation}.site{w}.example:443,902, *.esx.site{w}.example, 10.{}.{}.0/24, nutanix.site{w}.example:9440, \
         [2001:db8:{w:x}::1]:443",
        w / 256,
        w % 256,
    )
}

#[tokio::main]
async fn main() -> ExitCode {
    let directory = tempfile::tempdir().expect("a directory");
    let registry = Arc::new(Registry::new(Duration::from_secs(60), Duration::ZERO, Box::new(())));
    let mut table = Table { broken: false };
    fill(&directory, &registry).await;

    println!("{WORKERS} workers, {} proxy hosts, {CLOUDS} clouds, {EVENTS} events", WORKERS * HOSTS);
    println!("{:<44} {:>9} {:>9} {:>9} {:>9}", "", "promised", "median", "99 %", "worst");
    let start = Instant::now();
    let store = Arc::new(Sqlite::open(directory.path()).await.expect("a store"));
    let (admin, audit, drain) = start_admin(store.clone(), &registry).await;
    table.line("open, load and publish at a start", None, vec![start.elapsed()]);

    look_ups(&mut table, &registry);
    saves(&mut table, &admin).await;
    lists(&mut table, &admin).await;
    pages(&mut table, &admin, &audit, &registry, &drain).await;
    events(&mut table, &admin, &audit, &*store).await;

    drain.finish().await;
    store.close().await;
    let bytes = std::fs::metadata(directory.path().join("registry.db")).expect("the file").len();
    println!("{} MiB on disk", bytes >> 20);
    if table.broken { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

async fn start_admin(store: Arc<Sqlite>, registry: &Arc<Registry>) -> (Admin, Audit, Drain) {
    let drain = Drain::new(Duration::from_secs(60));
    let limits = Limits { age: Duration::from_secs(90 * 86400), count: EVENTS as u64 };
    let audit = Audit::start(store.clone(), limits, &drain);
    let registry = registry.clone();
    let publish = move |roster: Roster| registry.apply(roster);
    let admin = Admin::start(store, audit.clone(), publish, SystemResolver::default(), &drain).await;
    let admin = admin.expect("an administration");
    admin.sync_file_groups(&[]).await.expect("no groups");
    (admin, audit, drain)
}

/// Makes the registry that is measured.
async fn fill(directory: &tempfile::TempDir, registry: &Arc<Registry>) {
    let store = Arc::new(Sqlite::open(directory.path()).await.expect("a store"));
    let (admin, _, drain) = start_admin(store.clone(), registry).await;
    for w in 0..WORKERS {
        let new = NewWorker {
            name: format!("site-{w}"),
            description: format!("Site {w}, in the cellar of building {}", w % 17),
            proxy_hosts: hosts(w, 0).as_str().into(),
            enabled: true,
            may_open: false,
        };
        let (worker, ..) = admin.add_worker(new, &me()).await.expect("a worker");
        for n in 0..2_u8 {
            let mut id = [n; 16];
            id[..8].copy_from_slice(&(w as u64).to_be_bytes());
            let address = std::net::Ipv4Addr::from(w as u32).into();
            let host_name = format!("host-{n}.site{w}.example");
            admin.node_seen(worker.id, NodeSeen { id, host_name, software: "0.1.0".into(), address });
        }
    }
    for c in 0..CLOUDS {
        let new = NewCloud {
            name: format!("Cloud {c}"),
            kind: "vmware".into(),
            api_url: format!("https://api.cloud{c}.example/sdk"),
            worker: Some(Ref::Text(format!("site-{c}"))),
        };
        admin.add_cloud(new, &me()).await.expect("a cloud");
    }
    drain.finish().await;
    let event = |i: usize| Event {
        id: 0,
        time: dworker::appliance::records::now(),
        kind: if i.is_multiple_of(20) { EventKind::StreamRefused } else { EventKind::StreamOpened },
        actor: "dworker".into(),
        subject: format!("site-{}", i % WORKERS),
        text: format!("vc0.site{}.example:443 for python3 (pid {i}), carried by host-0", i % WORKERS),
        source: None,
    };
    for batch in 0..EVENTS / 10_000 {
        let events = (0..10_000).map(|i| event(batch * 10_000 + i)).collect();
        store.save(&[], events).await.expect("events");
    }
    store.close().await;
}

fn look_ups(table: &mut Table, registry: &Registry) {
    const PROMISED: Option<Duration> = Some(Duration::from_micros(2));
    /// Look-ups that are timed together: one is too short for the clock.
    const TOGETHER: usize = 1_000;
    let mut measure = |what: &str, found: bool, host: &dyn Fn(usize) -> String| {
        let targets: Vec<Target> =
            (0..WORKERS).map(|w| Target { host: host(w).parse().expect("a host"), port: 443 }).collect();
        assert!(targets.iter().all(|target| registry.owner(target).is_some() == found), "{what}");
        let mut times = Vec::new();
        for batch in 0..500 {
            let start = Instant::now();
            for i in 0..TOGETHER {
                black_box(registry.owner(black_box(&targets[(batch * TOGETHER + i * 7) % WORKERS])));
            }
            times.push(start.elapsed() / TOGETHER as u32);
        }
        table.line(what, PROMISED, times);
    };
    measure("look up a name", true, &|w| format!("vc0.site{w}.example"));
    measure("look up a name below a wildcard", true, &|w| format!("a.b.esx.site{w}.example"));
    measure("look up an address in a network", true, &|w| format!("10.{}.{}.7", w / 256, w % 256));
    measure("look up an IPv6 address", true, &|w| format!("2001:db8:{w:x}::1"));
    measure("look up a name that nobody has", false, &|w| format!("a.b.c.d.elsewhere{w}.example"));
    measure("look up an address that nobody has", false, &|w| format!("192.168.{}.{}", w / 256, w % 256));
}

async fn saves(table: &mut Table, admin: &Admin) {
    const PROMISED: Option<Duration> = Some(Duration::from_millis(100));
    let ids: Vec<i64> =
        admin.workers(&WorkerFilter::default(), Page::ALL).items.iter().map(|worker| worker.id).collect();
    let id = |i: usize| ids[i * 31 % ids.len()];
    let describe = async |i: usize| {
        let edit = EditWorker { description: Some(format!("described {i}")), ..EditWorker::default() };
        admin.edit_worker(id(i), edit, None, &me()).await.expect("a save");
    };
    table.line("save: another description", PROMISED, times(100, describe).await);
    let number = |id: i64| {
        let name = admin.worker(&Ref::Id(id)).expect("it").name.clone();
        name.trim_start_matches("site-").parse::<usize>().expect("a number")
    };
    let carry = async |i: usize| {
        let proxy_hosts = Some(hosts(number(id(i)), i + 1).as_str().into());
        let edit = EditWorker { proxy_hosts, ..EditWorker::default() };
        admin.edit_worker(id(i), edit, None, &me()).await.expect("a save");
    };
    table.line("save: other proxy hosts", PROMISED, times(100, carry).await);
    let rotate = async |i: usize| {
        admin.rotate_key(id(i), Duration::from_secs(60), true, &me()).await.expect("a save");
    };
    table.line("save: another key", PROMISED, times(100, rotate).await);
    let add = async |i: usize| {
        let name = format!("new-{i}");
        let hosts = format!("new{i}.example").as_str().into();
        let new = NewWorker { name, proxy_hosts: hosts, enabled: true, ..NewWorker::default() };
        admin.add_worker(new, &me()).await.expect("a save");
    };
    table.line("save: a new worker", PROMISED, times(100, add).await);
    let mut clouds: Vec<i64> =
        admin.clouds(&CloudFilter::default(), Page::ALL).items.iter().map(|cloud| cloud.id).collect();
    let assign = async |i: usize| {
        let cloud = clouds.pop().expect("a cloud");
        admin.assign(cloud, Some(Ref::Id(id(i + 1000))), &me()).await.expect("a save");
    };
    table.line("save: a cloud to another worker", PROMISED, times(100, assign).await);
    let thousand = |i: usize| (0..1000).map(|h| format!("h{h}.g{i}.large.example\n")).collect::<String>();
    let fill = async |i: usize| {
        let edit = EditWorker { proxy_hosts: Some(thousand(i).as_str().into()), ..EditWorker::default() };
        admin.edit_worker(id(0), edit, None, &me()).await.expect("a save");
    };
    table.line("save: 1,000 other proxy hosts of one worker", PROMISED, times(20, fill).await);
}

async fn lists(table: &mut Table, admin: &Admin) {
    const PROMISED: Option<Duration> = Some(Duration::from_millis(200));
    let filter = |text: &str| WorkerFilter { text: Some(text.into()), ..WorkerFilter::default() };
    let page = Page { offset: 1000, limit: 50 };
    let all = times(50, async |_| drop(black_box(admin.workers(&WorkerFilter::default(), Page::ALL)))).await;
    table.line("list all workers", PROMISED, all);
    let some = times(50, async |_| drop(black_box(admin.workers(&WorkerFilter::default(), page)))).await;
    table.line("list a page of workers", PROMISED, some);
    let found =
        times(50, async |i| drop(black_box(admin.workers(&filter(&format!("SITE{i}.")), page)))).await;
    table.line("search workers and proxy hosts", PROMISED, found);
    let clouds = times(50, async |_| drop(black_box(admin.clouds(&CloudFilter::default(), Page::ALL)))).await;
    table.line("list all clouds", PROMISED, clouds);
}

/// Whole answers of the web page, templates included.
async fn pages(table: &mut Table, admin: &Admin, audit: &Audit, registry: &Arc<Registry>, drain: &Drain) {
    const PROMISED: Option<Duration> = Some(Duration::from_millis(200));
    let token = new_token().expect("a token");
    let login = Login::new(true, |_| ());
    login.set_token(Some(KeyHash::of(&token)));
    let router = page::router(page::Parts {
        admin: admin.clone(),
        registry: registry.clone(),
        ledger: Ledger::default(),
        audit: audit.clone(),
        login,
        tls: true,
        host: "appliance".into(),
        drain: drain.clone(),
    });
    let peer = Peer::Network(([192, 0, 2, 7], 50_000).into());
    for (what, path) in [
        ("page: the first workers", "/workers"),
        ("page: workers in the middle", "/workers?page=20"),
        ("page: workers searched for", "/workers?q=SITE7."),
        ("page: one worker", "/workers/7"),
        ("page: clouds", "/clouds"),
        ("page: a cloud's form, with all workers", "/clouds/new"),
        ("page: events", "/events"),
    ] {
        let ask = async |_| {
            let request = http::Request::builder().uri(path).extension(peer);
            let request = request.header("authorization", format!("Bearer {token}"));
            let request = request.body(axum::body::Body::empty()).expect("a request");
            let response = router.clone().oneshot(request).await.expect("an answer");
            assert_eq!(response.status(), 200, "{path}");
            black_box(axum::body::to_bytes(response.into_body(), 1 << 24).await.expect("a page"));
        };
        table.line(what, PROMISED, times(50, ask).await);
    }
}

async fn events(table: &mut Table, admin: &Admin, audit: &Audit, store: &dyn Store) {
    const PROMISED: Option<Duration> = Some(Duration::from_millis(200));
    let all = EventQuery::default();
    let query = async |query: &EventQuery| {
        let times = times(10, async |_| drop(black_box(admin.events(query).await.expect("events")))).await;
        (times, admin.events(query).await.expect("events").len())
    };
    let mut measure = async |what: &str, promised, asked: EventQuery, rows: usize| {
        let (times, found) = query(&asked).await;
        assert_eq!(found, rows, "{what}");
        table.line(what, promised, times);
    };
    measure("events: the newest 100", PROMISED, all.clone(), 100).await;
    let before = Some(EVENTS as i64 / 2);
    measure("events: 100 in the middle", PROMISED, EventQuery { before, ..all.clone() }, 100).await;
    let kinds = vec![EventKind::StreamRefused];
    measure("events: the newest 100 of a kind", PROMISED, EventQuery { kinds, ..all.clone() }, 100).await;
    let subject = Some("site-7".to_owned());
    measure("events: the newest 100 of a worker", PROMISED, EventQuery { subject, ..all.clone() }, 100).await;
    let kinds = vec![EventKind::KeyRefused];
    measure("events: of a kind that there is not", PROMISED, EventQuery { kinds, ..all.clone() }, 0).await;
    let text = Some("site7.example".to_owned());
    measure("events: the newest 100 with a text", PROMISED, EventQuery { text, ..all.clone() }, 100).await;
    let text = Some("nowhere".to_owned());
    measure("events: with a text that there is not", None, EventQuery { text, ..all }, 0).await;
    let event = |i: usize| me().did(EventKind::StreamOpened, "vc.example:443", format!("event {i}"));
    let mut recorded = Vec::new();
    for i in 0..4_000 {
        let event = event(i);
        let start = Instant::now();
        audit.record(event);
        recorded.push(start.elapsed());
    }
    table.line("record an event", None, recorded);
    let start = Instant::now();
    audit.flush().await;
    table.line("and keep 4,000 of them", None, vec![start.elapsed()]);
    let before = dworker::appliance::records::now();
    let pruned = times(20, async |_| {
        assert_eq!(store.prune(before, u64::MAX, 500).await.expect("a step"), 500);
    });
    table.line("remove 500 old events", None, pruned.await);
}
