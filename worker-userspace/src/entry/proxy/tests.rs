//! Clients over real sockets, workers over lanes in memory.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::*;
use crate::carry::fake::{Lanes, SOON, Worker, accept, read_all, read_some};
use crate::config::Login;
use crate::inspect::ledger::FlowReport;
use crate::refusal::Code;
use crate::tunnel::credit;

/// The entries, and the one worker behind them.
struct House {
    proxy: Proxy,
    worker: Worker,
    http: SocketAddr,
    socks: SocketAddr,
}

impl House {
    async fn new() -> House {
        House::of(None, all_places()).await
    }

    async fn of(credentials: Option<Credentials>, places: Places) -> House {
        let lanes = Lanes::new();
        let worker = lanes.connect("worker", credit::INITIAL);
        let drain = Drain::new(SOON);
        let mut proxy = Proxy::new(lanes, Ledger::default(), credentials, drain.clone());
        proxy.places = places;
        let listeners = [listener().await, listener().await];
        let [http, socks] = [0, 1].map(|at: usize| listeners[at].local_addr().unwrap());
        let [first, second] = listeners;
        drain.spawn("http", proxy.clone().serve_http(first));
        drain.spawn("socks", proxy.clone().serve_socks(second));
        House { proxy, worker, http, socks }
    }

    async fn with_login() -> House {
        let dir = tempfile::tempdir().unwrap();
        let password_file = dir.path().join("password");
        std::fs::write(&password_file, "open sesame\n").unwrap();
        let login = Login { user: "Aladdin".into(), password_file };
        let password = login.read().unwrap();
        House::of(Some(Credentials::new(login.user, &password)), all_places()).await
    }

    fn newest(&self) -> FlowReport {
        self.proxy.ledger.report(None).remove(0)
    }

    /// The newest connection, once it has ended.
    async fn ended(&self) -> FlowReport {
        let ended = async {
            while self.proxy.ledger.open_count() > 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, ended).await.expect("the connection goes on");
        self.newest()
    }
}

fn all_places() -> Places {
    Places::new(PLACES, |_| PLACES)
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

async fn client(to: SocketAddr, says: &[u8]) -> TcpStream {
    let mut client = TcpStream::connect(to).await.unwrap();
    client.write_all(says).await.unwrap();
    client
}

/// What an answer has up to and with `end`.
async fn hear_to(client: &mut TcpStream, end: &str) -> String {
    let mut heard = Vec::new();
    while !heard.ends_with(end.as_bytes()) {
        let byte = timeout(SOON, client.read_u8()).await.expect("nothing more comes");
        heard.push(byte.unwrap_or_else(|e| panic!("{e} behind {:?}", String::from_utf8_lossy(&heard))));
    }
    String::from_utf8(heard).unwrap()
}

async fn hear_all(client: &mut TcpStream) -> Vec<u8> {
    let mut heard = Vec::new();
    timeout(SOON, client.read_to_end(&mut heard)).await.expect("it stays open").expect("a reset");
    heard
}

async fn hear<const N: usize>(client: &mut TcpStream) -> [u8; N] {
    let mut heard = [0; N];
    timeout(SOON, client.read_exact(&mut heard)).await.expect("no answer").expect("no whole answer");
    heard
}

const CONNECT: &[u8] = b"CONNECT vcenter.corp.example:443 HTTP/1.1\r\nHost: vcenter.corp.example:443\r\n\r\n";
const ASK: &[u8] = b"\x05\x01\x00\x03\x14vcenter.corp.example\x01\xbb";
const GREET: &[u8] = b"\x05\x01\x00";
const SUCCESS: [u8; 10] = [5, 0, 0, 1, 0, 0, 0, 0, 0, 0];

/// All kinds of refusals but those that are tried again.
fn codes() -> impl Iterator<Item = Code> {
    Code::ALL.into_iter().filter(|code| !code.is_of_carrier())
}

#[tokio::test]
async fn connect_is_answered_after_the_dial_and_half_close_goes_through() {
    let mut house = House::new().await;
    let mut client = client(house.http, CONNECT).await;
    let stream = house.worker.asked().await;
    assert_eq!(house.newest().state, "opening");
    let early = timeout(Duration::from_millis(200), client.read_u8()).await;
    assert!(early.is_err(), "an answer before the dial: {early:?}");
    accept(&stream);
    let head = hear_to(&mut client, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(!head.to_lowercase().contains("content-length") && !head.contains("transfer"), "{head}");
    client.write_all(b"a question").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&stream).await, b"a question");
    stream.send(BytesMut::from(&b"the answer"[..]));
    stream.finish();
    assert_eq!(hear_all(&mut client).await, b"the answer");
    let flow = house.ended().await;
    assert_eq!((flow.entry, flow.state.as_str()), (Entry::Connect, "closed"));
    assert_eq!((flow.source, flow.user), (client.local_addr().ok(), None));
    assert_eq!((flow.bytes_up, flow.bytes_down), (10, 10));
}

