//! A connection in TLS behind its handshake: both directions, keys that are changed, and the end.
//!
//! What must hold: bytes are given out in their order and unaltered, or there is an error; an end is given only where
//! the peer has said farewell; what waits to be sent is a batch at most.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{AlertDescription, ConnectionTrafficSecrets, ExtractedSecrets, ProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::record::{self, Fault, Kind, Opener, Sealer};

/// Records that are written at once.
const BATCH: usize = 4;
/// Bytes that the socket is asked for: few at first, then as many as a peer's batch has.
const READ: [usize; 2] = [4 * 1024, BATCH * (record::MOST + record::OVERHEAD)];
/// So many reads of little one after the other end a burst: a long record alone may have a short rest.
const LITTLE: u32 = 16;
/// Records without data that a peer may send one after the other.
const QUIET: u32 = 32;
/// Most bytes of a message of the handshake that comes behind it.
const MESSAGE: usize = 64 * 1024;

const NEW_SESSION_TICKET: u8 = 4;
const HELLO_REQUEST: u8 = 0;
const KEY_UPDATE: u8 = 24;
/// Warnings are of this level in TLS 1.2.
const WARNING: u8 = 1;

/// What rustls keeps: how the next keys are made.
pub(super) enum Keys {
    Client(Box<KernelConnection<ClientConnectionData>>),
    Server(Box<KernelConnection<ServerConnectionData>>),
}

impl Keys {
    fn next_to_send(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        match self {
            Keys::Client(keys) => keys.update_tx_secret(),
            Keys::Server(keys) => keys.update_tx_secret(),
        }
    }

    fn next_to_receive(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        match self {
            Keys::Client(keys) => keys.update_rx_secret(),
            Keys::Server(keys) => keys.update_rx_secret(),
        }
    }

    fn is_new(&self) -> bool {
        let version = match self {
            Keys::Client(keys) => keys.protocol_version(),
            Keys::Server(keys) => keys.protocol_version(),
        };
        version == ProtocolVersion::TLSv1_3
    }

    /// How many records the algorithm bears with one key.
    fn limit(&self) -> u64 {
        use rustls::SupportedCipherSuite::{Tls12, Tls13};
        let suite = match self {
            Keys::Client(keys) => keys.negotiated_cipher_suite(),
            Keys::Server(keys) => keys.negotiated_cipher_suite(),
        };
        match suite {
            Tls12(suite) => suite.common.confidentiality_limit,
            Tls13(suite) => suite.common.confidentiality_limit,
        }
    }
}

/// How far the peer's direction is.
enum Reading {
    Open,
    /// The peer has said farewell.
    Ended,
    /// What is said from then on.
    Failed(io::ErrorKind, String),
}

/// A connection in TLS.
pub struct Stream<S> {
    io: S,
    session: Session,
}

struct Session {
    keys: Keys,
    opener: Opener,
    sealer: Sealer,
    /// What came and is not opened yet.
    incoming: BytesMut,
    /// What was opened and is not taken yet.
    opened: BytesMut,
    /// How much the socket is asked for, and how long the next record is, as far as is known.
    read: usize,
    needed: usize,
    /// Reads of little, one after the other.
    little: u32,
    /// Room that was made for what comes.
    buffer: usize,
    reading: Reading,
    /// A message of the handshake of which a part came.
    message: BytesMut,
    /// Records without data, one after the other.
    quiet: u32,
    /// The peer wants our keys to be changed before it gets more.
    update: bool,
    /// What is sealed, and how much of it is sent.
    sealed: Vec<u8>,
    sent: usize,
    farewell: bool,
    has_shown: bool,
}

/// What the handshake leaves.
pub(super) struct Begun {
    pub(super) secrets: ExtractedSecrets,
    pub(super) keys: Keys,
    /// What came behind it, first what was opened already.
    pub(super) opened: BytesMut,
    pub(super) incoming: BytesMut,
    /// The peer has said farewell already.
    pub(super) ended: bool,
    /// The peer has shown a certificate.
    pub(super) has_shown: bool,
}

impl<S> Stream<S> {
    /// Behind the handshake.
    ///
    /// # Errors
    /// An algorithm that is not known here; what is below is given back.
    pub(super) fn new(io: S, begun: Begun) -> Result<Stream<S>, (io::Error, S)> {
        let Begun { secrets: ExtractedSecrets { tx, rx }, keys, opened, incoming, ended, has_shown } = begun;
        let (is_new, limit) = (keys.is_new(), keys.limit());
        let (Some(opener), Some(sealer)) = (Opener::new(rx, is_new), Sealer::new(tx, is_new, limit)) else {
            return Err((io::Error::other("TLS with an algorithm that is not known here"), io));
        };
        let session = Session {
            opener,
            sealer,
            keys,
            incoming,
            opened,
            read: READ[0],
            needed: 0,
            little: 0,
            buffer: 0,
            reading: if ended { Reading::Ended } else { Reading::Open },
            message: BytesMut::new(),
            quiet: 0,
            update: false,
            sealed: Vec::new(),
            sent: 0,
            farewell: false,
            has_shown,
        };
        Ok(Stream { io, session })
    }

