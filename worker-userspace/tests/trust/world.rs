//! A listener, and who dials it.

use std::net::SocketAddr;
use std::sync::Arc;

use dworker::tunnel::dial::{Appliance, DialError, Words};
use dworker::tunnel::tls::expiry::Expiry;
use dworker::tunnel::tls::{Listener, Trust, listener, trust};
use dworker::tunnel::transport::{Transport, Way};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::openssl::Made;

/// A listener that echoes a byte at a time.
pub(crate) async fn serve(listener: Arc<Listener>) -> SocketAddr {
    let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = tcp.local_addr().expect("its address");
    tokio::spawn(async move {
        while let Ok((socket, peer)) = tcp.accept().await {
            let listener = listener.clone();
            tokio::spawn(async move {
                let Ok(mut accepted) = listener.accept(socket, peer).await else { return };
                while let Ok(byte) = accepted.stream.read_u8().await {
                    let _ = accepted.stream.write_u8(byte).await;
                    let _ = accepted.stream.flush().await;
                }
            });
        }
    });
    address
}

pub(crate) async fn echoes(transport: &mut Transport) {
    transport.write_u8(7).await.expect("a byte is written");
    transport.flush().await.expect("and sent");
    assert_eq!(transport.read_u8().await.expect("a byte"), 7);
}

/// An appliance as a worker knows it.
pub(crate) fn dialled(address: SocketAddr, host: &str, trust: Arc<Trust>) -> Appliance {
    let at = dworker::target::Target { host: host.parse().expect(host), port: address.port() };
    Appliance { at, tls: Some(trust), words: Words::CONFIGURATION }
}

pub(crate) async fn dial(appliance: &Appliance) -> Result<Transport, DialError> {
    appliance.secure(Way::Plain(appliance.connect().await?)).await
}

pub(crate) fn listening(made: &Made, certificate: &str, key: &str) -> listener::Files {
    listener::Files { identity: made.files(certificate, key), client_ca_file: None, required: false }
}

pub(crate) fn trusting(made: &Made, ca_file: &str, expiry: &Expiry) -> Arc<Trust> {
    let files = trust::Files { ca_file: Some(made.path(ca_file)), ..trust::Files::default() };
    Trust::read(files, expiry.clone()).expect("a CA")
}
