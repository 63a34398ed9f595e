//! Resolves a target in the worker's network and connects to it.
//!
//! Names go through the system's resolver (`getaddrinfo`), so that `/etc/hosts`, search domains and
//! nsswitch mean here what they mean to every other program of the worker's host. Of several addresses the first
//! that answers is taken ([`connect`]).

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use dns_lookup::{AddrInfoHints, LookupErrorKind, SockType, getaddrinfo};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::policy::Policy;
use crate::connect;
use crate::refusal::{Code, Refusal};
use crate::target::{Host, Pattern, Target};

/// Look-ups under way at once; each takes a thread.
const LOOKUPS: usize = 128;
/// A target that went away without a word is noticed after idle time, so that nothing is held for ever.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Dials targets under a policy.
#[derive(Debug)]
pub struct Dialler {
    /// Taken out for each dial, so that a change waits for none.
    policy: RwLock<Arc<Policy>>,
    longest: Duration,
    lookups: Arc<Semaphore>,
}

/// A connection to a target.
#[derive(Debug)]
pub struct Dialled {
    /// The connection.
    pub socket: TcpStream,
    /// The address that answered.
    pub address: SocketAddr,
}

impl Dialler {
    /// A dialler; no dial takes longer than `longest`.
    pub fn new(policy: Policy, longest: Duration) -> Dialler {
        Dialler { policy: RwLock::new(Arc::new(policy)), longest, lookups: Arc::new(Semaphore::new(LOOKUPS)) }
    }

    /// The policy of this moment.
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces what the appliance pushed; see [`Policy::pushed`]. Dials that are under way are not touched. Not for
    /// two callers at once: one's change would be lost.
    pub fn push(&self, patterns: Option<&[Pattern]>) {
        // Made before the lock is taken: of very many patterns it takes a while.
        let policy = Arc::new(self.policy().pushed(patterns));
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = policy;
    }

    /// Connects to `target` within `deadline` or this dialler's own, whichever is shorter.
    ///
    /// # Errors
    /// Denied by policy, not resolved, or what the kernel said of the last address tried.
    pub async fn dial(&self, target: &Target, deadline: Duration) -> Result<Dialled, Refusal> {
        let allowed = deadline.min(self.longest);
        let until = Instant::now() + allowed;
        let policy = self.policy();
        policy.check_target(target)?;
        let addresses = match &target.host {
            Host::Addr(addr) => vec![*addr],
            Host::Name(name) => timeout_at(until, self.resolve(name.as_str())).await.map_err(|_| {
                Refusal::new(Code::ResolveFailed, format!("resolving {name}: no answer within {allowed:?}"))
            })??,
        };
        let (mut allowed_addresses, mut denied) = (VecDeque::new(), None);
        for address in addresses {
            match policy.check_addr(target, address) {
                Ok(()) => allowed_addresses.push_back(SocketAddr::new(address, target.port)),
                Err(refusal) => denied = Some(refusal),
            }
        }
        if allowed_addresses.is_empty() {
            let nothing = || Refusal::new(Code::NameNotFound, format!("{} has no address", target.host));
            return Err(denied.unwrap_or_else(nothing));
        }
        timeout_at(until, connect(allowed_addresses)).await.unwrap_or_else(|_| {
            Err(Refusal {
                code: Code::Timeout,
                errno: libc::ETIMEDOUT,
                text: format!("dialling {target}: no answer within {allowed:?}"),
            })
        })
    }

    async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, Refusal> {
        let failed = |what: &dyn std::fmt::Display| {
            Refusal::new(Code::ResolveFailed, format!("resolving {name}: {what}"))
        };
        let permit = self.lookups.clone().acquire_owned().await.map_err(|e| failed(&e))?;
        let owned = name.to_owned();
        let lookup = tokio::task::spawn_blocking(move || {
            // Held until the thread is done, even where nobody waits for it any more.
            let _permit = permit;
            let hints = AddrInfoHints { socktype: SockType::Stream.into(), ..AddrInfoHints::default() };
            getaddrinfo(Some(&owned), None, Some(hints))
                .map(|all| all.map(|a| a.map(|a| a.sockaddr.ip())).collect())
        });
        let addresses: io::Result<Vec<IpAddr>> = match lookup.await.map_err(|e| failed(&e))? {
            Ok(addresses) => addresses,
            Err(error) => {
                return Err(match error.kind() {
                    LookupErrorKind::NoName | LookupErrorKind::NoData => Refusal::new(
                        Code::NameNotFound,
                        format!("{name}: the worker's resolver knows no such name"),
                    ),
                    _ => failed(&io::Error::from(error)),
                });
            }
        };
        Ok(connect::interleaved(addresses.map_err(|e| failed(&e))?))
    }
}

async fn connect(addresses: VecDeque<SocketAddr>) -> Result<Dialled, Refusal> {
    let dialling = |address, e: io::Error| Refusal::from_io(&e, format_args!("dialling {address}"));
    let (socket, address) = connect::first(addresses).await.map_err(|failed| match failed {
        Some((address, error)) => dialling(address, error),
        None => Refusal::new(Code::NameNotFound, "no address"),
    })?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE);
    socket
        .set_nodelay(true)
        .and_then(|()| SockRef::from(&socket).set_tcp_keepalive(&keepalive))
        .map_err(|error| dialling(address, error))?;
    Ok(Dialled { socket, address })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn dialler(allow: &[&str]) -> Dialler {
        let allow: Vec<_> = allow.iter().map(|t| t.parse().unwrap()).collect();
        Dialler::new(Policy::new(Some(&allow), &[]), Duration::from_secs(10))
    }

    async fn dial(dialler: &Dialler, host: &str, port: u16) -> Result<Dialled, Refusal> {
        dialler.dial(&Target { host: host.parse().unwrap(), port }, Duration::from_secs(10)).await
    }

    #[tokio::test]
    async fn an_allowed_target_is_dialled_and_its_address_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let dialled = dial(&dialler(&["127.0.0.1"]), "127.0.0.1", address.port()).await.unwrap();
        assert_eq!(dialled.address, address);
        // By name too: `localhost` is in every hosts file, and its address is named in the policy.
        let by_name = dialler(&["localhost", "127.0.0.0/8", "::1"]);
        assert_eq!(dial(&by_name, "localhost", address.port()).await.unwrap().address, address);
    }

    #[tokio::test]
    async fn what_failed_is_told() {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let refused = dial(&dialler(&["127.0.0.1"]), "127.0.0.1", port).await.unwrap_err();
        assert_eq!((refused.code, refused.errno), (Code::Refused, libc::ECONNREFUSED));
        let denied = dial(&dialler(&["192.0.2.1"]), "127.0.0.1", port).await.unwrap_err();
        assert_eq!(denied.code, Code::Denied);
        let rebound = dial(&dialler(&["localhost"]), "localhost", port).await.unwrap_err();
        assert_eq!(rebound.code, Code::Denied);
        assert!(rebound.text.contains("loopback"), "{rebound}");
    }
}
