//! Requests that mean harm, or that nobody finishes.

use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::Lab;
use tests::api::Answer;

use super::{House, SOON};

/// What somebody may write into a field.
const NASTY: [&str; 9] = [
    "'; DROP TABLE workers; --",
    "\" OR 1=1; --",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "{{7*7}} ${7*7} %s %n",
    "../../../etc/passwd",
    "a\u{0}b",
    "line\nbreak\r\nSet-Cookie: x=y",
    "\u{202e}gnp.exe \u{fffd}",
];

/// A browser that is signed in: its cookie and its CSRF token.
struct Browser {
    cookie: String,
    csrf: String,
}

impl House<'_> {
    fn sign_in(&self) -> Result<Browser> {
        let body = json!({ "token": self.admin.token }).to_string();
        let curl =
            self.admin.curl("POST", "/api/v1/session").args(["--header", "Content-Type: application/json"]);
        let answer = self.admin.answer(curl.args(["--data-binary", "@-"]).input(body))?;
        let cookie = answer.header("set-cookie");
        let (cookie, attributes) = cookie.split_once(';').context("no cookie")?;
        assert_eq!(attributes, " Path=/; HttpOnly; SameSite=Strict; Secure");
        assert!(cookie.starts_with("__Host-dworker="), "{cookie}");
        let csrf = answer.ok()?["csrf"].as_str().context("no CSRF token")?.to_owned();
        Ok(Browser { cookie: cookie.to_owned(), csrf })
    }

    /// A request as this browser sends it, with more headers.
    fn browse(
        &self,
        browser: &Browser,
        method: &str,
        path: &str,
        headers: &[&str],
        body: &str,
    ) -> Result<Answer> {
        let mut curl =
            self.admin.curl(method, path).args(["--header", &format!("Cookie: {}", browser.cookie)]);
        for header in headers {
            curl = curl.args(["--header", header]);
        }
        self.admin.answer(curl.args(["--data-binary", "@-"]).input(body))
    }
}

#[test]
fn a_forged_request_changes_nothing_and_is_told() -> Result<()> {
    let lab = Lab::new()?;
    let house = House::new(&lab)?;
    lab.explain(|| {
        let browser = house.sign_in()?;
        let csrf = format!("X-CSRF-Token: {}", browser.csrf);
        let (json_type, form) =
            ("Content-Type: application/json", "Content-Type: application/x-www-form-urlencoded");
        let (ours, evil) = ("Origin: https://appliance.example", "Origin: https://evil.example");
        let body = json!({ "name": "forged" }).to_string();
        let post = |headers: &[&str]| house.browse(&browser, "POST", "/api/v1/workers", headers, &body);
        for headers in [
            // A form of another site's page, with what a browser adds by itself.
            &[form, evil][..],
            &[json_type, evil, "Sec-Fetch-Site: cross-site"],
            &[json_type, evil, &csrf],
            &[json_type, ours, "Sec-Fetch-Site: same-site", &csrf],
            &[json_type, "Origin: null", &csrf],
            // Our own page, without its token, or with another's.
            &[json_type, ours],
            &[json_type, ours, "X-CSRF-Token: AAAA"],
            // No browser sends neither.
            &[json_type, &csrf],
        ] {
            let problem = post(headers)?.problem(403)?;
            assert!(problem["detail"].as_str().is_some_and(|d| d.len() > 20), "{problem}");
        }
        house.admin.event("request-refused", "`Origin` is another", SOON)?;
        house.admin.event("request-refused", "without the session's CSRF token", SOON)?;
        assert_eq!(house.admin.all("/api/v1/workers")?, Vec::<Value>::new());

        // The page itself.
        assert_eq!(post(&[json_type, ours, "Sec-Fetch-Site: same-origin", &csrf])?.status, 201);
        let session = house.browse(&browser, "GET", "/api/v1/session", &[], "")?.ok()?;
        assert_eq!((&session["csrf"], &session["actor"]), (&json!(browser.csrf), &json!("admin (browser)")));
        assert_eq!(house.browse(&browser, "DELETE", "/api/v1/session", &[ours, &csrf], "")?.status, 204);
        house.browse(&browser, "GET", "/api/v1/session", &[], "")?.problem(401)?;
        house.admin.event("logout", "signed out", SOON)?;
        // A new token ends all sessions.
        let browser = house.sign_in()?;
        let _other = lab.admin(&house.appliance)?;
        house.browse(&browser, "GET", "/api/v1/session", &[], "")?.problem(401)?;
        Ok(())
    })
}

