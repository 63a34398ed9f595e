//! The maps. Their names and types are what `worker-userspace/src/steer/programs.rs` opens.

use aya_ebpf::Global;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, Queue, RingBuf, SkStorage};
use aya_ebpf::macros::btf_map;
use worker_common::limits;
use worker_common::{Addr, Config, Counter, Dest, DownUntil, Entry, Event, Flow, FlowKey};

/// Not 0 where the kernel has `bpf_set_retval` (5.18). Set before loading, so that the verifier drops the call elsewhere.
#[unsafe(no_mangle)]
pub static HAVE_SET_RETVAL: Global<u8> = Global::new(0);

/// Not 0 where the kernel has `bpf_skc_to_mptcp_sock` (5.19).
#[unsafe(no_mangle)]
pub static HAVE_MPTCP: Global<u8> = Global::new(0);

/// What the daemon tells us.
#[btf_map]
pub static CONFIG: Array<Config, 1> = Array::new();

/// The process ids of the daemons that are themselves inside a captured cgroup: one, and those before it that end.
#[btf_map]
pub static DAEMONS: HashMap<u32, u64, { limits::DAEMONS }> = HashMap::new();

/// Users that are excluded.
#[btf_map]
pub static EXCLUDED_USERS: HashMap<u32, u32, { limits::EXCLUDED }> = HashMap::new();

/// Cgroups that are excluded with all below them, by their ids.
#[btf_map]
pub static EXCLUDED_CGROUPS: HashMap<u64, u32, { limits::EXCLUDED }> = HashMap::new();

/// IPv4 prefix → rules.
#[btf_map]
pub static RULES4: LpmTrie<u32, Entry, { limits::RULES }> = LpmTrie::new();

/// IPv6 prefix → rules.
#[btf_map]
pub static RULES6: LpmTrie<Addr, Entry, { limits::RULES }> = LpmTrie::new();

/// Worker group → the errno with which its connections are refused, or 0.
#[btf_map]
pub static GROUP_STATE: Array<u32, { limits::GROUPS }> = Array::new();

/// Target → the errno with which connections to it are refused for a moment.
#[btf_map]
pub static DOWN: LruHashMap<Dest, DownUntil, { limits::DOWN }> = LruHashMap::new();

/// Socket → where it was going.
#[btf_map]
pub static ORIG: SkStorage<Flow> = SkStorage::new();

/// Socket of the daemon → what it is: a value of `worker_common::mark`.
#[btf_map]
pub static MARK: SkStorage<u32> = SkStorage::new();

/// Source port on loopback of a connection to the forwarder → where it was going. sock_ops writes, the forwarder
/// takes and empties. An array, since a hash's entry costs half as much as all else that is done for a connection.
#[btf_map]
pub static PLACES: Array<Flow, { limits::PLACES }> = Array::new();

/// The same for other sources, and for connections that ask a resolver.
#[btf_map]
pub static FLOWS: LruHashMap<FlowKey, Flow, { limits::FLOWS }> = LruHashMap::new();

/// Ports of the daemon that stand for no resolver yet.
#[btf_map]
pub static SPARES: Queue<u16, { limits::RESOLVERS }> = Queue::new();

/// Resolver → the port that stands for it.
#[btf_map]
pub static RESOLVERS: HashMap<Addr, u16, { limits::RESOLVERS }> = HashMap::new();

/// Port → the resolver for which it stands.
#[btf_map]
pub static STANDS: HashMap<u16, Addr, { limits::RESOLVERS }> = HashMap::new();

/// What happened how often.
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { Counter::ALL.len() }> = PerCpuArray::new();

/// What was refused, to whom and why.
#[btf_map]
pub static EVENTS: RingBuf<Event, { limits::EVENT_BYTES }> = RingBuf::new();
