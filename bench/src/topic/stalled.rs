//! Streams that nobody reads.

use std::time::{Duration, Instant};

use ::tests::{Host, Lab};
use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Plan;
use crate::carrier::{self, Carrier, End, Way};
use crate::load::{Direction, Load, What};
use crate::processes;
use crate::results::{Better, Results};
use crate::world::{self, Running};

/// So many that what each takes is seen to a per cent; `status` shows all of them.
const STALLED: usize = 512;
/// So many beside those that are read.
const BESIDE: usize = 64;
/// The most that the kernel keeps in one direction of a socket: of all of them, and of the few beside others. Without such a
/// bound its memory for all connections is used up before the streams' credit is: the rest trickles, and who is
/// beside them has small windows, with dworker or without.
const SOCKET: [usize; 2] = [256 * 1024, 1024 * 1024];
/// How long they may take until they have all that they get.
const FULL: Duration = Duration::from_secs(30);

/// How much is held for each, and what others lose beside them.
pub(super) fn stalled(plan: &Plan, results: &mut Results) -> Result<()> {
    // Rounds are compared one by one: who was left out of one is left out of those after it.
    let mut names = plan.carriers.clone();
    for _ in 0..plan.rounds {
        held(plan, results)?;
        beside(plan, &mut names, results)?;
    }
    Ok(())
}

fn bound(host: &Host, most: usize) -> Result<()> {
    for (name, first) in [("tcp_rmem", 131_072), ("tcp_wmem", 65_536)] {
        host.netns().sysctl(&format!("net/ipv4/{name}"), &format!("4096 {first} {most}"))?;
    }
    Ok(())
}

fn hold(plan: &Plan, carrier: &Carrier<'_>, connections: usize) -> Result<Running> {
    let time = FULL + plan.time + Duration::from_secs(5);
    carrier.place.start(Load { time, ..plan.load(carrier, What::Stalled { connections }) })
}

/// How much is held for each: by the appliance's own account, beside the credit that it gave, and by the memory that both
/// ends grew by.
fn held(plan: &Plan, results: &mut Results) -> Result<()> {
    let lab = world::lab(None)?;
    let host = lab.appliance();
    bound(host, SOCKET[0])?;
    let _target = world::target(host)?;
    // Daemons that are new: what others have used before would be used again, and not be seen.
    let carrier = carrier::one_hop(&lab, host, host)?;
    let memory = || carrier.pids().iter().map(|pid| processes::memory(&[*pid])).collect::<Result<Vec<f64>>>();
    let before = memory()?;
    let running = hold(plan, &carrier, STALLED)?;
    let sums = full(&carrier, STALLED)?;
    let more: Vec<f64> = memory()?.iter().zip(before).map(|(after, before)| after - before).collect();
    drop(running);
    let mut add = |measure: &str, sum: f64| {
        results.add(measure, "B", Better::Less, "dworker", sum / STALLED as f64);
    };
    for (end, more) in ["appliance", "worker"].iter().zip(&more) {
        add(&format!("memory of a stalled stream, {end}"), *more);
    }
    add("memory of a stalled stream", more.iter().sum());
    add("held of a stalled stream", sums.held as f64);
    add("credit of a stalled stream", sums.credit as f64);
    Ok(())
}

/// What others lose beside them, whoever carries all of them: of that the kernel has its part.
fn beside(plan: &Plan, names: &mut Vec<String>, results: &mut Results) -> Result<()> {
    let lab = world::lab(None)?;
    let host = lab.appliance();
    bound(host, SOCKET[1])?;
    let _target = world::target(host)?;
    for name in std::mem::take(names) {
        let rates = with_and_without(plan, &name, &lab, results);
        let Some(rates) = plan.or_left_out(&name, rates, results)? else { continue };
        let Some((without, with)) = rates else { continue };
        for (measure, rate) in [("bulk without stalled", without), ("bulk beside stalled", with)] {
            results.add(measure, "B/s", Better::More, &name, rate);
        }
        results.add("others beside stalled", "of without", Better::More, &name, with / without);
        names.push(name);
    }
    Ok(())
}

/// Bytes a second without stalled connections and beside them.
fn with_and_without(plan: &Plan, name: &str, lab: &Lab, results: &mut Results) -> Result<Option<(f64, f64)>> {
    let Some(carrier) = plan.start(name, lab, Way::within(lab.appliance()), results)? else {
        return Ok(None);
    };
    let others = What::Bulk { streams: 4, direction: Direction::Down };
    let (without, _) = plan.run("bulk-without-stalled", &carrier, others)?;
    let before = processes::tcp_pages()?;
    let _running = hold(plan, &carrier, BESIDE)?;
    // What they take until they stall is not what they cost while they do.
    match carrier.ends.first() {
        Some(End::Daemon(_)) => full(&carrier, BESIDE).map(drop),
        _ => still(before),
    }?;
    let (with, _) = plan.run("bulk-beside-stalled", &carrier, others)?;
    Ok(Some((without.rate, with.rate)))
}

/// Waits until the kernel has more than so many pages for connections, and gets no more.
fn still(idle: u64) -> Result<()> {
    let began = Instant::now();
    let mut last = [idle; 3];
    loop {
        let now = processes::tcp_pages()?;
        if now > idle && last.iter().all(|before| *before == now) {
            return Ok(());
        }
        if began.elapsed() > FULL {
            bail!(
                "after {FULL:?} connections that nobody reads still get more: {now} pages, {last:?} before"
            );
        }
        last = [last[1], last[2], now];
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// Bytes of all open streams.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sums {
    streams: usize,
    /// That the other end may have on the way.
    credit: u64,
    /// That came and went no further.
    held: u64,
}

/// Waits until none of so many streams gets any more, and says what they have.
fn full(carrier: &Carrier<'_>, streams: usize) -> Result<Sums> {
    let Some(End::Daemon(appliance)) = carrier.ends.first() else { bail!("no appliance carries") };
    let (began, mut before) = (Instant::now(), Sums::default());
    loop {
        let sums = sums(&appliance.status()?)?;
        if sums == before && sums.streams == streams && sums.held > 0 {
            return Ok(sums);
        }
        if began.elapsed() > FULL {
            bail!(
                "after {FULL:?} {streams} streams that nobody reads still get more: {sums:?}, {before:?} before"
            );
        }
        before = sums;
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// What `status` shows of the streams of open connections.
fn sums(status: &Value) -> Result<Sums> {
    let flows = status["flows"]["recent"].as_array().context("status shows no connections")?;
    let mut sums = Sums::default();
    for stream in flows.iter().filter(|flow| flow["state"] == "open").map(|flow| &flow["stream"]) {
        sums.streams += 1;
        sums.credit += stream["window"].as_u64().context("a stream without its credit")?;
        sums.held += stream["held"].as_u64().context("a stream without what it holds")?;
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_open_streams_count_and_one_without_numbers_is_a_fault() {
        let of = |state: &str, held: u64| serde_json::json!({ "state": state, "stream": { "window": 100, "held": held } });
        let status = |flows: Vec<Value>| serde_json::json!({ "flows": { "recent": flows } });
        let found = sums(&status(vec![of("open", 70), of("closed", 5), of("open", 30)])).unwrap();
        assert_eq!(found, Sums { streams: 2, credit: 200, held: 100 });
        assert!(sums(&status(vec![serde_json::json!({ "state": "open" })])).is_err());
        assert!(sums(&Value::Null).is_err());
    }
}
