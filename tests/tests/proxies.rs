//! The worker behind squid and behind tinyproxy: on its way to the appliance, and to targets.
//!
//! `direct.example` is reached by the proxy alone, which is also the only one there to know the name.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use serde_json::{Value, json};
use tests::traffic::{Connect, Order, Report, Serve};
use tests::{
    Bytes, Config, Daemon, Door, Failing, Group, HttpProxy, Lab, PROXY_LOGIN, PROXY_PASSWORD, ProxyKind, net,
    shown,
};

const SOON: Duration = Duration::from_secs(30);
const WRONG: &str = "worker:wrong%21secret";
const WRONG_PASSWORD: &str = "wrong!secret";
/// What the worker carries: behind the proxy, and at the site.
const HOSTS: [&str; 6] =
    ["*.example", "10.77.4.0/24", "fd77:0:0:4::/64", "*.corp.example", net::SITE_PREFIX4, net::SITE_PREFIX6];
const BULK: u64 = 3_000_001;
const ENDLESS: u64 = 1 << 40;

/// An appliance that steers its own host, and workers one after the other.
struct Site<'l> {
    lab: &'l Lab,
    group: Group,
    appliance: Daemon,
    workers: u32,
}

impl<'l> Site<'l> {
    fn new(lab: &'l Lab) -> Result<Site<'l>> {
        let group = Group::new("site-a", HOSTS)?;
        let config = Config::new()
            .appliance(&lab.appliance_identity()?, &[&group])
            .steer(&[lab.appliance().cgroup()])
            .set("steer.down_for", "60s");
        let appliance = lab.appliance().daemon("appliance", config)?;
        Ok(Site { lab, group, appliance, workers: 0 })
    }

    /// A worker that goes through this proxy. It need not connect.
    fn worker(&mut self, proxy: &str, no_proxy: impl Into<Value>) -> Result<Daemon> {
        self.worker_with(proxy, no_proxy, |config| config)
    }

    fn worker_with(
        &mut self,
        proxy: &str,
        no_proxy: impl Into<Value>,
        adjust: impl FnOnce(Config) -> Config,
    ) -> Result<Daemon> {
        self.workers += 1;
        let config = Config::new()
            .worker(&self.group, self.lab.pki().ca_file(), HOSTS)
            .set("lanes", 1)
            .set("proxy_address", proxy)
            .set("no_proxy", no_proxy);
        self.lab.site().daemon(&format!("worker-{}", self.workers), adjust(config))
    }

    /// Where the appliance sees its worker come from.
    fn peer(&self) -> Result<String> {
        self.appliance.wait_for_group("site-a", SOON)?;
        let status = self.appliance.status()?;
        let address = &status["appliance"]["groups"][0]["nodes"][0]["address"];
        Ok(address.as_str().context("no node")?.to_owned())
    }

    /// What the last worker says of a connection.
    fn why(&self, target: &str) -> Result<Value> {
        let host = self.lab.site();
        let socket = host.socket(&format!("worker-{}", self.workers));
        host.dworker(["why", target, "-j", "--socket"])?.arg(socket).output()?.json()
    }
}

/// No password is shown, wherever one looks.
fn shows_no_password(daemon: &Daemon) -> Result<()> {
    let shown = format!("{}{}", daemon.status()?, daemon.log());
    for secret in [PROXY_PASSWORD, WRONG_PASSWORD, "s3same", "wrong%21"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
    Ok(())
}

fn problem(worker: &Daemon, says: &str) -> Result<()> {
    let told =
        |status: &Value| status["worker"]["problem"].as_str().is_some_and(|problem| problem.contains(says));
    worker.wait_for_status(says, SOON, told)?;
    worker.wait_for_line("not connected: ", SOON)?;
    assert!(!worker.status()?["worker"]["connected"].as_bool().unwrap_or(true));
    shows_no_password(worker)
}

/// The way to the appliance: each port of the proxy, and each form of `no_proxy`.
fn to_the_appliance(site: &mut Site<'_>, kind: ProxyKind, proxy: &HttpProxy) -> Result<()> {
    let open = |door: Door, login: &str| HttpProxy::url(door, login);
    let mut through = vec![open(Door::Open, ""), open(Door::Login, PROXY_LOGIN)];
    if kind == ProxyKind::Squid {
        through.push(open(Door::Secured, ""));
    }
    for url in through {
        let worker = site.worker(&url, "")?;
        let peer = site.peer()?;
        assert!(peer.starts_with("10.77.1.1:") || peer.starts_with("[fd77:0:0:1::1]:"), "{url}: {peer}");
        let shown = url.replace(PROXY_LOGIN, "***");
        assert_eq!(
            worker.status()?["worker"]["proxy"],
            json!({"address": shown, "appliance": true, "no_proxy": []})
        );
        let why = site.why("direct.example:9001")?;
        assert_eq!(why["proxy"], json!({"address": shown, "used": true}), "{why:#}");
        let why = site.why("127.0.0.1")?;
        assert_eq!(why["proxy"], json!({"address": shown, "used": false}), "{why:#}");
        shows_no_password(&worker)?;
    }
    // Where addresses decide, the worker resolves the name itself, and the proxy gets what it found.
    let _worker =
        site.worker_with(&open(Door::Open, ""), "", |config| config.set("egress.allow", vec!["10.0.0.0/8"]))?;
    let why = site.why("direct.example:9001")?;
    assert_eq!((&why["proxy"]["used"], &why["proxy"]["by_address"]), (&true.into(), &true.into()), "{why:#}");
    let log = proxy.log();
    assert!(log.contains("appliance.example:443"), "the proxy resolves the name: {log}");

    let (none, wrong) = ("wants a user and a password (407", "does not take this user and password (40");
    for (url, says) in [
        (open(Door::Login, ""), none),
        (open(Door::Login, WRONG), wrong),
        (open(Door::Closed, ""), "does not let this host connect to appliance.example:443 (403"),
        // Nothing listens there.
        (format!("http://{}:1", tests::PROXY_NAME), "Connection refused"),
        ("http://nobody.corp.example:3128".into(), "can't resolve the proxy http://nobody.corp.example:3128"),
        // The wrong protocol, both ways.
        (open(Door::Open, "").replace("http://", "https://"), "TLS with the proxy"),
    ] {
        problem(&site.worker(&url, "")?, says).with_context(|| url.clone())?;
    }
    if kind == ProxyKind::Squid {
        let url = open(Door::Secured, "");
        let plain = site.worker(&url.replace("https://", "http://"), "")?;
        problem(&plain, "does not answer as an HTTP proxy")?;
        // Nobody vouches for it: the authority that is known has the same name, and another key.
        let other = tests::Pki::create(&site.lab.directory().join("other-pki"))?;
        let ca_file = other.ca_file().display().to_string();
        let unknown = site.worker_with(&url, "", |config| config.set("ca_file", ca_file))?;
        problem(&unknown, "was signed by another key than that of the trusted")?;
    }
    Ok(())
}

/// Whether the way to the appliance leads past the proxy.
fn past_the_proxy(site: &mut Site<'_>) -> Result<()> {
    // Nobody gets through there, so whoever connects did not try.
    let closed = HttpProxy::url(Door::Closed, "");
    for (no_proxy, direct) in [
        (json!("appliance.example"), true),
        (json!("other.example, APPLIANCE.Example."), true),
        (json!("example"), true),
        (json!([".example"]), true),
        (json!(["*.example:443"]), true),
        (json!("*"), true),
        (json!("appliance.example:8443"), false),
        (json!(".appliance.example"), false),
        (json!("pliance.example"), false),
        // What a name leads to is nobody's business here.
        (json!("10.77.0.0/16"), false),
    ] {
        let worker = site.worker(&closed, no_proxy.clone())?;
        assert_eq!(worker.status()?["worker"]["proxy"]["appliance"], !direct, "{no_proxy}");
        let why = site.why("appliance.example")?;
        assert_eq!(why["proxy"]["used"], !direct, "{no_proxy}: {why:#}");
        assert_eq!(why["proxy"]["exempted_by"].is_string(), direct, "{no_proxy}: {why:#}");
        match direct {
            true => {
                let peer = site.peer()?;
                assert!(peer.starts_with("10.77.2.10:") || peer.starts_with("[fd77:0:0:2::10]:"), "{peer}");
            }
            false => problem(&worker, "does not let this host connect")?,
        }
    }
    Ok(())
}

/// The way to targets. Each case has a port of its own: what failed is remembered for a while.
fn to_targets(site: &mut Site<'_>, kind: ProxyKind) -> Result<()> {
    const DIRECT: &str = "direct.example";
    let lab = site.lab;
    let open = |door: Door, login: &str| HttpProxy::url(door, login);
    let inside = lab.vcenter().serve(Serve::Echo, net::ECHO, 8000)?;
    let mut served = 0;
    let mut through = vec![open(Door::Open, ""), open(Door::Login, PROXY_LOGIN)];
    if kind == ProxyKind::Squid {
        through.push(open(Door::Secured, ""));
    }
    for (url, port) in through.into_iter().zip(8000..) {
        let source = lab.elsewhere().serve(Serve::Source { seed: 5, length: BULK }, net::DIRECT2, port)?;
        let sink = lab.elsewhere().serve(Serve::Hash, net::DIRECT2, port + 100)?;
        // The seed's case: what is at the site is reached from here.
        let worker = site.worker(&url, "appliance.example, .corp.example,10.77.3.0/24")?;
        site.appliance.wait_for_group("site-a", SOON)?;
        for host in ["direct2.example", &net::DIRECT2.v4.to_string(), &net::DIRECT2.v6.to_string()] {
            // Of a connection that is half-closed proxies make one that is closed: so each direction is seen by itself.
            let report = Connect::to(host, port).order(Order::ReadFirst).once(lab.appliance())?;
            let all = (report.received, report.received_sha256.as_str(), report.end.as_str());
            assert_eq!(all, (BULK, Bytes::new(5, BULK).sha256().as_str(), "eof"), "{host}: {report:?}");
            let up = Connect::to(host, port + 100).send(BULK).once(lab.appliance())?;
            assert_eq!((up.failure.as_deref(), up.sent), (None, BULK), "{host}: {up:?}");
            for daemon in [&site.appliance, &worker] {
                let flow = &daemon.flows()?[0];
                assert_eq!(
                    (&flow["proxied"], &flow["target"]),
                    (&json!(true), &json!(shown(host, port + 100))),
                    "{flow:#}"
                );
                let proxy: std::net::SocketAddr = flow["dialled"].as_str().context("not dialled")?.parse()?;
                assert!(net::PROXY.both().contains(&proxy.ip()), "{flow:#}");
            }
        }
        let text = worker.status_with(lab.site(), &[])?.stdout;
        assert!(text.contains(" (a proxy) in "), "{text}");
        for report in sink.wait_for_reports(3, SOON)? {
            assert_eq!((report.received, report.end.as_str()), (BULK, "eof"), "{report:?}");
            assert_eq!(report.received_sha256, Bytes::new(1, BULK).sha256());
        }
        let from = [source.accepted_from(), sink.accepted_from()].concat();
        assert!(from.iter().all(|peer| net::ROUTER_ELSEWHERE.both().contains(peer)), "{from:?}");
        assert_eq!(from.len(), 6);
        for host in ["echo.corp.example", "10.77.3.30"] {
            Connect::to(host, 8000).send(BULK).once(lab.appliance())?.assert_echo(1, BULK, host);
            served += 1;
            let flow = &worker.flows()?[0];
            assert_eq!(flow["proxied"], Value::Null, "{flow:#}");
        }
        shows_no_password(&worker)?;
    }
    assert_eq!(inside.accepted(), served);

    // What squid tells of its own connect(), tinyproxy keeps to itself.
    let unreachable = (Errno::EHOSTUNREACH, "host-unreachable");
    let refused = match kind {
        ProxyKind::Squid => (Errno::ECONNREFUSED, "refused"),
        ProxyKind::Tinyproxy => unreachable,
    };
    let failure = |proxy: String, target: (&'static str, u16), (errno, state), reason| {
        (proxy, target, Failing { errno, state, reason })
    };
    let (denied, down) = ((Errno::EACCES, "proxy-denied"), (Errno::EHOSTUNREACH, "proxy-down"));
    for (proxy, (host, port), failing) in [
        failure(open(Door::Open, ""), (DIRECT, 9001), refused, "can't connect to direct.example:9001 (50"),
        failure(
            open(Door::Open, ""),
            ("nobody.example", 443),
            unreachable,
            "can't connect to nobody.example:443 (50",
        ),
        failure(open(Door::Login, ""), (DIRECT, 9002), denied, "wants a user and a password (407"),
        failure(open(Door::Login, WRONG), (DIRECT, 9003), denied, "does not take this user and password (40"),
        failure(
            open(Door::Closed, ""),
            (DIRECT, 9004),
            denied,
            "does not let this host connect to direct.example",
        ),
        failure(format!("http://{}:1", tests::PROXY_NAME), (DIRECT, 9005), down, "Connection refused"),
        failure(open(Door::Open, "").replace("http:", "https:"), (DIRECT, 9006), down, "TLS with the proxy"),
    ] {
        let worker = site.worker(&proxy, "appliance.example")?;
        site.appliance.wait_for_group("site-a", SOON)?;
        lab.assert_fails(host, port, failing.errno).with_context(|| proxy.clone())?;
        for daemon in [&site.appliance, &worker] {
            let flow = daemon.wait_for_failing(host, port, &failing)?;
            assert!(flow["reason"].as_str().is_some_and(|r| r.contains("the proxy http")), "{flow:#}");
        }
        shows_no_password(&worker)?;
    }

    // Named by address only, and resolved by nobody but the proxy: not dialled, whatever it would find.
    let by_address = |config: Config| config.set("egress.allow", json!(["10.77.4.0/24"]));
    let worker = site.worker_with(&open(Door::Open, ""), "appliance.example", by_address)?;
    site.appliance.wait_for_group("site-a", SOON)?;
    lab.assert_fails(DIRECT, 9007, Errno::EACCES)?;
    let unresolved = Failing { errno: Errno::EACCES, state: "denied", reason: "can't resolve it" };
    worker.wait_for_failing(DIRECT, 9007, &unresolved).map(drop)
}

fn matrix(kind: ProxyKind) -> Result<()> {
    let lab = Lab::new()?;
    let proxy = lab.http_proxy(kind)?;
    let mut site = Site::new(&lab)?;
    lab.explain(|| {
        to_the_appliance(&mut site, kind, &proxy)?;
        if kind == ProxyKind::Squid {
            past_the_proxy(&mut site)?;
        }
        to_targets(&mut site, kind)
    })
}

#[test]
fn squid_leads_to_the_appliance_and_to_targets() -> Result<()> {
    matrix(ProxyKind::Squid)
}

#[test]
fn tinyproxy_leads_to_the_appliance_and_to_targets() -> Result<()> {
    matrix(ProxyKind::Tinyproxy)
}

#[test]
fn a_proxy_that_dies_and_returns_is_used_again() -> Result<()> {
    const PORT: u16 = 4;
    let lab = Lab::new()?;
    let mut proxy = lab.http_proxy(ProxyKind::Squid)?;
    let mut site = Site::new(&lab)?;
    let source = lab.elsewhere().serve(Serve::Source { seed: 3, length: ENDLESS }, net::DIRECT, PORT)?;
    lab.explain(|| {
        for (door, no_proxy, port) in [
            (Door::Login, "", 8001),
            (Door::Login, "appliance.example", 8002),
            (Door::Secured, "", 8003),
            (Door::Secured, "appliance.example", 8004),
        ] {
            let url = HttpProxy::url(door, if door == Door::Login { PROXY_LOGIN } else { "" });
            let worker = site.worker(&url, no_proxy)?;
            site.appliance.wait_for_group("site-a", SOON)?;
            let reader = Connect::to("direct.example", PORT).send(1).order(Order::ReadFirst);
            let mut reader = lab.appliance().captured(reader.command()?).spawn()?;
            let under_way =
                |status: &Value| status["flows"]["recent"][0]["bytes_down"].as_u64() > Some(1 << 16);
            site.appliance.wait_for_status("a transfer", SOON, under_way)?;
            proxy.kill9()?;
            assert!(reader.wait(SOON)?.success());
            let report = &Report::read(&reader.stdout())?[0];
            // A dead proxy's kernel ends plain connections as the target would; in TLS that does not pass for an end.
            let plain = (door, no_proxy) == (Door::Login, "appliance.example");
            assert!(
                report.end == "ECONNRESET" || plain && report.end == "eof",
                "{url}, {no_proxy:?}: {report:?}"
            );
            if no_proxy.is_empty() {
                problem(&worker, "can't connect to the proxy http")?;
            } else {
                let down =
                    Failing { errno: Errno::EHOSTUNREACH, state: "proxy-down", reason: "Connection refused" };
                lab.assert_fails("direct.example", port, down.errno)?;
                worker.wait_for_failing("direct.example", port, &down)?;
            }
            proxy.start()?;
            site.appliance.wait_for_group("site-a", SOON)?;
            let after = lab.elsewhere().serve(Serve::Source { seed: 5, length: 1000 }, net::DIRECT2, port)?;
            let report =
                Connect::to("direct2.example", port).order(Order::ReadFirst).once(lab.appliance())?;
            assert_eq!(report.received_sha256, Bytes::new(5, 1000).sha256(), "{report:?}");
            assert_eq!(worker.flow(&format!("direct2.example:{port}"))?["proxied"], true);
            drop(after);
        }
        drop(source);
        Ok(())
    })
}
