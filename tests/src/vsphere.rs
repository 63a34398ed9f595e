//! A real vSphere API: govmomi's simulator on the vCenter host.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::clients::{Sdk, go};
use crate::net;
use crate::pki::Validity;
use crate::process::Process;
use crate::topology::Lab;

/// Where the clients log in.
pub const VCENTER_URL: &str = "https://vcenter.corp.example";
pub(crate) const USER: &str = "administrator@vsphere.local";
pub(crate) const PASSWORD: &str = "VMware1! & <more>";

/// How long the simulator may take to build its inventory.
const START: Duration = Duration::from_secs(30);

/// A running vCenter. Dropping it stops it.
#[derive(Debug)]
pub struct Vsphere {
    process: Process,
}

impl Lab {
    /// Starts a vCenter on port 443 of all addresses of the vCenter host. Its certificate holds for its
    /// names and its addresses.
    pub fn vsphere(&self) -> Result<Vsphere> {
        let [v4, v6] = net::VCENTER.both().map(|address| address.to_string());
        let names = ["vcenter.corp.example", "*.corp.example", "*.wild.corp.example", &v4, &v6];
        let identity = self.pki().issue(&names, Validity::Current)?;
        let process = self
            .vcenter()
            .command(&simulator()?.display().to_string())
            .arg(":443")
            .args([&identity.certificate, &identity.key])
            .args([USER, PASSWORD])
            .spawn()?;
        process.wait_for_line("serving https://", START)?;
        Ok(Vsphere { process })
    }

    /// Asks the vCenter itself, from the site host, for its virtual machines: (name, power state).
    pub fn virtual_machines(&self) -> Result<Vec<(String, String)>> {
        let list = self.site().uncaptured(self.sdk(Sdk::Go, ["list"])?).check()?;
        Ok(list
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(name, state)| (name.to_owned(), state.to_owned()))
            .collect())
    }
}

impl Vsphere {
    /// Its process, for its log or to kill it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

pub(crate) fn simulator() -> Result<PathBuf> {
    go("simulator", "simulator/main.go")
}
