//! Connects to whichever of a host's addresses answers, as RFC 8305 says: the next one starts when the one before
//! failed or has kept silent for a moment, so that an address that swallows every packet costs no more than that.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Wait before the next address is tried beside the one before (RFC 8305, 5).
const STAGGER: Duration = Duration::from_millis(250);

/// Families take turns, the resolver's first one first (RFC 8305, 4).
pub fn interleaved(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let Some(first) = addresses.first().copied() else { return addresses };
    let (same, other): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|a| a.is_ipv4() == first.is_ipv4());
    let (mut same, mut other) = (same.into_iter(), other.into_iter());
    let mut all = Vec::with_capacity(same.len() + other.len());
    loop {
        match (same.next(), other.next()) {
            (None, None) => return all,
            (a, b) => all.extend(a.into_iter().chain(b)),
        }
    }
}

/// Connects to the first address that answers, without a deadline of its own. What lost the race is dropped, and
/// so closed.
///
/// # Errors
/// What the kernel said of the last address that failed; `None` where there was no address.
pub async fn first(
    mut addresses: VecDeque<SocketAddr>,
) -> Result<(TcpStream, SocketAddr), Option<(SocketAddr, io::Error)>> {
    if let [address] = *addresses.make_contiguous() {
        // Nobody to race with: no task of its own.
        let connected = TcpStream::connect(address).await;
        return connected.map(|socket| (socket, address)).map_err(|error| Some((address, error)));
    }
    let mut attempts = JoinSet::new();
    let mut last = None;
    loop {
        if let Some(address) = addresses.pop_front() {
            attempts.spawn(async move { (address, TcpStream::connect(address).await) });
        }
        tokio::select! {
            // On a busy host both may be due: no second connection is begun where the first one is there.
            biased;
            done = attempts.join_next() => match done {
                Some(Ok((address, Ok(socket)))) => return Ok((socket, address)),
                Some(Ok((address, Err(error)))) => last = Some((address, error)),
                // An attempt does not panic, and nobody aborts it.
                Some(Err(_)) => {}
                None => return Err(last),
            },
            () = sleep(STAGGER), if !addresses.is_empty() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};
    use tokio::net::TcpListener;

    #[test]
    fn families_take_turns() {
        let addr = |t: &str| t.parse::<IpAddr>().unwrap();
        let mixed = ["2001:db8::1", "2001:db8::2", "192.0.2.1"].map(addr).to_vec();
        assert_eq!(interleaved(mixed), ["2001:db8::1", "192.0.2.1", "2001:db8::2"].map(addr));
    }

    #[tokio::test]
    async fn an_address_that_keeps_silent_does_not_keep_from_the_next() {
        // A listener whose queue is full drops every further SYN.
        let silent = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        silent.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        silent.listen(0).unwrap();
        let silent_address = silent.local_addr().unwrap().as_socket().unwrap();
        let mut filling = Vec::new();
        while let Ok(connected) =
            tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(silent_address)).await
        {
            filling.push(connected.unwrap());
        }
        let refusing = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let race = first([silent_address, refusing, good].into());
        let (_, address) = tokio::time::timeout(Duration::from_secs(10), race).await.unwrap().unwrap();
        assert_eq!(address, good);
        let (failed, error) = first([refusing].into()).await.unwrap_err().unwrap();
        assert_eq!((failed, error.kind()), (refusing, io::ErrorKind::ConnectionRefused));
        assert!(first(VecDeque::new()).await.unwrap_err().is_none());
    }
}
