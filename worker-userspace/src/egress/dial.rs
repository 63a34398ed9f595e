//! Resolves a target in the worker's network and connects to it.
//!
//! Names go through the system's resolver. Of several addresses the first that answers is taken ([`connect`]). What a
//! proxy carries it resolves itself, and yet no policy by address is passed by; while our own resolver is asked, the
//! proxy is connected to already.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::policy::Policy;
use crate::connect;
use crate::refusal::{Code, Refusal};
use crate::resolve::Resolver;
use crate::target::{Host, Name, Pattern, Target};
use crate::tunnel::transport::Way;
use crate::upstream::{self, Reached, Upstream, UpstreamError};

/// Time for this host's own resolver to tell where a name leads that a proxy resolves. A host behind a proxy may have
/// none that answers.
const OWN_LOOKUP: Duration = Duration::from_secs(1);
/// Least time for an address, where a proxy is asked for one after the other and there is that much.
const LEAST: Duration = Duration::from_secs(2);
/// A target that went away without a word is noticed after idle time, so that nothing is held for ever.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Dials targets under a policy.
#[derive(Debug)]
pub struct Dialler {
    /// Taken out for each dial, so that a change waits for none.
    policy: RwLock<Arc<Policy>>,
    longest: Duration,
    resolver: Resolver,
    proxy: Option<Arc<Upstream>>,
}

/// A connection to a target.
#[derive(Debug)]
pub struct Dialled {
    /// The connection.
    pub way: Way,
    /// The address that answered: the target's, or the proxy's.
    pub address: SocketAddr,
    /// Whether a proxy dialled the target.
    pub proxied: bool,
}

/// One dial, and the time that it has.
struct Dial<'a> {
    target: &'a Target,
    policy: &'a Policy,
    allowed: Duration,
    until: Instant,
}

/// One way that may lead to the target.
enum Try {
    /// To these addresses, the first that answers.
    Own(VecDeque<SocketAddr>),
    /// By the proxy, which is asked for this.
    Proxy(Target),
}

/// Why one way did not lead to the target.
enum Failed {
    /// Others may.
    Here(Refusal),
    /// It is not the target's affair, so no other way of this kind would.
    All(Refusal),
}

impl From<UpstreamError> for Failed {
    fn from(error: UpstreamError) -> Failed {
        match error.is_the_proxys() {
            true => Failed::All(error.refusal()),
            false => Failed::Here(error.refusal()),
        }
    }
}

impl Dialler {
    /// A dialler; no dial takes longer than `longest`.
    pub fn new(policy: Policy, longest: Duration) -> Dialler {
        let resolver = Resolver::default();
        Dialler { policy: RwLock::new(Arc::new(policy)), longest, resolver, proxy: None }
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
        let policy = &self.policy();
        policy.check_target(target)?;
        let dial = Dial { target, policy, allowed, until };
        if let Some(proxy) = self.proxy.as_ref().filter(|proxy| proxy.carries(target)) {
            return self.dial_through(proxy, dial).await;
        }
        let addresses = match &target.host {
            Host::Addr(addr) => vec![*addr],
            Host::Name(name) => self.resolver.look_up(name, until, allowed).await?,
        };
        let (allowed_addresses, _) = judge(policy, target, addresses)?;
        let addresses =
            allowed_addresses.into_iter().map(|addr| SocketAddr::new(addr, target.port)).collect();
        dial.own(addresses, until).await
    }

    /// Connects through a proxy: to the name, or to one address after the other that was put in its place.
    async fn dial_through(&self, proxy: &Upstream, dial: Dial<'_>) -> Result<Dialled, Refusal> {
        // Both take their time, and only the question to the proxy needs the verdict.
        let reaching = proxy.reach(dial.until);
        tokio::pin!(reaching);
        let mut reached = None;
        let tries = {
            let judging = self.tries(proxy, &dial);
            tokio::pin!(judging);
            loop {
                tokio::select! {
                    biased;
                    tries = &mut judging => break tries?,
                    done = &mut reaching, if reached.is_none() => reached = Some(done),
                }
            }
        };
        let first = async {
            match reached {
                Some(done) => done,
                None => reaching.await,
            }
        };
        dial.each(tries, proxy, first).await
    }

