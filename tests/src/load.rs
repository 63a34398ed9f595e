//! New connections at an even rate, of the kinds that a loss of their carrier treats differently.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::command::Command;
use crate::host::Host;
use crate::process::Process;
use crate::traffic::tool;

/// How long those may take that are open when a load is to end.
const END: Duration = Duration::from_secs(60);

/// How a connection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// The client asks at once, in no protocol that anybody knows.
    Plain,
    /// The client sends a TLS `ClientHello` at once.
    Hello,
    /// The server speaks first.
    Quiet,
    /// As `Plain`; then it is kept, and asks again and again until the load ends.
    Held,
}

/// What `lab-tool load` does until SIGTERM.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Load {
    /// Name and port of a server that echoes.
    pub echo: (String, u16),
    /// Name and port of a server that speaks first: [`Serve::Source`](crate::traffic::Serve::Source).
    pub source: (String, u16),
    /// New connections a second: `Plain`, `Hello` and `Quiet` in turn.
    pub rate: u32,
    /// `Held` connections, made at the beginning.
    pub held: u32,
    /// Between two questions of each of them, in milliseconds.
    pub pause: u64,
}

/// How one connection went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// How it began.
    pub kind: Kind,
    /// When `connect()` was called, in microseconds since 1970.
    pub started: u64,
    /// When all had been said and heard, or it failed.
    pub ended: u64,
    /// What went wrong: an errno such as `ECONNRESET`, or `eof` where an answer was to come.
    pub failure: Option<String>,
}

impl Outcome {
    /// How long it took.
    pub fn took(&self) -> Duration {
        Duration::from_micros(self.ended - self.started)
    }
}

/// The time as outcomes have it.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_micros().try_into().unwrap_or(u64::MAX)
}

/// A load that is on. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    process: Process,
}

impl Load {
    /// The command: put it on a host.
    pub fn command(&self) -> Result<Command> {
        tool("load", self)
    }

    /// Starts it captured on `host`, and waits until those that it holds are there.
    pub fn captured(&self, host: &Host) -> Result<Running> {
        let process = host.captured(self.command()?).spawn()?;
        for n in 1..=self.held {
            process.wait_for_line(&format!("holds {n}"), END)?;
        }
        Ok(Running { process })
    }
}

impl Running {
    /// How many connections have ended.
    pub fn ended(&self) -> usize {
        self.process.stdout().lines().filter(|line| line.starts_with('{')).count()
    }

    /// Waits until so many more have ended.
    pub fn wait_for_more(&self, count: usize, within: Duration) -> Result<()> {
        let wanted = self.ended() + count;
        let mut ended = 0;
        let enough = |line: &str| {
            ended += usize::from(line.starts_with('{'));
            ended >= wanted
        };
        self.process.wait_for(&format!("{wanted} connections that have ended"), within, enough).map(drop)
    }

    /// Makes no more, waits for those that are open, and says how all of them went, in the order in which they
    /// started.
    pub fn stop(mut self) -> Result<Vec<Outcome>> {
        self.process.signal(Signal::SIGTERM)?;
        let status = self.process.wait(END)?;
        anyhow::ensure!(status.success(), "the load ended with {status}: {}", self.process.stderr());
        let said = self.process.stdout();
        let lines = said.lines().filter(|line| line.starts_with('{'));
        let read = |line: &str| serde_json::from_str(line).with_context(|| format!("reading {line:?}"));
        let mut outcomes = lines.map(read).collect::<Result<Vec<Outcome>>>()?;
        outcomes.sort_by_key(|outcome| outcome.started);
        Ok(outcomes)
    }
}
