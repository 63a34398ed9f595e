//! The appliance's API against a real daemon, over TLS, from another host: what is refused is refused clearly and
//! told by an event, and nothing that was saved is lost.

mod cli;
mod document;
mod full;
mod hostile;
mod keys;
mod ready;
mod secrets;
mod stream;

use std::time::Duration;

use anyhow::{Context, Result};
use dworker::appliance::api::nodes::Node;
use dworker::inspect::status::NodeRole;
use serde_json::{Value, json};
use tests::api::Admin;
use tests::{Config, Daemon, Lab};

/// How soon what is certain must have happened.
const SOON: Duration = Duration::from_secs(30);

/// An appliance with an empty registry, and its administrator.
struct House<'l> {
    lab: &'l Lab,
    appliance: Daemon,
    admin: Admin<'l>,
}

impl House<'_> {
    fn new(lab: &Lab) -> Result<House<'_>> {
        House::with(lab, |config| config)
    }

    fn with(lab: &Lab, adjust: impl FnOnce(Config) -> Config) -> Result<House<'_>> {
        let config = Config::new().appliance(&lab.appliance_identity()?, &[]);
        let appliance = lab.appliance().daemon("appliance", adjust(config))?;
        let admin = lab.admin(&appliance)?;
        Ok(House { lab, appliance, admin })
    }

    /// Adds a worker; what was answered.
    fn add(&self, name: &str, proxy_hosts: &[&str]) -> Result<Value> {
        self.admin.post("/api/v1/workers", &json!({ "name": name, "proxy_hosts": proxy_hosts }))?.ok()
    }

    /// Adds the worker site-a, and starts its process at the site; it is connected.
    fn worker(&self) -> Result<Daemon> {
        let key = self.add("site-a", &["vc.corp.example"])?["key"].as_str().unwrap_or_default().to_owned();
        let group = tests::Group { name: "site-a".into(), key, proxy_hosts: vec![], may_open: false };
        let config = Config::new().worker(&group, self.lab.pki().ca_file(), ["*.corp.example"]);
        let worker = self.lab.site().daemon("worker", config)?;
        self.appliance.wait_for_group("site-a", SOON)?;
        Ok(worker)
    }
}

#[test]
fn what_is_saved_is_shown_again_page_by_page_and_after_a_restart() -> Result<()> {
    let lab = Lab::new()?;
    let mut house = House::new(&lab)?;
    lab.explain(|| {
        for n in 0..7 {
            house.add(&format!("site-{n}"), &[&format!("vc{n}.corp.example:443,902")])?;
        }
        let added = house.admin.post("/api/v1/workers", &json!({ "name": "site-7" }))?;
        assert_eq!((added.status, added.header("location")), (201, "/api/v1/workers/8"));
        let cloud = json!({
            "name": "Zürich <1>", "type": "vmware", "api_url": "https://vc.zurich.example/sdk", "worker": "site-0",
        });
        let cloud = house.admin.post("/api/v1/clouds", &cloud)?.ok()?;
        assert_eq!(cloud["proxy_host"], "vc.zurich.example:443");

        let mut names = Vec::new();
        let mut path = "/api/v1/workers?limit=3".to_owned();
        loop {
            let page = house.admin.get(&path)?;
            names.extend(page["items"].as_array().into_iter().flatten().map(|w| w["name"].to_string()));
            match page["next"].as_str() {
                Some(next) => path = format!("/api/v1/workers?limit=3&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(names, (0..8).map(|n| format!("\"site-{n}\"")).collect::<Vec<_>>());
        let found = house.admin.get("/api/v1/workers?text=VC3.")?;
        assert_eq!(found["items"].as_array().map(Vec::len), Some(1));
        let by_name = house.admin.send("GET", "/api/v1/workers/site-0", None, &[])?;
        assert_eq!(by_name.header("etag"), "\"1\"");
        let by_name = by_name.ok()?;
        assert_eq!(by_name["clouds"], json!(["Zürich <1>"]));
        assert_eq!(by_name["live"]["up"], false);
        assert_eq!(house.admin.get("/api/v1/workers/1")?["name"], "site-0");
        assert_eq!(house.admin.get("/api/v1/clouds/Z%C3%BCrich%20%3C1%3E")?["id"], cloud["id"]);

        let before = (house.admin.all("/api/v1/workers")?, house.admin.all("/api/v1/clouds")?);
        house.appliance.kill9()?;
        house.appliance.start()?;
        assert_eq!((house.admin.all("/api/v1/workers")?, house.admin.all("/api/v1/clouds")?), before);

        let events = house.admin.all("/api/v1/events")?;
        assert!(events.is_sorted_by_key(|event| -event["id"].as_i64().unwrap_or_default()));
        let added = house.admin.get("/api/v1/events?kind=worker-added&subject=site-3")?;
        assert_eq!(added["items"].as_array().map(Vec::len), Some(1), "{added}");
        Ok(())
    })
}

