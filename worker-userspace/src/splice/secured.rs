//! A connection in TLS: to a target behind a proxy that is itself spoken to in TLS.
//!
//! The session is driven by hand, since both directions and the watch for a failure share its socket. What was decrypted
//! is given out before any failure that came behind it.

use std::io::{self, BufRead, ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use rustls::Connection;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use super::wire::Wire;

/// A TCP connection with TLS.
pub(super) struct Secured {
    tcp: TcpStream,
    session: Mutex<Session>,
}

struct Session {
    tls: Connection,
    /// What came that is no TLS.
    wrong: Option<rustls::Error>,
    /// The farewell is written.
    ended: bool,
}

impl From<TlsStream<TcpStream>> for Secured {
    fn from(stream: TlsStream<TcpStream>) -> Secured {
        let (tcp, tls) = match stream {
            TlsStream::Client(stream) => {
                let (tcp, tls) = stream.into_inner();
                (tcp, tls.into())
            }
            TlsStream::Server(stream) => {
                let (tcp, tls) = stream.into_inner();
                (tcp, tls.into())
            }
        };
        Secured { tcp, session: Mutex::new(Session { tls, wrong: None, ended: false }) }
    }
}

impl Secured {
    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, session: &mut Session) -> io::Result<()> {
        match session.tls.wants_write() {
            true => self.tcp.try_io(Interest::WRITABLE, || session.push(&*SockRef::from(&self.tcp))),
            false => Ok(()),
        }
    }
}

impl Wire for Secured {
    fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    fn holds(&self) -> bool {
        self.session().holds()
    }

    fn try_read(&self, into: &mut BytesMut) -> io::Result<usize> {
        let mut session = self.session();
        if !session.holds() {
            self.tcp.try_io(Interest::READABLE, || session.pull(&*SockRef::from(&self.tcp)))?;
            // The protocol's own answers. Where they do not go, what is written next does not either, and tells.
            let _ = self.push(&mut session);
        }
        let room = into.capacity() - into.len();
        session.take(room, |come| into.extend_from_slice(come))
    }

    fn try_write(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut session = self.session();
        // What was encrypted before comes first, so that what waits here is a record or two.
        self.push(&mut session)?;
        let n = session.tls.writer().write_vectored(from)?;
        blocked(self.push(&mut session))?;
        Ok(n)
    }

    fn try_flush(&self) -> io::Result<()> {
        self.push(&mut self.session())
    }

    fn try_end(&self) -> io::Result<()> {
        let mut session = self.session();
        if !session.ended {
            session.ended = true;
            session.tls.send_close_notify();
        }
        self.push(&mut session)?;
        SockRef::from(&self.tcp).shutdown(Shutdown::Write)
    }

    fn read_now(&self, into: &mut [u8]) -> io::Result<usize> {
        let mut session = self.session();
        if !session.holds() {
            session.pull(&*SockRef::from(&self.tcp))?;
        }
        session.take(into.len(), |come| into[..come.len()].copy_from_slice(come))
    }

    fn write_now(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        let (mut session, socket) = (self.session(), SockRef::from(&self.tcp));
        session.push(&*socket)?;
        let n = session.tls.writer().write_vectored(from)?;
        blocked(session.push(&*socket))?;
        Ok(n)
    }
}

impl Session {
    /// True where something is decrypted, or nothing will come any more.
    fn holds(&mut self) -> bool {
        let nothing = matches!(self.tls.reader().fill_buf(), Err(e) if e.kind() == ErrorKind::WouldBlock);
        !nothing || self.wrong.is_some()
    }

    /// Reads from the socket until there is something.
    fn pull(&mut self, mut socket: impl Read) -> io::Result<()> {
        while !self.holds() {
            self.tls.read_tls(&mut socket)?;
            self.wrong = self.tls.process_new_packets().err();
        }
        Ok(())
    }

    /// Gives out what is decrypted, at most so much, and tells how much that was.
    fn take(&mut self, most: usize, give: impl FnOnce(&[u8])) -> io::Result<usize> {
        let mut reader = self.tls.reader();
        let come = match (reader.fill_buf(), &self.wrong) {
            (Err(_), Some(wrong)) => return Err(io::Error::new(ErrorKind::InvalidData, wrong.clone())),
            (come, _) => come?,
        };
        let n = come.len().min(most);
        give(&come[..n]);
        reader.consume(n);
        Ok(n)
    }

    /// Gives the socket what is encrypted.
    fn push(&mut self, mut socket: impl Write) -> io::Result<()> {
        while self.tls.wants_write() {
            if self.tls.write_tls(&mut socket)? == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

/// That there is no room for what was taken already is no failure.
fn blocked(pushed: io::Result<()>) -> io::Result<()> {
    match pushed {
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(()),
        pushed => pushed,
    }
}

#[cfg(test)]
mod tests;
