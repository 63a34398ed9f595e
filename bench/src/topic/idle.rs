//! What it costs to be there.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Plan;
use crate::carrier::{self, Carrier, End, Way};
use crate::load::{Load, What};
use crate::processes;
use crate::results::{Better, Results};
use crate::world;

/// Streams that are open, and say nothing.
const STREAMS: usize = 10_000 - 500;
/// So many where carriers are compared, of which some have a bound.
const COMPARED: usize = 1000;

/// Memory of daemons without any stream, of each stream, and how long it takes from two starts to a byte.
pub(super) fn idle(plan: &Plan, results: &mut Results) -> Result<()> {
    let mut names: Vec<String> = plan.carriers.iter().filter(|name| *name != "direct").cloned().collect();
    for _ in 0..plan.rounds {
        let lab = world::lab(None)?;
        let host = lab.appliance();
        let _target = world::target(host)?;
        let mut carrier = carrier::one_hop(&lab, host, host)?;
        // As long as it takes until what is lazy has been done.
        let load = |what, time| Load { to: carrier.to, what, warm: Duration::from_millis(500), time };
        let ends = [("appliance", carrier.ends[0].pid()), ("worker", carrier.ends[1].pid())];
        let memory =
            || -> Result<Vec<f64>> { ends.iter().map(|(_, pid)| processes::memory(&[*pid])).collect() };
        let empty = memory()?;
        for ((end, _), bytes) in ends.iter().zip(&empty) {
            results.add(&format!("memory of the idle {end}"), "B", Better::Less, "dworker", *bytes);
        }
        let what = What::Idle { connections: STREAMS };
        let running = carrier.place.start(load(what, Duration::from_secs(1)))?;
        let full = memory()?;
        for (((end, _), before), after) in ends.iter().zip(&empty).zip(&full) {
            let each = (after - before) / STREAMS as f64;
            results.add(&format!("memory of an idle stream, {end}"), "B", Better::Less, "dworker", each);
        }
        let seen = running.end()?;
        ensure!(seen.failures == 0, "{} of {STREAMS} connections failed", seen.failures);

        let first = load(What::FirstByte { times: 1 }, Duration::ZERO);
        for end in &mut carrier.ends {
            if let End::Daemon(daemon) = end {
                daemon.stop(Duration::from_secs(20))?;
            }
        }
        let began = Instant::now();
        for end in &mut carrier.ends {
            if let End::Daemon(daemon) = end {
                daemon.start()?;
            }
        }
        let seen = carrier.place.run(first)?;
        ensure!(seen.failures == 0, "the first connection failed");
        results.add(
            "start to first byte",
            "ms",
            Better::Less,
            "dworker",
            began.elapsed().as_secs_f64() * 1e3,
        );
        drop(carrier);
        for name in std::mem::take(&mut names) {
            let each = match plan.start(&name, &lab, Way::within(host), results)? {
                Some(carrier) => plan.or_left_out(&name, each(&carrier), results)?,
                None => None,
            };
            if let Some(each) = each {
                results.add("memory of an idle stream, both ends", "B", Better::Less, &name, each);
                names.push(name);
            }
        }
    }
    Ok(())
}

/// Memory of each idle connection, both ends together.
fn each(carrier: &Carrier<'_>) -> Result<f64> {
    let what = What::Idle { connections: COMPARED };
    let time = Duration::from_secs(1);
    let before = processes::memory(&carrier.pids())?;
    let running = carrier.place.start(Load { to: carrier.to, what, warm: time, time })?;
    let after = processes::memory(&carrier.pids())?;
    let seen = running.end()?;
    ensure!(seen.failures == 0, "{}: {} of {COMPARED} connections failed", carrier.name, seen.failures);
    Ok((after - before) / COMPARED as f64)
}
