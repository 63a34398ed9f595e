//! The loop that accepts connections, of every entry.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use crate::drain::Drain;

/// Wait after `accept()` failed, so that a lack of descriptors does not spin.
const PAUSE: Duration = Duration::from_millis(100);

/// Gives each connection to `take` until the drain begins. With `places`, a connection is given away when one is
/// free, which `take` holds for as long as it wants; until then others stay in the kernel's queue.
pub(super) async fn each(
    listener: &TcpListener,
    drain: &Drain,
    what: &str,
    places: Option<&Arc<Semaphore>>,
    mut take: impl FnMut(TcpStream, SocketAddr, Option<OwnedSemaphorePermit>),
) {
    let next = async || {
        let accepted = listener.accept().await;
        let place = match places {
            // Nobody closes the semaphore.
            Some(places) => places.clone().acquire_owned().await.ok(),
            None => None,
        };
        (accepted, place)
    };
    loop {
        let (accepted, place) = tokio::select! {
            () = drain.stopping() => return,
            next = next() => next,
        };
        match accepted {
            Ok((socket, source)) => take(socket, source, place),
            Err(error) => {
                drop(place);
                tracing::warn!("accepting {what}: {error}");
                sleep(PAUSE).await;
            }
        }
    }
}