    /// What is below.
    pub fn get_ref(&self) -> &S {
        &self.io
    }

    /// The same connection on what `change` makes of the one below.
    pub fn try_map<T>(self, change: impl FnOnce(S) -> io::Result<T>) -> io::Result<Stream<T>> {
        Ok(Stream { io: change(self.io)?, session: self.session })
    }

    /// True where the peer has shown a certificate, which was verified then.
    pub fn has_shown(&self) -> bool {
        self.session.has_shown
    }
}

impl Session {
    /// What came next that is data; `None`: nothing of it is there.
    fn open(&mut self) -> Result<Option<BytesMut>, Wrong> {
        loop {
            let (kind, content) = match self.opener.open(&mut self.incoming)? {
                Ok(record) => record,
                Err(needed) => {
                    self.needed = needed;
                    return Ok(None);
                }
            };
            if kind == Kind::Data && !content.is_empty() {
                if !self.message.is_empty() {
                    return Err(Wrong::Message);
                }
                self.quiet = 0;
                return Ok(Some(content));
            }
            self.quiet += 1;
            if self.quiet > QUIET {
                return Err(Wrong::Quiet);
            }
            match kind {
                Kind::Data => {}
                Kind::Handshake => self.on_message(content)?,
                Kind::Alert => {
                    let &[level, what] = &content[..] else { return Err(Wrong::Message) };
                    let is_new = self.keys.is_new();
                    match AlertDescription::from(what) {
                        AlertDescription::CloseNotify => {
                            self.reading = Reading::Ended;
                            return Ok(None);
                        }
                        AlertDescription::UserCanceled => {}
                        _ if level == WARNING && !is_new => {}
                        other => return Err(Wrong::Alert(other)),
                    }
                }
            }
        }
    }

    /// What comes of the handshake behind it: sessions to resume, of which nothing is wanted, and changes of keys.
    fn on_message(&mut self, content: BytesMut) -> Result<(), Wrong> {
        self.message.extend_from_slice(&content);
        while let Some(&[kind, a, b, c]) = self.message.first_chunk() {
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            if length > MESSAGE {
                return Err(Wrong::Message);
            }
            if self.message.len() < 4 + length {
                return Ok(());
            }
            let message = self.message.split_to(4 + length);
            let is_client = matches!(self.keys, Keys::Client(_));
            match (kind, self.keys.is_new()) {
                (NEW_SESSION_TICKET, true) | (HELLO_REQUEST, false) if is_client => {}
                (KEY_UPDATE, true) => {
                    self.update |= match message[4..] {
                        [0] => false,
                        [1] => true,
                        _ => return Err(Wrong::Message),
                    };
                    // What is behind it has the new key, so it is a record of its own.
                    if !self.message.is_empty() {
                        return Err(Wrong::Message);
                    }
                    let secrets = self.keys.next_to_receive()?;
                    self.opener = Opener::new(secrets, true).ok_or(Wrong::Message)?;
                }
                _ => return Err(Wrong::Message),
            }
        }
        Ok(())
    }

    /// Seals a record, and changes the key before it is used up.
    fn seal(&mut self, kind: Kind, fill: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let spent = || io::Error::other("the connection's key has sealed as much as it may");
        if self.keys.is_new() && (self.update || self.sealer.left() <= 1) {
            let message = [KEY_UPDATE, 0, 0, 1, 0];
            let changing = |out: &mut Vec<u8>| out.extend_from_slice(&message);
            self.sealer.seal(Kind::Handshake, &mut self.sealed, changing).map_err(io::Error::other)?;
            let secrets = self.keys.next_to_send().map_err(io::Error::other)?;
            self.sealer = Sealer::new(secrets, true, self.keys.limit()).ok_or_else(spent)?;
            self.update = false;
        } else if self.sealer.left() == 0 {
            return Err(spent());
        }
        self.sealer.seal(kind, &mut self.sealed, fill).map_err(io::Error::other)
    }

