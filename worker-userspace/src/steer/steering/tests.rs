use std::collections::HashMap;
use std::fs;
use std::sync::atomic::{AtomicU16, Ordering};

use proptest::prelude::*;
use tempfile::TempDir;
use worker_common::{Entry, Verdict};

use super::*;
use crate::steer::fake::{FakeKernel, Outcome};
use crate::steer::kernel::Counter;
use crate::steer::names::Standing;
use crate::telemetry::tests::logged;

/// Steering on a kernel of its own.
pub(crate) struct House {
    kernel: Arc<FakeKernel>,
    pub(crate) steering: Arc<Steering>,
    forwarder: Vec<TcpListener>,
    /// The name server's end of the ports.
    _dns: Server,
    pub(crate) directory: TempDir,
}

impl House {
    /// Steering for these carriers on a host with this `/etc/hosts`. Needs a runtime.
    pub(crate) fn new(carriers: Vec<Carrier>, hosts: &str) -> House {
        House::at(tempfile::tempdir().unwrap(), carriers, hosts)
    }

    fn at(directory: TempDir, carriers: Vec<Carrier>, hosts: &str) -> House {
        fs::write(directory.path().join("hosts"), hosts).unwrap();
        let text = "worker_key = 'dwk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'\n\
             appliance_url = 'https://appliance.example'\negress.allow = ['a']\n\
             [steer]\ncgroups = ['app']\nproxy_hosts = ['a']";
        let config = crate::config::Config::parse(text, "test").unwrap_or_else(|e| panic!("{e}")).config;
        let config = config.steer.unwrap();
        let kernel = Arc::new(FakeKernel::default());
        let prefixes = Prefixes::new(config.synthetic4, config.synthetic6).unwrap();
        let hosts = directory.path().join("hosts");
        let Started { steering, forwarder, dns } = Steering::prepare(
            kernel.clone(),
            &config,
            prefixes,
            directory.path(),
            &hosts,
            carriers,
            &Inherited::default(),
        )
        .unwrap_or_else(|e| panic!("{e}"));
        // Those of the start.
        kernel.take_writes();
        House { kernel, steering, forwarder, _dns: dns, directory }
    }

    fn update(&self, carriers: Vec<Carrier>) {
        self.steering.update(carriers).unwrap_or_else(|e| panic!("{e}"));
    }

    /// What connect() to an address does, and for whom the forwarder takes it.
    pub(crate) fn connect(&self, to: &str) -> Result<Option<String>, i32> {
        static PORT: AtomicU16 = AtomicU16::new(1024);
        let source = SocketAddr::from(([127, 0, 0, 1], PORT.fetch_add(1, Ordering::Relaxed)));
        match self.kernel.connect(source, to.parse().unwrap()) {
            Outcome::Direct => Ok(None),
            Outcome::Refused(errno) => Err(errno),
            Outcome::To(forwarder) => {
                let flow = self.captured(forwarder.port(), source);
                Ok(Some(self.steering.host_of(&flow).expect("a host").to_string()))
            }
        }
    }

    fn captured(&self, listener: u16, source: SocketAddr) -> FlowRecord {
        // Any socket that lives: the fake kernel has none.
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        self.steering.take_flow(listener, source, socket.as_fd()).captured().expect("a record")
    }

    /// The synthetic IPv4 address that DNS answers for a name, if any.
    fn resolve(&self, name: &str) -> Option<String> {
        match self.steering.names.standing(name) {
            Standing::ProxyHost(name) => Some(self.steering.names.lookup(&name).unwrap()?.v4.to_string()),
            _ => None,
        }
    }

    fn counter(&self, counter: Counter) -> u64 {
        self.kernel.counters().unwrap().into_iter().find(|(c, _)| *c == counter).unwrap().1
    }

    /// What `status` says of the rules.
    fn rules(&self) -> Vec<String> {
        let rules = self.steering.status(None).rules;
        rules.into_iter().map(|rule| format!("{} {} {}", rule.id, rule.pattern, rule.carrier)).collect()
    }
}

fn carrier(id: i64, patterns: &[&str]) -> Carrier {
    let proxy_hosts = patterns.iter().map(|p| p.parse().unwrap_or_else(|e| panic!("{e}"))).collect();
    Carrier { id, name: format!("site-{id}"), proxy_hosts }
}

