//! What Prometheus reads is what happened; the document, the dashboard and what is exposed are in step. And the log: as JSON,
//! and with another filter while the daemon runs.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use dworker::inspect::metrics::{ALL, Kind};
use serde_json::{Value, json};
use tests::traffic::{Connect, Order, Serve};
use tests::{Command, Config, Daemon, Host, Lab, net};

const SOON: Duration = Duration::from_secs(30);
const URL: &str = "http://127.0.0.1:19464/metrics";
/// More than one frame and one window of credit at first.
const LENGTH: u64 = 300_001;

/// One exposition: each sample with its labels, as it was written.
#[derive(Debug)]
struct Scrape {
    text: String,
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    fn read(text: String) -> Result<Scrape> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ').with_context(|| format!("{line:?} is no sample"))?;
            Ok((series.to_owned(), value.parse().with_context(|| format!("{line:?}"))?))
        };
        let samples: Vec<(String, f64)> = lines.map(sample).collect::<Result<_>>()?;
        let count = samples.len();
        let samples: BTreeMap<String, f64> = samples.into_iter().collect();
        assert_eq!(samples.len(), count, "a series stands twice: {text}");
        Ok(Scrape { text, samples })
    }

    /// From where everybody may ask.
    fn of(host: &Host) -> Result<Scrape> {
        Scrape::read(host.uncaptured(Command::new("curl").args(["-sSf", URL])).check()?)
    }

    /// From the control socket.
    fn of_socket(host: &Host, daemon: &Daemon) -> Result<Scrape> {
        let curl = Command::new("curl").args(["-sSf", "http://localhost/metrics", "--unix-socket"]);
        Scrape::read(host.uncaptured(curl.arg(host.socket(daemon.name()))).check()?)
    }

    fn get(&self, series: &str) -> f64 {
        *self.samples.get(series).unwrap_or_else(|| panic!("no {series} in\n{}", self.text))
    }

    /// All series of a metric together.
    fn sum(&self, metric: &str) -> f64 {
        let of =
            |series: &str| series.strip_prefix(metric).is_some_and(|r| r.is_empty() || r.starts_with('{'));
        self.samples.iter().filter(|(series, _)| of(series)).map(|(_, value)| value).sum()
    }

    /// The metrics that it has, by what it says of their kinds.
    fn metrics(&self) -> BTreeSet<(&str, &str)> {
        let kinds = self.text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        kinds.collect()
    }

    /// Prometheus' own tool finds nothing to say of it.
    fn check(&self) -> Result<()> {
        let said = Command::new("promtool").args(["check", "metrics"]).input(self.text.clone()).output()?;
        assert!(said.status.success() && said.stderr.trim().is_empty(), "{said}");
        Ok(())
    }
}

