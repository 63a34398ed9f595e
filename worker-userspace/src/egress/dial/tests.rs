//! Against listeners and a proxy that says what a test wants.

use super::*;
use tokio::net::TcpListener;

fn dialler(allow: &[&str]) -> Dialler {
    let allow: Vec<_> = allow.iter().map(|t| t.parse().unwrap()).collect();
    Dialler::new(Policy::new(Some(&allow), &[]), Duration::from_secs(10))
}

async fn dial(dialler: &Dialler, host: &str, port: u16) -> Result<Dialled, Refusal> {
    dialler.dial(&Target { host: host.parse().unwrap(), port }, Duration::from_secs(10)).await
}

#[tokio::test]
async fn an_allowed_target_is_dialled_and_its_address_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let dialled = dial(&dialler(&["127.0.0.1"]), "127.0.0.1", address.port()).await.unwrap();
    assert_eq!(dialled.address, address);
    // By name too: `localhost` is in every hosts file, and its address is named in the policy.
    let by_name = dialler(&["localhost", "127.0.0.0/8", "::1"]);
    assert_eq!(dial(&by_name, "localhost", address.port()).await.unwrap().address, address);
}

#[tokio::test]
async fn what_failed_is_told() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let refused = dial(&dialler(&["127.0.0.1"]), "127.0.0.1", port).await.unwrap_err();
    assert_eq!((refused.code, refused.errno), (Code::Refused, libc::ECONNREFUSED));
    let denied = dial(&dialler(&["192.0.2.1"]), "127.0.0.1", port).await.unwrap_err();
    assert_eq!(denied.code, Code::Denied);
    let rebound = dial(&dialler(&["localhost"]), "localhost", port).await.unwrap_err();
    assert_eq!(rebound.code, Code::Denied);
    assert!(rebound.text.contains("loopback"), "{rebound}");
}

fn upstream(port: u16, no_proxy: &str) -> Arc<Upstream> {
    let config = crate::config::Upstream {
        tls: false,
        host: Host::Addr([127, 0, 0, 1].into()),
        port,
        login: None,
        no_proxy: crate::target::NoProxy::split(no_proxy).map(|entry| entry.parse().unwrap()).collect(),
    };
    Arc::new(Upstream::new(&config, None).unwrap())
}

/// A proxy that connects to nearly everything, and what it was asked for.
async fn proxy(no_proxy: &str) -> (Arc<Upstream>, tokio::sync::mpsc::UnboundedReceiver<String>) {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = upstream(listener.local_addr().unwrap().port(), no_proxy);
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            let mut socket = BufReader::new(socket);
            let mut line = String::new();
            socket.read_line(&mut line).await.unwrap();
            tell.send(line.split(' ').nth(1).unwrap().to_owned()).unwrap();
            let answer = match line.as_str() {
                // It keeps silent, is not there, is not for this host.
                line if line.contains("10.77.0.8") => "",
                line if line.contains("10.77.0.9") => "HTTP/1.1 502 No\r\n\r\n",
                line if line.contains("10.77.0.7") => "HTTP/1.1 403 No\r\n\r\n",
                line if line.contains("10.77.0.5") => {
                    "HTTP/1.1 502 No\r\nProxy-Status: p; error=destination_ip_prohibited\r\n\r\n"
                }
                line if line.contains("10.77.0.4") => "HTTP/1.1 429 Slowly\r\n\r\n",
                line if line.contains("10.77.0.6") => "HTTP/1.1 407 Who\r\n\r\n",
                _ => "HTTP/1.1 200 Yes\r\n\r\n",
            };
            socket.write_all(answer.as_bytes()).await.unwrap();
            kept.push(socket);
        }
    });
    (proxy, told)
}

// Names in hexadecimal, which every resolver takes for the addresses 10.77.0.1 and 127.0.0.1, without asking anybody.
const INSIDE: &str = "0x0a4d0001";
const LOOPBACK: &str = "0x7f000001";
/// Nobody resolves it (RFC 6761, 6.4).
const UNKNOWN: &str = "vcenter.invalid";