fn sorted(mut list: Vec<String>) -> Vec<String> {
    list.sort();
    list
}

#[test]
fn what_the_forwarder_accepts_sends_small_answers_at_once() {
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let listener = listener(address).unwrap();
        listener.set_nonblocking(false).unwrap();
        let _application = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(listener.accept().unwrap().0.nodelay().unwrap(), "{address}");
    }
}

#[tokio::test]
async fn a_name_in_the_hosts_file_does_not_hide_the_rules_for_its_address() {
    let steered = carrier(1, &["vcenter.corp.example:443", "10.20.0.0/16:443,902"]);
    let house =
        House::new(vec![steered], "10.20.0.5 vcenter.corp.example\n240.64.0.9 vcenter.corp.example\n");
    assert_eq!(house.forwarder.len(), 2, "IPv4 and IPv6");
    assert_eq!(house.connect("10.20.0.5:443"), Ok(Some("vcenter.corp.example".into())));
    assert_eq!(house.connect("10.20.0.5:902"), Ok(Some("10.20.0.5".into())));
    assert_eq!(house.connect("10.20.0.5:22"), Ok(None));
    assert_eq!(house.connect("240.64.0.9:443"), Err(libc::EHOSTUNREACH), "no name was given this one");
}

#[tokio::test]
async fn names_of_the_hosts_file_come_and_go_with_their_patterns() {
    let house = House::new(vec![], "10.20.0.5 vcenter.corp.example\n");
    assert_eq!(house.connect("10.20.0.5:443"), Ok(None));
    house.update(vec![carrier(1, &["*.corp.example"])]);
    assert_eq!(house.connect("10.20.0.5:443"), Ok(Some("vcenter.corp.example".into())));
    house.update(vec![carrier(1, &["*.corp.example", "10.20.0.5"])]);
    assert_eq!(house.connect("10.20.0.5:443"), Ok(Some("vcenter.corp.example".into())));
    house.update(vec![carrier(1, &["10.20.0.5"])]);
    assert_eq!(house.connect("10.20.0.5:443"), Ok(Some("10.20.0.5".into())));
    // The file is read again at each change.
    fs::write(house.directory.path().join("hosts"), "10.20.0.6 vcenter.corp.example\n").unwrap();
    house.update(vec![carrier(1, &["*.corp.example"])]);
    assert_eq!(house.connect("10.20.0.5:443"), Ok(None));
    assert_eq!(house.connect("10.20.0.6:443"), Ok(Some("vcenter.corp.example".into())));
}

#[tokio::test]
async fn what_the_hosts_file_hides_is_said_when_it_is_new() {
    // The name that is hidden, and the one that counts.
    let warned = |run: &dyn Fn()| -> Vec<String> {
        let said = logged(run);
        let lines = said.lines().filter(|line| line.contains("one address to two proxy hosts"));
        let field = |line: &str, key: &str| {
            line.split_once(key).unwrap().1.split_whitespace().next().unwrap().to_owned()
        };
        lines.map(|line| format!("{} {}", field(line, " name="), field(line, " first="))).collect()
    };
    let site = || vec![carrier(1, &["*.example"])];
    let (house, first) = (OnceLock::new(), "10.20.0.5 a.example b.example\n");
    assert_eq!(warned(&|| assert!(house.set(House::new(site(), first)).is_ok())), ["b.example a.example"]);
    let house = house.get().unwrap();
    assert_eq!(warned(&|| house.update(site())), [""; 0], "it was said");
    assert_eq!(warned(&|| house.update(vec![carrier(1, &["*.example", "10.0.0.0/8"])])), [""; 0]);
    let write = |text: &str| fs::write(house.directory.path().join("hosts"), text).unwrap();
    write("10.20.0.5 a.example b.example c.example\n");
    assert_eq!(warned(&|| house.update(site())), ["c.example a.example"], "only what is new");
    write("10.20.0.5 c.example b.example\n");
    assert_eq!(warned(&|| house.update(site())), ["b.example c.example"], "another one hides it");
    house.update(vec![]);
    assert_eq!(warned(&|| house.update(site())), ["b.example c.example"], "it is so again");
    assert_eq!(house.connect("10.20.0.5:443"), Ok(Some("c.example".into())));
}

