//! A host: a network namespace, `/etc` files of its own, and a cgroup for captured processes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::bpf;
use crate::cgroup::Cgroup;
use crate::command::{Command, Place};
use crate::netns::Namespace;

/// The files that each host has of its own, laid over the machine's for its processes.
const FILES: [(&str, &str); 3] = [
    ("resolv.conf", ""),
    ("hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n"),
];

/// One host of the lab.
#[derive(Debug)]
pub struct Host {
    name: &'static str,
    // Dropped in this order: what is captured ends first.
    captured: Cgroup,
    netns: Namespace,
    directory: PathBuf,
}

impl Host {
    /// Makes the host with a directory of its own below `lab`.
    pub(crate) fn create(name: &'static str, label: &str, cgroup: &Cgroup, lab: &Path) -> Result<Host> {
        let directory = lab.join(name);
        let logs = directory.join("log");
        fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
        let host = Host {
            name,
            captured: cgroup.child(name)?,
            netns: Namespace::create(format!("{label}-{name}"))?,
            directory,
        };
        for (file, text) in FILES {
            host.write(file, text)?;
        }
        host.write("enter", &host.entry(""))?;
        host.write(
            "enter-captured",
            &host.entry(&format!("echo $$ > {}/cgroup.procs\n", host.captured.path().display())),
        )?;
        Ok(host)
    }

    /// A script for a person: `sh SCRIPT [COMMAND...]` runs a command, or a shell, on this host.
    pub fn enter(&self) -> PathBuf {
        self.directory.join("enter")
    }

    /// As [`Host::enter`], inside the captured cgroup.
    pub fn enter_captured(&self) -> PathBuf {
        self.directory.join("enter-captured")
    }

    /// Its name in the lab: `appliance`, `site` and so on.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Namespace {
        &self.netns
    }

    /// The cgroup of its captured processes: the one that steering is attached to.
    pub fn cgroup(&self) -> &Cgroup {
        &self.captured
    }

    /// A directory of its own, gone with the lab. Also the home of its processes.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where a daemon of this host keeps what outlives it in the kernel.
    pub fn pins(&self, daemon: &str) -> PathBuf {
        let lab = self.directory.parent().unwrap_or(&self.directory);
        lab.join(bpf::PINNED).join(format!("{}-{daemon}", self.name))
    }

    /// A command on this host, outside the captured cgroup.
    pub fn command(&self, program: &str) -> Command {
        self.uncaptured(Command::new(program))
    }

    /// Puts a command on this host, outside the captured cgroup.
    pub fn uncaptured(&self, command: Command) -> Command {
        command.placed(self.place(None))
    }

    /// Puts a command on this host, inside the captured cgroup.
    pub fn captured(&self, command: Command) -> Command {
        self.captured_in(&self.captured, command)
    }

    /// Puts a command on this host, inside a cgroup of the caller's choice.
    pub fn captured_in(&self, cgroup: &Cgroup, command: Command) -> Command {
        command.placed(self.place(Some(cgroup.path().to_owned())))
    }

    /// Runs `work` on a thread inside this host's network: sockets that it makes stay there.
    /// The resolver is *not* the host's: use addresses.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.netns.within(work)
    }

    /// Replaces `/etc/resolv.conf`; running processes see it too.
    pub fn set_resolv_conf(&self, text: &str) -> Result<()> {
        self.write("resolv.conf", text)
    }

    /// Replaces `/etc/hosts`; running processes see it too. Keep the lines for `localhost`.
    pub fn set_hosts(&self, text: &str) -> Result<()> {
        self.write("hosts", text)
    }

    /// Replaces `/etc/nsswitch.conf`'s line of hosts; running processes see it too.
    pub fn set_name_sources(&self, sources: &str) -> Result<()> {
        self.write("nsswitch.conf", &FILES[2].1.replace("files dns", sources))
    }

    /// The last lines that processes of this host printed, each with the file that has all of it.
    pub fn logs(&self) -> String {
        let mut files: Vec<PathBuf> =
            fs::read_dir(self.logs_directory()).into_iter().flatten().flatten().map(|e| e.path()).collect();
        files.sort();
        let mut all = String::new();
        for file in files {
            let text = String::from_utf8_lossy(&fs::read(&file).unwrap_or_default()).into_owned();
            if text.is_empty() {
                continue;
            }
            all.push_str(&format!("--- {}\n", file.display()));
            let skip = text.lines().count().saturating_sub(60);
            text.lines().skip(skip).for_each(|line| all.push_str(&format!("{line}\n")));
        }
        all
    }

    fn place(&self, cgroup: Option<PathBuf>) -> Place {
        Place {
            netns: Some(self.netns.path().to_owned()),
            hostname: Some(self.name),
            files: FILES
                .iter()
                .map(|(file, _)| (self.directory.join(file), Path::new("/etc").join(file)))
                .collect(),
            cgroup,
            logs: Some(self.logs_directory()),
            home: Some(self.directory.clone()),
        }
    }

    /// The text of a script that does what [`Command`] does for a process of the lab.
    fn entry(&self, first: &str) -> String {
        let files = FILES
            .map(|(file, _)| format!("mount --bind {}/{file} /etc/{file} && ", self.directory.display()));
        format!(
            "#!/bin/sh\n[ $# -gt 0 ] || set -- \"${{SHELL:-sh}}\"\n{first}\
             exec nsenter --net={} unshare --mount --uts sh -c \
             'echo {} > /proc/sys/kernel/hostname && {}exec \"$@\"' enter \"$@\"\n",
            self.netns.path().display(),
            self.name,
            files.concat()
        )
    }

    fn logs_directory(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// Writes into the file that is already laid over: replacing it would leave running processes
    /// with the old one.
    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.directory.join(file);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }
}
