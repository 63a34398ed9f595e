//! Resolves a target in the worker's network and connects to it.
//!
//! Names go through the system's resolver (`getaddrinfo`), so that `/etc/hosts`, search domains and
//! nsswitch mean here what they mean to every other program of the worker's host. Of several addresses the first
//! that answers is taken ([`connect`]). What a proxy carries it resolves itself, and yet no policy by address is passed by.

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
use crate::tunnel::transport::Transport;
use crate::upstream::Upstream;

/// Look-ups under way at once; each takes a thread.
const LOOKUPS: usize = 128;
/// Time for this host's own resolver to tell where a name leads that a proxy resolves. A host behind a proxy may have
/// none that answers.
const OWN_LOOKUP: Duration = Duration::from_secs(1);
/// A target that went away without a word is noticed after idle time, so that nothing is held for ever.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Dials targets under a policy.
#[derive(Debug)]
pub struct Dialler {
    /// Taken out for each dial, so that a change waits for none.
    policy: RwLock<Arc<Policy>>,
    longest: Duration,
    lookups: Arc<Semaphore>,
    proxy: Option<Arc<Upstream>>,
}

/// A connection to a target.
#[derive(Debug)]
pub struct Dialled {
    /// The connection.
    pub socket: Transport,
    /// The address that answered: the target's, or the proxy's.
    pub address: SocketAddr,
    /// Whether a proxy dialled the target.
    pub proxied: bool,
}

impl Dialler {
    /// A dialler; no dial takes longer than `longest`.
    pub fn new(policy: Policy, longest: Duration) -> Dialler {
        let lookups = Arc::new(Semaphore::new(LOOKUPS));
        Dialler { policy: RwLock::new(Arc::new(policy)), longest, lookups, proxy: None }
    }

    /// The same, through a proxy to what is for it.
    pub fn through(self, proxy: Option<Arc<Upstream>>) -> Dialler {
        Dialler { proxy, ..self }
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
        if let Some(proxy) = self.proxy.as_ref().filter(|proxy| proxy.carries(target)) {
            return self.dial_through(proxy, &policy, target, until).await;
        }
        let addresses = match &target.host {
            Host::Addr(addr) => vec![*addr],
            Host::Name(name) => timeout_at(until, self.resolve(name.as_str())).await.map_err(|_| {
                Refusal::new(Code::ResolveFailed, format!("resolving {name}: no answer within {allowed:?}"))
            })??,
        };
        let (allowed_addresses, _) = judge(&policy, target, addresses)?;
        let addresses =
            allowed_addresses.into_iter().map(|addr| SocketAddr::new(addr, target.port)).collect();
        timeout_at(until, connect(addresses)).await.unwrap_or_else(|_| {
            Err(Refusal {
                code: Code::Timeout,
                errno: libc::ETIMEDOUT,
                text: format!("dialling {target}: no answer within {allowed:?}"),
            })
        })
    }

    /// Connects through a proxy. A name goes to the proxy as it is, where the policy has it by name and nothing that this
    /// host knows of it is denied; else the proxy gets an address that was judged.
    async fn dial_through(
        &self,
        proxy: &Upstream,
        policy: &Policy,
        target: &Target,
        until: Instant,
    ) -> Result<Dialled, Refusal> {
        let mut asked = vec![target.clone()];
        if let Host::Name(name) = &target.host {
            let needed = policy.needs_address(target);
            let patience = if needed { until } else { until.min(Instant::now() + OWN_LOOKUP) };
            match timeout_at(patience, self.resolve(name.as_str())).await {
                Ok(Ok(addresses)) => {
                    let (allowed, denied) = judge(policy, target, addresses)?;
                    if needed || denied.is_some() {
                        let at = |addr| Target { host: Host::addr(addr), port: target.port };
                        asked = allowed.into_iter().map(at).collect();
                    }
                }
                Ok(Err(_)) | Err(_) if needed => {
                    return Err(Refusal::new(
                        Code::Denied,
                        format!(
                            "{name}: egress.allow, egress.deny or the proxy hosts have addresses that decide about it, and this host \
                             can't resolve it: name it there, or let this host resolve it, since what the proxy makes of it is not seen"
                        ),
                    ));
                }
                // Allowed by name, and only the proxy knows it.
                Ok(Err(_)) | Err(_) => {}
            }
        }
        let mut failed = None;
        for target in &asked {
            let left = until.saturating_duration_since(Instant::now());
            match proxy.connect(target, left).await {
                Ok((socket, address)) => {
                    keep_alive(socket.tcp()).map_err(|error| dialling(address, &error))?;
                    return Ok(Dialled { socket, address, proxied: true });
                }
                Err(error) => failed = Some(error.refusal()),
            }
        }
        Err(failed.unwrap_or_else(|| no_address(target)))
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

/// The addresses that may be dialled, at least one, and why another may not.
fn judge(
    policy: &Policy,
    target: &Target,
    addresses: Vec<IpAddr>,
) -> Result<(Vec<IpAddr>, Option<Refusal>), Refusal> {
    let (mut allowed, mut denied) = (Vec::new(), None);
    for address in addresses {
        match policy.check_addr(target, address) {
            Ok(()) => allowed.push(address),
            Err(refusal) => denied = Some(refusal),
        }
    }
    match allowed.is_empty() {
        true => Err(denied.unwrap_or_else(|| no_address(target))),
        false => Ok((allowed, denied)),
    }
}

fn no_address(target: &Target) -> Refusal {
    Refusal::new(Code::NameNotFound, format!("{} has no address", target.host))
}

fn dialling(address: SocketAddr, error: &io::Error) -> Refusal {
    Refusal::from_io(error, format_args!("dialling {address}"))
}

fn keep_alive(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    SockRef::from(socket).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))
}

