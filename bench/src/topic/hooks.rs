//! The programs in the kernel.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use tests::bpf::{self, BpfStats};
use tests::{Host, Process};

use super::Plan;
use crate::carrier;
use crate::load::{Direction, Load, What};
use crate::results::{Better, Results};
use crate::world::{self, Place, TARGET, TARGET_HOST};

/// Proxy hosts, with a rule each.
const RULES: usize = 10_000;
/// A server beside the target, on an address that no rule is about.
pub(super) const ASIDE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 99, 0, 2)), TARGET.port());

/// Nanoseconds of all programs for each connection, steered or not, and what direct traffic loses.
pub(super) fn hooks(plan: &Plan, results: &mut Results) -> Result<()> {
    let lab = world::lab(None)?;
    let host = lab.appliance();
    world::many_ports(host)?;
    let _target = world::target(host)?;
    let _aside = aside(host)?;
    let hosts = proxy_hosts(RULES);
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let carrier = carrier::one_hop_with(&lab, host, host, &hosts, None)?;
    for round in 0..plan.rounds {
        let load = |to, what| Load { to, ..plan.load(&carrier, what) };
        let connects = What::Connects { at_once: 16 };
        let inside = Place::captured(host);
        let outside = Place::plain(host);
        for (to, kind) in [(ASIDE, "not steered"), (TARGET, "steered")] {
            let cost = cost(host, inside, load(to, connects))?;
            results.add(&format!("connect hook, {kind}"), "ns", Better::Less, "dworker", cost.connect);
            results.add(&format!("hooks together, {kind}"), "ns", Better::Less, "dworker", cost.together);
        }
        let mut places = [(outside, "outside"), (inside, "inside")];
        // Neither is always the second.
        places.rotate_left(round % 2);
        for (place, name) in places {
            let bulk = What::Bulk { streams: 1, direction: Direction::Down };
            let seen = place.run(load(ASIDE, bulk))?;
            results.add("direct bulk", "B/s", Better::More, name, seen.rate);
            let seen = place.run(load(ASIDE, connects))?;
            results.add("direct connects", "1/s", Better::More, name, seen.rate);
        }
    }
    Ok(())
}

/// Starts a server that no rule is about.
pub(super) fn aside(host: &Host) -> Result<Process> {
    world::serve(host, ASIDE)
}

/// The nth of the proxy hosts that nobody asks for.
pub(super) fn proxy_host(n: usize) -> String {
    format!("10.{}.{}.{}", 200 + n / 62_500, n / 250 % 250, n % 250 + 1)
}

/// So many proxy hosts, the target among them.
pub(super) fn proxy_hosts(count: usize) -> Vec<String> {
    (1..count).map(proxy_host).chain([TARGET_HOST.to_owned()]).collect()
}

/// Nanoseconds for one connection.
pub(super) struct Cost {
    /// In the hook of connect().
    pub(super) connect: f64,
    /// In all programs of the cgroup, until the connection is closed.
    pub(super) together: f64,
}

/// What the programs take of each connection of a load.
pub(super) fn cost(host: &Host, place: Place<'_>, load: Load) -> Result<Cost> {
    let _stats = BpfStats::enable()?;
    let programs = bpf::attached(host.cgroup().path())?;
    let times = || -> Result<Vec<bpf::RunTime>> {
        programs.iter().map(|program| bpf::run_time(program.id)).collect()
    };
    let before = times()?;
    let seen = place.run(load)?;
    ensure!(seen.failures == 0, "{} connections failed", seen.failures);
    let (mut together, mut connect) = (0, (0, 0));
    for ((program, before), after) in programs.iter().zip(before).zip(times()?) {
        let (time, runs) = (after.run_time_ns - before.run_time_ns, after.run_cnt - before.run_cnt);
        together += time;
        if program.name.starts_with("dw_connect4") {
            connect = (time, runs);
        }
    }
    ensure!(connect.1 > 0, "no program ran: {programs:?}");
    let each = |time: u64| time as f64 / connect.1 as f64;
    Ok(Cost { connect: each(connect.0), together: each(together) })
}