#[tokio::test]
async fn a_proxy_does_not_lead_past_a_policy() {
    for (allow, deny, host, asked, says) in [
        // By name: the proxy resolves it.
        (&[INSIDE][..], &[][..], INSIDE, Some("0x0a4d0001:443"), ""),
        (&[UNKNOWN], &[], UNKNOWN, Some("vcenter.invalid:443"), ""),
        (&["*.invalid", "10.0.0.0/8"], &["secret.invalid"], UNKNOWN, Some("vcenter.invalid:443"), ""),
        (&["*.invalid"], &["vcenter.invalid"], UNKNOWN, None, "in egress.deny"),
        // By address: what was judged is what the proxy gets.
        (&["10.77.0.0/16"], &[], INSIDE, Some("10.77.0.1:443"), ""),
        (&["10.78.0.0/16"], &[], INSIDE, None, "neither is in egress.allow"),
        (&["10.77.0.0/16"], &[], UNKNOWN, None, "can't resolve it"),
        (&["10.77.0.0/16"], &[], "10.77.0.1", Some("10.77.0.1:443"), ""),
        (&["10.77.0.0/16"], &[], "10.78.0.1", None, "not in egress.allow"),
        // Denied by address.
        (&[INSIDE], &["10.77.0.1"], INSIDE, None, "in egress.deny"),
        (&[INSIDE], &["10.77.0.2"], INSIDE, Some("10.77.0.1:443"), ""),
        (&[UNKNOWN], &["10.77.0.2"], UNKNOWN, None, "can't resolve it"),
        // The proxy's own host and its like.
        (&[LOOPBACK, "0.0.0.0/0"], &[], LOOPBACK, None, "is loopback"),
        (&["0.0.0.0/0"], &[], "100.100.100.200", None, "cloud metadata"),
    ] {
        let (proxy, mut told) = proxy("").await;
        let parsed = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<Pattern>>();
        let dialler = Dialler::new(Policy::new(Some(&parsed(allow)), &parsed(deny)), Duration::from_secs(10));
        let dialled = dial(&dialler.through(Some(proxy)), host, 443).await;
        match (asked, dialled) {
            (Some(_), Ok(dialled)) => assert!(dialled.proxied, "{host}"),
            (None, Err(refusal)) => {
                assert_eq!(refusal.code, Code::Denied, "{host}: {refusal}");
                assert!(refusal.text.contains(says), "{host}: {refusal}");
            }
            (_, other) => panic!("{host} of {allow:?}, {deny:?}: {other:?}"),
        }
        assert_eq!(told.try_recv().ok().as_deref(), asked, "{host} of {allow:?}, {deny:?}");
    }
}

#[tokio::test]
async fn what_is_not_for_the_proxy_is_dialled_from_here() {
    let (proxy, mut told) = proxy("localhost.example, 127.0.0.1").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let dialler = dialler(&["127.0.0.1", "10.77.0.9"]).through(Some(proxy));
    let dialled = dial(&dialler, "127.0.0.1", address.port()).await.unwrap();
    assert_eq!((dialled.address, dialled.proxied), (address, false));
    assert!(told.try_recv().is_err(), "the proxy was asked");
    let refusal = dial(&dialler, "10.77.0.9", 443).await.unwrap_err();
    assert_eq!(refusal.code, Code::HostUnreachable);
    assert!(refusal.text.contains("can't connect to 10.77.0.9:443 (502 No)"), "{refusal}");
}

