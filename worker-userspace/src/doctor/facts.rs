//! What was seen, as plain data.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

use super::canary::Song;
use crate::config::Config;
use crate::inspect::probe::Tried;
use crate::inspect::status::{CertificateStatus, Status};
use crate::tunnel::tls;

/// A configuration with its warnings; or what is wrong with it. A line each.
pub type Judged = Result<(Config, Vec<String>), Vec<String>>;

/// All of it.
#[derive(Debug, Default)]
pub struct Facts {
    /// Where the configuration was read from.
    pub source: String,
    /// The configuration.
    pub config: Option<Judged>,
    /// What the daemon says; or the socket that was asked, and why nobody answers.
    pub daemon: Option<Result<Box<Status>, (PathBuf, String)>>,
    /// Machine and process.
    pub system: System,
    /// Of steering, where the configuration asks for it.
    pub hooks: Option<Hooks>,
    /// How this host looks names up.
    pub names: Names,
    /// What came of dialling the appliance, where this host is a worker.
    pub appliance: Option<Dialled>,
    /// The certificates that all depends on.
    pub certificates: Vec<CertificateStatus>,
    /// Nodes that were connected once and are not, with their workers.
    pub offline: Vec<(String, String)>,
    /// What a reload would bring, as the daemon knows it.
    pub news: Vec<String>,
    /// What came of trying the proxy hosts; or why they were not tried.
    pub tried: Option<Result<Tried, String>>,
}

impl Facts {
    /// The configuration, where it is valid.
    pub fn config(&self) -> Option<&Config> {
        self.config.as_ref()?.as_ref().ok().map(|(config, _)| config)
    }

    /// What the daemon says, where one answers.
    pub fn status(&self) -> Option<&Status> {
        self.daemon.as_ref()?.as_ref().ok().map(|status| &**status)
    }
}

/// Machine and process.
#[derive(Debug, Default)]
pub struct System {
    /// Capabilities that the daemon lacks.
    pub daemon_lacks: Option<String>,
    /// Capabilities that who looks lacks.
    pub lacks: Option<String>,
    /// That the daemon lives in another network namespace than who looks.
    pub elsewhere: bool,
    /// Where cgroup v2 is mounted; or why not.
    pub cgroup2: Option<Result<PathBuf, String>>,
    /// What keeps things from being pinned.
    pub unpinnable: Option<String>,
    /// The state directory.
    pub state: State,
    /// The daemon's soft limit of open files, or what one that is started here would have.
    pub descriptors: Option<u64>,
    /// The addresses that the configuration listens on.
    pub ports: Vec<Port>,
}

/// The state directory.
#[derive(Debug, Default)]
pub struct State {
    /// Where it is.
    pub path: PathBuf,
    /// Why nothing can be written there.
    pub unwritable: Option<String>,
    /// Bytes that are free on its file system, and its size.
    pub space: Option<(u64, u64)>,
}

/// An address that is listened on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The key that says so.
    pub key: &'static str,
    /// The address.
    pub address: SocketAddr,
    /// Who listens there: process ids with names; empty where it can't be seen who.
    pub holders: Vec<(u32, String)>,
    /// That somebody does.
    pub is_taken: bool,
}

/// Of steering.
#[derive(Debug, Default)]
pub struct Hooks {
    /// The captured cgroups as the configuration has them, that are not there.
    pub missing: Vec<PathBuf>,
    /// Those that are there, and to which the daemon has attached nothing, nor above them.
    pub uncaptured: Vec<PathBuf>,
    /// What each hook of each captured cgroup has.
    pub slots: Vec<Slot>,
    /// Why it can't be seen what is attached.
    pub unseen: Option<String>,
    /// What became of a canary in each cgroup; or why none was sent.
    pub canaries: Vec<(PathBuf, Result<Song, String>)>,
    /// Captured cgroups into which none was sent, beyond those that are tried in one go.
    pub untried: Vec<PathBuf>,
    /// By how much the programs' counters rose meanwhile; `None`: the daemon was not asked a second time.
    pub counted: Option<BTreeMap<String, u64>>,
    /// Links that a daemon which is not there has left pinned.
    pub left: usize,
    /// Where those are.
    pub pins: PathBuf,
}

/// One hook of one cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The cgroup.
    pub cgroup: PathBuf,
    /// The hook, in bpftool's words.
    pub attach_type: String,
    /// The daemon's program there, with its name.
    pub ours: (u32, String),
    /// That it is attached.
    pub is_attached: bool,
    /// Programs of others that run there too, with their names.
    pub others: Vec<(u32, String)>,
}

/// How this host looks names up.
#[derive(Debug, Default)]
pub struct Names {
    /// The synthetic prefixes' overlap with what this host uses.
    pub overlap: Option<String>,
    /// What is wrong with the file of names.
    pub file: Option<String>,
    /// Proxy hosts in `/etc/hosts`, with their addresses there.
    pub hosts: Vec<(String, IpAddr)>,
    /// The sources of host names, as in nsswitch.conf.
    pub nsswitch: Vec<String>,
    /// The resolvers of resolv.conf, and what they said: the time they took, or why there was no answer.
    pub resolvers: Vec<(IpAddr, Result<Duration, String>)>,
    /// The setting by which systemd-resolved asks over TLS, and where it stands.
    pub over_tls: Option<String>,
}

/// What came of dialling the appliance.
#[derive(Debug, Clone)]
pub struct Dialled {
    /// Host and port.
    pub appliance: String,
    /// The proxy that led there.
    pub through: Option<String>,
    /// What became of the connection, in TLS.
    pub reached: Result<Duration, Obstacle>,
    /// What it said of the time; and when, by this host's clock.
    pub date: Option<(Timestamp, Timestamp)>,
    /// Whether the key was taken; `None`: it did not come to that.
    pub admitted: Option<Result<(), Obstacle>>,
    /// What became of the proxy, where it is for targets only.
    pub proxy: Option<(String, Result<(), Obstacle>)>,
}

/// What is in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// What kind.
    pub kind: Kind,
    /// That a name had to be looked up for it, and that may be all that failed.
    pub is_unresolved: bool,
    /// One line.
    pub text: String,
}

/// Kinds of obstacles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Files that the configuration names.
    Files,
    /// The appliance's name.
    Name,
    /// Its address and port.
    Connect,
    /// Its certificate.
    Certificate(tls::Fault),
    /// TLS.
    Tls,
    /// The worker key.
    Key,
    /// A client certificate.
    ClientCertificate,
    /// What answers is no appliance, or something in between lets no websocket pass.
    Upgrade,
    /// The proxy does not take the user.
    ProxyLogin,
    /// The proxy does not let this host pass.
    ProxyDenied,
    /// The proxy is not there.
    ProxyDown,
    /// The proxy did not reach the appliance.
    ProxyTarget,
}
