//! No secret is anywhere but in the one answer that showed it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;
use tests::{Group, Lab, worker_key};

use super::{House, SOON};

/// All bytes of all files below a directory.
fn bytes(directory: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        match path.is_dir() {
            true => all.extend(bytes(&path)?),
            false => all.push((path.display().to_string(), fs::read(&path)?)),
        }
    }
    Ok(all)
}

#[test]
fn no_secret_is_in_a_log_an_event_an_answer_or_a_file() -> Result<()> {
    let lab = Lab::new()?;
    // All that the daemon can say.
    let mut house = House::with(&lab, |config| config.set("log", "trace"))?;
    lab.explain(|| {
        let admin = &house.admin;
        let printed = house.appliance.wait_for_line("the admin token, shown this once: ", SOON)?;
        let printed = printed.rsplit(' ').next().context("no token")?.to_owned();
        let mut secrets = vec![admin.token.clone(), worker_key()?];
        let key = |answer: &serde_json::Value| answer["key"].as_str().map(str::to_owned).context("no key");
        let first = key(&house.add("site-a", &["vc.corp.example"])?)?;
        let rotated = key(&admin.post("/api/v1/workers/site-a/key", &json!({ "grace": 3600 }))?.ok()?)?;
        secrets.extend([first.clone(), rotated.clone()]);

        // In all places where somebody may paste one.
        let pasted = &secrets[1].clone();
        for body in [
            json!({ "name": pasted }),
            json!({ "name": "b", "description": pasted }),
            json!({ "name": "b", "proxy_hosts": [pasted] }),
            json!({ pasted: 1 }),
        ] {
            assert!(admin.post("/api/v1/workers", &body)?.status >= 400, "{body}");
        }
        for token in [pasted.as_str(), &admin.token] {
            for url in [format!("https://{token}.example"), format!("https://vc.example/sdk/{token}")] {
                for name in [token, "c"] {
                    let cloud = json!({ "name": name, "type": "vmware", "api_url": url });
                    assert_eq!(admin.post("/api/v1/clouds", &cloud)?.status, 422);
                }
            }
            admin.send("GET", &format!("/api/v1/workers/{token}"), None, &[])?.problem(404)?;
            admin.send("GET", &format!("/{token}"), None, &[])?;
            let curl =
                admin.curl("GET", "/tunnel/v1").args(["--header", &format!("Authorization: Bearer {token}")]);
            assert_eq!(admin.answer(curl)?.status, 401);
            let curl =
                admin.curl("POST", "/api/v1/session").args(["--header", "Content-Type: application/json"]);
            let body = json!({ "token": token, "more": token }).to_string();
            assert_eq!(admin.answer(curl.args(["--data-binary", "@-"]).input(body))?.status, 422);
        }
        // A session, and what goes wrong with it.
        let curl = admin.curl("POST", "/api/v1/session").args(["--header", "Content-Type: application/json"]);
        let body = json!({ "token": admin.token }).to_string();
        let signed = admin.answer(curl.args(["--data-binary", "@-"]).input(body))?;
        let cookie = signed.header("set-cookie").split(['=', ';']).nth(1).context("no cookie")?.to_owned();
        let csrf = signed.ok()?["csrf"].as_str().context("no CSRF token")?.to_owned();
        let curl = admin.curl("DELETE", "/api/v1/workers/site-a");
        let forged = curl.args(["--header", &format!("Cookie: __Host-dworker={cookie}")]);
        let forged = forged.args(["--header", &format!("X-CSRF-Token: {csrf}")]);
        admin.answer(forged)?.problem(403)?;
        secrets.extend([cookie, csrf]);

        // A worker that connects, with the old key and the new one.
        for (name, key) in [("old", &first), ("new", &rotated)] {
            let group =
                Group { name: "site-a".into(), key: key.clone(), proxy_hosts: vec![], may_open: false };
            let config = tests::Config::new().worker(&group, lab.pki().ca_file(), ["*.corp.example"]);
            let worker = lab.site().daemon(name, config.set("log", "trace"))?;
            house.appliance.wait_for_group("site-a", SOON)?;
            assert!(!worker.log().contains(key), "the worker's log has its key");
        }

        let mut seen: Vec<(String, Vec<u8>)> = Vec::new();
        let document = admin.get("/api/v1/openapi.json")?;
        for path in document["paths"].as_object().context("no paths")?.keys() {
            let path = path.replace("{worker}", "site-a").replace("{cloud}", "1").replace("{id}", "1");
            if path.ends_with("/stream") {
                continue;
            }
            let answer = admin.send("GET", &path, None, &[])?;
            seen.push((format!("GET {path}"), format!("{}{}", answer.headers, answer.body).into_bytes()));
        }
        assert!(seen.len() > 10, "only {} paths", seen.len());
        let events = admin.all("/api/v1/events")?;
        assert!(events.len() > 15, "only {} events", events.len());
        seen.push(("the events".into(), serde_json::to_vec(&events)?));
        let status = house.appliance.status()?;
        seen.push(("the status".into(), status.to_string().into_bytes()));

        // While it runs and after it has ended: SQLite's files are others then.
        let state = lab.appliance().directory().join("appliance-state");
        seen.extend(bytes(&state)?);
        house.appliance.stop(SOON)?;
        seen.extend(bytes(&state)?);
        assert!(seen.iter().any(|(name, _)| name.ends_with("registry.db-wal")), "no WAL was read");
        let log = house.appliance.log();
        assert!(log.contains("DEBUG") && log.contains("refused"), "the log tells nothing");
        assert_eq!(log.matches(&printed).count(), 1, "the first token is printed once");
        seen.push(("the log".into(), log.replace(&printed, "").into_bytes()));
        for secret in secrets.iter().chain([&printed]) {
            assert!(secret.len() >= 43, "{secret:?} is no secret");
            for (name, bytes) in &seen {
                let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
                assert!(!found, "{name} has a secret that begins with {}", &secret[..8]);
            }
        }
        Ok(())
    })
}
