//! connect4 and connect6.

use aya_ebpf::bindings::{BPF_ANY, bpf_sock};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::bpf_get_current_uid_gid;
use aya_ebpf::helpers::generated as helper;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use core::ffi::c_void;
use worker_common::decision::{EHOSTUNREACH, ENOMEM, Path, Transport, path, without};
use worker_common::{
    Addr, Config, Counter, Dest, Entry, Flow, PortRule, Reason, Verdict, World, decide, mark,
};

use crate::maps::{DAEMONS, DOWN, GROUP_STATE, HAVE_MPTCP, MARK, ORIG, RULES4, RULES6};
use crate::report::{ALLOW, count, refuse, tell};
use crate::resolver;
use crate::socket::{
    self, Call, IPPROTO_MPTCP, IPPROTO_TCP, IPPROTO_UDP, forget, stored, stored_or_zeroed, tgid,
};

#[cgroup_sock_addr(connect4)]
pub fn dw_connect4(ctx: SockAddrContext) -> i32 {
    let call = Call::new(ctx);
    match connect(&call, Call::dest4, 0) {
        Outcome::Answer(answer) => answer,
        Outcome::To { port, .. } => {
            call.set4(&Addr::LOOPBACK4, port);
            ALLOW
        }
    }
}

#[cgroup_sock_addr(connect6)]
pub fn dw_connect6(ctx: SockAddrContext) -> i32 {
    let call = Call::new(ctx);
    match connect(&call, Call::dest6, Flow::V6_SOCKET) {
        Outcome::Answer(answer) => answer,
        Outcome::To { v4, port } => {
            call.set6(&loopback(v4), port);
            ALLOW
        }
    }
}

/// What a connect hook does.
enum Outcome {
    /// Nothing but answer this.
    Answer(i32),
    /// Send the connection to this port on loopback.
    To { v4: bool, port: u16 },
}

#[inline(always)]
fn connect(call: &Call, read: impl Fn(&Call) -> Dest, family: u32) -> Outcome {
    let Some(config) = socket::config() else { return Outcome::Answer(ALLOW) };
    let transport = match call.protocol() {
        IPPROTO_TCP | IPPROTO_MPTCP => Transport::Stream,
        IPPROTO_UDP => Transport::Datagram,
        _ => return Outcome::Answer(ALLOW),
    };
    let dest = read(call);
    match path(transport, &dest, &config.synthetic) {
        // Read again, or the verifier would go through the rest once for each way that leads here: it knows by each
        // something else of the words.
        Path::Rules => judge(call, config, &read(call), family),
        Path::Pass => {
            if transport == Transport::Stream {
                local(call, config, &dest);
            }
            Outcome::Answer(ALLOW)
        }
        Path::Dns => question(call, config, transport, &read(call), family),
        Path::DnsLinkLocal => {
            count(Counter::DnsLinkLocal);
            Outcome::Answer(ALLOW)
        }
        Path::Refuse(reason) => Outcome::Answer(refuse(&dest, reason, EHOSTUNREACH, 0)),
    }
}

/// A connection to another host.
#[inline(always)]
fn judge(call: &Call, config: &Config, dest: &Dest, family: u32) -> Outcome {
    // Asked once: what follows from it is not told from the words again.
    let v4 = dest.addr.is_v4();
    let (rule, reason, errno) = match decide(&Kernel { call, config, v4 }, dest) {
        Verdict::Direct => return pass(Counter::Direct),
        Verdict::Own => return pass(Counter::Own),
        Verdict::Excluded => return pass(Counter::Excluded),
        Verdict::ForeignNetns => return pass(Counter::ForeignNetns),
        Verdict::Refuse { reason, errno, rule } => return Outcome::Answer(refuse(dest, reason, errno, rule)),
        Verdict::FailOpen(rule) => return fail_open(dest, &rule),
        Verdict::Steer(rule) => {
            let port = listener(config, v4);
            if remember(call, dest, port, family, &rule) {
                count(Counter::Steered);
                return Outcome::To { v4, port };
            }
            match without(&rule, Reason::NoMemory, ENOMEM) {
                Verdict::Refuse { reason, errno, rule } => (rule, reason, errno),
                _ => return fail_open(dest, &rule),
            }
        }
    };
    Outcome::Answer(refuse(dest, reason, errno, rule))
}

#[inline(always)]
fn listener(config: &Config, v4: bool) -> u16 {
    if v4 { config.listener4 } else { config.listener6 }
}

#[inline(always)]
fn loopback(v4: bool) -> Addr {
    if v4 { Addr::LOOPBACK4 } else { Addr::LOOPBACK6 }
}

#[inline(always)]
fn pass(counter: Counter) -> Outcome {
    count(counter);
    Outcome::Answer(ALLOW)
}

#[inline(always)]
fn fail_open(dest: &Dest, rule: &PortRule) -> Outcome {
    tell(dest, Reason::FailOpen, 0, rule.rule);
    Outcome::Answer(ALLOW)
}