#[test]
fn of_two_saves_at_once_one_is_told_and_nothing_is_lost() -> Result<()> {
    let lab = Lab::new()?;
    let house = House::new(&lab)?;
    lab.explain(|| {
        house.add("site-a", &["vc.corp.example"])?;
        let path = "/api/v1/workers/site-a";
        // Ten at once, all based on revision 1, each by both ways of saying so.
        let save = |n: usize| {
            let header = if n.is_multiple_of(2) { &["If-Match: \"1\""][..] } else { &[] };
            let mut body = json!({ "description": format!("save {n}") });
            if n % 2 == 1 {
                body["revision"] = json!(1);
            }
            house.admin.send("PATCH", path, Some(&body), header)
        };
        let answers: Vec<_> = std::thread::scope(|scope| {
            let save = &save;
            let saves: Vec<_> = (0..10).map(|n| scope.spawn(move || save(n))).collect();
            saves.into_iter().map(|save| save.join().expect("no panic")).collect::<Result<_>>()
        })?;
        let won: Vec<_> = (0..10).filter(|n| answers[*n].status == 200).collect();
        let [won] = won[..] else { panic!("not one: {answers:#?}") };
        for (n, answer) in answers.iter().enumerate().filter(|(n, _)| *n != won) {
            let problem = answer.problem(if n.is_multiple_of(2) { 412 } else { 409 })?;
            assert!(problem["detail"].as_str().is_some_and(|d| d.contains("has changed since")), "{problem}");
        }
        let now = house.admin.get(path)?;
        assert_eq!((&now["description"], &now["revision"]), (&json!(format!("save {won}")), &json!(2)));
        house.admin.event("save-refused", "has changed since you loaded it", SOON)?;

        // Different fields without a revision: both are there.
        house.admin.patch(path, &json!({ "may_open": true }))?.ok()?;
        house.admin.patch(path, &json!({ "proxy_hosts": "vc.corp.example, vc2.corp.example" }))?.ok()?;
        let now = house.admin.get(path)?;
        assert_eq!((&now["may_open"], &now["revision"]), (&json!(true), &json!(4)));
        house.admin.send("DELETE", path, None, &["If-Match: \"3\""])?.problem(412)?;
        house.admin.send("DELETE", path, None, &["If-Match: \"4\""])?.ok()?;
        house.admin.send("GET", path, None, &[])?.problem(404)?;
        Ok(())
    })
}

/// Whatever ends it: here the worker is disabled.
#[test]
fn a_node_was_seen_until_it_went() -> Result<()> {
    let lab = Lab::new()?;
    let house = House::new(&lab)?;
    lab.explain(|| {
        let _worker = house.worker()?;
        let node = || -> Result<Node> {
            let mut all = house.admin.all("/api/v1/workers/site-a/nodes")?;
            Ok(serde_json::from_value(all.pop().context("no node")?)?)
        };
        // It is kept by now that it is there, and it stays for a while.
        house.admin.event("node-added", "connected for the first time", SOON)?;
        let connected = node()?;
        assert_eq!(connected.role, NodeRole::Primary);

        house.admin.patch("/api/v1/workers/site-a", &json!({ "enabled": false }))?.ok()?;
        let left = house.admin.event("node-disconnected", "its last lane is down", SOON)?;
        assert!(left["subject"].as_str().is_some_and(|subject| subject.starts_with("site-a/")), "{left}");
        let started = std::time::Instant::now();
        let gone = loop {
            let node = node()?;
            if node.role == NodeRole::Offline && node.last_seen >= connected.last_seen {
                break node;
            }
            assert!(started.elapsed() < SOON, "{connected:?} became {node:?}");
        };
        assert_eq!((gone.id, gone.first_seen), (connected.id, connected.first_seen));
        Ok(())
    })
}

