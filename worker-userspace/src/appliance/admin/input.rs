//! What people write into a form, and what it means.

use serde::Deserialize;
use utoipa::ToSchema;

use super::error::{Problem, Warning};
use crate::appliance::records::CloudType;
use crate::config::{ApiUrl, group_name, holds_secret, pattern, quote};
use crate::target::Pattern;

/// Proxy hosts that one worker may list.
pub(super) const MOST_HOSTS: usize = 1000;
/// The longest description, in characters.
const LONGEST_DESCRIPTION: usize = 1000;
/// The longest name of a cloud, in characters.
const LONGEST_CLOUD_NAME: usize = 100;

/// Proxy hosts as they come in.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(untagged, expecting = "write a text, or a list of texts, as in [\"vcenter.corp.example:443\"]")]
pub enum HostList {
    /// One text, separated by commas or white space. A number behind a comma is another port of the host before
    /// it: `vc.example:443,902`.
    Text(String),
    /// One text for each.
    List(Vec<String>),
}

impl Default for HostList {
    fn default() -> HostList {
        HostList::List(Vec::new())
    }
}

impl From<&str> for HostList {
    fn from(text: &str) -> HostList {
        HostList::Text(text.to_owned())
    }
}

/// Collects what is wrong with the fields of a form, so that all of it is said at once.
#[derive(Debug, Default)]
pub(super) struct Form {
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Warning>,
}

impl Form {
    /// A worker's name.
    pub(super) fn worker_name(&mut self, text: &str) -> String {
        let text = text.trim();
        if group_name(text).is_err() {
            self.wrong("name", text, "not a worker's name", "write 1 to 63 of a-z, 0-9 and `-`");
        }
        text.to_owned()
    }

    /// A cloud's name: for people, so nearly everything may stand in it.
    pub(super) fn cloud_name(&mut self, text: &str) -> String {
        let text = text.trim();
        if text.is_empty() {
            self.wrong("name", text, "empty", "write a name, as in \"Site A\"");
        }
        self.free_text("name", text, LONGEST_CLOUD_NAME);
        text.to_owned()
    }

    /// A description.
    pub(super) fn description(&mut self, text: &str) -> String {
        let text = text.trim();
        self.free_text("description", text, LONGEST_DESCRIPTION);
        text.to_owned()
    }

    fn free_text(&mut self, field: &'static str, text: &str, longest: usize) {
        let count = text.chars().count();
        if count > longest {
            self.wrong(field, text, format!("it has {count} characters"), format!("write at most {longest}"));
        }
        if text.contains(char::is_control) {
            self.wrong(field, text, "a control character stands in it", "write it on one line");
        }
        if holds_secret(text) {
            self.wrong(field, text, "a key or a token stands in it, and others will read it", "remove it");
        }
    }

    /// A cloud's type.
    pub(super) fn cloud_type(&mut self, text: &str) -> Option<CloudType> {
        let kind = text.trim().parse().ok();
        if kind.is_none() {
            let words: Vec<&str> = CloudType::ALL.iter().map(|kind| kind.word()).collect();
            self.wrong("type", text, "not a type of cloud", format!("write one of {}", words.join(", ")));
        }
        kind
    }

    /// Where a cloud's API is.
    pub(super) fn api_url(&mut self, text: &str) -> Option<ApiUrl> {
        let text = text.trim();
        ApiUrl::parse(text).map_err(|wrong| self.problems.push(Problem::of("api_url", text, wrong))).ok()
    }

    /// Proxy hosts, each once, in the order in which they were written.
    pub(super) fn proxy_hosts(&mut self, list: &HostList) -> Vec<Pattern> {
        let items: Vec<String> = match list {
            HostList::Text(text) => split(text),
            HostList::List(items) => items.iter().map(|item| item.trim().to_owned()).collect(),
        };
        if items.len() > MOST_HOSTS {
            let remedy = format!("write at most {MOST_HOSTS}; wildcards and networks stand for many");
            self.problems.push(Problem {
                field: "proxy_hosts",
                value: format!("{} proxy hosts", items.len()),
                problem: "too many for one worker".into(),
                remedy,
            });
            return Vec::new();
        }
        let mut patterns: Vec<Pattern> = Vec::with_capacity(items.len());
        let mut seen = std::collections::HashSet::with_capacity(items.len());
        for item in items {
            match pattern(&item) {
                Ok(pattern) if !seen.insert(pattern.clone()) => self.warnings.push(Warning {
                    field: "proxy_hosts",
                    about: pattern.to_string(),
                    problem: format!("{pattern} stands more than once in the list"),
                    remedy: "nothing need be done: it is kept once".into(),
                }),
                Ok(pattern) => patterns.push(pattern),
                Err(wrong) => self.problems.push(match host_of_url(&item) {
                    Some(host) => {
                        let problem = "a URL, where only its host belongs";
                        Problem::new("proxy_hosts", &item, problem, format!("write the host: {host}"))
                    }
                    None => Problem::of("proxy_hosts", &item, wrong),
                }),
            }
        }
        patterns
    }

    fn wrong(
        &mut self,
        field: &'static str,
        value: &str,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.problems.push(Problem::new(field, value, problem, remedy));
    }
}

/// Splits at commas and white space, but not in front of ports that belong to the host before them.
fn split(text: &str) -> Vec<String> {
    let mut items: Vec<String> = Vec::new();
    for (at, part) in text.split(',').enumerate() {
        for (i, word) in part.split_whitespace().enumerate() {
            let behind_comma = at > 0 && i == 0;
            match items.last_mut() {
                Some(last) if behind_comma && is_ports(word) && lists_ports(last) => {
                    last.push(',');
                    last.push_str(word);
                }
                _ => items.push(word.to_owned()),
            }
        }
    }
    items
}

/// `902` or `8000-8010`.
fn is_ports(word: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (low, high) = word.split_once('-').unwrap_or((word, word));
    number(low) && number(high)
}

fn lists_ports(item: &str) -> bool {
    item.parse::<Pattern>().is_ok_and(|pattern| !pattern.ports.is_empty())
}

/// The host that somebody meant who pasted a URL, with the port where the URL has one.
fn host_of_url(item: &str) -> Option<String> {
    let rest = match item.split_once("://") {
        Some((_, rest)) => rest,
        // `vcenter.corp.example/sdk`; but in `10.20.0.0/33` a network was meant.
        None if item
            .split_once('/')
            .is_some_and(|(_, behind)| !behind.bytes().all(|b| b.is_ascii_digit())) =>
        {
            item
        }
        None => return None,
    };
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit('@').next()?;
    let host = pattern(host).ok()?.to_string();
    // What is quoted as a secret is not shown as a remedy either.
    (quote(&host) != "***").then_some(host)
}
