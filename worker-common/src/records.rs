//! The records in the maps, the ring buffer and the per-CPU counters.
//!
//! `repr(C)`, no padding: a size that is not the sum of its fields does not compile.

use core::net::SocketAddr;

use crate::addr::{Addr, Dest};

/// Sizes of the maps and of what lies in them.
pub mod limits {
    /// Port ranges in one [`Entry`](super::Entry). More are an error that names the pattern.
    pub const RANGES: usize = 16;
    /// Prefixes in each of RULES4 and RULES6: those that rules name, twice, since new ones are there before old ones go,
    /// and one for each name that was asked for. The kernel takes memory for those that are there.
    pub const RULES: usize = 2 * PREFIXES + NAMES;
    /// Prefixes of each family that rules may name.
    pub const PREFIXES: usize = 16_384;
    /// Names with a synthetic address: all that fit into a prefix of 16 bits.
    pub const NAMES: usize = 65_536;
    /// Worker groups with a state of their own.
    pub const GROUPS: usize = 4096;
    /// Source ports of both families' loopback, each with its place.
    pub const PLACES: usize = 2 * 65_536;
    /// Captured connections without such a place that wait to be accepted.
    pub const FLOWS: usize = 65_536;
    /// Targets that are known to be down.
    pub const DOWN: usize = 4096;
    /// Resolvers for which a local port stands.
    pub const RESOLVERS: usize = 256;
    /// Bytes of the ring buffer of events; a power of two and a multiple of the page size.
    pub const EVENT_BYTES: usize = 1 << 20;
    /// Daemons at once: one, and those before it that still let their connections end.
    pub const DAEMONS: usize = 64;
    /// Users, and cgroups, that are excluded.
    pub const EXCLUDED: usize = 256;
}

/// Values of the daemon's mark on its own sockets (socket storage `MARK`).
pub mod mark {
    /// A listener or DNS socket of the daemon: connections may be sent to it.
    pub const LISTENER: u32 = 1;
    /// The socket by which the daemon tells the programs its process id, which they put below it: where it is captured
    /// itself it is so told, too.
    pub const REGISTER: u32 = 1 << 31;
}

/// What the daemon tells the programs; the one element of CONFIG.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Cookie of the network namespace where the listeners are. 0 where the kernel does not tell it to processes (before
    /// 5.14): there a namespace without our listener is taken for another one, and left alone.
    pub netns_cookie: u64,
    /// The synthetic addresses.
    pub synthetic: Synthetic,
    /// Port of the listener on 127.0.0.1, host byte order; 0 while there is none.
    pub listener4: u16,
    /// Port of the listener on `::1`, host byte order; 0 while there is none.
    pub listener6: u16,
    /// What is excluded: [`Config::EXCLUDE_USERS`], and bit `n` where a cgroup at level `n` below the root is.
    pub exclude: u32,
}

impl Config {
    /// Some users are excluded.
    pub const EXCLUDE_USERS: u32 = 1 << 31;
    /// The deepest level of a cgroup that can be excluded.
    pub const DEEPEST: u32 = 30;
    /// What a new CONFIG holds.
    pub const NEW: Config =
        Config { netns_cookie: 0, synthetic: Synthetic::NONE, listener4: 0, listener6: 0, exclude: 0 };

    /// The port of the listener for connections to `addr`.
    #[inline(always)]
    pub const fn listener(&self, addr: &Addr) -> u16 {
        if addr.is_v4() { self.listener4 } else { self.listener6 }
    }
}

/// The two synthetic prefixes, each as the words that are compared: `addr & mask == net`.
///
/// The words are in network byte order. A mask of zero with a net that is not zero matches nothing.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Synthetic {
    /// IPv4 prefix.
    pub net4: u32,
    /// IPv4 mask.
    pub mask4: u32,
    /// IPv6 prefix.
    pub net6: [u32; 4],
    /// IPv6 mask.
    pub mask6: [u32; 4],
}

impl Synthetic {
    /// No address is synthetic.
    pub const NONE: Synthetic = Synthetic { net4: 1, mask4: 0, net6: [1, 0, 0, 0], mask6: [0; 4] };

    /// True where `addr` is one that steering's DNS may have answered for a name.
    #[inline(always)]
    pub const fn contains(&self, addr: &Addr) -> bool {
        if addr.is_v4() {
            return addr.v4_word() & self.mask4 == self.net4;
        }
        addr.words[0] & self.mask6[0] == self.net6[0]
            && addr.words[1] & self.mask6[1] == self.net6[1]
            && addr.words[2] & self.mask6[2] == self.net6[2]
            && addr.words[3] & self.mask6[3] == self.net6[3]
    }
}

