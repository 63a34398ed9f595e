//! Where everything runs: hosts of the lab, each with a target on its own loopback.
//!
//! The shortest way there is, so that nothing but who carries the bytes makes a difference.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use tests::{Command, Host, Lab, Process};

use crate::load::{Load, Seen};

/// The address of the targets; each host that measures has it.
pub(crate) const TARGET: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 99, 0, 1)), 9000);
/// What [`TARGET`] is as a proxy host.
pub(crate) const TARGET_HOST: &str = "10.99.0.1";

const START: Duration = Duration::from_secs(10);

/// Gives a host the target's address and starts the target there.
pub(crate) fn target(host: &Host) -> Result<Process> {
    serve(host, TARGET)
}

/// Gives a host an address and starts a server there.
pub(crate) fn serve(host: &Host, at: SocketAddr) -> Result<Process> {
    host.netns().ip(&format!("addr add {}/32 dev lo", at.ip()))?;
    let process = host.uncaptured(own(["serve", &at.to_string()])?).spawn()?;
    process.wait_for_line("listening", START)?;
    Ok(process)
}

/// A command of this program.
pub(crate) fn own<const N: usize>(args: [&str; N]) -> Result<Command> {
    let program: PathBuf = std::env::current_exe().context("finding the running program")?;
    Ok(Command::new(program).args(args))
}

/// A load that is on.
pub(crate) struct Running {
    process: Process,
    load: Load,
}

/// Where a client runs.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The host.
    pub(crate) host: &'a Host,
    /// By what its connections are led elsewhere.
    led: Led,
}

/// By what a client's connections are led elsewhere.
#[derive(Clone, Copy)]
enum Led {
    Nothing,
    /// It is in the host's captured cgroup.
    Cgroup,
    /// A rule of nftables knows this group id.
    Group(u32),
}

impl<'a> Place<'a> {
    /// A client whose connections go where it connects to.
    pub(crate) fn plain(host: &'a Host) -> Place<'a> {
        Place { host, led: Led::Nothing }
    }

    /// A client in the host's captured cgroup.
    pub(crate) fn captured(host: &'a Host) -> Place<'a> {
        Place { host, led: Led::Cgroup }
    }

    /// A client of this group id, by which nftables knows it.
    pub(crate) fn grouped(host: &'a Host, group: u32) -> Place<'a> {
        Place { host, led: Led::Group(group) }
    }
    /// Starts a load; returns when it begins to count.
    pub(crate) fn start(self, load: Load) -> Result<Running> {
        let command = own(["load", &serde_json::to_string(&load)?])?;
        let command = match self.led {
            Led::Nothing => self.host.uncaptured(command),
            Led::Cgroup => self.host.captured(command),
            Led::Group(group) => self.host.uncaptured(command.args(["--group", &group.to_string()])),
        };
        let process = command.spawn()?;
        process.wait_for_line("measuring", load.warm + Duration::from_secs(120))?;
        Ok(Running { process, load })
    }

    /// Runs a load to its end.
    pub(crate) fn run(self, load: Load) -> Result<Seen> {
        self.start(load)?.end()
    }
}

impl Running {
    /// Waits for the end, and says what it saw.
    pub(crate) fn end(mut self) -> Result<Seen> {
        let line = self
            .process
            .wait_for("{", self.load.time + Duration::from_secs(60), |line| line.starts_with('{'))?;
        self.process.wait(START)?;
        serde_json::from_str(&line).with_context(|| format!("reading {line}"))
    }
}

/// Gives a host more ports, for thousands of connections to one target: what has just been closed keeps its own for a
/// minute, and the fastest need more than there are by default.
pub(crate) fn many_ports(host: &Host) -> Result<()> {
    host.netns().sysctl("net/ipv4/ip_local_port_range", "10000 65000")?;
    host.netns().sysctl("net/ipv4/tcp_tw_reuse", "1")
}

/// The lab, without the firewall between its hosts: what goes directly is measured, too.
pub(crate) fn lab(path: Option<tests::PathSettings>) -> Result<Lab> {
    let lab = match path {
        Some(path) => Lab::with_path(path)?,
        None => Lab::new()?,
    };
    lab.router().netns().nft("delete table inet dwlab")?;
    Ok(lab)
}
