//! An appliance with a page, and what an administrator does in it.

use std::time::Duration;

use anyhow::{Context, Result};
use tests::{Config, Daemon, Lab};

use crate::browser::{Browser, SOON};

/// Where the page is.
pub(crate) const ORIGIN: &str = "https://appliance.example";

/// An appliance that steers its host and knows no worker yet.
pub(crate) struct House {
    /// The daemon.
    pub(crate) appliance: Daemon,
    /// What it printed at its first start.
    pub(crate) token: String,
}

impl House {
    /// Starts it on an empty state directory.
    pub(crate) fn new(lab: &Lab) -> Result<House> {
        let config =
            Config::new().appliance(&lab.appliance_identity()?, &[]).steer(&[lab.appliance().cgroup()]);
        let appliance = lab.appliance().daemon("appliance", config)?;
        let line = appliance.wait_for_line("dwa_", SOON)?;
        let token = line.split(|c: char| c.is_whitespace() || "\"'`,;".contains(c));
        let token = token.into_iter().find(|word| word.starts_with("dwa_")).context("the token")?;
        Ok(House { token: token.to_owned(), appliance })
    }

    /// Signs in, from wherever the browser is.
    pub(crate) fn sign_in(&self, browser: &Browser) -> Result<()> {
        browser.open("/sign-in")?;
        browser.fill("#token", &self.token)?;
        browser.click("button", "Sign in")?;
        browser.find_text("h1", "Distributed Workers").map(drop)
    }

    /// Waits until connections to this proxy host are captured.
    pub(crate) fn wait_for_rule(&self, pattern: &str) -> Result<()> {
        let there = |status: &serde_json::Value| {
            let rules = status["steer"]["rules"].as_array();
            rules.is_some_and(|rules| rules.iter().any(|rule| rule["pattern"] == pattern))
        };
        let what = format!("a rule for {pattern}");
        self.appliance.wait_for_status(&what, Duration::from_secs(30), there).map(drop)
    }
}

/// Adds a worker by its form, and gives its key and the lines for its configuration.
pub(crate) fn add_worker(
    browser: &Browser,
    name: &str,
    description: &str,
    hosts: &str,
) -> Result<(String, String)> {
    browser.open("/workers/new")?;
    browser.fill("#name", name)?;
    browser.fill("#description", description)?;
    browser.fill("#proxy_hosts", hosts)?;
    browser.click("button", "Save changes")?;
    browser.find_text("h1", &format!("{name} is added"))?;
    Ok((browser.text("#worker-key")?, browser.text("#worker-configuration")?))
}

/// Adds a cloud by its form.
pub(crate) fn add_cloud(browser: &Browser, name: &str, kind: &str, url: &str, worker: &str) -> Result<()> {
    browser.open("/clouds/new")?;
    browser.fill("#name", name)?;
    browser.choose("#kind", kind)?;
    browser.fill("#api_url", url)?;
    browser.choose("#worker", worker)?;
    browser.click("button", "Save changes")?;
    browser.find_text(".note", &format!("{name} is added.")).map(drop)
}

/// A worker's configuration: the lines of the page, and the lab's authority.
pub(crate) fn worker_config(lab: &Lab, lines: &str) -> Result<Config> {
    let mut config = Config::new().set("ca_file", lab.pki().ca_file().display().to_string());
    for line in lines.lines().filter(|line| !line.is_empty()) {
        let (key, value) =
            line.split_once(" = ").with_context(|| format!("{line:?} is a key and a value"))?;
        // What the page shows is TOML, and its strings are JSON's too.
        config = config.set(key, serde_json::from_str::<serde_json::Value>(value)?);
    }
    Ok(config)
}
