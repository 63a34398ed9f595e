//! What becomes of a connection: the pure part of steering.
//!
//! The programs call this with maps behind [`World`], the tests with plain tables, and the daemon's fake kernel
//! too; there is no second place that knows the order of the questions. They are asked from cheap to dear, and
//! the dear ones only of connections that a rule names.
//!
//! What must hold, whatever the rules say: nothing on this host's loopback is steered, the daemon's own
//! connections and those of who is excluded are left alone, of all others a name's address never goes direct, and nothing is steered without a live listener.

use crate::addr::{Addr, Dest};
use crate::records::{Entry, PortRule, Reason, Synthetic};

/// The port of DNS, over UDP and TCP.
pub const DNS_PORT: u16 = 53;

/// `connect()` fails with this where there is nowhere to go: `EHOSTUNREACH`.
pub const EHOSTUNREACH: u32 = 113;
/// `connect()` fails with this where the socket's interface does not lead there: `ENETUNREACH`.
pub const ENETUNREACH: u32 = 101;
/// `connect()` fails with this where nobody listens: `ECONNREFUSED`.
pub const ECONNREFUSED: u32 = 111;
/// `connect()` fails with this where the kernel had no memory for the socket's record: `ENOMEM`.
pub const ENOMEM: u32 = 12;

/// What kind of traffic a socket sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// TCP, Multipath TCP included.
    Stream,
    /// UDP.
    Datagram,
}

/// By which questions a destination is judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Path {
    /// By none: it is left alone.
    Pass,
    /// By the rules: [`decide`].
    Rules,
    /// It asks a resolver: the daemon answers in its place.
    Dns,
    /// It asks a resolver whose interface is not known: it is left alone, and counted.
    DnsLinkLocal,
    /// It cannot be carried and has nowhere else to go.
    Refuse(Reason),
}

/// The first question, answered without a map.
#[inline(always)]
pub fn path(transport: Transport, dest: &Dest, synthetic: &Synthetic) -> Path {
    // A proxy host that serves DNS is no resolver of this host; the rules decide about it.
    if dest.port == DNS_PORT && !synthetic.contains(&dest.addr) {
        return if dest.addr.is_link_local6() { Path::DnsLinkLocal } else { Path::Dns };
    }
    match transport {
        Transport::Stream if dest.addr.is_local() => Path::Pass,
        Transport::Stream => Path::Rules,
        // To port 0 nothing can be sent: glibc connects a UDP socket there to learn from which address it would
        // send, before it sorts a name's addresses. Refused, each look-up of two families would count as a fault.
        Transport::Datagram if dest.port != 0 && synthetic.contains(&dest.addr) => {
            Path::Refuse(Reason::Datagram)
        }
        Transport::Datagram => Path::Pass,
    }
}

/// What [`decide`] asks of the kernel or of a test's tables.
pub trait World {
    /// The entry of the longest prefix that covers `addr`.
    fn entry(&self, addr: &Addr) -> Option<&Entry>;
    /// True where the daemon itself connects.
    fn own(&self) -> bool;
    /// True where the caller's user or cgroup is excluded from steering.
    fn excluded(&self) -> bool;
    /// True where the socket lives in another network namespace than the listeners.
    fn foreign_netns(&self) -> bool;
    /// True where the socket is bound to a network interface, so that it does not reach loopback.
    fn bound(&self) -> bool;
    /// With what the group's connections are refused; 0 while a worker carries them.
    fn group_errno(&self, group: u16) -> u32;
    /// With what connections to `dest` are refused because it was down a moment ago; 0 otherwise.
    fn down_errno(&self, dest: &Dest) -> u32;
    /// True while the daemon's listener for connections to `addr` is there.
    fn listening(&self, addr: &Addr) -> bool;
}

/// What becomes of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// No rule names it: it goes where it wants.
    Direct,
    /// It is the daemon's own: it goes where it wants.
    Own,
    /// Its user or cgroup is excluded: it goes where it wants.
    Excluded,
    /// It lives where our loopback is not: it goes where it wants.
    ForeignNetns,
    /// It goes to the forwarder.
    Steer(PortRule),
    /// A rule names it, but it cannot be sent to the daemon, and the rule fails open.
    FailOpen(PortRule),
    /// `connect()` fails.
    Refuse {
        /// Why.
        reason: Reason,
        /// With what.
        errno: u32,
        /// The rule, 0 where none matched.
        rule: u32,
    },
}

impl Entry {
    /// The first range that covers `port` (host byte order).
    #[inline(always)]
    pub fn rule(&self, port: u16) -> Option<&PortRule> {
        for (index, range) in self.ranges.iter().enumerate() {
            if index as u32 >= self.len {
                break;
            }
            if range.covers(port) {
                return Some(range);
            }
        }
        None
    }

    /// Why ports without a rule are refused; meaningful only where the default is [`Entry::REFUSE`].
    #[inline(always)]
    pub fn refusal(&self) -> Reason {
        if self.len == 0 { Reason::StaleSynthetic } else { Reason::PortNotInRule }
    }
}

/// Judges a connection whose [`path`] is [`Path::Rules`].
#[inline(always)]
pub fn decide(world: &impl World, dest: &Dest) -> Verdict {
    let Some(entry) = world.entry(&dest.addr) else { return Verdict::Direct };
    // A copy, made at once: which of its places the rule came from is forgotten, or the verifier would go through all
    // that follows once for each. And not an `Option` of it: of an enum with a payload the compiler may save and restore
    // the bytes of a variant that is not there, and kernels before 6.3 say "invalid read from stack" to that.
    let (rule, named) = match entry.rule(dest.port) {
        Some(rule) => (*rule, true),
        None => (PortRule::NONE, false),
    };
    if !named && entry.default == Entry::DIRECT {
        return Verdict::Direct;
    }
    if world.own() {
        return Verdict::Own;
    }
    if world.excluded() {
        return Verdict::Excluded;
    }
    if world.foreign_netns() {
        return Verdict::ForeignNetns;
    }
    if !named {
        return Verdict::Refuse { reason: entry.refusal(), errno: EHOSTUNREACH, rule: 0 };
    }
    let refuse = |reason, errno| Verdict::Refuse { reason, errno, rule: rule.rule };
    if world.bound() {
        return without(&rule, Reason::Bound, ENETUNREACH);
    }
    let errno = world.group_errno(rule.group);
    if errno != 0 {
        return refuse(Reason::Group, errno);
    }
    let errno = world.down_errno(dest);
    if errno != 0 {
        return refuse(Reason::Down, errno);
    }
    if world.listening(&dest.addr) {
        return Verdict::Steer(rule);
    }
    without(&rule, Reason::NoListener, ECONNREFUSED)
}

/// The verdict where a connection cannot be sent to the daemon: the rule's way to fail.
#[inline(always)]
pub fn without(rule: &PortRule, reason: Reason, errno: u32) -> Verdict {
    if rule.flags & PortRule::FAIL_CLOSED == 0 {
        return Verdict::FailOpen(*rule);
    }
    Verdict::Refuse { reason, errno, rule: rule.rule }
}

#[cfg(test)]
mod tests;