#[tokio::test]
async fn nothing_is_steered_at_first_and_then_what_is_added() {
    let house = House::new(vec![], "");
    assert_eq!((house.connect("198.51.100.7:443"), house.resolve("vc.example")), (Ok(None), None));
    assert_eq!(house.connect("240.64.0.1:443"), Err(libc::EHOSTUNREACH));
    house.update(vec![
        carrier(7, &["vc.example:443", "198.51.100.0/24:443"]),
        carrier(8, &["[2001:db8::1]:1"]),
    ]);
    assert_eq!(house.connect("198.51.100.7:443"), Ok(Some("198.51.100.7".into())));
    assert_eq!(house.connect("198.51.100.7:80"), Ok(None));
    let address = house.resolve("vc.example").expect("a proxy host");
    assert_eq!(house.connect(&format!("{address}:443")), Ok(Some("vc.example".into())));
    assert_eq!(house.connect("[2001:db8::1]:1"), Ok(Some("2001:db8::1".into())));
    let rules = ["1 vc.example:443 site-7", "2 198.51.100.0/24:443 site-7", "3 [2001:db8::1]:1 site-8"];
    assert_eq!(house.rules(), rules);
    house.update(vec![]);
    assert_eq!((house.connect("198.51.100.7:443"), house.resolve("vc.example")), (Ok(None), None));
    assert!(house.rules().is_empty());
}

#[tokio::test]
async fn a_name_that_is_no_proxy_host_any_more_is_neither_answered_nor_reached() {
    let house = House::new(vec![carrier(1, &["a.example", "*.lab.example:443"])], "");
    let [a, b] = ["a.example", "b.lab.example"].map(|name| house.resolve(name).unwrap());
    house.update(vec![carrier(1, &["a.example"])]);
    assert_eq!(house.resolve("b.lab.example"), None);
    let refused = house.counter(Counter::RefusedStale);
    assert_eq!(house.connect(&format!("{b}:443")), Err(libc::EHOSTUNREACH), "somebody kept its address");
    assert_eq!(house.counter(Counter::RefusedStale), refused + 1);
    assert_eq!(house.connect(&format!("{a}:443")), Ok(Some("a.example".into())));

    // A connection that was captured a moment before is still known by its name.
    house.update(vec![carrier(1, &["a.example", "*.lab.example"])]);
    let source = "127.0.0.1:9".parse().unwrap();
    let Outcome::To(forwarder) = house.kernel.connect(source, format!("{b}:443").parse().unwrap()) else {
        panic!("not captured")
    };
    house.update(vec![]);
    let flow = house.captured(forwarder.port(), source);
    assert_eq!(house.steering.host_of(&flow).unwrap().to_string(), "b.lab.example");

    // In another place among the names, and after a restart, it has its old address.
    house.update(vec![carrier(2, &["c.example", "b.lab.example"])]);
    house.resolve("c.example").unwrap();
    assert_eq!(house.resolve("b.lab.example"), Some(b.clone()));
    assert_eq!(house.connect(&format!("{b}:443")), Ok(Some("b.lab.example".into())));
    let House { steering, _dns, directory, .. } = house;
    drop((steering, _dns));
    let house = House::at(directory, vec![carrier(1, &["*.example"])], "");
    assert_eq!(
        house.connect(&format!("{b}:443")),
        Ok(Some("b.lab.example".into())),
        "before it is asked for"
    );
    assert_eq!(house.resolve("b.lab.example"), Some(b));
}

