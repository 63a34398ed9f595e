//! Counters, events, and the errno of a refused call.

use aya_ebpf::helpers::generated as helper;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_uid_gid};
use worker_common::{Counter, Dest, Event, Reason};

use crate::maps::{COUNTERS, EVENTS, HAVE_SET_RETVAL};

/// A hook's answer: the system call goes on.
pub const ALLOW: i32 = 1;
/// A hook's answer: the system call fails with what `bpf_set_retval` was told, else with `EPERM`.
pub const REJECT: i32 = 0;

#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot is this CPU's, and programs of one CPU do not interrupt each other here.
        unsafe { *value += 1 }
    }
}

/// Refuses a connect or a sendmsg: counts it, says so and sets the errno. The hook returns what this returns.
///
/// Not inlined: refusals are rare, and the programs stay small.
#[inline(never)]
pub fn refuse(dest: &Dest, reason: Reason, errno: u32, rule: u32) -> i32 {
    tell(dest, reason, errno, rule);
    if HAVE_SET_RETVAL.load() != 0 {
        // SAFETY: a call by number into the kernel; the loader sets the flag only where it exists.
        unsafe { helper::bpf_set_retval(-(errno as i32)) };
    }
    REJECT
}

/// Counts what happened to a connection and says so to the daemon.
#[inline(always)]
pub fn tell(dest: &Dest, reason: Reason, errno: u32, rule: u32) {
    count(reason.counter());
    let Some(mut record) = EVENTS.reserve(0) else { return count(Counter::EventsLost) };
    let event: *mut Event = record.as_mut_ptr();
    // SAFETY: the record is ours until it is submitted, and every field is written before that.
    unsafe {
        (*event).ktime = helper::bpf_ktime_get_ns();
        (*event).cgroup = helper::bpf_get_current_cgroup_id();
        helper::bpf_get_current_comm((&raw mut (*event).comm).cast(), 16);
        (*event).tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
        (*event).uid = bpf_get_current_uid_gid() as u32;
        (*event).dest = *dest;
        (*event).reason = reason as u32;
        (*event).errno = errno;
        (*event).rule = rule;
    }
    record.submit(0);
}
