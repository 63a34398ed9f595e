//! Steering on a worker's host, over its uplink; and daemons that are themselves captured.
//!
//! What an application at the site asks for goes to the appliance and on to the group that owns it: here `hq`, whose
//! worker runs on the host elsewhere. The site itself neither knows nor reaches that host's names and ports.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use tests::traffic::{Connect, Family, Order, Report, Serve};
use tests::{Config, Daemon, Group, Lab, net};

const SOON: Duration = Duration::from_secs(30);
const LENGTH: u64 = 300_001;
/// What the group at the headquarters owns, and what is steered at the site.
const AT_HQ: [&str; 3] = ["direct.example:8000", "10.77.4.20:8000", "[fd77:0:0:4::20]:8000"];
/// What the group at the site owns.
const AT_SITE: [&str; 3] = ["echo.corp.example:7000", "10.77.3.0/24:7000", "[fd77:0:0:3::/64]:7000"];

fn only(reports: Vec<Report>) -> Report {
    assert_eq!(reports.len(), 1, "{reports:?}");
    reports.into_iter().next().expect("one report")
}

fn hosts(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

fn counter(status: &Value, name: &str) -> u64 {
    status["steer"]["counters"][name].as_u64().unwrap_or_else(|| panic!("no counter {name} in {status:#}"))
}

/// The appliance without steering, the worker of `hq` elsewhere, and the worker at the site with steering.
struct Relay {
    appliance: Daemon,
    hq: Daemon,
    site: Daemon,
}

impl Relay {
    fn new(lab: &Lab, site: &Group) -> Result<Relay> {
        let hq = Group::new("hq", AT_HQ)?;
        let config = Config::new().appliance(&lab.appliance_identity()?, &[&hq, site]);
        let appliance = lab.appliance().daemon("appliance", config)?;
        let ca = lab.pki().ca_file();
        let relay = Relay {
            hq: lab.elsewhere().daemon("worker", Config::new().worker(&hq, ca, AT_HQ))?,
            site: lab.site().daemon(
                "worker",
                Config::new()
                    .worker(site, ca, AT_SITE)
                    .steer(&[lab.site().cgroup()])
                    .set("steer.proxy_hosts", hosts(&AT_HQ))
                    // Longer than a busy machine takes to start the next client.
                    .set("steer.down_for", "60s"),
            )?,
            appliance,
        };
        for group in ["hq", "site-a"] {
            relay.appliance.wait_for_group(group, SOON)?;
        }
        relay.site.wait_for_status("its uplink", SOON, |status| status["worker"]["connected"] == true)?;
        Ok(relay)
    }
}

#[test]
fn a_workers_host_is_steered_over_its_uplink() -> Result<()> {
    let lab = Lab::new()?;
    let servers =
        [net::DIRECT, net::DIRECT2].map(|address| lab.elsewhere().serve(Serve::Echo, address, 8000));
    let relay = Relay::new(&lab, &Group::new("site-a", AT_SITE)?.may_open())?;
    lab.explain(|| {
        let host = lab.site();
        let (direct4, direct6) = (net::DIRECT2.v4.to_string(), net::DIRECT2.v6.to_string());
        let cases: [(&str, Family); 5] = [
            ("direct.example", Family::V4),
            ("direct.example", Family::Mapped),
            (&direct4, Family::V4),
            (&direct4, Family::Mapped),
            (&direct6, Family::V6),
        ];
        for ((name, family), id) in cases.into_iter().zip(1..) {
            let what = format!("{name} {family:?}");
            let client = Connect::to(name, 8000).family(family).send(LENGTH).seed(id);
            only(client.captured(host)?).assert_echo(id, LENGTH, &what);
            let [captured, relayed, dialled] =
                [&relay.site, &relay.appliance, &relay.hq].map(|d| d.ended_flow(id, SOON));
            let (captured, relayed, dialled) = (captured?, relayed?, dialled?);
            assert_eq!(
                [&captured["entry"], &relayed["entry"], &dialled["entry"]],
                ["captured", "relayed", "egress"],
                "{what}"
            );
            assert_eq!(captured["carrier"], "appliance/appliance.example", "{what}");
            assert!(
                relayed["carrier"].as_str().is_some_and(|carrier| carrier.starts_with("hq/")),
                "{what}: {relayed}"
            );
            for flow in [&relayed, &dialled] {
                for same in ["target", "trace", "dialled", "bytes_up", "bytes_down", "state"] {
                    assert_eq!(flow[same], captured[same], "{what}");
                }
            }
            assert_eq!(
                (captured["state"].as_str(), captured["bytes_up"].as_u64()),
                (Some("closed"), Some(LENGTH)),
                "{what}"
            );
        }
        for (server, count) in servers.iter().zip([2, 3]) {
            let server = server.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
            let seen = server.wait_for_reports(count, SOON)?;
            let own =
                [net::DIRECT, net::DIRECT2, net::APPLIANCE_RESOLVER].map(|address| address.both()).concat();
            assert!(
                seen.iter().all(|r| r.peer.is_some_and(|peer| own.contains(&peer.ip()))),
                "not from hq: {seen:?}"
            );
        }
        // The name was resolved at the headquarters; the site's resolver has never heard of it.
        assert!(!lab.site_resolver().was_asked("direct.example"));
        let from_hq = |from: IpAddr| from.to_string().starts_with("10.77.4.");
        let asked = lab.appliance_resolver().queries();
        assert!(asked.iter().any(|query| query.name == "direct.example" && from_hq(query.from)), "{asked:?}");
        // Another worker dials it, so this one's policy has no say.
        let why = host.dworker(["why", "direct.example:8000", "-j", "--socket"])?.arg(host.socket("worker"));
        let why = why.output()?.json()?;
        assert_eq!((&why["verdict"], &why["policy"]), (&"steered".into(), &Value::Null), "{why:#}");
        assert_eq!(why["carrier"]["name"], "appliance appliance.example:443", "{why:#}");
        // Without steering there is no name and no way.
        let outside = only(Connect::to("direct.example", 8000).uncaptured(host)?);
        assert!(
            outside.failure.as_ref().is_some_and(|f| f.contains("Name or service not known")),
            "{outside:?}"
        );
        let outside = only(Connect::to(&direct4, 8000).uncaptured(host)?);
        assert_eq!(outside.failure.as_deref(), Some("ECONNREFUSED"), "the router refuses");
        Ok(())
    })
}

#[test]
fn a_worker_that_may_not_open_streams_is_denied() -> Result<()> {
    let lab = Lab::new()?;
    let relay = Relay::new(&lab, &Group::new("site-a", AT_SITE)?)?;
    lab.explain(|| {
        let client = Connect::to("direct.example", 8000).order(Order::ReadFirst);
        let first = only(client.captured(lab.site())?);
        assert_eq!((first.failure.as_deref(), first.end.as_str()), (None, "ECONNRESET"), "{first:?}");
        let second = only(client.captured(lab.site())?);
        assert_eq!(second.failure.as_deref(), Some("EACCES"), "the retry fails in connect() itself");
        for daemon in [&relay.site, &relay.appliance] {
            let flow = daemon.ended_flow(1, SOON)?;
            assert_eq!(flow["state"], "denied", "{flow}");
            assert!(
                flow["reason"].as_str().is_some_and(|reason| reason.contains("set may_open = true")),
                "{flow}"
            );
        }
        assert_eq!(relay.hq.status()?["flows"]["total"], 0, "it did not get that far");
        Ok(())
    })
}

#[test]
fn a_captured_worker_with_steering_does_not_capture_itself() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.vcenter().serve(Serve::Echo, net::ECHO, 7000)?;
    let group = Group::new("site-a", AT_SITE)?.may_open();
    let config = Config::new().appliance(&lab.appliance_identity()?, &[&group]);
    let appliance = lab.appliance().daemon("appliance", config)?;
    // What it steers is what it dials, so each of its own look-ups and connects would come back to it.
    let config = Config::new()
        .worker(&group, lab.pki().ca_file(), AT_SITE)
        .steer(&[lab.site().cgroup()])
        .set("steer.proxy_hosts", hosts(&AT_SITE));
    let worker = lab.site().captured_daemon("worker", config)?;
    worker.wait_for_status("its uplink", SOON, |status| status["worker"]["connected"] == true)?;
    appliance.wait_for_group("site-a", SOON)?;
    lab.explain(|| {
        assert!(lab.site().cgroup().processes()?.contains(&worker.process().pid()), "it is captured");
        let (echo4, echo6) = (net::ECHO.v4.to_string(), net::ECHO.v6.to_string());
        let cases: [(&str, Family); 4] = [
            ("echo.corp.example", Family::V4),
            (&echo4, Family::V4),
            (&echo4, Family::Mapped),
            (&echo6, Family::V6),
        ];
        for ((name, family), round) in cases.into_iter().zip(1..) {
            let client = Connect::to(name, 7000).family(family).send(LENGTH).seed(round);
            only(client.captured(lab.site())?).assert_echo(round, LENGTH, &format!("{name} {family:?}"));
            // Once in, once out, and once over the appliance between: a loop would be more.
            assert_eq!(worker.ended_flow(2 * round, SOON)?["entry"], "egress");
            let status = worker.status()?;
            assert_eq!(
                (status["flows"]["total"].as_u64(), counter(&status, "steered")),
                (Some(2 * round), round)
            );
            assert_eq!(appliance.status()?["flows"]["total"].as_u64(), Some(round));
        }
        let status = worker.status()?;
        assert!(
            counter(&status, "own") >= 5,
            "its own dials and look-ups were seen and left alone: {status:#}"
        );
        assert!(lab.site_resolver().was_asked("echo.corp.example"), "it asked the real resolver");
        // As it is counted, it is foreseen.
        let own = ["why", &format!("{echo4}:7000"), "-j", "--pid", &worker.process().pid().to_string()];
        let why = lab.site().dworker(own)?.arg("--socket").arg(lab.site().socket("worker")).output()?;
        let said = why.json()?;
        assert_eq!((&said["verdict"], &said["reason"]), (&"direct".into(), &"own".into()), "{why}");
        assert_eq!(why.status.code(), Some(10), "{why}");
        Ok(())
    })
}

