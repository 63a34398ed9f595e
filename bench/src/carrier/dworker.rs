//! dworker, as it is installed: its programs steer the client's cgroup.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use tests::{Config, Group, Host, Lab};

use super::{Carrier, End};
use crate::world::{Place, TARGET, TARGET_HOST};

pub(super) const UP: Duration = Duration::from_secs(30);

/// An appliance that steers its own host, and one worker that dials the target, as they are installed.
pub(crate) fn one_hop<'a>(lab: &Lab, appliance: &'a Host, worker: &Host) -> Result<Carrier<'a>> {
    one_hop_with(lab, appliance, worker, &[TARGET_HOST], None)
}

/// As [`one_hop`], with other proxy hosts, or with so many websockets.
pub(crate) fn one_hop_with<'a>(
    lab: &Lab,
    appliance: &'a Host,
    worker: &Host,
    proxy_hosts: &[&str],
    lanes: Option<u8>,
) -> Result<Carrier<'a>> {
    let group = Group::new("site-a", proxy_hosts.iter().copied())?;
    let config = Config::new().appliance(&lab.appliance_identity()?, &[&group]).steer(&[appliance.cgroup()]);
    let first = appliance.daemon("appliance", config)?;
    let config = Config::new().worker(&group, lab.pki().ca_file(), [TARGET_HOST]);
    let config = match lanes {
        Some(lanes) => config.set("lanes", lanes),
        None => config,
    };
    let second = worker.daemon("worker", config)?;
    first.wait_for_group("site-a", UP)?;
    Ok(Carrier {
        name: "dworker".into(),
        place: Place::captured(appliance),
        to: TARGET,
        ends: [first, second].map(|daemon| End::Daemon(Box::new(daemon))).into(),
    })
}

/// A worker that steers its own host, the appliance, and the worker that dials the target.
pub(crate) fn relay<'a>(lab: &Lab, host: &'a Host) -> Result<Carrier<'a>> {
    let address: IpAddr = tests::net::SITE.v4.into();
    let listen = SocketAddr::new(address, 443).to_string();
    let identity = lab.pki().issue(&[&address.to_string()], tests::Validity::Current)?;
    let (near, far) =
        (Group::new("near", ["nothing.example"])?.may_open(), Group::new("far", [TARGET_HOST])?);
    let config =
        Config::new().appliance(&identity, &[&near, &far]).set("appliance.listen", [listen.as_str()]);
    let appliance = host.daemon("relay-appliance", config)?;
    let url = format!("https://{listen}");
    let worker = |group: &Group, allow: &str| {
        Config::new().worker(group, lab.pki().ca_file(), [allow]).set("appliance_url", url.as_str())
    };
    let steering = worker(&near, "nothing.example").steer(&[host.cgroup()]);
    let steering = host.daemon("relay-near", steering.set("steer.proxy_hosts", [TARGET_HOST]))?;
    let dialling = host.daemon("relay-far", worker(&far, TARGET_HOST))?;
    for group in ["near", "far"] {
        appliance.wait_for_group(group, UP).context("relay")?;
    }
    Ok(Carrier {
        name: "relay".into(),
        place: Place::captured(host),
        to: TARGET,
        ends: [appliance, steering, dialling].map(|daemon| End::Daemon(Box::new(daemon))).into(),
    })
}
