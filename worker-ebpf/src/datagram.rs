//! sendmsg4/6 and recvmsg4/6: UDP sockets that name an address with each datagram.
//!
//! A v6 socket's datagram to a v4-mapped address fires sendmsg**4**, the answer recvmsg**6**.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use worker_common::decision::{EHOSTUNREACH, Path, Transport, path};
use worker_common::{Addr, Counter, Dest};

use crate::report::{ALLOW, count, refuse};
use crate::resolver;
use crate::socket::{self, Call, IPPROTO_UDP};

#[cgroup_sock_addr(sendmsg4)]
pub fn dw_sendmsg4(ctx: SockAddrContext) -> i32 {
    let call = Call::new(ctx);
    match send(&call, &call.dest4()) {
        Ok(Some(port)) => call.set4(&Addr::LOOPBACK4, port),
        Ok(None) => {}
        Err(answer) => return answer,
    }
    ALLOW
}

#[cgroup_sock_addr(sendmsg6)]
pub fn dw_sendmsg6(ctx: SockAddrContext) -> i32 {
    let call = Call::new(ctx);
    let dest = call.dest6();
    match send(&call, &dest) {
        Ok(Some(port)) => call.set6(&dest.addr.loopback(), port),
        Ok(None) => {}
        Err(answer) => return answer,
    }
    ALLOW
}

/// The port to which a datagram goes instead, if any; `Err` is the hook's answer where it is refused.
#[inline(always)]
fn send(call: &Call, dest: &Dest) -> Result<Option<u16>, i32> {
    let Some(config) = socket::config() else { return Ok(None) };
    if call.protocol() != IPPROTO_UDP {
        return Ok(None);
    }
    match path(Transport::Datagram, dest, &config.synthetic) {
        Path::Pass | Path::Rules => Ok(None),
        Path::Dns => Ok(resolver::capture(call, config, Transport::Datagram, dest)),
        Path::DnsLinkLocal => {
            count(Counter::DnsLinkLocal);
            Ok(None)
        }
        Path::Refuse(reason) => Err(refuse(dest, reason, EHOSTUNREACH, 0)),
    }
}

#[cgroup_sock_addr(recvmsg4)]
pub fn dw_recvmsg4(ctx: SockAddrContext) -> i32 {
    let call = Call::new(ctx);
    if let Some(resolver) = resolver::behind(&call, &call.dest4()) {
        call.set4(&resolver.addr, resolver.port);
    }
    ALLOW
}

#[cgroup_sock_addr(recvmsg6)]
pub fn dw_recvmsg6(ctx: SockAddrContext) -> i32 {
    let call = Call::new(ctx);
    if let Some(resolver) = resolver::behind(&call, &call.dest6()) {
        call.set6(&resolver.addr, resolver.port);
    }
    ALLOW
}
