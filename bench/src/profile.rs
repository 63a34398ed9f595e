//! Where the time goes: `perf record` on what carries.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::carrier::Carrier;
use crate::processes;

/// Symbols that are shown.
const SHOWN: usize = 25;

/// Profiles into this directory.
pub(crate) struct Profile {
    pub(crate) directory: PathBuf,
}

/// A profile that is being taken.
pub(crate) struct Profiling {
    perf: Child,
    title: String,
    file: PathBuf,
}

impl Profile {
    /// Begins; it ends by itself after `time`.
    pub(crate) fn start(&self, title: &str, carrier: &Carrier<'_>, time: Duration) -> Result<Profiling> {
        std::fs::create_dir_all(&self.directory)?;
        let title = format!("{}-{title}", carrier.name).replace(' ', "-");
        let file = self.directory.join(format!("{title}.perf"));
        let pids: Vec<String> =
            processes::with_children(&carrier.pids()).iter().map(u32::to_string).collect();
        let perf = Command::new("perf")
            // Virtual machines have no hardware counters.
            .args(["record", "-q", "-e", "cpu-clock", "-F", "2000", "-g", "-p", &pids.join(","), "-o"])
            .arg(&file)
            .args(["--", "sleep", &time.as_secs_f64().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("perf: apt-get install --no-install-recommends linux-perf")?;
        Ok(Profiling { perf, title, file })
    }
}

impl Profiling {
    /// Prints what took the most.
    pub(crate) fn end(mut self) -> Result<()> {
        let status = self.perf.wait()?;
        ensure!(status.success(), "perf record: {status}");
        let report = Command::new("perf")
            .args(["report", "-q", "--stdio", "--no-children", "-g", "none", "--percent-limit", "0.5", "-i"])
            .arg(&self.file)
            .args(["--sort", "pid,symbol"])
            .output()?;
        ensure!(report.status.success(), "perf report: {}", String::from_utf8_lossy(&report.stderr));
        println!("profile of {} ({}):", self.title, self.file.display());
        let text = String::from_utf8_lossy(&report.stdout).into_owned();
        text.lines().filter(|line| !line.trim().is_empty()).take(SHOWN).for_each(|line| println!("  {line}"));
        Ok(())
    }
}
