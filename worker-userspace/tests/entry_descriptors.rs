//! An entry without free descriptors. Alone in its process, since the limit is everybody's.

mod descriptors;

use std::sync::Arc;
use std::time::Duration;

use dworker::appliance::registry::Registry;
use dworker::drain::Drain;
use dworker::entry::proxy::Proxy;
use dworker::inspect::ledger::Ledger;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::Instant;

/// accept() fails again at once then: the entry must neither spin nor flood the log, and go on when it can.
#[tokio::test(start_paused = true)]
async fn an_entry_without_descriptors_waits_for_some() {
    let warnings = descriptors::Warnings::count();
    let registry = Arc::new(Registry::new(Duration::ZERO, Duration::ZERO, Box::new(())));
    let drain = Drain::new(Duration::ZERO);
    let proxy = Proxy::new(registry, Ledger::default(), None, drain.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drain.spawn("entry", proxy.serve_http(listener));
    let connecting = TcpSocket::new_v4().unwrap();

    let files = descriptors::use_up();
    let mut client = connecting.connect(address).await.unwrap();
    client.write_all(b"CONNECT direct.example:443 HTTP/1.1\r\nHost: direct.example\r\n\r\n").await.unwrap();
    // The clock is paused, and moves only while nobody is busy: an entry that spins stops it for ever.
    let start = Instant::now();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(start.elapsed().as_secs(), 60);
    assert_eq!(warnings.so_far(), 1, "one line for a minute of it");

    drop(files);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}