/// The ports of one rule inside an [`Entry`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortRule {
    /// First port, host byte order.
    pub low: u16,
    /// Last port, host byte order.
    pub high: u16,
    /// The rule, as the daemon numbers them; comes back in [`Flow`] and [`Event`].
    pub rule: u32,
    /// The worker group that carries the rule's connections.
    pub group: u16,
    /// [`PortRule::FAIL_CLOSED`] or 0.
    pub flags: u16,
}

impl PortRule {
    /// Without a live listener the connection is refused; without this flag it goes direct.
    pub const FAIL_CLOSED: u16 = 1;
    /// What unused places of an [`Entry`] hold.
    pub const NONE: PortRule = PortRule { low: 1, high: 0, rule: 0, group: 0, flags: 0 };

    /// True where `port` (host byte order) is among the rule's.
    #[inline(always)]
    pub const fn covers(&self, port: u16) -> bool {
        self.low <= port && port <= self.high
    }
}

/// All rules for one prefix; the value in RULES4 and RULES6.
///
/// The kernel's longest-prefix match finds one entry only, so each entry also holds the ranges of the
/// prefixes around its own, behind its own: the first range that covers the port decides.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// What happens to ports that no range covers: [`Entry::DIRECT`] or [`Entry::REFUSE`].
    pub default: u32,
    /// How many of `ranges` are used.
    pub len: u32,
    /// The ranges, most specific first.
    pub ranges: [PortRule; limits::RANGES],
}

impl Entry {
    /// Ports without a rule go direct: there is a real host behind the address.
    pub const DIRECT: u32 = 0;
    /// Ports without a rule are refused: the address is synthetic, there is nowhere to go.
    pub const REFUSE: u32 = 1;

    /// An entry of these ranges, most specific first; `None` when they are more than [`limits::RANGES`].
    pub fn new(default: u32, ranges: &[PortRule]) -> Option<Entry> {
        let mut all = [PortRule::NONE; limits::RANGES];
        all.get_mut(..ranges.len())?.copy_from_slice(ranges);
        Some(Entry { default, len: ranges.len() as u32, ranges: all })
    }
}

/// One captured connection: kept with the socket (ORIG), then by its source (PLACES or FLOWS).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// The cgroup of the process that called `connect()`.
    pub cgroup: u64,
    /// The name of the thread that called `connect()`, zero-terminated.
    pub comm: [u8; 16],
    /// Its process id in the initial pid namespace.
    pub tgid: u32,
    /// Its user.
    pub uid: u32,
    /// Where it wanted to go.
    pub dest: Dest,
    /// The rule; 0 with [`Flow::DNS`].
    pub rule: u32,
    /// The rule's group.
    pub group: u16,
    /// The port of ours that the connection was sent to, host byte order.
    pub listener: u16,
    /// Some of [`Flow::FRESH`], [`Flow::V6_SOCKET`], [`Flow::DNS`]; in the upper half [what ties it together](Flow::tie).
    pub flags: u32,
}

impl Flow {
    /// Written by connect and not yet taken over by sock_ops: the record belongs to this very `connect()`,
    /// not to an earlier one of the same socket.
    pub const FRESH: u32 = 1;
    /// The application's socket is `AF_INET6`, be the destination v4-mapped or not.
    pub const V6_SOCKET: u32 = 2;
    /// A connection to a resolver's port 53.
    pub const DNS: u32 = 4;
    /// The upper half of the flags: a place is written and read without a lock, and a record that is of two is none.
    #[inline(always)]
    pub fn tie(&self) -> u32 {
        let Dest { addr: Addr { words: [a, b, c, d] }, port, .. } = self.dest;
        let ports = u32::from(port) << 16 | u32::from(self.listener);
        let all = [a, b, c, d, ports, self.rule, self.tgid, self.cgroup as u32];
        let mut tie = u32::from(self.group);
        let mut at = 0;
        while at < all.len() {
            tie = (tie ^ all[at]).wrapping_mul(0x9e37_79b1).rotate_left(13);
            at += 1;
        }
        tie << 16
    }

    /// Whether all of it was written at once.
    pub fn is_whole(&self) -> bool {
        self.flags & 0xffff_0000 == self.tie()
    }

    /// What an empty place of PLACES holds: no listener of ours has port 0.
    pub const NONE: Flow = Flow {
        cgroup: 0,
        comm: [0; 16],
        tgid: 0,
        uid: 0,
        dest: Dest::new(Addr { words: [0; 4] }, 0),
        rule: 0,
        group: 0,
        listener: 0,
        flags: 0,
    };
}