    /// Seals the beginning of `parts`, and says how much of it.
    fn seal_data(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let length = length.min(BATCH * record::MOST);
        let records = length.div_ceil(record::MOST);
        self.sealed.reserve(length + (records + 1) * record::OVERHEAD);
        let mut parts = parts.iter().map(|part| &part[..]);
        let mut part: &[u8] = &[];
        let mut left = length;
        while left > 0 {
            let mut room = left.min(record::MOST);
            left -= room;
            self.seal(Kind::Data, |out| {
                while room > 0 {
                    if part.is_empty() {
                        let Some(next) = parts.next() else { break };
                        part = next;
                    }
                    let n = room.min(part.len());
                    out.extend_from_slice(&part[..n]);
                    (part, room) = (&part[n..], room - n);
                }
            })?;
        }
        Ok(length)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream<S> {
    /// What came next, where it was opened; `None`: the peer has ended.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<BytesMut>>> {
        loop {
            if !self.session.opened.is_empty() {
                return Poll::Ready(Ok(Some(std::mem::take(&mut self.session.opened))));
            }
            match &self.session.reading {
                Reading::Open => {}
                Reading::Ended => return Poll::Ready(Ok(None)),
                Reading::Failed(kind, why) => return Poll::Ready(Err(io::Error::new(*kind, why.clone()))),
            }
            match self.session.open() {
                Ok(Some(piece)) => return Poll::Ready(Ok(Some(piece))),
                Ok(None) if matches!(self.session.reading, Reading::Ended) => continue,
                Ok(None) => {}
                Err(wrong) => return Poll::Ready(Err(self.fail(wrong, cx))),
            }
            // What a burst needed is not kept while little comes.
            if self.session.incoming.is_empty() && self.session.read < self.session.buffer {
                (self.session.incoming, self.session.buffer) = (BytesMut::new(), 0);
            }
            // A buffer is used up before the next is made: what was handed on still lives in it. A record is whole in one.
            let needed = self.session.needed.saturating_sub(self.session.incoming.len());
            if self.session.incoming.capacity() - self.session.incoming.len()
                < needed.max(self.session.read / 4)
            {
                self.session.buffer = needed.max(self.session.read);
                self.session.incoming.reserve(self.session.buffer);
            }
            let room = self.session.incoming.capacity() - self.session.incoming.len();
            let n = ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.session.incoming))?;
            if n == 0 {
                let cut = "the connection was cut: it ended without TLS's farewell";
                self.session.reading = Reading::Failed(io::ErrorKind::UnexpectedEof, cut.into());
            } else if n == room {
                (self.session.read, self.session.little) = (READ[1], 0);
            } else if n < READ[0] / 4 {
                self.session.little = self.session.little.saturating_add(1);
                if self.session.little >= LITTLE {
                    self.session.read = READ[0];
                }
            } else {
                self.session.little = 0;
            }
        }
    }

    /// Tells the peer what it did, as far as it may be sent at once.
    fn fail(&mut self, wrong: Wrong, cx: &mut Context<'_>) -> io::Error {
        if let Some(alert) = wrong.alert() {
            let fatal = [2, alert.into()];
            let sealed = self.session.seal(Kind::Alert, |out| out.extend_from_slice(&fatal));
            if sealed.is_ok() {
                let _ = self.poll_send(cx);
            }
        }
        let kind = io::ErrorKind::InvalidData;
        self.session.reading = Reading::Failed(kind, wrong.to_string());
        match wrong {
            // As rustls says it: what it means is judged elsewhere.
            Wrong::Alert(what) => io::Error::new(kind, rustls::Error::AlertReceived(what)),
            wrong => io::Error::new(kind, wrong.to_string()),
        }
    }

    /// Sends what is sealed.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.session.sealed.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.session.sent < self.session.sealed.len() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.session.sealed[self.session.sent..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.session.sent += n;
        }
        // What a burst needed is not kept while little is sent.
        if self.session.sealed.len() < self.session.sealed.capacity() / 8 {
            self.session.sealed = Vec::new();
        }
        self.session.sealed.clear();
        self.session.sent = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(mut piece) = ready!(this.poll_piece(cx))? {
            let n = piece.len().min(buf.remaining());
            buf.put_slice(&piece[..n]);
            piece.advance(n);
            this.session.opened = piece;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.session.farewell {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(this.poll_send(cx))?;
        let n = this.session.seal_data(bufs)?;
        // What is sealed counts as written, whether the socket takes it now or later.
        match this.poll_send(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(n)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.session.farewell {
            ready!(this.poll_send(cx))?;
            this.session.farewell = true;
            let close = [WARNING, AlertDescription::CloseNotify.into()];
            this.session.seal(Kind::Alert, |out| out.extend_from_slice(&close))?;
        }
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

impl<S: fmt::Debug> fmt::Debug for Stream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("tls::Stream").field("io", &self.io).finish_non_exhaustive()
    }
}

/// What a peer did that TLS does not allow.
#[derive(Debug, thiserror::Error)]
enum Wrong {
    #[error(transparent)]
    Record(#[from] Fault),
    #[error("a message of TLS that can't be here")]
    Message,
    #[error("too many TLS records without data")]
    Quiet,
    #[error("the peer ended TLS by an alert: {0:?}")]
    Alert(AlertDescription),
    #[error(transparent)]
    Keys(#[from] rustls::Error),
}

impl Wrong {
    /// What the peer is told.
    fn alert(&self) -> Option<AlertDescription> {
        Some(match self {
            Wrong::Record(Fault::Altered) => AlertDescription::BadRecordMac,
            Wrong::Record(Fault::TooLong(_)) => AlertDescription::RecordOverflow,
            Wrong::Record(_) | Wrong::Message | Wrong::Quiet => AlertDescription::UnexpectedMessage,
            Wrong::Keys(_) => AlertDescription::InternalError,
            Wrong::Alert(_) => return None,
        })
    }
}

#[cfg(test)]
mod tests;
