//! Our records against those of rustls, and against who means us ill.

use std::io::ErrorKind;
use std::sync::Arc;

use proptest::prelude::*;
use rustls::client::UnbufferedClientConnection;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::UnbufferedServerConnection;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedCipherSuite};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::super::fake;
use super::super::negotiate::negotiate;
use super::*;

type Ours = Stream<DuplexStream>;
type Theirs = TlsStream<DuplexStream>;

/// All algorithms that rustls has, of both versions.
fn suites() -> Vec<SupportedCipherSuite> {
    aws_lc_rs::ALL_CIPHER_SUITES.to_vec()
}

fn first() -> SupportedCipherSuite {
    suites()[0]
}

fn configs(suite: SupportedCipherSuite) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let provider = Arc::new(CryptoProvider { cipher_suites: vec![suite], ..aws_lc_rs::default_provider() });
    let versions = [if suite.tls13().is_some() { &TLS13 } else { &TLS12 }];
    // The key decides between ECDSA and RSA in TLS 1.2.
    let (chain, key) = match format!("{:?}", suite.suite()).contains("RSA_WITH") {
        true => fake::rsa(),
        false => fake::key(),
    };
    let mut roots = RootCertStore::empty();
    roots.add(chain.clone()).unwrap();
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .unwrap();
    (client.enable_secret_extraction, server.enable_secret_extraction) = (true, true);
    (Arc::new(client), Arc::new(server))
}

fn name() -> ServerName<'static> {
    "localhost".try_into().unwrap()
}

async fn client(config: Arc<ClientConfig>, io: DuplexStream) -> Ours {
    let end = UnbufferedClientConnection::new(config, name()).unwrap();
    negotiate(io, end, BytesMut::new()).await.map_err(|(error, _)| error).unwrap()
}

async fn server(config: Arc<ServerConfig>, io: DuplexStream) -> Ours {
    let end = UnbufferedServerConnection::new(config).unwrap();
    negotiate(io, end, BytesMut::new()).await.map_err(|(error, _)| error).unwrap()
}

/// Ours and theirs, once each way round.
async fn with_theirs(suite: SupportedCipherSuite) -> [(Ours, Theirs); 2] {
    let (for_client, for_server) = configs(suite);
    let (near, far) = duplex(1000);
    let theirs = TlsAcceptor::from(for_server.clone()).accept(far);
    let (ours, theirs) = tokio::join!(client(for_client.clone(), near), theirs);
    let one = (ours, theirs.unwrap().into());
    let (near, far) = duplex(1000);
    let theirs = TlsConnector::from(for_client).connect(name(), far);
    let (ours, theirs) = tokio::join!(server(for_server, near), theirs);
    [one, (ours, theirs.unwrap().into())]
}

/// Both ends ours.
async fn both(suite: SupportedCipherSuite) -> (Ours, Ours) {
    let (for_client, for_server) = configs(suite);
    let (near, far) = duplex(1 << 20);
    tokio::join!(client(for_client, near), server(for_server, far))
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8).collect()
}

/// Sends all in pieces of `piece` bytes and says farewell; meanwhile takes all that comes, to the farewell.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    io: &mut S,
    all: &[u8],
    piece: usize,
) -> io::Result<Vec<u8>> {
    let (mut from, mut to) = tokio::io::split(io);
    let sending = async {
        for piece in all.chunks(piece) {
            to.write_all(piece).await?;
            to.flush().await?;
        }
        to.shutdown().await
    };
    let mut come = Vec::new();
    let (sent, read) = tokio::join!(sending, from.read_to_end(&mut come));
    sent?;
    read?;
    Ok(come)
}

async fn sent(to: &mut (impl AsyncWrite + Unpin), all: &[u8]) -> io::Result<()> {
    to.write_all(all).await?;
    to.flush().await
}

#[tokio::test]
async fn each_algorithm_of_rustls_is_understood_both_ways() {
    let (up, down) = (pattern(300_001), pattern(200_003));
    for suite in suites() {
        for (mut ours, mut theirs) in with_theirs(suite).await {
            let (here, there) =
                tokio::join!(exchange(&mut ours, &up, 70_001), exchange(&mut theirs, &down, 4_999));
            assert!(here.unwrap() == down, "{suite:?}");
            assert!(there.unwrap() == up, "{suite:?}");
        }
    }
}