/// By what the forwarder finds the record of a connection that it accepted: its [place](FlowKey::place), or the key of FLOWS.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    /// The connection's source address.
    pub source: Addr,
    /// Its source port, host byte order.
    pub port: u16,
    /// The port of ours that accepted it, host byte order.
    pub listener: u16,
}

impl FlowKey {
    /// The key of a connection from `source` to a port of ours.
    pub fn new(source: SocketAddr, listener: u16) -> FlowKey {
        FlowKey { source: source.ip().into(), port: source.port(), listener }
    }

    /// The place in PLACES of a connection to the forwarder from loopback, as almost all are. As long as there is one
    /// forwarder, no two that live have the same: so a place is written and read without a lock. The next one's record may
    /// come where a connection was reset and its port taken again at once; see [`Flow::is_whole`].
    #[inline(always)]
    pub fn place(&self) -> Option<u32> {
        let port = u32::from(self.port);
        if self.source == Addr::LOOPBACK4 {
            return Some(port);
        }
        if self.source == Addr::LOOPBACK6 { Some(port | 1 << 16) } else { None }
    }
}

/// A target that is known to be down; the value of DOWN under its [`Dest`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DownUntil {
    /// `CLOCK_MONOTONIC` nanoseconds until which the record holds.
    pub until: u64,
    /// What `connect()` fails with.
    pub errno: u32,
    /// Zero.
    pub zero: u32,
}

/// Something that was refused, or let go although a rule named it; one record of EVENTS.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub ktime: u64,
    /// The id of its cgroup.
    pub cgroup: u64,
    /// The name of the thread, zero-terminated.
    pub comm: [u8; 16],
    /// Its process id in the initial pid namespace.
    pub tgid: u32,
    /// Its user.
    pub uid: u32,
    /// Where it wanted to go.
    pub dest: Dest,
    /// A [`Reason`].
    pub reason: u32,
    /// What the system call failed with; 0 where the connection was let go.
    pub errno: u32,
    /// The rule, 0 where none matched.
    pub rule: u32,
}

/// Why an [`Event`] was written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Reason {
    /// No worker of the rule's group is connected.
    Group = 1,
    /// The target was down a moment ago.
    Down = 2,
    /// The daemon does not listen, and the rule fails closed.
    NoListener = 3,
    /// The address is synthetic, but no name has it.
    StaleSynthetic = 4,
    /// The name has rules, but none for this port.
    PortNotInRule = 5,
    /// UDP to a synthetic address: only TCP is carried.
    Datagram = 6,
    /// The socket could not be given its record, and the rule fails closed.
    NoMemory = 7,
    /// The daemon does not listen, the socket is bound to an interface, or there was no memory; the rule fails open and
    /// the connection went direct.
    FailOpen = 8,
    /// The socket is bound to a network interface and does not reach loopback, and the rule fails closed.
    Bound = 9,
}

impl Reason {
    /// The reason of a number in an [`Event`].
    pub const fn from_number(number: u32) -> Option<Reason> {
        Some(match number {
            1 => Reason::Group,
            2 => Reason::Down,
            3 => Reason::NoListener,
            4 => Reason::StaleSynthetic,
            5 => Reason::PortNotInRule,
            6 => Reason::Datagram,
            7 => Reason::NoMemory,
            8 => Reason::FailOpen,
            9 => Reason::Bound,
            _ => return None,
        })
    }

