//! The commands. Most ask a running daemon, by its API.
//!
//! | file | concern |
//! |---|---|
//! | `cli.rs` | what all commands share: whom they ask, how they print, what they exit with |
//! | `cli/client.rs` | one request over HTTP |
//! | `cli/table.rs` | tables and details for people |
//! | `cli/config.rs` | the configuration, without a daemon |
//! | `cli/reconfigure.rs` | the service |
//! | `cli/worker.rs`, `cloud.rs`, `node.rs`, `connections.rs`, `events.rs`, `token.rs`, `status.rs`, `why.rs`, `monitor.rs`, `lifetime.rs`, `log.rs`, `doctor.rs` | the commands |
//! | `cli/tail.rs` | the log, from the journal |

mod client;
pub(crate) mod cloud;
pub(crate) mod config;
pub(crate) mod connections;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod lifetime;
pub(crate) mod log;
pub(crate) mod monitor;
pub(crate) mod node;
pub(crate) mod reconfigure;
pub(crate) mod status;
mod table;
pub(crate) mod tail;
pub(crate) mod token;
pub(crate) mod why;
pub(crate) mod worker;

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use dworker::appliance::api::workers::Odd;
use dworker::config::SOCKET;
use dworker::web::Problem;
use serde::Serialize;
use serde::de::DeserializeOwned;

use client::{Client, one};

/// What is said of exit codes in `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage or values, 3 not found, 4 in conflict with what is there, 5 not allowed";

/// Whom a command asks.
#[derive(Debug, Args)]
#[command(next_help_heading = "Whom to ask")]
pub(crate) struct Whom {
    /// The daemon's control socket
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
    /// An appliance in the network, instead of the control socket
    #[arg(long, value_name = "https://HOST[:PORT]", conflicts_with = "socket")]
    url: Option<String>,
    /// A file with the admin token alone; comes before the environment
    #[arg(long, value_name = "FILE", requires = "url")]
    token_file: Option<PathBuf>,
    /// The admin token; everybody on this host sees it in `ps`, so rather use the file or the environment
    #[arg(long, env = "DWORKER_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// PEM certificates trusted beside the system's
    #[arg(long, value_name = "FILE", requires = "url")]
    ca_file: Option<PathBuf>,
    /// Take an `http://` URL: anybody on the way can read the token
    #[arg(long, requires = "url")]
    insecure_plaintext: bool,
}

/// The daemon on this host: what only its control socket answers.
#[derive(Debug, Args)]
pub(crate) struct Here {
    /// The daemon's control socket
    #[arg(long, value_name = "PATH", default_value = SOCKET, help_heading = "Whom to ask")]
    socket: PathBuf,
    #[command(flatten)]
    format: Format,
}

impl Here {
    async fn client(&self) -> Result<Client, Failure> {
        Client::at(&self.socket).await
    }
}

/// How a command prints.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Format {
    /// As JSON on one line
    #[arg(short, long)]
    json: bool,
    /// As JSON for people
    #[arg(short, long)]
    pretty: bool,
}

/// What every command that asks has.
#[derive(Debug, Args)]
pub(crate) struct Common {
    #[command(flatten)]
    whom: Whom,
    #[command(flatten)]
    format: Format,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// It can't be asked so.
    #[error("{0}")]
    Usage(String),
    /// The configuration is wrong.
    #[error("{0}")]
    Wrong(dworker::config::Faults),
    /// The service could not do what it says.
    #[error("{0}")]
    Unfit(String),
    /// The daemon was not reached, or not understood.
    #[error("{0}")]
    Failed(String),
    /// The daemon refused.
    #[error("{}", told(.0))]
    Refused(Problem),
}

/// A problem for people: the detail, and the fields that it does not tell of.
fn told(problem: &Problem) -> String {
    let mut text = problem.detail.clone();
    for error in &problem.errors {
        if !text.contains(&error.detail) {
            text += &format!("\n  {}: {}", error.field, error.detail);
        }
    }
    text
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Failure::Failed(_) => 1,
            Failure::Usage(_) | Failure::Wrong(_) | Failure::Unfit(_) => 2,
            Failure::Refused(problem) => match problem.status {
                400 | 413 | 422 => 2,
                404 => 3,
                409 | 412 => 4,
                401 | 403 | 429 => 5,
                _ => 1,
            },
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Failed(format!("writing the answer: {error}"))
    }
}

