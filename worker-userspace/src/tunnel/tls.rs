//! TLS: certificates verified against the system's roots plus the administrator's own, never not at all.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Why a TLS end could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No certificate at all to trust.
    #[error("no trusted root certificate: install the package `ca-certificates`, or set `ca_file`")]
    NoRoots,
    /// A certificate of `ca_file` can't be trusted as a root.
    #[error("ca_file: a certificate in it can't be used as a root: {0}")]
    Root(#[source] rustls::Error),
    /// The identity can't be used.
    #[error("appliance.certificate and appliance.key can't be used together: {0}")]
    Identity(#[source] rustls::Error),
}

/// The worker's end: trusts the system's roots and `extra`.
///
/// # Errors
/// One of `extra` is no root, or there is nothing to trust.
pub fn client(extra: Vec<CertificateDer<'static>>) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::warn!("a system root certificate was left out: {error}");
    }
    roots.add_parsable_certificates(system.certs);
    for certificate in extra {
        roots.add(certificate).map_err(TlsError::Root)?;
    }
    if roots.is_empty() {
        return Err(TlsError::NoRoots);
    }
    Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}

/// The appliance's end: its certificate with the rest of the chain, and its private key.
///
/// # Errors
/// rustls does not take them.
pub fn server(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
    Ok(Arc::new(config.map_err(TlsError::Identity)?))
}
