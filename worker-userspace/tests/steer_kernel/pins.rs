//! What outlives a daemon, and is adopted by the next one; and who is excluded.

use std::collections::HashSet;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use dworker::sockets::{Sockets, name};
use dworker::steer::kernel::{Counter, Kernel};
use dworker::steer::pins::Pins;
use dworker::steer::programs::Programs;
use worker_common::MAPS;

use crate::client::{Client, Kind, Place};
use crate::world::{Cgroup, Daemon, REMOTE4, at, attached, listen, pins, port, run};

const NAMED: &str = "240.64.0.1";
const PROGRAMS: usize = 9;

fn take(directory: &Path) -> Pins {
    Pins::take(directory, &Sockets::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// The ids of the programs that are attached.
fn ids(cgroup: &Cgroup) -> HashSet<String> {
    let shown = run("bpftool", &["cgroup", "show", cgroup.path.to_str().unwrap()]);
    let lines = shown.lines().filter(|line| line.contains("dw_"));
    lines.filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect()
}

/// Waits until a number of programs is attached: the kernel detaches a moment after a link's last name is gone.
fn wait_for(cgroup: &Cgroup, count: usize) {
    let deadline = std::time::Instant::now() + crate::world::DEADLINE;
    while ids(cgroup).len() != count {
        assert!(
            std::time::Instant::now() < deadline,
            "{count} programs never are attached: {:?}",
            ids(cgroup)
        );
    }
}

/// A killed daemon, as the kernel sees it: all its descriptors are closed, and nothing else happens.
fn kill(daemon: Daemon) {
    daemon.kernel.leave();
    drop(daemon);
}

pub(crate) fn what_a_killed_daemon_captured_is_adopted_by_the_next() {
    let cgroup = Cgroup::new();
    let directory = pins();
    let server = listen(&at(REMOTE4, 0));
    let to = at(REMOTE4, port(&server));
    let name = &at(NAMED, 443);
    let patterns = [to.as_str(), "vc.example"];
    let client = Client::inside(&cgroup.path);

    let first = Daemon::with(Programs::load(Some(take(&directory))).unwrap(), &patterns);
    first.name("vc.example", NAMED, &patterns);
    first.attach(&[&cgroup]);
    let open = client.connect(&to).unwrap();
    let _accepted = first.accept4();
    let before = ids(&cgroup);
    assert_eq!((before.len(), attached(&cgroup.path).len()), (PROGRAMS, PROGRAMS));
    let wrong = Pins::take(&directory, &Sockets::default()).unwrap_err().to_string();
    assert!(wrong.contains("another dworker steers with it"), "{wrong}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&directory).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);

    kill(first);
    assert_eq!(ids(&cgroup), before, "still attached");
    assert_eq!(client.connect(name).err(), Some(libc::ECONNREFUSED), "names fail closed");
    drop(client.connect(&to).unwrap());
    server.accept().expect("addresses go direct");

    let second = Programs::load(Some(take(&directory))).unwrap();
    let nets: Vec<_> = second.rules().unwrap().into_iter().map(|(net, _)| net.to_string()).collect();
    assert!(nets.contains(&format!("{NAMED}/32")) && nets.contains(&format!("{REMOTE4}/32")), "{nets:?}");
    let second = Daemon::with(second, &patterns);
    second.kernel.attach(&[cgroup.found()]).unwrap();
    assert_eq!(second.accept4().1, None);
    assert!(!before.is_disjoint(&ids(&cgroup)), "both are attached");
    second.kernel.settle().unwrap();
    wait_for(&cgroup, PROGRAMS);
    let after = ids(&cgroup);
    assert!(after.is_disjoint(&before), "its own programs, not those of the one before it");
    drop(client.connect(&to).unwrap());
    assert_eq!(second.target4(), to);
    drop(client.connect(name).unwrap());
    assert_eq!(&second.target4(), name);
    assert_eq!(open.peer(), to, "what was connected knows its peer");
    assert_eq!(second.counter(Counter::Steered), 3, "counters go on");

    drop(second);
    wait_for(&cgroup, 0);
    assert!(!directory.exists(), "a daemon that ends in order leaves nothing");
}

/// The names in a directory below the pins.
fn names(directory: &Path, below: &str) -> HashSet<String> {
    let entries = fs::read_dir(directory.join(below)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

pub(crate) fn a_map_that_has_changed_takes_no_other_with_it() {
    let directory = pins();
    let first = Daemon::with(Programs::load(Some(take(&directory))).unwrap(), &["192.0.2.1"]);
    first.kernel.settle().unwrap();
    let before = names(&directory, "maps");
    assert_eq!(before.len(), MAPS.len());
    // A name says what is in the map: a ring buffer has no size of its own for its records.
    for map in before.iter().filter(|map| !map.starts_with("EVENTS")) {
        let path = directory.join("maps").join(map);
        let shown = run("bpftool", &["-j", "map", "show", "pinned", path.to_str().unwrap()]);
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        let name = map.split('-').next().unwrap();
        let [key, value, entries] =
            ["bytes_key", "bytes_value", "max_entries"].map(|field| shown[field].as_u64().unwrap());
        assert_eq!(*map, format!("{name}-{key}-{value}-{entries}-1"), "{shown}");
    }
    kill(first);

    // Another daemon's FLOWS.
    let ours = before.iter().find(|map| map.starts_with("FLOWS")).unwrap();
    let path = |name: &str| directory.join("maps").join(name);
    fs::rename(path(ours), path("FLOWS-20-88-65536-0")).unwrap();
    let second = Programs::load(Some(take(&directory))).unwrap();
    let nets: Vec<_> = second.rules().unwrap().into_iter().map(|(net, _)| net.to_string()).collect();
    assert!(nets.contains(&"192.0.2.1/32".to_owned()), "{nets:?}");
    assert_eq!(names(&directory, "maps").len(), MAPS.len() + 1, "it may be used yet");
    second.settle().unwrap();
    assert_eq!(names(&directory, "maps"), before);
    drop(second);
    assert!(!directory.exists());
}

pub(crate) fn nobody_is_unsteered_while_one_daemon_follows_another() {
    let cgroup = Cgroup::new();
    let directory = pins();
    let to = at(REMOTE4, 1);
    let client = Client::inside(&cgroup.path);
    let first = Daemon::with(Programs::load(Some(take(&directory))).unwrap(), &[&to]);
    first.attach(&[&cgroup]);
    let lock = first.kernel.pins().unwrap().lock().unwrap();

    // One that gives up before it is attached leaves all as it was.
    let before = ids(&cgroup);
    let pins = |lock| {
        let handed_on = Sockets::new(vec![(name::PINS_LOCK.to_owned(), lock)]);
        Pins::take(&directory, &handed_on).unwrap()
    };
    drop(Programs::load(Some(pins(lock.try_clone().unwrap()))).unwrap());
    assert_eq!(ids(&cgroup), before);
    drop(client.connect(&to).unwrap());
    assert_eq!(first.target4(), to);

    // Both attached: a connection is steered once.
    let second = Programs::load(Some(pins(lock.try_clone().unwrap()))).unwrap();
    second.mark_listener(first.listener4.as_fd()).unwrap();
    second.attach(&[cgroup.found()]).unwrap();
    assert_eq!(first.accept4().1, None, "the second one makes itself known");
    assert_eq!(ids(&cgroup).len(), 2 * PROGRAMS);
    let socket = client.connect(&to).unwrap();
    assert_eq!(first.target4(), to);
    assert_eq!(socket.peer(), to);
    assert_eq!(first.counter(Counter::Steered), 2);
    let resolver = client.socket(Kind::Udp4);
    let dns = first.dns_port();
    resolver.send_to("198.51.100.2:53", b"?").unwrap();
    let mut question = [0; 8];
    let (_, asker) = dns.udp4.recv_from(&mut question).unwrap();
    dns.udp4.send_to(b"!", asker).unwrap();
    assert_eq!(resolver.receive(), (b"!".to_vec(), "198.51.100.2:53".to_owned()));

    // The second one is killed: the first goes on, and nothing is left of it.
    second.leave();
    drop(second);
    assert_eq!(ids(&cgroup).len(), 2 * PROGRAMS);
    first.kernel.settle().unwrap();
    wait_for(&cgroup, PROGRAMS);
    assert_eq!(ids(&cgroup), before);

    // The second one takes over, though the first is still there.
    let second = Programs::load(Some(pins(lock.try_clone().unwrap()))).unwrap();
    second.attach(&[cgroup.found()]).unwrap();
    assert_eq!(first.accept4().1, None);
    second.settle().unwrap();
    assert_eq!(ids(&cgroup).len(), 2 * PROGRAMS, "its descriptors hold the first one's");
    first.kernel.leave();
    wait_for(&cgroup, PROGRAMS);
    assert!(ids(&cgroup).is_disjoint(&before));
    // A third one can follow as soon as the second has ended, though the first one is still there.
    first.kernel.pins().unwrap().leave();
    drop(lock);
    let wrong = Pins::take(&directory, &Sockets::default()).unwrap_err().to_string();
    assert!(wrong.contains("another dworker"), "{wrong}");
    drop(client.connect(&to).unwrap());
    assert_eq!(first.target4(), to);
    drop(second);
    wait_for(&cgroup, 0);
    drop(take(&directory));
}

pub(crate) fn what_can_not_be_named_stays_attached() {
    let cgroup = Cgroup::new();
    let directory = pins();
    let daemon = Daemon::with(Programs::load(Some(take(&directory))).unwrap(), &[]);
    daemon.attach(&[&cgroup]);
    // As another daemon's take-over that came to nothing.
    let links = directory.join("links");
    for name in names(&directory, "links") {
        fs::remove_file(links.join(name)).unwrap();
    }
    fs::remove_dir(&links).unwrap();
    let before = ids(&cgroup);
    assert_eq!(before.len(), PROGRAMS);
    daemon.kernel.settle().unwrap_err();
    assert_eq!(ids(&cgroup), before);
    fs::create_dir(&links).unwrap();
    daemon.kernel.settle().unwrap();
    wait_for(&cgroup, PROGRAMS);
    assert_eq!(names(&directory, "links").len(), PROGRAMS);
    kill(daemon);
    assert_eq!(ids(&cgroup), before, "it has its names");
}

pub(crate) fn the_id_of_a_daemon_that_has_ended_is_forgotten() {
    let cgroup = Cgroup::new();
    let directory = pins();
    let known = || {
        let map = names(&directory, "maps").into_iter().find(|map| map.starts_with("DAEMONS")).unwrap();
        let path = directory.join("maps").join(map);
        let dump = run("bpftool", &["-j", "map", "dump", "pinned", path.to_str().unwrap()]);
        serde_json::from_str::<Vec<serde_json::Value>>(&dump).unwrap().len()
    };
    // Daemons that are captured themselves. One dies, another one lets its connections end yet.
    let [dead, draining] = [(); 2].map(|()| {
        let daemon = Client::inside(&cgroup.path);
        daemon.steer_with(Some(&cgroup.path), Some(&directory)).unwrap();
        daemon
    });
    assert_eq!(known(), 2);
    dead.kill();
    let next = Programs::load(Some(take(&directory))).unwrap();
    assert_eq!(known(), 2, "nobody has told");
    next.settle().unwrap();
    assert_eq!(known(), 1, "the one that lives");
    draining.kill();
    next.settle().unwrap();
    assert_eq!(known(), 0);
}

pub(crate) fn what_is_left_can_be_removed_without_a_daemon() {
    let cgroup = Cgroup::new();
    let directory = pins();
    assert!(!Pins::remove_left(&directory).unwrap(), "there is nothing");
    let daemon = Daemon::with(Programs::load(Some(take(&directory))).unwrap(), &[]);
    daemon.attach(&[&cgroup]);
    let refused = Pins::remove_left(&directory).unwrap_err().to_string();
    assert!(refused.contains("another dworker"), "{refused}");
    let maps = |id: &str| run("bpftool", &["map", "show"]).lines().filter(|line| line.contains(id)).count();
    let before = maps("RULES4");
    kill(daemon);
    assert_eq!((ids(&cgroup).len(), maps("RULES4")), (PROGRAMS, before));
    assert!(Pins::remove_left(&directory).unwrap());
    assert!(!directory.exists());
    // The kernel lets go of links and maps a moment after their last names.
    let deadline = std::time::Instant::now() + crate::world::DEADLINE;
    while !ids(&cgroup).is_empty() || maps("RULES4") == before {
        assert!(std::time::Instant::now() < deadline, "programs or maps are left");
    }
}

pub(crate) fn ports_for_resolvers_live_on_with_their_sockets() {
    let cgroup = Cgroup::new();
    let directory = pins();
    let client = Client::inside(&cgroup.path);
    let ask = |resolver: &str| client.socket(Kind::Udp4).send_to(resolver, b"?").unwrap();
    let first = Daemon::with(Programs::load(Some(take(&directory))).unwrap(), &[]);
    let (kept, lost, spare, lost_spare) =
        (first.dns_port(), first.dns_port(), first.dns_port(), first.dns_port());
    first.attach(&[&cgroup]);
    ask("192.0.2.1:53");
    ask("192.0.2.2:53");
    let of = |daemon: &Daemon, port| daemon.kernel.resolver_of(port).unwrap().map(|a| a.to_string());
    assert_eq!(of(&first, kept.port).as_deref(), Some("192.0.2.1"));
    assert_eq!(of(&first, lost.port).as_deref(), Some("192.0.2.2"));
    kill(first);
    let numbers = (lost.port, lost_spare.port);
    drop((lost, lost_spare));

    let second = Daemon::with(Programs::load(Some(take(&directory))).unwrap(), &[]);
    let adopted = second.kernel.adopt_dns_ports(&HashSet::from([kept.port, spare.port, 9])).unwrap();
    assert_eq!(adopted, HashSet::from([kept.port, spare.port]), "9 was never offered");
    second.attach(&[&cgroup]);
    wait_for(&cgroup, PROGRAMS);
    assert_eq!(of(&second, kept.port).as_deref(), Some("192.0.2.1"));
    assert_eq!((of(&second, numbers.0), of(&second, numbers.1)), (None, None));
    ask("192.0.2.2:53");
    assert_eq!(of(&second, spare.port).as_deref(), Some("192.0.2.2"), "a port with a socket behind it");
    ask("198.51.100.2:53");
    assert_eq!(second.counter(Counter::DnsNoPort), 1, "the lost one's number is not given");
}

pub(crate) fn excluded_users_and_cgroups_are_left_alone() {
    let cgroup = Cgroup::new();
    let (child, server) = (cgroup.child(), listen(&at(REMOTE4, 0)));
    let to = at(REMOTE4, port(&server));
    let daemon = Daemon::new(&cgroup, &[&to]);
    let _dns = daemon.dns_port();
    let user = Client::new(&Place {
        cgroup: Some(&cgroup.path),
        under: &["setpriv", "--reuid=4242", "--clear-groups"],
        ..Place::default()
    });
    let (inside, deeper) = (Client::inside(&cgroup.path), Client::inside(&child.path));
    let steered = |client: &Client, what: &str| {
        drop(client.connect(&to).unwrap());
        assert_eq!(daemon.target4(), to, "{what}");
    };
    let direct = |client: &Client, what: &str| {
        let before = daemon.counter(Counter::Excluded);
        let socket = client.connect(&to).unwrap();
        server.accept().expect("it went direct");
        drop(socket);
        // Its questions go where it wants, too.
        client.socket(Kind::Udp4).send_to("198.51.100.2:53", b"?").unwrap();
        assert_eq!(daemon.counter(Counter::Excluded), before + 2, "{what}");
    };
    for (client, what) in [(&user, "user"), (&inside, "inside"), (&deeper, "deeper")] {
        steered(client, what);
    }
    daemon.kernel.set_excluded(&[4242], &[]).unwrap();
    direct(&user, "an excluded user");
    steered(&inside, "another user");
    // The test's cgroup is right below the root, its child one further.
    daemon.kernel.set_excluded(&[], &[(child.found().id, 2)]).unwrap();
    steered(&user, "excluded no more");
    steered(&inside, "the cgroup around it");
    direct(&deeper, "an excluded cgroup");
    daemon.kernel.set_excluded(&[7], &[(cgroup.found().id, 1)]).unwrap();
    direct(&deeper, "below an excluded cgroup");
    direct(&user, "in an excluded cgroup");
    daemon.kernel.set_excluded(&[], &[]).unwrap();
    steered(&deeper, "nothing is excluded");
    let error = daemon.kernel.set_excluded(&[], &[(1, 31)]).unwrap_err().to_string();
    assert!(error.contains("steer.exclude_cgroups"), "{error}");
}
