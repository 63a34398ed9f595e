//! Running processes: watched by what they print, and never left behind.

use std::fmt;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::capture::{Capture, Stream};
use crate::life::Life;

/// How long a process may take to end after SIGTERM before it is killed on drop.
const GRACE: Duration = Duration::from_secs(5);
/// How much of a log goes into an error message.
const TAIL: usize = 40;

/// A running program. Dropping it ends it and all that it started in its process group.
pub struct Process {
    title: String,
    child: Child,
    life: Life,
    capture: Arc<Capture>,
    status: Option<ExitStatus>,
}

impl Process {
    /// Takes over a child that leads a process group of its own.
    pub(crate) fn new(title: String, mut child: Child, capture: Arc<Capture>) -> Result<Process> {
        match Life::of(child.id()) {
            Ok(life) => Ok(Process { title, child, life, capture, status: None }),
            Err(error) => {
                child.kill().and_then(|()| child.wait()).context("ending a process without pidfd")?;
                Err(error).context("pidfd_open needs Linux 5.3")
            }
        }
    }

    /// Its process id, also the id of its process group.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed on standard output so far.
    pub fn stdout(&self) -> String {
        self.capture.text(Stream::Stdout)
    }

    /// What it has printed on standard error so far.
    pub fn stderr(&self) -> String {
        self.capture.text(Stream::Stderr)
    }

    /// The file that holds both outputs.
    pub fn log(&self) -> Option<&Path> {
        self.capture.path()
    }

    /// Waits for a line that contains `text`, on either output, printed before or after this call.
    ///
    /// # Errors
    ///
    /// When none comes in time, or the program ends without one.
    pub fn wait_for_line(&self, text: &str, within: Duration) -> Result<String> {
        self.wait_for(text, within, |line| line.contains(text))
    }

    /// As [`Process::wait_for_line`], for a line that `wanted` accepts; `what` names it in the error.
    pub fn wait_for(&self, what: &str, within: Duration, wanted: impl FnMut(&str) -> bool) -> Result<String> {
        self.capture.line(within, wanted).ok_or_else(|| {
            anyhow!("{} printed no line '{what}' within {within:?}:{}", self.title, self.capture.tail(TAIL))
        })
    }

    /// Whether it has not ended yet.
    pub fn is_running(&self) -> bool {
        self.status.is_none() && !self.life.ends_within(Duration::ZERO)
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.status.is_some() {
            bail!("{} has ended already", self.title);
        }
        kill(self.group(), signal).with_context(|| format!("sending {signal} to {}", self.title))
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// When the time is over first; the process runs on then.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        if !self.life.ends_within(within) {
            bail!("{} did not end within {within:?}:{}", self.title, self.capture.tail(TAIL));
        }
        self.reap()
    }

    /// Asks it to end with SIGTERM and waits.
    pub fn stop(&mut self, within: Duration) -> Result<ExitStatus> {
        if self.is_running() {
            self.signal(Signal::SIGTERM)?;
        }
        self.wait(within)
    }

    /// Ends it at once, as a crash would, with all of its process group.
    pub fn kill9(&mut self) -> Result<()> {
        if self.status.is_none() {
            killpg(self.group(), Signal::SIGKILL).with_context(|| format!("killing {}", self.title))?;
            self.wait(GRACE)?;
        }
        Ok(())
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Ends what is left of the group, collects the status, and waits for the last output.
    fn reap(&mut self) -> Result<ExitStatus> {
        // Before wait(): until then the group's id cannot be given to anybody else. ESRCH is the rule.
        let _ = killpg(self.group(), Signal::SIGKILL);
        let status = self.child.wait().with_context(|| format!("waiting for {}", self.title))?;
        self.status = Some(status);
        if !self.capture.ended(GRACE) {
            bail!("something that {} started holds its output open", self.title);
        }
        Ok(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status.is_some() {
            return;
        }
        // Nothing here may panic, and the process must go: errors of the polite way lead to the other.
        if self.stop(GRACE).is_err() && self.status.is_none() {
            let _ = killpg(self.group(), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.title, self.pid())
    }
}
