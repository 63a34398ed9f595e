//! A worker's end of a lane, one step at a time and without manners.
//!
//! It shares the tunnel's codecs with the daemon and nothing else: it sends what it is told and keeps no rule.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, BytesMut};
use dworker::tunnel::frame::{self, Header, Piece, Type};
use dworker::tunnel::message::{Capabilities, Hello, VERSION};
use dworker::tunnel::websocket::{self, Event, Opcode, Side};
use rustls::{ClientConnection, StreamOwned};
use tests::{Lab, net};

/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// What is masked with this stays as it is.
const NO_MASK: [u8; 4] = [0; 4];

/// One connection to the appliance.
pub(crate) struct Peer {
    tls: StreamOwned<ClientConnection, TcpStream>,
    local: SocketAddr,
    read: BytesMut,
    websocket: websocket::Decoder,
    frames: frame::Decoder,
}

/// A TCP connection from the site to the appliance, and not a byte on it.
pub(crate) fn tcp(lab: &Lab) -> Result<TcpStream> {
    let tcp = lab.site().within(|| TcpStream::connect((net::APPLIANCE.v4, 443)))??;
    tcp.set_read_timeout(Some(PATIENCE))?;
    tcp.set_write_timeout(Some(PATIENCE))?;
    Ok(tcp)
}

/// Waits until a connection on which nothing was said has ended, in order or not.
pub(crate) fn wait_for_end(mut tcp: TcpStream) -> Result<()> {
    match tcp.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => bail!("the appliance speaks first"),
        Err(error) if is_late(&error) => bail!("still open after {PATIENCE:?}"),
        Err(_) => Ok(()),
    }
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// A frame as bytes. The type is any number.
pub(crate) fn frame(stream: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    out.put_u32(stream);
    out.put_u8(kind);
    out.put_uint(payload.len() as u64, 3);
    out.put_slice(payload);
    out.to_vec()
}

impl Peer {
    /// With TLS, and nothing more.
    pub(crate) fn secured(lab: &Lab) -> Result<Peer> {
        let tcp = tcp(lab)?;
        let local = tcp.local_addr()?;
        let roots = dworker::config::read_roots(lab.pki().ca_file())?;
        let config = dworker::tunnel::tls::client(roots)?.config();
        let connection = ClientConnection::new(Arc::clone(&config), "appliance.example".try_into()?)?;
        let mut tls = StreamOwned::new(connection, tcp);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock)?;
        }
        let websocket = websocket::Decoder::new(Side::Client);
        Ok(Peer { tls, local, read: BytesMut::new(), websocket, frames: frame::Decoder::default() })
    }

    /// Behind the upgrade, before any greeting.
    pub(crate) fn upgraded(lab: &Lab, key: &str) -> Result<Peer> {
        let mut peer = Peer::secured(lab)?;
        peer.request("/tunnel/v1", &format!("Authorization: Bearer {key}\r\n"))?;
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(b"\r\n\r\n") {
            peer.tls.read_exact(&mut byte).context("reading the answer to the upgrade")?;
            answer.push(byte[0]);
        }
        let answer = String::from_utf8_lossy(&answer);
        ensure!(answer.starts_with("HTTP/1.1 101 "), "no upgrade: {answer}");
        Ok(peer)
    }

    /// Behind the greeting: lane number `lane` of this node's only session.
    pub(crate) fn greeted(lab: &Lab, key: &str, node: u8, lane: u8) -> Result<Peer> {
        let mut peer = Peer::upgraded(lab, key)?;
        let hello = Hello {
            version: VERSION,
            node: [node; 16],
            session: [node; 16],
            lane,
            name: "rogue".into(),
            software: "test".into(),
            initial_credit: 256 * 1024,
            max_streams: 1000,
            capabilities: Capabilities::OURS,
        };
        let mut payload = BytesMut::new();
        hello.write(&mut payload);
        peer.message(&frame(0, Type::Hello as u8, &payload))?;
        peer.wait_for(Type::Welcome)?;
        Ok(peer)
    }

    /// As the appliance's log has it.
    pub(crate) fn address(&self) -> SocketAddr {
        self.local
    }

    /// Asks for an upgrade.
    pub(crate) fn request(&mut self, path: &str, headers: &str) -> Result<()> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: appliance.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
             Sec-WebSocket-Protocol: dworker.v1\r\n{headers}\r\n"
        );
        self.raw(request.as_bytes())
    }

    /// Sends bytes as they are.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.tls.write_all(bytes)?;
        Ok(self.tls.flush()?)
    }

    /// Sends a binary message.
    pub(crate) fn message(&mut self, payload: &[u8]) -> Result<()> {
        let mut out = BytesMut::new();
        websocket::put_header(&mut out, Opcode::Binary, payload.len(), Some(NO_MASK));
        out.put_slice(payload);
        self.raw(&out)
    }

    /// Reads frames until one of this type comes.
    pub(crate) fn wait_for(&mut self, kind: Type) -> Result<(Header, BytesMut)> {
        let mut bytes = BytesMut::new();
        loop {
            while let Some(piece) = self.frames.next(&mut bytes)? {
                match piece {
                    // One frame of this type in a message: what follows it belongs to nobody's test.
                    Piece::Control(header, payload) if header.kind == kind => return Ok((header, payload)),
                    _ => {}
                }
            }
            match self.websocket.next(&mut self.read)? {
                Some(Event::Payload { bytes: payload, .. }) => bytes = payload,
                Some(Event::Close(code)) => bail!("closed ({code:?}) before a {kind:?}"),
                Some(_) => {}
                None => {
                    let mut chunk = [0; 16 * 1024];
                    let read = self.tls.read(&mut chunk)?;
                    ensure!(read > 0, "the end before a {kind:?}");
                    self.read.put_slice(&chunk[..read]);
                }
            }
        }
    }

    /// What the appliance says until it ends the connection, in order or not.
    pub(crate) fn last_words(mut self) -> Result<String> {
        let mut said = self.read.to_vec();
        // Not by the stream's own `read`, which first sends what it still has to: nobody takes that any more.
        let ended = loop {
            match self.tls.conn.reader().read_to_end(&mut said) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                ended => break ended,
            }
            match self.tls.conn.read_tls(&mut self.tls.sock) {
                Ok(0) => break Ok(0),
                Ok(_) => {}
                error => break error,
            }
            self.tls.conn.process_new_packets()?;
        };
        match ended {
            Err(error) if is_late(&error) => bail!("still open after {PATIENCE:?}"),
            _ => Ok(String::from_utf8_lossy(&said).into_owned()),
        }
    }
}
