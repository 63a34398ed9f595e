//! What a daemon says when it is asked to try its proxy hosts, one stream each.

use serde::{Deserialize, Serialize};

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// Those that were tried.
    pub targets: Vec<TriedTarget>,
    /// Proxy hosts that name no single host or port: wildcards, networks, ranges.
    pub unprobed: Vec<String>,
    /// How many more there were than are tried in one go.
    pub left_out: usize,
}

/// One target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriedTarget {
    /// Host and port.
    pub target: String,
    /// The proxy host lists this port; else it has all of them, and 443 was a guess.
    pub listed: bool,
    /// Who carries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<String>,
    /// How long the far end's dial took, in microseconds, where it went well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_us: Option<u64>,
    /// Why it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
}

/// Why a target was not reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The kind, as in `status`.
    pub code: String,
    /// One line for people.
    pub text: String,
}
