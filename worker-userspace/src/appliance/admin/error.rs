//! Why a change is refused, and what is odd about one that is not.
//!
//! What must hold: each message names the thing, the value and the remedy, and shows no secret.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::appliance::store::StoreError;
use crate::config::{KeyHash, Wrong, quote};

/// Why a change or a question is refused.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// There is no such thing.
    #[error("there is no {what} {name}: it may have been removed")]
    NotFound {
        /// `worker`, `cloud` or `node`.
        what: &'static str,
        /// The name or number that was asked for.
        name: String,
    },
    /// Values that make no sense; all of them.
    #[error("{}", lines(.0))]
    Invalid(Vec<Problem>),
    /// The change is based on an older state.
    #[error(
        "{what} has changed since you loaded it: {by} changed it at {at:.0}; load it again, and make your change to that"
    )]
    Conflict {
        /// Which record.
        what: String,
        /// The revision that the change is based on.
        expected: i64,
        /// The revision that it has.
        revision: i64,
        /// Who changed it last.
        by: String,
        /// When.
        at: Timestamp,
    },
    /// The name is another's.
    #[error("another {what} is named {name}: choose another name")]
    NameTaken {
        /// `worker` or `cloud`.
        what: &'static str,
        /// The name, quoted.
        name: String,
    },
    /// Two workers would carry the same with equal right.
    #[error("{}", lines(.0))]
    PatternTaken(Vec<Taken>),
    /// The configuration file says it.
    #[error(
        "worker {worker} stands in the configuration file, which says its {fields}: change [[appliance.groups]] there and restart"
    )]
    ManagedByFile {
        /// The worker.
        worker: String,
        /// What was to be changed, as in `name and proxy_hosts`.
        fields: String,
    },
    /// A group of the configuration file is named as a worker of the registry.
    #[error(
        "group {name} of the configuration file and worker {name} of the registry have the same name: rename one of the two"
    )]
    GroupNameTaken {
        /// The name.
        name: String,
    },
    /// Two workers would have one key.
    #[error("{this} and {other} have the same key: give each its own")]
    KeyTaken {
        /// Whose key it should be.
        this: String,
        /// Whose it is.
        other: String,
    },
    /// The key before the worker's own was promised to work for longer.
    #[error(
        "worker {worker} has another key already, and the one before it ({}) works until {until:.0}: wait until then, \
         or let it end now with `force` (`--force`)",
        .key.short()
    )]
    InGrace {
        /// The worker.
        worker: String,
        /// The key that would end.
        key: KeyHash,
        /// Until when it works.
        until: Timestamp,
    },
    /// The node is there.
    #[error("node {node} is connected: disable worker {worker}, or stop the process, first")]
    Connected {
        /// The node, as events name it.
        node: String,
        /// Its worker.
        worker: String,
    },
    /// Clouds need the worker.
    #[error(
        "worker {worker} carries {}: give {} to another worker, or to none, first: `dworker cloud assign`",
        named_clouds(.clouds),
        them(.clouds)
    )]
    InUse {
        /// The worker.
        worker: String,
        /// The clouds' names.
        clouds: Vec<String>,
    },
    /// What steers connections can't do it.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
    /// The store.
    #[error("the registry: {0}")]
    Store(#[from] StoreError),
    /// No key could be made.
    #[error("the kernel gave no randomness for a key: {0}")]
    Randomness(String),
    /// The daemon is on its way out.
    #[error("dworker stops; ask again when it is back")]
    Stopping,
}

impl AdminError {
    /// One wrong value.
    pub(super) fn invalid(problem: Problem) -> AdminError {
        AdminError::Invalid(vec![problem])
    }
}

/// What is wrong with one value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Problem {
    /// The field, as the API names it.
    pub field: &'static str,
    /// The value, quoted and cut where it is long; `***` where it may be a secret.
    pub value: String,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl Problem {
    /// A problem with `value`, which is quoted here.
    pub(super) fn new(
        field: &'static str,
        value: &str,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Problem {
        Problem { field, value: quote(value), problem: problem.into(), remedy: remedy.into() }
    }

    /// The same of what the configuration's reader found.
    pub(super) fn of(field: &'static str, value: &str, wrong: Wrong) -> Problem {
        Problem::new(field, value, wrong.problem, wrong.remedy)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}: {}: {}", self.field, self.value, self.problem, self.remedy)
    }
}

/// What is saved but hardly meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Warning {
    /// The field, as the API names it.
    pub field: &'static str,
    /// What it is about: a cloud's name, a proxy host.
    pub about: String,
    /// What is odd.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.problem, self.remedy)
    }
}

/// A pattern with two holders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Taken {
    /// The pattern that was to be saved.
    pub pattern: String,
    /// Who was to have it.
    pub this: Holder,
    /// The pattern that stands against it; it may list other ports too.
    pub other_pattern: String,
    /// Who has that.
    pub other: Holder,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} is carried by {} already", self.pattern, self.this, self.other)?;
        if self.other_pattern != self.pattern {
            write!(f, ", as {}", self.other_pattern)?;
        }
        f.write_str(": leave it to one of them, or give each its own ports")
    }
}

/// Who has a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Holder {
    /// The worker that carries it.
    pub worker: String,
    /// The cloud whose API URL it comes from; `None`: it is among the worker's own proxy hosts.
    pub cloud: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {}", self.worker)?;
        match &self.cloud {
            Some(cloud) => write!(f, " (API URL of cloud {})", quote(cloud)),
            None => Ok(()),
        }
    }
}

/// One line each; the first hundred.
fn lines(items: &[impl fmt::Display]) -> String {
    const MOST: usize = 100;
    let mut lines: Vec<String> = items.iter().take(MOST).map(ToString::to_string).collect();
    if items.len() > MOST {
        lines.push(format!("and {} more: correct these first", items.len() - MOST));
    }
    lines.join("\n")
}

fn them(names: &[String]) -> &'static str {
    if names.len() == 1 { "it" } else { "them" }
}

fn named_clouds(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().take(10).map(|name| quote(name)).collect();
    let more = names.len() - quoted.len();
    let what = if names.len() == 1 { "cloud" } else { "clouds" };
    let and = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{what} {}{and}", quoted.join(", "))
}
