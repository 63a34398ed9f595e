//! Which maps a program uses, asked by the descriptor that we have: to ask by number, as aya does, takes CAP_SYS_ADMIN.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `BPF_OBJ_GET_INFO_BY_FD`.
const GET_INFO: libc::c_int = 15;
/// More than a program of ours uses.
const MOST: usize = 64;

/// The beginning of the kernel's `struct bpf_prog_info`, which it fills as far as it is asked to.
#[repr(C)]
#[derive(Default)]
struct Info {
    /// Type, id, tag, lengths and places of the code, time: not asked for.
    before: [u32; 13],
    map_count: u32,
    map_ids: u64,
}

/// What the call takes.
#[repr(C)]
struct Asked {
    descriptor: u32,
    length: u32,
    info: u64,
}

const _: () = assert!(size_of::<Info>() == 64 && size_of::<Asked>() == 16);

/// The ids of the maps of a loaded program.
///
/// # Errors
/// The kernel does not say.
pub(super) fn map_ids(program: impl AsFd) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; MOST];
    let mut info = Info { map_count: MOST as u32, map_ids: ids.as_mut_ptr() as u64, ..Info::default() };
    let mut asked = Asked {
        descriptor: program.as_fd().as_raw_fd() as u32,
        length: size_of::<Info>() as u32,
        info: &raw mut info as u64,
    };
    // SAFETY: the kernel writes at most `length` bytes to `info` and `map_count` numbers to `ids`, which live on.
    let said =
        unsafe { libc::syscall(libc::SYS_bpf, GET_INFO, &raw mut asked, size_of::<Asked>() as libc::c_uint) };
    if said != 0 {
        return Err(io::Error::last_os_error());
    }
    let count = MOST.min(info.map_count as usize);
    Ok(ids[..count].to_vec())
}
