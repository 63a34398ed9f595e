//! Short connections and small messages.

use std::time::Duration;

use anyhow::Result;

use super::Plan;
use crate::load::{Direction, Load, What};
use crate::results::{Better, Results};
use crate::world;

const CONNECTIONS: usize = 16;

/// Connections of one message each.
pub(super) fn connects(plan: &Plan, results: &mut Results) -> Result<()> {
    let lab = world::lab(None)?;
    let host = lab.appliance();
    // What has just been closed keeps its port for a minute; the fastest need more than there are by default.
    host.netns().sysctl("net/ipv4/ip_local_port_range", "10000 65000")?;
    host.netns().sysctl("net/ipv4/tcp_tw_reuse", "1")?;
    let _target = world::target(host)?;
    let carriers = plan.start(&lab, host)?;
    for _ in 0..plan.rounds {
        for carrier in &carriers {
            let (seen, _) = plan.run("connects", carrier, What::Connects { at_once: CONNECTIONS })?;
            let name = &carrier.name;
            results.add("connects", "1/s", Better::More, name, seen.rate);
            results.add("connects p99", "µs", Better::Less, name, seen.p99);
        }
    }
    Ok(())
}

/// Messages on connections that are kept; then a few of them beside a stream that takes all it can get.
pub(super) fn requests(plan: &Plan, results: &mut Results) -> Result<()> {
    let lab = world::lab(None)?;
    let host = lab.appliance();
    let _target = world::target(host)?;
    let carriers = plan.start(&lab, host)?;
    for _ in 0..plan.rounds {
        for carrier in &carriers {
            let name = &carrier.name;
            let mut add = |measure: &str, what: What| -> Result<()> {
                let (seen, _) = plan.run(measure, carrier, what)?;
                results.add(measure, "1/s", Better::More, name, seen.rate);
                results.add(&format!("{measure} p99"), "µs", Better::Less, name, seen.p99);
                Ok(())
            };
            add("requests", What::Requests { connections: CONNECTIONS })?;
            add("requests alone", What::Requests { connections: 1 })?;
            let bulk = What::Bulk { streams: 1, direction: Direction::Down };
            let time = plan.time + Duration::from_secs(2);
            let bulk = carrier.place.start(Load { time, ..plan.load(carrier, bulk) })?;
            add("requests beside bulk", What::Requests { connections: 1 })?;
            bulk.end()?;
        }
    }
    Ok(())
}
