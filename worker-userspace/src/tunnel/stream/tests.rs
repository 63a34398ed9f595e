//! One stream of a lane that nobody drives.

use super::*;
use crate::tunnel::lane::{Lane, Settings, Upgraded};
use crate::tunnel::message::Hello;
use crate::tunnel::websocket::Side;

fn stream() -> Stream {
    let (io, _) = tokio::io::duplex(1);
    let peer = Hello { initial_credit: 1 << 20, ..Hello::sample() };
    let upgraded = Upgraded::new(io, Side::Client, BytesMut::new());
    let (lane, ..) = Lane::new(upgraded, peer, Settings::default());
    let target = crate::target::Target { host: "192.0.2.1".parse().unwrap(), port: 443 };
    lane.open(Open { target, deadline: std::time::Duration::ZERO, credit: 1 << 20, trace: 1 }).unwrap()
}

/// Bytes of memory that the pieces of a queue keep.
fn kept(queue: &VecDeque<BytesMut>) -> usize {
    queue.iter().map(|piece| piece.capacity() + size_of::<BytesMut>()).sum()
}

fn bytes(queue: &VecDeque<BytesMut>) -> Vec<u8> {
    queue.iter().flatten().copied().collect()
}

#[tokio::test]
async fn what_is_queued_in_small_pieces_takes_no_more_memory_than_it_counts_for() {
    let stream = stream();
    let mut expected = Vec::new();
    for n in 0..20_000_usize {
        // As a socket is read: into far more room than there are bytes.
        let mut read = BytesMut::with_capacity(8192);
        read.extend_from_slice(&n.to_ne_bytes()[..1 + n % 2]);
        expected.extend_from_slice(&read);
        stream.shared.on_data(BytesMut::from(&read[..])).unwrap();
        stream.send(read);
    }
    for n in [2049, 5000, 10_000] {
        let mut read = BytesMut::with_capacity(64 * 1024);
        read.resize(n, 7);
        expected.extend_from_slice(&read);
        stream.shared.on_data(read.clone()).unwrap();
        stream.send(read);
    }
    let state = stream.shared.state();
    for queue in [state.pending.pieces(), state.arrived.pieces()] {
        assert!(bytes(queue) == expected, "the bytes were altered");
        assert!(kept(queue) < 4 * expected.len(), "{} bytes take {}", expected.len(), kept(queue));
    }
}
