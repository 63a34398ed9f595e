//! Views as they occur, with text that tries to be HTML.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::layout::{Flash, Frame};
use super::plot::Throughput;
use super::worker::{Detail, Node};
use super::workers::{Roles, State, Sums};
use super::{clouds, connections, events, worker_form, workers};
use crate::appliance::audit::{Event, EventKind};
use crate::appliance::records::CloudType;
use crate::inspect::status::NodeRole;

/// What a hostile user types into a field.
pub(super) const HOSTILE: &str = "\"'><script>alert(1)</script>";

pub(super) fn frame() -> Frame {
    Frame { csrf: "csrf-word".into(), host: "appliance.example".into(), flash: None }
}

pub(super) fn flash() -> Flash {
    let warnings = vec!["berlin-dc1 lists 10.20.0.5, and the cloud is written vcenter.corp.example".into()];
    Flash { done: "berlin-dc1 is saved.".into(), warnings }
}

fn now() -> Timestamp {
    "2026-03-01T10:30:00Z".parse().expect("a time")
}

fn before(seconds: i64) -> Timestamp {
    now() - SignedDuration::from_secs(seconds)
}

pub(super) fn throughput(size: f64) -> Throughput {
    let wave = |at: usize, phase: f64| {
        let x = at as f64 / 7.0 + phase;
        let burst = if (at + (phase * 10.0) as usize) % 41 < 6 { 1.8 } else { 0.0 };
        size * (1.2 + x.sin() * 0.4 + (x * 2.7).sin() * 0.25 + burst)
    };
    Throughput {
        up: (0..150).map(|at| wave(at, 0.5) / 6.0).collect(),
        down: (0..150).map(|at| wave(at, size.log2())).collect(),
    }
}

pub(super) fn workers() -> workers::List {
    let row =
        |id, name: &str, description: &str, state, roles, hosts: &[&str], streams, size: f64, ms: u64| {
            workers::Row {
                id,
                name: name.into(),
                description: description.into(),
                state,
                roles,
                proxy_hosts: hosts.iter().map(|host| host.to_string()).collect(),
                streams,
                throughput: if size > 0.0 { throughput(size) } else { Throughput::default() },
                round_trip: (ms > 0).then(|| Duration::from_micros(ms)),
            }
        };
    let roles = |primary, standby, leaving, offline| Roles { primary, standby, leaving, offline };
    let rows = vec![
        row(
            1,
            "berlin-dc1",
            "Rack 12, looked after by the platform team",
            State::Up,
            roles(1, 1, 0, 0),
            &[
                "vcenter.corp.example:443",
                "*.lab.corp.example",
                "10.20.0.0/16",
                "10.21.0.0/16",
                "esx.corp.example",
            ],
            42,
            3.1e6,
            11_400,
        ),
        row(
            2,
            "lisbon-edge",
            "Edge site behind LTE",
            State::Up,
            roles(1, 0, 1, 1),
            &["vc.lisbon.example", "10.40.3.10:443,902"],
            7,
            120_000.0,
            48_200,
        ),
        row(3, "oslo-lab", "", State::Down, roles(0, 0, 0, 2), &["xen-pool.oslo.example"], 0, 0.0, 0),
        row(4, "new-site", HOSTILE, State::Waiting, roles(0, 0, 0, 0), &[], 0, 0.0, 0),
        row(
            5,
            "paris-old",
            "To be removed in May",
            State::Disabled,
            roles(0, 0, 0, 1),
            &["prism.paris.example"],
            0,
            0.0,
            0,
        ),
    ];
    let sums = Sums { workers: 5, up: 2, nodes: 4, streams: 49, rate: (820_000.0, 4_300_000.0) };
    workers::List { sums, query: String::new(), found: 5, page: 0, size: 50, rows }
}

