//! When steering begins and ends, and what it needs.

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;

use dworker::steer::kernel::{Counter, Kernel, KernelError};
use dworker::steer::probe;
use worker_common::{Entry, limits};

use crate::client::{Client, Place};
use crate::world::{Cgroup, Daemon, REMOTE4, at, attached, listen, port};

/// All programs, sorted.
const PROGRAMS: [&str; 9] = [
    "dw_connect4",
    "dw_connect6",
    "dw_getpeername4",
    "dw_getpeername6",
    "dw_recvmsg4",
    "dw_recvmsg6",
    "dw_sendmsg4",
    "dw_sendmsg6",
    "dw_sock_ops",
];

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

pub(crate) fn a_daemon_that_ends_releases_everything() {
    let cgroup = Cgroup::new();
    let server = listen(&at(REMOTE4, 0));
    let to = at(REMOTE4, port(&server));
    let client = Client::inside(&cgroup.path);
    let daemon = Daemon::unattached(&[&to]);
    assert_eq!(attached(&cgroup.path), [""; 0], "loaded is not attached");
    drop(client.connect(&to).unwrap());
    server.accept().expect("not captured before");
    daemon.attach(&[&cgroup]);
    assert_eq!(sorted(attached(&cgroup.path)), PROGRAMS);
    drop(client.connect(&to).unwrap());
    assert_eq!(daemon.target4(), to);
    drop(daemon);
    assert_eq!(attached(&cgroup.path), [""; 0]);
    drop(client.connect(&to).unwrap());
    server.accept().expect("not captured afterwards");
}

pub(crate) fn a_daemon_that_is_killed_releases_everything() {
    let cgroup = Cgroup::new();
    let daemon = Client::outside();
    daemon.steer(Some(&cgroup.path)).unwrap();
    assert_eq!(sorted(attached(&cgroup.path)), PROGRAMS);
    daemon.kill();
    assert_eq!(attached(&cgroup.path), [""; 0]);
}

pub(crate) fn status_tells_programs_links_and_dead_cgroups() {
    let (first, second) = (Cgroup::new(), Cgroup::new());
    let daemon = Daemon::unattached(&[]);
    daemon.attach(&[&first, &second]);
    let status = daemon.kernel.programs().unwrap();
    let mut names: Vec<_> = status.iter().map(|program| program.name).collect();
    names.sort();
    assert_eq!(names, PROGRAMS);
    let shown = crate::world::run("bpftool", &["cgroup", "show", first.path.to_str().unwrap()]);
    for program in &status {
        let line = shown.lines().find(|line| line.contains(program.name)).expect(program.name);
        assert!(
            line.contains(program.attach_type) && line.starts_with(&program.id.to_string()),
            "{line}: {program:?}"
        );
        let cgroups: Vec<_> = program.links.iter().map(|link| &link.cgroup).collect();
        assert_eq!(cgroups, [&first.path, &second.path]);
        assert!(program.links.iter().all(|link| link.alive && link.id != 0));
    }
    // Removed, and made again under the same name: still dead for us.
    fs::remove_dir(&second.path).unwrap();
    let alive = |daemon: &Daemon| {
        let status = daemon.kernel.programs().unwrap();
        status.into_iter().flat_map(|program| program.links).map(|link| link.alive).collect::<Vec<_>>()
    };
    assert_eq!(alive(&daemon), [true, false].repeat(PROGRAMS.len()));
    fs::create_dir(&second.path).unwrap();
    assert_eq!(alive(&daemon), [true, false].repeat(PROGRAMS.len()));
}

pub(crate) fn three_capabilities_are_enough_and_a_missing_one_is_named() {
    let cgroup = Cgroup::new();
    let with = |capabilities: &str| {
        // Everything else is gone from the bounding set, and with it from what root gets at exec().
        let bounding = format!("--bounding-set=-all{capabilities}");
        let inheritable = format!("--inh-caps=-all{capabilities}");
        let under = ["setpriv", &bounding, &inheritable];
        Client::new(&Place { under: &under, ..Place::default() }).steer(Some(&cgroup.path))
    };
    assert_eq!(with(",+bpf,+perfmon,+net_admin"), Ok(()));
    for (capabilities, missing) in [
        (",+perfmon,+net_admin", "lacks CAP_BPF,"),
        (",+bpf,+net_admin", "lacks CAP_PERFMON,"),
        (",+bpf,+perfmon", "lacks CAP_NET_ADMIN,"),
    ] {
        let why = with(capabilities).expect_err(missing);
        assert!(why.contains(missing) && why.contains("AmbientCapabilities"), "{why}");
    }
    assert_eq!(attached(&cgroup.path), [""; 0]);
}

pub(crate) fn cgroups_are_found_by_absolute_and_relative_paths() {
    let cgroup = Cgroup::new();
    let name = PathBuf::from(cgroup.path.file_name().unwrap());
    assert_eq!(probe::cgroups(&[name, cgroup.path.clone()]).unwrap(), [cgroup.found(), cgroup.found()]);
    let absent = probe::cgroups(&[cgroup.path.join("absent")]).unwrap_err().to_string();
    assert!(absent.contains("absent") && absent.contains("systemd-cgls"), "{absent}");
    let other = probe::cgroups(&["/proc".into()]).unwrap_err().to_string();
    assert!(other.contains("is not a directory of cgroup v2"), "{other}");
}

pub(crate) fn tables_that_are_full_say_so_and_rules_can_be_removed() {
    let cgroup = Cgroup::new();
    let to = "198.51.100.1:443";
    let daemon = Daemon::new(&cgroup, &[to]);
    let client = Client::inside(&cgroup.path);
    let net = "198.51.100.1/32".parse().unwrap();
    daemon.kernel.remove_rules(net).unwrap();
    daemon.kernel.remove_rules(net).expect("removing what is not there is fine");
    assert_eq!(client.connect(to).err(), Some(libc::ECONNREFUSED), "nobody listens at the real address");
    assert_eq!(daemon.counter(Counter::Direct), 1);

    let entry = Entry::new(Entry::DIRECT, &[]).unwrap();
    // The synthetic prefix has one place already.
    for n in 1..limits::RULES as u32 {
        let address = std::net::Ipv4Addr::from((10 << 24) + n);
        daemon.kernel.put_rules(std::net::IpAddr::from(address).into(), &entry).unwrap();
    }
    let error = daemon.kernel.put_rules("203.0.113.0/24".parse().unwrap(), &entry).unwrap_err();
    assert!(matches!(error, KernelError::Full { limit: limits::RULES, .. }), "{error}");
    assert!(error.to_string().contains("203.0.113.0/24"), "{error}");
    daemon.kernel.put_rules("2001:db8::/32".parse().unwrap(), &entry).expect("IPv6 has a table of its own");

    let error = daemon.kernel.set_group_state(limits::GROUPS as u16, None).unwrap_err();
    assert!(matches!(error, KernelError::Group { .. }), "{error}");
    daemon.kernel.set_group_state(limits::GROUPS as u16 - 1, None).unwrap();
    for port in 1..=limits::RESOLVERS as u16 {
        daemon.kernel.offer_dns_port(port).unwrap();
    }
    let error = daemon.kernel.offer_dns_port(9999).unwrap_err();
    assert!(matches!(error, KernelError::Full { limit: limits::RESOLVERS, .. }), "{error}");
    assert!(daemon.kernel.mark_listener(fs::File::open("/dev/null").unwrap().as_fd()).is_err(), "no socket");
}
