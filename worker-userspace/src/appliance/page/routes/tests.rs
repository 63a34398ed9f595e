//! The page as a browser without JavaScript uses it, on a real store.

mod live;

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use http::header::{CONTENT_TYPE, COOKIE, HOST, LOCATION, ORIGIN};
use jiff::Timestamp;
use tempfile::TempDir;
use tower::ServiceExt;

use super::*;
use crate::appliance::admin::{Admin, SystemResolver};
use crate::appliance::audit::{Audit, Event, EventKind, EventQuery, Limits};
use crate::appliance::login::{Login, new_token};
use crate::appliance::page::Parts;
use crate::appliance::page::samples::HOSTILE;
use crate::appliance::registry::Registry;
use crate::appliance::store::sqlite::Sqlite;
use crate::appliance::store::{Change, Pending, Saved, Snapshot, Store};
use crate::config::Key;
use crate::config::KeyHash;
use crate::drain::Drain;
use crate::inspect::ledger::{Ledger, Process};

const OURS: &str = "https://appliance.example";

/// An appliance without a network.
struct House {
    router: Router,
    page: Arc<Page>,
    store: Arc<Counted>,
    admin: Admin,
    audit: Audit,
    login: Login,
    ledger: Ledger,
    drain: Drain,
    token: String,
    _directory: TempDir,
}

/// A store that counts the questions for events.
#[derive(Debug)]
struct Counted {
    store: Sqlite,
    questions: AtomicUsize,
}

impl Store for Counted {
    fn load(&self) -> Pending<'_, Snapshot> {
        self.store.load()
    }

    fn save<'a>(&'a self, changes: &'a [Change], events: Vec<Event>) -> Pending<'a, Saved> {
        self.store.save(changes, events)
    }

    fn events<'a>(&'a self, query: &'a EventQuery) -> Pending<'a, Vec<Event>> {
        self.questions.fetch_add(1, Ordering::Relaxed);
        self.store.events(query)
    }

    fn prune(&self, before: Timestamp, keep: u64, step: u32) -> Pending<'_, u64> {
        self.store.prune(before, keep, step)
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.store.close()
    }
}

/// What came back.
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn header(&self, name: impl http::header::AsHeaderName) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[track_caller]
    fn leads_to(&self, path: &str) {
        assert_eq!((self.status, self.header(LOCATION)), (303, path), "{}", self.body);
    }

    #[track_caller]
    fn has(&self, texts: &[&str]) {
        for text in texts {
            assert!(self.body.contains(text), "{text:?} is not in {} {}", self.status, self.body);
        }
    }
}

impl House {
    async fn new() -> House {
        let directory = tempfile::tempdir().unwrap();
        let store = Sqlite::open(directory.path()).await.unwrap();
        let store = Arc::new(Counted { store, questions: AtomicUsize::new(0) });
        let drain = Drain::new(Duration::from_secs(5));
        let audit =
            Audit::start(store.clone(), Limits { age: Duration::from_secs(3600), count: 1000 }, &drain);
        let registry = Arc::new(Registry::new(Duration::ZERO, Duration::ZERO, Box::new(())));
        let published = registry.clone();
        let publish = move |roster| published.apply(roster);
        let started = Admin::start(store.clone(), audit.clone(), publish, SystemResolver::default(), &drain);
        let admin = started.await.unwrap();
        let token = new_token().unwrap();
        let record = audit.clone();
        let login = Login::new(true, move |event| record.record(event));
        login.set_token(Some(KeyHash::of(&token)));
        let ledger = Ledger::default();
        let parts = Parts {
            admin: admin.clone(),
            registry,
            ledger: ledger.clone(),
            audit: audit.clone(),
            login: login.clone(),
            tls: true,
            host: "appliance".into(),
            drain: drain.clone(),
        };
        let page = Arc::new(Page::new(parts));
        let router = layers::around(router(page.clone()));
        House { router, page, store, admin, audit, login, ledger, drain, token, _directory: directory }
    }

