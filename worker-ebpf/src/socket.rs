//! Sockets: the calling one, and the daemon's that it may be sent to.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_F_CURRENT_NETNS, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_addr, bpf_sock_tuple,
};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated as helper;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_uid_gid};
use aya_ebpf::programs::SockAddrContext;
use core::ffi::c_void;
use core::ptr::null_mut;
use worker_common::{Addr, Config, Dest, mark};

use crate::maps::{CONFIG, DAEMONS, EXCLUDED_CGROUPS, EXCLUDED_USERS, MARK};

pub const IPPROTO_TCP: u32 = 6;
pub const IPPROTO_UDP: u32 = 17;
pub const IPPROTO_MPTCP: u32 = 262;

/// The two kinds of a `bpf_sock_tuple`, which the kernel tells apart by their sizes.
#[repr(C)]
struct Tuple4 {
    saddr: u32,
    daddr: u32,
    sport: u16,
    dport: u16,
}

#[repr(C)]
struct Tuple6 {
    saddr: [u32; 4],
    daddr: [u32; 4],
    sport: u16,
    dport: u16,
}

/// A call that names an address: connect, sendmsg, recvmsg or getpeername.
pub struct Call {
    ctx: SockAddrContext,
}

impl Call {
    pub fn new(ctx: SockAddrContext) -> Call {
        Call { ctx }
    }

    #[inline(always)]
    fn raw(&self) -> *mut bpf_sock_addr {
        self.ctx.sock_addr
    }

    #[inline(always)]
    pub fn as_ptr(&self) -> *mut c_void {
        self.ctx.as_ptr()
    }

    #[inline(always)]
    pub fn protocol(&self) -> u32 {
        // SAFETY: the kernel's context, which outlives the program; so for every read and write below.
        unsafe { (*self.raw()).protocol }
    }

    /// The calling socket.
    #[inline(always)]
    pub fn sock(&self) -> *mut bpf_sock {
        // SAFETY: see `protocol`.
        unsafe { (*self.raw()).__bindgen_anon_1.sk }
    }

    /// The address in the call of an IPv4 hook.
    #[inline(always)]
    pub fn dest4(&self) -> Dest {
        // SAFETY: see `protocol`.
        unsafe { Dest::new(Addr::v4((&raw const (*self.raw()).user_ip4).read_volatile()), self.port()) }
    }

    /// The address in the call of an IPv6 hook, v4-mapped ones included.
    #[inline(always)]
    pub fn dest6(&self) -> Dest {
        // SAFETY: see `protocol`.
        let words = unsafe {
            let words = &raw const (*self.raw()).user_ip6;
            [
                (&raw const (*words)[0]).read_volatile(),
                (&raw const (*words)[1]).read_volatile(),
                (&raw const (*words)[2]).read_volatile(),
                (&raw const (*words)[3]).read_volatile(),
            ]
        };
        Dest::new(Addr { words }, self.port())
    }

    #[inline(always)]
    fn port(&self) -> u16 {
        // SAFETY: see `protocol`.
        u16::from_be(unsafe { (*self.raw()).user_port } as u16)
    }

    /// Replaces the address in the call of an IPv4 hook.
    #[inline(always)]
    pub fn set4(&self, addr: &Addr, port: u16) {
        // SAFETY: see `protocol`.
        unsafe {
            (*self.raw()).user_ip4 = addr.v4_word();
            (*self.raw()).user_port = port.to_be().into();
        }
    }

    /// Replaces the address in the call of an IPv6 hook.
    #[inline(always)]
    pub fn set6(&self, addr: &Addr, port: u16) {
        // SAFETY: see `protocol`.
        unsafe {
            let raw = self.raw();
            (*raw).user_ip6[0] = addr.words[0];
            (*raw).user_ip6[1] = addr.words[1];
            (*raw).user_ip6[2] = addr.words[2];
            (*raw).user_ip6[3] = addr.words[3];
            (*raw).user_port = port.to_be().into();
        }
    }

    /// True where the socket is bound to an interface other than loopback, which is always the first. Who binds a socket
    /// has chosen the way: systemd-resolved does so for its own questions, which would be lost on loopback.
    #[inline(always)]
    pub fn bound(&self) -> bool {
        const LOOPBACK: u32 = 1;
        let sock = self.sock();
        // SAFETY: the verifier knows the calling socket, and it is not null.
        !sock.is_null() && unsafe { (*sock).bound_dev_if } > LOOPBACK
    }

    /// True where the socket lives in another network namespace than the daemon's listeners.
    #[inline(always)]
    pub fn foreign(&self, config: &Config) -> bool {
        if config.netns_cookie == 0 {
            // The daemon does not know where it is; but where it is, there its listener is.
            return !self.stream_listener(&Addr::LOOPBACK4, config.listener4);
        }
        // SAFETY: a call by number into the kernel.
        unsafe { helper::bpf_get_netns_cookie(self.as_ptr()) != config.netns_cookie }
    }

