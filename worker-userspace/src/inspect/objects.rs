//! Parts of a status: all things of one kind, or the one with a certain id, in bpftool's manner.
//!
//! Ids of programs, maps and links are the kernel's, so bpftool takes them too. As JSON these are an interface, as the
//! whole status is.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ledger::FlowReport;
use super::print;
use super::status::{
    LaneStatus, MapStatus, NameStatus, NodeRole, ProgramStatus, RuleStatus, Status, SteerStatus,
};

/// What there is of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// Programs in the kernel.
    Prog,
    /// Their maps.
    Map,
    /// Their attachments to cgroups.
    Link,
    /// What is steered, and who carries it.
    Rule,
    /// Connections: the open ones and the last that ended.
    Flow,
    /// Names with their synthetic addresses, resolvers that were asked, and counters.
    Dns,
    /// Sessions of the tunnel with their lanes.
    Tunnel,
    /// Streams that are open.
    Stream,
}

impl Object {
    /// All of them.
    pub const ALL: [Object; 8] = {
        use Object::*;
        [Prog, Map, Link, Rule, Flow, Dns, Tunnel, Stream]
    };

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Object::Prog => "prog",
            Object::Map => "map",
            Object::Link => "link",
            Object::Rule => "rule",
            Object::Flow => "flow",
            Object::Dns => "dns",
            Object::Tunnel => "tunnel",
            Object::Stream => "stream",
        }
    }
}

/// An attachment of a program.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Link {
    /// Its id, as bpftool takes it.
    pub id: u32,
    /// Its type, in bpftool's words.
    #[serde(rename = "type")]
    pub kind: String,
    /// The program's id.
    pub prog_id: u32,
    /// Where the program hooks in, in bpftool's words.
    pub attach_type: String,
    /// The cgroup's id.
    pub cgroup_id: u64,
    /// The cgroup's directory.
    #[schema(value_type = String)]
    pub cgroup: PathBuf,
    /// False when the cgroup was removed since: nothing is captured there any more.
    pub alive: bool,
}

/// Something that steering's DNS knows.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Dns {
    /// A name with its synthetic addresses.
    Name(NameStatus),
    /// A resolver that applications asked.
    Resolver {
        /// Its address.
        address: String,
        /// The local port that stands for it.
        port: u16,
    },
    /// What the DNS server counted.
    Counters {
        /// By their words.
        counters: BTreeMap<String, u64>,
    },
}

/// A session of the tunnel.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Tunnel {
    /// `group/node` on an appliance; `appliance` on a worker's host.
    pub name: String,
    /// The node's id, hexadecimal; absent on a worker's host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The peer's address, or where a worker dials.
    pub peer: String,
    /// The worker's role; absent where it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// True where it takes new streams.
    pub up: bool,
    /// Why the last attempt failed, where it is not up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Its lanes.
    pub lanes: Vec<LaneStatus>,
}

/// An open stream.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Stream {
    /// `carrier/lane/stream`; of those that a worker opened `group/lane/stream`, with its group. On a worker's host
    /// those that the appliance opened are `lane/stream`.
    pub key: String,
    /// The lane's number in its session.
    pub lane: u8,
    /// Its number on that lane.
    pub id: u32,
    /// Who carries it: `group/node`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub carrier: Option<String>,
    /// The connection that it carries.
    pub flow: u64,
    /// What that is for.
    pub target: String,
    /// `opening` or `open`.
    pub state: String,
    /// Bytes from the opener to the target.
    pub bytes_up: u64,
    /// Bytes from the target to the opener.
    pub bytes_down: u64,
}

/// One thing of a kind.
#[derive(Debug, Clone)]
pub struct Item {
    /// By what it is asked for; the first is its id.
    pub keys: Vec<String>,
    /// As JSON.
    pub json: serde_json::Value,
    /// As text: a line, and its details indented below it.
    pub plain: String,
}

impl Item {
    fn new(keys: impl IntoIterator<Item = String>, thing: &impl Serialize, plain: String) -> Item {
        // What these types hold can't fail to be JSON: no map has keys other than text.
        let json = serde_json::to_value(thing).unwrap_or_default();
        Item { keys: keys.into_iter().collect(), json, plain }
    }

    /// True where `id` means this one.
    pub fn is(&self, id: &str) -> bool {
        self.keys.iter().any(|key| key.eq_ignore_ascii_case(id))
    }
}

/// How many of a kind there are beside those that a status lists.
pub fn more(status: &Status, object: Object) -> u64 {
    match object {
        Object::Flow | Object::Stream => {
            let listed = status.flows.recent.iter().filter(|flow| flow.is_open()).count();
            // It is not counted and listed in one moment.
            status.flows.open.saturating_sub(listed) as u64
        }
        Object::Dns => status.steer.as_ref().map_or(0, |steer| steer.more_names),
        Object::Prog | Object::Map | Object::Link | Object::Rule | Object::Tunnel => 0,
    }
}

