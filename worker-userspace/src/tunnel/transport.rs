//! What a lane runs on: a TCP connection, in TLS unless the configuration asks for plaintext; once more in TLS where the
//! way leads through a proxy that itself has it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// Bytes that the kernel keeps unsent before it asks for no more. Little, so that what is urgent need not
/// wait behind what is bulk.
const NOT_SENT: u32 = 128 * 1024;
/// Sent bytes that nobody acknowledges end the connection after this time.
const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// What leads to a peer, before TLS with the peer itself: TCP, or what a proxy connected.
#[derive(Debug)]
pub enum Way {
    /// TCP: to the peer itself, or by a plain proxy.
    Plain(TcpStream),
    /// By a proxy that is spoken to in TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Way {
    /// The TCP connection below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Way::Plain(tcp) => tcp,
            Way::Tls(tls) => tls.get_ref().0,
        }
    }
}

/// A TCP connection with or without TLS.
#[derive(Debug)]
pub enum Transport {
    /// `ws://`, only where the configuration asks for it.
    Plain(TcpStream),
    /// `wss://`.
    Tls(Box<TlsStream<TcpStream>>),
    /// `wss://` through a proxy that is spoken to in TLS.
    TlsInTls(Box<TlsStream<TlsStream<TcpStream>>>),
}

impl From<Way> for Transport {
    fn from(way: Way) -> Transport {
        match way {
            Way::Plain(tcp) => Transport::Plain(tcp),
            Way::Tls(tls) => Transport::Tls(tls),
        }
    }
}

impl Transport {
    /// The TCP connection below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Transport::Plain(tcp) => tcp,
            Transport::Tls(tls) => tls.get_ref().0,
            Transport::TlsInTls(tls) => tls.get_ref().0.get_ref().0,
        }
    }
}

/// Sets the options of a lane's socket.
///
/// # Errors
/// The kernel refused one; all exist since Linux 3.12.
pub fn tune(tcp: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(tcp);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(NOT_SENT)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

macro_rules! each {
    ($self:ident, $io:ident => $call:expr) => {
        match $self.get_mut() {
            Transport::Plain($io) => {
                let $io = Pin::new($io);
                $call
            }
            Transport::Tls($io) => {
                let $io = Pin::new(&mut **$io);
                $call
            }
            Transport::TlsInTls($io) => {
                let $io = Pin::new(&mut **$io);
                $call
            }
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, io => io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, io => io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_shutdown(cx))
    }
}
