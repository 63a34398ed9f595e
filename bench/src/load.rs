//! Load: what a client does with connections, and what it reports.
//!
//! Clients and servers are processes of their own (`bench load`, `bench serve`), because a process is what
//! steering captures. Both ends begin with a [`Header`].

pub(crate) mod client;
pub(crate) mod server;

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Bytes read or written at once in bulk.
pub(crate) const PIECE: usize = 256 * 1024;
/// Bytes of a request and of its answer.
pub(crate) const MESSAGE: usize = 1024;

/// What a connection is for: the first bytes of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Header {
    /// The server reads to the end and says nothing.
    Sink = b'u' as isize,
    /// The server sends until nobody takes it any more.
    Source = b'd' as isize,
    /// Messages of [`MESSAGE`] bytes, each answered by one as long; this byte is the first of each.
    Answer = b'r' as isize,
}

impl Header {
    pub(crate) fn from_wire(byte: u8) -> Option<Header> {
        [Header::Sink, Header::Source, Header::Answer].into_iter().find(|header| header.to_wire() == byte)
    }

    pub(crate) fn to_wire(self) -> u8 {
        self as u8
    }
}

/// Which way bytes go, seen from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Direction {
    Up,
    Down,
}

/// What a client does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Load {
    /// Where to.
    pub(crate) to: SocketAddr,
    /// In which way.
    pub(crate) what: What,
    /// Before anything counts. Then a line `measuring` is printed.
    pub(crate) warm: Duration,
    /// How long it counts.
    pub(crate) time: Duration,
}

/// The kinds of load.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum What {
    /// As many bytes as there is room for.
    Bulk { streams: usize, direction: Direction },
    /// Connections, each for one message and its answer, so many at once.
    Connects { at_once: usize },
    /// Messages, one after the other on each of so many connections.
    Requests { connections: usize },
    /// So many connections, made and kept, each after one message. Counts how many answered.
    Idle { connections: usize },
    /// Connections, one after the other, each for one message: from before `connect` to the answer's first byte.
    FirstByte { times: usize },
    /// So many that ask for bytes and read none.
    Stalled { connections: usize },
}

/// What a client saw in the time that counts.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Bytes, connections or answers in a second.
    pub(crate) rate: f64,
    /// Half took at most so many microseconds.
    pub(crate) p50: f64,
    /// 99 of 100 took at most so many microseconds.
    pub(crate) p99: f64,
    /// Of bulk: what the stream had that had least, in parts of what each would have had.
    pub(crate) least: f64,
    /// Connections and messages that failed.
    pub(crate) failures: u64,
}
