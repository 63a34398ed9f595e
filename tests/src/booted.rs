//! A host of the lab that is booted: systemd, its journal and its packages, in the host's network.
//!
//! systemd-nspawn runs it. What must hold: all of its processes are in cgroups of the lab, whatever it writes is in memory above
//! the system that it was booted from, and all ends with it.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::cgroup::{self, Cgroup};
use crate::command::{Command, Place};
use crate::host::Host;
use crate::process::Process;

/// How long a boot may take.
const BOOT: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// The v1 hierarchy in which systemd names groups, on hybrid systems: nspawn makes the same there.
const NAMED: &str = "/sys/fs/cgroup/systemd";

/// A booted host. Dropping it stops it.
pub struct Booted {
    // Dropped in this order: the machine, then its cgroups.
    process: Process,
    leader: u32,
    cgroup: Cgroup,
    _mirror: Mirror,
}

/// What nspawn makes in [`NAMED`] for a cgroup, from the hierarchy's top on. Removed with all that is below.
struct Mirror(PathBuf);

impl Mirror {
    fn of(cgroup: &Cgroup) -> Result<Mirror> {
        let below = cgroup.path().strip_prefix(cgroup::root()?).context("a cgroup outside of all")?;
        Ok(Mirror(Path::new(NAMED).join(below)))
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        if let Err(error) = cgroup::remove(&self.0) {
            eprintln!("lab: {error:#}");
        }
        // Another machine of this lab may be in those above.
        for above in self.0.ancestors().skip(1).take_while(|above| *above != Path::new(NAMED)) {
            let _ = fs::remove_dir(above);
        }
    }
}

impl Host {
    /// Boots the Debian in `system`, which stays as it is; `shown` are files and directories that it sees in /opt/lab.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn boot(&self, system: &Path, shown: &[&Path]) -> Result<Booted> {
        let cgroup = self.cgroup().child("booted")?;
        let mirror = Mirror::of(&cgroup)?;
        let label = self.netns().name();
        let notify = self.directory().join("booted-notify");
        let listener = UnixDatagram::bind(&notify).context("listening for the machine")?;
        listener.set_read_timeout(Some(BOOT))?;
        let mut nspawn = Command::new("systemd-nspawn")
            .args([
                "--quiet",
                "--boot",
                "--register=no",
                "--keep-unit",
                "--console=pipe",
                "--notify-ready=yes",
                "--resolv-conf=off",
            ])
            .args(["--volatile=overlay", "--capability=all", "--system-call-filter=bpf perf_event_open"])
            .arg(format!("--machine={label}"))
            .arg(format!("--hostname={}", self.name()))
            .arg(format!("--network-namespace-path={}", self.netns().path().display()))
            .arg(format!("--directory={}", system.display()))
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
            .env("NOTIFY_SOCKET", &notify);
        for path in shown {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            nspawn = nspawn.arg(format!("--bind-ro={}:/opt/lab/{name}", path.display()));
        }
        let place = Place {
            cgroup: Some(cgroup.path().to_owned()),
            logs: Some(self.directory().join("log")),
            ..Place::default()
        };
        let process = nspawn.placed(place).spawn()?;
        let leader =
            leader(&listener).with_context(|| format!("{} does not boot: {}", label, process.stderr()))?;
        let booted = Booted { process, leader, cgroup, _mirror: mirror };
        let resolv = fs::read(self.directory().join("resolv.conf")).context("the host has no resolv.conf")?;
        fs::write(booted.path("/etc/resolv.conf"), resolv).context("writing resolv.conf")?;
        // As systemd does where it runs by itself. nspawn may give a part of /sys only.
        let mount = "[ -d /sys/fs/bpf ] || { mount -o remount,rw /sys && mkdir /sys/fs/bpf; } && \
                     mount -t bpf -o mode=700 bpf /sys/fs/bpf";
        booted.command("sh").args(["-c", mount]).check()?;
        Ok(booted)
    }
}

/// Waits until the machine has booted; the id of its first process.
fn leader(listener: &UnixDatagram) -> Result<u32> {
    let (mut leader, mut ready) = (None, false);
    while leader.is_none() || !ready {
        let mut text = [0; 4096];
        let length = listener.recv(&mut text).context("it does not say that it is ready")?;
        for line in String::from_utf8_lossy(&text[..length]).lines() {
            match line.split_once('=') {
                Some(("X_NSPAWN_LEADER_PID", pid)) => leader = Some(pid.parse()?),
                Some(("READY", "1")) => ready = true,
                _ => {}
            }
        }
    }
    leader.context("it has no first process")
}

impl Booted {
    /// A command inside, outside of all slices.
    pub fn command(&self, program: &str) -> Command {
        let command = Command::new("nsenter").args(["--target", &self.leader.to_string(), "--all", "--"]);
        command.arg(program).env("DEBIAN_FRONTEND", "noninteractive").placed(Place {
            cgroup: Some(self.cgroup.path().join("payload/init.scope")).filter(|path| path.exists()),
            ..Place::default()
        })
    }

    /// A command inside, as a unit of this name in a slice.
    pub fn in_slice(&self, slice: &str, unit: &str) -> Command {
        self.command("systemd-run").args(["--quiet", "--pipe", "--wait", "--collect"]).args([
            format!("--slice={slice}"),
            format!("--unit={unit}"),
            "--".into(),
        ])
    }

    /// Where a file of its own is, seen from here.
    pub fn path(&self, path: &str) -> PathBuf {
        Path::new("/proc").join(self.leader.to_string()).join("root").join(path.trim_start_matches('/'))
    }

    /// Where one of its cgroups is, seen from here.
    pub fn cgroup(&self, name: &str) -> PathBuf {
        self.cgroup.path().join("payload").join(name)
    }

    /// A property of a unit, as `systemctl show` has it.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        let said = self.command("systemctl").args(["show", unit, "--value", "--property", name]).check()?;
        Ok(said.trim().to_owned())
    }

    /// Waits until `wanted` is true.
    ///
    /// # Errors
    /// With its journal, when the time is over first.
    pub fn wait(
        &self,
        what: &str,
        within: Duration,
        mut wanted: impl FnMut() -> Result<bool>,
    ) -> Result<Duration> {
        let started = Instant::now();
        while !wanted()? {
            ensure!(started.elapsed() < within, "not {what} within {within:?}:\n{}", self.journal());
            thread::sleep(LOOK);
        }
        Ok(started.elapsed())
    }

    /// The last lines of the daemon's journal.
    pub fn journal(&self) -> String {
        let journal = self.command("journalctl").args(["--no-pager", "--lines=60", "--unit=dworker"]).check();
        journal.unwrap_or_else(|error| format!("no journal: {error:#}"))
    }

    /// Kills a process of the machine, as it is numbered inside.
    pub fn kill9(&self, pid: &str) -> Result<()> {
        self.command("sh").args(["-c", "kill -9 \"$1\"", "sh", pid]).check().map(drop)
    }

    /// Stops it, in order.
    pub fn stop(mut self) -> Result<()> {
        // nspawn hands it on, and systemd stops its units.
        match self.process.stop(BOOT)?.success() {
            true => Ok(()),
            false => bail!("the machine did not stop in order: {}", self.process.stderr()),
        }
    }
}