pub(super) fn worker() -> Detail {
    let node = |n: u8, name: &str, role, ms: u64, streams, seen| Node {
        id: format!("{n:02x}").repeat(16),
        host_name: name.into(),
        role,
        round_trip: (ms > 0).then(|| Duration::from_micros(ms)),
        lanes: if role == NodeRole::Offline { 0 } else { 2 },
        streams,
        version: "0.1.0".into(),
        address: "198.51.100.7".into(),
        first_seen: before(86_400 * 40),
        last_seen: before(seen),
        priority: (n == 0xa3).then_some(10),
    };
    Detail {
        id: 1,
        name: "berlin-dc1".into(),
        description: "Rack 12, looked after by the platform team".into(),
        state: State::Up,
        enabled: true,
        from_file: false,
        may_open: false,
        proxy_hosts: ["vcenter.corp.example:443", "*.lab.corp.example", "10.20.0.0/16", "10.21.0.0/16"]
            .map(String::from)
            .to_vec(),
        clouds: vec![
            (1, "Berlin production".into(), "vcenter.corp.example:443".into()),
            (4, HOSTILE.into(), "prism.corp.example:9440".into()),
        ],
        nodes: vec![
            node(0xa3, "worker-b1", NodeRole::Primary, 11_400, 38, 0),
            node(0x5c, "worker-b2", NodeRole::Standby, 12_900, 4, 0),
            node(0x71, "worker-old", NodeRole::Offline, 0, 0, 86_400 * 3),
        ],
        throughput: throughput(3.1e6),
        created: before(86_400 * 40),
        changed: (before(7_200), "admin (browser)".into()),
        rotated: Some(before(7_200)),
        grace: Some(before(-79_200)),
        events: events().rows.into_iter().take(6).collect(),
        now: now(),
    }
}

pub(super) fn form() -> worker_form::Form {
    worker_form::Form {
        name: "Berlin DC1".into(),
        description: HOSTILE.into(),
        proxy_hosts: "https://vcenter.corp.example/sdk, 10.20.0.0/16".into(),
        enabled: true,
        ..worker_form::Form::default()
    }
}

pub(super) fn key() -> worker_form::NewKey {
    worker_form::NewKey {
        id: 1,
        name: "berlin-dc1".into(),
        key: "dwk_3f9Xv2LqTn8sYwEa0RkZb7HcJd5uMgPi1oVx6QtCyN0".parse().expect("a key"),
        appliance_url: "https://appliance.example".into(),
        replaces: None,
        warnings: Vec::new(),
    }
}

pub(super) fn clouds() -> clouds::List {
    let row = |id, name: &str, kind, url: &str, host: &str, worker: Option<(i64, &str, State)>| clouds::Row {
        id,
        name: name.into(),
        kind,
        api_url: url.into(),
        proxy_host: host.into(),
        worker: worker.map(|(id, name, state)| clouds::Carrier { id, name: name.into(), state }),
    };
    let rows = vec![
        row(
            1,
            "Berlin production",
            CloudType::Vmware,
            "https://vcenter.corp.example",
            "vcenter.corp.example:443",
            Some((1, "berlin-dc1", State::Up)),
        ),
        row(
            2,
            "Lisbon edge",
            CloudType::Vmware,
            "https://vc.lisbon.example",
            "vc.lisbon.example:443",
            Some((2, "lisbon-edge", State::Up)),
        ),
        row(
            3,
            "Oslo lab",
            CloudType::Xenserver,
            "https://xen-pool.oslo.example",
            "xen-pool.oslo.example:443",
            Some((3, "oslo-lab", State::Down)),
        ),
        row(
            4,
            HOSTILE,
            CloudType::Nutanix,
            "https://prism.corp.example:9440",
            "prism.corp.example:9440",
            Some((1, "berlin-dc1", State::Up)),
        ),
        row(
            5,
            "Public OpenStack",
            CloudType::Openstack,
            "https://keystone.cloud.example:5000/v3",
            "keystone.cloud.example:5000",
            None,
        ),
    ];
    clouds::List { query: String::new(), all: 5, found: 5, page: 0, size: 50, rows }
}