#[test]
fn a_worker_alone_answers_its_status_and_sends_others_to_the_appliance() -> Result<()> {
    let lab = Lab::new()?;
    let house = House::new(&lab)?;
    lab.explain(|| {
        let worker = house.worker()?;
        let ask = |path: &str| -> Result<Value> {
            let curl = lab
                .site()
                .command("curl")
                .args(["--silent", "--unix-socket"])
                .arg(lab.site().socket("worker"));
            Ok(serde_json::from_str(&curl.arg(format!("http://localhost{path}")).check()?)?)
        };
        assert_eq!(ask("/api/v1/status")?["roles"], json!(["worker"]));
        assert_eq!(ask("/healthz")?, json!({ "status": "ok" }));
        assert_eq!(ask("/readyz")?, json!({ "ready": true, "reasons": [] }));
        assert_eq!(ask("/api/v1/workers")?["status"], 501);
        for command in [&["worker", "list"][..], &["cloud", "show", "1"], &["events"], &["connections"]] {
            let asked =
                lab.site().dworker(command)?.arg("--socket").arg(lab.site().socket("worker")).output()?;
            assert_eq!(asked.status.code(), Some(1), "{asked}");
            let said = "dworker: this daemon is a worker and has no registry: ask the appliance\n";
            assert_eq!(asked.stderr, said);
        }

        let node = &house.admin.get("/api/v1/workers/site-a")?["nodes"][0];
        assert_eq!((&node["role"], &node["worker"]), (&json!("primary"), &json!("site-a")), "{node}");
        assert!(node["rtt_us"].is_u64() && node["lanes"] == 2, "{node}");
        let id = node["id"].as_str().unwrap_or_default();
        let path = format!("/api/v1/workers/site-a/nodes/{id}");
        assert_eq!(house.admin.patch(&path, &json!({ "priority": 3 }))?.ok()?["priority"], 3);
        house.admin.patch(&path, &json!({}))?.problem(422)?;
        assert_eq!(house.admin.get("/api/v1/nodes?role=primary")?["items"][0]["priority"], 3);
        assert_eq!(house.admin.get("/api/v1/nodes?role=offline")?["items"], json!([]));
        // It carries: nobody can make it invisible.
        let problem = house.admin.delete(&path)?.problem(409)?;
        assert!(
            problem["detail"].as_str().is_some_and(|text| text.contains("disable worker site-a")),
            "{problem}"
        );
        let node = ["node", "forget", "site-a", id, "--yes", "--socket"];
        let refused = lab.appliance().dworker(node)?.arg(lab.appliance().socket("appliance")).output()?;
        assert_eq!(refused.status.code(), Some(4), "{refused}");
        assert_eq!(house.admin.get("/api/v1/workers/site-a")?["live"]["connected"], 1);
        house.admin.patch("/api/v1/workers/site-a", &json!({ "enabled": false }))?.ok()?;
        house.admin.delete(&path)?.ok()?;
        assert_eq!(house.admin.get("/api/v1/nodes")?["items"], json!([]));
        // What it was is not what it is.
        let status =
            worker.wait_for_status("the loss", SOON, |status| status["worker"]["connected"] == false)?;
        assert!(status["worker"]["role"].is_null() && status["worker"]["role_epoch"].is_null(), "{status}");
        let why = &status["worker"]["problem"];
        let told = why.as_str().is_some_and(|text| text.contains("no enabled worker there has this key"));
        assert!(told || why.is_null(), "{why}");
        Ok(())
    })
}