#[tokio::test]
async fn only_what_changes_is_written() {
    let site =
        ["vc.example", "*.lab.example:443", "10.0.0.0/8:443", "10.1.0.0/16:80", "192.0.2.1", "2001:db8::/32"];
    let house = House::new(vec![carrier(1, &site)], "10.9.9.9 h.lab.example\n");
    house.resolve("vc.example");
    house.resolve("a.lab.example");
    house.resolve("b.lab.example");
    house.kernel.take_writes();
    let update = |carriers| {
        house.update(carriers);
        house.kernel.take_writes()
    };
    assert_eq!(update(vec![carrier(1, &site)]), [""; 0], "the same");
    let turned: Vec<&str> = site.into_iter().rev().collect();
    assert_eq!(update(vec![carrier(1, &turned)]), [""; 0], "in another order");
    let more = [&site[..], &["198.51.100.0/24"]].concat();
    assert_eq!(update(vec![carrier(1, &more)]), ["+198.51.100.0/24"]);
    assert_eq!(update(vec![carrier(1, &site)]), ["-198.51.100.0/24"]);
    let added = update(vec![carrier(1, &site), carrier(2, &["c.example", "*.example"])]);
    // The wider suffix stands behind the others in the entries of those that it covers.
    assert_eq!(
        sorted(added),
        ["+10.9.9.9/32", "+2001:2::2/128", "+2001:2::3/128", "+240.64.0.2/32", "+240.64.0.3/32"]
    );
    house.update(vec![carrier(1, &site)]);
    house.kernel.take_writes();
    assert_eq!(update(vec![carrier(1, &site[1..])]), ["-240.64.0.1/32", "-2001:2::1/128"].map(String::from));
    assert_eq!(update(vec![carrier(1, &site)]), ["+240.64.0.1/32", "+2001:2::1/128"]);
    // One that passes to another carrier, and the narrower one that holds it.
    let (rest, moved) = ([&site[..2], &site[3..]].concat(), [site[2]]);
    assert_eq!(
        update(vec![carrier(1, &rest), carrier(2, &moved)]),
        ["+10.9.9.9/32", "+10.1.0.0/16", "+10.0.0.0/8"]
    );
}

#[tokio::test]
async fn a_rule_keeps_its_number_and_no_other_gets_it() {
    let house = House::new(vec![carrier(1, &["a.example", "b.example"])], "");
    house.update(vec![carrier(2, &["c.example"]), carrier(1, &["b.example", "c.example"])]);
    assert_eq!(house.rules(), ["3 c.example site-2", "2 b.example site-1"], "the first owner counts");
    house.update(vec![carrier(1, &["a.example", "b.example"])]);
    assert_eq!(house.rules(), ["4 a.example site-1", "2 b.example site-1"]);
    lock(&house.steering.planner).next = NonZeroU32::MAX;
    house.update(vec![carrier(1, &["b.example", "d.example", "e.example", "f.example"])]);
    let last = format!("{} d.example site-1", u32::MAX);
    assert_eq!(house.rules(), ["2 b.example site-1", &last, "1 e.example site-1", "3 f.example site-1"]);
}

#[tokio::test]
async fn a_carrier_that_is_down_stays_so_over_changes_and_a_new_one_is_up() {
    let house = House::new(vec![carrier(1, &["10.0.0.1"]), carrier(2, &["10.0.0.2"])], "");
    let steered = |last: u8| Ok(Some(format!("10.0.0.{last}")));
    house.steering.set_carrier(2, false);
    assert_eq!(
        (house.connect("10.0.0.1:1"), house.connect("10.0.0.2:1")),
        (steered(1), Err(libc::EHOSTUNREACH))
    );
    // The first one goes, and the places of the others stay theirs.
    house.update(vec![carrier(3, &["10.0.0.3"]), carrier(2, &["10.0.0.2", "10.0.0.4"])]);
    for (to, expected) in
        [("10.0.0.3:1", steered(3)), ("10.0.0.2:1", Err(libc::EHOSTUNREACH)), ("10.0.0.1:1", Ok(None))]
    {
        assert_eq!(house.connect(to), expected, "{to}");
    }
    assert_eq!(house.connect("10.0.0.4:1"), Err(libc::EHOSTUNREACH));
    // It is told of by its id, and one that carries nothing is no matter.
    house.steering.set_carrier(1, false);
    house.steering.set_carrier(99, false);
    assert_eq!(house.connect("10.0.0.3:1"), steered(3));
    house.update(vec![]);
    house.update(vec![carrier(2, &["10.0.0.2"]), carrier(1, &["10.0.0.1"])]);
    assert_eq!(
        (house.connect("10.0.0.1:1"), house.connect("10.0.0.2:1")),
        (steered(1), steered(2)),
        "both are new"
    );
}

