//! `lab-tool ask`: one message out, one message in, through blocking sockets.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use tests::ask::{Answer, Ask, Transport};

use crate::transfer::errno;

/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest datagram there is.
const LARGEST: usize = 65535;

pub(crate) fn run(ask: &Ask) -> Answer {
    let answer = match ask.transport {
        Transport::Udp => udp(ask, false),
        Transport::ConnectedUdp => udp(ask, true),
        Transport::Tcp => tcp(ask),
    };
    answer.unwrap_or_else(|error| Answer { failure: Some(errno(&error)), ..Answer::default() })
}

fn udp(ask: &Ask, connected: bool) -> io::Result<Answer> {
    let any = match ask.to {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let peer = match connected {
        true => {
            socket.connect(ask.to)?;
            socket.send(&ask.message)?;
            Some(socket.peer_addr()?)
        }
        false => {
            socket.send_to(&ask.message, ask.to)?;
            None
        }
    };
    let mut message = vec![0; LARGEST];
    let (length, from) = socket.recv_from(&mut message)?;
    message.truncate(length);
    Ok(Answer { failure: None, from: Some(from), peer, message })
}

fn tcp(ask: &Ask) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(ask.to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = u16::try_from(ask.message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), &ask.message[..]].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    let peer = Some(stream.peer_addr()?);
    Ok(Answer { failure: None, from: peer, peer, message })
}
