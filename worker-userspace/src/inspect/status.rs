//! The records behind `dworker status`. As JSON they are an interface: fields are added, never renamed.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::UNIX_EPOCH;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ledger::FlowReport;
use crate::tunnel::lane::Lane;
use crate::tunnel::message::id_text;
use crate::tunnel::policy::Pushed;
use crate::tunnel::session::Session;
use crate::tunnel::tls::expiry::{Expiry, Noted};

/// All that a daemon says of itself.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Version of the software.
    pub version: String,
    /// The daemon's process id.
    pub pid: u32,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// The roles: `appliance`, `worker`, `steer`, `proxy`.
    pub roles: Vec<String>,
    /// The appliance role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub appliance: Option<ApplianceStatus>,
    /// The worker role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerStatus>,
    /// The steering role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steer: Option<SteerStatus>,
    /// The entries for clients that know proxies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxyStatus>,
    /// The certificates that it depends on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tls: Vec<CertificateStatus>,
    /// Connections.
    pub flows: Flows,
}

/// A certificate that a daemon depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Certificate)]
pub struct CertificateStatus {
    /// The key that names it (`appliance.certificate`, `appliance.client_ca_file`, `ca_file`, `ca_dir`,
    /// `client_certificate`), or `appliance` or `proxy`: what that showed when it was last dialled.
    pub source: String,
    /// Its number there, from 1 on.
    pub number: usize,
    /// Whom it is for.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// The names and addresses that it is for.
    pub names: Vec<String>,
    /// From when on it is valid.
    #[schema(value_type = String, format = DateTime)]
    pub not_before: Timestamp,
    /// Until when it is valid.
    #[schema(value_type = String, format = DateTime)]
    pub not_after: Timestamp,
    /// Whole days until then; negative where it has expired.
    pub days_left: i64,
}

impl CertificateStatus {
    /// All that are noted.
    pub fn all(expiry: &Expiry) -> Vec<CertificateStatus> {
        let now = expiry.now();
        let all = expiry.report().into_iter().map(|(source, Noted { number, facts })| CertificateStatus {
            source: source.word().to_owned(),
            number,
            days_left: facts.days_left(now),
            subject: facts.subject,
            issuer: facts.issuer,
            names: facts.names,
            not_before: facts.not_before,
            not_after: facts.not_after,
        });
        all.collect()
    }
}

/// Connections of a daemon.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Flows {
    /// Open now.
    pub open: usize,
    /// Ever seen.
    pub total: u64,
    /// The open ones and the last that ended, newest first.
    pub recent: Vec<FlowReport>,
}

/// The appliance role.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ApplianceStatus {
    /// Where it listens.
    #[schema(value_type = Vec<String>)]
    pub listen: Vec<SocketAddr>,
    /// True where websockets come without TLS.
    pub plaintext: bool,
    /// The worker groups.
    pub groups: Vec<GroupStatus>,
}

/// A worker group.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct GroupStatus {
    /// Its id in the registry.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// What it carries.
    pub proxy_hosts: Vec<String>,
    /// True where a worker is connected that takes new streams.
    pub up: bool,
    /// Whether its workers may open streams to other groups.
    pub may_open: bool,
    /// What its lanes carried in the last second.
    pub rate: Rate,
    /// The connected nodes, the primary first.
    pub nodes: Vec<NodeStatus>,
}

/// Payload bytes of one second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rate {
    /// From the appliance to the workers.
    pub sent: u64,
    /// From the workers to the appliance.
    pub received: u64,
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = Role)]
pub enum NodeRole {
    /// It carries new streams.
    Primary,
    /// It would.
    Standby,
    /// It only ends what it carries.
    Leaving,
    /// It is not connected.
    Offline,
}

impl NodeRole {
    /// The word for it, in JSON too.
    pub fn word(self) -> &'static str {
        match self {
            NodeRole::Primary => "primary",
            NodeRole::Standby => "standby",
            NodeRole::Leaving => "leaving",
            NodeRole::Offline => "offline",
        }
    }
}

/// A connected node.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NodeStatus {
    /// Its id, hexadecimal.
    pub id: String,
    /// Its host name.
    pub name: String,
    /// What it does; never `offline`.
    pub role: NodeRole,
    /// Version of its software.
    pub software: String,
    /// Where its first lane came from.
    #[schema(value_type = String)]
    pub address: SocketAddr,
    /// When its session began, seconds since 1970.
    pub since: u64,
    /// Its lanes.
    pub lanes: Vec<LaneStatus>,
}

/// A lane.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LaneStatus {
    /// Its number in the session.
    pub lane: u8,
    /// `up`, or `leaving` where it takes no new streams.
    pub state: String,
    /// Smoothed round trip in microseconds; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// Streams open now.
    pub streams: usize,
    /// Streams ever opened.
    pub streams_total: u64,
    /// Payload bytes sent.
    pub bytes_sent: u64,
    /// Payload bytes received.
    pub bytes_received: u64,
    /// Times that a sender had to wait for credit.
    pub credit_stalls: u64,
}

