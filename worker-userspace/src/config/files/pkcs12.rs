//! A certificate with its chain and private key in one PKCS#12 file, as Windows and Java make them.
//!
//! PBES2 with AES is read, which OpenSSL 3 writes, and RC2 and 3DES, which older tools do.

use std::path::Path;
use std::sync::Arc;

use p12_keystore::{Pkcs12Archive, error::Error};
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{FileCause, FileError, Identity, Password, is_certificate, read_file};

/// The largest chain.
const LONGEST_CHAIN: usize = 10;

/// The identity in the file, and the file's mode.
pub(super) fn read(path: &Path, password: Option<&Password>) -> Result<(Identity, u32), FileError> {
    let about = |cause| FileError { path: path.to_owned(), cause };
    let (bytes, mode) = read_file(path).map_err(about)?;
    let identity = identity(&bytes, password.map_or("", Password::reveal)).map_err(about)?;
    Ok((identity, mode))
}

fn identity(bytes: &[u8], password: &str) -> Result<Identity, FileCause> {
    let archive = Pkcs12Archive::from_pkcs12(bytes, password).map_err(|error| match error {
        Error::MacError(_) | Error::UnpadError | Error::Pkcs5Error(_) => FileCause::WrongPassword,
        Error::UnsupportedEncryptionScheme | Error::UnsupportedMacAlgorithm => {
            FileCause::UnsupportedPkcs12(error.to_string())
        }
        _ => FileCause::DamagedPkcs12,
    })?;
    let mut keys = archive.keys.iter();
    let key = match (keys.next(), keys.len()) {
        (None, _) => return Err(FileCause::NoPkcs12Key),
        (Some(bag), 0) => bag.key.as_der().to_vec(),
        (Some(_), others) => return Err(FileCause::ManyKeys(others + 1)),
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
    let signer = aws_lc_rs::sign::any_supported_type(&key).map_err(|_| FileCause::UnusableKey)?;
    let mut certificates: Vec<CertificateDer<'static>> =
        archive.certs.iter().map(|bag| CertificateDer::from(bag.cert.as_der().to_vec())).collect();
    // The names of bags and their order are the tool's own; the key knows its certificate.
    let own = certificates.iter().position(|der| {
        is_certificate(der) && CertifiedKey::new(vec![der.clone()], Arc::clone(&signer)).keys_match().is_ok()
    });
    let mut chain = vec![certificates.swap_remove(own.ok_or(FileCause::NoPkcs12Certificate)?)];
    while chain.len() < LONGEST_CHAIN {
        let issued = |der: &CertificateDer<'_>| Some(names(chain.last()?)?.1 == names(der)?.0);
        let Some(next) = certificates.iter().position(|der| issued(der) == Some(true)) else { break };
        chain.push(certificates.swap_remove(next));
    }
    Ok((chain, key))
}

/// Subject and issuer, encoded.
fn names(der: &CertificateDer<'_>) -> Option<(Vec<u8>, Vec<u8>)> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    Some((certificate.subject().as_raw().to_vec(), certificate.issuer().as_raw().to_vec()))
}
