//! Of what, where and how long was measured.

use std::fmt;
use std::fs;
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One run. What could not be found out is empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// The commit, with `-dirty` where files differ from it.
    pub(crate) commit: String,
    /// The kernel's version.
    pub(crate) kernel: String,
    pub(crate) processors: usize,
    pub(crate) rounds: usize,
    /// How long each turn counted.
    pub(crate) seconds: f64,
    /// Who was measured where carriers are compared.
    pub(crate) carriers: Vec<String>,
}

impl Run {
    /// What is run here and now.
    pub(crate) fn here(rounds: usize, time: Duration, carriers: &[String]) -> Run {
        let git = Command::new("git").args(["describe", "--always", "--dirty", "--exclude=*"]).output();
        let commit = git.ok().filter(|output| output.status.success()).map(|output| output.stdout);
        Run {
            commit: String::from_utf8_lossy(&commit.unwrap_or_default()).trim().to_owned(),
            kernel: upstream(&fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            rounds,
            seconds: time.as_secs_f64(),
            carriers: carriers.to_vec(),
        }
    }
}

/// A kernel's version, without what whoever built it put behind.
fn upstream(release: &str) -> String {
    release.trim().split_once('-').map_or(release.trim(), |(version, _)| version).to_owned()
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Run { commit, kernel, processors, rounds, seconds, .. } = self;
        let commit = if commit.is_empty() { "unknown" } else { commit };
        write!(f, "commit {commit}, Linux {kernel}, {processors} processors, {rounds} rounds of {seconds} s")
    }
}
