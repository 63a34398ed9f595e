//! Which programs a cgroup has, whoever attached them: the kernel is asked, not who should know.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// `BPF_PROG_QUERY` of `enum bpf_cmd`.
const PROG_QUERY: libc::c_int = 16;
/// `BPF_F_QUERY_EFFECTIVE`: those of the cgroups above it, too, as far as they run for what is in it.
const EFFECTIVE: u32 = 1;
/// Programs of one kind that are told; the kernel runs at most 64 of one cgroup.
const MOST: usize = 256;

/// Where programs like ours are attached, in bpftool's words, with the kernel's numbers (`enum bpf_attach_type`).
const TYPES: [(&str, u32); 9] = [
    ("cgroup_sock_ops", 3),
    ("cgroup_inet4_connect", 10),
    ("cgroup_inet6_connect", 11),
    ("cgroup_udp4_sendmsg", 14),
    ("cgroup_udp6_sendmsg", 15),
    ("cgroup_udp4_recvmsg", 19),
    ("cgroup_udp6_recvmsg", 20),
    ("cgroup_inet4_getpeername", 29),
    ("cgroup_inet6_getpeername", 30),
];

/// The part of `union bpf_attr` that the query has.
#[repr(C)]
#[derive(Default)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    zero: u32,
}

/// The ids of the programs that run in a cgroup for `attach_type`, those of the cgroups above it included.
///
/// # Errors
/// The kernel does not say, above all to who lacks `CAP_NET_ADMIN`.
pub fn attached(cgroup: &Path, attach_type: &str) -> io::Result<Vec<u32>> {
    let number = TYPES.iter().find(|(word, _)| *word == attach_type).map(|(_, number)| *number);
    let attach_type = number.ok_or(io::ErrorKind::InvalidInput)?;
    let directory = File::open(cgroup)?;
    let mut ids = [0u32; MOST];
    let mut query = Query {
        target_fd: directory.as_raw_fd() as u32,
        attach_type,
        query_flags: EFFECTIVE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: MOST as u32,
        ..Query::default()
    };
    // SAFETY: the attribute has the size that is given; the kernel writes at most `prog_cnt` ids, and both live across
    // the call.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, PROG_QUERY, &raw mut query, size_of::<Query>() as libc::c_uint)
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ids[..(query.prog_cnt as usize).min(MOST)].to_vec())
}

/// The name of a program that is loaded.
pub fn program_name(id: u32) -> Option<String> {
    let mut all = aya::programs::loaded_programs().flatten();
    all.find(|info| info.id() == id)?.name_as_str().map(str::to_owned)
}