#[tokio::test]
async fn an_address_in_a_names_place_is_the_proxys_or_not() {
    let (proxy, mut told) = proxy("").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let parsed = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<Pattern>>();
    // A network is denied, so the name's address is put in its place; through the proxy it would be the proxy's own host.
    let policy = Policy::new(Some(&parsed(&[LOOPBACK, "127.0.0.1"])), &parsed(&["10.0.0.0/8"]));
    let dialler = Dialler::new(policy, Duration::from_secs(10)).through(Some(proxy));
    let dialled = dial(&dialler, LOOPBACK, address.port()).await.unwrap();
    assert_eq!((dialled.address, dialled.proxied), (address, false));
    assert!(told.try_recv().is_err(), "the proxy was asked");
}

/// Asks the proxy for these addresses one after the other; what becomes of it, and what it was asked for.
async fn one_after_the_other(
    allowed: Duration,
    addresses: &[&str],
) -> (Result<Dialled, Refusal>, Vec<String>) {
    let (proxy, mut told) = proxy("").await;
    let target = Target { host: "vcenter.corp.example".parse().unwrap(), port: 443 };
    let policy = Policy::new(None, &[]);
    let until = Instant::now() + allowed;
    let dial = Dial { target: &target, policy: &policy, allowed, until };
    let at = |host: &&str| Try::Proxy(Target { host: host.parse().unwrap(), port: 443 });
    let outcome = dial.each(addresses.iter().map(at).collect(), &proxy, proxy.reach(until)).await;
    let mut asked = Vec::new();
    while let Ok(line) = told.try_recv() {
        asked.push(line.trim_end_matches(":443").to_owned());
    }
    (outcome, asked)
}

#[tokio::test]
async fn another_address_is_asked_for_where_the_answer_is_about_the_first() {
    const LONG: Duration = Duration::from_secs(60);
    for (addresses, asked, code) in [
        (&["10.77.0.9", "10.77.0.1"][..], 2, None),
        (&["10.77.0.9", "10.77.0.9"], 2, Some(Code::HostUnreachable)),
        // A target that is not allowed need not be the other one.
        (&["10.77.0.7", "10.77.0.1"], 2, None),
        (&["10.77.0.5", "10.77.0.1"], 2, None),
        (&["10.77.0.9", "10.77.0.7"], 2, Some(Code::ProxyDenied)),
        // What the proxy says of this host, it would say again.
        (&["10.77.0.4", "10.77.0.1"], 1, Some(Code::Limit)),
        (&["10.77.0.9", "10.77.0.6", "10.77.0.1"], 2, Some(Code::ProxyDenied)),
        (&[], 0, Some(Code::NameNotFound)),
    ] {
        let (outcome, told) = one_after_the_other(LONG, addresses).await;
        assert_eq!(told, addresses[..asked]);
        assert_eq!(outcome.err().map(|refusal| refusal.code), code, "{addresses:?}");
    }
}

#[tokio::test]
async fn what_was_told_stands_where_no_time_is_left_for_more() {
    let (outcome, asked) =
        one_after_the_other(Duration::from_millis(300), &["10.77.0.9", "10.77.0.8", "10.77.0.1"]).await;
    let refusal = outcome.unwrap_err();
    assert_eq!(refusal.code, Code::Timeout, "{refusal}");
    assert!(refusal.text.contains("did not connect to 10.77.0.8:443 within"), "{refusal}");
    assert_eq!(asked, ["10.77.0.9", "10.77.0.8"]);
}

#[tokio::test(start_paused = true)]
async fn one_that_keeps_silent_leaves_time_to_the_others() {
    let target = Target { host: "vcenter.corp.example".parse().unwrap(), port: 443 };
    let policy = Policy::new(None, &[]);
    let second = Duration::from_secs(1);
    for (allowed, ways, share) in [(10, 1, 10), (10, 2, 5), (9, 3, 3), (10, 100, 2), (1, 100, 1), (0, 2, 0)] {
        let (now, allowed) = (Instant::now(), second * allowed);
        let dial = Dial { target: &target, policy: &policy, allowed, until: now + allowed };
        assert_eq!(dial.share(ways) - now, second * share, "{allowed:?} for {ways}");
    }
}

