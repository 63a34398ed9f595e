//! Connections that have not shown a key yet: few in all, and fewer from one source, so that a host that opens
//! connections and says nothing does not keep the workers of others out.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Strangers at once.
const ALL: usize = 1024;
/// Strangers of one source at once. Many workers may share an address behind a NAT, and each is a stranger for a
/// few round trips only.
const EACH: usize = 64;
/// Answers that a stranger gets on one connection: enough for a sign-in page with all that belongs to it.
const ANSWERS: u32 = 32;

/// The places that there are.
#[derive(Debug, Clone)]
pub(super) struct Strangers {
    places: Arc<Semaphore>,
    sources: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// A stranger's place, free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    source: IpAddr,
    strangers: Strangers,
    _permit: OwnedSemaphorePermit,
}

impl Strangers {
    pub(super) fn new() -> Strangers {
        Strangers { places: Arc::new(Semaphore::new(ALL)), sources: Arc::default() }
    }

    fn sources(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room for one more. `None` never comes: the semaphore is not closed.
    pub(super) async fn room(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().acquire_owned().await.ok()
    }

    /// A place for a connection from `peer`; `None`: its source has as many as it may.
    pub(super) fn admit(&self, peer: IpAddr, permit: OwnedSemaphorePermit) -> Option<Place> {
        let source = source(peer);
        let mut sources = self.sources();
        let held = sources.entry(source).or_default();
        if *held >= EACH {
            return None;
        }
        *held += 1;
        drop(sources);
        Some(Place { source, strangers: self.clone(), _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sources = self.strangers.sources();
        if let Some(held) = sources.get_mut(&self.source) {
            *held -= 1;
            if *held == 0 {
                sources.remove(&self.source);
            }
        }
    }
}

/// What the requests of one connection share: its place, until one of them has shown a credential that works.
#[derive(Debug, Clone)]
pub(super) struct Stranger(Arc<Shown>);

#[derive(Debug)]
struct Shown {
    place: Mutex<Option<Place>>,
    answers: AtomicU32,
}

impl Stranger {
    /// A stranger at this place.
    pub(super) fn new(place: Place) -> Stranger {
        Stranger(Arc::new(Shown { place: Mutex::new(Some(place)), answers: AtomicU32::new(0) }))
    }

    fn place(&self) -> MutexGuard<'_, Option<Place>> {
        self.0.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the place back: who this is is known.
    pub(super) fn known(&self) {
        drop(self.place().take());
    }

    /// True where it is a stranger no more.
    pub(super) fn is_known(&self) -> bool {
        self.place().is_none()
    }

    /// Counts an answer. True where the connection may go on after it.
    pub(super) fn may_stay(&self) -> bool {
        self.0.answers.fetch_add(1, Ordering::Relaxed) + 1 < ANSWERS || self.is_known()
    }
}

/// Whoever has one IPv6 address of a /64 has all of them.
pub(super) fn source(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn places_are_counted_for_each_source_and_given_back() {
        let strangers = Strangers::new();
        let addr = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut places = Vec::new();
        for n in 0..EACH {
            let peer = addr(&format!("2001:db8::{n:x}"));
            places.push(strangers.admit(peer, strangers.room().await.unwrap()).expect("a place"));
        }
        assert!(strangers.admit(addr("2001:db8::ffff"), strangers.room().await.unwrap()).is_none());
        let others = ["2001:db8:0:1::1", "192.0.2.1", "::ffff:192.0.2.1"].map(addr);
        for other in others {
            places.push(strangers.admit(other, strangers.room().await.unwrap()).expect("a place"));
        }
        assert_eq!(strangers.sources().len(), 3);
        drop(places);
        assert_eq!((strangers.sources().len(), strangers.places.available_permits()), (0, ALL));
    }

    #[tokio::test]
    async fn who_is_known_gives_the_place_back_and_may_stay() {
        let strangers = Strangers::new();
        let place = strangers.admit([192, 0, 2, 1].into(), strangers.room().await.unwrap()).unwrap();
        let stranger = Stranger::new(place);
        for _ in 1..ANSWERS {
            assert!(stranger.may_stay());
        }
        assert!(!stranger.may_stay() && !stranger.is_known());
        stranger.known();
        assert!(stranger.may_stay() && stranger.is_known());
        assert_eq!((strangers.sources().len(), strangers.places.available_permits()), (0, ALL));
    }
}
