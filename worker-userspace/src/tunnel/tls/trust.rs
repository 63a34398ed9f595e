//! The dialling end of TLS: whom it trusts, and what it shows.
//!
//! What must hold: files are read anew for each dial, so that a certificate that was replaced needs no restart;
//! files that can't be used are told, and what was read before them stays in use.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;

use super::certificate::facts;
use super::expiry::{Expiry, Source};
use super::verify::{Attentive, Shown};
use super::{ALPN, TlsError};
use crate::config::{TlsFiles, read_roots, read_roots_directory};
use crate::tunnel::dial::Words;

/// The files of a dialling end.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// Certificates trusted beside the system's (`ca_file`).
    pub ca_file: Option<PathBuf>,
    /// A directory of such (`ca_dir`).
    pub ca_dir: Option<PathBuf>,
    /// What is shown to who asks (`client_certificate`, `client_key`).
    pub identity: Option<TlsFiles>,
}

/// Whom a dialling end trusts.
#[derive(Debug)]
pub struct Trust {
    /// `None`: it never changes.
    files: Option<(Files, Expiry)>,
    ready: Mutex<Ready>,
    /// What was said of files that can't be used.
    said: Mutex<Vec<String>>,
}

#[derive(Debug, Clone)]
struct Ready {
    config: ClientConfig,
    judge: Arc<WebPkiServerVerifier>,
    roots: Arc<RootCertStore>,
}

/// All that was read of the files.
struct Read {
    ready: Ready,
    /// What was left out.
    warnings: Vec<String>,
}

impl Trust {
    /// The system's roots and `extra`, for ever.
    ///
    /// # Errors
    /// One of `extra` is no root, or there is nothing to trust.
    pub fn of(extra: Vec<CertificateDer<'static>>) -> Result<Arc<Trust>, TlsError> {
        let mut warnings = Vec::new();
        let ready = ready(extra, None, &mut warnings)?;
        let trust = Trust { files: None, ready: Mutex::new(ready), said: Mutex::default() };
        trust.say(warnings);
        Ok(Arc::new(trust))
    }

    /// The system's roots and what is in the files.
    ///
    /// # Errors
    /// A file can't be used, or there is nothing to trust.
    pub fn read(files: Files, expiry: Expiry) -> Result<Arc<Trust>, TlsError> {
        let Read { ready, warnings } = read(&files, &expiry)?;
        let trust = Trust { files: Some((files, expiry)), ready: Mutex::new(ready), said: Mutex::default() };
        trust.say(warnings);
        Ok(Arc::new(trust))
    }

    /// Reads the files anew.
    pub async fn renew(&self) {
        let Some((files, expiry)) = self.files.clone() else { return };
        let reading = tokio::task::spawn_blocking(move || read(&files, &expiry));
        match reading.await {
            Ok(Ok(Read { ready, warnings })) => {
                *self.ready.lock().unwrap_or_else(PoisonError::into_inner) = ready;
                self.say(warnings);
            }
            Ok(Err(error)) => self.say(vec![format!("what was trusted before stays in use: {error}")]),
            Err(error) => tracing::error!("reading the trusted certificates: {error}"),
        }
    }

    /// What is trusted now, for a handshake of another kind than a worker's.
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::new(self.ready.lock().unwrap_or_else(PoisonError::into_inner).config.clone())
    }

    /// Each line once, until it is not true any more.
    fn say(&self, lines: Vec<String>) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        for line in lines.iter().filter(|line| !said.contains(line)) {
            tracing::warn!("{line}");
        }
        *said = lines;
    }

    /// What one handshake goes by, and where it puts what it was shown. Nothing is resumed: a handshake that is
    /// verified each time needs no thought about what was trusted when.
    pub(in crate::tunnel) fn handshake(&self, words: Words) -> (Arc<ClientConfig>, Arc<OnceLock<Shown>>) {
        let Ready { mut config, judge, roots } =
            self.ready.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let shown = Arc::new(OnceLock::new());
        let verifier = Attentive { judge, roots, words, shown: shown.clone() };
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        (Arc::new(config), shown)
    }

    /// Writes down what was shown in a handshake that went well.
    pub(in crate::tunnel) fn note(&self, shown: &Shown) {
        if let Some((_, expiry)) = &self.files {
            expiry.note(Source::Dialled, shown.chain.clone());
        }
    }
}

fn read(files: &Files, expiry: &Expiry) -> Result<Read, TlsError> {
    let mut extra = Vec::new();
    let mut warnings = Vec::new();
    if let Some(path) = &files.ca_file {
        extra = read_roots(path)?;
        expiry.note(Source::AuthoritiesFile, facts(&extra));
    }
    if let Some(path) = &files.ca_dir {
        let (roots, faults) = read_roots_directory(path)?;
        expiry.note(Source::AuthoritiesDirectory, facts(&roots));
        warnings.extend(faults.iter().map(|fault| format!("ca_dir: left out: {fault}")));
        extra.extend(roots);
    }
    let identity = files.identity.as_ref().map(TlsFiles::read).transpose()?;
    if let Some((chain, _)) = &identity {
        expiry.note(Source::Client, facts(chain));
    }
    let ready = ready(extra, identity, &mut warnings)?;
    Ok(Read { ready, warnings })
}

fn ready(
    extra: Vec<CertificateDer<'static>>,
    identity: Option<crate::config::Identity>,
    warnings: &mut Vec<String>,
) -> Result<Ready, TlsError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    warnings
        .extend(system.errors.iter().map(|error| format!("a system root certificate was left out: {error}")));
    roots.add_parsable_certificates(system.certs);
    for certificate in extra {
        roots.add(certificate).map_err(TlsError::Root)?;
    }
    if roots.is_empty() {
        return Err(TlsError::NoRoots);
    }
    let roots = Arc::new(roots);
    // It fails where there are no roots only.
    let judge = WebPkiServerVerifier::builder(roots.clone()).build().map_err(|_| TlsError::NoRoots)?;
    let builder = ClientConfig::builder().with_webpki_verifier(judge.clone());
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let mut config = builder.with_client_auth_cert(chain, key).map_err(TlsError::Client)?;
            config.alpn_protocols = vec![ALPN.to_vec(), b"http/1.1".to_vec()];
            config
        }
    };
    config.resumption = Resumption::disabled();
    Ok(Ready { config, judge, roots })
}
