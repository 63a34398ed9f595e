//! Accepting connections, and places for those that have not said yet what they want.
//!
//! What must hold: a lack of descriptors neither spins nor floods the log, and ends by itself; a host that opens
//! connections and says nothing does not keep others out.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use crate::drain::{Drain, Gate};

/// Wait after `accept()` failed.
const PAUSE: Duration = Duration::from_millis(100);

/// Gives each connection to `take` until the drain begins. `what` is accepted, for the log.
pub async fn each(
    listener: &TcpListener,
    drain: &Drain,
    what: &str,
    mut take: impl FnMut(TcpStream, SocketAddr),
) {
    let mut gate = drain.gate();
    loop {
        tokio::select! {
            () = drain.stopping() => return,
            (socket, peer) = next(&mut gate, what, || listener.accept()) => take(socket, peer),
        }
    }
}

/// As [`each`], and with a place for each connection. While none is free, connections stay in the kernel's queue;
/// those of a source that has as many as it may are closed.
pub async fn each_in_place(
    listener: &TcpListener,
    drain: &Drain,
    what: &str,
    places: &Places,
    mut take: impl FnMut(TcpStream, SocketAddr, Place),
) {
    let mut gate = drain.gate();
    let mut next = async || {
        let (socket, peer) = next(&mut gate, what, || listener.accept()).await;
        (socket, peer, places.take(peer.ip()).await)
    };
    loop {
        tokio::select! {
            () = drain.stopping() => return,
            (socket, peer, place) = next() => match place {
                Some(place) => take(socket, peer, place),
                None => tracing::debug!(%peer, "closed {what}: its source has too many that say nothing"),
            },
        }
    }
}

/// The next connection of any kind of listener that comes through the gate, whatever fails before; what that is, the log
/// says once.
pub async fn next<T, F>(gate: &mut Gate, what: &str, accept: impl Fn() -> F) -> T
where
    F: Future<Output = io::Result<T>>,
{
    let mut told = false;
    loop {
        match gate.through(&accept).await {
            Ok(accepted) => return accepted,
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!("accepting {what}: {error}; trying on");
                }
                sleep(PAUSE).await;
            }
        }
    }
}

/// The places that there are. Clones are the same.
#[derive(Debug, Clone)]
pub struct Places {
    all: Arc<Semaphore>,
    each: fn(IpAddr) -> usize,
    sources: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// The place of one connection, free again when dropped.
#[derive(Debug)]
pub struct Place {
    source: IpAddr,
    places: Places,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    /// So many places in all, and for a source as many as `each` says.
    pub fn new(all: usize, each: fn(IpAddr) -> usize) -> Places {
        Places { all: Arc::new(Semaphore::new(all)), each, sources: Arc::default() }
    }

    fn sources(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a place is free. `None`: the source of this peer has as many as it may.
    pub async fn take(&self, peer: IpAddr) -> Option<Place> {
        // Nobody closes the semaphore.
        let permit = self.all.clone().acquire_owned().await.ok()?;
        let source = source(peer);
        let mut sources = self.sources();
        let held = sources.entry(source).or_default();
        if *held >= (self.each)(source) {
            return None;
        }
        *held += 1;
        drop(sources);
        Some(Place { source, places: self.clone(), _permit: permit })
    }

    /// Places that are free.
    pub fn free(&self) -> usize {
        self.all.available_permits()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sources = self.places.sources();
        if let Some(held) = sources.get_mut(&self.source) {
            *held -= 1;
            if *held == 0 {
                sources.remove(&self.source);
            }
        }
    }
}

/// Whoever has one IPv6 address of a /64 has all of them.
pub fn source(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EACH: usize = 64;

    #[tokio::test]
    async fn places_are_counted_for_each_source_and_given_back() {
        let places = Places::new(100, |source| if source.is_loopback() { 100 } else { EACH });
        let addr = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut held = Vec::new();
        for n in 0..EACH {
            held.push(places.take(addr(&format!("2001:db8::{n:x}"))).await.expect("a place"));
        }
        assert!(places.take(addr("2001:db8::ffff")).await.is_none());
        for other in ["2001:db8:0:1::1", "192.0.2.1", "::ffff:192.0.2.1", "::1"] {
            held.push(places.take(addr(other)).await.expect("a place"));
        }
        assert_eq!((places.sources().len(), places.free()), (4, 100 - EACH - 4));
        while places.free() > 0 {
            held.push(places.take(addr("127.0.0.1")).await.expect("this host may have all"));
        }
        let mut waiting = tokio::spawn({
            let places = places.clone();
            async move { places.take(addr("198.51.100.1")).await.is_some() }
        });
        assert!(
            tokio::time::timeout(Duration::from_millis(100), &mut waiting).await.is_err(),
            "there is none"
        );
        drop(held);
        assert!(waiting.await.unwrap());
        assert_eq!((places.sources().len(), places.free()), (0, 100));
    }
}
