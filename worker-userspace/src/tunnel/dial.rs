//! How an appliance is reached, by its workers and by the command line: its name, TCP, TLS.
//!
//! What must hold: what failed is told with the remedy, in the words that the administrator knows. Deadlines are the
//! caller's.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::transport::Transport;
use crate::connect;
use crate::target::{Host, Target};

/// What the administrator calls the things that may be to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Words {
    url: &'static str,
    ca_file: &'static str,
}

impl Words {
    /// The keys of a worker's configuration.
    pub const CONFIGURATION: Words = Words { url: "`appliance_url`", ca_file: "`ca_file`" };
    /// The options of a command.
    pub const OPTIONS: Words = Words { url: "`--url`", ca_file: "`--ca-file`" };
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
    #[error("TLS with {host}: {source}{}", tls_remedy(.source, .words))]
    Tls {
        /// The name that the certificate must have.
        host: Host,
        /// Why.
        #[source]
        source: io::Error,
        /// How the remedy is told.
        words: Words,
    },
}

fn tls_remedy(error: &io::Error, words: &Words) -> String {
    use rustls::{CertificateError as C, Error as E};
    let Words { url, ca_file } = words;
    match error.get_ref().and_then(|inner| inner.downcast_ref::<E>()) {
        Some(E::InvalidCertificate(C::UnknownIssuer | C::BadSignature)) => {
            format!(": put the certificate of the CA that signed it into a PEM file and name it in {ca_file}")
        }
        Some(E::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. })) => {
            format!(
                ": write a name that the certificate has in {url}, or renew the certificate with this one"
            )
        }
        Some(E::InvalidCertificate(C::Expired | C::ExpiredContext { .. })) => {
            ": renew the appliance's certificate, or set this host's clock".into()
        }
        Some(E::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. })) => {
            ": set this host's clock".into()
        }
        // What `openssl req -x509` makes unless told otherwise. The error's type is webpki's; we have only its name.
        Some(E::InvalidCertificate(C::Other(other))) if other.to_string().contains("CaUsedAsEndEntity") => {
            ": it is a CA's own; make the appliance one with `CA:FALSE` and its name as `subjectAltName`"
                .into()
        }
        Some(E::InvalidMessage(_)) => format!(
            ": what listens there speaks no TLS; check host and port of {url}, or whether the appliance has \
             `insecure_plaintext`"
        ),
        _ => String::new(),
    }
}

/// An appliance, and the way to it.
#[derive(Debug, Clone)]
pub struct Appliance {
    /// Its host, which its certificate must name, and its port.
    pub at: Target,
    /// TLS; `None` for plaintext.
    pub tls: Option<Arc<ClientConfig>>,
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
    pub async fn secure(&self, way: Transport) -> Result<Transport, DialError> {
        let Some(config) = &self.tls else { return Ok(way) };
        let host = &self.at.host;
        let failed = |source| DialError::Tls { host: host.clone(), source, words: self.words };
        let name = match host {
            Host::Addr(addr) => ServerName::IpAddress((*addr).into()),
            Host::Name(name) => ServerName::try_from(name.as_str().to_owned())
                .map_err(|error| failed(io::Error::other(error)))?,
        };
        let connector = TlsConnector::from(config.clone());
        Ok(match way {
            Transport::Plain(tcp) => {
                Transport::Tls(Box::new(connector.connect(name, tcp).await.map_err(failed)?.into()))
            }
            Transport::Tls(tls) => {
                Transport::TlsInTls(Box::new(connector.connect(name, *tls).await.map_err(failed)?.into()))
            }
            // Two proxies one behind the other are not configured.
            Transport::TlsInTls(_) => return Err(failed(io::Error::other("TLS in TLS in TLS"))),
        })
    }
}
