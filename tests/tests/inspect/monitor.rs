//! `dworker monitor`: what happens to connections and workers, as it happens.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tests::traffic::{Connect, Serve};
use tests::{Host, Lab, Process, net};

use crate::schema::judge;

const SOON: Duration = Duration::from_secs(30);

/// A monitor that hears.
pub(crate) fn monitor(host: &Host, args: &[&str]) -> Result<Process> {
    let command = host.dworker(["monitor"])?.args(args).arg("--socket").arg(host.socket("appliance"));
    let process = command.spawn()?;
    process.wait_for_line("watching", SOON)?;
    Ok(process)
}

fn events(monitor: &Process) -> Result<Vec<Value>> {
    let lines = monitor.stdout();
    lines.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// Waits for an event of this kind, to this target where there is one.
pub(crate) fn await_event(monitor: &Process, kind: &str, target: &str) -> Result<Value> {
    let is_it = |event: &Value| event["kind"] == kind && (target.is_empty() || event["target"] == target);
    let whole = |line: &str| serde_json::from_str::<Value>(line).is_ok_and(|event| is_it(&event));
    let line = monitor.wait_for(&format!("{kind} {target}"), SOON, whole)?;
    Ok(serde_json::from_str(&line)?)
}

#[test]
fn what_happens_is_told_to_who_asks_for_it() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.vcenter().serve(Serve::Echo, net::ECHO, 7001)?;
    let hosts = ["echo.corp.example:7001", "refused.corp.example:7001"];
    let mut tunnel = lab.tunnel(hosts, ["*.corp.example"])?;
    lab.explain(|| {
        let host = lab.appliance();
        let child = host.cgroup().child("inner")?;
        let all = monitor(host, &["-j"])?;
        let refused = monitor(host, &["-j", "--kind", "refused,failed"])?;
        let inner = monitor(host, &["-j", "--cgroup", &child.path().display().to_string()])?;
        let plain = monitor(host, &["--host", "*.corp.example:7001"])?;

        Connect::to("echo.corp.example", 7001).send(1000).once(host)?;
        for kind in ["steered", "opened", "closed"] {
            let event = await_event(&all, kind, "echo.corp.example:7001")?;
            assert_eq!(event["original"], "240.64.0.1:7001", "{event:#}");
            assert_eq!(event["process"]["comm"], "lab-tool", "{event:#}");
            assert_eq!(event["flow"], 1, "{event:#}");
            assert_eq!(event["carrier"] == "site-a/site", kind != "steered", "{event:#}");
        }
        let closed = await_event(&all, "closed", "echo.corp.example:7001")?;
        assert_eq!(closed["bytes"], serde_json::json!([1000, 1000]));

        Connect::to("echo.corp.example", 22).once(host)?;
        let event = await_event(&all, "refused", "echo.corp.example:22")?;
        assert_eq!((event["reason"].as_str(), event["errno"].as_i64()), (Some("refused-port"), Some(113)));
        Connect::to("refused.corp.example", 7001).once(host)?;
        let event = await_event(&all, "failed", "refused.corp.example:7001")?;
        assert!(event["reason"].as_str().is_some_and(|reason| reason.starts_with("refused: ")), "{event:#}");

        let client = Connect::to("echo.corp.example", 7001).send(1);
        let report = host.captured_in(&child, client.command()?).check()?;
        assert!(report.contains("\"eof\""), "{report}");
        await_event(&inner, "closed", "echo.corp.example:7001")?;
        assert_eq!(events(&inner)?.len(), 3, "{}", inner.stdout());

        tunnel.worker.stop(SOON)?;
        let event = await_event(&all, "failover", "")?;
        assert_eq!(event["carrier"], "site-a", "{event:#}");

        let kinds: Vec<_> = events(&refused)?.iter().map(|event| event["kind"].clone()).collect();
        assert_eq!(kinds, ["refused", "failed"], "{}", refused.stdout());
        let text = plain.stdout();
        assert!(text.contains("  opened    echo.corp.example:7001  lab-tool["), "{text}");
        assert!(!text.contains("echo.corp.example:22") && !text.contains("failover"), "{text}");
        judge(&events(&all)?.into_iter().map(|event| ("MonitorEvent", event)).collect::<Vec<_>>())?;

        // What is asked for wrongly is said at once.
        let wrong = host
            .dworker(["monitor", "--kind", "opend", "--socket"])?
            .arg(host.socket("appliance"))
            .output()?;
        assert!(wrong.status.code() == Some(2) && wrong.stderr.contains("failover"), "{wrong}");
        // Who goes frees his place, and a daemon that stops ends the others.
        drop(plain);
        tunnel.appliance.stop(SOON)?;
        let mut all = all;
        assert_eq!(all.wait(SOON)?.code(), Some(1), "{}", all.stderr());
        Ok(())
    })
}
