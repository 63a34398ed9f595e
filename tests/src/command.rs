//! Commands of the lab: what to run, and on which host.
//!
//! A process is put on its host by the child itself between fork and exec: it enters the network
//! namespace, makes a private mount namespace where `/etc/resolv.conf` and its like are the host's
//! own, and joins a cgroup. `ip netns exec` would do much of this, but it mounts a new `/sys`, which
//! hides cgroupfs and bpffs.

use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::SigSet;
use nix::unistd::sethostname;

use crate::capture::{Capture, Stream};
use crate::process::Process;
use crate::require::missing;

/// How long [`Command::output`] waits when nothing else is said.
const DEADLINE: Duration = Duration::from_secs(60);

/// Where a process runs; nothing set: where the caller runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place {
    pub(crate) netns: Option<PathBuf>,
    /// What the machine is called there.
    pub(crate) hostname: Option<&'static str>,
    /// Files to lay over others: (the host's own, where programs look).
    pub(crate) files: Vec<(PathBuf, PathBuf)>,
    pub(crate) cgroup: Option<PathBuf>,
    pub(crate) logs: Option<PathBuf>,
    pub(crate) home: Option<PathBuf>,
}

/// A program to run. Its environment is empty but for what every program needs, so that a proxy
/// setting of the machine cannot make a test pass.
#[derive(Debug, Clone)]
#[must_use = "a command does nothing until output(), check() or spawn()"]
pub struct Command {
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    input: Vec<u8>,
    deadline: Duration,
    place: Place,
}

