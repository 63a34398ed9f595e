//! The server: the target of all loads.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Header, MESSAGE, PIECE};

/// Serves until it is killed.
pub(crate) async fn serve(at: SocketAddr) -> io::Result<()> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    let listener: TcpListener = socket.listen(4096)?;
    println!("listening");
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            // The client knows best whether it got what it wanted.
            let _ = answer(stream).await;
        });
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    stream.read_exact(&mut first).await?;
    match Header::from_wire(first[0]) {
        Some(Header::Sink) => {
            let mut piece = vec![0; PIECE];
            while stream.read(&mut piece).await? > 0 {}
            Ok(())
        }
        Some(Header::Source) => {
            let piece = vec![b'd'; PIECE];
            loop {
                stream.write_all(&piece).await?;
            }
        }
        Some(Header::Answer) => {
            let mut message = [b'r'; MESSAGE];
            stream.read_exact(&mut message[1..]).await?;
            loop {
                stream.write_all(&message).await?;
                if let Err(error) = stream.read_exact(&mut message).await {
                    return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(()) } else { Err(error) };
                }
            }
        }
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}