/// rustls changes its keys, and wants ours to be changed; then ours are used up.
#[tokio::test]
async fn keys_change_on_the_way() {
    let (up, down) = (pattern(100_000), pattern(150_000));
    for suite in suites().into_iter().filter(|suite| suite.tls13().is_some()) {
        for (mut ours, mut theirs) in with_theirs(suite).await {
            for round in 0..3 {
                match &mut theirs {
                    TlsStream::Client(theirs) => theirs.get_mut().1.refresh_traffic_keys().unwrap(),
                    TlsStream::Server(theirs) => theirs.get_mut().1.refresh_traffic_keys().unwrap(),
                }
                ours.session.sealer.spend(1 + round);
                let mut come = (vec![0; down.len()], vec![0; up.len()]);
                let (mut here, mut there) = (tokio::io::split(&mut ours), tokio::io::split(&mut theirs));
                let sending = async { tokio::join!(sent(&mut here.1, &up), sent(&mut there.1, &down)) };
                let reading =
                    async { tokio::join!(here.0.read_exact(&mut come.0), there.0.read_exact(&mut come.1)) };
                let ((one, other), (here, there)) = tokio::join!(sending, reading);
                one.and(other).unwrap();
                here.and(there).unwrap();
                assert!(come.0 == down && come.1 == up, "{suite:?}");
            }
        }
    }
}

/// TLS 1.2 can't change its keys: then there is an end, and nothing more is sealed with one that is used up.
#[tokio::test]
async fn a_key_that_cant_be_changed_ends_the_connection() {
    let old = suites().into_iter().find(|suite| suite.tls13().is_none()).unwrap();
    let (mut ours, mut other) = both(old).await;
    ours.session.sealer.spend(2);
    ours.write_all(b"one").await.unwrap();
    ours.write_all(b"two").await.unwrap();
    let error = ours.write_all(b"three").await.unwrap_err();
    assert_eq!(error.to_string(), "the connection's key has sealed as much as it may");
    let mut come = [0; 6];
    other.read_exact(&mut come).await.unwrap();
    assert_eq!(&come, b"onetwo");
}

#[tokio::test]
async fn a_connection_that_is_cut_has_not_ended() {
    for suite in suites() {
        let (mut ours, mut other) = both(suite).await;
        other.write_all(b"all?").await.unwrap();
        other.flush().await.unwrap();
        drop(other);
        let mut come = Vec::new();
        let error = ours.read_to_end(&mut come).await.unwrap_err();
        assert_eq!((error.kind(), &come[..]), (ErrorKind::UnexpectedEof, &b"all?"[..]));
        assert_eq!(ours.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::UnexpectedEof, "again");
    }
}

/// Hands on what one end sends as `change` makes it, and says how the other end took it.
async fn changed(
    suite: SupportedCipherSuite,
    change: impl Fn(usize, &mut Vec<Vec<u8>>),
) -> (Vec<u8>, io::Error) {
    let (mut ours, mut other) = both(suite).await;
    let mut records = Vec::new();
    for text in ["one", "two", "three"] {
        other.session.seal(Kind::Data, |out| out.extend_from_slice(text.as_bytes())).unwrap();
        records.push(std::mem::take(&mut other.session.sealed));
    }
    change(records.len(), &mut records);
    // Past the end that sealed them.
    other.io.write_all(&records.concat()).await.unwrap();
    let mut come = Vec::new();
    let mut piece = [0; 100];
    let error = loop {
        match ours.read(&mut piece).await {
            Ok(n) => come.extend_from_slice(&piece[..n]),
            Err(error) => break error,
        }
    };
    // Whoever sent it is told, and nothing more is given out.
    let alert = other.read(&mut piece).await.unwrap_err();
    let alert: &rustls::Error = alert.get_ref().unwrap().downcast_ref().unwrap();
    assert!(matches!(alert, rustls::Error::AlertReceived(_)), "{alert}");
    assert_eq!(ours.read(&mut piece).await.unwrap_err().kind(), ErrorKind::InvalidData);
    (come, error)
}

