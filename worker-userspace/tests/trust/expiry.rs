//! Certificates that end soon, by clocks that the tests set.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dworker::drain::Drain;
use dworker::inspect::status::CertificateStatus;
use dworker::tunnel::tls::certificate::Facts;
use dworker::tunnel::tls::expiry::{Expiry, Source};
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::openssl::{Asked, Made, SERVER};

const ENDS: &str = "20300131000000Z";

fn facts() -> Facts {
    let made = Made::new();
    let names = format!("{SERVER}\n").replace("DNS:localhost", "DNS:a.example,IP:192.0.2.1,IP:2001:db8::1");
    made.certificate(Asked { extensions: &names, to: ENDS, ..Asked::now("leaf") });
    let der = CertificateDer::from_pem_file(made.path("leaf.crt")).expect("a certificate");
    Facts::of(&der).expect("its facts")
}

fn at(text: &str) -> Timestamp {
    text.parse().expect(text)
}

#[test]
fn it_is_warned_of_thirty_days_ahead() {
    let facts = facts();
    assert_eq!(facts.names, ["a.example", "192.0.2.1", "2001:db8::1"]);
    let warned = |now: &str| {
        let now = at(now);
        let expiry = Expiry::by(move || now);
        expiry.note(Source::Appliance, vec![facts.clone()]);
        let status = CertificateStatus::all(&expiry);
        (expiry.warnings().join("\n"), status[0].days_left)
    };
    assert_eq!(warned("2029-12-31T00:00:00Z"), (String::new(), 31));
    assert_eq!(warned("2030-01-01T00:00:00Z"), (String::new(), 30));
    let (line, days) = warned("2030-01-01T00:00:01Z");
    assert_eq!(days, 29);
    assert_eq!(
        line,
        "appliance.certificate: certificate 1 expires in 29 days (subject CN=leaf, issuer CN=leaf, names a.example \
         192.0.2.1 2001:db8::1, valid from 2020-01-01T00:00:00Z to 2030-01-31T00:00:00Z): renew it and replace the \
         files; no restart is needed"
    );
    assert!(warned("2030-01-29T12:00:00Z").0.contains("expires in 1 day ("));
    assert!(warned("2030-01-30T12:00:00Z").0.contains("expires today ("));
    assert!(warned("2030-01-31T00:00:01Z").0.contains("has expired ("));
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("the log").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_told_when_it_is_noted_and_then_daily() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let lines = || {
        let log = log.0.lock().expect("the log");
        String::from_utf8_lossy(&log).lines().filter(|line| line.contains("expires in ")).count()
    };
    let start = tokio::time::Instant::now();
    // Two days before the warnings begin; the clock goes with tokio's.
    let first = at("2029-12-30T12:00:00Z");
    let expiry = Expiry::by(move || first + start.elapsed());
    let drain = Drain::new(Duration::ZERO);
    let running = tokio::spawn(expiry.clone().run(drain.clone()));
    let facts = facts();
    expiry.note(Source::Dialled, vec![facts.clone()]);
    let hours = async |n: u64| tokio::time::sleep(Duration::from_secs(n * 3600)).await;
    hours(25).await;
    assert_eq!(lines(), 0, "31 days are left");
    hours(24).await;
    assert_eq!(lines(), 1);
    // The same certificate, seen again, is no news.
    expiry.note(Source::Dialled, vec![facts.clone()]);
    assert_eq!(lines(), 1);
    hours(24).await;
    assert_eq!(lines(), 2);
    // Another one is told at once.
    expiry.note(Source::Client, vec![facts]);
    assert_eq!(lines(), 3);
    hours(24).await;
    assert_eq!(lines(), 5);
    drain.stop();
    running.await.expect("it ends");
}
