//! What all answers over HTTP have in common, on the appliance's port and on the control socket.
//!
//! What must hold: every error below `/api` is a problem document (RFC 9457) that says what is wrong and what
//! to do; no request takes more than its deadline or its size; no answer lacks the security headers.
//!
//! | room | concern |
//! |---|---|
//! | [`problem`] | errors as problem documents |
//! | [`extract`] | bodies, queries and paths; problems where they are wrong |
//! | [`paging`] | lists in pages |
//! | [`sse`] | answers that go on |
//! | [`layers`] | deadlines, sizes, security headers, what is answered where nobody else answers |

use std::net::{IpAddr, SocketAddr};

pub mod extract;
pub mod layers;
pub mod paging;
pub mod problem;
pub mod sse;

pub use problem::{FieldError, Kind, Problem};

/// Who is at the other end of a connection; each request has it among its extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A client in the network.
    Network(SocketAddr),
    /// A process on this host, through the control socket.
    Process {
        /// Its user, as the kernel says (`SO_PEERCRED`).
        uid: u32,
    },
}

impl Peer {
    /// Its address, where it came over the network.
    pub fn address(self) -> Option<IpAddr> {
        match self {
            Peer::Network(address) => Some(address.ip().to_canonical()),
            Peer::Process { .. } => None,
        }
    }
}
