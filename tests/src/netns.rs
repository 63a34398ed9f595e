//! A network namespace that ends with its owner.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::life::Life;
use crate::require::tool;

/// Where `ip netns` keeps its namespaces.
pub(crate) const DIRECTORY: &str = "/run/netns";

/// How long a process may take to die after SIGKILL.
const DEATH: Duration = Duration::from_secs(10);

/// A named network namespace. Dropping it kills the processes inside and removes it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    path: PathBuf,
}

impl Namespace {
    /// Makes the namespace, with loopback up and addresses usable at once.
    pub(crate) fn create(name: String) -> Result<Namespace> {
        tool("ip", &["netns", "add", &name], "")?;
        let namespace = Namespace { path: Path::new(DIRECTORY).join(&name), name };
        // Before any link exists: link-local addresses would otherwise wait a second for
        // duplicate address detection, and neighbour discovery with them.
        for scope in ["all", "default"] {
            namespace.sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
            namespace.sysctl(&format!("net/ipv6/conf/{scope}/accept_ra"), "0")?;
        }
        // A second refusal within a second is sent as the first one is: else whoever tries again waits for it.
        namespace.sysctl("net/ipv4/icmp_ratelimit", "0")?;
        namespace.sysctl("net/ipv6/icmp/ratelimit", "0")?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that `nsenter --net=` takes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` on a thread inside the namespace: sockets that it makes belong there for ever.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered. A panic of `work` is passed on.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(&self.path).with_context(|| format!("opening {}", self.path.display()))?;
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET)?;
                Ok::<T, Errno>(work())
            });
            match inside.join() {
                Ok(result) => result.with_context(|| format!("entering {}", self.name)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs lines of `ip` commands inside, for example `link set eth0 up`.
    pub fn ip(&self, batch: &str) -> Result<()> {
        tool("ip", &["-n", &self.name, "-batch", "-"], batch).map(drop)
    }

    /// Loads an nftables ruleset inside.
    pub fn nft(&self, rules: &str) -> Result<()> {
        self.within(|| tool("nft", &["-f", "-"], rules))?.map(drop)
    }

    /// Sets a sysctl of the namespace; `key` with slashes, as under `/proc/sys`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.within(|| fs::write(&path, value))?.with_context(|| format!("setting {key} in {}", self.name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Ends everything inside the namespace of this file and removes it. What is gone already is fine.
pub(crate) fn remove(path: &Path) {
    let mut dying = Vec::new();
    for pid in processes(path) {
        // Ignored, both: the process may have ended by itself.
        dying.extend(Life::of(pid.as_raw() as u32));
        let _ = kill(pid, Signal::SIGKILL);
    }
    for life in dying {
        if !life.ends_within(DEATH) {
            eprintln!("lab: a process in {} survives SIGKILL for {DEATH:?}", path.display());
        }
    }
    // Ignored: another sweep may have been faster; what remains shows in the next sweep.
    let _ = umount2(path, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(path);
}

/// The processes whose main thread is in the namespace of this file.
fn processes(path: &Path) -> Vec<Pid> {
    let Ok(own) = fs::metadata(path).map(|m| (m.dev(), m.ino())) else { return Vec::new() };
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|m| (m.dev(), m.ino()) == own))
        .map(Pid::from_raw)
        .collect()
}
