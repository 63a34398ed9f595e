//! TLS: certificates verified against the system's roots plus the administrator's own, never not at all.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Why a TLS end could not be set up. Each names its file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be opened.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A file is no PEM, or lacks what it should hold.
    #[error("{}: {source}: it must hold {wanted} in PEM form", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        wanted: &'static str,
        /// What the parser says.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// No certificate at all to trust.
    #[error("no trusted root certificate: install the package `ca-certificates`, or set `ca_file`")]
    NoRoots,
    /// rustls refused what the files hold.
    #[error("{}: {source}", path.display())]
    Rustls {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let file = File::open(path).map_err(|source| TlsError::Read { path: path.into(), source })?;
    let pem = |source| TlsError::Pem { path: path.into(), wanted: "certificates", source };
    let all: Vec<_> =
        CertificateDer::pem_reader_iter(BufReader::new(file)).collect::<Result<_, _>>().map_err(pem)?;
    if all.is_empty() {
        return Err(pem(rustls_pki_types::pem::Error::NoItemsFound));
    }
    Ok(all)
}

/// The worker's end: trusts the system's roots and the certificates in `ca_file`.
///
/// # Errors
/// `ca_file` can't be used, or there is nothing to trust.
pub fn client(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::warn!("a system root certificate was left out: {error}");
    }
    roots.add_parsable_certificates(system.certs);
    if let Some(path) = ca_file {
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|source| TlsError::Rustls { path: path.into(), source })?;
        }
    }
    if roots.is_empty() {
        return Err(TlsError::NoRoots);
    }
    Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}

/// The appliance's end.
///
/// # Errors
/// A file can't be used, or the key does not fit the certificate.
pub fn server(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates(certificate)?;
    let file = File::open(key).map_err(|source| TlsError::Read { path: key.into(), source })?;
    let private = PrivateKeyDer::from_pem_reader(BufReader::new(file)).map_err(|source| TlsError::Pem {
        path: key.into(),
        wanted: "a private key",
        source,
    })?;
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|source| TlsError::Rustls { path: key.into(), source })?;
    Ok(Arc::new(config))
}