#[tokio::test]
async fn what_comes_with_the_request_is_not_lost() {
    let mut house = House::new().await;
    let data: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    for (to, head, answer) in
        [(house.http, CONNECT.to_vec(), &b"\r\n\r\n"[..]), (house.socks, [GREET, ASK].concat(), &SUCCESS)]
    {
        // In one packet, as far as it goes, with the end right behind it.
        for length in [1, 3000, data.len()] {
            let all = [&head[..], &data[..length]].concat();
            let stream = TcpStream::connect(to).await.unwrap();
            let (mut reader, mut writer) = stream.into_split();
            let saying = tokio::spawn(async move {
                writer.write_all(&all).await.unwrap();
                writer.shutdown().await.unwrap();
            });
            let stream = house.worker.asked().await;
            accept(&stream);
            assert!(read_all(&stream).await == data[..length], "{length} bytes");
            stream.send(BytesMut::from(&b"and back"[..]));
            stream.finish();
            let mut heard = Vec::new();
            timeout(SOON, reader.read_to_end(&mut heard)).await.unwrap().unwrap();
            assert!(heard.ends_with(&[answer, b"and back"].concat()), "{heard:?}");
            saying.await.unwrap();
            assert_eq!(house.ended().await.bytes_up, length as u64);
        }
    }
}

#[tokio::test]
async fn each_refusal_keeps_its_meaning_in_http() {
    let mut house = House::new().await;
    for code in codes() {
        let mut client = client(house.http, CONNECT).await;
        house.worker.asked().await.refuse(Refusal::new(code, "dialling \"it\""));
        let answered = String::from_utf8(hear_all(&mut client).await).unwrap();
        let (head, body) = answered.split_once("\r\n\r\n").unwrap();
        let expected = answer::answer(code);
        assert!(head.starts_with(&format!("HTTP/1.1 {}", expected.status)), "{code:?}: {head}");
        let word = code.word();
        let status = format!("dworker; error={}; details=\"{word}: dialling \\\"it\\\"\"", expected.error);
        assert!(head.contains(&status), "{code:?}: {head}");
        assert_eq!(body, format!("{word}: dialling \"it\"\n"));
        assert_eq!(house.ended().await.state, word);
    }
    let status = |code| answer::answer(code).status.as_u16();
    use Code::*;
    assert_eq!([NoRoute, Denied, NoWorker, TunnelLost, Limit].map(status), [403, 403, 503, 503, 503]);
    assert_eq!([Timeout, Refused, HostUnreachable, NameNotFound].map(status), [504, 502, 502, 502]);
}

#[tokio::test]
async fn each_refusal_keeps_its_meaning_in_socks() {
    let mut house = House::new().await;
    for code in codes() {
        let mut client = client(house.socks, &[GREET, ASK, b"what it says ahead"].concat()).await;
        house.worker.asked().await.refuse(Refusal::new(code, "dialling it"));
        let reply = answer::answer(code).reply;
        assert_eq!(hear_all(&mut client).await, [5, 0, 5, reply, 0, 1, 0, 0, 0, 0, 0, 0], "{code:?}");
        assert_eq!(house.ended().await.state, code.word());
    }
    let reply = |code| answer::answer(code).reply;
    use Code::*;
    assert_eq!([NoRoute, Denied, NetUnreachable, HostUnreachable].map(reply), [2, 2, 3, 4]);
    assert_eq!([NameNotFound, Refused, Timeout, NoWorker].map(reply), [4, 5, 6, 1]);
}

