//! What is live.

use tokio::time::Instant;

use super::*;
use crate::appliance::page::live::MOST;
use crate::appliance::page::views::{Content, Shown, View};

/// Reads a stream until `wanted` is in it.
async fn read(body: &mut Body, wanted: &str) -> String {
    use http_body_util::BodyExt;
    let mut text = String::new();
    while !text.contains(wanted) {
        let frame = tokio::time::timeout(Duration::from_secs(20), body.frame()).await.expect(wanted);
        let Some(frame) = frame else { panic!("the stream ended without {wanted:?}: {text}") };
        text.push_str(std::str::from_utf8(&frame.unwrap().into_data().unwrap()).unwrap());
    }
    text
}

async fn stream(house: &House, visitor: &Visitor<'_>, path: &str) -> Body {
    let request = Request::builder().uri(path).header(COOKIE, &visitor.cookie);
    let peer = Peer::Network("192.0.2.7:50000".parse().unwrap());
    let response =
        house.router.clone().oneshot(request.extension(peer).body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK, "{path}");
    assert_eq!(response.headers()[CONTENT_TYPE], "text/event-stream");
    response.into_body()
}

#[tokio::test]
async fn a_stream_brings_what_changes_and_ends_with_its_session() {
    let house = House::new().await;
    let visitor = house.sign_in().await;
    let mut live = stream(&house, &visitor, "/live/workers").await;
    let first = read(&mut live, "\n\n").await;
    assert!(
        first.starts_with("event: page\ndata: <div id=\"live\">") && first.contains("No worker yet"),
        "{first}"
    );
    visitor.post("/workers/new", &[("name", "berlin"), ("enabled", "yes")]).await.leads_to("/workers/1/key");
    let next = read(&mut live, "\n\n").await;
    assert!(next.contains("berlin") && next.contains("Waiting for a node"), "{next}");
    let mut gone = stream(&house, &visitor, "/live/workers/1").await;
    assert!(read(&mut gone, "\n\n").await.contains("berlin"));
    visitor.post("/workers/1/remove", &[]).await.leads_to("/workers");
    read(&mut gone, "event: end").await;
    house.login.sign_out(&house.caller(&visitor).await);
    read(&mut live, "event: end").await;
}

#[tokio::test]
async fn events_come_as_they_happen_where_they_are_meant() {
    let house = House::new().await;
    let visitor = house.sign_in().await;
    house.audit.flush().await;
    let mut all = stream(&house, &visitor, "/live/events").await;
    let mut some = stream(&house, &visitor, "/live/events?kind=worker-added&q=BER").await;
    assert!(read(&mut all, "\n\n").await.contains("Login ok"));
    assert!(read(&mut some, "\n\n").await.contains("Nothing found"));
    for name in ["lisbon", "berlin"] {
        visitor.post("/workers/new", &[("name", name), ("enabled", "yes")]).await;
    }
    let found = read(&mut some, "event: page").await;
    assert!(found.contains("berlin") && !found.contains("lisbon"), "{found}");
    let mut seen = String::new();
    while !(seen.contains("Key shown") && seen.contains("berlin")) {
        seen = read(&mut all, "\n\n").await;
    }
    assert_eq!(seen.matches("Worker added</span>").count(), 2, "each once: {seen}");
    assert_eq!(seen.matches("Login ok</span>").count(), 1, "{seen}");
}

#[tokio::test]
async fn streams_are_bounded_and_end_when_the_daemon_stops() {
    let house = House::new().await;
    let visitor = house.sign_in().await;
    let mut all = Vec::new();
    for _ in 0..MOST {
        all.push(stream(&house, &visitor, "/live/events").await);
    }
    assert_eq!(visitor.get("/live/events").await.status, 503);
    // One that is closed leaves its place.
    all.pop();
    let freed = async {
        let cookie = [("cookie", visitor.cookie.as_str())];
        while house.ask(Method::HEAD, "/live/events", &cookie, String::new()).await.status == 503 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), freed).await.expect("the place is kept");
    assert_eq!(house.drain.finish().await, 0, "nothing had to be cut");
}

