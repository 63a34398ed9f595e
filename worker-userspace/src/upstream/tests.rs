//! Against a proxy that says what a test wants: slowly, in pieces, with a body, or not at all.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::target::Exempt;
use crate::tunnel::tls::{self, fake::identity};
use crate::tunnel::transport::Transport;

const SOON: Duration = Duration::from_secs(10);

fn target() -> Target {
    Target { host: "vcenter.corp.example".parse().unwrap(), port: 443 }
}

fn upstream(address: SocketAddr, login: Option<&str>) -> Upstream {
    Upstream {
        name: format!("http://***@{address}").into(),
        host: Host::addr(address.ip()),
        port: address.port(),
        tls: None,
        authorization: login.map(|token| format!("Proxy-Authorization: Basic {token}\r\n")),
        no_proxy: NoProxy::default(),
        resolver: Resolver::default(),
    }
}

/// Reads to the empty line; a byte at a time, so that nothing behind it is taken.
async fn request<S: AsyncRead + Unpin>(io: &mut S) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        text.push(io.read_u8().await.expect("a request"));
    }
    String::from_utf8(text).unwrap()
}

/// A proxy that answers one request with these pieces, each sent for itself, and then keeps the connection.
async fn scripted(pieces: &'static [&'static str]) -> (SocketAddr, JoinHandle<(TcpStream, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let proxy = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket.set_nodelay(true).unwrap();
        let asked = request(&mut socket).await;
        for piece in pieces {
            socket.write_all(piece.as_bytes()).await.unwrap();
            tokio::task::yield_now().await;
        }
        (socket, asked)
    });
    (address, proxy)
}

async fn refused(pieces: &'static [&'static str]) -> UpstreamError {
    let (address, _proxy) = scripted(pieces).await;
    upstream(address, None).connect(&target(), Instant::now() + SOON).await.unwrap_err()
}

#[tokio::test]
async fn what_comes_behind_the_answer_is_the_targets() {
    for pieces in [
        &["HTTP/1.1 200 Connection established\r\n\r\nfirst ", "words"][..],
        &["HTTP/1.0 200 OK\r\n", "Via: 1.0 p\r\n", "\r\n", "first words"],
        &["H", "TTP/1.1 2", "00\r\n\r", "\nfirst", " words"],
        &["HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst words"],
    ] {
        let (address, proxy) = scripted(pieces).await;
        let (way, at) =
            upstream(address, Some("dTpw")).connect(&target(), Instant::now() + SOON).await.unwrap();
        assert_eq!(at, address);
        assert!(matches!(way, Way::Plain(_)), "the socket itself, so that nothing is copied more often");
        let mut transport = Transport::from(way);
        let mut words = [0; 11];
        transport.read_exact(&mut words).await.unwrap();
        assert_eq!(&words, b"first words", "{pieces:?}");
        let (mut socket, asked) = proxy.await.unwrap();
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            asked,
            format!(
                "CONNECT vcenter.corp.example:443 HTTP/1.1\r\nHost: vcenter.corp.example:443\r\n\
                 Proxy-Authorization: Basic dTpw\r\nUser-Agent: dworker/{version}\r\n\r\n"
            )
        );
        transport.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        socket.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
    }
}

#[tokio::test]
async fn an_ipv6_target_stands_in_brackets() {
    let (address, proxy) = scripted(&["HTTP/1.1 200 OK\r\n\r\n"]).await;
    let target = Target { host: "2001:db8::1".parse().unwrap(), port: 902 };
    upstream(address, None).connect(&target, Instant::now() + SOON).await.unwrap();
    let asked = proxy.await.unwrap().1;
    assert!(
        asked.starts_with("CONNECT [2001:db8::1]:902 HTTP/1.1\r\nHost: [2001:db8::1]:902\r\nUser-Agent:"),
        "{asked}"
    );
}

#[tokio::test]
async fn a_refusal_keeps_its_meaning_whatever_follows_it() {
    for (pieces, code, says) in [
        (
            &["HTTP/1.1 407 Proxy Authentication Required\r\n", "Content-Length: 5\r\n\r\n", "<html"][..],
            Code::ProxyDenied,
            "wants a user and a password",
        ),
        (
            &["HTTP/1.0 403 Filtered\r\n\r\n<html>never ends"],
            Code::ProxyDenied,
            "does not let this host connect",
        ),
        (
            &["HTTP/1.1 504 Gateway Timeout\n\n"],
            Code::Timeout,
            "can't connect to vcenter.corp.example:443 (504",
        ),
        (&["220 mail.example ESMTP\r\n"], Code::ProxyDown, "does not answer as an HTTP proxy"),
    ] {
        let error = refused(pieces).await;
        assert_eq!(error.refusal().code, code, "{error}");
        assert!(
            error.to_string().contains(says) && error.to_string().contains("http://***@127.0.0.1:"),
            "{error}"
        );
    }
    let refusal =
        refused(&["HTTP/1.1 503 No\r\nX-Squid-Error: ERR_CONNECT_FAIL 111\r\n\r\n"]).await.refusal();
    assert_eq!(refusal.connect_errno(), libc::ECONNREFUSED);
    assert_eq!(refused(&["HTTP/1.1 403 No\r\n\r\n"]).await.refusal().connect_errno(), libc::EACCES);
}

