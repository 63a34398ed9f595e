//! Rules that are replaced while they are in use.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dworker::config::{Families, Steer};
use dworker::steer::kernel::{FlowRecord, Purpose};
use dworker::steer::steering::{Carrier, Inherited, Started, SteerError, Steering};
use hickory_proto::op::{Message, MessageType, Query};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use socket2::SockRef;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::client::{Client, Kind};
use crate::world::{Cgroup, DEADLINE, REMOTE4, at, attached, is_idle, listen, port, synthetic, udp};

/// Steering as the daemon has it, with a forwarder that is the test's.
struct House {
    steering: Arc<Steering>,
    forwarder: TcpListener,
    _runtime: Runtime,
    _state: TempDir,
}

impl House {
    fn new(cgroup: &Cgroup, carriers: Vec<Carrier>) -> House {
        House::at(tempfile::tempdir().unwrap(), cgroup, carriers)
    }

    fn at(state: TempDir, cgroup: &Cgroup, carriers: Vec<Carrier>) -> House {
        let (synthetic4, synthetic6) = synthetic();
        let config = Steer {
            cgroups: vec![cgroup.path.clone()],
            proxy_hosts: vec![],
            synthetic4,
            synthetic6,
            families: Families { ipv4: true, ipv6: false },
            down_for: Duration::ZERO,
            exclude_cgroups: vec![],
            exclude_users: vec![],
            addresses_closed: false,
            pins: crate::world::pins(),
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let context = runtime.enter();
        let started = Steering::start(&config, state.path(), carriers, Inherited::default())
            .unwrap_or_else(|e| panic!("{e}"));
        drop(context);
        let Started { steering, forwarder, dns } = started;
        steering.capture().unwrap_or_else(|e| panic!("{e}"));
        runtime.spawn(dns.run(std::future::pending()));
        let forwarder = forwarder.into_iter().next().expect("on 127.0.0.1");
        forwarder.set_nonblocking(false).unwrap();
        SockRef::from(&forwarder).set_read_timeout(Some(DEADLINE)).unwrap();
        let (_, source) = forwarder.accept().unwrap();
        assert!(steering.is_own(source));
        House { steering, forwarder, _runtime: runtime, _state: state }
    }

    fn update(&self, carriers: Vec<Carrier>) -> Duration {
        let start = Instant::now();
        self.steering.update(carriers).unwrap_or_else(|e| panic!("{e}"));
        start.elapsed()
    }

    /// The next captured connection.
    fn accept(&self) -> (TcpStream, FlowRecord) {
        let (stream, source) = self.forwarder.accept().expect("a captured connection");
        let arrival = self.steering.take_flow(port(&self.forwarder), source, stream.as_fd());
        (stream, arrival.captured().expect("a record"))
    }

    /// What the next captured connection is for.
    fn host(&self) -> String {
        self.steering.host_of(&self.accept().1).expect("a host").to_string()
    }

    fn counter(&self, word: &str) -> u64 {
        self.steering.status(None).counters[word]
    }
}

fn carrier(id: i64, patterns: &[&str]) -> Carrier {
    let proxy_hosts = patterns.iter().map(|p| p.parse().unwrap_or_else(|e| panic!("{e}"))).collect();
    Carrier { id, name: format!("site-{id}"), proxy_hosts }
}

/// Asks a resolver for the address of a name.
fn resolve(client: &Client, resolver: &str, name: &str) -> String {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    let socket = client.socket(Kind::Udp4);
    socket.send_to(resolver, &query.to_vec().unwrap()).unwrap();
    let (answer, from) = socket.receive();
    assert_eq!(from, resolver);
    let answer = Message::from_vec(&answer).unwrap();
    answer.answers.first().unwrap_or_else(|| panic!("{answer}")).data.to_string()
}

pub(crate) fn nothing_is_switched_while_another_process_takes_over() {
    let cgroup = Cgroup::new();
    let house = House::new(&cgroup, vec![]);
    let programs = attached(&cgroup.path).len();
    let (handed_on, off) = house.steering.pause().unwrap();
    assert!(!off);
    let error = house.steering.switch(false).unwrap_err();
    assert!(matches!(error, SteerError::Standing), "{error}");
    assert_eq!(attached(&cgroup.path).len(), programs);
    drop(handed_on);
    let errors = house.steering.resume();
    assert!(errors.is_empty(), "{errors:?}");
    assert!(house.steering.switch(false).unwrap());
    assert!(house.steering.pause().unwrap().1, "the next one must know that it is off");
}

pub(crate) fn what_is_added_is_steered_and_what_is_removed_goes_direct() {
    let cgroup = Cgroup::new();
    let server = listen(&at(REMOTE4, 0));
    let house = House::new(&cgroup, vec![]);
    let client = Client::inside(&cgroup.path);
    let to = at(REMOTE4, port(&server));
    let direct = || {
        let socket = client.connect(&to).unwrap();
        server.accept().expect("it went direct");
        drop(socket);
        assert!(is_idle(&house.forwarder));
    };
    direct();
    house.update(vec![carrier(1, &[&to])]);
    let open = client.connect(&to).unwrap();
    let (stream, flow) = house.accept();
    assert_eq!(flow.target.to_string(), to);
    house.update(vec![carrier(1, &["203.0.113.9"])]);
    direct();
    // What was open before is left alone.
    assert_eq!(open.peer(), to);
    exchange(&open, stream);
    house.update(vec![carrier(2, &["198.51.100.0/24"])]);
    drop(client.connect(&to).unwrap());
    assert_eq!(house.host(), REMOTE4);
    assert!(is_idle(&server));
}

/// Sends bytes both ways over a captured connection.
fn exchange(application: &crate::client::Remote<'_>, mut stream: TcpStream) {
    use std::io::{Read, Write};
    stream.write_all(b"hello").unwrap();
    assert_eq!(application.read(), b"hello");
    application.send(b"back").unwrap();
    let mut data = [0; 4];
    stream.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"back");
}

