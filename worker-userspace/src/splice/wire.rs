//! What is copied from and to, as the copier needs it: nothing here waits, so that one task can do both directions, watch
//! for a failure and say its last words.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// A connection. What would have to wait fails as `WouldBlock`, and then the socket tells when to try again.
pub(super) trait Wire {
    /// The socket below.
    fn tcp(&self) -> &TcpStream;

    /// True where a read gives something, or an end, without the socket.
    fn holds(&self) -> bool;

    /// Reads as much as the buffer has room for; nothing is the peer's end.
    fn try_read(&self, into: &mut BytesMut) -> io::Result<usize>;

    /// Writes the beginning of these.
    fn try_write(&self, from: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Gives the socket what was written.
    fn try_flush(&self) -> io::Result<()>;

    /// Ends this direction, behind what was written.
    fn try_end(&self) -> io::Result<()>;

    /// As [`Wire::try_read`], past tokio.
    fn read_now(&self, into: &mut [u8]) -> io::Result<usize>;

    /// As [`Wire::try_write`], past tokio.
    fn write_now(&self, from: &[IoSlice<'_>]) -> io::Result<usize>;
}

/// TCP alone.
impl Wire for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }

    fn holds(&self) -> bool {
        false
    }

    fn try_read(&self, into: &mut BytesMut) -> io::Result<usize> {
        let room = into.capacity() - into.len();
        let mut n = 0;
        // There was no more where it did not fill the buffer, and what comes later is an event of its own (epoll is
        // edge-triggered; tokio does not forget the peer's end). Said to tokio it saves a call that would say so, as
        // tokio's own reads do. The outer call is the older one: what happens during the read is not forgotten either.
        let read = self.try_io(Interest::READABLE, || {
            n = self.try_read_buf(into)?;
            if 0 < n && n < room { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(n) }
        });
        match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && n > 0 => Ok(n),
            other => other,
        }
    }

    fn try_write(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        match from {
            // One piece alone costs the kernel less by a call of its own.
            [one] => self.try_write(one),
            all => self.try_write_vectored(all),
        }
    }

    fn try_flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn try_end(&self) -> io::Result<()> {
        SockRef::from(self).shutdown(Shutdown::Write)
    }

    fn read_now(&self, into: &mut [u8]) -> io::Result<usize> {
        (&*SockRef::from(self)).read(into)
    }

    fn write_now(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*SockRef::from(self)).write_vectored(from)
    }
}
