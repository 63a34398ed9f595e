//! What is live, as it changes.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::traffic::{Connect, Order, Serve};
use tests::{Config, Group, Lab, Process, net};

use super::{House, SOON};

/// The data of the next message with this name that is as wanted.
fn message(stream: &Process, name: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let event = format!("event: {name}");
    let mut found = None;
    let mut named = false;
    stream.wait_for(&format!("a message {name}"), SOON, |line| {
        let data = line.strip_prefix("data: ").and_then(|data| serde_json::from_str::<Value>(data).ok());
        if named && let Some(data) = data.filter(|data| wanted(data)) {
            found = Some(data);
        }
        named = line == event;
        found.is_some()
    })?;
    found.context("no message")
}

#[test]
fn workers_connections_and_events_are_told_as_they_come() -> Result<()> {
    let lab = Lab::new()?;
    let house = House::with(&lab, |config| config.steer(&[lab.appliance().cgroup()]))?;
    lab.explain(|| {
        let curl = house.admin.curl("GET", "/api/v1/stream").args(["--no-buffer", "--max-time", "600"]);
        let mut stream =
            curl.args(["--header", &format!("Authorization: Bearer {}", house.admin.token)]).spawn()?;
        message(&stream, "workers", |data| data["changed"] == json!([]))?;

        let key = house.add("site-a", &["echo.corp.example"])?["key"].as_str().unwrap_or_default().to_owned();
        let event = message(&stream, "event", |data| data["kind"] == "worker-added")?;
        assert_eq!((&event["subject"], &event["actor"]), (&json!("site-a"), &json!("admin (token)")));
        message(&stream, "workers", |data| data["changed"][0]["live"]["up"] == false)?;
        let group = Group { name: "site-a".into(), key, proxy_hosts: vec![], may_open: false };
        let worker = Config::new().worker(&group, lab.pki().ca_file(), ["echo.corp.example"]);
        let _worker = lab.site().daemon("worker", worker)?;
        let up = message(&stream, "workers", |data| data["changed"][0]["live"]["up"] == true)?;
        assert_eq!(up["changed"][0]["nodes"][0]["role"], "primary", "{up}");

        let _echo = lab.vcenter().serve(Serve::Echo, net::ECHO, 7)?;
        // Both ends wait for the other's bytes.
        let waiting = Connect::to("echo.corp.example", 7).order(Order::ReadFirst).command()?;
        let waiting = lab.appliance().captured(waiting).spawn()?;
        let open = |data: &Value| data["items"][0]["state"] == "open";
        let open = message(&stream, "connections", open)?;
        let flow = &open["items"][0];
        assert_eq!((&flow["target"], &open["open"]), (&json!("echo.corp.example:7"), &json!(1)), "{open}");
        assert!(
            flow["process"]["pid"].is_u64()
                && flow["carrier"].as_str().is_some_and(|c| c.starts_with("site-a/"))
        );

        let found = |query: &str| -> Result<Vec<Value>> {
            let page = house.admin.get(&format!("/api/v1/connections?{query}"))?;
            Ok(page["items"].as_array().context("no items")?.iter().map(|flow| flow["id"].clone()).collect())
        };
        for query in ["text=ECHO.corp", "text=site-a/", "phase=open&text=captured"] {
            assert_eq!(found(query)?, [flow["id"].clone()], "{query}");
        }
        for query in ["text=nothing", "phase=failed"] {
            assert_eq!(found(query)?, [] as [Value; 0], "{query}");
        }

        // Closed by hand.
        let path = format!("/api/v1/connections/{}", flow["id"]);
        assert_eq!(house.admin.get(&path)?["state"], "open");
        house.admin.delete(&path)?.ok()?;
        let closed = message(&stream, "event", |data| data["kind"] == "stream-closed")?;
        assert_eq!(closed["subject"], "echo.corp.example:7");
        message(&stream, "connections", |data| data["open"] == 0)?;
        house.admin.delete(&path)?.problem(404)?;
        assert_eq!(found("phase=failed&text=closed")?, [flow["id"].clone()], "it was cut");
        drop(waiting);

        house.admin.patch("/api/v1/workers/site-a", &json!({ "enabled": false }))?.ok()?;
        message(&stream, "workers", |data| data["gone"] == json!([1]))?;

        // Whoever's token does not work any more sees no more.
        let _other = lab.admin(&house.appliance)?;
        assert!(stream.wait(Duration::from_secs(10))?.success());
        Ok(())
    })
}

#[test]
fn there_are_only_so_many_streams_and_a_stop_ends_them() -> Result<()> {
    let lab = Lab::new()?;
    let mut house = House::new(&lab)?;
    lab.explain(|| {
        let bearer = format!("Authorization: Bearer {}", house.admin.token);
        let open = || {
            let curl = house.admin.curl("GET", "/api/v1/stream?topics=workers");
            curl.args(["--no-buffer", "--max-time", "600", "--header", &bearer]).spawn()
        };
        let mut streams = (0..32).map(|_| open()).collect::<Result<Vec<_>>>()?;
        for stream in &streams {
            stream.wait_for_line("event: workers", SOON)?;
        }
        let full = house.admin.send("GET", "/api/v1/stream", None, &[])?;
        full.problem(503)?;
        assert!(full.header("retry-after").parse::<u32>()? > 0);
        // Nobody else is concerned, and one that goes makes room.
        house.admin.get("/api/v1/workers")?;
        drop(streams.pop());
        let started = std::time::Instant::now();
        loop {
            let again = open()?;
            if again.wait_for("a message or a problem", SOON, |line| {
                line.starts_with("event: ") || line.contains("problem")
            })? == "event: workers"
            {
                streams.push(again);
                break;
            }
            assert!(started.elapsed() < SOON, "there is no room again");
        }
        let started = std::time::Instant::now();
        house.appliance.stop(SOON)?;
        assert!(started.elapsed() < Duration::from_secs(5), "the streams held the stop up");
        for mut stream in streams {
            stream.wait(SOON)?;
        }
        Ok(())
    })
}