type Done = Result<(), Failure>;

/// Runs a command to its exit code.
pub(crate) fn run(command: impl Future<Output = Done>) -> ExitCode {
    run_to_code(async { command.await.map(|()| 0) })
}

/// Runs a command that has more than one good end.
pub(crate) fn run_to_code(command: impl Future<Output = Result<u8, Failure>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("dworker: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(command) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            match &failure {
                // Each line begins with the place of its fault, as a compiler's.
                Failure::Wrong(faults) => eprintln!("{faults}"),
                failure => eprintln!("{}", harmless(&format!("dworker: {failure}"))),
            }
            ExitCode::from(failure.code())
        }
    }
}

impl Common {
    /// True where the daemon is on this host.
    fn is_here(&self) -> bool {
        self.whom.url.is_none()
    }

    async fn client(&self) -> Result<Client, Failure> {
        Client::new(&self.whom).await
    }

    /// Asks for a list, at most so much of it. For people it is what `shown` makes of it, or `none` where it is empty.
    async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        most: usize,
        none: &str,
        shown: impl FnOnce(&[T]) -> String,
    ) -> Done {
        let items = self.client().await?.all(path, most).await?;
        let typed = items.iter().map(one).collect::<Result<Vec<T>, Failure>>()?;
        self.format.print(&items, || if typed.is_empty() { format!("{none}\n") } else { shown(&typed) })
    }
}

/// Tells what was saved but is hardly meant.
fn warn(warnings: &[Odd]) {
    for warning in warnings {
        eprintln!("dworker: {}: {}", warning.field, warning.detail);
    }
}

impl Format {
    /// Prints JSON where that is asked for, else what `plain` makes.
    fn print(self, answer: &impl Serialize, plain: impl FnOnce() -> String) -> Done {
        let json = |error: serde_json::Error| Failure::Failed(format!("writing JSON: {error}"));
        let text = match (self.pretty, self.json) {
            (true, _) => serde_json::to_string_pretty(answer).map_err(json)? + "\n",
            (false, true) => serde_json::to_string(answer).map_err(json)? + "\n",
            (false, false) => harmless(&plain()),
        };
        print_all(&text)
    }
}

/// Prints it as it is.
pub(crate) fn print_all(text: &str) -> Done {
    match io::stdout().write_all(text.as_bytes()) {
        // Who reads only the beginning, as `head` does, has what it wants.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// Without what would drive a terminal: names, paths and texts come from others.
fn harmless(text: &str) -> String {
    let plain = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
    text.chars().map(plain).collect()
}

/// Asks a person before something is gone; without one `--yes` must say it.
fn confirm(yes: bool, what: &str) -> Done {
    if yes {
        return Ok(());
    }
    let stdin = io::stdin();
    if !stdin.is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::Usage(format!("{what}: say so with `--yes`")));
    }
    eprint!("{what}? [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::Failed("nothing was changed".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dworker::web::Kind;

    #[test]
    fn what_others_have_named_drives_no_terminal() {
        let text = "direct: /sys/fs/cgroup/a\u{1b}]0;x\u{7}\u{9b}2Jb is not captured\n\tscope\r\n";
        let shown = harmless(text);
        assert_eq!(
            shown,
            "direct: /sys/fs/cgroup/a\u{fffd}]0;x\u{fffd}\u{fffd}2Jb is not captured\n\tscope\u{fffd}\n"
        );
    }

    #[test]
    fn a_problem_is_told_once_and_has_an_exit_code() {
        let failure = |kind| Failure::Refused(Problem::new(kind, "why"));
        for (kind, code) in [
            (Kind::Invalid, 2),
            (Kind::Malformed, 2),
            (Kind::NotFound, 3),
            (Kind::Conflict, 4),
            (Kind::Stale, 4),
            (Kind::Unauthorised, 5),
            (Kind::Limited, 5),
            (Kind::Internal, 1),
            (Kind::Unavailable, 1),
        ] {
            assert_eq!(failure(kind).code(), code, "{kind:?}");
        }
        let problem = Problem::invalid("name", "it is empty").with("proxy_hosts", "no host");
        assert_eq!(Failure::Refused(problem).to_string(), "name: it is empty\n  proxy_hosts: no host");
    }
}