#[test]
fn a_captured_appliance_with_steering_does_not_capture_itself() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.vcenter().serve(Serve::Echo, net::ECHO, 7000)?;
    let _direct = lab.elsewhere().serve(Serve::Echo, net::DIRECT, 8000)?;
    let group = Group::new("site-a", AT_SITE)?;
    let host = lab.appliance();
    let config = Config::new().appliance(&lab.appliance_identity()?, &[&group]).steer(&[host.cgroup()]);
    let appliance = host.captured_daemon("appliance", config)?;
    let worker = lab.site().daemon("worker", Config::new().worker(&group, lab.pki().ca_file(), AT_SITE))?;
    appliance.wait_for_group("site-a", SOON)?;
    lab.explain(|| {
        assert!(host.cgroup().processes()?.contains(&appliance.process().pid()), "it is captured");
        for (name, port, seed) in [("direct.example", 8000, 1), ("echo.corp.example", 7000, 2)] {
            let client = Connect::to(name, port).send(LENGTH).seed(seed);
            only(client.captured(host)?).assert_echo(seed, LENGTH, name);
        }
        let status = appliance.status()?;
        assert_eq!((counter(&status, "steered"), counter(&status, "direct")), (1, 1));
        // What it forwards to the resolver is a question to a resolver, too: captured, it would go round for ever.
        let dns = &status["steer"]["dns"];
        let forwarded = dns["forwarded"].as_u64().unwrap_or_default();
        assert!(forwarded > 0 && counter(&status, "own") == forwarded, "{status:#}");
        assert_eq!((dns["failed"].as_u64(), dns["dropped"].as_u64()), (Some(0), Some(0)));
        assert_eq!(worker.status()?["flows"]["total"], 1);
        Ok(())
    })
}
