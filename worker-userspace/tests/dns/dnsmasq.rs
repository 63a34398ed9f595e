//! The same with a real resolver: what it says through us is what it says itself.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tokio::net::UdpSocket;

use crate::support::*;

/// dnsmasq in the foreground with some records and its query log.
struct Dnsmasq {
    child: Child,
    addr: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Dnsmasq {
    async fn start() -> Dnsmasq {
        // The port is free for a moment between our socket and dnsmasq's; if somebody is faster, take another.
        for _ in 0..10 {
            let addr = bind_both(4, 0).await.0.local_addr().unwrap();
            let mut child = Command::new("dnsmasq")
                .args([
                    "--keep-in-foreground",
                    "--conf-file=/dev/null",
                    "--no-resolv",
                    "--no-hosts",
                    "--no-daemon",
                ])
                .args(["--bind-interfaces", "--listen-address=127.0.0.4", &format!("--port={}", addr.port())])
                .args(["--log-queries", "--log-facility=-", "--edns-packet-max=4096", "--pid-file="])
                .args(["--address=/other.example/192.0.2.1", "--address=/rebind.example/240.64.0.1"])
                .args([
                    "--host-record=both.example,192.0.2.5,2001:db8::5",
                    "--mx-host=both.example,mx.example,10",
                ])
                .args((0..20).map(|i| format!("--txt-record=large.example,{i}{}", "x".repeat(180))))
                .stderr(Stdio::piped())
                .spawn()
                .expect("dnsmasq must be installed (Debian: dnsmasq-base)");
            let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
            let started =
                lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("started, version")));
            let log = Arc::<Mutex<String>>::default();
            let mut dnsmasq = Dnsmasq { child, addr, log: log.clone() };
            if started.is_some() {
                std::thread::spawn(move || {
                    for line in lines.map_while(Result::ok) {
                        log.lock().unwrap().push_str(&(line + "\n"));
                    }
                });
                return dnsmasq;
            }
            dnsmasq.child.wait().unwrap();
        }
        panic!("dnsmasq does not start");
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    async fn ask(&self, query: &[u8]) -> Vec<u8> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.addr).await.unwrap();
        ask(&socket, query).await
    }
}

#[tokio::test]
async fn a_real_resolvers_answers_are_what_it_says_itself() {
    let dnsmasq = Dnsmasq::start().await;
    let house = House::new(dnsmasq.addr.port());
    let app = house.udp(dnsmasq.addr.ip()).await;
    for (name, kind, edns) in [
        ("www.other.example.", RecordType::A, None),
        ("www.other.example.", RecordType::AAAA, Some(1232)),
        ("bOTh.eXample.", RecordType::AAAA, Some(1232)),
        ("both.example.", RecordType::MX, None),
        ("both.example.", RecordType::ANY, None),
        ("large.example.", RecordType::TXT, Some(4096)),
        ("large.example.", RecordType::TXT, Some(1232)),
        ("large.example.", RecordType::TXT, None),
        ("5.2.0.192.in-addr.arpa.", RecordType::PTR, None),
        ("nowhere.example.", RecordType::A, Some(512)),
    ] {
        let asked = query(0x7777, name, kind, edns);
        assert_eq!(ask(&app, &asked).await, dnsmasq.ask(&asked).await, "{name} {kind} {edns:?}");
    }
    assert_eq!(house.counts().forwarded, 10);
}

/// As a resolver library does it: what is too long for UDP says so, and TCP has the whole.
#[tokio::test]
async fn a_truncated_answer_is_whole_over_tcp() {
    let dnsmasq = Dnsmasq::start().await;
    let house = House::new(dnsmasq.addr.port());
    let app = house.udp(dnsmasq.addr.ip()).await;
    let asked = query(1, "large.example.", RecordType::TXT, None);
    assert!(decode(&ask(&app, &asked).await).truncation);
    let mut app = house.tcp(dnsmasq.addr.ip()).await;
    write_message(&mut app, &asked).await.unwrap();
    let whole = decode(&read_message(&mut app).await.unwrap().unwrap());
    assert!(!whole.truncation);
    assert_eq!(whole.answers.len(), 20);
}

#[tokio::test]
async fn a_real_resolver_never_hears_a_proxy_hosts_name_and_cannot_rebind() {
    let dnsmasq = Dnsmasq::start().await;
    let house = House::new(dnsmasq.addr.port());
    let app = house.udp(dnsmasq.addr.ip()).await;
    for kind in [RecordType::A, RecordType::AAAA, RecordType::HTTPS, RecordType::MX, RecordType::ANY] {
        for name in ["vc.corp.example.", "Host.lab.example.", "_443._tcp.vc.corp.example."] {
            let answered = decode(&ask(&app, &query(1, name, kind, Some(1232))).await);
            assert_eq!(answered.response_code, ResponseCode::NoError);
        }
    }
    let answered = ask(&app, &query(2, "www.rebind.example.", RecordType::A, Some(1232))).await;
    assert!(addresses(&answered).is_empty(), "{answered:?}");
    // This one is in the log, so those before it would be.
    until(|| dnsmasq.log().contains("www.rebind.example"), || dnsmasq.log()).await;
    let log = dnsmasq.log().to_lowercase();
    assert!(!log.contains("corp.example") && !log.contains("lab.example"), "{log}");
}