/// All things of a kind.
pub fn list(status: &Status, object: Object) -> Vec<Item> {
    let steer = status.steer.as_ref();
    match object {
        Object::Prog => steer.map(programs).unwrap_or_default(),
        Object::Map => steer.map(|steer| steer.maps.iter().map(map).collect()).unwrap_or_default(),
        Object::Link => steer.map(links).unwrap_or_default(),
        Object::Rule => steer.map(|steer| steer.rules.iter().map(rule).collect()).unwrap_or_default(),
        Object::Flow => status.flows.recent.iter().map(flow).collect(),
        Object::Dns => steer.map(dns).unwrap_or_default(),
        Object::Tunnel => tunnels(status),
        Object::Stream => status.flows.recent.iter().filter_map(stream).collect(),
    }
}

fn programs(steer: &SteerStatus) -> Vec<Item> {
    let program = |program: &ProgramStatus| {
        let ProgramStatus { id, name, kind, tag, attach_type, .. } = program;
        let run = match program.run_cnt {
            0 => String::new(),
            n => format!("  run_time_ns {}  run_cnt {n}", program.run_time_ns),
        };
        let maps: Vec<_> = program.map_ids.iter().map(ToString::to_string).collect();
        let plain = format!(
            "{id}: {kind}  name {name}  tag {tag}{run}\n\tattach_type {attach_type}  map_ids {}\n",
            maps.join(",")
        );
        Item::new([id.to_string(), name.clone()], program, plain)
    };
    steer.programs.iter().map(program).collect()
}

fn map(map: &MapStatus) -> Item {
    let MapStatus { id, name, kind, key_size, value_size, max_entries, .. } = map;
    let entries = map.entries.map(|n| format!("entries {n}  ")).unwrap_or_default();
    let plain = format!(
        "{id}: {kind}  name {name}\n\tkey {key_size}B  value {value_size}B  {entries}max_entries {max_entries}\n"
    );
    Item::new([id.to_string(), name.clone()], map, plain)
}

fn links(steer: &SteerStatus) -> Vec<Item> {
    let all = steer.programs.iter().flat_map(|program| program.links.iter().map(move |link| (program, link)));
    let item = |(program, link): (&ProgramStatus, &super::status::LinkStatus)| {
        let link = Link {
            id: link.id,
            kind: "cgroup".into(),
            prog_id: program.id,
            attach_type: program.attach_type.clone(),
            cgroup_id: link.cgroup_id,
            cgroup: link.cgroup.clone(),
            alive: link.alive,
        };
        let dead = if link.alive { "" } else { "  DEAD: the cgroup was removed" };
        let plain = format!(
            "{}: cgroup  prog {}\n\tcgroup_id {}  attach_type {}\n\tcgroup {}{dead}\n",
            link.id,
            link.prog_id,
            link.cgroup_id,
            link.attach_type,
            link.cgroup.display()
        );
        Item::new([link.id.to_string()], &link, plain)
    };
    all.map(item).collect()
}

fn rule(rule: &RuleStatus) -> Item {
    let RuleStatus { id, pattern, carrier } = rule;
    Item::new([id.to_string(), pattern.clone()], rule, format!("{id}: {pattern}  carrier {carrier}\n"))
}

fn flow(flow: &FlowReport) -> Item {
    Item::new(flow.keys(), flow, print::flow(flow))
}

fn dns(steer: &SteerStatus) -> Vec<Item> {
    let name = |name: &NameStatus| {
        let [v4, v6] = name.addresses;
        Item::new(name.keys(), &Dns::Name(name.clone()), format!("{}: {v4}  {v6}\n", name.name))
    };
    let resolver = |(address, port): (&String, &u16)| {
        let resolver = Dns::Resolver { address: address.clone(), port: *port };
        Item::new([address.clone()], &resolver, format!("resolver {address}: port {port}\n"))
    };
    let counters = Dns::Counters { counters: steer.dns.clone() };
    let counted: Vec<_> = steer.dns.iter().map(|(word, n)| format!("{word} {n}")).collect();
    let counted = format!("counters: {}\n", counted.join("  "));
    (steer.names.iter().map(name))
        .chain(steer.resolvers.iter().map(resolver))
        .chain([Item::new(["counters".to_owned()], &counters, counted)])
        .collect()
}

fn tunnels(status: &Status) -> Vec<Item> {
    let mut all = Vec::new();
    for group in status.appliance.iter().flat_map(|appliance| &appliance.groups) {
        for node in &group.nodes {
            all.push(Tunnel {
                name: format!("{}/{}", group.name, node.name),
                node: Some(node.id.clone()),
                peer: node.address.to_string(),
                role: Some(node.role.word().to_owned()),
                up: node.role != NodeRole::Leaving,
                problem: None,
                lanes: node.lanes.clone(),
            });
        }
    }
    if let Some(worker) = &status.worker {
        all.push(Tunnel {
            name: "appliance".into(),
            node: None,
            peer: worker.appliance.clone(),
            role: worker.role.clone(),
            up: worker.connected,
            problem: worker.problem.clone(),
            lanes: worker.lanes.clone(),
        });
    }
    all.into_iter().map(|found| tunnel(&found)).collect()
}

