//! The programs in the kernel.

use anyhow::{Result, ensure};
use tests::bpf::{self, BpfStats};
use tests::{Command, Host};

use super::Plan;
use crate::carrier;
use crate::load::{Direction, Load, What};
use crate::results::{Better, Results};
use crate::world::{self, Place, TARGET, TARGET_HOST};

/// Proxy hosts, with a rule each.
const RULES: usize = 10_000;
/// An address beside the target's that no rule is about.
const ASIDE: &str = "10.99.0.2";

/// Nanoseconds of all programs for each connection, steered or not, and what direct traffic loses.
pub(super) fn hooks(plan: &Plan, results: &mut Results) -> Result<()> {
    let lab = world::lab(None)?;
    let host = lab.appliance();
    host.netns().sysctl("net/ipv4/ip_local_port_range", "10000 65000")?;
    host.netns().sysctl("net/ipv4/tcp_tw_reuse", "1")?;
    let _target = world::target(host)?;
    host.netns().ip(&format!("addr add {ASIDE}/32 dev lo"))?;
    let aside = std::net::SocketAddr::new(ASIDE.parse()?, TARGET.port());
    let command: Command = world::own(["serve", &aside.to_string()])?;
    let _aside = host.uncaptured(command).spawn()?;
    let mut hosts: Vec<String> = (0..RULES).map(|n| format!("10.200.{}.{}", n / 250, n % 250 + 1)).collect();
    hosts.push(TARGET_HOST.to_owned());
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let carrier = carrier::one_hop_with(&lab, host, host, &hosts)?;
    for _ in 0..plan.rounds {
        let load = |to, what| Load { to, ..plan.load(&carrier, what) };
        let connects = What::Connects { at_once: 16 };
        let inside = Place { host, captured: true };
        let outside = Place { host, captured: false };
        for (to, kind) in [(aside, "not steered"), (TARGET, "steered")] {
            let cost = cost(host, inside, load(to, connects))?;
            results.add(&format!("connect hook, {kind}"), "ns", Better::Less, "dworker", cost.connect);
            results.add(&format!("hooks together, {kind}"), "ns", Better::Less, "dworker", cost.together);
        }
        for (place, name) in [(outside, "outside"), (inside, "inside")] {
            let bulk = What::Bulk { streams: 1, direction: Direction::Down };
            let seen = place.run(load(aside, bulk))?;
            results.add("direct bulk", "B/s", Better::More, name, seen.rate);
            let seen = place.run(load(aside, connects))?;
            results.add("direct connects", "1/s", Better::More, name, seen.rate);
        }
    }
    Ok(())
}

/// Nanoseconds for one connection.
struct Cost {
    /// In the hook of connect().
    connect: f64,
    /// In all programs of the cgroup, until the connection is closed.
    together: f64,
}

fn cost(host: &Host, place: Place<'_>, load: Load) -> Result<Cost> {
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
