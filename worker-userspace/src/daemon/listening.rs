//! Listeners: those that were there before this process, or new ones; and kept for the one that comes next.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use tokio::net::TcpListener;

use super::StartError;
use crate::sockets::{Sockets, bind};

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 4096;

/// Where listeners come from: from whoever had them before, or they are made; and they are kept for who comes next.
#[derive(Clone, Copy)]
pub(super) struct Listening<'s>(pub(super) &'s Sockets);

impl Listening<'_> {
    /// The listener that `key` of the configuration asks for.
    pub(super) fn on(
        self,
        key: &'static str,
        name: &str,
        address: SocketAddr,
    ) -> Result<TcpListener, StartError> {
        let failed = |source| StartError::Listen { key, address, source };
        let listener = match self.0.tcp(address) {
            Some(listener) => TcpListener::from_std(listener).map_err(failed)?,
            None => listen(address).map_err(failed)?,
        };
        self.keep(name, &listener)?;
        Ok(listener)
    }

    pub(super) fn keep(self, name: &str, socket: &impl AsFd) -> Result<(), StartError> {
        let failed = |source| StartError::System { doing: "keeping a listener for who comes next", source };
        self.0.keep(name, socket).map_err(failed)
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = bind(address)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
