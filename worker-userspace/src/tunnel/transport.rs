//! What a lane runs on: a TCP connection, in TLS unless the configuration asks for plaintext; once more in TLS where the
//! way leads through a proxy that itself has it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tokio_util::io::poll_read_buf;

use super::tls::Stream;
use crate::threads;

/// Bytes that the kernel keeps unsent before it asks for no more. Little, so that what is urgent need not
/// wait behind what is bulk; but as much as is sent in [`UNSENT_TIME`], or a fast path would run dry until this process
/// has its turn.
const NOT_SENT: [u32; 2] = [128 * 1024, 2 * 1024 * 1024];
/// What is unsent takes so long, where it is sent as fast as what came before; on a long path a quarter of its round
/// trip, within these bounds.
const UNSENT_TIME: [Duration; 2] = [Duration::from_millis(4), Duration::from_millis(25)];
/// Bytes asked of the socket at once.
const READ: usize = 64 * 1024;
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
    Tls(Box<Stream<TcpStream>>),
    /// `ws://` through a proxy that is spoken to in TLS.
    PlainInTls(Box<TlsStream<TcpStream>>),
    /// `wss://` through a proxy that is spoken to in TLS.
    TlsInTls(Box<Stream<TlsStream<TcpStream>>>),
}

impl From<Way> for Transport {
    fn from(way: Way) -> Transport {
        match way {
            Way::Plain(tcp) => Transport::Plain(tcp),
            Way::Tls(tls) => Transport::PlainInTls(tls),
        }
    }
}

/// What a lane reads from.
pub trait Source: AsyncRead {
    /// Adds what comes next to `read`, and says how much that was; nothing: the peer has ended. Where `read` is empty, its
    /// buffer may be another afterwards, so that nothing need be copied.
    fn poll_source(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        read: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        // A buffer is used up before the next is made: what was handed on still lives in it.
        if read.capacity() - read.len() < READ / 4 {
            read.reserve(READ);
        }
        poll_read_buf(self, cx, read)
    }

    /// How much the kernel keeps unsent from now on.
    fn keep_unsent(&self, _bytes: u32) {}
}

impl Transport {
    /// Gives its socket to the runtime that asks.
    ///
    /// # Errors
    /// The kernel takes no more; or it is one of a client's, which lives where it was dialled.
    pub fn moved(self) -> io::Result<Transport> {
        match self {
            Transport::Plain(tcp) => threads::take(tcp).map(Transport::Plain),
            Transport::Tls(tls) => Ok(Transport::Tls(Box::new(tls.try_map(threads::take)?))),
            Transport::PlainInTls(_) | Transport::TlsInTls(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The TCP connection below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Transport::Plain(tcp) => tcp,
            Transport::Tls(tls) => tls.get_ref(),
            Transport::PlainInTls(tls) => tls.get_ref().0,
            Transport::TlsInTls(tls) => tls.get_ref().get_ref().0,
        }
    }
}

/// How much the kernel is to keep unsent of a lane that sends so many bytes in a second.
pub fn unsent(rate: f64, round_trip: Duration) -> u32 {
    let time = (round_trip / 4).clamp(UNSENT_TIME[0], UNSENT_TIME[1]);
    ((rate * time.as_secs_f64()) as u32).clamp(NOT_SENT[0], NOT_SENT[1])
}

/// Sets the options of a lane's socket.
///
/// # Errors
/// The kernel refused one; all exist since Linux 3.12.
pub fn tune(tcp: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(tcp);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(NOT_SENT[0])?;
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
            Transport::PlainInTls($io) => {
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

impl Source for TcpStream {}
impl Source for TlsStream<TcpStream> {}

impl<S: AsyncRead + AsyncWrite + Unpin> Source for Stream<S> {
    fn poll_source(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        read: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        let Some(piece) = ready!(self.get_mut().poll_piece(cx))? else { return Poll::Ready(Ok(0)) };
        let n = piece.len();
        match read.is_empty() {
            true => *read = piece,
            false => read.unsplit(piece),
        }
        Poll::Ready(Ok(n))
    }
}

impl Source for Transport {
    fn keep_unsent(&self, bytes: u32) {
        // Where the kernel refuses it, what was set before stays, and works as well.
        let _ = SockRef::from(self.tcp()).set_tcp_notsent_lowat(bytes);
    }

    fn poll_source(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        read: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        each!(self, io => io.poll_source(cx, read))
    }
}

/// In memory, for tests.
impl Source for tokio::io::DuplexStream {}

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
