//! SOCKS5 (RFC 1928), with user and password (RFC 1929); `CONNECT` only.

mod message;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::answer::answer;
use super::{Client, HANDSHAKE, Proxy, WRONG, forward, tell, tune};
use crate::accept::Place;
use crate::inspect::ledger::Entry;
use crate::splice::{broken, unread};
use crate::target::Target;
use message::{Fault, Parsed};

/// Bytes of the largest message, and room for what a client sends ahead.
const BUFFER: usize = 1024;
/// How long a client that was refused may take to read why.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why a client got nowhere.
#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    /// The connection.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The protocol.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// It offers none of the methods that are asked for.
    #[error("it offers no method that is taken here: {0}")]
    Method(&'static str),
    /// Not the user, or not the password.
    #[error("wrong user or password")]
    Wrong,
}

impl Proxy {
    /// Serves one connection to its end.
    pub(super) async fn socks(self, mut socket: TcpStream, source: SocketAddr, place: Place) {
        tune(&socket);
        let mut buffer = BytesMut::with_capacity(BUFFER);
        let handshake = timeout(HANDSHAKE, self.handshake(&mut socket, &mut buffer, source));
        let asked = tokio::select! {
            asked = handshake => asked,
            () = self.drain.stopping() => return,
        };
        let (client, target) = match asked {
            Ok(Ok(asked)) => asked,
            Ok(Err(error @ HandshakeError::Wrong)) => {
                tracing::warn!(%source, "refused a SOCKS client: {error}");
                return farewell(socket).await;
            }
            Ok(Err(error)) => {
                tracing::debug!(%source, "refused a SOCKS client: {error}");
                return farewell(socket).await;
            }
            Err(_) => return tracing::debug!(%source, "a SOCKS client said too little in {HANDSHAKE:?}"),
        };
        // From here on it waits for others, not others for it.
        drop(place);
        let flow = self.flow(Entry::Socks, &client, target);
        let dialled = tokio::select! {
            biased;
            dialled = self.dial(&flow) => dialled,
            error = broken(&socket) => Err(unread(error)),
        };
        let outcome = match dialled {
            Err(refusal) => {
                // A client that is gone need not be told.
                let _ = socket.write_all(&message::reply(answer(refusal.code).reply)).await;
                Err(refusal)
            }
            Ok(stream) => match socket.write_all(&message::reply(message::SUCCEEDED)).await {
                Ok(()) => {
                    let outcome = forward(&mut socket, &stream, buffer, &flow).await;
                    if let Err(refusal) = &outcome {
                        tell(&flow, refusal);
                    }
                    // A cut is a reset; it leaves with the socket.
                    return flow.end(outcome);
                }
                Err(error) => {
                    let refusal = unread(error);
                    stream.reset(refusal.clone());
                    Err(refusal)
                }
            },
        };
        if let Err(refusal) = &outcome {
            tell(&flow, refusal);
        }
        flow.end(outcome);
        farewell(socket).await;
    }

    /// Hears who asks and for what. What the client sent ahead stays in the buffer.
    async fn handshake(
        &self,
        socket: &mut TcpStream,
        buffer: &mut BytesMut,
        source: SocketAddr,
    ) -> Result<(Client, Target), HandshakeError> {
        let methods = read(socket, buffer, message::methods).await?;
        let (method, asked) = match &self.credentials {
            None => (message::NO_LOGIN, "none but without a login"),
            Some(_) => (message::LOGIN, "none but user and password"),
        };
        if !methods.contains(&method) {
            socket.write_all(&[message::VERSION, message::NO_METHOD]).await?;
            return Err(HandshakeError::Method(asked));
        }
        socket.write_all(&[message::VERSION, method]).await?;
        let mut user = None;
        if let Some(credentials) = &self.credentials {
            let (name, password) = read(socket, buffer, message::login).await?;
            let Some(known) = credentials.check(&name, &password) else {
                sleep(WRONG).await;
                socket.write_all(&message::LOGIN_REFUSED).await?;
                return Err(HandshakeError::Wrong);
            };
            user = Some(known.to_owned());
            socket.write_all(&message::LOGIN_TAKEN).await?;
        }
        match read(socket, buffer, message::request).await {
            Ok(target) => Ok((Client { source, user }, target)),
            Err(HandshakeError::Fault(fault)) => {
                socket.write_all(&message::reply(fault.reply())).await?;
                Err(fault.into())
            }
            Err(error) => Err(error),
        }
    }
}

/// Reads until a message is whole.
async fn read<T>(
    socket: &mut TcpStream,
    buffer: &mut BytesMut,
    parse: impl Fn(&[u8]) -> Parsed<T>,
) -> Result<T, HandshakeError> {
    loop {
        if let Some((message, length)) = parse(buffer)? {
            buffer.advance(length);
            return Ok(message);
        }
        // Every message is shorter than the buffer, so this ends.
        if socket.read_buf(buffer).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

/// Lets a client read its answer: closed with bytes unread, the socket would be reset, and the answer lost.
async fn farewell(mut socket: TcpStream) {
    let reading = async {
        socket.shutdown().await?;
        let mut unwanted = [0; 4096];
        while socket.read(&mut unwanted).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    // Whoever does not close in time has had its answer for long.
    let _ = timeout(FAREWELL, reading).await;
}
