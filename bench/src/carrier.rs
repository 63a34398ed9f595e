//! Who carries the bytes: dworker, and those that it is measured beside.

mod dworker;
mod others;
mod plain;
mod steered;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, bail};
use tests::{Daemon, Host, Lab, Process};

use crate::world::Place;

pub(crate) use dworker::{one_hop, one_hop_with, relay};
pub(crate) use plain::direct;
pub(crate) use steered::{programs, redirect, redsocks};

/// A way to the target that is up.
pub(crate) struct Carrier<'a> {
    /// As tables have it.
    pub(crate) name: String,
    /// Where clients run.
    pub(crate) place: Place<'a>,
    /// Where they connect to.
    pub(crate) to: SocketAddr,
    /// What carries, each end by itself.
    pub(crate) ends: Vec<End>,
}

/// A program that carries.
pub(crate) enum End {
    Daemon(Box<Daemon>),
    Process(Process),
}

impl End {
    pub(crate) fn pid(&self) -> u32 {
        match self {
            End::Daemon(daemon) => daemon.process().pid(),
            End::Process(process) => process.pid(),
        }
    }
}

impl Carrier<'_> {
    /// The processes, without those that they started.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.ends.iter().map(End::pid).collect()
    }
}

/// Between which hosts is carried.
#[derive(Clone, Copy)]
pub(crate) struct Way<'a> {
    /// Where clients are, and the end that they connect to.
    pub(crate) near: &'a Host,
    /// Where the target is reached from.
    pub(crate) far: &'a Host,
    /// The far host's address, as the near one has it.
    pub(crate) at: IpAddr,
}

impl<'a> Way<'a> {
    /// Both ends and the target on one host: the shortest there is.
    pub(crate) fn within(host: &'a Host) -> Way<'a> {
        Way { near: host, far: host, at: Ipv4Addr::LOCALHOST.into() }
    }

    /// From the appliance's host to the site.
    pub(crate) fn across(lab: &'a Lab) -> Way<'a> {
        Way { near: lab.appliance(), far: lab.site(), at: tests::net::SITE.v4.into() }
    }

    /// Where the nth tool's client listens, and its server.
    fn ports(&self, tool: u16) -> (SocketAddr, SocketAddr) {
        let port = 2001 + 10 * tool;
        ((Ipv4Addr::LOCALHOST, port).into(), (self.at, port + 1).into())
    }
}

/// Whom the others are compared with.
pub(crate) const OURS: &str = "dworker";

/// The names of all that can be started, the reference first.
pub(crate) const ALL: [&str; 6] = ["direct", "pipe", "dworker", "nginx", "stunnel", "ssh"];

/// A tool that no registry has, given by a command line.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    name: String,
    server: String,
    client: String,
}

impl std::str::FromStr for Peer {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Peer> {
        let parts = text.split_once('=').and_then(|(name, both)| Some((name, both.split_once(';')?)));
        let Some((name, (server, client))) = parts else {
            bail!("{text:?} is not 'NAME=SERVER COMMAND;CLIENT COMMAND'");
        };
        Ok(Peer { name: name.trim().into(), server: server.trim().into(), client: client.trim().into() })
    }
}

impl Peer {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// Starts a carrier, whose target is there already.
pub(crate) fn start<'a>(name: &str, peers: &[Peer], lab: &Lab, way: Way<'a>) -> Result<Carrier<'a>> {
    match name {
        "direct" => Ok(plain::direct(way.near)),
        "pipe" => plain::pipe(lab, way),
        "dworker" => one_hop(lab, way.near, way.far),
        "nginx" => others::nginx(lab, way),
        "stunnel" => others::stunnel(lab, way),
        "ssh" => others::ssh(way),
        _ => match peers.iter().position(|peer| peer.name == name) {
            Some(at) => others::given(&peers[at], at, lab, way),
            None => bail!("there is no carrier {name:?}: it is one of {}", ALL.join(", ")),
        },
    }
}
