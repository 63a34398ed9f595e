//! What a failed verification says: which certificate, which name, and what to put where.

use std::fs;
use std::time::Duration;

use dworker::tunnel::tls::expiry::Expiry;
use dworker::tunnel::tls::{End, Listener, Trust, trust};
use tokio::net::TcpStream;

use crate::openssl::{Asked, CLIENT, Made, SERVER};
use crate::world::{dial, dialled, echoes, listening, serve, trusting};

/// What a worker that trusts `ca` says of an appliance with this chain.
async fn said(made: &Made, chain: &[&str], key: &str, host: &str, ca: &str) -> String {
    made.join("served.crt", chain);
    let listener =
        Listener::read(&listening(made, "served.crt", key), &Expiry::default()).expect("a listener");
    let address = serve(listener).await;
    let appliance = dialled(address, host, trusting(made, ca, &Expiry::default()));
    dial(&appliance).await.expect_err("refused").to_string()
}

#[tokio::test]
async fn each_failure_names_the_certificate_the_name_and_the_remedy() {
    let made = Made::new();
    made.certificate(Asked::now("root"));
    made.certificate(Asked { cn: Some("root"), ..Asked::now("impostor") });
    made.certificate(Asked::now("other"));
    made.certificate(Asked { by: Some("root"), ..Asked::now("between") });
    let leaf = |name| Asked { by: Some("between"), extensions: SERVER, ..Asked::now(name) };
    made.certificate(leaf("leaf"));
    made.certificate(Asked { to: "20210101000000Z", ..leaf("old") });
    made.certificate(Asked { from: "20890101000000Z", ..leaf("early") });
    made.certificate(Asked { extensions: CLIENT, ..leaf("client") });
    made.certificate(Asked { by: Some("root"), to: "20210101000000Z", ..Asked::now("ended") });
    made.certificate(Asked { by: Some("ended"), ..leaf("below") });
    made.certificate(Asked { by: None, ..leaf("alone") });

    let whole = ["leaf.crt", "between.crt"];
    for (chain, key, host, ca, expected) in [
        (
            &whole[..],
            "leaf",
            "localhost",
            "other.crt",
            &[
                "certificate 2 of 2 (subject CN=between, issuer CN=root, no names, valid from 2020-01-01T00:00:00Z to \
             2090-01-01T00:00:00Z) was signed by nobody who is trusted",
                "put the certificate of the CA CN=root, in PEM, into `ca_file` or `ca_dir`",
            ][..],
        ),
        (
            &["leaf.crt"],
            "leaf",
            "localhost",
            "root.crt",
            &[
                "certificate 1 of 1 (subject CN=leaf, issuer CN=between, names localhost, ",
                "was signed by nobody who is trusted",
                "put it behind the appliance's own in `appliance.certificate`",
            ],
        ),
        (
            &["leaf.crt", "between.crt", "root.crt"],
            "leaf",
            "localhost",
            "other.crt",
            &[
                "certificate 3 of 3 (subject CN=root, ",
                "is an authority that is not trusted: put it, in PEM, into `ca_file` or `ca_dir`",
            ],
        ),
        (
            &whole,
            "leaf",
            "localhost",
            "impostor.crt",
            &[
                "certificate 2 of 2 (subject CN=between, ",
                "was signed by another key than that of the trusted CN=root",
            ],
        ),
        (
            &["alone.crt"],
            "alone",
            "localhost",
            "root.crt",
            &[
                "certificate 1 of 1 (subject CN=alone, issuer CN=alone, names localhost, ",
                "is self-signed and not trusted: put it, in PEM, into `ca_file` or `ca_dir`",
            ],
        ),
        (
            &whole,
            "leaf",
            "127.0.0.1",
            "root.crt",
            &[
                "TLS with 127.0.0.1: certificate 1 of 2 (subject CN=leaf, issuer CN=between, names localhost, ",
                "is not for 127.0.0.1: write one of its names in `appliance_url`",
            ],
        ),
        (
            &["old.crt", "between.crt"],
            "old",
            "localhost",
            "root.crt",
            &[
                "certificate 1 of 2 (subject CN=old, ",
                "to 2021-01-01T00:00:00Z) has expired, ",
                "renew it at the appliance, or set this host's clock, which says 20",
            ],
        ),
        (
            &["below.crt", "ended.crt"],
            "below",
            "localhost",
            "root.crt",
            &["certificate 2 of 2 (subject CN=ended, ", " has expired, "],
        ),
        (
            &["early.crt", "between.crt"],
            "early",
            "localhost",
            "root.crt",
            &["certificate 1 of 2 (subject CN=early, ", "is not valid yet: set this host's clock"],
        ),
        (
            &["client.crt", "between.crt"],
            "client",
            "localhost",
            "root.crt",
            &[
                "certificate 1 of 2 (subject CN=client, ",
                "is not for this use",
                "`extendedKeyUsage = serverAuth`",
            ],
        ),
        (
            &["root.crt"],
            "root",
            "localhost",
            "root.crt",
            &["certificate 1 of 1 (subject CN=root, ", "is a CA's own: ", "`CA:FALSE`"],
        ),
    ] {
        let said = said(&made, chain, &format!("{key}.key"), host, ca).await;
        for part in expected {
            assert!(said.contains(part), "no {part:?} in {said:?}");
        }
        assert!(said.starts_with(&format!("TLS with {host}: ")), "{said}");
    }
}

