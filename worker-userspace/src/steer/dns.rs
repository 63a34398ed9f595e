//! DNS of captured applications: proxy hosts are answered here, all else by the resolver that was asked.
//!
//! One local port stands for each original resolver: the kernel programs send a captured query to that port
//! and give the reply the resolver's address again. So the port alone says where to forward to, and replies
//! to one socket's queries to several resolvers come back with the right source each.
//!
//! What must hold: a proxy host's name never leaves the host ([`answer()`]); everything else reaches the
//! resolver as it was asked and comes back as it was answered, but for synthetic addresses, which only we may
//! say; and nothing that an application or a resolver does takes more than its bounded share.

mod answer;
mod counters;
mod ports;
mod server;
mod strip;
mod tcp;
mod udp;
mod wire;

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

pub use answer::{Pending, Verdict, Zone, answer};
pub use counters::{Counters, Counts};
pub use server::{Server, ServerError, Settings};
pub use strip::strip;

/// The name by which `dworker doctor` finds out whether questions arrive here. Nobody else has an answer to it (RFC 6761),
/// and a resolver that is asked for it learns nothing.
pub const CANARY: &str = "canary.dworker.invalid";

/// What the kernel knows of ports, resolvers and connections.
pub trait Resolvers: Send + Sync + 'static {
    /// The resolver that a port stands for, once the kernel gave the port to one; then for ever the same.
    fn resolver_of(&self, port: u16) -> Option<IpAddr>;

    /// Offers a port with listeners behind it, for the kernel to give to a resolver when it is first asked.
    ///
    /// # Errors
    /// When the kernel does not take it.
    fn offer_port(&self, port: u16) -> io::Result<()>;

    /// Forgets the ports of a server before this one, but for those of `ports`, whose sockets live on; the answer are
    /// those of them that need not be offered again.
    ///
    /// # Errors
    /// When the kernel does not forget them.
    fn adopt_ports(&self, ports: &HashSet<u16>) -> io::Result<HashSet<u16>> {
        let _ = ports;
        Ok(HashSet::new())
    }

    /// Takes the record that the kernel wrote for a captured TCP connection, and with it the right to talk:
    /// false for connections that it did not capture, for those that are reset already, and the second time.
    fn take_flow(&self, listener: u16, source: SocketAddr, socket: BorrowedFd<'_>) -> bool;

    /// Marks a socket as ours, so that the kernel redirects to it and to no squatter's.
    ///
    /// # Errors
    /// When the kernel does not take the mark.
    fn mark_listener(&self, socket: BorrowedFd<'_>) -> io::Result<()>;
}
