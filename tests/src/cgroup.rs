//! Child cgroups for captured processes.
//!
//! eBPF programs are attached to these and to nothing else. They live under the cgroup v2 mount that
//! `/proc/self/mountinfo` names: on a hybrid system that is not `/sys/fs/cgroup`.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long the processes of a cgroup may take to die after SIGKILL.
const DEATH: Duration = Duration::from_secs(10);

/// A cgroup v2 of the lab. Dropping it kills the processes inside and removes it and its children.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes a cgroup of this name right under the root of the v2 hierarchy.
    pub(crate) fn create(name: &str) -> Result<Cgroup> {
        Cgroup::make(root()?.join(name))
    }

    /// Makes a cgroup below this one.
    pub fn child(&self, name: &str) -> Result<Cgroup> {
        Cgroup::make(self.path.join(name))
    }

    /// Makes a cgroup beside this one.
    pub fn sibling(&self, name: &str) -> Result<Cgroup> {
        Cgroup::make(self.path.with_file_name(name))
    }

    /// Kills what is in it.
    pub(crate) fn empty(&self) -> Result<()> {
        empty(&self.path)
    }

    fn make(path: PathBuf) -> Result<Cgroup> {
        fs::create_dir(&path).with_context(|| format!("making the cgroup {}", path.display()))?;
        Ok(Cgroup { path })
    }

    /// Its directory: what `[steer] cgroups` and `bpftool cgroup tree` take.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The ids of the processes in it, those of its children not counted.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let list = fs::read_to_string(self.path.join("cgroup.procs"))
            .with_context(|| format!("reading {}", self.path.display()))?;
        Ok(list.lines().filter_map(|line| line.parse().ok()).collect())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("lab: {error:#}");
        }
    }
}

/// The mount point of the cgroup v2 hierarchy.
pub(crate) fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    v2_mount(&mounts)
        .context("no cgroup v2 hierarchy is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

/// Finds the first whole cgroup v2 hierarchy in the text of a mountinfo file.
fn v2_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (root == "/" && filesystem.starts_with("cgroup2 ")).then(|| PathBuf::from(point))
    })
}

/// Kills what is in a cgroup and below, then removes it. What is gone already is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let children = match fs::read_dir(path) {
        Ok(children) => children,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("listing {}", path.display())),
    };
    for child in children.flatten().filter(|c| c.file_type().is_ok_and(|t| t.is_dir())) {
        remove(&child.path())?;
    }
    empty(path)?;
    match fs::remove_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing the cgroup {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Kills every process of a cgroup and waits until the kernel calls it empty.
fn empty(path: &Path) -> Result<()> {
    let started = Instant::now();
    let Ok(events) = File::open(path.join("cgroup.events")) else { return Ok(()) };
    while is_populated(&events) {
        // cgroup.kill needs Linux 5.14; before it, one by one.
        if fs::write(path.join("cgroup.kill"), "1").is_err() {
            let list = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            for pid in list.lines().filter_map(|line| line.parse().ok()) {
                // Ignored: the process may have ended by itself.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        if started.elapsed() > DEATH {
            bail!("processes in {} survive SIGKILL for {DEATH:?}", path.display());
        }
        // The file wakes its pollers when it differs from what they last read from it.
        let mut changed = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
        match poll(&mut changed, PollTimeout::from(100u8)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).with_context(|| format!("polling {}", path.display())),
        }
    }
    Ok(())
}

fn is_populated(events: &File) -> bool {
    let mut text = [0; 64];
    let read = events.read_at(&mut text, 0).unwrap_or(0);
    text[..read].starts_with(b"populated 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_v2_mount_is_found_under_hybrid_and_unified_systems() {
        let hybrid = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(v2_mount(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let unified = "29 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(v2_mount(unified), Some(PathBuf::from("/sys/fs/cgroup")));
        let part = "29 22 0:26 /docker/1 /sys/fs/cgroup ro shared:4 - cgroup2 cgroup rw\n";
        assert_eq!(v2_mount(part), None);
    }
}
