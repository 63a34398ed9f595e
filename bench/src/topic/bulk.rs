//! Many bytes.

use anyhow::Result;

use super::Plan;
use crate::carrier::{self, Carrier};
use crate::load::{Direction, What};
use crate::results::{Better, Results};
use crate::world;

const DIRECTIONS: [(Direction, &str); 2] = [(Direction::Up, "up"), (Direction::Down, "down")];

/// One stream and eight, each way; and what both ends together use of the CPU.
pub(super) fn bulk(plan: &Plan, results: &mut Results) -> Result<()> {
    let lab = world::lab(None)?;
    let host = lab.appliance();
    let _target = world::target(host)?;
    let mut carriers = plan.start_all(&lab, host, results)?;
    for streams in [1, 8] {
        for _ in 0..plan.rounds {
            plan.round(&mut carriers, results, |carrier, results| measure(plan, results, carrier, streams))?;
        }
    }
    Ok(())
}

/// One stream that an appliance carries on, beside one that it carries itself.
pub(super) fn relay(plan: &Plan, results: &mut Results) -> Result<()> {
    let lab = world::lab(None)?;
    let _targets = [world::target(lab.appliance())?, world::target(lab.site())?];
    let one = carrier::one_hop(&lab, lab.appliance(), lab.appliance())?;
    let two = carrier::relay(&lab, lab.site())?;
    for _ in 0..plan.rounds {
        for carrier in [&one, &two] {
            for (direction, way) in DIRECTIONS {
                let what = What::Bulk { streams: 1, direction };
                let (seen, _) = plan.run(&format!("relay-{way}"), carrier, what)?;
                results.add(&format!("relay {way}"), "B/s", Better::More, &carrier.name, seen.rate);
            }
        }
    }
    Ok(())
}

fn measure(plan: &Plan, results: &mut Results, carrier: &Carrier<'_>, streams: usize) -> Result<()> {
    for (direction, way) in DIRECTIONS {
        let what = What::Bulk { streams, direction };
        let (seen, used) = plan.run(&format!("bulk-{way}-{streams}"), carrier, what)?;
        let name = &carrier.name;
        results.add(&format!("bulk {way} {streams}"), "B/s", Better::More, name, seen.rate);
        if streams > 1 {
            let measure = format!("least of {streams} streams {way}");
            results.add(&measure, "of its part", Better::More, name, seen.least);
        }
        if !carrier.ends.is_empty() {
            let cost = used / (seen.rate * plan.time.as_secs_f64() / 1e9);
            results.add(&format!("cpu {way} {streams}"), "s/GB", Better::Less, name, cost);
        }
    }
    Ok(())
}
