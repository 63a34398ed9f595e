//! Who is let in, and what is said of who is not.

use std::time::Duration;

use dworker::config::Key;
use dworker::drain::Drain;
use dworker::tunnel::handshake::Dial;
use dworker::tunnel::tls;
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::world::{Appliance, group, hello, identity_for_localhost};

#[tokio::test]
async fn without_the_key_there_is_401_and_nothing_more() {
    let key = Key::generate().unwrap();
    let appliance = Appliance::start(vec![group("site", &key, &["127.0.0.1"], false)]).await;
    let stranger = appliance.dial("localhost", appliance.ca.clone(), &Key::generate().unwrap());
    let refused = stranger.lane(&hello("stranger")).await.unwrap_err().to_string();
    assert!(refused.contains("401"), "{refused}");
    assert!(!appliance.registry.groups()[0].is_up());

    // The answers themselves, as strangers see them.
    let connector =
        tokio_rustls::TlsConnector::from(tls::client(vec![appliance.ca.clone()]).unwrap().config());
    for (request, status) in [
        ("GET /tunnel/v1 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "401"),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "404"),
        (
            format!("GET /tunnel/v1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n", key.reveal()),
            "426",
        ),
        (format!("GET /tunnel/v1 HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(20_000)), "431"),
        ("\r\n\r\nnot http at all\r\n\r\n".to_owned(), "400"),
    ] {
        let tcp = TcpStream::connect(appliance.address).await.unwrap();
        let mut tls = connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap();
        tls.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A server that closes without reading all may reset; what it said before counts.
        let _ = tls.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{status}: {answer}");
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
        assert_eq!(body, Some(""), "{status} says more than its status");
    }
}

#[tokio::test]
async fn who_knocks_is_told_whether_it_would_be_let_in_and_is_no_session() {
    let key = Key::generate().unwrap();
    let appliance = Appliance::start(vec![group("site", &key, &["127.0.0.1"], false)]).await;
    appliance.dial("localhost", appliance.ca.clone(), &key).knock().await.unwrap();
    assert!(!appliance.registry.groups()[0].is_up());
    let stranger = appliance.dial("localhost", appliance.ca.clone(), &Key::generate().unwrap());
    let refused = stranger.knock().await.unwrap_err().to_string();
    assert!(refused.contains("401"), "{refused}");
}

#[tokio::test]
async fn a_stranger_does_not_take_the_places_of_all() {
    let appliance = Appliance::start(vec![]).await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(TcpStream::connect(appliance.address).await.unwrap());
    }
    let last = idle.last_mut().unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(2), last.read(&mut [0])).await;
    assert!(matches!(answer, Ok(Ok(0) | Err(_))), "one address may hold any number of places");
    // Others are let in.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let tcp = socket.connect(appliance.address).await.unwrap();
    let connector =
        tokio_rustls::TlsConnector::from(tls::client(vec![appliance.ca.clone()]).unwrap().config());
    connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap();
}

#[tokio::test]
async fn an_appliance_at_an_ipv6_address_is_named_as_urls_have_it() {
    let key = Key::generate().unwrap();
    let appliance = Appliance::start(Vec::new()).await;
    let uplink = appliance.uplink_to("2001:db8::1", 1, &key, &Drain::new(Duration::ZERO));
    assert_eq!(uplink.appliance(), format!("[2001:db8::1]:{}", appliance.address.port()));
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_refused_with_the_remedy() {
    let key = Key::generate().unwrap();
    let appliance = Appliance::start(vec![group("site", &key, &["127.0.0.1"], false)]).await;
    let fails = async |host, ca| {
        let error = appliance.dial(host, ca, &key).lane(&hello("w")).await.unwrap_err().to_string();
        assert!(!error.contains(key.reveal()), "{error}");
        error
    };
    let unknown = fails("localhost", identity_for_localhost().0).await;
    assert!(unknown.contains("ca_file"), "{unknown}");
    let misnamed = fails("127.0.0.1", appliance.ca.clone()).await;
    assert!(misnamed.contains("appliance_url"), "{misnamed}");
}

#[tokio::test]
async fn a_cas_own_certificate_and_tls_at_one_end_only_are_told_with_the_remedy() {
    let key = Key::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pair = rcgen::KeyPair::generate().unwrap();
    let own = ca.self_signed(&pair).unwrap().der().clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let identity = (own.clone(), PrivatePkcs8KeyDer::from(pair.serialize_der()).into());
    let appliance = Appliance::serve(listener, Vec::new(), identity).await;
    let dial = appliance.dial("localhost", own.clone(), &key);
    let fails = async |dial: Dial| dial.lane(&hello("w")).await.unwrap_err().to_string();
    let told = fails(dial.clone()).await;
    assert!(told.contains("CA:FALSE"), "{told}");
    let mut plain = dial.clone();
    plain.appliance.tls = None;
    let told = fails(plain).await;
    assert!(told.contains("https://"), "{told}");

    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = plain.local_addr().unwrap().port();
    let answering = tokio::spawn(async move {
        let (mut socket, _) = plain.accept().await.unwrap();
        socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let _ = socket.read_to_end(&mut Vec::new()).await;
    });
    let mut elsewhere = dial;
    elsewhere.appliance.at.port = port;
    let told = fails(elsewhere).await;
    assert!(told.contains("speaks no TLS"), "{told}");
    answering.await.unwrap();
}
