//! What steering asks of the kernel.
//!
//! The rest of the daemon sees only [`Kernel`]: the programs and maps behind it ([`super::programs`]) need root
//! and a cgroup, its users' tests have a fake one that judges connections by the very same code.
//! All calls are short system calls on maps: they may be made from async code.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::task::{Context, Poll};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use socket2::SockRef;
use worker_common::{Config, Entry, Event, Flow};
pub use worker_common::{Counter, Reason};

/// The kernel, as far as steering needs it.
///
/// Whoever drops the last handle detaches all programs.
pub trait Kernel: Send + Sync + 'static {
    /// Tells which addresses are synthetic: UDP to them is refused, and so is TCP to those without a name.
    ///
    /// # Errors
    /// When a map cannot be written; so for every call here that gives no other reason.
    fn set_synthetic(&self, v4: Ipv4Net, v6: Ipv6Net) -> Result<(), KernelError>;

    /// Tells where the forwarder listens: at `port4` on 127.0.0.1 and at `port6` on `::1`; 0 where it does not.
    fn set_listeners(&self, port4: u16, port6: u16) -> Result<(), KernelError>;

    /// Marks a socket of ours, so that the programs send connections and questions to it. Every listener and
    /// every DNS socket needs it: what carries no mark may be somebody who took the port.
    fn mark_listener(&self, socket: BorrowedFd<'_>) -> Result<(), KernelError>;

    /// Makes the rules for a prefix, or replaces them. An address with a name is a prefix of full length.
    ///
    /// # Errors
    /// [`KernelError::Full`] when there are too many prefixes.
    fn put_rules(&self, net: IpNet, entry: &Entry) -> Result<(), KernelError>;

    /// Forgets the rules for a prefix. It is no error when there are none.
    fn remove_rules(&self, net: IpNet) -> Result<(), KernelError>;

    /// All rules that are there: those that a daemon before this one left, too.
    fn rules(&self) -> Result<Vec<(IpNet, Entry)>, KernelError>;

    /// The record of a connection to `listener` from `source`, if the kernel sent one.
    fn flow(&self, listener: u16, source: SocketAddr) -> Result<Option<FlowRecord>, KernelError>;

    /// Forgets it. It is no error when there is none.
    fn forget_flow(&self, listener: u16, source: SocketAddr) -> Result<(), KernelError>;

    /// Takes the record of `socket`, which was accepted on `listener` from `source`; a second call finds nothing.
    fn take_flow(
        &self,
        listener: u16,
        source: SocketAddr,
        socket: BorrowedFd<'_>,
    ) -> Result<Arrival, KernelError> {
        let record = self.flow(listener, source)?;
        // A connection that was reset before it was accepted has freed its port: the record may be the next one's, which
        // waits behind it. Asked after the record was read: what lives now has had its port all the time.
        if !matches!(SockRef::from(&socket).take_error(), Ok(None)) {
            return Ok(Arrival::Gone);
        }
        let Some(record) = record else { return Ok(Arrival::Foreign) };
        self.forget_flow(listener, source)?;
        Ok(Arrival::Captured(record))
    }

    /// What the programs were told: the synthetic addresses, the listeners.
    fn config(&self) -> Config;

    /// What they have for an address: the entry of the longest prefix.
    fn entry(&self, address: IpAddr) -> Result<Option<Entry>, KernelError>;

    /// With what a group's connections are refused; 0 while they are carried.
    fn group_state(&self, group: u16) -> Result<i32, KernelError>;

    /// With what connections to `target` are refused because it was down a moment ago, and how long that holds.
    fn down(&self, target: SocketAddr) -> Result<Option<(i32, Duration)>, KernelError>;

    /// Makes `connect()` to `target`, as applications write it, fail at once with `errno`, for this long.
    fn set_down(&self, target: SocketAddr, errno: i32, duration: Duration) -> Result<(), KernelError>;

    /// Says whether a group's connections are carried (`None`), or refused at once with an errno.
    ///
    /// # Errors
    /// [`KernelError::Group`] when `group` is too large.
    fn set_group_state(&self, group: u16, errno: Option<i32>) -> Result<(), KernelError>;

    /// Offers a port to stand for the next resolver that is seen. The port must be bound on 127.0.0.1 and on `::1`,
    /// for UDP and TCP, and all four sockets marked.
    ///
    /// # Errors
    /// [`KernelError::Full`] when as many are offered as there can be resolvers.
    fn offer_dns_port(&self, port: u16) -> Result<(), KernelError>;

    /// Forgets the ports that a daemon before this one offered, but for those of `ports`, whose sockets live on. The
    /// answer are those of them that need not be offered again.
    fn adopt_dns_ports(&self, ports: &HashSet<u16>) -> Result<HashSet<u16>, KernelError>;

    /// Says which users, and which cgroups by their ids and their levels below the root, are excluded: what is theirs
    /// is left alone.
    ///
    /// # Errors
    /// [`KernelError::Full`] when there are too many, and when a cgroup is too deep.
    fn set_excluded(&self, users: &[u32], cgroups: &[(u64, u32)]) -> Result<(), KernelError>;

    /// Whether a user is excluded.
    fn excludes_user(&self, user: u32) -> Result<bool, KernelError>;

    /// Whether a cgroup is, by its id.
    fn excludes_cgroup(&self, cgroup: u64) -> Result<bool, KernelError>;

    /// Whether a process is a daemon of ours that is captured itself, this one or one before it that still runs.
    fn is_daemon(&self, process: u32) -> Result<bool, KernelError>;

    /// For which resolver a port that was offered stands by now.
    fn resolver_of(&self, port: u16) -> Result<Option<IpAddr>, KernelError>;

    /// All counters since the maps were made.
    fn counters(&self) -> Result<Vec<(Counter, u64)>, KernelError>;

    /// Waits for the next connection that was refused, or let go although a rule named it. For one task at a time,
    /// inside a tokio runtime; see [`next_event`].
    fn poll_event(&self, context: &mut Context<'_>) -> Poll<Result<Refused, KernelError>>;

    /// The resolvers that were asked so far, with the port that stands for each.
    fn resolvers(&self) -> Result<Vec<(IpAddr, u16)>, KernelError>;

    /// Detaches all programs, and leaves nothing of them in the kernel that outlives this process: nothing is captured
    /// any more, what was captured goes on.
    fn detach(&self);

    /// Leaves the programs attached, and their maps, to the daemon that follows. Nothing that this process does
    /// afterwards changes what is captured.
    fn leave(&self);

    /// Takes back what a daemon that was to follow has changed: what was told by [`set_synthetic`](Self::set_synthetic),
    /// [`set_listeners`](Self::set_listeners) and [`set_excluded`](Self::set_excluded), and what is attached.
    ///
    /// # Errors
    /// When a map can't be written, or something can't be attached.
    fn take_back(&self) -> Result<(), KernelError>;

    /// The maps of the programs.
    fn maps(&self) -> Result<Vec<MapStatus>, KernelError>;

    /// The programs and where they are attached.
    fn programs(&self) -> Result<Vec<ProgramStatus>, KernelError>;
}

/// Waits for the kernel's next [`Refused`]; nothing is lost when the future is dropped.
pub async fn next_event(kernel: &dyn Kernel) -> Result<Refused, KernelError> {
    std::future::poll_fn(|context| kernel.poll_event(context)).await
}

/// Who made a system call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Process id, in the initial pid namespace.
    pub id: u32,
    /// User id.
    pub uid: u32,
    /// The name of the thread, at most 15 bytes.
    pub command: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.command, self.id)
    }
}

