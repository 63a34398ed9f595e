//! The old process's side of a reload: a new process takes over, with whatever configuration and program are there now.
//!
//! ```text
//! old                         new
//!  | starts it                 |
//!  |                           | reads configuration, certificates
//!  |<------------- Prepared ---|
//!  | stands still              |
//!  |--- sockets and locks ---->|
//!  |                           | starts all roles, accepts nothing
//!  |<---------------- Ready ---|
//!  |--- Go ------------------->|
//!  |<-------------- Serving ---| accepts
//!  | ends its streams          |
//! ```
//!
//! What must hold: whatever happens to the new process before it serves, the old one goes on as before; who connects
//! meanwhile waits in the kernel's queues; whoever serves last is the one that the service manager watches.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::channel::{Channel, Message, VARIABLE};
use super::news::Beginning;
use crate::notify;
use crate::sockets::Named;

/// How long the new process may take to read its configuration and to load its programs.
const PREPARE: Duration = Duration::from_secs(30);
/// How long it may take to start its roles, while the old one stands still.
const START: Duration = Duration::from_secs(10);
/// How long it may take from there until it serves.
const SERVE: Duration = Duration::from_secs(3);

/// How this process was started, so that the next one is started alike.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// The program's path, where an upgrade puts the new one.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// What it has read.
    pub beginning: Option<Arc<Beginning>>,
}

impl Invocation {
    /// Of this process. Call it at the start: after an upgrade the system knows no path any more.
    ///
    /// # Errors
    /// The system does not say.
    pub fn of_this_process() -> io::Result<Invocation> {
        let arguments = std::env::args_os().skip(1).collect();
        Ok(Invocation { program: std::env::current_exe()?, arguments, beginning: None })
    }

    /// Of a process that has begun with this.
    pub fn beginning(self, beginning: Beginning) -> Invocation {
        Invocation { beginning: Some(Arc::new(beginning)), ..self }
    }

    /// Starts a process that is nobody's child but the service manager's, who could not supervise it otherwise.
    fn start(&self) -> io::Result<Channel> {
        let (ours, theirs) = Channel::pair()?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null());
        for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        let descriptor = theirs.as_fd().as_raw_fd();
        command.env(VARIABLE, descriptor.to_string());
        // Signals for the old process's group are not for the new one.
        command.process_group(0);
        // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                if libc::fcntl(descriptor, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                match libc::fork() {
                    0 => Ok(()),
                    1.. => libc::_exit(0),
                    _ => Err(io::Error::last_os_error()),
                }
            });
        }
        command.spawn()?.wait()?;
        Ok(ours)
    }
}

/// What stands still, and goes on.
pub(super) trait Standing {
    /// Stands still; the answer is what is handed on, and whether steering is off.
    fn pause(&self) -> impl Future<Output = Result<(Vec<Named>, bool), String>> + Send;
    /// Goes on as before.
    fn resume(&self) -> impl Future<Output = ()> + Send;
}

/// A new process that has not served yet: dropping it ends it.
struct Successor {
    life: Option<Life>,
    channel: Arc<Channel>,
}

/// A process, whoever gets its id when it has ended.
struct Life {
    pid: u32,
    descriptor: OwnedFd,
}

impl Life {
    fn of(pid: u32) -> io::Result<Life> {
        // SAFETY: pidfd_open takes a process id and flags, and touches no memory of ours.
        let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(Life { pid, descriptor: unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) } })
    }

    fn kill(&self) {
        let nothing = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is open, and no information goes with the signal. That it has ended is no error.
        unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.descriptor.as_raw_fd(), libc::SIGKILL, nothing, 0)
        };
        // What it holds is let go when it has ended.
        let mut ended = [PollFd::new(self.descriptor.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut ended, PollTimeout::from(5000u16));
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if let Some(life) = self.life.take() {
            life.kill();
        }
        // One that has not said who it is ends by this.
        self.channel.end();
    }
}

impl Successor {
    /// Waits for what it says, off the runtime's threads.
    async fn says(
        &self,
        wanted: impl Fn(&Message) -> bool,
        within: Duration,
        doing: &str,
    ) -> Result<Message, String> {
        let channel = self.channel.clone();
        let received = tokio::task::spawn_blocking(move || channel.receive(within)).await;
        match received.map_err(io::Error::other).flatten() {
            Ok((said, _)) if wanted(&said) => Ok(said),
            Ok((Message::Failed(why), _)) => Err(why),
            Ok((other, _)) => Err(format!("the new process said {other:?} while {doing}")),
            Err(error) => Err(match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    format!("the new process ended while {doing}; its log says why")
                }
                io::ErrorKind::WouldBlock => {
                    format!("the new process did not come to an end of {doing} within {within:?}")
                }
                _ => format!("the new process can't be heard while {doing}: {error}"),
            }),
        }
    }
}

/// Has a new process take over; returns its id once it serves. When `stop` comes to its end before that, the new process is
/// ended.
///
/// # Errors
/// Why not; then all is as before.
pub(super) async fn replace(
    invocation: &Invocation,
    standing: &impl Standing,
    stop: impl Future<Output = ()>,
) -> Result<u32, String> {
    let stopped = async {
        stop.await;
        "this one was asked to stop".to_owned()
    };
    tokio::pin!(stopped);
    let starting = |error| format!("{} can't be started: {error}", invocation.program.display());
    let channel = invocation.start().map_err(starting)?;
    let mut successor = Successor { life: None, channel: channel.into() };
    let prepared = |said: &Message| matches!(said, Message::Prepared { .. });
    let said = tokio::select! {
        said = successor.says(prepared, PREPARE, "reading its configuration") => said,
        why = &mut stopped => Err(why),
    };
    let Message::Prepared { pid } = said? else {
        return Err("the new process does not say who it is".to_owned());
    };
    successor.life = Some(Life::of(pid).map_err(|error| format!("the new process {pid}: {error}"))?);
    tracing::info!(pid, "a new process takes over");
    // It is waited for, whatever happens: what has begun to stand still must have come to it before it goes on.
    let taken = match standing.pause().await {
        Ok(handed_on) => tokio::select! {
            biased;
            taken = take_over(&successor, handed_on) => taken,
            why = &mut stopped => Err(why),
        },
        Err(why) => Err(why),
    };
    if let Err(why) = taken {
        // Before the other one ends: to the manager it may be the main process already.
        notify::main_process(std::process::id());
        drop(successor);
        standing.resume().await;
        return Err(why);
    }
    // It is not ours to end any more.
    drop(successor.life.take());
    Ok(pid)
}

async fn take_over(successor: &Successor, (all, off): (Vec<Named>, bool)) -> Result<(), String> {
    let gone = |error: io::Error| format!("the new process does not take over: {error}");
    let channel = &successor.channel;
    channel.send_all(&all).map_err(gone)?;
    drop(all);
    channel.send(&Message::TakeOver { off }, &[]).map_err(gone)?;
    successor.says(|said| *said == Message::Ready, START, "starting its roles").await?;
    // Before it serves: from then on it tells the manager of its sockets, and must be known there.
    if let Some(life) = &successor.life {
        notify::main_process(life.pid);
    }
    channel.send(&Message::Go, &[]).map_err(gone)?;
    successor.says(|said| *said == Message::Serving, SERVE, "beginning to serve").await.map(drop)
}