#[tokio::test]
async fn socks_takes_names_and_both_kinds_of_addresses() {
    let mut house = House::new().await;
    let v6 = [&b"\x05\x01\x00\x04"[..], &[0x20, 1, 0xd, 0xb8], &[0; 11], b"\x05\x01\xbb"].concat();
    for (ask, target) in [
        (ASK.to_vec(), "vcenter.corp.example:443"),
        (b"\x05\x01\x00\x01\x0a\x14\x00\x05\x01\xbb".to_vec(), "10.20.0.5:443"),
        (v6, "[2001:db8::5]:443"),
    ] {
        let mut client = client(house.socks, GREET).await;
        assert_eq!(hear(&mut client).await, [5, 0]);
        client.write_all(&ask).await.unwrap();
        let stream = house.worker.asked().await;
        assert_eq!(house.newest().target, target);
        accept(&stream);
        assert_eq!(hear(&mut client).await, SUCCESS);
        client.write_all(b"hello").await.unwrap();
        assert_eq!(read_some(&stream, 5).await, b"hello");
        stream.finish();
        client.shutdown().await.unwrap();
        assert!(read_all(&stream).await.is_empty() && hear_all(&mut client).await.is_empty());
        let flow = house.ended().await;
        assert_eq!((flow.entry, flow.state.as_str()), (Entry::Socks, "closed"));
        assert_eq!(flow.source, client.local_addr().ok());
    }
}

