//! sock_ops, which tells the forwarder where a connection was going, and getpeername4/6, which tell the application.

use aya_ebpf::bindings::{BPF_ANY, BPF_SOCK_OPS_TCP_CONNECT_CB};
use aya_ebpf::macros::{cgroup_sock_addr, sock_ops};
use aya_ebpf::programs::{SockAddrContext, SockOpsContext};
use worker_common::{Addr, Dest, Flow, FlowKey};

use crate::maps::{FLOWS, ORIG, PLACES};
use crate::report::ALLOW;
use crate::resolver;
use crate::socket::{Call, IPPROTO_UDP, stored};

/// Neither an answer for other programs' callbacks nor a veto of theirs: as if we were not attached.
const NO_OPINION: u32 = 1;

#[sock_ops]
pub fn dw_sock_ops(ctx: SockOpsContext) -> u32 {
    // Called about five times in a connection's life; only one of them is about us.
    if ctx.op() == BPF_SOCK_OPS_TCP_CONNECT_CB {
        connecting(&ctx);
    }
    NO_OPINION
}

/// The source port is chosen and the SYN is not sent yet: whoever accepts the connection finds the record.
#[inline(always)]
fn connecting(ctx: &SockOpsContext) {
    // SAFETY: the kernel's context; the socket is checked before it is used.
    unsafe {
        let sock = (*ctx.ops).__bindgen_anon_2.sk;
        if sock.is_null() {
            return;
        }
        let Some(flow) = stored(&ORIG, sock.cast()).as_mut() else { return };
        let listener = flow.listener;
        // A record of an earlier connect(): this one goes elsewhere.
        if u32::from_be(ctx.remote_port()) != u32::from(listener) {
            return;
        }
        // A v4-mapped socket has its addresses in the IPv4 fields.
        let (remote, source) = if flow.dest.addr.is_v4() {
            (Addr::v4(ctx.remote_ip4()), Addr::v4(ctx.local_ip4()))
        } else {
            (Addr { words: ctx.remote_ip6() }, Addr { words: ctx.local_ip6() })
        };
        if remote != flow.dest.addr.loopback() {
            return;
        }
        flow.flags &= !Flow::FRESH;
        let key = FlowKey { source, port: ctx.local_port() as u16, listener };
        let flow: &Flow = flow;
        // DNS has many listeners, so a source port may be there twice.
        let place = if flow.flags & Flow::DNS == 0 { key.place() } else { None };
        let _ = match place {
            Some(place) => PLACES.set(place, flow, BPF_ANY.into()),
            None => FLOWS.insert(key, flow, BPF_ANY.into()),
        };
    }
}

#[cgroup_sock_addr(getpeername4)]
pub fn dw_getpeername4(ctx: SockAddrContext) -> i32 {
    let call = Call::new(ctx);
    if let Some(peer) = peer(&call, &call.dest4()) {
        call.set4(&peer.addr, peer.port);
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn dw_getpeername6(ctx: SockAddrContext) -> i32 {
    let call = Call::new(ctx);
    if let Some(peer) = peer(&call, &call.dest6()) {
        call.set6(&peer.addr, peer.port);
    }
    ALLOW
}

/// To whom the application thinks it is connected; `None`: to whom it is.
#[inline(always)]
fn peer(call: &Call, seen: &Dest) -> Option<Dest> {
    if seen.addr != seen.addr.loopback() {
        return None;
    }
    if call.protocol() == IPPROTO_UDP {
        return resolver::behind(call, seen);
    }
    let sock = call.sock();
    if sock.is_null() {
        return None;
    }
    // SAFETY: the verifier knows the calling socket, and it is not null.
    let flow = unsafe { stored(&ORIG, sock.cast()).as_ref() }?;
    (flow.listener == seen.port && flow.dest.addr.loopback() == seen.addr).then_some(flow.dest)
}