#[tokio::test]
async fn what_was_altered_repeated_left_out_or_swapped_is_refused() {
    for suite in suites() {
        let altered = changed(suite, |_, records| {
            let last = records[1].len() - 1;
            records[1][last] ^= 1;
        });
        let repeated = changed(suite, |_, records| records.insert(1, records[0].clone()));
        let left_out = changed(suite, |_, records| drop(records.remove(1)));
        let swapped = changed(suite, |_, records| records.swap(1, 2));
        for (come, error) in [altered.await, repeated.await, left_out.await, swapped.await] {
            assert_eq!((error.kind(), &come[..]), (ErrorKind::InvalidData, &b"one"[..]), "{suite:?}");
        }
    }
}

#[tokio::test]
async fn what_is_no_record_of_this_connection_is_refused() {
    let plain_alert = vec![21, 3, 3, 0, 2, 1, 0];
    for suite in suites() {
        let bad = |record: Vec<u8>| changed(suite, move |_, records| records.insert(1, record.clone()));
        let (_, long) = bad(vec![23, 3, 3, 0xff, 0xff]).await;
        assert!(long.to_string().contains("more than there may be"), "{long}");
        let (_, strange) = bad(vec![20, 3, 3, 0, 1, 1]).await;
        assert_eq!(strange.to_string(), "a TLS record of type 20");
        // In the clear: an attacker could end the connection as if its peer had.
        let (come, _) = bad(plain_alert.clone()).await;
        assert_eq!(come, b"one");
        let (come, _) = bad(vec![23, 3, 3, 0, 3, 1, 2, 3]).await;
        assert_eq!(come, b"one");
    }
}

#[tokio::test]
async fn a_peer_that_sends_records_without_data_is_cut() {
    let (mut ours, mut other) = both(first()).await;
    for _ in 0..=QUIET {
        other.session.seal(Kind::Data, |_| ()).unwrap();
    }
    other.flush().await.unwrap();
    assert_eq!(ours.read(&mut [0]).await.unwrap_err().to_string(), "too many TLS records without data");
}

/// Of a message that takes for ever, no more is kept than it may have.
#[tokio::test]
async fn a_handshake_in_tiny_pieces_is_given_up() {
    let (_, for_server) = configs(first());
    let (near, mut far) = duplex(1 << 20);
    // A `ClientHello` of 60,000 bytes, a byte in each record.
    let mut wire = vec![22, 3, 1, 0, 4, 1, 0, 0xea, 0x60];
    (0..50_000).for_each(|_| wire.extend_from_slice(&[22, 3, 1, 0, 1, 3]));
    far.write_all(&wire).await.unwrap();
    let end = UnbufferedServerConnection::new(for_server).unwrap();
    let (error, _) = negotiate(near, end, BytesMut::new()).await.map(drop).unwrap_err();
    assert_eq!(error.to_string(), "a handshake that is not over after 65535 bytes");
}

/// A client that speaks no TLS is told so, and is no reason to panic.
#[tokio::test]
async fn who_speaks_no_tls_gets_an_alert() {
    for wire in
        [&b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], &[22, 3, 1, 0, 2, 1, 0, 99, 99, 99, 99, 99, 99]]
    {
        let (_, for_server) = configs(first());
        let (near, mut far) = duplex(1 << 20);
        far.write_all(wire).await.unwrap();
        let end = UnbufferedServerConnection::new(for_server).unwrap();
        let (error, io) = negotiate(near, end, BytesMut::new()).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        drop(io);
        let mut told = Vec::new();
        far.read_to_end(&mut told).await.unwrap();
        assert_eq!((told.len(), told[0]), (7, 21), "{told:?}");
    }
}

