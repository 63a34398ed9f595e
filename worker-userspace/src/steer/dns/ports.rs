//! One port number in four sockets: UDP and TCP, on both loopback addresses.
//!
//! The kernel knows one number for a resolver, and an application may ask it by UDP, by TCP, from an IPv4 and
//! from an IPv6 socket. A host without IPv6 has two sockets.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use socket2::{SockRef, Type};
use tokio::net::{TcpListener, UdpSocket};

use super::Resolvers;
use super::server::ServerError;
use crate::sockets::{Sockets, name};

/// How often a number that is free in one family and protocol may be taken in another.
const TRIES: usize = 64;

/// The sockets of one port.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) number: u16,
    pub(super) udp: Vec<UdpSocket>,
    pub(super) tcp: Vec<TcpListener>,
}

/// Binds a port, marks its sockets and offers it.
pub(super) fn open(resolvers: &dyn Resolvers, sockets: &Sockets) -> Result<Port, ServerError> {
    let port = bind()?;
    port.mark(resolvers, sockets)?;
    resolvers.offer_port(port.number).map_err(|source| ServerError::Offer { port: port.number, source })?;
    Ok(port)
}

/// Goes on with the ports of a server before this one whose sockets are all there; the other sockets are closed.
pub(super) fn adopt(
    resolvers: &dyn Resolvers,
    inherited: Vec<OwnedFd>,
    sockets: &Sockets,
) -> Result<Vec<Port>, ServerError> {
    let mut ports: BTreeMap<u16, Port> = BTreeMap::new();
    for socket in inherited {
        // A socket without an address or of another kind is none of ours.
        let kind = || {
            let socket = SockRef::from(&socket);
            Some((socket.local_addr().ok()?.as_socket()?.port(), socket.r#type().ok()?))
        };
        let Some((number, kind)) = kind() else { continue };
        let port = ports.entry(number).or_insert_with(|| Port { number, udp: Vec::new(), tcp: Vec::new() });
        match kind {
            Type::DGRAM => {
                let socket = std::net::UdpSocket::from(socket);
                socket.set_nonblocking(true).map_err(ServerError::Bind)?;
                port.udp.push(UdpSocket::from_std(socket).map_err(ServerError::Bind)?);
            }
            _ => {
                let socket = std::net::TcpListener::from(socket);
                socket.set_nonblocking(true).map_err(ServerError::Bind)?;
                port.tcp.push(TcpListener::from_std(socket).map_err(ServerError::Bind)?);
            }
        }
    }
    let mut ports: Vec<Port> = ports.into_values().filter(Port::is_whole).collect();
    let numbers = ports.iter().map(|port| port.number).collect();
    let known = resolvers.adopt_ports(&numbers).map_err(ServerError::Adopt)?;
    for port in &mut ports {
        port.mark(resolvers, sockets)?;
        let number = port.number;
        if !known.contains(&number) {
            resolvers.offer_port(number).map_err(|source| ServerError::Offer { port: number, source })?;
        }
    }
    Ok(ports)
}

impl Port {
    /// Has the kernel send questions to its sockets, and keeps them for who comes next.
    fn mark(&self, resolvers: &dyn Resolvers, sockets: &Sockets) -> Result<(), ServerError> {
        let failed = |source| ServerError::Mark { port: self.number, source };
        for socket in self.udp.iter().map(AsFd::as_fd).chain(self.tcp.iter().map(AsFd::as_fd)) {
            resolvers.mark_listener(socket).map_err(failed)?;
            sockets.keep(name::DNS, &socket).map_err(failed)?;
        }
        Ok(())
    }

    /// IPv4, and with it IPv6 where the host has it.
    fn is_whole(&self) -> bool {
        let v4 = |address: io::Result<SocketAddr>| address.is_ok_and(|address| address.is_ipv4());
        self.udp.len() == self.tcp.len()
            && self.udp.iter().any(|socket| v4(socket.local_addr()))
            && self.tcp.iter().any(|socket| v4(socket.local_addr()))
    }
}

fn bind() -> Result<Port, ServerError> {
    for _ in 0..TRIES {
        match try_bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound.map_err(ServerError::Bind),
        }
    }
    Err(ServerError::NoCommonPort { tries: TRIES })
}

fn try_bind() -> io::Result<Port> {
    let (v4, v6) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
    let first = udp(v4, 0)?;
    let number = first.local_addr()?.port();
    let mut port = Port { number, udp: vec![first], tcp: vec![tcp(v4, number)?] };
    match udp(v6, number) {
        Ok(socket) => {
            port.udp.push(socket);
            port.tcp.push(tcp(v6, number)?);
        }
        // No IPv6 on this host, or none on its loopback interface.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {}
        Err(error) => return Err(error),
    }
    Ok(port)
}

fn udp(addr: IpAddr, port: u16) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(SocketAddr::new(addr, port))?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

fn tcp(addr: IpAddr, port: u16) -> io::Result<TcpListener> {
    let socket = std::net::TcpListener::bind(SocketAddr::new(addr, port))?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}
