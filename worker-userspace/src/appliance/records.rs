//! The registry's records: what the store keeps, the API and the page show, and routing is made of.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::config::{ApiUrl, KeyHash};
use crate::target::Pattern;
use crate::tunnel::message::Id;

/// The time, as exact as the store keeps it.
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}

/// A distributed worker: the processes at one site that share a key.
#[derive(Debug, Clone, PartialEq)]
pub struct Worker {
    /// The store's number; never used again after a removal.
    pub id: i64,
    /// 1 to 63 of `a-z`, `0-9` and `-`; unique. Digits alone only in records of earlier versions and of the file.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    /// What it carries, apart from its clouds.
    pub proxy_hosts: Vec<Pattern>,
    /// False: its key is refused, and it carries nothing.
    pub enabled: bool,
    /// Whether its nodes may open streams to other workers' proxy hosts.
    pub may_open: bool,
    /// Who manages it.
    pub origin: Origin,
    /// SHA-256 of its key.
    pub key: KeyHash,
    /// SHA-256 of the key before, and until when that one works too.
    pub previous_key: Option<(KeyHash, Timestamp)>,
    /// When it was added.
    pub created: Timestamp,
    /// When its key was changed last.
    pub rotated: Option<Timestamp>,
    /// When it was changed last.
    pub changed: Timestamp,
    /// Who changed it last.
    pub changed_by: String,
    /// Counts its changes; who saves says which state the save is based on.
    pub revision: i64,
}

impl Worker {
    /// The key before its own, and until when that one works too, where it still does at `now`.
    pub fn key_in_grace(&self, now: Timestamp) -> Option<(KeyHash, Timestamp)> {
        self.previous_key.filter(|(_, until)| *until > now)
    }
}

/// Who manages a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// `[[appliance.groups]]` of the configuration: changed there, read at start.
    File,
    /// The API, the command line and the page.
    Registry,
}

impl Origin {
    /// The word for it in the API and the store.
    pub fn word(self) -> &'static str {
        match self {
            Origin::File => "file",
            Origin::Registry => "registry",
        }
    }
}

/// A worker process that has connected once.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The worker whose key it showed.
    pub worker: i64,
    /// Its own id, the same over restarts.
    pub id: Id,
    /// Its host's name.
    pub host_name: String,
    /// Version of its software.
    pub software: String,
    /// Where it connected from, the last time.
    pub address: IpAddr,
    /// The lowest is primary; `None` comes behind all numbers.
    pub priority: Option<i32>,
    /// When it connected for the first time with this worker's key: decides among equal priorities.
    pub first_seen: Timestamp,
    /// When it was last known to be connected.
    pub last_seen: Timestamp,
}

/// A managed endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Cloud {
    /// The store's number; never used again after a removal.
    pub id: i64,
    /// For people; unique.
    pub name: String,
    /// What it is.
    pub kind: CloudType,
    /// Where its API is.
    pub api_url: ApiUrl,
    /// The worker that carries it; `None`: it is reached without one.
    pub worker: Option<i64>,
    /// When it was added.
    pub created: Timestamp,
    /// When it was changed last.
    pub changed: Timestamp,
    /// Who changed it last.
    pub changed_by: String,
    /// Counts its changes.
    pub revision: i64,
}

/// The types of clouds that are proxied through a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum CloudType {
    /// VMware vCenter.
    Vmware,
    /// VMware Cloud on AWS.
    VmwareCloudAws,
    /// Nutanix Prism.
    Nutanix,
    /// OpenStack.
    Openstack,
    /// XenServer.
    Xenserver,
    /// MacStadium.
    Macstadium,
}

impl CloudType {
    /// All of them.
    pub const ALL: [CloudType; 6] = [
        CloudType::Vmware,
        CloudType::VmwareCloudAws,
        CloudType::Nutanix,
        CloudType::Openstack,
        CloudType::Xenserver,
        CloudType::Macstadium,
    ];

    /// The word for it in the API and the store.
    pub fn word(self) -> &'static str {
        match self {
            CloudType::Vmware => "vmware",
            CloudType::VmwareCloudAws => "vmwareCloudAws",
            CloudType::Nutanix => "nutanix",
            CloudType::Openstack => "openstack",
            CloudType::Xenserver => "xenserver",
            CloudType::Macstadium => "macstadium",
        }
    }
}

impl fmt::Display for CloudType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A word that is no type of cloud.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no type of cloud: write vmware, vmwareCloudAws, nutanix, openstack, xenserver or macstadium")]
pub struct UnknownCloudType;

impl FromStr for CloudType {
    type Err = UnknownCloudType;

    fn from_str(text: &str) -> Result<CloudType, UnknownCloudType> {
        CloudType::ALL.into_iter().find(|kind| kind.word() == text).ok_or(UnknownCloudType)
    }
}