#[tokio::test]
async fn without_the_password_http_gets_407_and_nothing_else() {
    let mut house = House::with_login().await;
    let ask =
        |header: &str| format!("CONNECT h.example:443 HTTP/1.1\r\nHost: h\r\n{header}\r\n").into_bytes();
    let (none, wrong) = ("asks for a user and a password", "wrong user or password: compare `proxy.user`");
    for (ask, says) in [
        (ask(""), none),
        (ask("Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZA==\r\n"), wrong),
        (ask("Proxy-Authorization: Bearer QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n"), wrong),
        (ask("Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n"), none),
        (b"GET http://h.example/ HTTP/1.1\r\nHost: h.example\r\n\r\n".to_vec(), none),
        (b"CONNECT / HTTP/1.1\r\nHost: h.example\r\n\r\n".to_vec(), none),
    ] {
        let mut client = client(house.http, &ask).await;
        let head = hear_to(&mut client, "\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 407 ") && head.contains(says), "{head}");
        assert!(head.contains("proxy-authenticate: Basic realm=\"dworker\""), "{head}");
    }
    assert_eq!(house.proxy.ledger.total(), 0);
    // The right one may come on the same connection.
    let mut client = client(house.http, &ask("")).await;
    hear_to(&mut client, "password\n").await;
    let right = ask("Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n");
    client.write_all(&right).await.unwrap();
    accept(&house.worker.asked().await);
    assert!(hear_to(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 200 "));
    assert_eq!(house.newest().user.as_deref(), Some("Aladdin"));
}

#[tokio::test]
async fn without_the_password_socks_gets_nothing() {
    let mut house = House::with_login().await;
    let mut anonymous = client(house.socks, &[GREET, ASK].concat()).await;
    assert_eq!(hear_all(&mut anonymous).await, [5, 0xff]);
    for login in [&b"\x01\x07Aladdin\x0bopen sesamy"[..], b"\x01\x00\x00", b"\x01\x07aladdin\x0bopen sesame"]
    {
        let mut stranger = client(house.socks, &[b"\x05\x02\x00\x02", login, ASK].concat()).await;
        assert_eq!(hear_all(&mut stranger).await, [5, 2, 1, 1]);
    }
    assert_eq!(house.proxy.ledger.total(), 0);
    let mut known = client(house.socks, b"\x05\x02\x00\x02\x01\x07Aladdin\x0bopen sesame").await;
    assert_eq!(hear(&mut known).await, [5, 2, 1, 0]);
    known.write_all(ASK).await.unwrap();
    accept(&house.worker.asked().await);
    assert_eq!(hear(&mut known).await, SUCCESS);
    assert_eq!(house.newest().user.as_deref(), Some("Aladdin"));
}

#[tokio::test]
async fn what_is_no_connect_gets_a_clear_answer() {
    let house = House::new().await;
    for (request, status, says) in [
        (
            "GET http://vcenter.corp.example/ HTTP/1.1\r\nHost: vcenter.corp.example\r\n\r\n".to_owned(),
            "405",
            "CONNECT only",
        ),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc".to_owned(), "405", "CONNECT only"),
        ("CONNECT vcenter.corp.example HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "400", "HOST:PORT"),
        ("CONNECT u:p@vcenter.corp.example:443 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "400", "HOST:PORT"),
        ("CONNECT 10.20:443 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "400", "HOST:PORT"),
        (format!("CONNECT x:1 HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(20_000)), "431", ""),
        ("\x05\x01\x00".to_owned() + "\r\n\r\n", "400", ""),
    ] {
        let mut client = client(house.http, request.as_bytes()).await;
        let mut heard = Vec::new();
        // A server that closes without reading all may reset; what it said before counts.
        let _ = timeout(SOON, client.read_to_end(&mut heard)).await.expect("it stays open");
        let heard = String::from_utf8_lossy(&heard);
        assert!(
            heard.starts_with(&format!("HTTP/1.1 {status}")) && heard.contains(says),
            "{request:.40}: {heard}"
        );
    }
    assert_eq!(house.proxy.ledger.total(), 0);
}

#[tokio::test]
async fn what_is_no_socks_connect_gets_the_reply_for_it() {
    let house = House::new().await;
    for (says, hears) in [
        (
            &b"\x05\x01\x00\x05\x02\x00\x01\x0a\x00\x00\x01\x00\x50"[..],
            &[5, 0, 5, 7, 0, 1, 0, 0, 0, 0, 0, 0][..],
        ),
        (b"\x05\x01\x00\x05\x03\x00\x01\x0a\x00\x00\x01\x00\x50", &[5, 0, 5, 7, 0, 1, 0, 0, 0, 0, 0, 0]),
        (b"\x05\x01\x00\x05\x01\x00\x02\x0a\x00\x00\x01\x00\x50", &[5, 0, 5, 8, 0, 1, 0, 0, 0, 0, 0, 0]),
        (b"\x05\x01\x00\x05\x01\x00\x03\x03a b\x00\x50", &[5, 0, 5, 1, 0, 1, 0, 0, 0, 0, 0, 0]),
        (b"\x05\x01\x02", &[5, 0xff]),
        (b"\x04\x01\x00\x50\x0a\x00\x00\x01\x00", &[]),
        (b"GET / HTTP/1.1\r\n\r\n", &[]),
    ] {
        let mut client = client(house.socks, says).await;
        assert_eq!(hear_all(&mut client).await, hears, "{says:02x?}");
    }
    assert_eq!(house.proxy.ledger.total(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_says_too_little_is_let_go() {
    let house = House::new().await;
    for (to, says) in [
        (house.http, &b""[..]),
        (house.http, b"CONNECT vcenter.corp.example:443 HTTP/1.1\r\n"),
        (house.socks, b""),
        (house.socks, b"\x05"),
        (house.socks, b"\x05\x01\x00\x05\x01\x00"),
    ] {
        let mut client = client(to, says).await;
        let mut heard = Vec::new();
        let ended = timeout(2 * HANDSHAKE, client.read_to_end(&mut heard)).await;
        assert!(ended.is_ok(), "{says:?}: it may stay for ever");
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_again_and_again_without_a_password_is_let_go() {
    let house = House::with_login().await;
    let mut stranger = TcpStream::connect(house.http).await.unwrap();
    let started = tokio::time::Instant::now();
    let mut heard = [0; 4096];
    while started.elapsed() < 2 * PATIENCE {
        let said = stranger.write_all(CONNECT).await;
        match stranger.read(&mut heard).await {
            Ok(1..) if said.is_ok() => {}
            _ => return assert!(started.elapsed() >= PATIENCE),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("it holds a place for ever");
}

#[tokio::test]
async fn places_are_for_those_who_have_not_asked_yet() {
    let mut house = House::of(None, Places::new(1, |_| 1)).await;
    let idle = TcpStream::connect(house.socks).await.unwrap();
    let until_taken = async {
        while house.proxy.places.free() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, until_taken).await.expect("the first one holds no place");
    let mut first = client(house.http, CONNECT).await;
    let waiting = timeout(Duration::from_millis(200), house.worker.incoming.recv()).await;
    assert!(waiting.is_err(), "there is one place only");
    drop(idle);
    let stream = house.worker.asked().await;
    // It holds none any more while it is being dialled.
    let mut second = client(house.socks, &[GREET, ASK].concat()).await;
    accept(&house.worker.asked().await);
    assert_eq!(hear(&mut second).await, [5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    accept(&stream);
    assert!(hear_to(&mut first, "\r\n\r\n").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_lost_carrier_is_replaced_before_the_client_is_answered() {
    let mut house = House::new().await;
    for (to, says) in [(house.http, CONNECT.to_vec()), (house.socks, [GREET, ASK].concat())] {
        let mut client = client(to, &says).await;
        house.worker.asked().await.refuse(Refusal::new(Code::TunnelLost, "the tunnel was lost: cut"));
        accept(&house.worker.asked().await);
        assert!(client.read_u8().await.is_ok());
        assert_eq!(house.newest().retries, 1);
    }
}

#[tokio::test]
async fn a_cut_is_a_reset_for_the_client_and_for_the_target() {
    let mut house = House::new().await;
    for (to, says, answered) in
        [(house.http, CONNECT.to_vec(), "\r\n\r\n"), (house.socks, [GREET, ASK].concat(), "\0\0\0\0\0\0")]
    {
        for by_hand in [false, true] {
            let mut client = client(to, &says).await;
            let stream = house.worker.asked().await;
            accept(&stream);
            hear_to(&mut client, answered).await;
            match by_hand {
                true => assert!(house.proxy.ledger.close(house.newest().id, "admin")),
                false => stream.reset(Refusal::new(Code::Reset, "gone")),
            }
            let read = timeout(SOON, client.read(&mut [0])).await.expect("the client is not told");
            assert_eq!(read.expect_err("a clean end").kind(), std::io::ErrorKind::ConnectionReset);
            let code = if by_hand { Code::Closed } else { Code::Reset };
            assert_eq!(timeout(SOON, stream.failed()).await.unwrap().code, code);
            assert_eq!(house.ended().await.state, code.word());
        }
        // The other way round.
        let mut client = client(to, &says).await;
        let stream = house.worker.asked().await;
        accept(&stream);
        hear_to(&mut client, answered).await;
        reset_on_close(&client);
        drop(client);
        assert_eq!(timeout(SOON, stream.failed()).await.expect("the target is not told").code, Code::Reset);
        assert_eq!(house.ended().await.state, "reset");
    }
}

#[tokio::test]
async fn a_socks_client_that_gives_up_is_noticed_while_the_target_is_dialled() {
    let mut house = House::new().await;
    let client = client(house.socks, &[GREET, ASK].concat()).await;
    let stream = house.worker.asked().await;
    reset_on_close(&client);
    drop(client);
    timeout(SOON, stream.failed()).await.expect("it is dialled for nobody");
    assert_eq!(house.ended().await.state, "reset");
}

#[tokio::test]
async fn a_drain_lets_go_of_who_has_not_asked_and_keeps_who_is_connected() {
    let mut house = House::new().await;
    let mut connected = client(house.http, CONNECT).await;
    let stream = house.worker.asked().await;
    accept(&stream);
    hear_to(&mut connected, "\r\n\r\n").await;
    let mut idle =
        [TcpStream::connect(house.http).await.unwrap(), TcpStream::connect(house.socks).await.unwrap()];
    let until_taken = async {
        while house.proxy.places.free() > PLACES - 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, until_taken).await.expect("they were not accepted");
    house.proxy.drain.stop();
    for idle in &mut idle {
        assert_eq!(timeout(SOON, idle.read(&mut [0])).await.expect("it is kept").unwrap_or(0), 0);
    }
    connected.write_all(b"still here").await.unwrap();
    assert_eq!(read_some(&stream, 10).await, b"still here");
}
