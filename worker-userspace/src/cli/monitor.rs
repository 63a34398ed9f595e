//! `dworker monitor`.

use std::io::{self, Write};

use clap::Args;
use dworker::inspect::monitor::{Happening, MONITOR};

use super::client::query;
use super::{Done, Failure, Here};

/// Show what happens, as it happens.
#[derive(Debug, Args)]
pub(crate) struct MonitorCommand {
    /// Only to these hosts, separated by commas, as proxy hosts are written: vcenter.corp.example, *.lab.example:443, 10.0.0.0/8
    #[arg(long, value_name = "HOSTS")]
    host: Option<String>,
    /// Only by this process
    #[arg(long)]
    pid: Option<u32>,
    /// Only by processes in this cgroup, by its path or id; by its path in those that are below it now, too
    #[arg(long, value_name = "PATH|ID")]
    cgroup: Option<String>,
    /// Only these kinds, separated by commas: steered, direct, refused, opened, closed, failed, failover. `direct` is what
    /// a rule names and could not be sent to dworker; who is excluded, the daemon itself and other network namespaces are
    /// counted in `dworker status`, and never shown
    #[arg(long, value_name = "KINDS")]
    kind: Option<String>,
    #[command(flatten)]
    here: Here,
}

impl MonitorCommand {
    pub(crate) async fn run(self) -> Done {
        let pid = self.pid.map(|pid| pid.to_string());
        let asked = [
            ("host", self.host.as_deref()),
            ("pid", pid.as_deref()),
            ("cgroup", self.cgroup.as_deref()),
            ("kind", self.kind.as_deref()),
        ];
        let (path, format) = (format!("{MONITOR}{}", query(&asked)), self.here.format);
        let mut client = self.here.client().await?;
        let mut again = false;
        let mut show = |name: &str, data: &str| {
            let told = match name {
                "begin" if again => {
                    eprintln!(
                        "dworker: another process is the daemon now; what happened in between is not shown"
                    );
                    return Ok(true);
                }
                "begin" => {
                    eprintln!("dworker: watching until Ctrl-C");
                    again = true;
                    return Ok(true);
                }
                "lost" => {
                    eprintln!("dworker: {data} events were lost: they came faster than they were read");
                    return Ok(true);
                }
                "event" => data,
                _ => return Ok(true),
            };
            let value: serde_json::Value = serde_json::from_str(told)
                .map_err(|error| Failure::Failed(format!("the event {told:?} can't be read: {error}")))?;
            let happening: Happening = super::client::one(&value)?;
            let line = match (format.json, format.pretty) {
                // As everywhere: who asks for both reads it.
                (_, true) => serde_json::to_string_pretty(&value).unwrap_or_default(),
                (true, false) => told.to_owned(),
                (false, false) => happening.plain(),
            };
            match writeln!(io::stdout(), "{line}") {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
                written => Ok(written.map(|()| true)?),
            }
        };
        while !client.follow(&path, &mut show).await? {
            // After a reload another process answers at the same socket. Where none does, it has stopped.
            client = self.here.client().await?;
        }
        Ok(())
    }
}
