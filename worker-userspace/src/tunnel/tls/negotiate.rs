//! The handshake, by rustls: it is driven here so that the records behind it can be our own.

use std::io;

use bytes::{Buf, BytesMut};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{Error, ExtractedSecrets};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::stream::{Begun, Keys, Stream};

/// Bytes that the socket is asked for.
const READ: usize = 4 * 1024;
/// Most bytes that a handshake may keep; as much as rustls itself keeps where it reads.
const MOST: usize = 0xffff;

/// Either end of a handshake.
pub(super) trait End: Sized {
    type Data;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn is_handshaking(&self) -> bool;
    fn has_shown(&self) -> bool;
    fn finish(self) -> Result<(ExtractedSecrets, Keys), Error>;
}

macro_rules! end {
    ($connection:ty, $data:ty, $keys:path) => {
        impl End for $connection {
            type Data = $data;

            fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, $data> {
                self.process_tls_records(incoming)
            }

            fn is_handshaking(&self) -> bool {
                (**self).is_handshaking()
            }

            fn has_shown(&self) -> bool {
                self.peer_certificates().is_some()
            }

            fn finish(self) -> Result<(ExtractedSecrets, Keys), Error> {
                let (secrets, keys) = self.dangerous_into_kernel_connection()?;
                Ok((secrets, $keys(Box::new(keys))))
            }
        }
    };
}

end!(UnbufferedClientConnection, ClientConnectionData, Keys::Client);
end!(UnbufferedServerConnection, ServerConnectionData, Keys::Server);

/// The handshake on a connection of which `incoming` has come already. Deadlines are the caller's.
///
/// # Errors
/// It fails; the connection is given back. The peer was told then, as far as it took that.
pub(super) async fn negotiate<S, E>(
    mut io: S,
    mut end: E,
    incoming: BytesMut,
) -> Result<Stream<S>, (io::Error, S)>
where
    S: AsyncRead + AsyncWrite + Unpin,
    E: End,
{
    let begun = match shake(&mut io, &mut end, incoming).await {
        Ok((opened, incoming, ended)) => {
            let has_shown = end.has_shown();
            match end.finish() {
                Ok((secrets, keys)) => Begun { secrets, keys, opened, incoming, ended, has_shown },
                Err(error) => return Err((invalid(error), io)),
            }
        }
        Err(error) => return Err((error, io)),
    };
    Stream::new(io, begun)
}

/// Reads what comes next.
///
/// # Errors
/// An end, which no handshake has.
pub(super) async fn more(io: &mut (impl AsyncRead + Unpin), incoming: &mut BytesMut) -> io::Result<()> {
    incoming.reserve(READ);
    match io.read_buf(incoming).await? {
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof")),
        _ => Ok(()),
    }
}

enum Next {
    Nothing,
    Send,
    Read,
    Done,
    Failed(Error),
}

/// Gives what came behind the handshake: opened, not opened, and whether that was all.
async fn shake<S, E>(
    io: &mut S,
    end: &mut E,
    mut incoming: BytesMut,
) -> io::Result<(BytesMut, BytesMut, bool)>
where
    S: AsyncRead + AsyncWrite + Unpin,
    E: End,
{
    let (mut opened, mut outgoing, mut ended) = (BytesMut::new(), Vec::new(), false);
    loop {
        let UnbufferedStatus { mut discard, state, .. } = end.process(&mut incoming);
        let next = match state {
            Ok(ConnectionState::EncodeTlsData(data)) => encode(data, &mut outgoing),
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Next::Send
            }
            Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
                match traffic.next_record() {
                    None => break Next::Nothing,
                    Some(Ok(record)) => {
                        discard += record.discard;
                        opened.extend_from_slice(record.payload);
                    }
                    Some(Err(error)) => break Next::Failed(error),
                }
            },
            Ok(ConnectionState::PeerClosed) => {
                ended = true;
                Next::Nothing
            }
            Ok(ConnectionState::WriteTraffic(_)) => Next::Done,
            Ok(ConnectionState::BlockedHandshake) => Next::Read,
            Ok(_) => Next::Failed(Error::General("an end of TLS within its handshake".into())),
            Err(error) => Next::Failed(error),
        };
        incoming.advance(discard);
        match next {
            Next::Nothing => {}
            Next::Done if !end.is_handshaking() => return Ok((opened, incoming, ended)),
            Next::Send => {
                io.write_all(&outgoing).await?;
                io.flush().await?;
                outgoing.clear();
            }
            // An end that may send before the other has proved itself waits here all the same.
            Next::Read | Next::Done => {
                // rustls bounds messages, not what they come in.
                if incoming.len() > MOST {
                    let text = format!("a handshake that is not over after {MOST} bytes");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
                more(io, &mut incoming).await?;
            }
            Next::Failed(error) => {
                // The alert that says so waits already. Asked a second time, rustls would read on.
                if let UnbufferedStatus { state: Ok(ConnectionState::EncodeTlsData(data)), .. } =
                    end.process(&mut incoming)
                {
                    encode(data, &mut outgoing);
                }
                // Why it failed is known already; who does not listen changes nothing.
                let _ = io.write_all(&outgoing).await;
                let _ = io.flush().await;
                return Err(invalid(error));
            }
        }
    }
}

fn encode<D>(mut data: EncodeTlsData<'_, D>, outgoing: &mut Vec<u8>) -> Next {
    let start = outgoing.len();
    let needed = match data.encode(&mut []) {
        Err(EncodeError::InsufficientSize(size)) => size.required_size,
        _ => 0,
    };
    outgoing.resize(start + needed, 0);
    match data.encode(&mut outgoing[start..]) {
        Ok(_) => Next::Nothing,
        Err(error) => Next::Failed(Error::General(error.to_string())),
    }
}

fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
