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
    let mut hosts: Vec<String> =
        (0..RULES).map(|n| format!("10.200.{}.{}", n / 250, n % 250 + 1)).collect();
    hosts.push(TARGET_HOST.to_owned());
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let carrier = carrier::one_hop_with(&lab, host, host, &hosts)?;
    for _ in 0..plan.rounds {
        let load = |to, what| Load { to, ..plan.load(&carrier, what) };
        let connects = What::Connects { at_once: 16 };
        let inside = Place { host, captured: true };
        let outside = Place { host, captured: false };
        results.add("hooks, not steered", "ns", Better::Less, "dworker", cost(host, inside, load(aside, connects))?);
        results.add("hooks, steered", "ns", Better::Less, "dworker", cost(host, inside, load(TARGET, connects))?);
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

/// Nanoseconds that all programs of the cgroup take for one connection.
fn cost(host: &Host, place: Place<'_>, load: Load) -> Result<f64> {
    let _stats = BpfStats::enable()?;
    let programs = bpf::attached(host.cgroup().path())?;
    let time = || -> Result<(u64, u64)> {
        let mut sum = (0, 0);
        for program in &programs {
            let time = bpf::run_time(program.id)?;
            sum.0 += time.run_time_ns;
            if program.attach_type.ends_with("connect4") || program.attach_type.ends_with("inet4_connect") {
                sum.1 += time.run_cnt;
            }
        }
        Ok(sum)
    };
    let before = time()?;
    let seen = place.run(load)?;
    ensure!(seen.failures == 0, "{} connections failed", seen.failures);
    let after = time()?;
    ensure!(after.1 > before.1, "no program ran: {programs:?}");
    Ok((after.0 - before.0) as f64 / (after.1 - before.1) as f64)
}