pub(crate) fn a_name_that_is_removed_is_asked_of_its_resolver_again() {
    let cgroup = Cgroup::new();
    let server = listen(&at(REMOTE4, 0));
    let number = port(&server);
    // A resolver to which every name is `REMOTE4`. It ends with its socket's patience.
    let upstream = udp("198.51.100.2:53");
    let resolver = upstream.local_addr().unwrap().to_string();
    let over = Arc::new(AtomicBool::new(false));
    let answering = std::thread::spawn({
        let over = over.clone();
        upstream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        move || {
            let mut buffer = [0; 512];
            while !over.load(Ordering::Relaxed) {
                let Ok((length, from)) = upstream.recv_from(&mut buffer) else { continue };
                let mut message = Message::from_vec(&buffer[..length]).unwrap();
                message.metadata.message_type = MessageType::Response;
                let data = RData::A(A(REMOTE4.parse().unwrap()));
                message.add_answer(Record::from_rdata(message.queries[0].name.clone(), 60, data));
                upstream.send_to(&message.to_vec().unwrap(), from).unwrap();
            }
        }
    });
    let house = House::new(&cgroup, vec![]);
    let client = Client::inside(&cgroup.path);
    let resolve = || resolve(&client, &resolver, "vc.example");
    assert_eq!(resolve(), REMOTE4);
    house.update(vec![carrier(1, &["*.example"])]);
    let address = resolve();
    assert_eq!(address, "240.64.0.1");
    let stale = at(&address, number);
    let open = client.connect(&stale).unwrap();
    let (stream, flow) = house.accept();
    assert_eq!(house.steering.host_of(&flow).unwrap().to_string(), "vc.example");

    house.update(vec![]);
    assert_eq!(resolve(), REMOTE4, "by who resolves anew");
    drop(client.connect(&at(&resolve(), number)).unwrap());
    server.accept().expect("it went direct");
    assert_eq!(client.connect(&stale).err(), Some(libc::EHOSTUNREACH), "who kept the address is told");
    assert_eq!(house.counter("refused-stale-synthetic"), 1);
    assert_eq!(open.peer(), stale);
    exchange(&open, stream);

    house.update(vec![carrier(2, &["other.example", "vc.example"])]);
    drop(client.connect(&stale).unwrap());
    assert_eq!(house.host(), "vc.example", "before it is asked for again");
    assert_eq!(resolve(), address);
    over.store(true, Ordering::Relaxed);
    answering.join().unwrap();
}

