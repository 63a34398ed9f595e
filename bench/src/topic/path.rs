//! Long and lossy ways.

use std::time::Duration;

use anyhow::Result;
use tests::{Lab, PathSettings};

use super::{Plan, moved};
use crate::carrier::{self, Carrier, Way};
use crate::load::{Direction, Load, Seen, What};
use crate::results::{Better, Results};
use crate::world::{self, TARGET_HOST};

/// 50 ms there and back: when the first byte comes, and how much of 1 Gbit/s one stream has after three seconds.
pub(super) fn long(plan: &Plan, results: &mut Results) -> Result<()> {
    let path = PathSettings { delay: Duration::from_millis(25), ..PathSettings::default() };
    let wire = PathSettings { rate: Some(1_000_000_000), queue: 8 << 20, ..path };
    let lab = world::lab(Some(path))?;
    let _target = world::target(lab.site())?;
    let mut carriers = across(plan, &lab, &plan.carriers, None, results)?;
    for _ in 0..plan.rounds {
        plan.round(&mut carriers, results, |carrier, results| {
            let seen = run(carrier, plan.load(carrier, What::FirstByte { times: 5 }))?;
            results.add("first byte at 50 ms", "ms", Better::Less, &carrier.name, seen.p50 / 1e3);
            Ok(())
        })?;
    }
    if let Some(path) = lab.path() {
        path.set(wire)?;
    }
    let what = What::Bulk { streams: 1, direction: Direction::Down };
    for _ in 0..plan.rounds {
        plan.round(&mut carriers, results, |carrier, results| {
            let seen = run(carrier, Load { warm: Duration::from_secs(3), ..plan.load(carrier, what) })?;
            results.add("bulk at 1 Gbit/s, 50 ms", "B/s", Better::More, &carrier.name, seen.rate);
            Ok(())
        })?;
    }
    Ok(())
}

/// Eight streams at 20 ms there and back, where one packet of a hundred is lost: with as many websockets as the README
/// advises there, since what is lost in one does not hold up the streams of the others, and with as many as by default.
pub(super) fn loss(plan: &Plan, results: &mut Results) -> Result<()> {
    let path = PathSettings { delay: Duration::from_millis(10), loss: 0.01, ..PathSettings::default() };
    let what = What::Bulk { streams: 8, direction: Direction::Down };
    let labs = [world::lab(Some(path))?, world::lab(Some(path))?];
    let _targets = [world::target(labs[0].site())?, world::target(labs[1].site())?];
    // The others have no such setting; direct TCP is what both are compared with.
    let set: Vec<String> =
        plan.carriers.iter().filter(|name| ["direct", "dworker"].contains(&name.as_str())).cloned().collect();
    let mut measures = [
        ("bulk 8 at 1 % loss, 20 ms", across(plan, &labs[0], &plan.carriers, Some(4), results)?),
        ("bulk 8 at 1 % loss, 20 ms, default lanes", across(plan, &labs[1], &set, None, results)?),
    ];
    for _ in 0..plan.rounds {
        for (measure, carriers) in &mut measures {
            plan.round(carriers, results, |carrier, results| {
                let time = plan.time.max(Duration::from_secs(5));
                let seen =
                    run(carrier, Load { warm: Duration::from_secs(2), time, ..plan.load(carrier, what) })?;
                results.add(measure, "B/s", Better::More, &carrier.name, seen.rate);
                Ok(())
            })?;
        }
    }
    Ok(())
}

fn run(carrier: &Carrier<'_>, load: Load) -> Result<Seen> {
    let title = format!("{:?}", load.what);
    let seen = carrier.place.run(load)?;
    moved(&title, carrier, &seen)?;
    Ok(seen)
}

/// Starts these from the appliance's host to the site, dworker with so many websockets.
fn across<'a>(
    plan: &Plan,
    lab: &'a Lab,
    names: &[String],
    lanes: Option<u8>,
    results: &mut Results,
) -> Result<Vec<Carrier<'a>>> {
    let way = Way::across(lab);
    lab.router().netns().ip(&format!("route add {TARGET_HOST}/32 via {}", tests::net::SITE.v4))?;
    for host in [way.near, way.far] {
        // Else the kernel's default for what one connection may have on its way is the limit, not the path.
        host.netns().sysctl("net/ipv4/tcp_rmem", "4096 131072 33554432")?;
        host.netns().sysctl("net/ipv4/tcp_wmem", "4096 65536 33554432")?;
    }
    let start = |name: &String| match name.as_str() {
        "dworker" => Some(carrier::one_hop_with(lab, way.near, way.far, &[TARGET_HOST], lanes)),
        name => plan.start(name, lab, way, results).transpose(),
    };
    names.iter().filter_map(start).collect()
}
