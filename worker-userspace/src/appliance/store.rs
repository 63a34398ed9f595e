//! Where the registry's records are kept over restarts.
//!
//! What must hold: a save is whole or not there at all, and what was answered with `Ok` survives a kill; nothing
//! is ever wiped: a store that this version does not understand is refused.

pub mod sqlite;

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use jiff::Timestamp;

use super::audit::{Event, EventQuery};
use super::records::{Cloud, Node, Worker};
use crate::config::KeyHash;
use crate::tunnel::message::Id;

/// What a store's methods give: futures in boxes, so that a store can stand behind `dyn`.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// A place for records.
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// All records but the events.
    fn load(&self) -> Pending<'_, Snapshot>;

    /// Keeps changes and events, all or none. Gives the id of each change's record, and the events with theirs.
    fn save<'a>(&'a self, changes: &'a [Change], events: Vec<Event>) -> Pending<'a, Saved>;

    /// A page of events, newest first.
    fn events<'a>(&'a self, query: &'a EventQuery) -> Pending<'a, Vec<Event>>;

    /// Removes at most `step` events: the oldest of the class that has the most, while there are more than `keep` of
    /// all, and those that are older than `before`.
    /// Gives how many were removed.
    fn prune(&self, before: Timestamp, keep: u64, step: u32) -> Pending<'_, u64>;

    /// Finds out whether a save could be made now.
    fn probe(&self) -> Pending<'_, ()> {
        Box::pin(async { self.save(&[], Vec::new()).await.map(drop) })
    }

    /// Ends in order: waits for what runs and lets go of the files.
    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// All records but the events.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// Workers, by id.
    pub workers: Vec<Worker>,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Clouds, by id.
    pub clouds: Vec<Cloud>,
    /// SHA-256 of the admin token, where one was made.
    pub admin_token: Option<KeyHash>,
}

/// One record's change.
#[derive(Debug, Clone)]
pub enum Change {
    /// A worker as it is now: new where its id is 0, else based on the revision before its own.
    Worker(Arc<Worker>),
    /// The worker, its proxy hosts and its nodes are gone.
    RemoveWorker(i64),
    /// A node as it is now.
    Node(Arc<Node>),
    /// The node is gone.
    RemoveNode {
        /// Its worker.
        worker: i64,
        /// Its id.
        node: Id,
    },
    /// A cloud as it is now: new where its id is 0, else based on the revision before its own.
    Cloud(Arc<Cloud>),
    /// The cloud is gone.
    RemoveCloud(i64),
    /// SHA-256 of the admin token.
    AdminToken(KeyHash),
}

/// What a save gave.
#[derive(Debug, Clone, Default)]
pub struct Saved {
    /// For each change the id of its worker or cloud; 0 where it has none.
    pub ids: Vec<i64>,
    /// The events with their ids.
    pub events: Vec<Event>,
}

/// Why a store could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file can't be made, opened or protected.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Made by a later version.
    #[error(
        "{}: made by a newer dworker: its schema is {found}, and this dworker knows schemas up to {known}: \
         install the newer version again, or put back the file of a backup; nothing was changed", path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The last schema of this version.
        known: i64,
    },
    /// Somebody else's.
    #[error(
        "{}: not a dworker registry: {what}: move it away, or set another `state_dir`; nothing was changed",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What shows that.
        what: String,
    },
    /// Broken.
    #[error(
        "{}: the registry is damaged: {what}: put back the file of a backup, or move it and its `-wal` away to \
         begin with an empty one; nothing was changed", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What shows that.
        what: String,
    },
    /// No space.
    #[error("{}: no space is left on its file system: make room; the change was not saved", path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// Another process writes, and does not end.
    #[error("{}: another process has it locked: end that process; the change was not saved", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The record is not in the state that the change is based on.
    #[error("{what} was changed or removed by another process; load it again")]
    Raced {
        /// Which record.
        what: String,
    },
    /// Anything else that the database says.
    #[error("{}: {source}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// What it says.
        #[source]
        source: sqlx::Error,
    },
}