pub(super) fn connections() -> connections::List {
    let row = |id: u64,
               process: Option<&str>,
               entry,
               target: &str,
               worker: Option<(&str, i64)>,
               state: &str,
               reason: Option<&str>,
               bytes,
               rate,
               age| {
        connections::Row {
            id,
            trace: format!("{:016x}", id.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            entry,
            target: target.into(),
            process: process.map(String::from),
            worker: worker.map(|(name, id)| (name.into(), Some(id))),
            node: worker.map(|_| "worker-b1".into()),
            state: state.into(),
            reason: reason.map(String::from),
            bytes,
            rate,
            age: Duration::from_secs(age),
        }
    };
    let berlin = Some(("berlin-dc1", 1));
    let lisbon = Some(("lisbon-edge", 2));
    let rows = vec![
        row(
            912,
            Some("java 2114"),
            "captured",
            "vcenter.corp.example:443",
            berlin,
            "opening",
            None,
            (517, 0),
            Some((517.0, 0.0)),
            0,
        ),
        row(
            911,
            Some("python3 31877"),
            "captured",
            "vcenter.corp.example:443",
            berlin,
            "open",
            None,
            (48_200, 912_400),
            Some((2_100.0, 38_000.0)),
            24,
        ),
        row(
            910,
            Some("govc 31866"),
            "captured",
            "vc.lisbon.example:443",
            lisbon,
            "open",
            None,
            (19_000, 34_000),
            Some((0.0, 0.0)),
            312,
        ),
        row(
            908,
            Some("java 2114"),
            "captured",
            "10.20.4.17:902",
            berlin,
            "open",
            None,
            (1_240_000_000, 88_000_000),
            Some((4_100_000.0, 210_000.0)),
            4_100,
        ),
        row(
            905,
            None,
            "from a worker",
            "prism.corp.example:9440",
            berlin,
            "open",
            None,
            (9_100, 22_400),
            Some((120.0, 800.0)),
            90,
        ),
        row(
            904,
            Some("curl 31801"),
            "captured",
            "esx7.lab.corp.example:443",
            berlin,
            "refused",
            Some("dialling 10.20.9.7:443: Connection refused"),
            (0, 0),
            None,
            1,
        ),
        row(
            903,
            Some("python3 31790"),
            "captured",
            "xen-pool.oslo.example:443",
            None,
            "no-worker",
            Some("no worker of group oslo-lab is connected"),
            (517, 0),
            None,
            3,
        ),
        row(
            901,
            Some("python3 31770"),
            "captured",
            "vcenter.corp.example:443",
            berlin,
            "closed",
            None,
            (19_400, 34_800),
            None,
            2,
        ),
    ];
    connections::List {
        query: String::new(),
        which: connections::Which::All,
        open: 5,
        total: 912,
        rate: (4_102_220.0, 248_800.0),
        before: None,
        newer: 0,
        found: rows.len(),
        rows,
    }
}

pub(super) fn events() -> events::List {
    let event = |id, seconds, kind, actor: &str, subject: &str, text: &str, source: Option<&str>| Event {
        id,
        time: before(seconds),
        kind,
        actor: actor.into(),
        subject: subject.into(),
        text: text.into(),
        source: source.and_then(|source| source.parse().ok()),
    };
    use EventKind::*;
    let rows = vec![
        event(
            341,
            12,
            RoleChanged,
            "appliance",
            "berlin-dc1/worker-b1",
            "worker-b1 is primary: it has been up for 30 s",
            None,
        ),
        event(
            340,
            44,
            NodeConnected,
            "worker-b1",
            "berlin-dc1/worker-b1",
            "connected with dworker 0.1.0",
            Some("198.51.100.7"),
        ),
        event(
            339,
            80,
            NodeDisconnected,
            "worker-b1",
            "berlin-dc1/worker-b1",
            "its last lane was lost: no answer for 5 s",
            Some("198.51.100.7"),
        ),
        event(
            338,
            420,
            KeyRefused,
            "nobody",
            "",
            "a websocket with a key that no worker has",
            Some("203.0.113.99"),
        ),
        event(
            337,
            3_600,
            CloudAdded,
            "admin",
            "Berlin production",
            "vmware at https://vcenter.corp.example, carried by berlin-dc1",
            Some("192.0.2.14"),
        ),
        event(
            336,
            7_200,
            KeyRotated,
            "admin",
            "berlin-dc1",
            "the key before works until 2026-03-02 08:30:00 UTC",
            Some("192.0.2.14"),
        ),
        event(
            335,
            7_300,
            SaveRefused,
            "admin",
            HOSTILE,
            "10.20.0.0/16 is a proxy host of berlin-dc1 already",
            Some("192.0.2.14"),
        ),
        event(334, 7_400, LoginOk, "admin", "", "signed in", Some("192.0.2.14")),
        event(333, 7_420, LoginFailed, "nobody", "", "a token that does not work", Some("2001:db8::14")),
        event(332, 7_500, Started, "appliance", "", "dworker 0.1.0", None),
    ];
    events::List { rows, more: true, ..events::List::default() }
}