#[test]
fn bodies_that_are_too_large_unfinished_or_nonsense_are_refused_and_the_next_is_served() -> Result<()> {
    let lab = Lab::new()?;
    let house = House::new(&lab)?;
    lab.explain(|| {
        let path = "/api/v1/workers";
        let bearer = format!("Authorization: Bearer {}", house.admin.token);
        let send = |headers: &[&str], body: &str| {
            let mut curl = house.admin.curl("POST", path).args(["--header", &bearer]);
            for header in headers {
                curl = curl.args(["--header", header]);
            }
            house.admin.answer(curl.args(["--data-binary", "@-"]).input(body))
        };
        let json_type = "Content-Type: application/json";
        let large = json!({ "name": "large", "description": "x".repeat(64 * 1024) }).to_string();
        send(&[json_type], &large)?.problem(413)?;
        send(&[json_type, "Transfer-Encoding: chunked"], &large)?.problem(413)?;
        house.admin.event("request-refused", "a body of more than 65536 bytes", SOON)?;
        send(&[json_type], "{")?.problem(400)?;
        send(&["Content-Type: text/plain"], "{}")?.problem(415)?;
        let problem = send(&[json_type], r#"{"name":"a","colour":"red"}"#)?.problem(422)?;
        assert_eq!(problem["errors"][0]["field"], "colour", "{problem}");
        let problem = send(&[json_type], r#"{"name":"a","proxy_hosts":{"a":1}}"#)?.problem(422)?;
        assert!(problem["detail"].as_str().is_some_and(|d| d.contains("a list of texts")), "{problem}");
        house.admin.send("PUT", path, None, &[])?.problem(405)?;
        house.admin.send("GET", "/api/v2/workers", None, &[])?.problem(404)?;
        house.admin.send("GET", "/api/v1/workers?limit=0", None, &[])?.problem(400)?;
        house.admin.send("GET", "/api/v1/workers?limit=501", None, &[])?.problem(400)?;
        house.admin.send("GET", "/api/v1/workers?cursor=x", None, &[])?.problem(400)?;
        house.admin.send("GET", "/api/v1/workers?colour=red", None, &[])?.problem(400)?;
        house.admin.send("GET", "/api/v1/events?kind=nonsense", None, &[])?.problem(400)?;
        house.admin.send("GET", "/api/v1/connections/1", None, &[])?.problem(404)?;
        house.admin.send("DELETE", "/api/v1/connections/99999999999999999999", None, &[])?.problem(404)?;

        // A body that never comes: answered in time, not waited for.
        let started = Instant::now();
        send(&[json_type, "Content-Length: 1000"], "{")?.problem(408)?;
        assert!(started.elapsed() < SOON);
        // The page's side of the port has no problem documents, and no less care.
        let answer = house.admin.answer(house.admin.curl("GET", "/nothing"))?;
        assert_eq!((answer.status, answer.header("x-content-type-options")), (404, "nosniff"), "{answer:?}");
        assert_eq!(house.admin.all(path)?, Vec::<Value>::new());
        Ok(())
    })
}

#[test]
fn what_is_nasty_in_a_field_is_text_or_refused() -> Result<()> {
    let lab = Lab::new()?;
    let mut house = House::new(&lab)?;
    lab.explain(|| {
        house.add("witness", &["witness.corp.example"])?;
        let mut kept = Vec::new();
        for nasty in NASTY {
            let refused = |answer: Answer| -> Result<()> {
                let problem = answer.problem(422)?;
                assert!(problem["detail"].as_str().is_some_and(|d| !d.contains('\u{0}')), "{problem}");
                Ok(())
            };
            refused(house.admin.post("/api/v1/workers", &json!({ "name": nasty }))?)?;
            refused(house.admin.post("/api/v1/workers", &json!({ "name": "a", "proxy_hosts": [nasty] }))?)?;
            refused(house.admin.patch("/api/v1/workers/witness", &json!({ "name": nasty }))?)?;
            let cloud = |name: &str, kind: &str, url: &str, worker: &Value| {
                let body = json!({ "name": name, "type": kind, "api_url": url, "worker": worker });
                house.admin.post("/api/v1/clouds", &body)
            };
            refused(cloud("a", nasty, "https://a.example", &Value::Null)?)?;
            refused(cloud("a", "vmware", nasty, &Value::Null)?)?;
            refused(cloud("a", "vmware", &format!("https://{nasty}"), &Value::Null)?)?;
            refused(cloud("a", "vmware", "https://a.example", &json!(nasty))?)?;

            // What is for people is kept as it is, or refused whole.
            let saved = house.admin.patch("/api/v1/workers/witness", &json!({ "description": nasty }))?;
            match saved.status {
                200 => assert_eq!(saved.ok()?["description"], nasty),
                _ => refused(saved)?,
            }
            let host = format!("https://c{}.example", kept.len());
            let saved = cloud(nasty, "vmware", &host, &json!("witness"))?;
            match saved.status {
                201 => kept.push(saved.ok()?),
                _ => refused(saved)?,
            }
            let encoded: String = nasty.bytes().map(|byte| format!("%{byte:02X}")).collect();
            for path in ["workers", "clouds"] {
                let found = house.admin.send("GET", &format!("/api/v1/{path}/{encoded}"), None, &[])?;
                assert!([200, 404].contains(&found.status), "{found:?}");
            }
            house.admin.get(&format!("/api/v1/workers?text={encoded}"))?;
            house.admin.get(&format!("/api/v1/clouds?text={encoded}"))?;
            house.admin.get(&format!("/api/v1/events?text={encoded}&subject={encoded}"))?;
            house
                .admin
                .get(&format!("/api/v1/connections?target={encoded}&carrier={encoded}&text={encoded}"))?;
        }
        assert!(kept.len() >= 5, "only {} names were kept", kept.len());
        for cloud in &kept {
            let name = cloud["name"].as_str().unwrap_or_default();
            assert!(NASTY.contains(&name), "it became {name:?}");
        }
        // Answers are JSON, and nobody takes them for a page.
        let answer = house.admin.send("GET", "/api/v1/clouds", None, &[])?;
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");

        house.appliance.stop(SOON)?;
        house.appliance.start()?;
        let workers = house.admin.all("/api/v1/workers")?;
        assert_eq!(workers.len(), 1, "{workers:#?}");
        let names = |clouds: &[Value]| {
            let mut names: Vec<String> = clouds.iter().map(|cloud| cloud["name"].to_string()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&house.admin.all("/api/v1/clouds")?), names(&kept), "nothing is lost");
        Ok(())
    })
}