#[tokio::test]
async fn what_is_trusted_is_read_anew_for_each_dial() {
    let made = Made::new();
    made.certificate(Asked::now("root"));
    made.certificate(Asked::now("other"));
    made.certificate(Asked { by: Some("root"), extensions: SERVER, ..Asked::now("leaf") });
    let expiry = Expiry::default();
    let listener =
        Listener::read(&listening(&made, "leaf.crt", "leaf.key"), &Expiry::default()).expect("one");
    let dir = made.path("ca.d");
    fs::create_dir(&dir).expect("a directory");
    fs::copy(made.path("other.crt"), dir.join("ca.pem")).expect("a copy");
    let files = trust::Files { ca_dir: Some(dir.clone()), ..trust::Files::default() };
    let appliance =
        dialled(serve(listener).await, "localhost", Trust::read(files, expiry.clone()).expect("a CA"));
    dial(&appliance).await.expect_err("not trusted yet");
    assert!(expiry.report().iter().all(|(_, noted)| noted.facts.subject == "CN=other"), "{expiry:?}");

    fs::copy(made.path("root.crt"), dir.join("new.pem")).expect("a copy");
    echoes(&mut dial(&appliance).await.expect("trusted")).await;
    let shown: Vec<_> =
        expiry.report().into_iter().map(|(from, noted)| (from.word(), noted.facts.subject)).collect();
    let shown: Vec<_> = shown.iter().map(|(from, subject)| (*from, subject.as_str())).collect();
    assert_eq!(shown, [("appliance", "CN=leaf"), ("ca_dir", "CN=other"), ("ca_dir", "CN=root")]);

    // What can't be read changes nothing.
    fs::remove_dir_all(&dir).expect("gone");
    echoes(&mut dial(&appliance).await.expect("still trusted")).await;
    // What is taken away is not trusted any more.
    fs::create_dir(&dir).expect("a directory");
    fs::copy(made.path("other.crt"), dir.join("ca.pem")).expect("a copy");
    dial(&appliance).await.expect_err("not trusted any more");
}

#[tokio::test(start_paused = true)]
async fn for_a_proxy_it_is_read_anew_every_few_seconds() {
    let made = Made::new();
    made.certificate(Asked::now("root"));
    made.certificate(Asked::now("other"));
    made.certificate(Asked { by: Some("root"), extensions: SERVER, ..Asked::now("leaf") });
    let listener =
        Listener::read(&listening(&made, "leaf.crt", "leaf.key"), &Expiry::default()).expect("one");
    let address = serve(listener).await;
    let ca = made.join("ca.crt", &["other.crt"]);
    let trust = trusting(&made, "ca.crt", &Expiry::default());
    let host = "localhost".parse().expect("a name");
    let dial = async || {
        let tcp = TcpStream::connect(address).await.expect("a connection");
        trust.secure(tcp, &host, End::Proxy).await.map(drop)
    };
    let said = dial().await.expect_err("not trusted").to_string();
    assert!(
        said.contains("put the certificate of the CA CN=root, in PEM, into `ca_file` or `ca_dir`"),
        "{said}"
    );
    assert!(said.contains("behind the proxy's own in its configuration"), "{said}");
    fs::copy(made.path("root.crt"), ca).expect("a copy");
    dial().await.expect_err("not read yet");
    tokio::time::advance(Duration::from_secs(5)).await;
    dial().await.expect("trusted");
}
