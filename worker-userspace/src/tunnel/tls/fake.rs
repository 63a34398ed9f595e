//! An end of TLS for tests.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// A certificate for `localhost`, and its key.
pub(crate) fn key() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    made(&rcgen::PKCS_ECDSA_P256_SHA256)
}

/// As [`key`], of RSA.
pub(crate) fn rsa() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    made(&rcgen::PKCS_RSA_SHA256)
}

fn made(algorithm: &'static rcgen::SignatureAlgorithm) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
    let parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = parameters.self_signed(&key).unwrap();
    (certificate.der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der()).into())
}

/// A certificate for `localhost`, and a server that has it.
pub(crate) fn identity() -> (CertificateDer<'static>, Arc<ServerConfig>) {
    let (certificate, key) = key();
    let config = ServerConfig::builder().with_no_client_auth();
    (certificate.clone(), Arc::new(config.with_single_cert(vec![certificate], key).unwrap()))
}
