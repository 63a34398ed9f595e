//! TLS: certificates verified against the system's roots plus the administrator's own, never not at all.
//!
//! | room | concern |
//! |---|---|
//! | [`certificate`] | what a certificate says of itself |
//! | `verify` | who is trusted, and what is said of who is not |
//! | [`trust`] | the dialling end: what is read anew, and the handshake |
//! | [`listener`] | the listening end: its files are taken anew when they change |
//! | [`expiry`] | certificates that end soon |
//! | `negotiate` | the handshake, by rustls |
//! | `stream` | a connection behind it, with records of our own (`record`) |

use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;

pub mod certificate;
pub mod expiry;
#[cfg(test)]
pub(crate) mod fake;
pub mod listener;
mod negotiate;
mod record;
mod stream;
pub mod trust;
mod verify;

pub use listener::Listener;
pub use stream::Stream;
pub use trust::{End, Trust, Unsecured};
pub use verify::{Fault, Finding, Shown};

/// What a worker with a client certificate offers in ALPN. Only who offers it is asked for one, so no browser
/// asks its user to choose a certificate.
pub(super) const ALPN: &[u8] = b"dworker.v1";

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
    /// The client certificate can't be used.
    #[error("client_certificate and client_key can't be used together: {0}")]
    Client(#[source] rustls::Error),
    /// Who signs client certificates.
    #[error("appliance.client_ca_file: {0}")]
    ClientAuthorities(String),
    /// A file.
    #[error(transparent)]
    File(#[from] crate::config::FileError),
}

/// The dialling end: trusts the system's roots and `extra`.
///
/// # Errors
/// One of `extra` is no root, or there is nothing to trust.
pub fn client(extra: Vec<CertificateDer<'static>>) -> Result<Arc<Trust>, TlsError> {
    Trust::of(extra)
}

/// The listening end: its certificate with the rest of the chain, and its private key.
///
/// # Errors
/// rustls does not take them.
pub fn server(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<Listener>, TlsError> {
    Listener::of(chain, key)
}