    /// The counter in which these are summed up.
    #[inline(always)]
    pub const fn counter(self) -> Counter {
        match self {
            Reason::Group => Counter::RefusedGroup,
            Reason::Down => Counter::RefusedDown,
            Reason::NoListener => Counter::RefusedNoListener,
            Reason::StaleSynthetic => Counter::RefusedStale,
            Reason::PortNotInRule => Counter::RefusedPort,
            Reason::Datagram => Counter::RefusedDatagram,
            Reason::NoMemory => Counter::RefusedNoMemory,
            Reason::FailOpen => Counter::FailOpen,
            Reason::Bound => Counter::RefusedBound,
        }
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $word:literal,)+) => {
        /// What the programs count, each an index into the per-CPU array COUNTERS.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u32)]
        pub enum Counter { $($(#[$doc])* $variant,)+ }

        impl Counter {
            /// All counters, in the order of their index.
            pub const ALL: &[Counter] = &[$(Counter::$variant),+];

            /// The counter's word in `status`.
            pub const fn word(self) -> &'static str {
                match self { $(Counter::$variant => $word,)+ }
            }
        }
    };
}

counters! {
    /// Connections sent to the forwarder.
    Steered = "steered",
    /// Connections that no rule names, to hosts other than this one.
    Direct = "direct",
    /// Refused: [`Reason::Group`].
    RefusedGroup = "refused-group",
    /// Refused: [`Reason::Down`].
    RefusedDown = "refused-down",
    /// Refused: [`Reason::NoListener`].
    RefusedNoListener = "refused-no-listener",
    /// Refused: [`Reason::StaleSynthetic`].
    RefusedStale = "refused-stale-synthetic",
    /// Refused: [`Reason::PortNotInRule`].
    RefusedPort = "refused-port",
    /// Refused: [`Reason::Datagram`].
    RefusedDatagram = "refused-datagram",
    /// Refused: [`Reason::NoMemory`].
    RefusedNoMemory = "refused-no-memory",
    /// Refused: [`Reason::Bound`].
    RefusedBound = "refused-bound",
    /// Let go: [`Reason::FailOpen`].
    FailOpen = "fail-open",
    /// Matched a rule, but is the daemon's own.
    Own = "own",
    /// Matched a rule or asked a resolver, but its user or cgroup is excluded: left alone.
    Excluded = "excluded",
    /// Matched a rule or asked a resolver in another network namespace: left alone.
    ForeignNetns = "foreign-netns",
    /// DNS over UDP: connects and datagrams to a resolver that were sent to the daemon.
    DnsUdp = "dns-udp",
    /// DNS over TCP: connections to a resolver that were sent to the daemon.
    DnsTcp = "dns-tcp",
    /// Questions to a resolver that were left alone because no port was free to stand for it.
    DnsNoPort = "dns-no-port",
    /// Questions to a resolver that were left alone because the daemon does not listen.
    DnsNoListener = "dns-no-listener",
    /// Questions from sockets bound to a network interface, left alone: they do not reach loopback.
    DnsBound = "dns-bound",
    /// Questions to a link-local resolver, left alone: its interface is not known.
    DnsLinkLocal = "dns-link-local",
    /// Captured connections of Multipath TCP sockets, counted among the steered ones too.
    Mptcp = "mptcp",
    /// Events that did not fit into the ring buffer.
    EventsLost = "events-lost",
}

/// A record has no padding: its size is the sum of its fields' sizes.
macro_rules! layout {
    ($($record:ty: $size:expr;)+) => {
        $(const _: () = assert!(size_of::<$record>() == $size && align_of::<$record>() <= 8);)+
    };
}

layout! {
    Addr: 16;
    Dest: 16 + 2 + 2;
    Synthetic: 4 + 4 + 16 + 16;
    Config: 8 + 40 + 2 + 2 + 4;
    PortRule: 2 + 2 + 4 + 2 + 2;
    Entry: 4 + 4 + 12 * limits::RANGES;
    Flow: 8 + 16 + 4 + 4 + 20 + 4 + 2 + 2 + 4;
    FlowKey: 16 + 2 + 2;
    DownUntil: 8 + 4 + 4;
    Event: 8 + 8 + 16 + 4 + 4 + 20 + 4 + 4 + 4;
}

/// What lies in a map, which lives on from one daemon to the next one that has the same here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// The map's name in `worker-ebpf/src/maps.rs`.
    pub name: &'static str,
    /// Bytes of a key.
    pub key: usize,
    /// Bytes of a value, or of a record in a ring buffer.
    pub value: usize,
    /// How many there can be; 0: no limit.
    pub entries: usize,
    /// Raise it where the same bytes come to mean something else.
    pub meaning: u32,
}

macro_rules! maps {
    ($($name:literal: $key:expr, $value:expr, $entries:expr, $meaning:literal;)+) => {
        /// All maps.
        pub const MAPS: &[Layout] =
            &[$(Layout { name: $name, key: $key, value: $value, entries: $entries, meaning: $meaning }),+];
    };
}

maps! {
    "CONFIG": 4, size_of::<Config>(), 1, 1;
    "DAEMONS": 4, 8, limits::DAEMONS, 1;
    "EXCLUDED_USERS": 4, 4, limits::EXCLUDED, 1;
    "EXCLUDED_CGROUPS": 8, 4, limits::EXCLUDED, 1;
    "RULES4": 4 + 4, size_of::<Entry>(), limits::RULES, 1;
    "RULES6": 4 + size_of::<Addr>(), size_of::<Entry>(), limits::RULES, 1;
    "GROUP_STATE": 4, 4, limits::GROUPS, 1;
    "DOWN": size_of::<Dest>(), size_of::<DownUntil>(), limits::DOWN, 1;
    "ORIG": 4, size_of::<Flow>(), 0, 1;
    "MARK": 4, 4, 0, 1;
    "PLACES": 4, size_of::<Flow>(), limits::PLACES, 1;
    "FLOWS": size_of::<FlowKey>(), size_of::<Flow>(), limits::FLOWS, 1;
    "SPARES": 0, 2, limits::RESOLVERS, 1;
    "RESOLVERS": size_of::<Addr>(), 2, limits::RESOLVERS, 1;
    "STANDS": 2, size_of::<Addr>(), limits::RESOLVERS, 1;
    "COUNTERS": 4, 8, Counter::ALL.len(), 1;
    "EVENTS": 0, size_of::<Event>(), limits::EVENT_BYTES, 1;
}

