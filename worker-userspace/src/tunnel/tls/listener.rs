//! The listening end of TLS: its certificate, and whose client certificates it takes.
//!
//! What must hold: files that change are judged before they are used, as a whole; what can't be used changes
//! nothing; connections that are open keep what they began with.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::BytesMut;
use rustls::server::{Acceptor, NoServerSessionStorage, UnbufferedServerConnection, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::certificate::{Facts, facts};
use super::expiry::{Expiry, Source};
use super::negotiate::{more, negotiate};
use super::stream::Stream;
use super::verify::{PEER, Telling};
use super::{ALPN, TlsError};
use crate::config::{self, Fingerprint, TlsFiles, read_roots};
use crate::drain::Drain;

/// How often files are looked at. They are small, and are only read.
const LOOK: Duration = Duration::from_secs(5);
/// Time for a client to hear why its certificate is not taken.
const FAREWELL: Duration = Duration::from_secs(1);
/// Bytes of a client that is not taken which are read, so that what it is told is not lost by a reset.
const LEFT: u64 = 64 * 1024;

/// The files of a listening end.
#[derive(Debug, Clone)]
pub struct Files {
    /// What is shown.
    pub identity: TlsFiles,
    /// Who signs the client certificates that are taken; `None`: none is asked for.
    pub client_ca_file: Option<PathBuf>,
    /// Whether a worker must have one.
    pub required: bool,
}

/// A listening end.
#[derive(Debug)]
pub struct Listener {
    current: RwLock<Ready>,
    /// Whether a worker must have a client certificate.
    required: bool,
    /// What stood in the files when they were first read; `None`: there are none.
    first: Option<Fingerprint>,
}

#[derive(Debug, Clone)]
struct Ready {
    config: Arc<ServerConfig>,
    /// The same for who offers a client certificate.
    asking: Option<Arc<ServerConfig>>,
}

/// What was read of the files.
struct Read {
    ready: Ready,
    chain: Vec<Facts>,
    authorities: Vec<Facts>,
}

/// A connection, and what its client proved to be.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: Stream<TcpStream>,
    /// False where it needs a client certificate for the tunnel, and has shown none.
    pub is_certified: bool,
}

impl Listener {
    /// This certificate, for ever.
    ///
    /// # Errors
    /// rustls does not take it.
    pub fn of(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Arc<Listener>, TlsError> {
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
        let config = ours(config.map_err(TlsError::Identity)?);
        Ok(Arc::new(Listener {
            current: RwLock::new(Ready { config, asking: None }),
            required: false,
            first: None,
        }))
    }

    /// What is in the files.
    ///
    /// # Errors
    /// One of them can't be used.
    pub fn read(files: &Files, expiry: &Expiry) -> Result<Arc<Listener>, TlsError> {
        // Before they are read: what changes in between is seen later.
        let first = Some(files.fingerprint());
        let read = read(files)?;
        read.note(expiry);
        Ok(Arc::new(Listener { current: RwLock::new(read.ready), required: files.required, first }))
    }

    /// The handshake. Deadlines are the caller's.
    ///
    /// # Errors
    /// The handshake fails.
    pub async fn accept(&self, mut tcp: TcpStream, peer: SocketAddr) -> io::Result<Accepted> {
        let Ready { config, asking } = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let (config, incoming) = match asking {
            None => (config, BytesMut::new()),
            Some(asking) => {
                let (offers, incoming) = hello(&mut tcp).await?;
                (if offers { asking } else { config }, incoming)
            }
        };
        let end = UnbufferedServerConnection::new(config).map_err(io::Error::other)?;
        match PEER.scope(peer, negotiate(tcp, end, incoming)).await {
            Ok(stream) => {
                let is_certified = !self.required || stream.has_shown();
                Ok(Accepted { stream, is_certified })
            }
            Err((error, mut tcp)) => {
                // The alert is on its way. Closing with bytes unread would be a reset that overtakes it.
                let read = async {
                    tcp.shutdown().await?;
                    tokio::io::copy(&mut tcp.take(LEFT), &mut tokio::io::sink()).await
                };
                let _ = timeout(FAREWELL, read).await;
                Err(error)
            }
        }
    }

    /// Takes files that have changed, until the drain begins.
    pub async fn watch(self: Arc<Self>, files: Files, expiry: Expiry, drain: Drain) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut used = self.first;
        let mut before = None;
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = drain.stopping() => return,
            }
            let (look, here) = (files.clone(), (self.clone(), expiry.clone()));
            let fingerprint = match tokio::task::spawn_blocking(move || look.fingerprint()).await {
                Ok(fingerprint) => fingerprint,
                Err(error) => {
                    tracing::error!("looking at the TLS files: {error}");
                    continue;
                }
            };
            let used = used.get_or_insert(fingerprint);
            // Certificate and key are replaced one after the other: what stands still is judged.
            if fingerprint != *used && before == Some(fingerprint) {
                let (files, (listener, expiry)) = (files.clone(), here);
                let taking = tokio::task::spawn_blocking(move || listener.take(&files, &expiry));
                match taking.await {
                    Ok(Ok(leaf)) => tracing::info!("the TLS files have changed; now in use: {leaf}"),
                    Ok(Err(why)) => tracing::error!(
                        "the TLS files have changed and can't be used; those from before stay in use: {why}"
                    ),
                    Err(error) => tracing::error!("taking the TLS files: {error}"),
                }
                // Bad ones are told once.
                *used = fingerprint;
            }
            before = Some(fingerprint);
        }
    }

    /// Judges the files, and uses them. What is in use then is returned.
    fn take(&self, files: &Files, expiry: &Expiry) -> Result<String, String> {
        let read = read(files).map_err(|error| error.to_string())?;
        let now = expiry.now();
        if let Some(over) = read.chain.iter().find(|facts| facts.not_after < now) {
            return Err(format!("a certificate has expired ({over}): renew it, or set this host's clock"));
        }
        if let Some(early) = read.chain.first().filter(|facts| facts.not_before > now) {
            return Err(format!("the certificate is not valid yet ({early}): set this host's clock"));
        }
        read.note(expiry);
        let leaf = read.chain.first().map(ToString::to_string).unwrap_or_default();
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = read.ready;
        Ok(leaf)
    }
}