    async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)], body: String) -> Answer {
        let mut request = Request::builder().method(method).uri(path).header(HOST, "appliance.example");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let peer = Peer::Network("192.0.2.7:50000".parse().unwrap());
        let response = self.router.clone().oneshot(request.extension(peer).body(Body::from(body)).unwrap());
        let (parts, body) = response.await.unwrap().into_parts();
        let body = to_bytes(body, 1 << 20).await.unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    async fn sign_in(&self) -> Visitor<'_> {
        let mut visitor = Visitor { house: self, cookie: String::new(), csrf: String::new() };
        let answer = visitor.post("/sign-in", &[("token", &self.token), ("next", "/clouds")]).await;
        answer.leads_to("/clouds");
        visitor.cookie = answer.header(SET_COOKIE).split(';').next().unwrap().to_owned();
        visitor.csrf = visitor.get("/workers").await.csrf();
        visitor
    }

    async fn kinds(&self) -> Vec<EventKind> {
        self.audit.flush().await;
        let events = self.admin.events(&EventQuery::default()).await.unwrap();
        events.into_iter().rev().map(|event| event.kind).collect()
    }
}

impl Answer {
    fn csrf(&self) -> String {
        let rest = self.body.split("name=\"csrf\" value=\"").nth(1).expect("a form");
        rest.split('"').next().unwrap().to_owned()
    }
}

/// A browser.
struct Visitor<'a> {
    house: &'a House,
    cookie: String,
    csrf: String,
}

impl Visitor<'_> {
    async fn get(&self, path: &str) -> Answer {
        self.house.ask(Method::GET, path, &[("cookie", &self.cookie)], String::new()).await
    }

    /// Posts a form of one's own page.
    async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let fields: Vec<_> = [("csrf", self.csrf.as_str())].iter().chain(fields).copied().collect();
        let body = crate::appliance::page::query(&fields).trim_start_matches('?').to_owned();
        let kind = "application/x-www-form-urlencoded";
        let headers =
            [(COOKIE.as_str(), self.cookie.as_str()), (ORIGIN.as_str(), OURS), (CONTENT_TYPE.as_str(), kind)];
        self.house.ask(Method::POST, path, &headers, body).await
    }
}

#[test]
fn a_sign_in_leads_to_this_appliances_pages_only() {
    for fine in ["/", "/workers?q=a%20b&page=2", "/clouds/3/edit"] {
        assert_eq!(next_path(fine), fine);
    }
    let long = format!("/{}", "a".repeat(LONGEST_NEXT));
    let bad = [
        "",
        "workers",
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "/a\r\nb",
        "/live/x",
        "/sign-out",
        &long,
    ];
    for bad in bad {
        assert_eq!(next_path(bad), "/", "{bad:?}");
    }
}

