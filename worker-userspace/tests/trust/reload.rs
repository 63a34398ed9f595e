//! A listener takes files that were replaced, and keeps what it has where they are no good. The clock is paused, so
//! that it looks whenever nothing else happens.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dworker::drain::Drain;
use dworker::tunnel::tls::expiry::{Expiry, Source};
use dworker::tunnel::tls::{Listener, Trust};

use crate::openssl::{Asked, Made, SERVER, replace};
use crate::world::{dial, dialled, echoes, listening, serve, trusting};

/// Who is there: the subject of what is shown.
async fn shown(address: SocketAddr, trust: Arc<Trust>, seen: &Expiry) -> String {
    let appliance = dialled(address, "localhost", trust);
    echoes(&mut dial(&appliance).await.expect("a handshake")).await;
    let seen = seen.report().into_iter().find(|(source, _)| *source == Source::Dialled);
    seen.expect("what was shown").1.facts.subject
}

#[tokio::test(start_paused = true)]
async fn replaced_files_are_taken_when_they_are_good() {
    let made = Made::new();
    made.certificate(Asked::now("root"));
    let leaf = |name| Asked { by: Some("root"), extensions: SERVER, ..Asked::now(name) };
    for name in ["first", "second"] {
        made.certificate(leaf(name));
    }
    made.certificate(Asked { to: "20210101000000Z", ..leaf("old") });
    let put = |certificate: &str, key: &str| {
        replace(&made.path(certificate), &made.path("tls.crt"));
        replace(&made.path(key), &made.path("tls.key"));
    };
    put("first.crt", "first.key");
    let files = listening(&made, "tls.crt", "tls.key");
    let expiry = Expiry::default();
    let listener = Listener::read(&files, &expiry).expect("a listener");
    let drain = Drain::new(Duration::ZERO);
    let address = serve(listener.clone()).await;
    let seen = Expiry::default();
    let trust = trusting(&made, "root.crt", &seen);
    let mut open = dial(&dialled(address, "localhost", trust.clone())).await.expect("a handshake");
    // Before anybody watches: what was replaced between the first reading and the first look counts too.
    put("second.crt", "second.key");
    drain.spawn("TLS files", listener.watch(files, expiry.clone(), drain.clone()));
    let looks = async || tokio::time::sleep(Duration::from_secs(30)).await;
    looks().await;
    assert_eq!(shown(address, trust.clone(), &seen).await, "CN=second");
    echoes(&mut open).await;

    for (certificate, key) in
        [("first.crt", "second.key"), ("old.crt", "old.key"), ("first.key", "first.key")]
    {
        put(certificate, key);
        looks().await;
        assert_eq!(shown(address, trust.clone(), &seen).await, "CN=second", "{certificate} and {key}");
    }
    std::fs::remove_file(made.path("tls.key")).expect("gone");
    looks().await;
    assert_eq!(shown(address, trust.clone(), &seen).await, "CN=second");
    put("first.crt", "first.key");
    looks().await;
    assert_eq!(shown(address, trust.clone(), &seen).await, "CN=first");
    echoes(&mut open).await;
    let noted: Vec<_> = expiry.report().into_iter().map(|(_, noted)| noted.facts.subject).collect();
    assert_eq!(noted, ["CN=first"]);
    drain.finish().await;
}
