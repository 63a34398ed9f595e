//! The references: nothing at all, and the bare pipe.

use std::time::Duration;

use anyhow::Result;
use tests::{Host, Lab};

use super::{Carrier, End, Way};
use crate::world::{Place, TARGET, own};

const START: Duration = Duration::from_secs(10);

/// Nobody carries.
pub(crate) fn direct(host: &Host) -> Carrier<'_> {
    Carrier { name: "direct".into(), place: Place::plain(host), to: TARGET, ends: Vec::new() }
}

/// Both ends of the bare pipe.
pub(crate) fn pipe<'a>(lab: &Lab, way: Way<'a>) -> Result<Carrier<'a>> {
    let identity = lab.appliance_identity()?;
    let (near, far) = way.ports(0);
    let text = |path: &std::path::Path| path.display().to_string();
    let server = own([
        "pipe",
        "--listen",
        &far.to_string(),
        "--to",
        &TARGET.to_string(),
        "--certificate",
        &text(&identity.certificate),
        "--key",
        &text(&identity.key),
    ])?;
    let client = own([
        "pipe",
        "--listen",
        &near.to_string(),
        "--to",
        &far.to_string(),
        "--ca",
        &text(lab.pki().ca_file()),
    ])?;
    let mut ends = Vec::new();
    for (host, command) in [(way.far, server), (way.near, client)] {
        let process = host.uncaptured(command).spawn()?;
        process.wait_for_line("listening", START)?;
        ends.push(End::Process(process));
    }
    Ok(Carrier { name: "pipe".into(), place: Place::plain(way.near), to: near, ends })
}
