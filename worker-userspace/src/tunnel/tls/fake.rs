//! An end of TLS for tests.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// A certificate for `localhost`, and a server that has it.
pub(crate) fn identity() -> (CertificateDer<'static>, Arc<ServerConfig>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
    let certificate = made.cert.der().clone();
    let config = ServerConfig::builder().with_no_client_auth();
    (certificate.clone(), Arc::new(config.with_single_cert(vec![certificate], key).unwrap()))
}
