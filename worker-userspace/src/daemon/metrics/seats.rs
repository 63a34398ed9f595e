//! Places for who reads metrics.
//!
//! What must hold: there are so many at once, and whoever comes gets one: who has said nothing for the longest gives it up. So
//! no user of this host keeps Prometheus out, who asks as soon as it is connected.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Connections at once.
const PLACES: usize = 16;

/// All places. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Seats(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    /// Who asked last is last.
    seats: Vec<(u64, Arc<Notify>)>,
    next: u64,
}

/// The place of one connection, free again when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    id: u64,
    wanted: Arc<Notify>,
    seats: Seats,
}

impl Seats {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, which may be that of another.
    pub(super) fn take(&self) -> Seat {
        let mut taken = self.lock();
        if taken.seats.len() >= PLACES {
            let (_, longest) = taken.seats.remove(0);
            longest.notify_one();
        }
        let (id, wanted) = (taken.next, Arc::new(Notify::new()));
        taken.next += 1;
        taken.seats.push((id, wanted.clone()));
        Seat { id, wanted, seats: self.clone() }
    }
}

impl Seat {
    /// It has asked.
    pub(super) fn touch(&self) {
        let mut taken = self.seats.lock();
        if let Some(at) = taken.seats.iter().position(|(id, _)| *id == self.id) {
            let seat = taken.seats.remove(at);
            taken.seats.push(seat);
        }
    }

    /// Waits until another gets it.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.lock().seats.retain(|(id, _)| *id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn is_wanted(seat: &Seat) -> bool {
        pin!(seat.wanted()).poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    #[test]
    fn who_says_nothing_gives_way() {
        let seats = Seats::default();
        let idle: Vec<Seat> = (0..PLACES).map(|_| seats.take()).collect();
        let asks = &idle[0];
        asks.touch();
        let late: Vec<Seat> = (0..PLACES - 1).map(|_| seats.take()).collect();
        assert!(!is_wanted(asks));
        assert!(idle[1..].iter().all(is_wanted));
        assert!(!late.iter().any(is_wanted));
        drop(late);
        assert_eq!(seats.lock().seats.len(), 1);
        drop(idle);
        assert!(seats.lock().seats.is_empty());
    }
}