/// Connections go to addresses whose carrier stays the same, while the rules for them and around them are replaced.
pub(crate) fn rules_are_replaced_under_live_traffic() {
    const EACH: u32 = 3_000;
    let cgroup = Cgroup::new();
    let server = listen(&at(REMOTE4, 0));
    let elsewhere: SocketAddr = at(REMOTE4, port(&server)).parse().unwrap();
    // By a rule that stays; and by ever other rules, with another carrier's in between.
    let steered: [SocketAddr; 2] = ["203.0.113.1:443", "203.0.113.77:443"].map(|to| to.parse().unwrap());
    let sets = || {
        [
            vec![carrier(1, &["203.0.113.1:443", "203.0.0.0/16:443"]), carrier(2, &["203.0.0.0/8:443"])],
            vec![
                carrier(2, &["203.0.0.0/16:443", "198.51.100.1:1"]),
                carrier(1, &["203.0.113.64/26:443", "203.0.113.1:443", "203.0.113.1:80"]),
            ],
            vec![
                carrier(3, &["203.0.113.0/24:80", "198.51.100.0/24:2"]),
                carrier(1, &["203.0.113.0/24:443", "203.0.113.1:443"]),
            ],
            vec![
                carrier(1, &["203.0.113.1:443", "0.0.0.0/0:443"]),
                carrier(2, &["203.0.113.0/24:1", "203.0.113.77:22"]),
            ],
        ]
    };
    let house = House::new(&cgroup, sets()[0].clone());
    let done = AtomicBool::new(false);
    let updates = std::thread::scope(|scope| {
        let connecting: Vec<_> = steered
            .into_iter()
            .chain([elsewhere])
            .map(|to| {
                scope.spawn({
                    let path = &cgroup.path;
                    move || Client::inside(path).connect_often(to, EACH)
                })
            })
            .collect();
        // They end with the listeners' patience if a connection goes astray; each accepts exactly what is connected.
        let direct =
            scope.spawn(|| (0..EACH).for_each(|_| drop(server.accept().expect("a direct connection"))));
        let captured = scope.spawn(|| {
            for _ in 0..2 * EACH {
                let (_, flow) = house.accept();
                assert!(steered.contains(&flow.target), "{flow:?}");
                assert!(matches!(flow.purpose, Purpose::Rule { group: 0, .. }), "{flow:?}");
            }
        });
        let updating = scope.spawn(|| {
            let mut count = 0;
            for set in std::iter::repeat_with(sets).flatten() {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                house.update(set);
                count += 1;
            }
            count
        });
        let results: Vec<_> =
            connecting.into_iter().chain([direct, captured]).map(|thread| thread.join()).collect();
        done.store(true, Ordering::Relaxed);
        let updates = updating.join().unwrap();
        assert!(results.iter().all(Result::is_ok), "after {updates} updates");
        updates
    });
    println!("{} connections went their ways during {updates} updates", 3 * EACH);
    assert!(updates >= 20, "{updates}");
}

const CARRIERS: u32 = 2_000;
const RULES: u32 = 10_000;
/// How long replacing all of them may take.
const MOST: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1_500 } else { 300 });

/// The patterns of the carriers, five each: a network, an address, an IPv6 address, a name and a wildcard.
fn many(shift: u32) -> Vec<Carrier> {
    let each = |n: u32| {
        // Spread over the address space, as those of a large network are.
        let spread = (n + shift).wrapping_mul(0x9e37_79b1);
        let net = Ipv4Addr::from(spread & 0x3fff_ff00 | 0x0a00_0000);
        let host = Ipv4Addr::from((n + shift) << 8 | 0x5a00_0001);
        let v6 = Ipv6Addr::from((0x2001_0db8_u128 << 96) + (u128::from(spread) << 40));
        let name = n + shift;
        let patterns = [
            format!("{net}/24:443"),
            format!("{host}:443,902"),
            v6.to_string(),
            format!("h{name}.example"),
            format!("*.w{name}.example:443"),
        ];
        carrier(n.into(), &patterns.iter().map(String::as_str).collect::<Vec<_>>())
    };
    (0..CARRIERS).map(each).collect()
}

