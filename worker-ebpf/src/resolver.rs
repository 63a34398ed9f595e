//! Which local port stands for a resolver.
//!
//! The daemon offers ports; the first question to a resolver takes one, for ever. So the port says where to send on
//! what is not ours to answer, and answers can be given the resolver's address again.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use worker_common::decision::{DNS_PORT, Transport};
use worker_common::{Addr, Config, Counter, Dest};

use crate::maps::{RESOLVERS, SPARES, STANDS};
use crate::report::count;
use crate::socket::{self, Call};

/// The port to which a question goes instead; `None`: it is left alone.
#[inline(always)]
pub fn capture(call: &Call, config: &Config, transport: Transport, dest: &Dest) -> Option<u16> {
    if socket::own() {
        count(Counter::Own);
        return None;
    }
    if socket::excluded(config) {
        count(Counter::Excluded);
        return None;
    }
    if call.foreign(config) {
        count(Counter::ForeignNetns);
        return None;
    }
    if call.bound() {
        count(Counter::DnsBound);
        return None;
    }
    // SAFETY: an entry is removed only when no daemon is behind its port any more.
    let port = match unsafe { RESOLVERS.get(dest.addr) } {
        Some(port) => *port,
        None => stand_in(&dest.addr)?,
    };
    let loopback = dest.addr.loopback();
    let (listening, counter) = match transport {
        Transport::Stream => (call.stream_listener(&loopback, port), Counter::DnsTcp),
        Transport::Datagram => (call.datagram_listener(&loopback, port), Counter::DnsUdp),
    };
    if !listening {
        count(Counter::DnsNoListener);
        return None;
    }
    count(counter);
    Some(port)
}

/// Lets one of the daemon's spare ports stand for a resolver that is new.
///
/// Not inlined: this happens once per resolver.
#[inline(never)]
fn stand_in(addr: &Addr) -> Option<u16> {
    let Ok(Some(port)) = SPARES.pop() else { return known(addr) };
    // The way back exists before the way there: no answer arrives whose port nobody knows.
    if STANDS.insert(port, addr, BPF_ANY.into()).is_ok()
        && RESOLVERS.insert(addr, port, BPF_NOEXIST.into()).is_ok()
    {
        return Some(port);
    }
    // Another CPU was faster, or the table is full: the port is spare again.
    let _ = STANDS.remove(port);
    let _ = SPARES.push(port, 0);
    known(addr)
}

/// The port that another CPU's question has taken for the resolver in the meantime.
#[inline(always)]
fn known(addr: &Addr) -> Option<u16> {
    // SAFETY: as in `capture`.
    let winner = unsafe { RESOLVERS.get(addr) }.copied();
    if winner.is_none() {
        count(Counter::DnsNoPort);
    }
    winner
}

/// The resolver for which the sender of a datagram, or the peer of a UDP socket, stands. `None`: it is what it seems.
#[inline(always)]
pub fn behind(call: &Call, seen: &Dest) -> Option<Dest> {
    if seen.addr != seen.addr.loopback() {
        return None;
    }
    // SAFETY: an entry is removed only before anybody could have been sent to its port, or when no daemon is behind it.
    let resolver = *unsafe { STANDS.get(seen.port) }?;
    if resolver.loopback() != seen.addr || call.foreign(socket::config()?) {
        return None;
    }
    Some(Dest::new(resolver, DNS_PORT))
}
