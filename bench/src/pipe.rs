//! The bare pipe: TCP in TLS and nothing more, each connection in one of its own. The simplest that one could write, with
//! the same library and the same defaults as dworker has.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Bytes that are copied at once. More than tokio's 8 KiB, which would make it easy to be faster.
const PIECE: usize = 64 * 1024;

/// One end of the pipe.
#[derive(Debug, clap::Args)]
pub(crate) struct Pipe {
    /// Where it listens.
    #[arg(long)]
    listen: SocketAddr,
    /// Where it connects to.
    #[arg(long)]
    to: SocketAddr,
    /// The authority that the other end's certificate is checked with: this end is the client.
    #[arg(long, conflicts_with_all = ["certificate", "key"])]
    ca: Option<PathBuf>,
    /// This end is the server.
    #[arg(long, requires = "key")]
    certificate: Option<PathBuf>,
    /// Its key.
    #[arg(long)]
    key: Option<PathBuf>,
}

impl Pipe {
    /// Serves until it is killed.
    pub(crate) async fn run(&self) -> Result<()> {
        let listener = TcpListener::bind(self.listen).await?;
        println!("listening");
        match (&self.ca, &self.certificate, &self.key) {
            (Some(ca), ..) => self.connecting(listener, ca).await,
            (None, Some(certificate), Some(key)) => self.accepting(listener, certificate, key).await,
            _ => anyhow::bail!("give --ca, or --certificate and --key"),
        }
    }

    async fn connecting(&self, listener: TcpListener, ca: &Path) -> Result<()> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca)? {
            roots.add(certificate?)?;
        }
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from("appliance.example").context("a name")?;
        let to = self.to;
        loop {
            let (near, _) = listener.accept().await?;
            let (connector, name) = (connector.clone(), name.clone());
            tokio::spawn(async move {
                let far = TcpStream::connect(to).await?;
                far.set_nodelay(true)?;
                near.set_nodelay(true)?;
                copy(near, connector.connect(name, far).await?).await
            });
        }
    }

    async fn accepting(&self, listener: TcpListener, certificate: &Path, key: &Path) -> Result<()> {
        let certificates = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(key)?;
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(certificates, key)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let to = self.to;
        loop {
            let (near, _) = listener.accept().await?;
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                near.set_nodelay(true)?;
                let near = acceptor.accept(near).await?;
                let far = TcpStream::connect(to).await?;
                far.set_nodelay(true)?;
                copy(near, far).await
            });
        }
    }
}

/// Copies both ways, as the references do it.
pub(crate) async fn copy(
    mut near: impl AsyncRead + AsyncWrite + Unpin,
    mut far: impl AsyncRead + AsyncWrite + Unpin,
) -> io::Result<()> {
    copy_bidirectional_with_sizes(&mut near, &mut far, PIECE, PIECE).await.map(drop)
}