fn tunnel(tunnel: &Tunnel) -> Item {
    let state = if tunnel.up { "up" } else { "down" };
    let role = tunnel.role.as_ref().map(|role| format!("  {role}")).unwrap_or_default();
    let node = tunnel.node.as_ref().map(|node| format!("  id {node}")).unwrap_or_default();
    let mut plain = format!("{}: {state}{role}  peer {}{node}\n", tunnel.name, tunnel.peer);
    if let Some(problem) = &tunnel.problem {
        // A string takes whatever is written; so below.
        let _ = writeln!(plain, "\tproblem {problem}");
    }
    plain.extend(tunnel.lanes.iter().map(|lane| print::lane(lane, "\t")));
    Item::new([tunnel.name.clone()].into_iter().chain(tunnel.node.clone()), tunnel, plain)
}

fn stream(flow: &FlowReport) -> Option<Item> {
    let place = flow.stream?;
    let stream = Stream {
        key: flow.stream_key()?,
        lane: place.lane,
        id: place.id,
        carrier: flow.carrier.clone(),
        flow: flow.id,
        target: flow.target.clone(),
        state: flow.state.clone(),
        bytes_up: flow.bytes_up,
        bytes_down: flow.bytes_down,
    };
    let plain = format!(
        "{}: {}  {}  flow {}\n\tup {}  down {}\n",
        stream.key,
        stream.target,
        stream.state,
        stream.flow,
        print::bytes(stream.bytes_up),
        print::bytes(stream.bytes_down)
    );
    Some(Item::new([stream.key.clone()], &stream, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_reads_as_bpftool_prints() {
        let mut status: Status =
            serde_json::from_str(include_str!("print/example.json")).expect("the example");
        status.flows.recent[1].stream =
            Some(crate::inspect::ledger::StreamPlace { id: 7, ..Default::default() });
        let mut all = String::new();
        for object in Object::ALL {
            all += &format!("# {}\n", object.word());
            all.extend(list(&status, object).iter().map(|item| item.plain.as_str()));
        }
        assert_eq!(all, include_str!("print/objects.txt"));
    }

    #[test]
    fn what_is_not_listed_is_counted() {
        let mut status: Status =
            serde_json::from_str(include_str!("print/example.json")).expect("the example");
        let listed = status.flows.recent.iter().filter(|flow| flow.is_open()).count();
        for object in Object::ALL {
            status.flows.open = listed;
            status.steer.as_mut().expect("it steers").more_names = 0;
            assert_eq!(more(&status, object), 0, "{object:?}");
            status.flows.open = listed + 7;
            status.steer.as_mut().expect("it steers").more_names = 3;
            let expected = match object {
                Object::Flow | Object::Stream => 7,
                Object::Dns => 3,
                _ => 0,
            };
            assert_eq!(more(&status, object), expected, "{object:?}");
        }
    }

    #[test]
    fn streams_that_workers_opened_are_told_apart() {
        let status: Status = serde_json::from_str(include_str!("print/example.json")).expect("the example");
        let mut flow = status.flows.recent[0].clone();
        flow.stream = Some(crate::inspect::ledger::StreamPlace { id: 7, ..Default::default() });
        let mut key = |carrier: Option<&str>, from: Option<&str>| {
            (flow.carrier, flow.from) = (carrier.map(str::to_owned), from.map(str::to_owned));
            stream(&flow).expect("a stream").keys.remove(0)
        };
        assert_eq!(key(Some("site-a/vm"), Some("site-b")), "site-a/vm/0/7");
        assert_eq!(key(None, Some("site-b")), "site-b/0/7");
        assert_eq!(key(None, Some("site-c")), "site-c/0/7");
        assert_eq!(key(None, None), "0/7");
    }

    #[test]
    fn things_are_found_by_their_ids_and_names() {
        let status: Status = serde_json::from_str(include_str!("print/example.json")).expect("the example");
        for (object, id, found) in [
            (Object::Prog, "17", true),
            (Object::Prog, "DW_connect4", true),
            (Object::Prog, "5", false),
            (Object::Link, "6", true),
            (Object::Rule, "vcenter.corp.example:443", true),
            (Object::Dns, "240.64.0.1", true),
            (Object::Dns, "10.0.0.53", true),
            (Object::Tunnel, "site-a/worker-1", true),
            (Object::Tunnel, "00112233445566778899aabbccddeeff", true),
            (Object::Flow, "00000000000000ff", true),
            (Object::Flow, "4", false),
        ] {
            let is = list(&status, object).iter().filter(|item| item.is(id)).count();
            assert_eq!(is, usize::from(found), "{object:?} {id}");
        }
    }
}
