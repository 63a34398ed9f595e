//! A service manager for one daemon, small and strict: it hears what `sd_notify` says, keeps the sockets that it is
//! given, starts the daemon with them, and starts it again when it dies. It stands for systemd, which the lab's hosts
//! do not have.

use std::collections::VecDeque;
use std::fs;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::cmsg_space;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

use crate::capture::{Capture, Stream};
use crate::cgroup::Cgroup;
use crate::command::{Command, Output};
use crate::config::Config;
use crate::daemon::binary;
use crate::host::Host;
use crate::life::Life;

/// How long a daemon may take until it is ready, and to end.
const SOON: Duration = Duration::from_secs(30);
/// How often it is looked whether the daemon lives: no more than what a restart is later.
const LOOK: Duration = Duration::from_millis(20);
/// The daemon's sockets are put from here on before it is started, out of the way of where they belong.
const ASIDE: RawFd = 400;

/// A daemon under a service manager. Dropping it ends both.
pub struct Service {
    shared: Arc<Shared>,
    program: PathBuf,
    socket: PathBuf,
    ask: Command,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    capture: Arc<Capture>,
    run: Command,
    notify: PathBuf,
    /// All of its processes: those that are left when the main one dies end with it.
    cgroup: Cgroup,
}

#[derive(Default)]
struct State {
    main: Option<u32>,
    /// All that have been the main process, and their lives.
    lives: Vec<(u32, Life)>,
    ready: usize,
    starts: usize,
    /// When the last start was.
    started: Option<Instant>,
    store: VecDeque<(String, OwnedFd)>,
    restarts: bool,
    ends: bool,
}

impl Host {
    /// A daemon under a service manager, ready. `name` is free, one per host.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn service(&self, name: &str, config: Config) -> Result<Service> {
        // Who is started by the daemon becomes ours when the daemon ends, as it would become the manager's.
        // SAFETY: the call changes an attribute of this process and touches no memory.
        if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } != 0 {
            bail!("becoming who adopts orphans: {}", std::io::Error::last_os_error());
        }
        let file = self.configure(name, config)?;
        let place = self.directory().join(format!("{name}-program"));
        fs::create_dir(&place)?;
        let program = place.join("dworker");
        fs::copy(binary("dworker")?, &program).context("copying the program")?;
        let notify = self.directory().join(format!("{name}-notify"));
        let listener = UnixDatagram::bind(&notify).context("listening for notifications")?;
        listener.set_read_timeout(Some(LOOK))?;
        // The shell's id is the program's.
        let script = "[ \"$LISTEN_FDS\" = 0 ] || export LISTEN_PID=$$; exec \"$@\"";
        let run = Command::new("sh").args(["-c", script, "sh"]).arg(&program).args(["run", "--config"]);
        let cgroup = self.cgroup().sibling(&format!("{}-{name}", self.name()))?;
        let run = self.captured_in(&cgroup, run.arg(&file));
        let capture = Capture::new(Some(self.directory().join(format!("log/service-{name}.log"))))?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State { restarts: true, ..State::default() }),
            changed: Condvar::new(),
            capture,
            run,
            notify,
            cgroup,
        });
        shared.start()?;
        let (heard, watched) = (shared.clone(), shared.clone());
        let threads =
            vec![thread::spawn(move || heard.hear(&listener)), thread::spawn(move || watched.watch())];
        let socket = self.socket(name);
        let ask = self.dworker(["status", "--socket"])?.arg(&socket).arg("-j").unlogged();
        let service = Service { shared, program, socket, ask, threads };
        service.wait_until_ready(1)?;
        Ok(service)
    }
}

impl Service {
    /// The id of the main process.
    pub fn pid(&self) -> Result<u32> {
        self.shared.lock().main.context("no process is there")
    }

    /// The program that it runs.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// How many processes were started by the manager.
    pub fn starts(&self) -> usize {
        self.shared.lock().starts
    }

    /// When the last one was.
    pub fn started(&self) -> Option<Instant> {
        self.shared.lock().started
    }