/// A state directory with names that have addresses: two of each carrier.
fn known_names() -> TempDir {
    let state = tempfile::tempdir().unwrap();
    let mut text = "dworker names 1 240.64.0.0/16 2001:2::/48\n".to_owned();
    for n in 0..CARRIERS {
        for (index, name) in [(2 * n + 1, format!("h{n}.example")), (2 * n + 2, format!("a.w{n}.example"))] {
            let v4 = Ipv4Addr::from(0xf040_0000 + index);
            let v6 = Ipv6Addr::from((0x2001_0002_u128 << 96) + u128::from(index));
            writeln!(text, "{index} {name} {v4} {v6}").unwrap();
        }
    }
    fs::write(state.path().join("names"), text).unwrap();
    state
}

pub(crate) fn ten_thousand_rules_are_replaced_in_a_moment() {
    let cgroup = Cgroup::new();
    let house = House::at(known_names(), &cgroup, vec![]);
    let client = Client::inside(&cgroup.path);
    let mut one_more = many(0);
    one_more[7].proxy_hosts.push("vc.example".parse().unwrap());
    one_more[1_234].proxy_hosts.push("198.51.100.9:443".parse().unwrap());
    let times = [
        ("all are added", house.update(many(0))),
        ("nothing changes", house.update(many(0))),
        ("two are added", house.update(one_more)),
        ("two are removed", house.update(many(0))),
    ];
    let status = house.steering.status(None);
    assert_eq!(status.rules.len(), RULES as usize);
    for carrier in [0, 7, CARRIERS - 1] {
        let last = 2 * carrier + 1;
        let name = Ipv4Addr::from(0xf040_0000 + last);
        let host = Ipv4Addr::from(carrier << 8 | 0x5a00_0001);
        for (address, port, host) in [
            (IpAddr::from(name), 443, format!("h{carrier}.example")),
            (Ipv4Addr::from(0xf040_0001 + last).into(), 443, format!("a.w{carrier}.example")),
            (host.into(), 902, host.to_string()),
        ] {
            drop(client.connect(&SocketAddr::new(address, port).to_string()).unwrap());
            let (_, flow) = house.accept();
            assert_eq!(house.steering.host_of(&flow).unwrap().to_string(), host);
            let Purpose::Rule { rule, .. } = flow.purpose else { panic!("{flow:?}") };
            let rule = status.rules.iter().find(|r| r.id == rule).expect("its rule");
            assert_eq!(rule.carrier, format!("site-{carrier}"), "{rule:?}");
        }
    }
    let times = times.into_iter().chain([
        ("all are replaced", house.update(many(CARRIERS))),
        ("all are removed", house.update(vec![])),
    ]);
    for (what, time) in times {
        println!("{RULES} rules, {} names: {what} in {:.1} ms", 2 * CARRIERS, time.as_secs_f64() * 1e3);
        assert!(time < MOST, "{what}: {time:?}, and {MOST:?} is the most");
    }
    assert_eq!(client.connect("240.64.0.1:443").err(), Some(libc::EHOSTUNREACH));
    assert_eq!(client.connect("90.0.0.1:902").err(), Some(libc::ENETUNREACH), "there is no way but ours");
    assert_eq!(dump(&house), 2, "what remains are the synthetic prefixes");
}

/// How many prefixes the kernel has rules for, as bpftool counts them.
fn dump(house: &House) -> usize {
    let bpftool = |words: &[&str]| -> serde_json::Value {
        serde_json::from_str(&crate::world::run("bpftool", &[&["-j"], words].concat())).expect("JSON")
    };
    let maps = house.steering.status(None).programs.into_iter().flat_map(|program| {
        let shown = bpftool(&["prog", "show", "id", &program.id.to_string()]);
        shown["map_ids"].as_array().expect("its maps").iter().map(|id| id.to_string()).collect::<Vec<_>>()
    });
    let maps: HashSet<String> = maps.collect();
    let tables = maps.iter().filter(|id| bpftool(&["map", "show", "id", id])["type"] == "lpm_trie");
    let counts: Vec<usize> =
        tables.map(|id| bpftool(&["map", "dump", "id", id]).as_array().expect("entries").len()).collect();
    assert_eq!(counts.len(), 2, "IPv4 and IPv6");
    counts.iter().sum()
}
