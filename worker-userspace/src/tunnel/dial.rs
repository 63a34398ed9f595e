//! How an appliance is reached, by its workers and by the command line: its name, TCP, TLS.
//!
//! What must hold: what failed is told with the remedy, in the words that the administrator knows. Deadlines are the
//! caller's.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::tls::{Finding, Trust};
use super::transport::{Transport, tune};
use crate::connect;
use crate::target::{Host, Target};

/// What the administrator calls the things that may be to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Words {
    pub(super) url: &'static str,
    pub(super) authorities: &'static str,
}

impl Words {
    /// The keys of a worker's configuration.
    pub const CONFIGURATION: Words = Words { url: "`appliance_url`", authorities: "`ca_file` or `ca_dir`" };
    /// The options of a command.
    pub const OPTIONS: Words = Words { url: "`--url`", authorities: "`--ca-file`" };
}

/// Why an appliance was not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The appliance's name has no address.
    #[error("can't resolve {host}: {source}: check {} and this host's DNS", words.url)]
    Resolve {
        /// The name.
        host: Host,
        /// What the resolver says.
        #[source]
        source: io::Error,
        /// How the remedy is told.
        words: Words,
    },
    /// No address of the appliance took the connection.
    #[error("can't connect to {address}: {source}: check {} and what filters the way to it", words.url)]
    Connect {
        /// The last address tried.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
        /// How the remedy is told.
        words: Words,
    },
    /// The TLS handshake failed.
    #[error("TLS with {host}: {}", told(.finding, .source, .words))]
    Tls {
        /// The name that the certificate must have.
        host: Host,
        /// Why.
        #[source]
        source: io::Error,
        /// What is wrong with its certificate, where that is why.
        finding: Option<Finding>,
        /// How the remedy is told.
        words: Words,
    },
}

fn told(finding: &Option<Finding>, error: &io::Error, words: &Words) -> String {
    if let Some(Finding { problem, remedy }) = finding {
        return format!("{problem}: {remedy}");
    }
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidMessage(_)) => format!(
            "{error}: what listens there speaks no TLS; check host and port of {}, or whether the appliance has \
             `insecure_plaintext`",
            words.url
        ),
        _ => error.to_string(),
    }
}

/// An appliance, and the way to it.
#[derive(Debug, Clone)]
pub struct Appliance {
    /// Its host, which its certificate must name, and its port.
    pub at: Target,
    /// TLS; `None` for plaintext.
    pub tls: Option<Arc<Trust>>,
    /// How failures are told.
    pub words: Words,
}

impl Appliance {
    /// Resolves its name, and connects to whichever address answers.
    ///
    /// # Errors
    /// No address, or none that takes the connection.
    pub async fn connect(&self) -> Result<TcpStream, DialError> {
        let Appliance { at: Target { host, port }, words, .. } = self;
        let resolve = |source| DialError::Resolve { host: host.clone(), source, words: *words };
        let addresses = match host {
            Host::Addr(addr) => vec![*addr],
            Host::Name(name) => {
                let found = tokio::net::lookup_host((name.as_str(), *port)).await.map_err(resolve)?;
                connect::interleaved(found.map(|address| address.ip()).collect())
            }
        };
        let addresses = addresses.into_iter().map(|addr| SocketAddr::new(addr, *port)).collect();
        let failed = |address, source| DialError::Connect { address, source, words: *words };
        let (tcp, address) = connect::first(addresses).await.map_err(|last| match last {
            Some((address, source)) => failed(address, source),
            None => resolve(io::Error::new(io::ErrorKind::NotFound, "it has no address")),
        })?;
        tune(&tcp).map_err(|source| failed(address, source))?;
        Ok(tcp)
    }

    /// Puts TLS on a connection, where it is not meant to be plain.
    ///
    /// # Errors
    /// The handshake fails: above all, nobody who is trusted vouches for the name.
    pub async fn secure(&self, tcp: TcpStream) -> Result<Transport, DialError> {
        let Some(trust) = &self.tls else { return Ok(Transport::Plain(tcp)) };
        let host = &self.at.host;
        let failed =
            |source, finding| DialError::Tls { host: host.clone(), source, finding, words: self.words };
        let name = match host {
            Host::Addr(addr) => ServerName::IpAddress((*addr).into()),
            Host::Name(name) => ServerName::try_from(name.as_str().to_owned())
                .map_err(|error| failed(io::Error::other(error), None))?,
        };
        trust.renew().await;
        let (config, shown) = trust.handshake(self.words);
        let result = TlsConnector::from(config).connect(name, tcp).await;
        let shown = shown.get();
        let tls = result.map_err(|error| failed(error, shown.and_then(|shown| shown.refused.clone())))?;
        if let Some(shown) = shown {
            trust.note(shown);
        }
        Ok(Transport::Tls(Box::new(tls.into())))
    }
}