async fn connect(addresses: VecDeque<SocketAddr>) -> Result<Dialled, Refusal> {
    let (socket, address) = connect::first(addresses).await.map_err(|failed| match failed {
        Some((address, error)) => dialling(address, &error),
        None => Refusal::new(Code::NameNotFound, "no address"),
    })?;
    keep_alive(&socket).map_err(|error| dialling(address, &error))?;
    Ok(Dialled { socket: Transport::Plain(socket), address, proxied: false })
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

    /// A proxy that connects to everything, and what it was asked for.
    async fn proxy(no_proxy: &str) -> (Arc<Upstream>, tokio::sync::mpsc::UnboundedReceiver<String>) {
        use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = crate::config::Upstream {
            tls: false,
            host: Host::Addr([127, 0, 0, 1].into()),
            port: listener.local_addr().unwrap().port(),
            login: None,
            no_proxy: crate::target::NoProxy::split(no_proxy).map(|entry| entry.parse().unwrap()).collect(),
        };
        let (tell, told) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let mut socket = BufReader::new(socket);
                let mut line = String::new();
                socket.read_line(&mut line).await.unwrap();
                tell.send(line.split(' ').nth(1).unwrap().to_owned()).unwrap();
                // 10.77.0.9 is not there.
                let answer = if line.contains("10.77.0.9") { "502 No" } else { "200 Yes" };
                socket.write_all(format!("HTTP/1.1 {answer}\r\n\r\n").as_bytes()).await.unwrap();
            }
        });
        (Arc::new(Upstream::new(&config, None).unwrap()), told)
    }

    // Names in hexadecimal, which every resolver takes for the addresses 10.77.0.1 and 127.0.0.1, without asking anybody.
    const INSIDE: &str = "0x0a4d0001";
    const LOOPBACK: &str = "0x7f000001";
    /// Nobody resolves it (RFC 6761, 6.4).
    const UNKNOWN: &str = "vcenter.invalid";

    #[tokio::test]
    async fn a_proxy_does_not_lead_past_a_policy() {
        for (allow, deny, host, asked, says) in [
            // By name: the proxy resolves it.
            (&[INSIDE][..], &[][..], INSIDE, Some("0x0a4d0001:443"), ""),
            (&[UNKNOWN], &[], UNKNOWN, Some("vcenter.invalid:443"), ""),
            (&["*.invalid", "10.0.0.0/8"], &["secret.invalid"], UNKNOWN, Some("vcenter.invalid:443"), ""),
            (&["*.invalid"], &["vcenter.invalid"], UNKNOWN, None, "in egress.deny"),
            // By address: what was judged is what the proxy gets.
            (&["10.77.0.0/16"], &[], INSIDE, Some("10.77.0.1:443"), ""),
            (&["10.78.0.0/16"], &[], INSIDE, None, "neither is in egress.allow"),
            (&["10.77.0.0/16"], &[], UNKNOWN, None, "can't resolve it"),
            (&["10.77.0.0/16"], &[], "10.77.0.1", Some("10.77.0.1:443"), ""),
            (&["10.77.0.0/16"], &[], "10.78.0.1", None, "not in egress.allow"),
            // Denied by address.
            (&[INSIDE], &["10.77.0.1"], INSIDE, None, "in egress.deny"),
            (&[INSIDE], &["10.77.0.2"], INSIDE, Some("10.77.0.1:443"), ""),
            (&[UNKNOWN], &["10.77.0.2"], UNKNOWN, None, "can't resolve it"),
            // The proxy's own host and its like.
            (&[LOOPBACK, "0.0.0.0/0"], &[], LOOPBACK, None, "is loopback"),
            (&["0.0.0.0/0"], &[], "100.100.100.200", None, "cloud metadata"),
        ] {
            let (proxy, mut told) = proxy("").await;
            let parsed = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<Pattern>>();
            let dialler =
                Dialler::new(Policy::new(Some(&parsed(allow)), &parsed(deny)), Duration::from_secs(10));
            let dialled = dial(&dialler.through(Some(proxy)), host, 443).await;
            match (asked, dialled) {
                (Some(_), Ok(dialled)) => assert!(dialled.proxied, "{host}"),
                (None, Err(refusal)) => {
                    assert_eq!(refusal.code, Code::Denied, "{host}: {refusal}");
                    assert!(refusal.text.contains(says), "{host}: {refusal}");
                }
                (_, other) => panic!("{host} of {allow:?}, {deny:?}: {other:?}"),
            }
            assert_eq!(told.try_recv().ok().as_deref(), asked, "{host} of {allow:?}, {deny:?}");
        }
    }

    #[tokio::test]
    async fn what_is_not_for_the_proxy_is_dialled_from_here() {
        let (proxy, mut told) = proxy("localhost.example, 127.0.0.1").await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let dialler = dialler(&["127.0.0.1", "10.77.0.9"]).through(Some(proxy));
        let dialled = dial(&dialler, "127.0.0.1", address.port()).await.unwrap();
        assert_eq!((dialled.address, dialled.proxied), (address, false));
        assert!(told.try_recv().is_err(), "the proxy was asked");
        let refusal = dial(&dialler, "10.77.0.9", 443).await.unwrap_err();
        assert_eq!(refusal.code, Code::HostUnreachable);
        assert!(refusal.text.contains("can't connect to 10.77.0.9:443 (502 No)"), "{refusal}");
    }
}