#[tokio::test]
async fn nothing_changes_while_another_process_takes_over() {
    let house = House::new(vec![carrier(1, &["10.0.0.1"])], "");
    let (handed_on, off) = house.steering.pause().unwrap();
    assert_eq!((handed_on.len(), off), (1, false));
    assert!(matches!(house.steering.update(vec![]), Err(SteerError::Standing)));
    assert!(!house.steering.set_carrier(1, false));
    assert_eq!(house.connect("10.0.0.1:1"), Ok(Some("10.0.0.1".into())));
    assert!(house.kernel.take_writes().is_empty());
    assert_eq!(house.steering.status(None).problem, None, "it is no fault");
    drop(handed_on);
    assert!(house.steering.resume().is_empty());
    assert!(house.steering.set_carrier(1, false));
    assert_eq!(house.connect("10.0.0.1:1"), Err(libc::EHOSTUNREACH));
    house.update(vec![]);
    assert_eq!(house.connect("10.0.0.1:1"), Ok(None));
}

#[tokio::test]
async fn after_a_take_over_that_failed_the_ports_for_resolvers_are_ours_again() {
    let house = House::new(vec![], "");
    let resolver = |last| IpAddr::from(Ipv4Addr::new(192, 0, 2, last));
    let before = house.kernel.ask(resolver(1)).expect("a port");
    let spare = worker_common::limits::RESOLVERS;
    drop(house.steering.pause().unwrap());
    // The other one had no socket of ours, and a port of its own.
    house.kernel.adopt_dns_ports(&HashSet::new()).unwrap();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    house.kernel.mark_listener(socket.as_fd()).unwrap();
    house.kernel.offer_dns_port(socket.local_addr().unwrap().port()).unwrap();
    assert!(house.steering.resume().is_empty());
    let ours = house.steering.sockets.ports(name::DNS);
    assert!(ours.contains(&before.port()) && ours.len() < spare);
    let given: HashSet<u16> =
        (1..).map_while(|last| Some(house.kernel.ask(resolver(last))?.port())).take(spare).collect();
    assert_eq!(given, ours);
}

#[tokio::test]
async fn after_a_take_over_that_failed_one_error_does_not_keep_the_rest_from_being_taken_back() {
    let house = House::new(vec![carrier(1, &["10.0.0.1", "vc.example"]), carrier(2, &["10.0.0.2"])], "");
    let name = house.resolve("vc.example").unwrap();
    house.steering.set_carrier(2, false);
    for at in 0..5 {
        drop(house.steering.pause().unwrap());
        // The other one had other prefixes, other rules, and other groups.
        for (net, _) in house.kernel.rules() {
            house.kernel.remove_rules(net).unwrap();
        }
        let other = ("240.65.0.0/16".parse().unwrap(), "2001:3::/48".parse().unwrap());
        house.kernel.set_synthetic(other.0, other.1).unwrap();
        house.kernel.set_group_state(0, Some(libc::ENETUNREACH)).unwrap();
        house.kernel.set_group_state(1, None).unwrap();
        house.kernel.fail_writes(at..at + 1);
        let errors = house.steering.resume();
        assert_eq!(errors.len(), 1, "write {at}: {errors:?}");
        if at < 2 {
            // What failed is the prefixes.
            assert_eq!(house.connect("10.0.0.1:1"), Ok(Some("10.0.0.1".into())));
            assert_eq!(house.connect("10.0.0.2:1"), Err(libc::EHOSTUNREACH));
        }
        house.kernel.fail_writes(0..0);
        drop(house.steering.pause().unwrap());
        assert!(house.steering.resume().is_empty());
        assert_eq!(house.connect("10.0.0.1:1"), Ok(Some("10.0.0.1".into())));
        assert_eq!(house.connect("10.0.0.2:1"), Err(libc::EHOSTUNREACH));
        assert_eq!(house.connect(&format!("{name}:1")), Ok(Some("vc.example".into())));
        assert_eq!(house.connect("240.64.0.9:1"), Err(libc::EHOSTUNREACH), "no name has it");
        assert_eq!(house.connect("240.65.0.9:1"), Ok(None), "the other one's prefix");
    }
}