#[tokio::test]
async fn who_is_not_signed_in_is_led_to_the_sign_in_and_back() {
    let house = House::new().await;
    let stranger = Visitor { house: &house, cookie: String::new(), csrf: String::new() };
    stranger.get("/workers?q=a%20b").await.leads_to("/sign-in?next=%2Fworkers%3Fq%3Da%2520b");
    stranger.post("/workers/1/remove", &[]).await.leads_to("/sign-in?next=%2Fworkers%2F1%2Fremove");
    assert_eq!(stranger.get("/live/workers").await.status, 401);
    // A link from another site: the strict cookie comes with the second request only.
    let headers = [("sec-fetch-site", "cross-site")];
    let again = house.ask(Method::GET, "/workers/1", &headers, String::new()).await;
    assert_eq!(again.status, 200);
    again.has(&[r#"http-equiv="refresh" content="0; url=/workers/1""#]);

    let form = stranger.get("/sign-in?next=%2Fclouds").await;
    form.has(&[r#"name="next" value="/clouds""#, r#"type="password""#, "Where is the token?"]);
    let wrong = stranger.post("/sign-in", &[("token", "dwa_wrong"), ("next", "/clouds")]).await;
    assert_eq!(wrong.status, 401);
    wrong.has(&["This is not the admin token", r#"aria-invalid="true""#, r#"name="next" value="/clouds""#]);
    assert!(!wrong.body.contains("dwa_wrong"));

    let visitor = house.sign_in().await;
    visitor.get("/").await.leads_to("/workers");
    let out = visitor.post("/sign-out", &[]).await;
    out.leads_to("/sign-in?why=bye");
    assert!(out.header(SET_COOKIE).contains("Max-Age=0"));
    visitor.get("/clouds").await.leads_to("/sign-in?why=ended&next=%2Fclouds");
    stranger.get("/sign-in?why=ended").await.has(&["Your session has ended"]);
    use EventKind::*;
    assert_eq!(house.kinds().await, [LoginFailed, LoginOk, Logout]);
}

#[tokio::test]
async fn too_many_attempts_are_told_with_the_time_to_wait() {
    let house = House::new().await;
    let stranger = Visitor { house: &house, cookie: String::new(), csrf: String::new() };
    let mut last = stranger.post("/sign-in", &[("token", "no")]).await;
    for _ in 0..100 {
        if last.status == 429 {
            break;
        }
        last = stranger.post("/sign-in", &[("token", "no")]).await;
    }
    assert_eq!(last.status, 429);
    last.has(&["Too many attempts failed, and this one too: try again in", "<form"]);
    assert!(last.header(RETRY_AFTER).parse::<u64>().unwrap() > 0);
}

#[tokio::test]
async fn every_answer_has_the_headers_of_a_page() {
    let house = House::new().await;
    let visitor = house.sign_in().await;
    for path in
        ["/sign-in", "/workers", "/workers/9", "/connections/9/close", "/events?before=x", "/", "/no/such"]
    {
        let answer = visitor.get(path).await;
        assert_eq!(answer.header(CONTENT_SECURITY_POLICY), POLICY, "{path}");
        assert!(!POLICY.contains("unsafe"));
        assert_eq!(answer.header(CACHE_CONTROL), "no-store", "{path}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("x-frame-options"), "DENY", "{path}");
        assert_eq!(answer.header(REFERRER_POLICY), "same-origin", "{path}");
        if answer.status >= 400 {
            answer.has(&["<h1", "Go to the start"]);
        }
    }
    for (path, status) in [
        ("/workers/9", 404),
        ("/events?before=x", 400),
        ("/workers/abc", 404),
        ("/workers/abc/edit", 404),
        ("/workers/%FF", 404),
        ("/clouds/abc/edit", 404),
        ("/connections/-1/close", 404),
    ] {
        let answer = visitor.get(path).await;
        assert_eq!(answer.status, status, "{path}");
        // How it was read concerns nobody.
        for word in ["parse", "path:", "i64", "UTF-8"] {
            assert!(!answer.body.contains(word), "{path}: {word:?} in {}", answer.body);
        }
    }
    let api = visitor.get("/api/v1/no-such").await;
    assert_eq!((api.status, api.header(CONTENT_TYPE)), (404, "application/problem+json"));
    let kept = visitor.get(&assets::STYLE.path).await;
    assert!(kept.header(CACHE_CONTROL).contains("immutable"));
}

#[tokio::test]
async fn a_worker_is_added_its_key_shown_once_and_all_of_it_changed() {
    let house = House::new().await;
    let visitor = house.sign_in().await;
    visitor.get("/workers").await.has(&["No worker yet", "Add the first worker"]);
    visitor.get("/workers/new").await.has(&[r#"name="enabled" type="checkbox" value="yes" checked"#]);
    let fields = [
        ("name", "berlin"),
        ("description", HOSTILE),
        ("proxy_hosts", "vc.example:443, 10.0.0.0/8"),
        ("enabled", "yes"),
    ];
    let added = visitor.post("/workers/new", &fields).await;
    added.leads_to("/workers/1/key");
    assert!(!added.body.contains("dwk_"));
    let shown = visitor.get("/workers/1/key").await;
    shown.has(&["berlin is added", "appliance_url = &quot;https://appliance.example&quot;", "dwk_"]);
    let key = shown.body.split("<code id=\"worker-key\">").nth(1).unwrap().split('<').next().unwrap();
    assert_eq!(key.parse::<Key>().unwrap().hash(), house.admin.worker(&1.into()).unwrap().key);
    // Not a second time, and not to another session.
    visitor.get("/workers/1/key").await.leads_to("/workers/1");
    visitor.get("/workers/1").await.has(&[
        "The key was shown already",
        "Waiting for a node",
        "vc.example:443",
    ]);
    let listed = visitor.get("/workers").await;
    listed.has(&["berlin", "Waiting for a node", "10.0.0.0/8"]);
    assert!(!listed.body.contains("<script>") && !listed.body.contains("shown already"));

    visitor.get("/workers/1/edit").await.has(&["vc.example:443, 10.0.0.0/8", r#"name="revision" value="1""#]);
    let fields =
        [("name", "berlin-2"), ("proxy_hosts", "*.lab.example"), ("enabled", "yes"), ("revision", "1")];
    visitor.post("/workers/1/edit", &fields).await.leads_to("/workers/1");
    visitor.get("/workers/1").await.has(&["berlin-2 is saved.", "*.lab.example"]);
    assert!(!visitor.get("/workers/1").await.body.contains("is saved."), "said once");
    // Somebody else's form is older.
    let stale = visitor.post("/workers/1/edit", &fields).await;
    assert_eq!(stale.status, 409);
    stale.has(&["has changed since you loaded it", "Load it again", r#"value="berlin-2""#]);

    visitor.get("/workers/1/rotate").await.has(&["Rotate the key of berlin-2", "15 minutes"]);
    visitor.post("/workers/1/rotate", &[("grace", "900")]).await.leads_to("/workers/1/key");
    visitor.get("/workers/1/key").await.has(&["berlin-2 has a new key", "The old key works until"]);
    visitor.get("/workers/1").await.has(&["the one before works, too"]);
    // The first key is in its grace: it ends only where the question said so, and of no other key.
    let ends = house.admin.worker(&1.into()).unwrap().previous_key.unwrap().0.to_string();
    let asked = visitor.get("/workers/1/rotate").await;
    asked.has(&[&ends[..12], "was to work until", "It ends now", &format!(r#"name="ends" value="{ends}""#)]);
    for fields in [vec![("grace", "900")], vec![("grace", "900"), ("ends", "another")]] {
        let refused = visitor.post("/workers/1/rotate", &fields).await;
        assert_eq!(refused.status, 409);
        refused.has(&["has another key already", "wait until then"]);
    }
    visitor.post("/workers/1/rotate", &[("grace", "900"), ("ends", &ends)]).await.leads_to("/workers/1/key");
    visitor
        .get("/workers/1/key")
        .await
        .has(&["has ended now", "give the new key to the nodes that still have it"]);

    // By its name, as the command line and the API take it.
    visitor.get("/workers/berlin-2").await.leads_to("/workers/1");

    visitor.get("/workers/1/disable").await.has(&["Disable berlin-2?", "data-cancel"]);
    visitor.post("/workers/1/disable", &[]).await.leads_to("/workers/1");
    visitor.get("/workers/1").await.has(&["Disabled", "Enable"]);
    visitor.post("/workers/1/enable", &[]).await.leads_to("/workers/1");

    visitor.post("/workers/1/remove", &[]).await.leads_to("/workers");
    visitor.get("/workers").await.has(&["berlin-2 is removed.", "No worker yet"]);
    assert_eq!(visitor.post("/workers/1/remove", &[]).await.status, 404);
}

#[tokio::test]
async fn what_is_wrong_with_a_form_is_said_beside_its_fields() {
    let house = House::new().await;
    let visitor = house.sign_in().await;
    let fields = [
        ("name", "Berlin DC"),
        ("description", HOSTILE),
        ("proxy_hosts", "https://vc.example/sdk, 10.0.0.1/8"),
    ];
    let wrong = visitor.post("/workers/new", &fields).await;
    assert_eq!(wrong.status, 422);
    wrong.has(&[
        "The worker was not saved",
        r##"href="#name""##,
        r##"href="#proxy_hosts""##,
        r#"value="Berlin DC""#,
        "https://vc.example/sdk, 10.0.0.1/8",
        r#"id="name-wrong""#,
        "&lt;script&gt;",
    ]);
    // What was not ticked is not ticked again.
    assert!(!wrong.body.contains("checked"));

    visitor.post("/workers/new", &[("name", "a"), ("proxy_hosts", "vc.example"), ("enabled", "yes")]).await;
    let taken = visitor.post("/workers/new", &[("name", "a"), ("enabled", "yes")]).await;
    assert_eq!(taken.status, 409);
    taken.has(&["another worker is named", r##"href="#name""##]);
    let taken = visitor
        .post("/workers/new", &[("name", "b"), ("proxy_hosts", "vc.example"), ("enabled", "yes")])
        .await;
    assert_eq!(taken.status, 409);
    taken.has(&["is carried by worker a already", r##"href="#proxy_hosts""##]);

    let wrong = visitor.post("/clouds/new", &[("name", ""), ("kind", "x"), ("api_url", "ftp://x")]).await;
    assert_eq!(wrong.status, 422);
    wrong.has(&["The cloud was not saved", r##"href="#name""##, r##"href="#kind""##, r##"href="#api_url""##]);
}

#[tokio::test]
async fn a_cloud_is_given_to_a_worker_which_can_not_be_removed_then() {
    let house = House::new().await;
    let visitor = house.sign_in().await;
    visitor.get("/clouds").await.has(&["No cloud yet"]);
    visitor.post("/workers/new", &[("name", "berlin"), ("enabled", "yes")]).await.leads_to("/workers/1/key");
    visitor.get("/clouds/new").await.has(&[r#"<option value="1">berlin</option>"#, "VMware vCenter"]);
    let fields = [("name", "Prod"), ("kind", "vmware"), ("api_url", "https://vc.example"), ("worker", "1")];
    visitor.post("/clouds/new", &fields).await.leads_to("/clouds");
    visitor.get("/clouds").await.has(&["Prod is added.", "vc.example:443", "berlin"]);
    visitor.get("/workers/1").await.has(&["Prod", "vc.example:443"]);
    visitor.get("/workers/1/remove").await.has(&["It cannot be removed yet", "/clouds/1/edit"]);
    assert_eq!(visitor.post("/workers/1/remove", &[]).await.status, 409);

    visitor.get("/clouds/1/edit").await.has(&[r#"<option value="1" selected>berlin</option>"#]);
    let fields = [
        ("name", "Prod"),
        ("kind", "nutanix"),
        ("api_url", "https://vc.example"),
        ("worker", ""),
        ("revision", "1"),
    ];
    visitor.post("/clouds/1/edit", &fields).await.leads_to("/clouds");
    visitor.get("/clouds").await.has(&["Nutanix", "none: reached directly"]);
    visitor.get("/clouds/1/remove").await.has(&["Remove Prod?"]);
    visitor.post("/clouds/1/remove", &[]).await.leads_to("/clouds");
    visitor.get("/clouds").await.has(&["No cloud yet"]);
    visitor.get("/events?q=prod").await.has(&["Cloud added", "Cloud removed"]);
    visitor.get("/events?kind=cloud-removed").await.has(&["Cloud removed"]);
    visitor.get("/events?q=no-such-thing").await.has(&["Nothing found"]);
}

#[tokio::test]
async fn lists_go_on_over_pages() {
    let house = House::new().await;
    let visitor = house.sign_in().await;
    for n in 0..51 {
        visitor.post("/workers/new", &[("name", &format!("site-{n:02}")), ("enabled", "yes")]).await;
    }
    let first = visitor.get("/workers").await;
    first.has(&["1 to 50 of 51 workers", "/workers?page=1", "site-00", "site-49"]);
    assert!(!first.body.contains("site-50"));
    let second = visitor.get("/workers?page=1").await;
    second.has(&["51 to 51 of 51 workers", r#"href="/workers" rel="prev""#, "site-50"]);
    // There is no such page any more: the last one is.
    visitor.get("/workers?page=1844674407370955161").await.has(&["51 to 51 of 51 workers", "site-50"]);
    visitor.get("/workers?q=SITE-0").await.has(&["10 workers"]);
    visitor.get("/events").await.has(&["The newest 100", "/events?before="]);
}

#[tokio::test]
async fn requests_that_another_site_makes_change_nothing() {
    let house = House::new().await;
    let visitor = house.sign_in().await;
    visitor.post("/workers/new", &[("name", "berlin"), ("enabled", "yes")]).await.leads_to("/workers/1/key");
    let cookie = visitor.cookie.as_str();
    let form = ("content-type", "application/x-www-form-urlencoded");
    let body = format!("csrf={}", visitor.csrf);
    for (headers, body) in [
        (vec![("cookie", cookie), form, ("origin", "https://evil.example")], body.clone()),
        (vec![("cookie", cookie), form, ("origin", "null")], body.clone()),
        (vec![("cookie", cookie), form, ("origin", OURS)], "csrf=no".to_owned()),
        (vec![("cookie", cookie), form, ("origin", OURS)], String::new()),
    ] {
        let answer = house.ask(Method::POST, "/workers/1/remove", &headers, body).await;
        assert_eq!(answer.status, 403, "{headers:?}");
        answer.has(&["This was not done", "Go to the start"]);
    }
    assert!(house.admin.worker(&1.into()).is_ok());
    assert!(house.kinds().await.ends_with(&[EventKind::RequestRefused; 4]));
}

#[tokio::test]
async fn connections_are_found_and_closed_by_hand() {
    let house = House::new().await;
    let visitor = house.sign_in().await;
    visitor.get("/connections").await.has(&["No connection yet"]);
    let target: crate::target::Host = "vc.example".parse().unwrap();
    let open = |port| {
        let target = crate::target::Target { host: target.clone(), port };
        house.ledger.open(crate::inspect::ledger::Entry::Socks, 7, target, Default::default())
    };
    let (first, _second) = (open(443), open(902));
    first.end(Ok(()));
    let all = visitor.get("/connections").await;
    all.has(&["vc.example:443", "vc.example:902", "/connections/2/close", "SOCKS proxy"]);
    assert!(!all.body.contains("/connections/1/close"), "an ended one can't be closed");
    let open = visitor.get("/connections?state=open&q=VC").await;
    assert!(open.body.contains("vc.example:902") && !open.body.contains("vc.example:443"));
    visitor.get("/connections?q=nothing").await.has(&["Nothing found"]);
    visitor.get("/connections/2/close").await.has(&["Close this connection?", "vc.example:902"]);
    visitor.post("/connections/2/close", &[]).await.leads_to("/connections");
    visitor.get("/connections").await.has(&["The connection to vc.example:902 is closed."]);
    assert_eq!(visitor.post("/connections/1/close", &[]).await.status, 404);
    assert_eq!(house.kinds().await.last(), Some(&EventKind::StreamClosed));
}

#[tokio::test]
async fn ten_thousand_connections_are_all_found() {
    let house = House::new().await;
    let visitor = house.sign_in().await;
    let target = crate::target::Target { host: "vc.example".parse().unwrap(), port: 443 };
    let open = |n: u32| {
        let process =
            Process { pid: n, uid: 0, comm: if n == 1 { "Oldest" } else { "java" }.into(), cgroup_id: 1 };
        let origin = crate::inspect::ledger::Origin { process: Some(process), ..Default::default() };
        house.ledger.open(crate::inspect::ledger::Entry::Captured, n.into(), target.clone(), origin)
    };
    let flows: Vec<_> = (1..=10_000).map(open).collect();
    flows[0].carried_by("site-a/far".into());
    visitor.get("/connections").await.has(&["1 to 200 of 10000 connections", "/connections/10000/close"]);
    // By whatever is known of it.
    for query in ["oldest", "Oldest+1", "site-a", "FAR", "0000000000000001"] {
        let found = visitor.get(&format!("/connections?state=open&q={query}")).await;
        found.has(&["/connections/1/close", "1 connection"]);
        assert!(!found.body.contains("/connections/2/close"), "{query}");
    }
    // And page after page: each of them once.
    let (mut seen, mut path) = (Vec::new(), "/connections?state=open&q=vc.".to_owned());
    loop {
        let page = visitor.get(&path).await;
        let rows = page.body.split(" id=\"connection-").skip(1);
        seen.extend(rows.map(|row| row.split('"').next().unwrap().parse::<u32>().unwrap()));
        let older = page.body.split(" rel=\"next\"").next().filter(|rest| rest.len() < page.body.len());
        let Some(before) = older else { break };
        path = before.rsplit("href=\"").next().unwrap().trim_end_matches('"').replace("&amp;", "&");
        assert!(path.starts_with("/connections?q=vc.&state=open&before="), "{path}");
    }
    assert_eq!(seen, (1..=10_000).rev().collect::<Vec<_>>());
    let last = visitor.get(&path).await;
    last.has(&[
        "9801 to 10000 of 10000 connections",
        r#"href="/connections?q=vc.&amp;state=open" rel="prev""#,
    ]);
    last.has(&[r#"data-live="/live/connections?q=vc.&amp;state=open&amp;before=201""#]);
    // What was on a page is gone: there is the newest one.
    drop(flows);
    visitor.get("/connections?before=201").await.has(&["1 to 200 of 256 connections"]);
}
