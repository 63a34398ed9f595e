//! What steering costs, by the kernel's own account of the time in our programs.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use aya::sys::{Stats, enable_stats};
use dworker::steer::kernel::Kernel;
use worker_common::{Entry, PortRule};

use crate::client::Client;
use crate::world::{Cgroup, Daemon, REMOTE4, at, listen, port};

const RULES: u32 = 10_000;
const CONNECTIONS: u32 = 2_000;
/// The best of so many: what else runs on the machine can only make it worse.
const ROUNDS: usize = 5;
/// What one connection may cost in all our programs together.
const STEERED: Duration = Duration::from_micros(3);
const DIRECT: Duration = Duration::from_nanos(500);

/// A program's name, how often it ran, and how long in all.
type Spent = (&'static str, u64, Duration);

fn spent(daemon: &Daemon) -> Vec<Spent> {
    let programs = daemon.kernel.programs().unwrap();
    programs.iter().map(|program| (program.name, program.run_count, program.run_time)).collect()
}

/// Connects often to `to`, in several rounds; prints and returns what one connection cost in the best.
fn measure(what: &str, daemon: &Daemon, client: &Client, to: SocketAddr) -> Duration {
    let _measuring: OwnedFd = enable_stats(Stats::RunTime).expect("bpf_enable_stats");
    let round = |_| {
        let before = spent(daemon);
        client.connect_often(to, CONNECTIONS);
        let since = |((name, runs, time), (_, runs_before, time_before)): (Spent, Spent)| {
            (name, runs - runs_before, time - time_before)
        };
        let each: Vec<_> = spent(daemon).into_iter().zip(before).map(since).collect();
        (each.iter().map(|(_, _, time)| *time).sum::<Duration>() / CONNECTIONS, each)
    };
    let (best, each) = (0..ROUNDS).map(round).min_by_key(|(cost, _)| *cost).expect("a round");
    println!("a connection that is {what}, with {RULES} rules: {} ns in all our programs", best.as_nanos());
    for (name, runs, time) in each.into_iter().filter(|(_, runs, _)| *runs > 0) {
        let (often, long) = (runs as f64 / f64::from(CONNECTIONS), time.as_nanos() / u128::from(runs));
        println!("  {name}: {often:.1} runs of {long} ns");
    }
    best
}

pub(crate) fn a_connection_costs_what_was_promised() {
    let cgroup = Cgroup::new();
    let direct = listen(&at(REMOTE4, 0));
    let daemon = Daemon::new(&cgroup, &["203.0.113.1"]);
    let rule = PortRule { low: 443, high: 443, rule: 9, group: 9, flags: 0 };
    let entry = Entry::new(Entry::DIRECT, &[rule]).unwrap();
    for n in 0..RULES {
        // Spread over the address space, as rules of a large network are; none covers the targets below.
        let address = Ipv4Addr::from(n.wrapping_mul(0x9e37_79b1) & 0x3fff_ffff | 0x0a00_0000);
        daemon.kernel.put_rules(IpAddr::from(address).into(), &entry).unwrap();
        let v6 = (0x2001_0db8_u128 << 96) + (u128::from(n.wrapping_mul(0x9e37_79b1)) << 40);
        daemon.kernel.put_rules(IpAddr::from(std::net::Ipv6Addr::from(v6)).into(), &entry).unwrap();
    }
    let client = Client::inside(&cgroup.path);
    const ALL: usize = CONNECTIONS as usize * ROUNDS;
    let mut costs = Vec::new();
    std::thread::scope(|scope| {
        // They end with their listeners' threads: each accepts exactly what is connected.
        scope
            .spawn(|| (0..ALL).for_each(|_| drop(daemon.listener4.accept().expect("a captured connection"))));
        let to = SocketAddr::from(([203, 0, 113, 1], 443));
        costs.push(("steered", measure("steered", &daemon, &client, to), STEERED));
    });
    std::thread::scope(|scope| {
        scope.spawn(|| (0..ALL).for_each(|_| drop(direct.accept().expect("a direct connection"))));
        let to = at(REMOTE4, port(&direct)).parse().unwrap();
        costs.push(("not steered", measure("not steered", &daemon, &client, to), DIRECT));
    });
    for (what, cost, most) in costs {
        assert!(
            cost <= most,
            "a connection that is {what} costs {cost:?} in our programs, and {most:?} is the most"
        );
    }
}