#[tokio::test]
async fn a_proxy_that_is_reached_late_takes_no_time_of_the_first_address_alone() {
    let (proxy, mut told) = proxy("").await;
    let target = Target { host: "vcenter.corp.example".parse().unwrap(), port: 443 };
    let policy = Policy::new(None, &[]);
    let allowed = Duration::from_secs(60);
    let dial = Dial { target: &target, policy: &policy, allowed, until: Instant::now() + allowed };
    // Longer than one of two shares.
    let first = async {
        let reached = proxy.reach(dial.until).await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(40)).await;
        tokio::time::resume();
        reached
    };
    let at = |host: &str| Try::Proxy(Target { host: host.parse().unwrap(), port: 443 });
    let tries = VecDeque::from([at("10.77.0.1"), at("10.77.0.2")]);
    assert!(dial.each(tries, &proxy, first).await.unwrap().proxied);
    assert_eq!(told.try_recv().unwrap(), "10.77.0.1:443");
    assert!(told.try_recv().is_err(), "the first one had no time");
}

#[tokio::test(start_paused = true)]
async fn who_had_a_share_is_told_how_much_that_was() {
    let target = Target { host: "vcenter.corp.example".parse().unwrap(), port: 443 };
    let policy = Policy::new(None, &[]);
    let allowed = Duration::from_secs(10);
    let now = Instant::now();
    let dial = Dial { target: &target, policy: &policy, allowed, until: now + allowed };
    for (until, says) in [(now + allowed / 4, "no answer within 2.5s"), (dial.until, "no answer within 10s")]
    {
        let late = dial.within(until, std::future::pending()).await.unwrap_err();
        assert_eq!(late.code, Code::Timeout);
        assert!(late.text.ends_with(says), "{late}");
    }
}

#[tokio::test]
async fn a_name_is_not_passed_on_unjudged_where_too_many_are_looked_up() {
    let (proxy, mut told) = proxy("").await;
    let dialler = dialler(&[INSIDE]).through(Some(proxy));
    let places = dialler.resolver.places.clone();
    let all = places.available_permits().try_into().unwrap();
    let _taken = places.acquire_many_owned(all).await.unwrap();
    let target = Target { host: INSIDE.parse().unwrap(), port: 443 };
    let refusal = dialler.dial(&target, Duration::from_millis(200)).await.unwrap_err();
    assert_eq!(refusal.code, Code::Limit, "{refusal}");
    assert!(refusal.text.contains("other look-ups are under way"), "{refusal}");
    assert!(told.try_recv().is_err(), "the proxy was asked");
}

#[tokio::test]
async fn the_proxy_is_reached_while_a_name_is_judged_and_asked_behind_that() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    const SOON: Duration = Duration::from_secs(10);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = upstream(listener.local_addr().unwrap().port(), "");
    let dialler = Arc::new(dialler(&[INSIDE]).through(Some(proxy)));
    let places = dialler.resolver.places.clone();
    let all = places.available_permits().try_into().unwrap();
    let taken = places.acquire_many_owned(all).await.unwrap();
    let dialling = tokio::spawn({
        let dialler = dialler.clone();
        async move { dial(&dialler, INSIDE, 443).await }
    });
    // The name can't be judged yet.
    let (mut socket, _) = tokio::time::timeout(SOON, listener.accept()).await.expect("not reached").unwrap();
    let early = socket.try_read(&mut [0; 100]).expect_err("asked before the verdict");
    assert_eq!(early.kind(), io::ErrorKind::WouldBlock);
    drop(taken);
    let mut asked = [0; 22];
    tokio::time::timeout(SOON, socket.read_exact(&mut asked)).await.expect("never asked").unwrap();
    assert_eq!(&asked, b"CONNECT 0x0a4d0001:443");
    socket.write_all(b"HTTP/1.1 200 Yes\r\n\r\n").await.unwrap();
    assert!(dialling.await.unwrap().unwrap().proxied);
}