    /// True where a TCP listener of the daemon is bound to `addr` and `port` in this socket's network namespace.
    #[inline(always)]
    pub fn stream_listener(&self, addr: &Addr, port: u16) -> bool {
        // SAFETY: `look_up` has the tuple live across the call; the socket found is released in `is_listener`.
        look_up(addr, port, |tuple, size| unsafe {
            is_listener(helper::bpf_sk_lookup_tcp(self.as_ptr(), tuple, size, BPF_F_CURRENT_NETNS as u64, 0))
        })
    }

    /// True where a UDP socket of the daemon is bound to `addr` and `port` in this socket's network namespace.
    #[inline(always)]
    pub fn datagram_listener(&self, addr: &Addr, port: u16) -> bool {
        // SAFETY: see `stream_listener`.
        look_up(addr, port, |tuple, size| unsafe {
            is_listener(helper::bpf_sk_lookup_udp(self.as_ptr(), tuple, size, BPF_F_CURRENT_NETNS as u64, 0))
        })
    }
}

/// Looks by the tuple of a connection from nowhere, which only a listener matches. Each kind by itself: a union of both is
/// zeroed byte by byte.
#[inline(always)]
fn look_up(addr: &Addr, port: u16, look: impl Fn(*mut bpf_sock_tuple, u32) -> bool) -> bool {
    if addr.is_v4() {
        let mut tuple = Tuple4 { saddr: 0, daddr: addr.v4_word(), sport: 0, dport: port.to_be() };
        look((&raw mut tuple).cast(), size_of::<Tuple4>() as u32)
    } else {
        let mut tuple = Tuple6 { saddr: [0; 4], daddr: addr.words, sport: 0, dport: port.to_be() };
        look((&raw mut tuple).cast(), size_of::<Tuple6>() as u32)
    }
}

/// Whether a socket that was looked up is the daemon's listener. Gives the socket back.
///
/// # Safety
/// `found` comes from a lookup helper and is not used afterwards.
#[inline(always)]
unsafe fn is_listener(found: *mut bpf_sock) -> bool {
    if found.is_null() {
        return false;
    }
    // SAFETY: `found` is referenced until it is released; the value is read before that.
    unsafe {
        let value = stored(&MARK, found.cast());
        let ours = !value.is_null() && *value == mark::LISTENER;
        helper::bpf_sk_release(found.cast());
        ours
    }
}

/// What a map holds for a socket, or null. Null for a null socket would not pass the verifier.
///
/// # Safety
/// `sock` is a socket that the verifier knows, not null.
#[inline(always)]
pub unsafe fn stored<T>(map: &'static SkStorage<T>, sock: *mut c_void) -> *mut T {
    // SAFETY: the caller's promise.
    unsafe { helper::bpf_sk_storage_get(map_ptr(map), sock, null_mut(), 0) }.cast()
}

/// Like [`stored`], but makes a zeroed value where there is none; null only for lack of memory.
///
/// # Safety
/// As for [`stored`].
#[inline(always)]
pub unsafe fn stored_or_zeroed<T>(map: &'static SkStorage<T>, sock: *mut c_void) -> *mut T {
    // SAFETY: the caller's promise.
    unsafe { helper::bpf_sk_storage_get(map_ptr(map), sock, null_mut(), BPF_SK_STORAGE_GET_F_CREATE.into()) }
        .cast()
}

/// Forgets what a map holds for a socket.
///
/// # Safety
/// As for [`stored`].
#[inline(always)]
pub unsafe fn forget<T>(map: &'static SkStorage<T>, sock: *mut c_void) {
    // SAFETY: the caller's promise. That there was nothing to forget is no error.
    unsafe { helper::bpf_sk_storage_delete(map_ptr(map), sock) };
}

/// The map's address, which the loader replaces; aya gives it to its own methods only.
fn map_ptr<T>(map: &'static SkStorage<T>) -> *mut c_void {
    core::ptr::from_ref(map).cast_mut().cast()
}

/// What the daemon told us; `None` cannot happen, but the verifier wants to see it asked.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

#[inline(always)]
pub fn tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// True where the daemon itself is calling.
///
/// Its process id is known only where it is inside a captured cgroup: elsewhere it never gets here. So are those of
/// daemons before it that let their connections end.
#[inline(always)]
pub fn own() -> bool {
    DAEMONS.get_ptr(tgid()).is_some()
}

/// True where the caller's user, or a cgroup around it, is excluded. Costs nothing while nothing is.
#[inline(always)]
pub fn excluded(config: &Config) -> bool {
    config.exclude != 0 && is_excluded(config.exclude)
}

/// Not inlined: most hosts exclude nobody, and the programs stay small.
#[inline(never)]
fn is_excluded(exclude: u32) -> bool {
    if exclude & Config::EXCLUDE_USERS != 0
        && EXCLUDED_USERS.get_ptr(bpf_get_current_uid_gid() as u32).is_some()
    {
        return true;
    }
    for level in 0..=Config::DEEPEST {
        if exclude & (1 << level) == 0 {
            continue;
        }
        // SAFETY: a call by number into the kernel; 0 where the caller's cgroup is not so deep.
        let cgroup = unsafe { helper::bpf_get_current_ancestor_cgroup_id(level as i32) };
        if EXCLUDED_CGROUPS.get_ptr(cgroup).is_some() {
            return true;
        }
    }
    false
}