impl LaneStatus {
    /// The state of `lane` now.
    pub fn of(lane: &Lane) -> LaneStatus {
        let counters = lane.counters();
        let read = |cell: &std::sync::atomic::AtomicU64| cell.load(Ordering::Relaxed);
        LaneStatus {
            lane: lane.peer().lane,
            state: if lane.is_closing() { "leaving" } else { "up" }.into(),
            rtt_us: Some(read(&counters.round_trip)).filter(|us| *us > 0),
            streams: lane.streams(),
            streams_total: read(&counters.streams),
            bytes_sent: read(&counters.sent),
            bytes_received: read(&counters.received),
            credit_stalls: read(&counters.stalls),
        }
    }
}

/// What the lanes of a node have together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneSums {
    /// Smoothed round trip in microseconds, the best of them.
    pub rtt_us: Option<u64>,
    /// Streams open now.
    pub streams: usize,
    /// Payload bytes sent.
    pub bytes_sent: u64,
    /// Payload bytes received.
    pub bytes_received: u64,
}

impl GroupStatus {
    /// The node that carries new streams.
    pub fn primary(&self) -> Option<&NodeStatus> {
        self.nodes.iter().find(|node| node.role == NodeRole::Primary)
    }

    /// Each node once: one that came again has two sessions for a while, and the one that counts comes first.
    pub fn each_node(&self) -> impl Iterator<Item = &NodeStatus> {
        let is_first = |at: usize, id: &str| self.nodes[..at].iter().all(|before| before.id != id);
        self.nodes.iter().enumerate().filter(move |(at, node)| is_first(*at, &node.id)).map(|(_, node)| node)
    }

    /// Streams open now.
    pub fn streams(&self) -> usize {
        self.nodes.iter().map(|node| node.sums().streams).sum()
    }
}

impl NodeStatus {
    /// Its lanes together.
    pub fn sums(&self) -> LaneSums {
        self.lanes.iter().fold(LaneSums::default(), |sums, lane| LaneSums {
            rtt_us: sums.rtt_us.into_iter().chain(lane.rtt_us).min(),
            streams: sums.streams + lane.streams,
            bytes_sent: sums.bytes_sent + lane.bytes_sent,
            bytes_received: sums.bytes_received + lane.bytes_received,
        })
    }

    /// The state of a session now.
    pub fn of(session: &Session, role: NodeRole, address: SocketAddr) -> NodeStatus {
        let peer = session.peer();
        NodeStatus {
            id: id_text(&peer.node),
            name: peer.name.clone(),
            role,
            software: peer.software.clone(),
            address,
            since: session.since().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            lanes: session.lanes().iter().map(|lane| LaneStatus::of(lane)).collect(),
        }
    }
}

/// The worker role.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WorkerStatus {
    /// Where it dials.
    pub appliance: String,
    /// True where a lane is up.
    pub connected: bool,
    /// Why the last attempt failed, while none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The lanes that are up.
    pub lanes: Vec<LaneStatus>,
    /// Its role in its group, `primary` or `standby`; absent where the appliance does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Counts the changes of role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role_epoch: Option<u64>,
    /// Who says what it may dial.
    #[serde(default)]
    pub policy: PolicyStatus,
    /// What its own `egress.allow` says.
    pub allow: Vec<String>,
    /// What it may not dial, although allowed.
    pub deny: Vec<String>,
    /// The proxy that it goes through; absent where it goes through none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<UpstreamStatus>,
}

/// The proxy that a worker goes through.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UpstreamStatus {
    /// Its URL, without user and password.
    pub address: String,
    /// Whether the way to the appliance leads through it.
    pub appliance: bool,
    /// What is dialled without it.
    pub no_proxy: Vec<String>,
}

/// Who says what a worker may dial.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct PolicyStatus {
    /// `appliance`, `egress.allow`: all that stand here must allow a target. Empty: nothing may be dialled.
    pub from: Vec<String>,
    /// Counts the changes that the appliance makes; absent where it sends nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// What the appliance says; absent where it sends nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_hosts: Option<Vec<String>>,
}

impl PolicyStatus {
    /// What the appliance pushed, and whether `egress.allow` counts too.
    pub fn of(pushed: Option<&Pushed>, allow: bool) -> PolicyStatus {
        let from = [("appliance", pushed.is_some()), ("egress.allow", allow)];
        PolicyStatus {
            from: from.into_iter().filter(|(_, counts)| *counts).map(|(who, _)| who.to_owned()).collect(),
            epoch: pushed.map(|pushed| pushed.epoch),
            proxy_hosts: pushed.map(|pushed| pushed.patterns.iter().map(ToString::to_string).collect()),
        }
    }
}