impl Command {
    /// A command for `program`, by name or path.
    pub fn new(program: impl AsRef<OsStr>) -> Command {
        Command {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            input: Vec::new(),
            deadline: DEADLINE,
            place: Place::default(),
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Command {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Command {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Command {
        self.env.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// What the program reads from its standard input; nothing unless set.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Command {
        self.input = bytes.into();
        self
    }

    /// How long [`Command::output`] and [`Command::check`] wait: 60 s unless set.
    pub fn deadline(mut self, deadline: Duration) -> Command {
        self.deadline = deadline;
        self
    }

    /// Keeps its output out of the host's logs: it is asked often, and the caller shows what matters of it.
    pub(crate) fn unlogged(mut self) -> Command {
        self.place.logs = None;
        self
    }

    /// Puts the command somewhere.
    pub(crate) fn placed(mut self, place: Place) -> Command {
        self.place = place;
        self
    }

    /// The command as a person types it into a shell, wherever that shell is.
    pub fn to_shell(&self) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
        let quoted = |text: &OsStr| match text.to_string_lossy() {
            text if !text.is_empty() && text.chars().all(plain) => text.into_owned(),
            text => format!("'{}'", text.replace('\'', r"'\''")),
        };
        let env = self.env.iter().map(|(key, value)| format!("{}={}", key.to_string_lossy(), quoted(value)));
        let words = std::iter::once(&self.program).chain(&self.args).map(|word| quoted(word));
        // `env`, because a script that enters a host takes a command, not an assignment.
        std::iter::once("env".to_owned()).chain(env).chain(words).collect::<Vec<_>>().join(" ")
    }

    /// Runs the program to its end.
    ///
    /// # Errors
    ///
    /// When it cannot start or passes its deadline; not when it ends with a failure.
    pub fn output(self) -> Result<Output> {
        let (deadline, title) = (self.deadline, self.to_string());
        let mut process = self.spawn()?;
        let status = process.wait(deadline)?;
        Ok(Output { title, status, stdout: process.stdout(), stderr: process.stderr() })
    }

    /// Runs the program to its end and returns its standard output.
    ///
    /// # Errors
    ///
    /// As [`Command::output`], and when the program ends with a failure.
    pub fn check(self) -> Result<String> {
        self.output()?.check()
    }

    /// Starts the program and lets it run until it is stopped or dropped.
    pub fn spawn(self) -> Result<Process> {
        static SEQUENCE: AtomicU32 = AtomicU32::new(0);
        let title = self.to_string();
        let name =
            Path::new(&self.program).file_name().unwrap_or(&self.program).to_string_lossy().into_owned();
        let log = self.place.logs.as_ref().map(|directory| {
            directory.join(format!("{:04}-{name}.log", SEQUENCE.fetch_add(1, Ordering::Relaxed)))
        });
        let capture = Capture::new(log)?;
        let mut command = self.prepare()?;
        let mut child = command.spawn().map_err(|error| match error.kind() {
            ErrorKind::NotFound => anyhow!("{}; {title}: {error}", missing(Path::new(&self.program))),
            _ => anyhow!(error).context(format!("starting {title}")),
        })?;
        if let Some(pipe) = child.stdout.take() {
            capture.follow(Stream::Stdout, pipe);
        }
        if let Some(pipe) = child.stderr.take() {
            capture.follow(Stream::Stderr, pipe);
        }
        if let Some(mut pipe) = child.stdin.take() {
            // On a thread: the program may print before it reads. A program that does not read is fine.
            thread::spawn(move || drop(pipe.write_all(&self.input)));
        }
        Process::new(title, child, capture)
    }

    /// The command as the standard library runs it, with all that the child does before exec.
    pub(crate) fn prepare(&self) -> Result<std::process::Command> {
        let mut command = std::process::Command::new(&self.program);
        command.args(&self.args).env_clear();
        command
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LANG", "C.UTF-8");
        for key in ["RUST_LOG", "RUST_BACKTRACE"] {
            command.envs(std::env::var_os(key).map(|value| (key, value)));
        }
        if let Some(home) = &self.place.home {
            command.env("HOME", home).env("TMPDIR", home).current_dir(home);
        }
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        command.stdin(if self.input.is_empty() { Stdio::null() } else { Stdio::piped() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);

        let netns = match &self.place.netns {
            Some(path) => Some(File::open(path).with_context(|| format!("opening {}", path.display()))?),
            None => None,
        };
        let cgroup = match &self.place.cgroup {
            Some(path) => {
                let file = OpenOptions::new().write(true).open(path.join("cgroup.procs"));
                Some(file.with_context(|| format!("opening the cgroup {}", path.display()))?)
            }
            None => None,
        };
        let mut files = Vec::new();
        for (own, target) in &self.place.files {
            if !target.exists() {
                bail!("{} does not exist: the lab lays its own file over it, so touch it", target.display());
            }
            files.push((
                CString::new(own.as_os_str().as_bytes())?,
                CString::new(target.as_os_str().as_bytes())?,
            ));
        }
        let hostname = self.place.hostname;
        // SAFETY: between fork and exec the closure makes system calls only: it allocates nothing and
        // takes no lock, for all paths and descriptors are ready before.
        unsafe { command.pre_exec(move || enter(netns.as_ref(), hostname, &files, cgroup.as_ref())) };
        Ok(command)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Path::new(&self.program).display())?;
        for arg in &self.args {
            write!(f, " {}", arg.to_string_lossy())?;
        }
        match &self.place.netns {
            Some(netns) => write!(f, " [{}]", netns.file_name().unwrap_or_default().to_string_lossy()),
            None => Ok(()),
        }
    }
}

/// Puts the calling process in its place. System calls only: it runs between fork and exec.
fn enter(
    netns: Option<&File>,
    hostname: Option<&str>,
    files: &[(CString, CString)],
    cgroup: Option<&File>,
) -> io::Result<()> {
    // The caller may have blocked signals to wait for them; a child that inherits this hears no SIGTERM.
    SigSet::empty().thread_set_mask()?;
    if let Some(netns) = netns {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
    }
    if let Some(hostname) = hostname {
        unshare(CloneFlags::CLONE_NEWUTS)?;
        sethostname(hostname)?;
    }
    if !files.is_empty() {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let nothing = None::<&OsStr>;
        // A slave, not private: what is mounted here stays here, and what is unmounted outside, the
        // namespaces of other labs above all, is not kept alive here.
        mount(nothing, c"/", nothing, MsFlags::MS_REC | MsFlags::MS_SLAVE, nothing)?;
        for (own, target) in files {
            mount(Some(own.as_c_str()), target.as_c_str(), nothing, MsFlags::MS_BIND, nothing)?;
        }
    }
    if let Some(mut cgroup) = cgroup {
        cgroup.write_all(b"0")?;
    }
    Ok(())
}

/// What a program that has ended left.
#[derive(Debug, Clone)]
pub struct Output {
    title: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// The standard output, or an error with everything when the program failed.
    pub fn check(self) -> Result<String> {
        if self.status.success() { Ok(self.stdout) } else { bail!("{self}") }
    }

    /// The standard output as JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("no JSON from {self}"))
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Output { title, status, stdout, stderr } = self;
        write!(f, "{title}: {status}\nstdout: {stdout}\nstderr: {stderr}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_runs_what_the_lab_runs() -> Result<()> {
        let command = Command::new("printenv").arg("NAME").env("NAME", "a & <more>; it's $(false)");
        let typed = command.to_shell();
        assert_eq!(command.check()?, Command::new("sh").args(["-c", &typed]).check()?, "{typed}");
        let words = Command::new("printf").args(["%s|", "a b", "", "it's", "$HOME"]);
        assert_eq!(Command::new("sh").args(["-c", &words.to_shell()]).check()?, "a b||it's|$HOME|");
        Ok(())
    }
}
