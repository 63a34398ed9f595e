//! A process without free descriptors. Alone in its process, since the limit is everybody's.

#[path = "dns/support.rs"]
#[allow(dead_code, reason = "the other tests' tools")]
mod support;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::rr::RecordType;
use tokio::time::Instant;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use support::*;

/// Counts what is logged.
struct Lines(Arc<AtomicUsize>);

impl<S: tracing::Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() == tracing::Level::WARN {
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

/// accept() fails again at once then: the server must neither spin nor flood the log, and go on when it can.
#[tokio::test(start_paused = true)]
async fn a_server_without_descriptors_waits_for_some() {
    let warnings = Arc::<AtomicUsize>::default();
    let subscriber = tracing_subscriber::registry().with(Lines(warnings.clone()));
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let upstream = Upstream::start(2, 0, |_| vec![]).await;
    let house = House::new(upstream.addr.port());
    let port = house.kernel.port_of(upstream.addr.ip());
    let connecting = house.tcp_socket("127.0.0.1", port, true);

    limit_descriptors(256);
    let mut files = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        files.push(file);
    }
    let mut app = connecting.connect(([127, 0, 0, 1], port).into()).await.unwrap();
    write_message(&mut app, &query(1, "vc.corp.example.", RecordType::A, None)).await.unwrap();
    // The clock is paused, and moves only while nobody is busy: a server that spins stops it for ever.
    let start = Instant::now();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(start.elapsed().as_secs(), 60);
    let warned = warnings.load(Ordering::Relaxed);
    assert!((10..80).contains(&warned), "{warned} lines in a minute");
    assert_eq!(house.counts().queries, 0);

    drop(files);
    let reply = read_message(&mut app).await.unwrap().unwrap();
    assert_eq!(addresses(&reply), ["240.64.0.1"]);
}