/// A connection to a resolver's port 53.
#[inline(always)]
fn question(call: &Call, config: &Config, transport: Transport, dest: &Dest, family: u32) -> Outcome {
    let Some(port) = resolver::capture(call, config, transport, dest) else { return Outcome::Answer(ALLOW) };
    if transport == Transport::Stream && !remember(call, dest, port, family | Flow::DNS, &PortRule::NONE) {
        return Outcome::Answer(ALLOW);
    }
    Outcome::To { v4: dest.addr.is_v4(), port }
}

/// A connection within this host. It is never steered, but two of them are about us: the daemon's own that says
/// who it is, and one of a socket that was steered before.
#[inline(always)]
fn local(call: &Call, config: &Config, dest: &Dest) {
    let sock = call.sock();
    if sock.is_null() {
        return;
    }
    // SAFETY: the verifier knows the calling socket, and it is not null.
    unsafe {
        // Steered by this very call, and now seen by a parent cgroup's program? Then the record is fresh. Else it
        // is from an earlier connect() of the same socket and would tell of the wrong target.
        let flow = stored(&ORIG, sock.cast());
        if !flow.is_null() && (*flow).flags & Flow::FRESH == 0 {
            forget(&ORIG, sock.cast());
            if let Some(parent) = mptcp_parent(sock) {
                forget(&ORIG, parent);
            }
        }
        if dest.port == config.listener(&dest.addr) {
            let value = stored(&MARK, sock.cast());
            if !value.is_null()
                && *value & mark::REGISTER != 0
                && DAEMONS.insert(tgid(), helper::bpf_ktime_get_ns(), BPF_ANY.into()).is_ok()
            {
                *value = mark::REGISTER | tgid();
            }
        }
    }
}

/// Keeps with the socket where it was going. False: there is no memory, or no socket.
#[inline(always)]
fn remember(call: &Call, dest: &Dest, listener: u16, flags: u32, rule: &PortRule) -> bool {
    let sock = call.sock();
    if sock.is_null() {
        return false;
    }
    // SAFETY: the verifier knows the calling socket, and it is not null; the value is this socket's alone, and
    // connect() holds the socket's lock.
    unsafe {
        let flow = stored_or_zeroed(&ORIG, sock.cast());
        if flow.is_null() {
            return false;
        }
        (*flow).cgroup = helper::bpf_get_current_cgroup_id();
        helper::bpf_get_current_comm((&raw mut (*flow).comm).cast(), 16);
        (*flow).tgid = tgid();
        (*flow).uid = bpf_get_current_uid_gid() as u32;
        (*flow).dest = *dest;
        (*flow).rule = rule.rule;
        (*flow).group = rule.group;
        (*flow).listener = listener;
        (*flow).flags = flags | Flow::FRESH | (*flow).tie();
        if let Some(parent) = mptcp_parent(sock) {
            count(Counter::Mptcp);
            let copy = stored_or_zeroed(&ORIG, parent);
            if !copy.is_null() {
                *copy = *flow;
            }
        }
    }
    true
}

/// The Multipath TCP socket of a connection whose first subflow `sock` is: connect() runs on the subflow, and so does
/// sock_ops, but getpeername() asks the socket that the application has.
///
/// # Safety
/// `sock` is a socket that the verifier knows, not null.
#[inline(always)]
unsafe fn mptcp_parent(sock: *mut bpf_sock) -> Option<*mut c_void> {
    if HAVE_MPTCP.load() == 0 {
        return None;
    }
    // SAFETY: the caller's promise; the loader sets the flag only where the helper exists.
    let parent: *mut c_void = unsafe { helper::bpf_skc_to_mptcp_sock(sock.cast()) }.cast();
    (!parent.is_null()).then_some(parent)
}

/// The maps and helpers, as the decision asks them.
struct Kernel<'a> {
    call: &'a Call,
    config: &'a Config,
    /// Whether it goes to an IPv4 address.
    v4: bool,
}

impl World for Kernel<'_> {
    #[inline(always)]
    fn entry(&self, addr: &Addr) -> Option<&Entry> {
        if self.v4 { RULES4.get(&Key::new(32, addr.v4_word())) } else { RULES6.get(&Key::new(128, *addr)) }
    }

    #[inline(always)]
    fn own(&self) -> bool {
        socket::own()
    }

    #[inline(always)]
    fn excluded(&self) -> bool {
        socket::excluded(self.config)
    }

    #[inline(always)]
    fn foreign_netns(&self) -> bool {
        self.call.foreign(self.config)
    }

    #[inline(always)]
    fn bound(&self) -> bool {
        self.call.bound()
    }

    #[inline(always)]
    fn group_errno(&self, group: u16) -> u32 {
        GROUP_STATE.get(group.into()).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn down_errno(&self, dest: &Dest) -> u32 {
        // SAFETY: a value that is replaced while we read it is only a moment's errno.
        match unsafe { DOWN.get(dest) } {
            Some(down) if unsafe { helper::bpf_ktime_get_ns() } < down.until => down.errno,
            _ => 0,
        }
    }

    #[inline(always)]
    fn listening(&self, _: &Addr) -> bool {
        let port = listener(self.config, self.v4);
        port != 0 && self.call.stream_listener(&loopback(self.v4), port)
    }
}
