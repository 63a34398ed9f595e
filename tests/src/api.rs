//! Requests to an appliance's API as an administrator sends them: by curl, over TLS, from another host.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command::Command;
use crate::daemon::Daemon;
use crate::host::Host;
use crate::topology::Lab;

/// What stands between the parts of curl's output; no answer has it.
const BETWEEN: char = '\u{1e}';

/// An administrator of an appliance.
#[derive(Debug, Clone)]
pub struct Admin<'l> {
    lab: &'l Lab,
    host: &'l Host,
    /// The admin token.
    pub token: String,
}

/// What was answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers, by their names in lower case; each with all its values.
    pub headers: Value,
    /// The body.
    pub body: String,
}

impl Lab {
    /// An administrator of `appliance`, on the host elsewhere, with a new admin token.
    pub fn admin(&self, appliance: &Daemon) -> Result<Admin<'_>> {
        let host = self.appliance();
        let reset = host.dworker(["token", "reset", "--socket"])?.arg(host.socket(appliance.name()));
        let token = reset.unlogged().check()?.trim().to_owned();
        Ok(Admin { lab: self, host: self.elsewhere(), token })
    }
}

impl<'l> Admin<'l> {
    /// The same administrator on another host.
    pub fn on(&self, host: &'l Host) -> Admin<'l> {
        Admin { host, ..self.clone() }
    }

    /// A curl of this path, with nothing else yet: no token.
    pub fn curl(&self, method: &str, path: &str) -> Command {
        self.host
            .command("curl")
            .args([
                "--silent",
                "--show-error",
                "--ipv4",
                "--http1.1",
                "--max-time",
                "30",
                "--request",
                method,
            ])
            .args(["--write-out", &format!("{BETWEEN}%{{http_code}}{BETWEEN}%{{header_json}}")])
            .arg("--cacert")
            .arg(self.lab.pki().ca_file())
            .arg(format!("https://appliance.example{path}"))
            .unlogged()
            .deadline(Duration::from_secs(40))
    }

    /// What curl was answered.
    pub fn answer(&self, curl: Command) -> Result<Answer> {
        let output = curl.output()?;
        let mut parts = output.stdout.rsplitn(3, BETWEEN);
        let (Some(headers), Some(status), Some(body)) = (parts.next(), parts.next(), parts.next()) else {
            bail!("curl says nothing of an answer: {output}");
        };
        let headers = serde_json::from_str(headers).with_context(|| format!("{headers}: {output}"))?;
        Ok(Answer { status: status.parse()?, headers, body: body.to_owned() })
    }

    /// A request with the token.
    pub fn send(&self, method: &str, path: &str, body: Option<&Value>, headers: &[&str]) -> Result<Answer> {
        let mut curl = self.curl(method, path);
        for header in headers.iter().chain([&&*format!("Authorization: Bearer {}", self.token)]) {
            curl = curl.args(["--header", header]);
        }
        if let Some(body) = body {
            curl = curl.args(["--header", "Content-Type: application/json", "--data-binary", "@-"]);
            curl = curl.input(body.to_string());
        }
        self.answer(curl)
    }

    /// Asks for JSON.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.send("GET", path, None, &[])?.ok()
    }

    /// Sends JSON.
    pub fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.send("POST", path, Some(body), &[])
    }

    /// Changes something.
    pub fn patch(&self, path: &str, body: &Value) -> Result<Answer> {
        self.send("PATCH", path, Some(body), &[])
    }

    /// Removes something.
    pub fn delete(&self, path: &str) -> Result<Answer> {
        self.send("DELETE", path, None, &[])
    }

    /// All items of a list.
    pub fn all(&self, path: &str) -> Result<Vec<Value>> {
        let mut items = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = self.get(&format!("{path}?limit=500{cursor}"))?;
            items.extend(page["items"].as_array().context("no items")?.iter().cloned());
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(items),
            }
        }
    }

    /// Waits for an event of this kind with this in its text or subject: events are kept a moment later.
    pub fn event(&self, kind: &str, says: &str, within: Duration) -> Result<Value> {
        let deadline = std::time::Instant::now() + within;
        loop {
            let page = self.get(&format!("/api/v1/events?kind={kind}&limit=500"))?;
            let has = |event: &&Value| {
                ["text", "subject"]
                    .iter()
                    .any(|field| event[field].as_str().is_some_and(|text| text.contains(says)))
            };
            if let Some(event) = page["items"].as_array().into_iter().flatten().find(has) {
                return Ok(event.clone());
            }
            if std::time::Instant::now() > deadline {
                bail!("no event {kind} with {says:?} within {within:?}: {page:#}");
            }
        }
    }
}

impl Answer {
    /// The body as JSON, where the request worked.
    pub fn ok(&self) -> Result<Value> {
        if !(200..300).contains(&self.status) {
            bail!("{}: {}", self.status, self.body);
        }
        self.json()
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        let text = if self.body.is_empty() { "null" } else { &self.body };
        serde_json::from_str(text).with_context(|| format!("{}: {}", self.status, self.body))
    }

    /// A header's first value; empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers[name][0].as_str().unwrap_or_default()
    }

    /// The problem document, checked to be one with this status.
    pub fn problem(&self, status: u16) -> Result<Value> {
        let problem = self.json()?;
        let is_one = self.status == status
            && self.header("content-type") == "application/problem+json"
            && problem["status"] == status
            && ["type", "title", "detail", "instance"].iter().all(|field| problem[field].is_string());
        if !is_one {
            bail!("no problem document with {status}: {self:?}");
        }
        Ok(problem)
    }
}