/// A captured connection, as it was when the application called `connect()`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowRecord {
    /// Where the application wanted to go; v4-mapped addresses are IPv4 here.
    pub target: SocketAddr,
    /// What the connection is for.
    pub purpose: Purpose,
    /// The application's socket is an IPv6 one.
    pub v6_socket: bool,
    /// Who called.
    pub process: Process,
    /// The id of the caller's cgroup: the inode number of its directory.
    pub cgroup: u64,
}

/// What the kernel says of a connection that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    /// It sent the connection here.
    Captured(FlowRecord),
    /// The connection was reset before it was accepted: nobody waits for it, and its record is nobody's.
    Gone,
    /// It did not. Somebody connected by himself: reset it.
    Foreign,
}

impl Arrival {
    /// The record of a captured connection that is still there.
    pub fn captured(self) -> Option<FlowRecord> {
        match self {
            Arrival::Captured(record) => Some(record),
            Arrival::Gone | Arrival::Foreign => None,
        }
    }
}

/// What a captured connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A rule names its target.
    Rule {
        /// The rule's number.
        rule: u32,
        /// The group that carries it.
        group: u16,
    },
    /// It asks a resolver over TCP.
    Dns,
}

/// A connection that was refused, or let go although a rule named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Where the application wanted to go.
    pub target: SocketAddr,
    /// Who it was.
    pub process: Process,
    /// Why.
    pub reason: Reason,
    /// What the system call failed with; `None` where it was let go.
    pub errno: Option<i32>,
    /// The rule, where one matched.
    pub rule: Option<u32>,
    /// The id of the caller's cgroup: the inode number of its directory.
    pub cgroup: u64,
    /// When, by `CLOCK_MONOTONIC`.
    pub at: Duration,
}

