//! One port number in four sockets: UDP and TCP, on both loopback addresses.
//!
//! The kernel knows one number for a resolver, and an application may ask it by UDP, by TCP, from an IPv4 and
//! from an IPv6 socket. A host without IPv6 has two sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use tokio::net::{TcpListener, UdpSocket};

use super::Resolvers;
use super::server::ServerError;

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
pub(super) fn open(resolvers: &dyn Resolvers) -> Result<Port, ServerError> {
    let port = bind()?;
    let sockets = port.udp.iter().map(AsFd::as_fd).chain(port.tcp.iter().map(AsFd::as_fd));
    for socket in sockets {
        let number = port.number;
        resolvers.mark_listener(socket).map_err(|source| ServerError::Mark { port: number, source })?;
    }
    resolvers.offer_port(port.number).map_err(|source| ServerError::Offer { port: port.number, source })?;
    Ok(port)
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