#[cfg(feature = "userspace")]
mod pod {
    use super::*;

    macro_rules! pod {
        ($($record:ty),+) => {
            $(
                // SAFETY: plain numbers in `repr(C)` without padding (asserted above), so every byte is
                // initialised and every bit pattern is a value.
                unsafe impl aya::Pod for $record {}
            )+
        };
    }

    pod!(Addr, Dest, Config, Entry, Flow, FlowKey, DownUntil, Event);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn synthetic_prefixes_hold_their_own_addresses_only() {
        let synthetic = Synthetic {
            net4: addr("240.64.0.0").v4_word(),
            mask4: addr("255.255.0.0").v4_word(),
            net6: addr("2001:2::").words,
            mask6: addr("ffff:ffff:ffff::").words,
        };
        for (text, expected) in [
            ("240.64.0.0", true),
            ("240.64.255.255", true),
            ("240.65.0.0", false),
            ("::ffff:240.64.0.1", true),
            ("2001:2::1", true),
            ("2001:2:0:ffff::1", true),
            ("2001:2:1::1", false),
            ("0.0.0.0", false),
            ("::", false),
        ] {
            assert_eq!(synthetic.contains(&addr(text)), expected, "{text}");
            assert!(!Synthetic::NONE.contains(&addr(text)), "{text}");
        }
    }

    #[test]
    fn who_comes_from_loopback_has_a_place_that_nobody_else_has() {
        let place = |text: &str| FlowKey::new(text.parse().unwrap(), 1).place();
        let all =
            ["127.0.0.1:1", "[::1]:1", "127.0.0.1:65535", "[::1]:65535", "[::ffff:127.0.0.1]:2"].map(place);
        assert!(all.iter().flatten().all(|place| (*place as usize) < limits::PLACES));
        let apart: std::collections::HashSet<_> = all.iter().flatten().collect();
        assert_eq!(apart.len(), all.len());
        for text in ["127.0.0.2:1", "192.0.2.1:1", "[::]:1", "[2001:db8::1]:1"] {
            assert_eq!(place(text), None, "{text}");
        }
    }

    #[test]
    fn a_record_of_two_is_none() {
        let flow = |target: &str, tgid| {
            let target: SocketAddr = target.parse().unwrap();
            let dest = Dest::new(target.ip().into(), target.port());
            let flow = Flow { dest, tgid, rule: 7, group: 1, listener: 40_000, cgroup: 9, ..Flow::NONE };
            Flow { flags: Flow::FRESH | flow.tie(), ..flow }
        };
        let (one, other) = (flow("192.0.2.1:443", 100), flow("[2001:db8::1]:8443", 200));
        assert!(one.is_whole() && other.is_whole());
        assert!(!Flow::NONE.is_whole() || Flow::NONE.tie() == 0);
        // Each word by itself from the other one, or from what an empty place holds.
        for next in [other, Flow::NONE] {
            assert!(!Flow { dest: next.dest, ..one }.is_whole());
            assert!(!Flow { tgid: next.tgid, ..one }.is_whole());
            assert!(!Flow { flags: next.flags, ..one }.is_whole());
            let mut dest = one.dest;
            for word in 0..4 {
                dest.addr.words[word] = next.dest.addr.words[word];
                assert_eq!(Flow { dest, ..one }.is_whole(), dest == one.dest);
            }
        }
    }

    #[test]
    fn reasons_come_back_from_their_numbers() {
        for number in 1..=9 {
            assert_eq!(Reason::from_number(number).unwrap() as u32, number);
        }
        assert_eq!(Reason::from_number(0), None);
        assert_eq!(Reason::from_number(10), None);
    }

    #[test]
    fn counters_stand_at_their_index_and_have_words_of_their_own() {
        let mut words = std::collections::HashSet::new();
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
            assert!(words.insert(counter.word()), "{}", counter.word());
        }
    }
}
