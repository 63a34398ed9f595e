//! `dworker monitor`.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;
use dworker::inspect::monitor::{Happening, MONITOR};
use dworker::steer::probe;

use super::client::query;
use super::{Common, Done, Failure};

/// Show what happens, as it happens.
#[derive(Debug, Args)]
pub(crate) struct MonitorCommand {
    /// Only to these hosts, separated by commas, as proxy hosts are written: vcenter.corp.example, *.lab.example:443, 10.0.0.0/8
    #[arg(long, value_name = "HOSTS")]
    host: Option<String>,
    /// Only by this process
    #[arg(long)]
    pid: Option<u32>,
    /// Only by processes in this cgroup, by its path or id, and in those that are below it now
    #[arg(long, value_name = "PATH|ID")]
    cgroup: Option<String>,
    /// Only these kinds, separated by commas: steered, direct, refused, opened, closed, failed, failover
    #[arg(long, value_name = "KINDS")]
    kind: Option<String>,
    #[command(flatten)]
    common: Common,
}

impl MonitorCommand {
    pub(crate) async fn run(self) -> Done {
        let (pid, cgroups) =
            (self.pid.map(|pid| pid.to_string()), self.cgroup.as_deref().map(ids).transpose()?);
        let asked = [
            ("host", self.host.as_deref()),
            ("pid", pid.as_deref()),
            ("cgroup", cgroups.as_deref()),
            ("kind", self.kind.as_deref()),
        ];
        let (path, format) = (format!("{MONITOR}{}", query(&asked)), self.common.format);
        let mut client = self.common.client().await?;
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
                (true, _) => told.to_owned(),
                (false, true) => serde_json::to_string_pretty(&value).unwrap_or_default(),
                (false, false) => happening.plain(),
            };
            match writeln!(io::stdout(), "{line}") {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
                written => Ok(written.map(|()| true)?),
            }
        };
        while !client.follow(&path, &mut show).await? {
            // After a reload another process answers at the same socket. Where none does, it has stopped.
            client = self.common.client().await?;
        }
        Ok(())
    }
}

/// The ids of a cgroup and of those below it.
fn ids(written: &str) -> Result<String, Failure> {
    if written.parse::<u64>().is_ok() {
        return Ok(written.to_owned());
    }
    let wrong = |path: &Path, error: io::Error| {
        Failure::Usage(format!(
            "--cgroup {written:?}: {}: {error}; `systemd-cgls` shows those that exist",
            path.display()
        ))
    };
    let mount = probe::mount().map_err(|error| Failure::Usage(format!("--cgroup {written:?}: {error}")))?;
    let mut waiting: VecDeque<PathBuf> = VecDeque::from([mount.join(written)]);
    let mut ids = Vec::new();
    while let Some(path) = waiting.pop_front() {
        let found =
            std::fs::metadata(&path).and_then(|directory| Ok((directory.ino(), std::fs::read_dir(&path)?)));
        let (id, entries) = match found {
            // One that has just gone.
            Err(error) if !ids.is_empty() && error.kind() == io::ErrorKind::NotFound => continue,
            found => found.map_err(|error| wrong(&path, error))?,
        };
        ids.push(id.to_string());
        waiting
            .extend(entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
    }
    Ok(ids.join(","))
}
