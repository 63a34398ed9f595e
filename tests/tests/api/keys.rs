//! Who comes with a wrong token, or with a worker key that does not work: refused, and told by an event.

use anyhow::Result;
use serde_json::{Value, json};
use tests::{Lab, worker_key};

use super::{House, SOON};

/// What the tunnel's path answers to somebody with this key who asks for no websocket: 426 where the key works.
fn knock(house: &House<'_>, key: &str) -> Result<u16> {
    let curl =
        house.admin.curl("GET", "/tunnel/v1").args(["--header", &format!("Authorization: Bearer {key}")]);
    Ok(house.admin.answer(curl)?.status)
}

fn key(saved: &Value) -> String {
    saved["key"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_wrong_token_is_refused_limited_and_told_and_the_right_one_is_not_kept_out() -> Result<()> {
    let lab = Lab::new()?;
    let house = House::new(&lab)?;
    lab.explain(|| {
        let path = "/api/v1/workers";
        let refused = house.admin.answer(house.admin.curl("GET", path))?;
        assert_eq!(refused.header("www-authenticate"), "Bearer realm=\"dworker\"");
        refused.problem(401)?;
        let with = |token: &str| {
            let curl =
                house.admin.curl("GET", path).args(["--header", &format!("Authorization: Bearer {token}")]);
            house.admin.answer(curl)
        };
        with("dwa_wrong")?.problem(401)?;
        let event = house.admin.event("login-failed", "a wrong admin token", SOON)?;
        assert_eq!(event["source"], "10.77.4.10", "{event}");
        let limited = loop {
            let answer = with("dwa_wrong")?;
            if answer.status != 401 {
                break answer;
            }
        };
        limited.problem(429)?;
        assert!(limited.header("retry-after").parse::<u32>()? > 0);
        house.admin.event("login-limited", "too many attempts", SOON)?;
        assert_eq!(
            house.admin.get(path)?["items"],
            json!([]),
            "a script that forgot does not lock others out"
        );
        let sign_in = |admin: &tests::api::Admin<'_>| {
            let body = json!({ "token": admin.token }).to_string();
            let curl =
                admin.curl("POST", "/api/v1/session").args(["--header", "Content-Type: application/json"]);
            admin.answer(curl.args(["--data-binary", "@-"]).input(body))
        };
        assert_eq!(sign_in(&house.admin)?.status, 201, "nor its own host's browsers");
        with("dwa_wrong")?.problem(429)?;

        // A new token: the old one is a wrong one now.
        let again = lab.admin(&house.appliance)?;
        assert_eq!(house.admin.on(lab.site()).send("GET", path, None, &[])?.status, 401);
        assert_eq!(again.get(path)?["items"], json!([]));
        // It is made on the appliance only.
        again.post("/api/v1/token", &json!({}))?.problem(403)?;
        Ok(())
    })
}

#[test]
fn a_key_that_does_not_work_is_refused_and_told() -> Result<()> {
    let lab = Lab::new()?;
    let mut house = House::new(&lab)?;
    lab.explain(|| {
        let first = key(&house.add("site-a", &["vc.corp.example"])?);
        assert_eq!(knock(&house, &first)?, 426, "it works");
        assert_eq!(knock(&house, &worker_key()?)?, 401);
        let event = house.admin.event("key-refused", "no worker has this key", SOON)?;
        assert_eq!((&event["source"], &event["subject"]), (&json!("10.77.4.10"), &json!("unknown")));

        // From a host each: one source is told of once a minute.
        let path = "/api/v1/workers/site-a";
        house.admin.patch(path, &json!({ "enabled": false }))?.ok()?;
        house.admin.event("worker-disabled", "site-a", SOON)?;
        house.admin = house.admin.on(lab.appliance());
        assert_eq!(knock(&house, &first)?, 401);
        assert_eq!(house.admin.event("key-refused", "the worker is disabled", SOON)?["subject"], "site-a");
        house.admin.patch(path, &json!({ "enabled": true }))?.ok()?;
        assert_eq!(knock(&house, &first)?, 426, "it works again");

        let rotated = house.admin.post(&format!("{path}/key"), &json!({ "grace": 10 }))?.ok()?;
        assert!(rotated["previous_key_until"].is_string(), "{rotated}");
        let second = key(&rotated);
        assert_eq!((knock(&house, &first)?, knock(&house, &second)?), (426, 426), "both work in the grace");
        let started = std::time::Instant::now();
        while knock(&house, &first)? == 426 {
            assert!(started.elapsed() < SOON, "the grace does not end");
        }
        house.admin = house.admin.on(lab.site());
        assert_eq!((knock(&house, &first)?, knock(&house, &second)?), (401, 426));
        house.admin.event("key-refused", "its grace is over", SOON)?;
        let at_once = house.admin.post(&format!("{path}/key"), &json!({ "grace": 0 }))?.ok()?;
        assert_eq!((knock(&house, &second)?, knock(&house, &key(&at_once))?), (401, 426));
        house.admin.post(&format!("{path}/key"), &json!({ "grace": 2_592_001 }))?.problem(422)?;
        Ok(())
    })
}

#[test]
fn the_journal_is_not_given_the_token() -> Result<()> {
    let lab = Lab::new()?;
    lab.explain(|| {
        let config = tests::Config::new().appliance(&lab.appliance_identity()?, &[]);
        let host = lab.appliance();
        let file = host.configure("appliance", config)?;
        let log = host.directory().join("journal");
        // As systemd starts it: standard error is the file that the variable names.
        let dworker = host.dworker(["run", "--config"])?.arg(&file).to_shell();
        let script =
            format!("exec 2>>\"$0\"; export JOURNAL_STREAM=$(stat --format %d:%i \"$0\"); exec {dworker}");
        std::fs::write(&log, "")?;
        let _running = host.command("sh").args(["-c", &script]).arg(&log).spawn()?;
        let started = std::time::Instant::now();
        let said = loop {
            let said = std::fs::read_to_string(&log)?;
            if said.contains("ready") {
                break said;
            }
            assert!(started.elapsed() < SOON, "{said}");
        };
        assert!(!said.contains("dwa_") && said.contains("`dworker token reset` makes one"), "{said}");
        let reset = || host.dworker(["token", "reset", "--socket"])?.arg(host.socket("appliance")).check();
        assert!(reset()?.starts_with("dwa_"));
        Ok(())
    })
}
