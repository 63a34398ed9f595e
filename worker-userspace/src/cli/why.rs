//! `dworker why`.

use clap::Args;
use dworker::inspect::api::WHY;
use dworker::inspect::why::{Verdict, Why};
use dworker::steer::caller::{Process, ScopeError};
use http::Method;

use super::client::query;
use super::{Common, Failure};

/// What is said of exit codes in `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes: 0 steered, or answered by dworker's DNS; 10 direct; 11 refused; 1 failed, 2 wrong usage or values, 5 not allowed";

/// Say what would happen to a connection.
#[derive(Debug, Args)]
pub(crate) struct WhyCommand {
    /// A name or an address, and a port where that is not 443: vcenter.corp.example, [2001:db8::5]:902
    #[arg(value_name = "HOST[:PORT]")]
    target: String,
    /// For this process; where nobody is named, for one in a captured cgroup
    #[arg(long)]
    pid: Option<u32>,
    /// For a process in this cgroup: absolute, or below where cgroup v2 is mounted
    #[arg(long, value_name = "PATH", conflicts_with = "pid")]
    cgroup: Option<String>,
    /// For a process of this user
    #[arg(long, value_name = "N")]
    uid: Option<u32>,
    #[command(flatten)]
    common: Common,
}

impl WhyCommand {
    /// What there is to see of the process. A service sees only its own, so who asks on its host looks for it.
    fn process(&self) -> Result<Option<Process>, Failure> {
        let Some(pid) = self.pid.filter(|_| self.common.is_here()) else { return Ok(None) };
        match Process::read(pid) {
            Ok(process) => Ok(Some(process)),
            Err(ScopeError::NoProcess(_)) => Err(Failure::Usage(format!(
                "--pid: there is no process {pid}; `ps` shows those that there are"
            ))),
            // The daemon may see more.
            Err(_) => Ok(None),
        }
    }

    /// Asks, prints, and gives the exit code.
    pub(crate) async fn run(self) -> Result<u8, Failure> {
        let process = self.process()?;
        let uid = self.uid.or(process.as_ref().and_then(|process| process.uid));
        let (pid, uid) = (self.pid.map(|pid| pid.to_string()), uid.map(|uid| uid.to_string()));
        let netns = process.as_ref().map(|process| {
            let (device, number) = process.seen.netns;
            format!("{device}:{number}")
        });
        let cgroup = process.as_ref().and_then(|process| process.cgroup.as_ref()?.to_str());
        // The top of all has no name.
        let cgroup = cgroup.map(|cgroup| if cgroup.is_empty() { "/" } else { cgroup });
        let asked = [
            ("target", Some(self.target.as_str())),
            ("pid", pid.as_deref()),
            ("cgroup", self.cgroup.as_deref().or(cgroup)),
            ("uid", uid.as_deref()),
            ("comm", process.as_ref().map(|process| process.seen.comm.as_str())),
            ("netns", netns.as_deref()),
        ];
        let path = format!("{WHY}{}", query(&asked));
        let why: Why = self.common.client().await?.ask(Method::GET, &path, None).await?;
        self.common.format.print(&why, || why.plain())?;
        Ok(match why.verdict {
            Verdict::Steered | Verdict::Answered => 0,
            Verdict::Direct => 10,
            Verdict::Refused => 11,
        })
    }
}
