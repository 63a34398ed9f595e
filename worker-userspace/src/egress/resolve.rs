//! The system's resolver (`getaddrinfo`): `/etc/hosts`, search domains and nsswitch mean here what they mean to every
//! other program of the worker's host.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dns_lookup::{AddrInfoHints, LookupErrorKind, SockType, getaddrinfo};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::connect;
use crate::refusal::{Code, Refusal};
use crate::target::Name;

/// Look-ups under way at once; each takes a thread.
const LOOKUPS: usize = 128;

/// Look-ups, not too many at once.
#[derive(Debug)]
pub(super) struct Resolver {
    pub(super) places: Arc<Semaphore>,
}

impl Default for Resolver {
    fn default() -> Resolver {
        Resolver { places: Arc::new(Semaphore::new(LOOKUPS)) }
    }
}

impl Resolver {
    /// The addresses of a name. Waits for a place until `until`, and from then on at most `patience` for the answer.
    ///
    /// # Errors
    /// [`Code::Limit`] where there was no place, so that nobody was asked; else what the resolver said, or that it
    /// said nothing.
    pub(super) async fn look_up(
        &self,
        name: &Name,
        until: Instant,
        patience: Duration,
    ) -> Result<Vec<IpAddr>, Refusal> {
        let failed =
            |what: &dyn fmt::Display| Refusal::new(Code::ResolveFailed, format!("resolving {name}: {what}"));
        let Ok(place) = timeout_at(until, self.places.clone().acquire_owned()).await else {
            let text = format!(
                "resolving {name}: {LOOKUPS} other look-ups are under way, and none has ended in time: check this host's DNS"
            );
            return Err(Refusal::new(Code::Limit, text));
        };
        let place = place.map_err(|e| failed(&e))?;
        let owned = name.clone();
        let lookup = tokio::task::spawn_blocking(move || {
            // Held until the thread is done, even where nobody waits for it any more.
            let _place = place;
            let hints = AddrInfoHints { socktype: SockType::Stream.into(), ..AddrInfoHints::default() };
            getaddrinfo(Some(owned.as_str()), None, Some(hints))
                .map(|all| all.map(|a| a.map(|a| a.sockaddr.ip())).collect())
        });
        let Ok(answer) = timeout_at(until.min(Instant::now() + patience), lookup).await else {
            return Err(failed(&format_args!("no answer within {patience:?}")));
        };
        let addresses: io::Result<Vec<IpAddr>> = match answer.map_err(|e| failed(&e))? {
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
