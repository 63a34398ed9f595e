//! How an appliance is reached, by its workers and by the command line: its name, TCP, TLS.
//!
//! What must hold: what failed is told with the remedy, in the words that the administrator knows. Deadlines are the
//! caller's.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::tls::{End, Trust, Unsecured};
use super::transport::{Transport, Way};
use crate::connect;
use crate::target::{Host, Target};

/// What the administrator calls the things that may be to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Words {
    pub(super) url: &'static str,
    /// Where authorities are named.
    pub(super) authorities: &'static str,
    /// Who is dialled, and where its certificate stands.
    pub(super) owner: &'static str,
    pub(super) own: &'static str,
    /// What to do where no TLS is spoken.
    pub(super) plain: &'static str,
}

impl Words {
    /// The keys of a worker's configuration.
    pub const CONFIGURATION: Words = Words {
        url: "`appliance_url`",
        authorities: "`ca_file` or `ca_dir`",
        owner: "the appliance",
        own: "`appliance.certificate`",
        plain: "check host and port of `appliance_url`, or whether the appliance has `insecure_plaintext`",
    };
    /// The options of a command.
    pub const OPTIONS: Words = Words {
        url: "`--url`",
        authorities: "`--ca-file`",
        plain: "check host and port of `--url`, or whether the appliance has `insecure_plaintext`",
        ..Words::CONFIGURATION
    };
    /// The keys of a worker's configuration, where it is a proxy that is dialled.
    pub(super) const PROXY: Words = Words {
        url: "`proxy_address`",
        owner: "the proxy",
        own: "its configuration",
        plain: "write \"http://\" in `proxy_address` if it is a plain proxy",
        ..Words::CONFIGURATION
    };
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
    #[error("TLS with {host}: {source}")]
    Tls {
        /// The name that the certificate must have.
        host: Host,
        /// Why.
        #[source]
        source: Unsecured,
    },
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
        let (tcp, _) = connect::first(addresses).await.map_err(|last| match last {
            Some((address, source)) => failed(address, source),
            None => resolve(io::Error::new(io::ErrorKind::NotFound, "it has no address")),
        })?;
        Ok(tcp)
    }

    /// Puts TLS on a connection, where it is not meant to be plain.
    ///
    /// # Errors
    /// The handshake fails: above all, nobody who is trusted vouches for the name.
    pub async fn secure(&self, way: Way) -> Result<Transport, DialError> {
        let Some(trust) = &self.tls else { return Ok(way.into()) };
        let host = &self.at.host;
        let failed = |source| DialError::Tls { host: host.clone(), source };
        let end = End::Appliance(self.words);
        Ok(match way {
            Way::Plain(tcp) => Transport::Tls(Box::new(trust.stream(tcp, host, end).await.map_err(failed)?)),
            Way::Tls(tls) => {
                Transport::TlsInTls(Box::new(trust.stream(*tls, host, end).await.map_err(failed)?))
            }
        })
    }
}
