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

/// Opens the entries, and says what `status` shows of them.
pub(super) fn start(
    roles: &Roles,
    config: &config::Proxy,
    listening: Listening<'_>,
    drain: &Drain,
) -> Result<Option<ProxyStatus>, StartError> {
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
    // All are bound before one is served: a start that fails has accepted nobody.
    let bind = |key, addresses: &[SocketAddr]| {
        let bind = |&address| listening.on(key, name::ENTRY, address);
        addresses.iter().map(bind).collect::<Result<Vec<TcpListener>, _>>()
    };
    let (http, socks) = (bind("proxy.http", &config.http)?, bind("proxy.socks", &config.socks)?);
    let bound = |listeners: &[TcpListener]| listeners.iter().flat_map(TcpListener::local_addr).collect();
    let user = config.login.as_ref().map(|login| login.user.clone());
    let status = ProxyStatus { http: bound(&http), socks: bound(&socks), user };
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
    Ok(Some(status))
}