/// A program in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramStatus {
    /// Its name, as `bpftool prog` shows it.
    pub name: &'static str,
    /// Its id.
    pub id: u32,
    /// Its type, in bpftool's words.
    pub kind: &'static str,
    /// What the kernel made of its instructions' hash.
    pub tag: u64,
    /// The maps that it uses.
    pub map_ids: Vec<u32>,
    /// Where it hooks in, in bpftool's words.
    pub attach_type: &'static str,
    /// Time spent in it, while `kernel.bpf_stats_enabled` was on.
    pub run_time: Duration,
    /// How often it ran, while `kernel.bpf_stats_enabled` was on.
    pub run_count: u64,
    /// Where it is attached.
    pub links: Vec<LinkStatus>,
}

/// One attachment of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkStatus {
    /// The link's id, as `bpftool link` shows it.
    pub id: u32,
    /// The directory of the cgroup.
    pub cgroup: PathBuf,
    /// The cgroup's id: the directory's inode number.
    pub cgroup_id: u64,
    /// False when that directory was removed since: the program hangs on a cgroup that nobody can join any more.
    pub alive: bool,
}

/// A map in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapStatus {
    /// Its id, as `bpftool map` shows it.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Its type, in bpftool's words.
    pub kind: &'static str,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// How many are in it, where that can be counted.
    pub entries: Option<usize>,
    /// How many fit; of a ring buffer its bytes.
    pub max_entries: u32,
}

/// Why the kernel did not do what steering asked for.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A map is full.
    #[error("there is no room for {what}: the kernel's table holds {limit}")]
    Full {
        /// What has no room.
        what: String,
        /// How many there can be.
        limit: usize,
    },
    /// A group's number is too large.
    #[error("there is no worker group number {group}: the kernel's table holds {limit}, numbered from 0")]
    Group {
        /// The number.
        group: u16,
        /// How many there can be.
        limit: usize,
    },
    /// A system call failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// How it failed.
        source: io::Error,
    },
}

impl KernelError {
    pub(super) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> KernelError {
        let doing = doing.into();
        move |source| KernelError::Io { doing, source }
    }
}

fn process(tgid: u32, uid: u32, comm: &[u8; 16]) -> Process {
    let name = comm.split(|byte| *byte == 0).next().unwrap_or_default();
    // Any process may give itself any name: one that reaches a terminal must not drive it.
    let plain = |c: char| if c.is_control() { '?' } else { c };
    Process { id: tgid, uid, command: String::from_utf8_lossy(name).chars().map(plain).collect() }
}

impl From<&Flow> for FlowRecord {
    fn from(flow: &Flow) -> FlowRecord {
        FlowRecord {
            target: flow.dest.into(),
            purpose: match flow.flags & Flow::DNS {
                0 => Purpose::Rule { rule: flow.rule, group: flow.group },
                _ => Purpose::Dns,
            },
            v6_socket: flow.flags & Flow::V6_SOCKET != 0,
            process: process(flow.tgid, flow.uid, &flow.comm),
            cgroup: flow.cgroup,
        }
    }
}

impl Refused {
    /// The record of an event; `None` for a reason that this daemon does not know.
    pub(super) fn from_event(event: &Event) -> Option<Refused> {
        Some(Refused {
            target: event.dest.into(),
            process: process(event.tgid, event.uid, &event.comm),
            reason: Reason::from_number(event.reason)?,
            errno: (event.errno != 0).then_some(event.errno as i32),
            rule: (event.rule != 0).then_some(event.rule),
            cgroup: event.cgroup,
            at: Duration::from_nanos(event.ktime),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_can_not_write_into_our_log_or_terminal() {
        let named = process(7, 0, b"a\x1b[2Jb\nc\xff\0junk12");
        assert_eq!(named.command, "a?[2Jb?c\u{fffd}");
    }
}
