//! An entry without free descriptors. Alone in its process, since the limit is everybody's.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dworker::appliance::registry::Registry;
use dworker::drain::Drain;
use dworker::entry::proxy::Proxy;
use dworker::inspect::ledger::Ledger;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::Instant;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Counts what is logged.
struct Lines(Arc<AtomicUsize>);

impl<S: tracing::Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() <= tracing::Level::WARN {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn limit_descriptors(limit: libc::rlim_t) {
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write the one struct that they are given.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limits), 0);
        limits.rlim_cur = limit;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limits), 0);
    }
}

/// accept() fails again at once then: the entry must neither spin nor flood the log, and go on when it can.
#[tokio::test(start_paused = true)]
async fn an_entry_without_descriptors_waits_for_some() {
    let warnings = Arc::<AtomicUsize>::default();
    let subscriber = tracing_subscriber::registry().with(Lines(warnings.clone()));
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let registry = Arc::new(Registry::new(Duration::ZERO, Duration::ZERO, Box::new(())));
    let drain = Drain::new(Duration::ZERO);
    let proxy = Proxy::new(registry, Ledger::default(), None, drain.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drain.spawn("entry", proxy.serve_http(listener));
    let connecting = TcpSocket::new_v4().unwrap();

    limit_descriptors(256);
    let mut files = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        files.push(file);
    }
    let mut client = connecting.connect(address).await.unwrap();
    client.write_all(b"CONNECT direct.example:443 HTTP/1.1\r\nHost: direct.example\r\n\r\n").await.unwrap();
    // The clock is paused, and moves only while nobody is busy: an entry that spins stops it for ever.
    let start = Instant::now();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(start.elapsed().as_secs(), 60);
    assert_eq!(warnings.load(Ordering::Relaxed), 1, "one line for a minute of it");

    drop(files);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}