impl Files {
    /// Of an appliance; `None` where it has no TLS.
    pub fn of(appliance: &config::Appliance) -> Option<Files> {
        let clients = appliance.clients.as_ref();
        Some(Files {
            identity: appliance.tls.clone()?,
            client_ca_file: clients.map(|clients| clients.ca_file.clone()),
            required: clients.is_some_and(|clients| clients.required),
        })
    }

    /// Whether they can be used.
    ///
    /// # Errors
    /// One of them can't.
    pub fn check(&self) -> Result<(), TlsError> {
        read(self).map(drop)
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.identity.paths().into_iter().chain(self.client_ca_file.as_deref()))
    }
}

impl Read {
    fn note(&self, expiry: &Expiry) {
        expiry.note(Source::Appliance, self.chain.clone());
        if !self.authorities.is_empty() {
            expiry.note(Source::ClientAuthorities, self.authorities.clone());
        }
    }
}

/// Reads a client's first message, and says whether it offers our protocol. All that was read is given back.
async fn hello(tcp: &mut TcpStream) -> io::Result<(bool, BytesMut)> {
    let (mut incoming, mut acceptor) = (BytesMut::new(), Acceptor::default());
    loop {
        let before = incoming.len();
        more(tcp, &mut incoming).await?;
        let mut new = &incoming[before..];
        while !new.is_empty() {
            acceptor.read_tls(&mut new)?;
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let mut offered = accepted.client_hello().alpn().into_iter().flatten();
                return Ok((offered.any(|one| one == ALPN), incoming));
            }
            // The handshake itself finds it again, and tells the client.
            Err(_) => return Ok((false, incoming)),
        }
    }
}

fn read(files: &Files) -> Result<Read, TlsError> {
    let (chain, key) = files.identity.read()?;
    let shown = facts(&chain);
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(TlsError::Identity)?;
    let mut authorities = Vec::new();
    let asking = match &files.client_ca_file {
        None => None,
        Some(path) => {
            let certificates = read_roots(path)?;
            authorities = facts(&certificates);
            let mut roots = RootCertStore::empty();
            for certificate in certificates {
                roots.add(certificate).map_err(|error| TlsError::ClientAuthorities(error.to_string()))?;
            }
            let roots = Arc::new(roots);
            let judge = WebPkiClientVerifier::builder(roots.clone()).allow_unauthenticated().build();
            let judge = judge.map_err(|error| TlsError::ClientAuthorities(error.to_string()))?;
            let verifier = Arc::new(Telling { judge, roots });
            let mut config = ServerConfig::builder()
                .with_client_cert_verifier(verifier)
                .with_single_cert(chain, key)
                .map_err(TlsError::Identity)?;
            config.alpn_protocols = vec![ALPN.to_vec()];
            // What is resumed is not verified again.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            Some(ours(config))
        }
    };
    Ok(Read { ready: Ready { config: ours(config), asking }, chain: shown, authorities })
}

/// What all have: secrets for records of our own.
fn ours(mut config: ServerConfig) -> Arc<ServerConfig> {
    config.enable_secret_extraction = true;
    Arc::new(config)
}
