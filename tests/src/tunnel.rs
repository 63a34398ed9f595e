//! The common case: an appliance that steers its own host, and one worker at the site.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::config::{Config, Group};
use crate::daemon::Daemon;
use crate::topology::Lab;

/// How long a worker may take to connect.
const UP: Duration = Duration::from_secs(30);

/// Both ends, connected. Dropping it stops them.
#[derive(Debug)]
pub struct Tunnel {
    /// `[appliance]` and `[steer]` on the appliance host; its captured cgroup is steered.
    pub appliance: Daemon,
    /// The worker on the site host.
    pub worker: Daemon,
    /// The worker's group.
    pub group: Group,
}

impl Lab {
    /// Starts both ends with group `site-a`, which owns `proxy_hosts`; its worker may dial `allow`.
    pub fn tunnel<const P: usize, const A: usize>(
        &self,
        proxy_hosts: [&str; P],
        allow: [&str; A],
    ) -> Result<Tunnel> {
        self.tunnel_with(proxy_hosts, allow, |config| config)
    }

    /// As [`Lab::tunnel`], with another configuration of the appliance.
    pub fn tunnel_with<const P: usize, const A: usize>(
        &self,
        proxy_hosts: [&str; P],
        allow: [&str; A],
        adjust: impl FnOnce(Config) -> Config,
    ) -> Result<Tunnel> {
        self.tunnel_of(proxy_hosts, allow, adjust, |config| config)
    }

    /// As [`Lab::tunnel`], with other configurations of the appliance and of the worker.
    pub fn tunnel_of<const P: usize, const A: usize>(
        &self,
        proxy_hosts: [&str; P],
        allow: [&str; A],
        appliance: impl FnOnce(Config) -> Config,
        worker: impl FnOnce(Config) -> Config,
    ) -> Result<Tunnel> {
        let group = Group::new("site-a", proxy_hosts)?;
        let config = Config::new()
            .appliance(&self.appliance_identity()?, &[&group])
            .steer(&[self.appliance().cgroup()]);
        let appliance = self.appliance().daemon("appliance", appliance(config))?;
        let config = Config::new().worker(&group, self.pki().ca_file(), allow);
        let worker = self.site().daemon("worker", worker(config))?;
        let tunnel = Tunnel { appliance, worker, group };
        tunnel.wait_until_up()?;
        Ok(tunnel)
    }
}

impl Tunnel {
    /// Waits until the worker takes streams.
    pub fn wait_until_up(&self) -> Result<()> {
        self.appliance.wait_for_group(&self.group.name, UP)
    }
}

impl Daemon {
    /// Waits until a worker of this group takes streams of this appliance.
    pub fn wait_for_group(&self, name: &str, within: Duration) -> Result<()> {
        let up = |status: &Value| {
            list(&status["appliance"]["groups"]).iter().any(|g| g["name"] == name && g["up"] == true)
        };
        self.wait_for_status(&format!("a worker of {name}"), within, up).map(drop)
    }

    /// How many tunnel streams were ever opened on the lanes that are up, at this end of them.
    pub fn streams(&self) -> Result<u64> {
        let status = self.status()?;
        let groups = list(&status["appliance"]["groups"]).iter();
        let nodes = groups.flat_map(|group| list(&group["nodes"]));
        let lanes = nodes.chain([&status["worker"]]).flat_map(|end| list(&end["lanes"]));
        Ok(lanes.filter_map(|lane| lane["streams_total"].as_u64()).sum())
    }

    /// The connections that it knows, newest first, as `status` has them.
    pub fn flows(&self) -> Result<Vec<Value>> {
        Ok(list(&self.status()?["flows"]["recent"]).to_vec())
    }

    /// The connection whose number is `id`, as `status` has it once it has ended.
    pub fn ended_flow(&self, id: u64, within: Duration) -> Result<Value> {
        let find = |status: &Value| {
            let flow = list(&status["flows"]["recent"]).iter().find(|flow| flow["id"] == id)?;
            (flow["state"] != "opening" && flow["state"] != "open").then(|| flow.clone())
        };
        let what = format!("the end of flow {id}");
        let status = self.wait_for_status(&what, within, |status| find(status).is_some())?;
        find(&status).context("a flow vanished")
    }

    /// The newest connection to this target, as `vcenter.corp.example:443`.
    pub fn flow(&self, target: &str) -> Result<Value> {
        let flows = self.flows()?;
        let found = flows.iter().find(|flow| flow["target"] == target).cloned();
        found.with_context(|| format!("{} has no flow to {target}: {flows:#?}", self.name()))
    }

    /// Waits until the newest connection to this target is in this state: `open`, `closed`, `refused`, ...
    pub fn wait_for_flow(&self, target: &str, state: &str, within: Duration) -> Result<Value> {
        let newest = |status: &Value| -> Option<Value> {
            list(&status["flows"]["recent"]).iter().find(|flow| flow["target"] == target).cloned()
        };
        let wanted = |status: &Value| newest(status).is_some_and(|flow| flow["state"] == state);
        let status = self.wait_for_status(&format!("{target} {state}"), within, wanted)?;
        newest(&status).with_context(|| format!("no flow to {target}"))
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