#[tokio::test]
async fn messages_of_a_handshake_that_is_over_are_refused() {
    // Who asks to be authenticated, who begins anew, half a message before data, a key behind which there is more.
    let messages: [&[u8]; 5] =
        [&[13, 0, 0, 1, 0], &[1, 0, 0, 1, 0], &[24, 0, 0, 1, 7], &[24, 0, 0, 1, 0, 4], &[24, 0xff, 0, 1]];
    for message in messages {
        let (mut ours, mut other) = both(first()).await;
        other.session.seal(Kind::Handshake, |out| out.extend_from_slice(message)).unwrap();
        other.session.seal(Kind::Data, |out| out.extend_from_slice(b"x")).unwrap();
        other.flush().await.unwrap();
        let error = ours.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{message:?}");
    }
    let (mut ours, mut other) = both(first()).await;
    other.session.seal(Kind::Handshake, |out| out.extend_from_slice(&[24, 0])).unwrap();
    other.session.seal(Kind::Data, |out| out.extend_from_slice(b"x")).unwrap();
    other.flush().await.unwrap();
    let error = ours.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.to_string(), "a message of TLS that can't be here");
}

/// What is sealed and not taken is a batch; more has to wait.
#[tokio::test]
async fn what_waits_to_be_sent_is_bounded() {
    let (near, far) = duplex(16 * 1024);
    let (for_client, for_server) = configs(first());
    let (mut ours, _other) = tokio::join!(client(for_client, near), server(for_server, far));
    let all = vec![1; 1 << 20];
    let mut taken = 0;
    std::future::poll_fn(|cx| {
        while let Poll::Ready(n) = Pin::new(&mut ours).poll_write(cx, &all) {
            taken += n.unwrap();
        }
        Poll::Ready(())
    })
    .await;
    assert!(taken <= 16 * 1024 + BATCH * record::MOST, "{taken}");
    assert!(
        ours.session.sealed.len() <= BATCH * (record::MOST + record::OVERHEAD),
        "{}",
        ours.session.sealed.len()
    );
}

/// A message and its answer of some kilobytes are read in one go each time: its rest, alone, would be a call of its own.
#[tokio::test]
async fn one_short_read_does_not_end_a_burst() {
    let (mut ours, mut other) = both(first()).await;
    let message = pattern(READ[0] + 20);
    for _ in 0..4 {
        ours.write_all(&message).await.unwrap();
        ours.flush().await.unwrap();
        let mut come = vec![0; message.len()];
        other.read_exact(&mut come).await.unwrap();
        assert!(come == message);
        assert_eq!(other.session.read, READ[1]);
    }
}

/// Idle lanes are many.
#[tokio::test]
async fn what_a_burst_needed_is_given_back() {
    let (mut ours, mut other) = both(first()).await;
    let all = pattern(400_000);
    let mut come = vec![0; all.len()];
    tokio::join!(
        async {
            ours.write_all(&all).await.unwrap();
            ours.flush().await.unwrap();
        },
        async { other.read_exact(&mut come).await.unwrap() }
    );
    for _ in 0..LITTLE + 2 {
        ours.write_all(b"ping").await.unwrap();
        ours.flush().await.unwrap();
        other.read_exact(&mut come[..4]).await.unwrap();
    }
    assert!(ours.session.sealed.capacity() < 1000, "{}", ours.session.sealed.capacity());
    assert!(other.session.incoming.capacity() <= READ[0], "{}", other.session.incoming.capacity());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_arrives_in_pieces_is_the_same(length in 1usize..200_000, piece in 1usize..70_000, room in 2_000usize..70_000) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (for_client, for_server) = configs(first());
            let (near, far) = duplex(room);
            let (mut ours, mut other) = tokio::join!(client(for_client, near), server(for_server, far));
            let all = pattern(length);
            let (here, there) = tokio::join!(exchange(&mut ours, &all, piece), exchange(&mut other, &[], 1));
            assert!(here.unwrap().is_empty());
            assert!(there.unwrap() == all);
        });
    }

    #[test]
    fn nothing_that_arrives_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000), header in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut ours, mut other) = both(first()).await;
            let mut wire = if header { vec![23, 3, 3, 0, 40] } else { Vec::new() };
            wire.extend_from_slice(&bytes);
            other.io.write_all(&wire).await.unwrap();
            drop(other);
            assert!(ours.read(&mut [0; 10]).await.is_err());
        });
    }
}