#[tokio::test]
async fn more_carriers_than_the_kernel_has_room_for_are_a_fault() {
    let house = House::new(vec![carrier(1, &["10.0.0.1"])], "");
    let many = |count: i64| -> Vec<Carrier> {
        let net = |id| format!("10.{}.{}.0/24", id / 256, id % 256);
        (1..=count).map(|id| carrier(id, &[&net(id)])).chain([carrier(-1, &[])]).collect()
    };
    let limit = worker_common::limits::GROUPS as i64;
    house.update(many(limit));
    let error = house.steering.update(many(limit + 1)).unwrap_err().to_string();
    assert!(error.contains("4097 workers") && error.contains("holds 4096"), "{error}");
    assert_eq!(house.rules().len(), limit as usize);
    house.update(many(limit).split_off(1));
    // In the place of the one that is gone.
    house.update(many(limit + 1).split_off(1));
    assert_eq!(
        house.connect(&format!("10.{}.{}.1:1", (limit + 1) / 256, (limit + 1) % 256)).unwrap().as_deref(),
        Some("10.16.1.1")
    );
}

/// Everything that can be seen of what is steered.
fn seen(house: &House) -> (HashMap<IpNet, Entry>, Vec<String>, [bool; 3]) {
    let names = ["vc.example", "a.lab.example", "new.example"];
    (
        house.kernel.rules(),
        house.rules(),
        names.map(|name| house.steering.names.assigned(&name.parse().unwrap()).is_some()),
    )
}

#[tokio::test]
async fn a_change_that_fails_changes_nothing() {
    let before = vec![carrier(
        1,
        &["vc.example", "*.lab.example:443", "10.0.0.0/8:443", "10.1.0.0/16:80", "192.0.2.1"],
    )];
    let after = vec![
        carrier(2, &["vc.example:443", "new.example", "10.0.0.0/8:443", "10.2.0.0/16:80"]),
        carrier(3, &["10.3.0.0/16"]),
    ];
    let mut failed = 0;
    for at in 0.. {
        let house = House::new(vec![], "10.9.9.9 new.example\n");
        house.update(after.clone());
        house.resolve("new.example").unwrap();
        house.update(before.clone());
        house.resolve("vc.example").unwrap();
        house.resolve("a.lab.example").unwrap();
        let state = seen(&house);
        house.kernel.take_writes();
        house.kernel.fail_writes(at..at + 1);
        let Err(error) = house.steering.update(after.clone()) else {
            assert_ne!(seen(&house), state);
            break;
        };
        failed += 1;
        assert!(error.to_string().contains("annot allocate memory"), "{error}");
        assert_eq!(seen(&house), state, "the write number {at} failed");
        assert_eq!(house.steering.status(None).problem, Some(error.to_string()));
        house.update(after.clone());
        assert_eq!(house.steering.status(None).problem, None);
    }
    assert!(failed >= 8, "{failed}");
}

#[tokio::test]
async fn after_a_kernel_that_took_nothing_any_more_all_is_right_again() {
    let before = vec![carrier(1, &["vc.example", "*.lab.example:443", "10.0.0.0/8:443", "192.0.2.1"])];
    let after = vec![carrier(2, &["vc.example:443", "new.example", "10.0.0.0/8:443", "10.2.0.0/16:80"])];
    let fresh = House::new(after.clone(), "");
    for at in 0..7 {
        let house = House::new(before.clone(), "");
        house.resolve("vc.example").unwrap();
        house.resolve("a.lab.example").unwrap();
        house.kernel.fail_writes(at..usize::MAX);
        house.steering.update(after.clone()).unwrap_err();
        house.kernel.fail_writes(0..0);
        // Names are put right one by one, when they are asked for.
        let address = house.resolve("vc.example").unwrap();
        assert_eq!(house.connect(&format!("{address}:22")), Ok(Some("vc.example".into())), "write {at}");
        house.update(after.clone());
        let real = |house: &House| {
            let rules = house.kernel.rules().into_iter();
            rules
                .filter(|(net, _)| !house.steering.names.contains(net.addr()))
                .map(|(net, entry)| (net, entry.len))
                .collect::<HashMap<_, _>>()
        };
        assert_eq!(real(&house), real(&fresh));
        assert_eq!(house.connect(&format!("{address}:22")), Err(libc::EHOSTUNREACH), "not its port any more");
        assert_eq!(house.resolve("a.lab.example"), None);
    }
}

