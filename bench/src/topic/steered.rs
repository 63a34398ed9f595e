//! Ways of leading connections elsewhere, beside each other.

use anyhow::{Result, ensure};

use super::Plan;
use crate::carrier;
use crate::load::What;
use crate::results::{Better, Results};
use crate::world;

/// Short connections, led to the same bare forwarder by dworker's programs and by nftables; and all the way through
/// dworker, steered, or by redsocks and SOCKS. Each way has a host of its own: where nftables has a rule that
/// redirects, the kernel tracks all connections, those of the others, too.
pub(super) fn steered(plan: &Plan, results: &mut Results) -> Result<()> {
    let lab = world::lab(None)?;
    let hosts = [lab.appliance(), lab.elsewhere(), lab.site(), lab.vcenter()];
    let mut targets = Vec::new();
    for host in hosts {
        world::many_ports(host)?;
        targets.push(world::target(host)?);
    }
    let [appliance, elsewhere, site, vcenter] = hosts;
    let carriers = [
        carrier::direct(appliance),
        carrier::programs(elsewhere)?,
        carrier::redirect(vcenter)?,
        carrier::one_hop(&lab, appliance, appliance)?,
        carrier::redsocks(&lab, site, tests::net::SITE.v4.into())?,
    ];
    for _ in 0..plan.rounds {
        for carrier in &carriers {
            let (seen, used) = plan.run("steered", carrier, What::Connects { at_once: 16 })?;
            // Whom no connection was led to, nothing was measured of.
            ensure!(used > 0.0 || carrier.ends.is_empty(), "{} did nothing", carrier.name);
            results.add("steered connects", "1/s", Better::More, &carrier.name, seen.rate);
            results.add("steered connects p99", "µs", Better::Less, &carrier.name, seen.p99);
            plan.cost(results, "cpu of a steered connection", carrier, &seen, used);
        }
    }
    Ok(())
}