    /// What is kept for the next start, by name.
    pub fn stored(&self) -> Vec<String> {
        self.shared.lock().store.iter().map(|(name, _)| name.clone()).collect()
    }

    /// How often a process has said that it is ready.
    pub fn ready(&self) -> usize {
        self.shared.lock().ready
    }

    /// Waits until a process has said so, so often in all.
    pub fn wait_until_ready(&self, times: usize) -> Result<()> {
        self.shared.wait(&format!("ready {times} times"), |state| state.ready >= times)
    }

    /// Whether a process that was the main one lives yet.
    pub fn is_alive(&self, pid: u32) -> bool {
        let state = self.shared.lock();
        state.lives.iter().any(|(known, life)| *known == pid && !life.ends_within(Duration::ZERO))
    }

    /// Waits until a process that was the main one has ended.
    pub fn wait_for_end(&self, pid: u32) -> Result<()> {
        let deadline = Instant::now() + SOON;
        while self.is_alive(pid) {
            if Instant::now() > deadline {
                bail!("{pid} does not end:\n{}", self.log());
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// SIGKILL for the main process; the manager starts it again.
    pub fn kill9(&self) -> Result<()> {
        self.signal(self.pid()?, Signal::SIGKILL)
    }

    /// Sends a signal to a process that is, or was, the main one.
    pub fn signal(&self, pid: u32, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(pid as i32), signal).with_context(|| format!("sending {signal} to {pid}"))
    }

    /// From now on a process that dies is, or is not, started again.
    pub fn set_restarts(&self, restarts: bool) {
        self.shared.lock().restarts = restarts;
    }

    /// `dworker reload`.
    pub fn reload(&self, host: &Host) -> Result<Output> {
        host.dworker(["reload", "--socket"])?.arg(&self.socket).output()
    }

    /// `dworker status -j`.
    pub fn status(&self) -> Result<Value> {
        let output = self.ask.clone().output()?;
        if !output.status.success() {
            bail!("{output}");
        }
        output.json()
    }

    /// Asks for the status until it is as `wanted`.
    pub fn wait_for_status(&self, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + SOON;
        loop {
            let status = self.status();
            match status {
                Ok(status) if wanted(&status) => return Ok(status),
                status if Instant::now() > deadline => {
                    bail!("no status with {what}: {status:?}\n{}", self.log())
                }
                _ => {}
            }
        }
    }

    /// Waits for a line of its log, whichever process printed it, before or after this call.
    pub fn wait_for_line(&self, text: &str) -> Result<String> {
        let line = self.shared.capture.line(SOON, |line| line.contains(text));
        line.with_context(|| format!("no line '{text}':\n{}", self.log()))
    }

    /// All that its processes have printed.
    pub fn log(&self) -> String {
        self.shared.capture.text(Stream::Stderr)
    }

    /// SIGTERM, and its end.
    pub fn stop(&self) -> Result<()> {
        self.set_restarts(false);
        let pid = self.pid()?;
        self.signal(pid, Signal::SIGTERM)?;
        self.wait_for_end(pid)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, what: &str, wanted: impl Fn(&State) -> bool) -> Result<()> {
        let waited = self.changed.wait_timeout_while(self.lock(), SOON, |state| !wanted(state));
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        drop(state);
        if timeout.timed_out() {
            bail!("the service is not {what}:\n{}", self.capture.text(Stream::Stderr));
        }
        Ok(())
    }

    /// Starts the daemon with what is stored.
    fn start(&self) -> Result<()> {
        let mut state = self.lock();
        let mut aside = Vec::new();
        for (_, socket) in &state.store {
            aside.push(fcntl(socket.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(ASIDE))?);
        }
        let names: Vec<&str> = state.store.iter().map(|(name, _)| name.as_str()).collect();
        let run = self.run.clone().env("NOTIFY_SOCKET", &self.notify).env("WATCHDOG_USEC", "30000000");
        let run = run.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        let mut command = run.prepare()?;
        command.stdin(Stdio::null());
        let passed = aside.clone();
        // SAFETY: between fork and exec system calls are made, and nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                for (descriptor, wanted) in passed.iter().zip(3..) {
                    if libc::dup2(*descriptor, wanted) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let spawned = command.spawn().context("starting the daemon");
        for descriptor in aside {
            // SAFETY: it was made above, and nobody else has it.
            drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
        let mut child = spawned?;
        if let Some(pipe) = child.stdout.take() {
            self.capture.follow(Stream::Stdout, pipe);
        }
        if let Some(pipe) = child.stderr.take() {
            self.capture.follow(Stream::Stderr, pipe);
        }
        let pid = child.id();
        state.lives.push((pid, Life::of(pid)?));
        state.main = Some(pid);
        state.starts += 1;
        state.started = Some(Instant::now());
        self.changed.notify_all();
        Ok(())
    }

    /// Hears what the daemon says.
    fn hear(&self, listener: &UnixDatagram) {
        while !self.lock().ends {
            let mut text = [0; 4096];
            let mut space = cmsg_space!([RawFd; 16]);
            let mut parts = [IoSliceMut::new(&mut text)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let received = recvmsg::<()>(listener.as_raw_fd(), &mut parts, Some(&mut space), flags);
            let Ok(received) = received else { continue };
            let mut sockets = Vec::new();
            for control in received.cmsgs().into_iter().flatten() {
                if let ControlMessageOwned::ScmRights(raw) = control {
                    // SAFETY: the kernel has just made these descriptors for us.
                    sockets.extend(raw.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
                }
            }
            let length = received.bytes;
            let text = String::from_utf8_lossy(&text[..length]).into_owned();
            self.heard(&text, sockets);
        }
    }

    fn heard(&self, text: &str, sockets: Vec<OwnedFd>) {
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned);
        let mut state = self.lock();
        if let Some(pid) = value("MAINPID=").and_then(|pid| pid.parse().ok()) {
            if let Ok(life) = Life::of(pid) {
                state.lives.push((pid, life));
            }
            state.main = Some(pid);
        }
        let name = value("FDNAME=").unwrap_or_default();
        if value("FDSTORE=1").is_some() {
            for socket in sockets {
                let known = state.store.iter().any(|(_, known)| inode(known) == inode(&socket));
                if !known {
                    state.store.push_back((name.clone(), socket));
                }
            }
        }
        if value("FDSTOREREMOVE=1").is_some() {
            state.store.retain(|(known, _)| *known != name);
        }
        if value("READY=1").is_some() {
            state.ready += 1;
        }
        self.changed.notify_all();
    }

    /// Starts the daemon again when it has died.
    fn watch(&self) {
        loop {
            let (died, restarts) = {
                let state = self.lock();
                if state.ends {
                    return;
                }
                let main = state.main;
                let ended = |pid: u32| {
                    state.lives.iter().any(|(known, life)| *known == pid && life.ends_within(Duration::ZERO))
                };
                (main.filter(|pid| ended(*pid)), state.restarts)
            };
            match died {
                Some(pid) => {
                    // Reaped, as a manager does it; a process that is another's child is that one's to reap.
                    let _ = waitpid(Pid::from_raw(pid as i32), Some(WaitPidFlag::WNOHANG));
                    self.lock().main = None;
                    if let Err(error) = self.cgroup.empty() {
                        eprintln!("lab: {error:#}");
                    }
                    if restarts && let Err(error) = self.start() {
                        eprintln!("lab: {error:#}");
                    }
                }
                None => thread::sleep(LOOK),
            }
        }
    }
}

fn inode(socket: &OwnedFd) -> Option<u64> {
    Some(nix::sys::stat::fstat(socket).ok()?.st_ino)
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shared.lock().ends = true;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let state = self.shared.lock();
        for (pid, life) in &state.lives {
            if !life.ends_within(Duration::ZERO) {
                let _ = kill(Pid::from_raw(*pid as i32), Signal::SIGKILL);
                life.ends_within(SOON);
            }
            let _ = waitpid(Pid::from_raw(*pid as i32), Some(WaitPidFlag::WNOHANG));
        }
    }
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("program", &self.program).finish_non_exhaustive()
    }
}