/// Has the kernel note how long programs run, until it is dropped.
fn measured() -> Result<OwnedFd> {
    /// `BPF_ENABLE_STATS` and `BPF_STATS_RUN_TIME` of `linux/bpf.h`.
    const ENABLE_STATS: libc::c_long = 32;
    let attributes = [0_u8; 64];
    // SAFETY: the call reads the attributes, whose length it is told, and returns a descriptor of its own.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, ENABLE_STATS, attributes.as_ptr(), attributes.len()) };
    if fd < 0 {
        bail!("BPF_ENABLE_STATS: {}", io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[test]
fn what_happens_is_counted_to_the_byte() -> Result<()> {
    let _measured = measured()?;
    let lab = Lab::new()?;
    let _echo = lab.vcenter().serve(Serve::Echo, net::ECHO, 7000)?;
    let hosts = ["*.corp.example:7000,7001"];
    let mut tunnel = lab.tunnel_with(hosts, [net::SITE_PREFIX4, net::SITE_PREFIX6], |config| {
        // Longer than a busy machine takes to start the next client.
        config.set("steer.down_for", "60s")
    })?;
    lab.explain(|| {
        let host = lab.appliance();
        let before = Scrape::of(host)?;
        before.check()?;
        for series in [
            "dworker_connections_total{entry=\"captured\"}",
            "dworker_connection_bytes_total{entry=\"captured\",direction=\"up\"}",
            "dworker_connection_opens_total{entry=\"captured\",result=\"refused\"}",
            "dworker_steering_verdicts_total{verdict=\"steered\"}",
            "dworker_dial_seconds_count",
            "dworker_keys_refused_total",
        ] {
            assert_eq!(before.get(series), 0.0, "{series} is there from the beginning");
        }
        assert_eq!(before.get("dworker_tunnel_up{side=\"appliance\",worker=\"site-a\"}"), 1.0);

        Connect::to("echo.corp.example", 7000).send(LENGTH).once(host)?.assert_echo(1, LENGTH, "an echo");
        tunnel.appliance.ended_flow(1, SOON)?;
        // The first is reset, and the next one fails in connect().
        let refused = Connect::to("echo.corp.example", 7001).order(Order::ReadFirst);
        assert_eq!(refused.once(host)?.end, "ECONNRESET");
        assert_eq!(refused.once(host)?.failure.as_deref(), Some("ECONNREFUSED"));
        tunnel.appliance.ended_flow(2, SOON)?;
        tunnel.worker.ended_flow(2, SOON)?;
        // A stranger.
        let url = format!("https://{}/tunnel/v1", net::APPLIANCE.v4);
        let curl =
            ["-sSk", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Authorization: Bearer dwk_no", &url];
        assert_eq!(host.uncaptured(Command::new("curl").args(curl)).check()?, "401");

        let seen = Scrape::of_socket(host, &tunnel.appliance)?;
        let dialled = Scrape::of_socket(lab.site(), &tunnel.worker)?;
        for (scrape, entry) in [(&seen, "captured"), (&dialled, "egress")] {
            scrape.check()?;
            let of = |metric: &str, labels: &str| {
                scrape.get(&format!("dworker_{metric}{{entry=\"{entry}\"{labels}}}"))
            };
            assert_eq!(of("connections_total", ""), 2.0, "{entry}");
            assert_eq!(of("connections_open", ""), 0.0, "{entry}");
            assert_eq!(of("connection_opens_total", ",result=\"opened\""), 1.0, "{entry}");
            assert_eq!(of("connection_opens_total", ",result=\"refused\""), 1.0, "{entry}");
            assert_eq!(of("connection_ends_total", ",result=\"closed\""), 1.0, "{entry}");
            assert_eq!(scrape.sum("dworker_connection_opens_total"), 2.0, "{entry}");
            assert_eq!(scrape.sum("dworker_connection_ends_total"), 1.0, "{entry}");
            for direction in ["up", "down"] {
                let labels = format!(",direction=\"{direction}\"");
                assert_eq!(of("connection_bytes_total", &labels), LENGTH as f64, "{entry} {direction}");
            }
            assert_eq!(scrape.get("dworker_dial_seconds_count"), 1.0, "{entry}");
            assert_eq!(scrape.get("dworker_dial_seconds_bucket{le=\"+Inf\"}"), 1.0, "{entry}");
            assert!((0.0..10.0).contains(&scrape.get("dworker_dial_seconds_sum")), "{entry}");
        }
        let carried = |scrape: &Scrape, labels: &str, direction: &str| {
            scrape.get(&format!("dworker_tunnel_bytes_total{{{labels},direction=\"{direction}\"}}"))
        };
        const APPLIANCE: &str = "side=\"appliance\",worker=\"site-a\"";
        for (scrape, labels) in [(&seen, APPLIANCE), (&dialled, "side=\"worker\"")] {
            for direction in ["sent", "received"] {
                assert_eq!(carried(scrape, labels, direction), LENGTH as f64, "{labels} {direction}");
            }
            assert_eq!(scrape.get(&format!("dworker_tunnel_streams_total{{{labels}}}")), 2.0);
            assert_eq!(scrape.get(&format!("dworker_tunnel_lanes{{{labels}}}")), 2.0);
            let rtt = scrape.get(&format!("dworker_tunnel_rtt_seconds{{{labels},role=\"primary\"}}"));
            assert!(rtt > 0.0 && rtt < 5.0, "{rtt}");
            assert_eq!(scrape.get(&format!("dworker_tunnel_sessions{{{labels},role=\"primary\"}}")), 1.0);
        }
        let verdict =
            |verdict| seen.get(&format!("dworker_steering_verdicts_total{{verdict=\"{verdict}\"}}"));
        assert_eq!((verdict("steered"), verdict("refused-down")), (2.0, 1.0));
        assert!(verdict("dns-udp") >= 1.0);
        assert!(seen.get("dworker_dns_queries_total") >= 1.0);
        assert!(seen.get("dworker_dns_outcomes_total{outcome=\"answered\"}") >= 1.0);
        assert_eq!(seen.get("dworker_keys_refused_total"), 1.0);
        assert_eq!(seen.get("dworker_steering_names"), 1.0);
        assert_eq!(seen.get("dworker_steering_links{state=\"dead\"}"), 0.0);
        assert!(seen.get("dworker_steering_program_runs_total{program=\"dw_connect4\"}") >= 2.0);
        assert!(seen.sum("dworker_steering_program_run_seconds_total") > 0.0);
        assert!(
            seen.get("dworker_certificate_expiry_timestamp_seconds{source=\"appliance.certificate\"}")
                > 1.7e9
        );
        assert!(seen.get("process_resident_memory_bytes") > 1e6);

        // All that there is, and nothing else.
        let exposed: BTreeSet<(&str, &str)> = seen.metrics().into_iter().chain(dialled.metrics()).collect();
        let wanted = ALL.iter().map(|metric| (metric.name, metric.kind.word())).collect();
        assert_eq!(exposed, wanted);

        // What is gone goes on to count.
        tunnel.worker.stop(SOON)?;
        tunnel.appliance.wait_for_status("no worker", SOON, |status| {
            status["appliance"]["groups"][0]["nodes"].as_array().is_some_and(Vec::is_empty)
        })?;
        let after = Scrape::of_socket(host, &tunnel.appliance)?;
        assert_eq!(carried(&after, APPLIANCE, "sent"), LENGTH as f64);
        assert_eq!(after.get(&format!("dworker_tunnel_up{{{APPLIANCE}}}")), 0.0);
        assert_eq!(after.sum("dworker_tunnel_nodes"), 0.0);
        Ok(())
    })
}

/// Words of a query that are neither metrics nor labels.
fn words(query: &str) -> impl Iterator<Item = &str> {
    query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

#[test]
fn the_dashboard_and_the_alerts_ask_for_what_there_is() -> Result<()> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let dashboard: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{root}/packaging/grafana/dworker.json"))?)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let queries: Vec<String> = targets
        .map(|target| {
            let query = target["expr"].as_str().context("a target without a query")?;
            // What is chosen above counts everywhere.
            for matcher in query.split('{').skip(1) {
                assert!(matcher.starts_with("job=~\"$job\",instance=~\"$instance\""), "{query}");
            }
            assert!(query.contains('{'), "{query}");
            // As Grafana fills them in.
            Ok(query.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$job", ".*"))
        })
        .collect::<Result<_>>()?;
    assert!(queries.len() > 30, "only {}", queries.len());
    let document = std::fs::read_to_string(format!("{root}/docs/metrics.md"))?;
    let alerts = document.split("```yaml\n").skip(1).filter_map(|block| block.split("```").next());
    let alerts = alerts.filter(|block| block.starts_with("groups:"));
    let alerts: Vec<&str> = alerts.collect();
    assert_eq!(alerts.len(), 1);

    // Prometheus reads them all.
    let rule = |(n, query): (usize, &String)| json!({ "record": format!("panel:{n}"), "expr": query });
    let rules: Vec<Value> = queries.iter().enumerate().map(rule).collect();
    let rules = json!({ "groups": [{ "name": "dashboard", "rules": rules }] }).to_string();
    let directory = tempfile::tempdir()?;
    for (name, text) in [("dashboard", rules.as_str()), ("alerts", alerts[0])] {
        let file = directory.path().join(name);
        std::fs::write(&file, text)?;
        Command::new("promtool").args(["check", "rules"]).arg(&file).check()?;
    }

    // And they fire when they should, and not before.
    let series = |series: &str, values: &str| json!({ "series": series, "values": values });
    let case = |inputs: Vec<Value>, alert: &str, fires: bool| {
        let labels: Vec<Value> =
            if fires { vec![json!({ "exp_labels": { "job": "dworker", "instance": "a" } })] } else { vec![] };
        json!({
            "interval": "15s",
            "input_series": inputs,
            "alert_rule_test": [{ "eval_time": "30m", "alertname": alert, "exp_alerts": labels }],
        })
    };
    let of = |name: &str| format!("{name}{{job=\"dworker\",instance=\"a\"}}");
    let ends = |result: &str| {
        format!(
            "dworker_connection_opens_total{{job=\"dworker\",instance=\"a\",entry=\"egress\",result=\"{result}\"}}"
        )
    };
    let mut cases = Vec::new();
    for (name, good, bad, alert) in [
        ("up", "1x200", "0x200", "DworkerAway"),
        ("dworker_tunnel_up", "1x200", "0x200", "DworkerTunnelDown"),
        (
            "dworker_certificate_expiry_timestamp_seconds",
            "9999999x200",
            "86400x200",
            "DworkerCertificateEnds",
        ),
        ("dworker_steering_cgroups_missing", "0x200", "1x200", "DworkerNothingCaptured"),
        ("dworker_steering_enabled", "1x200", "0x200", "DworkerNothingCaptured"),
    ] {
        cases.push(case(vec![series(&of(name), good)], alert, false));
        cases.push(case(vec![series(&of(name), bad)], alert, true));
    }
    let opens = |failed: &str| vec![series(&ends("opened"), "0+10x200"), series(&ends("refused"), failed)];
    cases.push(case(opens("0+1x200"), "DworkerOpensFail", false));
    let mut failing = case(opens("0+5x200"), "DworkerOpensFail", true);
    failing["alert_rule_test"][0]["exp_alerts"][0]["exp_labels"] = json!({ "instance": "a" });
    cases.push(failing);
    let file = directory.path().join("cases");
    std::fs::write(&file, json!({ "rule_files": ["alerts"], "tests": cases }).to_string())?;
    Command::new("promtool").args(["test", "rules"]).arg(&file).check()?;

    for query in queries.iter().map(String::as_str).chain(alerts) {
        let mut named = 0;
        for word in words(query).filter(|word| word.starts_with("dworker_") || word.starts_with("process_")) {
            let is_it = |name: &str, kind: Kind| match kind {
                Kind::Histogram => {
                    ["_bucket", "_sum", "_count"].iter().any(|end| word == format!("{name}{end}"))
                }
                Kind::Counter | Kind::Gauge => word == name,
            };
            assert!(ALL.iter().any(|metric| is_it(metric.name, metric.kind)), "no metric {word}: {query}");
            named += 1;
        }
        assert!(named > 0, "it names none: {query}");
        // In `by (...)` and before a matcher's operator.
        let grouped = query.split("by (").skip(1).filter_map(|rest| rest.split(')').next());
        let grouped = grouped.flat_map(|list| list.split(", "));
        let matched = query.split('{').skip(1).filter_map(|rest| rest.split('}').next());
        let matched =
            matched.flat_map(|list| list.split("\",")).filter_map(|one| one.split(['=', '!']).next());
        for label in grouped.chain(matched) {
            let is_known = ["instance", "job", "le"].contains(&label)
                || ALL.iter().any(|metric| query.contains(metric.name) && metric.labels.contains(&label));
            assert!(is_known, "no label {label}: {query}");
        }
    }
    Ok(())
}

#[test]
fn the_default_address_gives_way_and_another_one_does_not() -> Result<()> {
    let lab = Lab::new()?;
    let host = lab.site();
    let group = tests::Group::new("site-a", ["*.corp.example"])?;
    let config = || Config::new().worker(&group, lab.pki().ca_file(), ["*.corp.example"]);
    let first = host.daemon("first", config())?;
    let second = host.daemon("second", config())?;
    lab.explain(|| {
        second.wait_for_line("no metrics: metrics.listen = 127.0.0.1:19464: Address already in use", SOON)?;
        let pid = |daemon: &Daemon| daemon.status().map(|status| status["pid"].clone());
        assert_ne!(pid(&first)?, pid(&second)?, "both serve");
        assert_eq!(Scrape::of_socket(host, &second)?.sum("dworker_build_info"), 1.0);

        let address = "127.0.0.1:19465";
        let fourth =
            host.daemon("fourth", config().set("metrics.listen", json!([address, "[::1]:19465"])))?;
        let said = fourth.wait_for_line(&format!("metrics are at http://{address}/metrics"), SOON)?;
        assert!(said.contains("INFO"), "{said}");
        let file = host.configure("third", config().set("metrics.listen", json!([address])))?;
        let third = host.dworker(["run", "--config"])?.arg(&file).output()?;
        assert!(!third.status.success());
        let why = format!("metrics.listen = {address}: Address already in use");
        assert!(third.stderr.contains(&why), "{third}");
        let curl = |url: String, more: &[&str]| {
            host.uncaptured(Command::new("curl").args(["-sS", "-g", &url]).args(more)).output()
        };
        for address in [address, "[::1]:19465"] {
            assert!(curl(format!("http://{address}/metrics"), &["-f"])?.status.success());
        }
        // Nothing else is there.
        for path in ["", "api/v1/status", "healthz"] {
            let code = curl(format!("http://{address}/{path}"), &["-o", "/dev/null", "-w", "%{http_code}"])?;
            assert_eq!(code.stdout, "404", "{path}");
        }
        let code =
            curl(format!("http://{address}/metrics"), &["-o", "/dev/null", "-w", "%{http_code}", "-d", "x"])?;
        assert_eq!(code.stdout, "405");

        let fifth = host.daemon("fifth", config().set("metrics.listen", json!([])))?;
        assert!(!fifth.log().contains("metrics"), "{}", fifth.log());
        Ok(())
    })
}

#[test]
fn a_reload_hands_the_address_on_and_begins_the_counters_anew() -> Result<()> {
    let lab = Lab::new()?;
    let host = lab.site();
    let group = tests::Group::new("site-a", ["*.corp.example"])?;
    let config = Config::new().worker(&group, lab.pki().ca_file(), ["*.corp.example"]);
    let service = host.service("worker", config)?;
    lab.explain(|| {
        let log = |arguments: &[&str]| {
            host.dworker(["log", "--socket"])?.arg(host.socket("worker")).args(arguments).output()?.check()
        };
        assert!(service.stored().contains(&"metrics".to_owned()), "{:?}", service.stored());
        log(&["debug"])?;
        let before = Scrape::of(host)?.get("process_start_time_seconds");
        service.reload(host)?.check()?;
        service.wait_until_ready(2)?;
        let after = Scrape::of(host)?.get("process_start_time_seconds");
        assert!(after > before, "{after} is not after {before}");
        assert!(!service.log().contains("no metrics"), "{}", service.log());
        assert_eq!(log(&[])?, "info\n", "the configuration's again");
        Ok(())
    })
}

#[test]
fn the_log_is_json_and_its_filter_changes_while_it_runs() -> Result<()> {
    let lab = Lab::new()?;
    let group = tests::Group::new("site-a", ["*.corp.example"])?;
    let appliance = Config::new().appliance(&lab.appliance_identity()?, &[&group]);
    let appliance = lab.appliance().daemon("appliance", appliance)?;
    let host = lab.site();
    let config =
        Config::new().worker(&group, lab.pki().ca_file(), ["*.corp.example"]).set("log_format", "json");
    let worker = host.daemon("worker", config)?;
    appliance.wait_for_group("site-a", SOON)?;
    lab.explain(|| {
        let log = |host: &Host, daemon: &Daemon, arguments: &[&str]| {
            host.dworker(["log", "--socket"])?.arg(host.socket(daemon.name())).args(arguments).output()
        };
        assert_eq!(log(host, &worker, &[])?.check()?, "info\n");
        // What is no request is told at level debug.
        let nonsense = || -> Result<()> {
            let mut socket = UnixStream::connect(host.socket("worker"))?;
            socket.write_all(b"no request\r\n\r\n")?;
            // It is told before the connection is closed.
            socket.read_to_end(&mut Vec::new()).map(drop).or(Ok(()))
        };
        const NONSENSE: &str = "a control connection failed";
        nonsense()?;
        let now: Value = log(host, &worker, &["dworker=debug,info", "-j"])?.json()?;
        assert_eq!(now, json!({ "filter": "dworker=debug,info" }));
        worker.wait_for_line("from now on, as root (control socket) wants it", SOON)?;
        assert!(!worker.log().contains(NONSENSE), "{}", worker.log());
        nonsense()?;
        assert!(worker.wait_for_line(NONSENSE, SOON)?.contains("\"level\":\"debug\""));
        // For a while, and back to what was before.
        let asked = Instant::now();
        let now: Value = log(host, &worker, &["off", "--for", "2s", "-j"])?.json()?;
        assert_eq!((&now["filter"], &now["then"]), (&json!("off"), &json!("dworker=debug,info")));
        worker.wait_for_line("the log's filter is \\\"dworker=debug,info\\\" again", SOON)?;
        assert!(asked.elapsed() >= Duration::from_secs(2));
        assert_eq!(log(host, &worker, &[])?.check()?, "dworker=debug,info\n");

        for (arguments, says) in [
            (&["inof"][..], "filter: \"inof\" is no level: did you mean `info`?"),
            (&["dworker=loud"], "filter: not a log filter"),
            (&["debug", "--for", "soon"], "for: "),
            (&["debug", "--for", "48h"], "for: "),
        ] {
            let refused = log(host, &worker, arguments)?;
            assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {refused}");
            assert!(refused.stderr.contains(says), "{arguments:?}: {refused}");
        }
        assert_eq!(log(host, &worker, &[])?.check()?, "dworker=debug,info\n", "nothing was changed");

        for line in worker.log().lines() {
            let object: Value = serde_json::from_str(line).with_context(|| format!("{line:?} is no JSON"))?;
            for key in ["time", "level", "message", "target", "fields"] {
                assert!(object.get(key).is_some(), "no {key}: {line}");
            }
        }
        let connected = worker.wait_for_line("\"message\":\"connected\"", SOON)?;
        let connected: Value = serde_json::from_str(&connected)?;
        assert!(connected["fields"]["lane"].is_u64(), "{connected}");

        // Where there is a registry, it has who did it.
        log(lab.appliance(), &appliance, &["warn", "--for", "10m"])?.check()?;
        let events = ["events", "--kind", "log-changed", "-j", "--socket"];
        let events = lab.appliance().dworker(events)?.arg(lab.appliance().socket("appliance"));
        let deadline = Instant::now() + SOON;
        loop {
            let found: Value = events.clone().output()?.json()?;
            match found.as_array().map(Vec::as_slice) {
                Some([event]) => {
                    assert_eq!(event["actor"], "root (control socket)");
                    break assert_eq!(event["text"], "warn, for 10m");
                }
                _ if Instant::now() > deadline => bail!("no event: {found}"),
                _ => {}
            }
        }
        Ok(())
    })
}

/// A journal of its own, which reads nothing else, with a daemon whose standard error it is; then what it has of it.
const JOURNAL: &str = r#"
mount -t tmpfs journal /run
mkdir -p /run/systemd/journal /run/systemd/journald.conf.d /run/log/journal
printf '[Journal]\nStorage=volatile\nAudit=no\nReadKMsg=no\n' > /run/systemd/journald.conf.d/lab.conf
/lib/systemd/systemd-journald &
journald=$!
until [ -S /run/systemd/journal/socket ] && [ -S /run/systemd/journal/stdout ]; do sleep 0.05; done
# As a unit has it.
systemd-cat -t dworker sh -c 'export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2); exec "$@"' sh "$@" &
dworker=$!
until journalctl -q -D /run/log/journal -t dworker -o cat | grep -qx ready; do kill -0 $dworker || break; sleep 0.05; done
kill $dworker
wait $dworker
journalctl --sync
journalctl -q -D /run/log/journal -t dworker -o json
kill $journald
wait $journald
"#;

#[test]
fn the_journal_has_each_field() -> Result<()> {
    let lab = Lab::new()?;
    let host = lab.site();
    let group = tests::Group::new("site-a", ["*.corp.example"])?;
    let config = Config::new().worker(&group, lab.pki().ca_file(), ["*.corp.example"]);
    let file = host.configure("worker", config)?;
    let run = Command::new("unshare").args(["--mount", "sh", "-c", JOURNAL, "sh"]).arg(tests::program()?);
    let said = host.uncaptured(run.args(["run", "--config"]).arg(file)).check()?;
    let records: Vec<Value> = said.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let find = |message: &str| {
        let has = |record: &&Value| record["MESSAGE"].as_str().is_some_and(|text| text.starts_with(message));
        records.iter().find(has).with_context(|| format!("no {message:?} in {said}"))
    };
    let metrics = find("metrics are at")?;
    assert_eq!(metrics["MESSAGE"], "metrics are at http://127.0.0.1:19464/metrics listen=127.0.0.1:19464");
    assert_eq!(metrics["DWORKER_LISTEN"], "127.0.0.1:19464");
    assert_eq!(metrics["PRIORITY"], "6");
    assert_eq!(metrics["TARGET"], "dworker::daemon::metrics");
    assert_eq!(metrics["_TRANSPORT"], "journal", "it is a record, and no line: {metrics}");
    assert!(metrics["CODE_FILE"].as_str().is_some_and(|file| file.ends_with("daemon/metrics.rs")));
    // Nobody listens at the appliance's address.
    let refused = find("not connected")?;
    assert_eq!(refused["PRIORITY"], "4");
    assert_eq!(refused["DWORKER_APPLIANCE"], "appliance.example:443");
    find("ready")?;
    find("stopped")?;
    Ok(())
}
