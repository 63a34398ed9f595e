//! The dialling end of TLS: whom it trusts, and what it shows.
//!
//! What must hold: files are read anew, so that a certificate that was replaced needs no restart; files that can't be
//! used are told, and what was read before them stays in use. What a worker shows is for appliances only.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use rustls::client::{Resumption, UnbufferedClientConnection, WebPkiServerVerifier};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_rustls::{TlsConnector, TlsStream};

use super::certificate::facts;
use super::expiry::{Expiry, Source};
use super::negotiate::negotiate;
use super::stream::Stream;
use super::verify::{Attentive, Finding, Shown};
use super::{ALPN, TlsError};
use crate::config::{TlsFiles, read_roots, read_roots_directory};
use crate::target::Host;
use crate::tunnel::dial::Words;

/// How long what was read counts for a proxy, which is dialled for each target; an appliance seldom is.
const FRESH: Duration = Duration::from_secs(5);

/// Whom a handshake is with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// An appliance.
    Appliance(Words),
    /// A worker's proxy.
    Proxy,
}

impl End {
    fn words(self) -> Words {
        match self {
            End::Appliance(words) => words,
            End::Proxy => Words::PROXY,
        }
    }

    fn source(self) -> Source {
        match self {
            End::Appliance(_) => Source::Dialled,
            End::Proxy => Source::Proxy,
        }
    }
}

/// Why a connection did not come to TLS. One line with the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.text())]
pub struct Unsecured {
    source: io::Error,
    /// What is wrong with the certificate, where that is why.
    finding: Option<Finding>,
    /// What to do where no TLS is spoken.
    plain: &'static str,
}

impl Unsecured {
    /// By something else than a certificate.
    pub(in crate::tunnel) fn by(source: io::Error, end: End) -> Unsecured {
        Unsecured { source, finding: None, plain: end.words().plain }
    }

    /// What is wrong with the certificate, where that is why.
    pub fn finding(&self) -> Option<&Finding> {
        self.finding.as_ref()
    }

    fn text(&self) -> String {
        let Unsecured { source, finding, plain } = self;
        if let Some(Finding { problem, remedy, .. }) = finding {
            return format!("{problem}: {remedy}");
        }
        match source.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(rustls::Error::InvalidMessage(_)) => {
                format!("{source}: what listens there speaks no TLS; {plain}")
            }
            _ => source.to_string(),
        }
    }
}

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
    /// When they were read.
    read: Mutex<Instant>,
    /// What was said of files that can't be used.
    said: Mutex<Vec<String>>,
}

#[derive(Debug, Clone)]
struct Ready {
    config: ClientConfig,
    /// The same with what is shown to an appliance that asks.
    showing: Option<ClientConfig>,
    judge: Arc<WebPkiServerVerifier>,
    roots: Arc<RootCertStore>,
}

type Prepared = (ServerName<'static>, Arc<ClientConfig>, Arc<OnceLock<Shown>>);

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
        Ok(Trust::new(None, Read { ready, warnings }, Instant::now()))
    }

    /// The system's roots and what is in the files.
    ///
    /// # Errors
    /// A file can't be used, or there is nothing to trust.
    pub fn read(files: Files, expiry: Expiry) -> Result<Arc<Trust>, TlsError> {
        let now = Instant::now();
        let read = read(&files, &expiry)?;
        Ok(Trust::new(Some((files, expiry)), read, now))
    }

    fn new(files: Option<(Files, Expiry)>, Read { ready, warnings }: Read, now: Instant) -> Arc<Trust> {
        let trust = Trust { files, ready: Mutex::new(ready), read: Mutex::new(now), said: Mutex::default() };
        trust.say(warnings);
        Arc::new(trust)
    }

    /// TLS on a connection to `host`, by what is trusted now. Deadlines are the caller's.
    ///
    /// # Errors
    /// The handshake fails: above all, nobody who is trusted vouches for the name.
    pub async fn secure<S>(&self, io: S, host: &Host, end: End) -> Result<TlsStream<S>, Unsecured>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (name, config, shown) = self.prepare(host, end).await?;
        let result = TlsConnector::from(config).connect(name, io).await;
        self.judge(result.map(TlsStream::from), &shown, end)
    }

    /// As [`secure`](Self::secure), for much data.
    ///
    /// # Errors
    /// As there.
    pub async fn stream<S>(&self, io: S, host: &Host, end: End) -> Result<Stream<S>, Unsecured>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (name, config, shown) = self.prepare(host, end).await?;
        let client = UnbufferedClientConnection::new(config, name)
            .map_err(|error| Unsecured::by(io::Error::other(error), end))?;
        let result = negotiate(io, client, BytesMut::new()).await;
        self.judge(result.map_err(|(error, _)| error), &shown, end)
    }

    /// What a handshake with `host` goes by.
    async fn prepare(&self, host: &Host, end: End) -> Result<Prepared, Unsecured> {
        let name = match host {
            Host::Addr(addr) => ServerName::IpAddress((*addr).into()),
            Host::Name(name) => ServerName::try_from(name.as_str().to_owned())
                .map_err(|error| Unsecured::by(io::Error::other(error), end))?,
        };
        self.renew(end).await;
        let (config, shown) = self.handshake(end);
        Ok((name, config, shown))
    }

    /// What came of a handshake.
    fn judge<T>(&self, result: io::Result<T>, shown: &OnceLock<Shown>, end: End) -> Result<T, Unsecured> {
        let shown = shown.get();
        let tls = result.map_err(|source| Unsecured {
            source,
            finding: shown.and_then(|shown| shown.refused.clone()),
            plain: end.words().plain,
        })?;
        if let (Some(shown), Some((_, expiry))) = (shown, &self.files) {
            expiry.note(end.source(), shown.chain.clone());
        }
        Ok(tls)
    }

    /// Reads the files anew.
    async fn renew(&self, end: End) {
        let Some((files, expiry)) = self.files.clone() else { return };
        let now = Instant::now();
        {
            let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
            if end == End::Proxy && now.duration_since(*read) < FRESH {
                return;
            }
            *read = now;
        }
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
    fn handshake(&self, end: End) -> (Arc<ClientConfig>, Arc<OnceLock<Shown>>) {
        let Ready { config, showing, judge, roots } =
            self.ready.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut config = match end {
            End::Appliance(_) => showing.unwrap_or(config),
            End::Proxy => config,
        };
        let shown = Arc::new(OnceLock::new());
        let verifier = Attentive { judge, roots, words: end.words(), shown: shown.clone() };
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        // For records of our own.
        config.enable_secret_extraction = true;
        (Arc::new(config), shown)
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
    let mut config = builder.clone().with_no_client_auth();
    config.resumption = Resumption::disabled();
    let showing = |(chain, key)| {
        let mut config = builder.with_client_auth_cert(chain, key).map_err(TlsError::Client)?;
        config.alpn_protocols = vec![ALPN.to_vec(), b"http/1.1".to_vec()];
        config.resumption = Resumption::disabled();
        Ok::<_, TlsError>(config)
    };
    let showing = identity.map(showing).transpose()?;
    Ok(Ready { config, showing, judge, roots })
}