#[tokio::test]
async fn a_proxy_that_goes_away_or_never_ends_its_answer_is_down() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let proxy = tokio::spawn(async move {
        for endless in [false, true] {
            let (mut socket, _) = listener.accept().await.unwrap();
            request(&mut socket).await;
            socket.write_all(b"HTTP/1.1 200 OK\r\nA: ").await.unwrap();
            while endless && socket.write_all(&[b'b'; 1000]).await.is_ok() {}
        }
    });
    let error = upstream(address, None).connect(&target(), Instant::now() + SOON).await.unwrap_err();
    assert!(error.to_string().contains("closed the connection without an answer"), "{error}");
    let error = upstream(address, None).connect(&target(), Instant::now() + SOON).await.unwrap_err();
    assert!(error.to_string().contains("no end within 16384 bytes"), "{error}");
    assert_eq!(error.refusal().code, Code::ProxyDown);
    proxy.await.unwrap();
    let error = upstream(address, None).connect(&target(), Instant::now() + SOON).await.unwrap_err();
    assert!(error.to_string().contains("Connection refused"), "{error}");
    assert_eq!(
        (error.refusal().code, error.refusal().connect_errno()),
        (Code::ProxyDown, libc::EHOSTUNREACH)
    );
}

#[tokio::test]
async fn each_step_has_its_deadline() {
    const SHORT: Duration = Duration::from_millis(100);
    // A queue that is full takes no connection.
    let full = TcpSocket::new_v4().unwrap();
    full.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = full.listen(1).unwrap();
    let full_address = full.local_addr().unwrap();
    let mut filling = Vec::new();
    while let Ok(connected) = tokio::time::timeout(SHORT, TcpStream::connect(full_address)).await {
        filling.push(connected.unwrap());
    }
    let error = upstream(full_address, None).connect(&target(), Instant::now() + SHORT).await.unwrap_err();
    assert!(error.to_string().contains("can't connect to the proxy"), "{error}");
    assert_eq!(error.refusal().code, Code::ProxyDown);

    let (address, _proxy) = scripted(&["HTTP/1.1 200 OK\r\n"]).await;
    let error = upstream(address, None).connect(&target(), Instant::now() + SHORT).await.unwrap_err();
    // What was left of the time when it was dialled.
    assert!(error.to_string().contains("did not connect to vcenter.corp.example:443 within "), "{error}");
    assert_eq!(
        error.refusal().connect_errno(),
        libc::ETIMEDOUT,
        "it waits for the target, as far as anybody knows"
    );

    let (address, _proxy) = scripted(&[]).await;
    let tls = Some(tls::client(Vec::new()).unwrap());
    let error = Upstream { tls, ..upstream(address, None) }
        .connect(&target(), Instant::now() + SHORT)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("TLS with the proxy"), "{error}");
}

async fn answer_in_tls<S: AsyncRead + AsyncWrite + Unpin>(socket: S, config: Arc<ServerConfig>) {
    let Ok(mut tls) = TlsAcceptor::from(config).accept(socket).await else { return };
    request(&mut tls).await;
    tls.write_all(b"HTTP/1.1 200 OK\r\n\r\nfirst words").await.unwrap();
    tls.flush().await.unwrap();
    let mut answer = Vec::new();
    tls.read_to_end(&mut answer).await.unwrap();
    tls.write_all(&answer).await.unwrap();
    tls.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_proxy_in_tls_is_verified_and_loses_nothing() {
    let (certificate, config) = identity();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(answer_in_tls(socket, config.clone()));
        }
    });
    let at = |host: &str, roots: Vec<CertificateDer<'static>>| Upstream {
        host: host.parse().unwrap(),
        tls: Some(tls::client(roots).unwrap()),
        ..upstream(address, None)
    };
    let (way, _) =
        at("localhost", vec![certificate.clone()]).connect(&target(), Instant::now() + SOON).await.unwrap();
    let mut transport = Transport::from(way);
    let mut words = [0; 11];
    transport.read_exact(&mut words).await.unwrap();
    assert_eq!(&words, b"first words");
    transport.write_all(b"answer").await.unwrap();
    transport.shutdown().await.unwrap();
    let mut answer = String::new();
    transport.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "answer", "it may end one direction by itself");

    for (host, roots, says) in [
        (
            "localhost",
            Vec::new(),
            "is self-signed and not trusted: put it, in PEM, into `ca_file` or `ca_dir`, if it is really the proxy's",
        ),
        (
            "127.0.0.1",
            vec![certificate],
            "is not for 127.0.0.1: write one of its names in `proxy_address`, or have the proxy's certificate",
        ),
    ] {
        let error = at(host, roots).connect(&target(), Instant::now() + SOON).await.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(error.refusal().code, Code::ProxyDown);
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let _ = socket.read_to_end(&mut Vec::new()).await;
    });
    let tls = Some(tls::client(Vec::new()).unwrap());
    let error = Upstream { tls, ..upstream(address, None) }
        .connect(&target(), Instant::now() + SOON)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("write \"http://\" in `proxy_address`"), "{error}");
}

#[test]
fn what_is_exempt_is_not_carried() {
    let listed: NoProxy = ["corp.example:443".parse::<Exempt>().unwrap()].into_iter().collect();
    let proxy = Upstream { no_proxy: listed, ..upstream("127.0.0.1:1".parse().unwrap(), Some("secret")) };
    assert!(!proxy.carries(&target()));
    assert!(proxy.carries(&Target { port: 902, ..target() }));
    assert!(!format!("{proxy:?}").contains("secret"));
}
