//! What eBPF programs cost, and which are attached, as the kernel and bpftool tell it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::Deserialize;

use crate::require::tool;

/// `BPF_ENABLE_STATS` of `enum bpf_cmd`.
const ENABLE_STATS: libc::c_int = 32;
/// `BPF_STATS_RUN_TIME` of `enum bpf_stats_type`.
const RUN_TIME: u32 = 0;

/// While it lives, the kernel counts how often and how long each eBPF program runs. Unlike the sysctl
/// `kernel.bpf_stats_enabled` it undoes itself, even when its process is killed. Linux 5.8.
#[derive(Debug)]
pub struct BpfStats {
    _descriptor: OwnedFd,
}

/// A bpf file system of a lab's own: what is pinned in it ends with it, whoever pinned it. Mounted before its hosts'
/// processes start, so that all of them see the same.
#[derive(Debug)]
pub(crate) struct Pinned {
    path: PathBuf,
}

impl Pinned {
    /// Mounts one on a new directory.
    pub(crate) fn mount(path: PathBuf) -> Result<Pinned> {
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mounting a bpf file system on {}", path.display()))?;
        Ok(Pinned { path })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        unmount(&self.path);
    }
}

/// Where a lab mounts its own, below its directory.
pub(crate) const PINNED: &str = "bpf";

/// Unmounts one of a lab. What is gone already is fine.
pub(crate) fn unmount(path: &Path) {
    let _ = umount2(path, MntFlags::MNT_DETACH);
}

/// A program attached to a cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Attached {
    /// Its id, for [`run_time`].
    pub id: u32,
    /// Where it is attached, as the installed bpftool calls it: `cgroup_inet4_connect` or `connect4`.
    pub attach_type: String,
    /// Its name, cut to 15 characters by the kernel.
    pub name: String,
}

/// How often and how long a program ran while a [`BpfStats`] lived.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RunTime {
    /// Nanoseconds in all.
    pub run_time_ns: u64,
    /// Runs.
    pub run_cnt: u64,
}

impl BpfStats {
    /// Begins counting.
    pub fn enable() -> Result<BpfStats> {
        let attribute = RUN_TIME;
        // SAFETY: the attribute of this command is one u32, alive for the call, and its size is given.
        let descriptor = unsafe {
            libc::syscall(libc::SYS_bpf, ENABLE_STATS, &raw const attribute, size_of::<u32>() as libc::c_uint)
        };
        if descriptor < 0 {
            return Err(io::Error::last_os_error()).context("BPF_ENABLE_STATS (root, Linux 5.8)");
        }
        // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
        Ok(BpfStats { _descriptor: unsafe { OwnedFd::from_raw_fd(descriptor as i32) } })
    }
}

/// The programs attached to this very cgroup.
pub fn attached(cgroup: &Path) -> Result<Vec<Attached>> {
    // bpftool fails for a cgroup without programs when its output is a list: an empty text is none.
    let text = tool("bpftool", &["-j", "cgroup", "show", &cgroup.display().to_string()], "")?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(&text).with_context(|| format!("reading bpftool's {text}"))
}

/// The ids of all programs that the kernel has.
pub fn programs() -> Result<BTreeSet<u64>> {
    #[derive(Deserialize)]
    struct Program {
        id: u64,
    }
    let text = tool("bpftool", &["-j", "prog", "show"], "")?;
    let programs: Vec<Program> =
        serde_json::from_str(&text).with_context(|| format!("reading bpftool's {text}"))?;
    Ok(programs.into_iter().map(|program| program.id).collect())
}

/// How often and how long a program ran.
pub fn run_time(id: u32) -> Result<RunTime> {
    let text = tool("bpftool", &["-j", "prog", "show", "id", &id.to_string()], "")?;
    serde_json::from_str(&text).with_context(|| format!("reading bpftool's {text}"))
}
