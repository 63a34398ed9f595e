//! A process without free descriptors. Alone in its process, since the limit is everybody's.

#[path = "dns/support.rs"]
#[allow(dead_code, reason = "the other tests' tools")]
mod support;

mod descriptors;

use std::time::Duration;

use hickory_proto::rr::RecordType;
use tokio::time::Instant;

use support::*;

/// accept() fails again at once then: the server must neither spin nor flood the log, and go on when it can.
#[tokio::test(start_paused = true)]
async fn a_server_without_descriptors_waits_for_some() {
    let warnings = descriptors::Warnings::count();
    let upstream = Upstream::start(2, 0, |_| vec![]).await;
    let house = House::new(upstream.addr.port());
    let port = house.kernel.port_of(upstream.addr.ip());
    let connecting = house.tcp_socket("127.0.0.1", port, true);

    let files = descriptors::use_up();
    let mut app = connecting.connect(([127, 0, 0, 1], port).into()).await.unwrap();
    write_message(&mut app, &query(1, "vc.corp.example.", RecordType::A, None)).await.unwrap();
    // The clock is paused, and moves only while nobody is busy: a server that spins stops it for ever.
    let start = Instant::now();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(start.elapsed().as_secs(), 60);
    assert_eq!(warnings.so_far(), 1, "one line for a minute of it");
    assert_eq!(house.counts().queries, 0);

    drop(files);
    let reply = read_message(&mut app).await.unwrap().unwrap();
    assert_eq!(addresses(&reply), ["240.64.0.1"]);
}
