//! Short connections and small messages.

use std::time::Duration;

use anyhow::Result;

use super::{Plan, moved};
use crate::load::{Direction, Load, What};
use crate::results::{Better, Results};
use crate::world;

const CONNECTIONS: usize = 16;
/// The measure of messages on all of them.
const ALL: &str = "requests";

/// Connections of one message each.
pub(super) fn connects(plan: &Plan, results: &mut Results) -> Result<()> {
    let lab = world::lab(None)?;
    let host = lab.appliance();
    world::many_ports(host)?;
    let _target = world::target(host)?;
    let mut carriers = plan.start_all(&lab, host, results)?;
    for _ in 0..plan.rounds {
        plan.round(&mut carriers, results, |carrier, results| {
            let what = What::Connects { at_once: CONNECTIONS };
            let (seen, used) = plan.run("connects", carrier, what)?;
            let name = &carrier.name;
            results.add("connects", "1/s", Better::More, name, seen.rate);
            results.add("connects p99", "µs", Better::Less, name, seen.p99);
            plan.cost(results, "cpu of a connection", carrier, &seen, used);
            Ok(())
        })?;
    }
    Ok(())
}

/// Messages on connections that are kept; then one of them beside a stream that takes all it can get.
pub(super) fn requests(plan: &Plan, results: &mut Results) -> Result<()> {
    let lab = world::lab(None)?;
    let host = lab.appliance();
    let _target = world::target(host)?;
    let mut carriers = plan.start_all(&lab, host, results)?;
    for _ in 0..plan.rounds {
        plan.round(&mut carriers, results, |carrier, results| {
            let name = &carrier.name;
            let mut add = |measure: &str, connections: usize| -> Result<()> {
                let (seen, used) = plan.run(measure, carrier, What::Requests { connections })?;
                results.add(measure, "1/s", Better::More, name, seen.rate);
                results.add(&format!("{measure} p99"), "µs", Better::Less, name, seen.p99);
                if measure == ALL {
                    plan.cost(results, "cpu of a message", carrier, &seen, used);
                }
                Ok(())
            };
            add(ALL, CONNECTIONS)?;
            add("requests alone", 1)?;
            let bulk = What::Bulk { streams: 1, direction: Direction::Down };
            let time = plan.time + Duration::from_secs(2);
            let bulk = carrier.place.start(Load { time, ..plan.load(carrier, bulk) })?;
            add("requests beside bulk", 1)?;
            moved("bulk beside requests", carrier, &bulk.end()?)
        })?;
    }
    Ok(())
}
