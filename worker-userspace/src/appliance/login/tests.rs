use super::*;
use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use bytes::Bytes;
use tokio::time::advance;
use tower::ServiceExt;

const SOURCE: &str = "192.0.2.7";
const FORM: &str = "application/x-www-form-urlencoded";

struct World {
    login: Login,
    token: String,
    events: Arc<Mutex<Vec<NewEvent>>>,
    router: Router,
}

impl World {
    fn new(tls: bool) -> World {
        let events = Arc::new(Mutex::new(Vec::new()));
        let (kept, token) = (events.clone(), new_token().unwrap());
        let record = move |event| kept.lock().unwrap().push(event);
        let login = Login::new(tls, record);
        login.set_token(Some(KeyHash::of(&token)));
        let echo = async |caller: Caller, body: Bytes| format!("{} {}", caller.actor().name, body.len());
        let route = get(echo).post(echo).delete(async || StatusCode::NO_CONTENT);
        let router = Router::new().route("/", route).layer(from_fn_with_state(login.clone(), guard));
        World { login, token, events, router }
    }

    async fn ask(
        &self,
        method: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> (StatusCode, String) {
        let mut request = Request::builder().method(method).uri("/").header(HOST, "appliance.example");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let peer = Peer::Network(std::net::SocketAddr::new(SOURCE.parse().unwrap(), 50_000));
        let request = request.extension(peer).body(body.into()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn status(&self, method: &str, headers: &[(&str, &str)]) -> u16 {
        self.ask(method, headers, Body::empty()).await.0.as_u16()
    }

    /// Signs in; the cookie as the browser sends it, and the session.
    fn sign_in(&self) -> (String, Session) {
        let signed =
            self.login.sign_in(SOURCE.parse().unwrap(), &HeaderMap::new(), &self.token).ok().unwrap();
        let cookie = signed.cookie.to_str().unwrap().split(';').next().unwrap().to_owned();
        (cookie, signed.session)
    }

    fn kinds(&self) -> Vec<EventKind> {
        self.events.lock().unwrap().drain(..).map(|event| event.kind).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn the_token_opens_and_nothing_else_does() {
    let world = World::new(true);
    let bearer = format!("Bearer {}", world.token);
    let (status, body) = world.ask("POST", &[("authorization", &bearer)], "abc").await;
    assert_eq!((status.as_u16(), body.as_str()), (200, "admin (token) 3"));
    assert_eq!(world.status("GET", &[("authorization", &bearer.replace("Bearer", "bearer"))]).await, 200);
    assert_eq!(world.kinds(), []);
    assert_eq!(world.status("GET", &[]).await, 401);
    assert_eq!(world.kinds(), [], "who shows nothing has tried nothing");
    for wrong in ["Bearer dwa_wrong", "Bearer ", &bearer[..bearer.len() - 1], &format!("{bearer}A")] {
        assert_eq!(world.status("GET", &[("authorization", wrong)]).await, 401, "{wrong}");
        assert_eq!(world.kinds(), [EventKind::LoginFailed]);
    }
    assert_eq!(world.status("GET", &[("authorization", &bearer.replace("Bearer", "Basic"))]).await, 401);
    // The socket's requests are not the network's.
    let request = Request::builder().uri("/").header(AUTHORIZATION, &bearer).body(Body::empty()).unwrap();
    assert_eq!(world.router.clone().oneshot(request).await.unwrap().status(), 401);

    let other = new_token().unwrap();
    let caller = Caller::Token { source: SOURCE.parse().unwrap(), epoch: 1 };
    assert!(world.login.still_admits(&caller));
    world.login.set_token(Some(KeyHash::of(&other)));
    assert!(!world.login.still_admits(&caller));
    assert_eq!(world.status("GET", &[("authorization", &bearer)]).await, 401);
    assert_eq!(world.status("GET", &[("authorization", &format!("Bearer {other}"))]).await, 200);
}

#[tokio::test(start_paused = true)]
async fn attempts_are_limited_and_tell_when_to_come_back() {
    let world = World::new(true);
    let bearer = format!("Bearer {}", world.token);
    while world.status("GET", &[("authorization", "Bearer x")]).await == 401 {}
    let kinds = world.kinds();
    assert_eq!(kinds.last(), Some(&EventKind::LoginLimited));
    assert_eq!(kinds.len(), 11);
    assert_eq!(world.status("GET", &[("authorization", "Bearer x")]).await, 429);
    assert_eq!(world.status("GET", &[("authorization", &bearer)]).await, 200, "who has it is not kept out");
    assert_eq!(world.kinds(), [], "one event is enough");
    world.sign_in();
    assert_eq!(world.kinds(), [EventKind::LoginOk], "nor at the sign-in");
    assert_eq!(world.status("GET", &[("authorization", "Bearer x")]).await, 429, "which helps nobody else");
    advance(Duration::from_secs(6)).await;
    assert_eq!(world.status("GET", &[("authorization", "Bearer x")]).await, 401);
}

/// Many hosts try on, each with another token, as those of a botnet do.
#[tokio::test(start_paused = true)]
async fn strangers_who_fail_do_not_keep_the_right_token_out() {
    let world = World::new(true);
    let (own, none) = (SOURCE.parse().unwrap(), HeaderMap::new());
    let mut limited = 0;
    for n in 0..5_000 {
        let source = std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into();
        let denied = world.login.sign_in(source, &none, &format!("dwa_{n}")).err().unwrap();
        limited += usize::from(matches!(denied, Denied::Limited(_)));
    }
    assert_eq!(limited, 4_900, "wrong ones are limited together");
    assert_eq!(world.kinds().len(), 101, "and so is their noise");
    world.sign_in();
    assert!(matches!(world.login.sign_in(own, &none, "dwa_typo").err(), Some(Denied::Limited(_))));
    world.sign_in();
    assert_eq!(world.kinds(), [EventKind::LoginOk; 2]);
}

#[tokio::test(start_paused = true)]
async fn a_browsers_requests_count_only_from_our_own_page() {
    let world = World::new(true);
    let (cookie, session) = world.sign_in();
    assert!(cookie.starts_with("__Host-dworker="), "{cookie}");
    assert_eq!(world.kinds(), [EventKind::LoginOk]);
    let cookie = ("cookie", cookie.as_str());
    assert_eq!(world.status("GET", &[("cookie", &format!("a=b; {}; c=d", cookie.1))]).await, 200);

    let csrf = ("x-csrf-token", session.csrf());
    let ours = ("origin", "https://appliance.example");
    let fetch = ("sec-fetch-site", "same-origin");
    for accepted in [&[cookie, csrf, ours][..], &[cookie, csrf, fetch], &[cookie, csrf, ours, fetch]] {
        assert_eq!(world.status("POST", accepted).await, 200, "{accepted:?}");
        assert_eq!(world.status("DELETE", accepted).await, 204, "{accepted:?}");
    }
    assert_eq!(world.kinds(), []);
    for refused in [
        &[cookie, csrf][..],
        &[cookie, csrf, ("origin", "https://evil.example")],
        &[cookie, csrf, ("origin", "http://appliance.example")],
        &[cookie, csrf, ("origin", "null")],
        &[cookie, csrf, ours, ("sec-fetch-site", "same-site")],
        &[cookie, csrf, ("origin", "https://evil.example"), fetch],
        &[cookie, ours],
        &[cookie, ours, ("x-csrf-token", "wrong")],
        &[cookie, ours, ("x-csrf-token", "")],
    ] {
        assert_eq!(world.status("POST", refused).await, 403, "{refused:?}");
        assert_eq!(world.kinds(), [EventKind::RequestRefused], "{refused:?}");
    }
    let form = ("content-type", FORM);
    let body = format!("name=a&csrf={}&x=y", session.csrf());
    let (status, answer) = world.ask("POST", &[cookie, ours, form], body.clone()).await;
    assert_eq!(
        (status.as_u16(), answer),
        (200, format!("admin (browser) {}", body.len())),
        "the body is put back"
    );
    for wrong in ["", "csrf=", "csrf=x", "name=a"] {
        assert_eq!(world.ask("POST", &[cookie, ours, form], wrong).await.0, 403, "{wrong}");
    }
    let (status, _) = world.ask("POST", &[cookie, ours, form], "x".repeat(LARGEST_BODY + 1)).await;
    assert_eq!(status, 413);
}

#[tokio::test(start_paused = true)]
async fn a_session_ends_by_sign_out_idleness_and_a_new_token() {
    let world = World::new(true);
    let (cookie, session) = world.sign_in();
    let (other, _) = world.sign_in();
    let caller = Caller::Browser { source: SOURCE.parse().unwrap(), session };
    assert!(world.login.still_admits(&caller));
    let gone = world.login.sign_out(&caller);
    assert!(gone.to_str().unwrap().contains("Max-Age=0"));
    assert!(!world.login.still_admits(&caller));
    assert_eq!(world.status("GET", &[("cookie", &cookie)]).await, 401);
    assert_eq!(world.status("GET", &[("cookie", &other)]).await, 200);
    advance(Duration::from_secs(31 * 60)).await;
    assert_eq!(world.status("GET", &[("cookie", &other)]).await, 401);
    let (cookie, _) = world.sign_in();
    world.login.set_token(Some(KeyHash::of("another")));
    assert_eq!(world.status("GET", &[("cookie", &cookie)]).await, 401);
    let wrong = world.login.sign_in(SOURCE.parse().unwrap(), &HeaderMap::new(), &world.token);
    assert_eq!(wrong.err(), Some(Denied::WrongToken));
}

#[tokio::test(start_paused = true)]
async fn a_sign_in_that_straddles_a_new_token_begins_no_session() {
    let world = World::new(true);
    let source = SOURCE.parse().unwrap();
    let (_, kept) = world.sign_in();
    let judged = world.login.judge(Some(&world.token), source).unwrap();
    world.login.set_token(Some(KeyHash::of(&world.token)));
    assert!(world.login.still_admits(&Caller::Browser { source, session: kept }), "it is the same token");
    world.login.set_token(Some(KeyHash::of("another")));
    assert_eq!(world.login.begin(source, judged).err(), Some(Denied::WrongToken));
    assert_eq!(world.kinds(), [EventKind::LoginOk], "nobody signed in the second time");
    let judged = world.login.judge(Some("another"), source).unwrap();
    assert!(world.login.begin(source, judged).is_ok());
}

#[tokio::test(start_paused = true)]
async fn another_sites_page_does_not_sign_in_and_a_lab_without_tls_can() {
    let world = World::new(true);
    let mut headers = HeaderMap::new();
    headers.insert(HOST, HeaderValue::from_static("appliance.example"));
    headers.insert(ORIGIN, HeaderValue::from_static("https://evil.example"));
    let source = SOURCE.parse().unwrap();
    assert_eq!(world.login.sign_in(source, &headers, &world.token).err(), Some(Denied::CrossSite));
    assert_eq!(world.kinds(), [EventKind::LoginFailed]);
    let set = world.login.sign_in(source, &HeaderMap::new(), &world.token).ok().unwrap().cookie;
    let set = set.to_str().unwrap().split_once('=').unwrap().1.split_once(';').unwrap().1.to_owned();
    assert_eq!(set, " Path=/; HttpOnly; SameSite=Strict; Secure");

    let world = World::new(false);
    let (cookie, session) = world.sign_in();
    assert!(cookie.starts_with("dworker="), "{cookie}");
    let headers = [
        ("cookie", cookie.as_str()),
        ("x-csrf-token", session.csrf()),
        ("origin", "http://appliance.example"),
    ];
    assert_eq!(world.status("POST", &headers).await, 200);

    let world = Login::new(true, |_| {});
    assert_eq!(world.sign_in(source, &HeaderMap::new(), "").err(), Some(Denied::NoToken));
}