impl House {
    /// Who a visitor is.
    async fn caller(&self, visitor: &Visitor<'_>) -> Caller {
        use axum::middleware::from_fn_with_state;
        use std::sync::Mutex;
        let seen: Arc<Mutex<Option<Caller>>> = Arc::default();
        let kept = seen.clone();
        let note = get(async move |caller: Caller| *kept.lock().unwrap() = Some(caller));
        let router: Router = Router::new()
            .route("/", note)
            .layer(from_fn_with_state(self.login.clone(), crate::appliance::login::guard));
        let peer = Peer::Network("192.0.2.7:50000".parse().unwrap());
        let request = Request::builder().uri("/").header(COOKIE, &visitor.cookie).extension(peer);
        router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let caller = seen.lock().unwrap().take();
        caller.expect("a caller")
    }
}

impl House {
    async fn html(&self, view: &View, since: Instant) -> Arc<str> {
        match view.content(&self.page, since).await {
            Content::Html(html) => html,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn what_several_look_at_is_made_once_for_all_of_them() {
    let house = House::new().await;
    let visitor = house.sign_in().await;
    let view = |query: &str| house.page.views.of(Shown::Workers { query: query.into(), page: 0 });
    let shared = view("");
    assert!(Arc::ptr_eq(&shared, &view("")) && !Arc::ptr_eq(&shared, &view("x")));
    let second = Instant::now();
    let first = house.html(&shared, second).await;
    assert!(first.contains("No worker yet"));
    visitor.post("/workers/new", &[("name", "berlin"), ("enabled", "yes")]).await.leads_to("/workers/1/key");
    let other = house.html(&shared, second).await;
    assert!(Arc::ptr_eq(&first, &other), "of one second there is one");
    let fresh = house.html(&shared, Instant::now()).await;
    assert!(fresh.contains("berlin"), "who comes later is not shown what was");
    let same = house.html(&shared, Instant::now()).await;
    assert!(Arc::ptr_eq(&fresh, &same), "what is the same need not be sent");
    assert!(matches!(
        house.page.views.of(Shown::Worker(2)).content(&house.page, second).await,
        Content::Gone
    ));
}

#[tokio::test]
async fn each_session_has_its_own_word_in_what_it_shares() {
    let house = House::new().await;
    let (one, two) = (house.sign_in().await, house.sign_in().await);
    one.post("/workers/new", &[("name", "berlin")]).await.leads_to("/workers/1/key");
    for (visitor, other) in [(&one, &two), (&two, &one)] {
        let mut live = stream(&house, visitor, "/live/workers/1").await;
        let shown = read(&mut live, "\n\n").await;
        assert!(
            shown.contains("/workers/1/enable") && shown.contains(&format!("value=\"{}\"", visitor.csrf))
        );
        assert!(!shown.contains(&other.csrf) && !shown.contains(&house.page.mark));
    }
}

#[tokio::test]
async fn the_store_is_asked_once_for_the_events_of_a_page() {
    let house = House::new().await;
    let visitor = house.sign_in().await;
    visitor.post("/workers/new", &[("name", "berlin"), ("enabled", "yes")]).await.leads_to("/workers/1/key");
    house.audit.flush().await;
    let questions = || house.store.questions.load(Ordering::Relaxed);
    let before = questions();
    let mut streams = Vec::new();
    for path in ["/live/workers/1", "/live/events", "/live/events?kind=worker-changed"] {
        for _ in 0..3 {
            streams.push(stream(&house, &visitor, path).await);
        }
    }
    for stream in &mut streams {
        read(stream, "event: page").await;
    }
    for name in ["lisbon", "oslo"] {
        let fields = [("name", name), ("enabled", "yes")];
        visitor.post("/workers/1/edit", &fields).await.leads_to("/workers/1");
        for stream in &mut streams {
            read(stream, &format!("became {name}")).await;
        }
    }
    // A worker that is renamed has other events.
    assert_eq!(questions() - before, 3 + 2);
}
