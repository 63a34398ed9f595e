//! Connections that have not shown a key yet: few in all, and fewer from one source, so that a host that opens
//! connections and says nothing does not keep the workers of others out.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::accept::{Place, Places};

/// Strangers at once.
const ALL: usize = 1024;
/// Strangers of one source at once. Many workers may share an address behind a NAT, and each is a stranger for a
/// few round trips only.
const EACH: usize = 64;
/// Answers that a stranger gets on one connection: enough for a sign-in page with all that belongs to it.
const ANSWERS: u32 = 32;

/// The places for strangers.
pub(super) fn places() -> Places {
    Places::new(ALL, |_| EACH)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_known_gives_the_place_back_and_may_stay() {
        let places = places();
        let place = places.take([192, 0, 2, 1].into()).await.unwrap();
        let stranger = Stranger::new(place);
        for _ in 1..ANSWERS {
            assert!(stranger.may_stay());
        }
        assert!(!stranger.may_stay() && !stranger.is_known());
        stranger.known();
        assert!(stranger.may_stay() && stranger.is_known());
        assert_eq!(places.free(), ALL);
    }
}