#[tokio::test]
async fn wrong_rules_and_an_unreadable_hosts_file_change_nothing() {
    let house = House::new(vec![carrier(1, &["10.0.0.1"])], "");
    let state = seen(&house);
    let error = house
        .steering
        .update(vec![carrier(1, &["10.0.0.2", "127.0.0.1", "240.64.0.1"])])
        .unwrap_err()
        .to_string();
    assert!(error.contains("127.0.0.1") && error.contains("240.64.0.1"), "{error}");
    assert_eq!(house.steering.status(None).problem, Some(error));
    let path = house.directory.path().join("hosts");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let error = house.steering.update(vec![carrier(1, &["10.0.0.2"])]).unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    assert_eq!(seen(&house), state);
    assert!(house.kernel.take_writes().is_empty());
}

/// Who carries a connection: the carrier's place and the rule's number, or where else it goes.
fn way(verdict: Verdict) -> String {
    match verdict {
        Verdict::Steer(rule) => format!("rule {} group {}", rule.rule, rule.group),
        other => format!("{other:?}"),
    }
}

/// Patterns over few addresses and ports, so that they overlap, and who of two carries each.
fn any_steered() -> impl Strategy<Value = Vec<(String, bool)>> {
    let net = (0u8..2, 0u8..2, 6u8..=32).prop_map(|(a, b, length)| {
        ipnet::Ipv4Net::new([10, a, b, 1].into(), length).unwrap().trunc().to_string()
    });
    let host = prop_oneof![3 => net, 1 => "(\\*\\.)?(a\\.|b\\.)?example"];
    let ports = prop::option::of((1u16..4, 0u16..2).prop_map(|(low, span)| format!(":{low}-{}", low + span)));
    let pattern = (host, ports).prop_map(|(host, ports)| host + &ports.unwrap_or_default());
    prop::collection::vec((pattern, any::<bool>()), 0..7)
}

fn carriers(steered: &[(String, bool)]) -> Vec<Carrier> {
    let of = |which| steered.iter().filter(|(_, c)| *c == which).map(|(p, _)| p.as_str()).collect::<Vec<_>>();
    vec![carrier(1, &of(true)), carrier(2, &of(false))]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// While rules are replaced, a connection goes the way from before or the way from afterwards, once the latter then
    /// always; so one that is the same before and afterwards is the same all the time.
    #[test]
    fn nothing_else_happens_while_rules_change(sets in prop::collection::vec(any_steered(), 2..5)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _context = runtime.enter();
        let house = House::new(vec![], "10.0.1.1 a.example\n");
        let mut targets: Vec<SocketAddr> = Vec::new();
        for name in ["a.example", "b.example", "example", "a.b.example"] {
            house.update(vec![carrier(9, &["*.example", "example"])]);
            let address = house.resolve(name).unwrap();
            targets.extend((1..5).map(|port| format!("{address}:{port}").parse::<SocketAddr>().unwrap()));
        }
        for (a, b, c) in [(0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1), (1, 1, 9), (2, 0, 1)] {
            targets.extend((1..5).map(|port| SocketAddr::from(([10, a, b, c], port))));
        }
        let ways = |kernel: &FakeKernel| targets.iter().map(|to| way(kernel.judge(*to))).collect::<Vec<_>>();
        for set in sets {
            let steps = Arc::new(Mutex::new(vec![ways(&house.kernel)]));
            let (noted, watched) = (steps.clone(), targets.clone());
            house.kernel.after_write(move |kernel| {
                let ways = watched.iter().map(|to| way(kernel.judge(*to))).collect();
                noted.lock().unwrap().push(ways);
            });
            house.update(carriers(&set));
            let steps = steps.lock().unwrap().clone();
            let (first, last) = (&steps[0], &ways(&house.kernel));
            for (at, target) in targets.iter().enumerate() {
                let mut way: Vec<&String> = steps.iter().map(|step| &step[at]).collect();
                way.dedup();
                let expected = if first[at] == last[at] { vec![&last[at]] } else { vec![&first[at], &last[at]] };
                prop_assert_eq!(way, expected, "{} while {:?} comes into force", target, set);
            }
        }
    }
}
