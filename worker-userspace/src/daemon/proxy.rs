//! Opens the entries for clients that know proxies, before whoever carries: the registry, or the uplink.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;

use super::listening::Listening;
use super::{Roles, StartError};
use crate::config;
use crate::drain::Drain;
use crate::entry::proxy::{Credentials, Proxy};
use crate::inspect::status::ProxyStatus;
use crate::route::Router;
use crate::sockets::name;

/// The entries, bound and not served yet.
pub(super) struct Entries {
    proxy: Proxy,
    http: Vec<TcpListener>,
    socks: Vec<TcpListener>,
    status: ProxyStatus,
}

/// Binds the entries. `None`: nobody carries what they would take.
pub(super) fn bind(
    roles: &Roles,
    config: &config::Proxy,
    listening: Listening<'_>,
    drain: &Drain,
) -> Result<Option<Entries>, StartError> {
    let router: Arc<dyn Router> = match (&roles.registry, &roles.uplink) {
        (Some(registry), _) => registry.clone(),
        (None, Some(uplink)) => uplink.clone(),
        (None, None) => return Ok(None),
    };
    let credentials = match &config.login {
        Some(login) => Some(Credentials::new(login.user.clone(), &login.read()?)),
        None => None,
    };
    let proxy = Proxy::new(router, roles.ledger.clone(), credentials, drain.clone());
    let bind = |key, addresses: &[SocketAddr]| {
        let bind = |&address| listening.on(key, name::ENTRY, address);
        addresses.iter().map(bind).collect::<Result<Vec<TcpListener>, _>>()
    };
    let (http, socks) = (bind("proxy.http", &config.http)?, bind("proxy.socks", &config.socks)?);
    let bound = |listeners: &[TcpListener]| listeners.iter().flat_map(TcpListener::local_addr).collect();
    let user = config.login.as_ref().map(|login| login.user.clone());
    let status = ProxyStatus { http: bound(&http), socks: bound(&socks), user };
    Ok(Some(Entries { proxy, http, socks, status }))
}

impl Entries {
    /// Serves them. What `status` shows of them is returned.
    pub(super) fn serve(self, drain: &Drain) -> ProxyStatus {
        let Entries { proxy, http, socks, status } = self;
        for listener in http {
            drain.spawn("HTTP entry", proxy.clone().serve_http(listener));
        }
        for listener in socks {
            drain.spawn("SOCKS entry", proxy.clone().serve_socks(listener));
        }
        for (protocol, addresses) in [("HTTP CONNECT", &status.http), ("SOCKS5", &status.socks)] {
            for address in addresses {
                tracing::info!(listen = %address, "takes {protocol}");
            }
        }
        status
    }
}