    /// What leads to a target that is the proxy's. A name goes to the proxy as it is, where the policy has it by name
    /// and nothing that this host knows of it is denied; else addresses that were judged stand for it, and each of
    /// them is the proxy's or not.
    async fn tries(&self, proxy: &Upstream, dial: &Dial<'_>) -> Result<VecDeque<Try>, Refusal> {
        let Dial { target, policy, .. } = *dial;
        let as_it_is = || VecDeque::from([Try::Proxy(target.clone())]);
        let Host::Name(name) = &target.host else { return Ok(as_it_is()) };
        let needed = policy.needs_address(target);
        let patience = if needed { dial.allowed } else { OWN_LOOKUP };
        let addresses = match self.resolver.look_up(name, dial.until, patience).await {
            Ok(addresses) => addresses,
            // Nobody was asked, so nobody knows whether it is denied.
            Err(refusal) if refusal.code == Code::Limit => return Err(refusal),
            Err(_) if needed => return Err(unresolved(name)),
            // Allowed by name, and only the proxy knows it.
            Err(_) => return Ok(as_it_is()),
        };
        let (allowed, denied) = judge(policy, target, addresses)?;
        if !needed && denied.is_none() {
            return Ok(as_it_is());
        }
        let at = |addr| Target { host: Host::addr(addr), port: target.port };
        let (through, own): (Vec<_>, Vec<_>) =
            allowed.into_iter().partition(|addr| proxy.carries(&at(*addr)));
        let own: VecDeque<_> = own.into_iter().map(|addr| SocketAddr::new(addr, target.port)).collect();
        let own = Some(own).filter(|own| !own.is_empty()).map(Try::Own);
        Ok(own.into_iter().chain(through.into_iter().map(|addr| Try::Proxy(at(addr)))).collect())
    }
}

impl Dial<'_> {
    /// Tries one after the other; the first question to the proxy goes over `first`.
    async fn each<'u>(
        &self,
        mut tries: VecDeque<Try>,
        proxy: &'u Upstream,
        first: impl Future<Output = Result<Reached<'u>, UpstreamError>>,
    ) -> Result<Dialled, Refusal> {
        let (mut first, mut failed) = (Some(first), None);
        while let Some(next) = tries.pop_front() {
            // What was told counts, not that there was no time for more.
            if failed.is_some() && Instant::now() >= self.until {
                break;
            }
            let ways = 1 + tries.len();
            let outcome = match next {
                Try::Own(addresses) => self.own(addresses, self.share(ways)).await.map_err(Failed::Here),
                Try::Proxy(target) => match first.take() {
                    // The way to the proxy is every target's affair: what it takes is taken of all shares.
                    Some(first) => ask(first.await, &target, self.share(ways)).await,
                    None => {
                        let until = self.share(ways);
                        ask(proxy.reach(until).await, &target, until).await
                    }
                },
            };
            match outcome {
                Ok(dialled) => return Ok(dialled),
                Err(Failed::Here(refusal)) => failed = Some(refusal),
                Err(Failed::All(refusal)) => return Err(refusal),
            }
        }
        Err(failed.unwrap_or_else(|| no_address(self.target)))
    }

    /// Connects to the first of these addresses that answers.
    async fn own(&self, addresses: VecDeque<SocketAddr>, until: Instant) -> Result<Dialled, Refusal> {
        self.within(until, connect(addresses)).await
    }

    /// What becomes of `connecting` until then.
    async fn within(
        &self,
        until: Instant,
        connecting: impl Future<Output = Result<Dialled, Refusal>>,
    ) -> Result<Dialled, Refusal> {
        let allowed = if until < self.until { upstream::left(until) } else { self.allowed };
        timeout_at(until, connecting).await.unwrap_or_else(|_| {
            Err(Refusal {
                code: Code::Timeout,
                errno: libc::ETIMEDOUT,
                text: format!("dialling {}: no answer within {allowed:?}", self.target),
            })
        })
    }

    /// When the next of so many ways has had its share of the time: one that keeps silent leaves some to the others.
    fn share(&self, ways: usize) -> Instant {
        let now = Instant::now();
        let left = self.until.saturating_duration_since(now);
        let ways = u32::try_from(ways).unwrap_or(u32::MAX).max(1);
        now + (left / ways).max(LEAST.min(left))
    }
}

/// Asks the proxy, if it was reached, for a target.
async fn ask(
    reached: Result<Reached<'_>, UpstreamError>,
    target: &Target,
    until: Instant,
) -> Result<Dialled, Failed> {
    let (way, address) = reached?.ask(target, until).await?;
    keep_alive(way.tcp()).map_err(|error| Failed::Here(dialling(address, &error)))?;
    Ok(Dialled { way, address, proxied: true })
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

fn unresolved(name: &Name) -> Refusal {
    Refusal::new(
        Code::Denied,
        format!(
            "{name}: egress.allow, egress.deny or the proxy hosts have addresses that decide about it, and this host \
             can't resolve it: name it there, or let this host resolve it, since what the proxy makes of it is not seen"
        ),
    )
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
    Ok(Dialled { way: Way::Plain(socket), address, proxied: false })
}

#[cfg(test)]
mod tests;
