//! One question and its answer as the bytes on the wire, from a process of its own (`lab-tool ask`).
//!
//! What resolver libraries hide is seen here: every byte of the answer, and from where it seems to come.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::traffic::tool;

/// How a question travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// UDP, with `sendto()` and `recvfrom()` on a socket that is not connected.
    Udp,
    /// UDP on a connected socket, as glibc does.
    ConnectedUdp,
    /// TCP, with two bytes of length before the message, as DNS does.
    Tcp,
}

impl Transport {
    /// All of them.
    pub const ALL: [Transport; 3] = [Transport::Udp, Transport::ConnectedUdp, Transport::Tcp];
}

/// A question. An IPv6 address means an IPv6 socket, a v4-mapped one too.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ask {
    /// Who is asked.
    pub to: SocketAddr,
    /// How.
    pub transport: Transport,
    /// The message.
    pub message: Vec<u8>,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Why there is none: an errno such as `EHOSTUNREACH`.
    pub failure: Option<String>,
    /// What `recvfrom()` said of its sender; with TCP what `getpeername()` says.
    pub from: Option<SocketAddr>,
    /// What `getpeername()` says, where the socket is connected.
    pub peer: Option<SocketAddr>,
    /// The message.
    pub message: Vec<u8>,
}

impl Ask {
    /// Asks from inside the captured cgroup of `host`.
    pub fn captured(&self, host: &Host) -> Result<Answer> {
        read(&host.captured(tool("ask", self)?).check()?)
    }

    /// Asks from `host` outside the captured cgroup.
    pub fn uncaptured(&self, host: &Host) -> Result<Answer> {
        read(&host.uncaptured(tool("ask", self)?).check()?)
    }
}

fn read(printed: &str) -> Result<Answer> {
    serde_json::from_str(printed).with_context(|| format!("reading {printed}"))
}
