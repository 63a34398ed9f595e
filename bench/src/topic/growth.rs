//! What becomes of rates and memory as work grows: that there is no knee.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::{Config, Group};

use super::{Plan, hooks};
use crate::carrier::{self, Carrier};
use crate::load::{Load, What};
use crate::processes;
use crate::results::{Better, Curve, Results, Shape};
use crate::world::{self, Place, own};

/// Rounds at most: what is looked for is a knee, not a per cent.
const ROUNDS: usize = 2;
/// So many streams, or rules.
const POINTS: [usize; 5] = [1, 10, 100, 1000, 10_000];
const WORKERS: [usize; 6] = [1, 10, 100, 500, 1000, 2000];

const fn rate(name: &'static str, along: &'static str) -> Curve {
    Curve { name, unit: "1/s", better: Better::More, along, shape: Shape::Level }
}

const fn time(name: &'static str, along: &'static str) -> Curve {
    Curve { name, unit: "ns", better: Better::Less, along, shape: Shape::Level }
}

const fn sum(name: &'static str, unit: &'static str, along: &'static str) -> Curve {
    Curve { name, unit, better: Better::Less, along, shape: Shape::Even }
}

/// Messages on each of so many connections at the same time, directly and through dworker, and dworker's memory
/// meanwhile.
pub(super) fn streams(plan: &Plan, results: &mut Results) -> Result<()> {
    const RATE: Curve = rate("messages by streams", "streams");
    const MEMORY: Curve = sum("memory by streams", "B", "streams");
    for _ in 0..plan.rounds.min(ROUNDS) {
        let lab = world::lab(None)?;
        let host = lab.appliance();
        world::many_ports(host)?;
        let _target = world::target(host)?;
        let carriers = [carrier::direct(host), carrier::one_hop(&lab, host, host)?];
        for count in POINTS {
            for carrier in &carriers {
                let what = What::Requests { connections: count };
                // Each of them has had its turn before it counts.
                let warm = Duration::from_secs(1);
                let running = carrier.place.start(Load { warm, ..plan.load(carrier, what) })?;
                for (end, name) in carrier.ends.iter().zip(["appliance", "worker"]) {
                    results.grow(&MEMORY, name, count as u64, processes::memory(&[end.pid()])?);
                }
                let seen = running.end()?;
                ensure!(seen.failures == 0, "{}: {} of {count} failed", carrier.name, seen.failures);
                results.grow(&RATE, &carrier.name, count as u64, seen.rate);
            }
        }
    }
    Ok(())
}

/// Steered connections, and what the programs take of each, with so many rules.
pub(super) fn rules(plan: &Plan, results: &mut Results) -> Result<()> {
    const RATE: Curve = rate("connections by rules", "rules");
    const STEERED: Curve = time("all hooks by rules, steered", "rules");
    const DIRECT: Curve = time("connect hook by rules, not steered", "rules");
    for _ in 0..plan.rounds.min(ROUNDS) {
        let lab = world::lab(None)?;
        let host = lab.appliance();
        world::many_ports(host)?;
        let _targets = [world::target(host)?, hooks::aside(host)?];
        for count in POINTS {
            let hosts = hooks::proxy_hosts(count);
            let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
            let carrier: Carrier<'_> = carrier::one_hop_with(&lab, host, host, &hosts, None)?;
            let load = plan.load(&carrier, What::Connects { at_once: 16 });
            let seen = carrier.place.run(load.clone())?;
            ensure!(seen.failures == 0, "{} connections failed", seen.failures);
            results.grow(&RATE, "dworker", count as u64, seen.rate);
            let place = Place::captured(host);
            let cost = hooks::cost(host, place, load.clone())?;
            results.grow(&STEERED, "dworker", count as u64, cost.together);
            let cost = hooks::cost(host, place, Load { to: hooks::ASIDE, ..load })?;
            results.grow(&DIRECT, "dworker", count as u64, cost.connect);
        }
    }
    Ok(())
}

/// Memory and idle CPU of an appliance that steers, with so many workers connected, each with a proxy host and two
/// websockets of its own. They are [simulated](crate::workers): the same code, but a process for many of them.
pub(super) fn workers(plan: &Plan, results: &mut Results) -> Result<()> {
    const MEMORY: Curve = sum("memory by workers", "B", "workers");
    const CPU: Curve = sum("CPU of the idle appliance by workers", "% of a core", "workers");
    for _ in 0..plan.rounds.min(ROUNDS) {
        let lab = world::lab(None)?;
        let (host, site) = (lab.appliance(), lab.site());
        let address = SocketAddr::new(IpAddr::from(tests::net::APPLIANCE.v4), 443);
        let identity = lab.pki().issue(&[&address.ip().to_string()], tests::Validity::Current)?;
        let most = WORKERS[WORKERS.len() - 1];
        let groups = (0..most).map(|n| Group::new(&format!("site-{n}"), [hooks::proxy_host(n)]));
        let groups = groups.collect::<Result<Vec<_>>>()?;
        let config = Config::new()
            .appliance(&identity, &groups.iter().collect::<Vec<_>>())
            .steer(&[host.cgroup()])
            .set("appliance.listen", [address.to_string()]);
        let appliance = host.daemon("appliance", config)?;
        let pids = [appliance.process().pid()];
        let mut connected = Vec::new();
        let mut before = 0;
        for count in WORKERS {
            let keys: Vec<&str> = groups[before..count].iter().map(|group| group.key.as_str()).collect();
            let ca = lab.pki().ca_file().display().to_string();
            let command = own(["simulate-workers", "--appliance", &address.to_string(), "--ca", &ca])?;
            let process = site.uncaptured(command.input(keys.join("\n"))).spawn()?;
            process.wait_for_line("up", Duration::from_secs(180))?;
            connected.push(process);
            before = count;
            // What a greeting took is given back, and what is kept stays.
            std::thread::sleep(Duration::from_secs(1));
            // The kernel counts it in hundredths of a second.
            let time = plan.time.max(Duration::from_secs(5));
            let used = processes::cpu(&pids);
            std::thread::sleep(time);
            let used = processes::cpu(&pids) - used;
            results.grow(&CPU, "appliance", count as u64, used / time.as_secs_f64() * 100.0);
            results.grow(&MEMORY, "appliance", count as u64, processes::memory(&pids)?);
        }
    }
    Ok(())
}