/// The entries for clients that know proxies.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ProxyStatus {
    /// Where HTTP `CONNECT` is taken.
    #[schema(value_type = Vec<String>)]
    pub http: Vec<SocketAddr>,
    /// Where SOCKS5 is taken.
    #[schema(value_type = Vec<String>)]
    pub socks: Vec<SocketAddr>,
    /// Who is let in; absent where everybody is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// The steering role.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SteerStatus {
    /// Why the last change of the rules came to nothing; the ones from before it hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// True where nothing is captured, since steering was switched off by hand.
    #[serde(default, skip_serializing_if = "is_false")]
    pub off: bool,
    /// Where captured connections arrive.
    #[schema(value_type = Vec<String>)]
    pub listeners: Vec<SocketAddr>,
    /// The programs in the kernel.
    pub programs: Vec<ProgramStatus>,
    /// Their maps.
    #[serde(default)]
    pub maps: Vec<MapStatus>,
    /// What is captured, and who carries it.
    pub rules: Vec<RuleStatus>,
    /// Names that have synthetic addresses.
    pub names: Vec<NameStatus>,
    /// How many more of them there are.
    #[serde(default)]
    pub more_names: u64,
    /// Resolvers that applications asked, and the local port that stands for each.
    pub resolvers: BTreeMap<String, u16>,
    /// What the programs counted.
    pub counters: BTreeMap<String, u64>,
    /// What the DNS server counted.
    pub dns: BTreeMap<String, u64>,
    /// The last connections that the kernel refused, or let go although a rule named them; newest first.
    pub refused: Vec<RefusedStatus>,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// A program in the kernel.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ProgramStatus {
    /// Its id, as bpftool takes it.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Its type, in bpftool's words.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// What the kernel made of its instructions' hash, hexadecimal.
    #[serde(default)]
    pub tag: String,
    /// The maps that it uses.
    #[serde(default)]
    pub map_ids: Vec<u32>,
    /// Where it hooks in, in bpftool's words.
    pub attach_type: String,
    /// Time spent in it, while `kernel.bpf_stats_enabled` was on.
    pub run_time_ns: u64,
    /// How often it ran, while `kernel.bpf_stats_enabled` was on.
    pub run_cnt: u64,
    /// Where it is attached.
    pub links: Vec<LinkStatus>,
}

/// One attachment of a program.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LinkStatus {
    /// The link's id, as bpftool takes it.
    pub id: u32,
    /// The cgroup's directory.
    #[schema(value_type = String)]
    pub cgroup: PathBuf,
    /// The cgroup's id: the directory's inode number.
    #[serde(default)]
    pub cgroup_id: u64,
    /// False when the cgroup was removed since: nothing is captured there any more.
    pub alive: bool,
}

/// A map in the kernel.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MapStatus {
    /// Its id, as bpftool takes it.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Its type, in bpftool's words.
    #[serde(rename = "type")]
    pub kind: String,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// How many are in it; absent where that is not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// How many fit; of a ring buffer its bytes.
    pub max_entries: u32,
}

/// A steering rule.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RuleStatus {
    /// Its number; stands in flow records.
    pub id: u32,
    /// The proxy host.
    pub pattern: String,
    /// Who carries it.
    pub carrier: String,
}

/// A name with its synthetic addresses.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NameStatus {
    /// The name.
    pub name: String,
    /// Its addresses.
    #[schema(value_type = Vec<String>)]
    pub addresses: [IpAddr; 2],
}

impl NameStatus {
    /// By what it is asked for.
    pub fn keys(&self) -> [String; 3] {
        let [v4, v6] = self.addresses;
        [self.name.clone(), v4.to_string(), v6.to_string()]
    }

    /// True where this is it, or an address of it.
    pub fn is_called(&self, id: &str) -> bool {
        self.keys().iter().any(|key| key.eq_ignore_ascii_case(id))
    }
}

/// A connection that the kernel refused, or let go although a rule named it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RefusedStatus {
    /// Where the application wanted to go.
    #[schema(value_type = String)]
    pub target: SocketAddr,
    /// The name of that address, where it is a synthetic one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The process: `command[pid]`.
    pub process: String,
    /// Why.
    pub reason: String,
    /// What the call failed with; absent where it was let go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(rtt_us: Option<u64>, streams: usize) -> LaneStatus {
        LaneStatus {
            lane: 0,
            state: "up".into(),
            rtt_us,
            streams,
            streams_total: 9,
            bytes_sent: 10,
            bytes_received: 1,
            credit_stalls: 0,
        }
    }

    #[test]
    fn a_role_is_its_word_and_lanes_are_summed_up() {
        use NodeRole::{Leaving, Offline, Primary, Standby};
        for role in [Primary, Standby, Leaving, Offline] {
            assert_eq!(serde_json::to_value(role).unwrap(), role.word());
        }
        let node = |lanes| NodeStatus {
            id: String::new(),
            name: String::new(),
            role: Primary,
            software: String::new(),
            address: ([192, 0, 2, 1], 1).into(),
            since: 0,
            lanes,
        };
        let sums = node(vec![lane(None, 1), lane(Some(700), 2), lane(Some(300), 4)]).sums();
        let expected = LaneSums { rtt_us: Some(300), streams: 7, bytes_sent: 30, bytes_received: 3 };
        assert_eq!(sums, expected);
        assert_eq!(node(vec![]).sums(), LaneSums::default());
    }
}
