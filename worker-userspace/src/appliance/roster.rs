//! What the live registry works by: made of the store's records after each save, and replaced as a whole.

use std::time::SystemTime;

use crate::config::KeyHash;
use crate::target::Pattern;
use crate::tunnel::message::Id;

/// All enabled workers, and what each carries. Patterns have one owner each; who made the roster has seen to it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Roster {
    /// In the order of their ids.
    pub groups: Vec<Group>,
    /// What disabled workers would carry: nobody does, and who asks is told why.
    pub disabled: Vec<Disabled>,
}

/// A worker that is disabled.
#[derive(Debug, Clone, PartialEq)]
pub struct Disabled {
    /// Its name.
    pub name: String,
    /// What it would carry.
    pub proxy_hosts: Vec<Pattern>,
}

/// The nodes that share a key.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// The worker's id in the store.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// The keys that work.
    pub keys: Vec<ValidKey>,
    /// What it carries: its own proxy hosts, then those of its clouds.
    pub proxy_hosts: Vec<Pattern>,
    /// Whether its nodes may open streams to other groups' proxy hosts.
    pub may_open: bool,
    /// The nodes that have connected before.
    pub nodes: Vec<KnownNode>,
}

/// A key that works, perhaps for a while only.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ValidKey {
    /// Its SHA-256.
    pub hash: KeyHash,
    /// Where it was replaced: when it stops to work.
    pub until: Option<SystemTime>,
}

/// A node's place in its group's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownNode {
    /// Its id.
    pub id: Id,
    /// The lowest is primary; `None` comes behind all numbers.
    pub priority: Option<i32>,
    /// When it connected for the first time.
    pub first_seen: SystemTime,
}
