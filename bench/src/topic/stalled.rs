//! Streams that nobody reads.

use std::time::Duration;

use anyhow::Result;

use super::Plan;
use crate::carrier;
use crate::load::{Direction, Load, What};
use crate::processes;
use crate::results::{Better, Results};
use crate::world;

/// So many that one page more or less does not matter.
const STALLED: usize = 64;

/// What others lose beside them, and how much memory each takes.
pub(super) fn stalled(plan: &Plan, results: &mut Results) -> Result<()> {
    let lab = world::lab(None)?;
    let host = lab.appliance();
    let _target = world::target(host)?;
    let carrier = carrier::one_hop(&lab, host, host)?;
    let others = What::Bulk { streams: 4, direction: Direction::Down };
    for _ in 0..plan.rounds {
        let before = processes::memory(&carrier.pids())?;
        let what = What::Stalled { connections: STALLED };
        let hold =
            Load { warm: Duration::from_secs(1), time: Duration::from_secs(1), ..plan.load(&carrier, what) };
        let running = carrier.place.start(hold)?;
        let each = (processes::memory(&carrier.pids())? - before) / STALLED as f64;
        results.add("memory of a stalled stream", "B", Better::Less, "dworker", each);
        running.end()?;

        let without = carrier.place.run(plan.load(&carrier, others))?;
        results.add("bulk without stalled", "B/s", Better::More, "dworker", without.rate);
        let hold = Load { time: plan.time + Duration::from_secs(2), ..plan.load(&carrier, what) };
        let running = carrier.place.start(hold)?;
        let with = carrier.place.run(plan.load(&carrier, others))?;
        results.add("bulk beside stalled", "B/s", Better::More, "dworker", with.rate);
        running.end()?;
    }
    Ok(())
}
