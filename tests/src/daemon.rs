//! The program under test, running on a host.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command::{Command, Output};
use crate::config::Config;
use crate::host::Host;
use crate::process::Process;

/// How long a daemon may take to say that it is ready.
const READY: Duration = Duration::from_secs(30);

/// A `dworker run`. Dropping it stops it.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    run: Command,
    status: Command,
    config: PathBuf,
    process: Process,
    /// What earlier processes printed on standard error.
    earlier: String,
}

impl Host {
    /// A `dworker` with these arguments on this host, outside the captured cgroup.
    ///
    /// # Errors
    ///
    /// When the binary has not been built.
    pub fn dworker<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Command> {
        Ok(self.uncaptured(Command::new(binary("dworker")?).args(args)))
    }

    /// Starts a daemon and waits until it says that it is ready. `name` is free, one per host.
    pub fn daemon(&self, name: &str, config: Config) -> Result<Daemon> {
        self.start_daemon(name, config, |command| self.uncaptured(command))
    }

    /// As [`Host::daemon`], inside the captured cgroup.
    pub fn captured_daemon(&self, name: &str, config: Config) -> Result<Daemon> {
        self.start_daemon(name, config, |command| self.captured(command))
    }

    fn start_daemon(
        &self,
        name: &str,
        config: Config,
        placed: impl FnOnce(Command) -> Command,
    ) -> Result<Daemon> {
        let file = self.configure(name, config)?;
        let run = placed(Command::new(binary("dworker")?).args(["run", "--config"]).arg(&file));
        let status = self.dworker(["status", "--socket"])?.arg(self.socket(name)).arg("-j").unlogged();
        let process = start(&run)?;
        Ok(Daemon { name: name.to_owned(), run, status, config: file, process, earlier: String::new() })
    }

    /// Writes a daemon's configuration without starting one, for `dworker run --config` that shall fail.
    pub fn configure(&self, name: &str, config: Config) -> Result<PathBuf> {
        let path = |suffix: &str| self.directory().join(format!("{name}{suffix}"));
        let state = path("-state");
        fs::create_dir_all(&state).with_context(|| format!("making {}", state.display()))?;
        let config = match config.steers() {
            true => config.set("steer.pins", self.pins(name).display().to_string()),
            false => config,
        };
        let config = config
            .set("state_dir", state.display().to_string())
            .set("control_socket", self.socket(name).display().to_string());
        write(&path(".toml"), &config)?;
        Ok(path(".toml"))
    }

    /// The control socket of a daemon on this host.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.directory().join(format!("{name}.sock"))
    }
}

impl Daemon {
    /// The name that it was started under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The running process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// What `dworker status -j` says.
    pub fn status(&self) -> Result<Value> {
        let output = self.status.clone().output()?;
        if !output.status.success() {
            bail!("{output}");
        }
        output.json()
    }

    /// The output of `dworker status --socket SOCKET` with these arguments instead of `-j`.
    pub fn status_with(&self, host: &Host, args: &[&str]) -> Result<Output> {
        host.dworker(["status", "--socket"])?.arg(host.socket(&self.name)).args(args).output()
    }

    /// Asks for the status until it is as `wanted`; `what` names that in the error.
    pub fn wait_for_status(
        &self,
        what: &str,
        within: Duration,
        mut wanted: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        let deadline = Instant::now() + within;
        // The question itself takes milliseconds: no need to pause between two.
        loop {
            let status = self.status()?;
            if wanted(&status) {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{}: no status with {what} within {within:?}: {status:#}\n{}", self.name, self.log());
            }
        }
    }

    /// Waits for a line of its log, that of the running process, printed before or after this call.
    pub fn wait_for_line(&self, text: &str, within: Duration) -> Result<String> {
        self.process.wait_for_line(text, within)
    }

    /// All that it has logged, restarts included.
    pub fn log(&self) -> String {
        format!("{}{}", self.earlier, self.process.stderr())
    }

    /// Stops it with SIGTERM and waits for its end.
    pub fn stop(&mut self, within: Duration) -> Result<ExitStatus> {
        self.process.stop(within)
    }

    /// Kills it without any warning.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.kill9()
    }

    /// Starts it again after [`Daemon::stop`] or [`Daemon::kill9`], and waits until it is ready.
    pub fn start(&mut self) -> Result<()> {
        if self.process.is_running() {
            bail!("{} is still running", self.name);
        }
        self.earlier.push_str(&self.process.stderr());
        self.process = start(&self.run)?;
        Ok(())
    }

    /// Changes the configuration for the next [`Daemon::start`].
    pub fn reconfigure(&mut self, host: &Host, config: Config) -> Result<()> {
        self.config = host.configure(&self.name, config)?;
        Ok(())
    }
}

fn start(run: &Command) -> Result<Process> {
    let process = run.clone().spawn()?;
    process.wait_for_line("ready", READY)?;
    Ok(process)
}

/// A worker's key is in the file, so only root may read it.
fn write(path: &Path, config: &Config) -> Result<()> {
    fs::write(path, config.to_toml()).with_context(|| format!("writing {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("protecting {}", path.display()))
}

/// The `dworker` under test.
///
/// # Errors
///
/// When it has not been built.
pub fn program() -> Result<PathBuf> {
    binary("dworker")
}

/// A binary of this workspace: beside the running program, which is in `target/PROFILE` or, for a
/// test, in `target/PROFILE/deps`. `DWORKER_BIN` names another `dworker`, an installed one for example.
pub(crate) fn binary(name: &str) -> Result<PathBuf> {
    if name == "dworker"
        && let Some(path) = std::env::var_os("DWORKER_BIN")
    {
        return Ok(path.into());
    }
    let own = std::env::current_exe().context("finding the running program")?;
    let found =
        own.ancestors().skip(1).take(2).map(|directory| directory.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not built beside {}: cargo build --workspace", own.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A daemon whose program is a shell script.
    fn scripted(run: &str, status: &str) -> Result<Daemon> {
        let shell = |script: &str| Command::new("sh").args(["-c", script]);
        let run = shell(run);
        let process = start(&run)?;
        Ok(Daemon {
            name: "worker".into(),
            run,
            status: shell(status),
            config: PathBuf::new(),
            process,
            earlier: String::new(),
        })
    }

    #[test]
    fn a_daemon_is_stopped_killed_and_started_again() -> Result<()> {
        let run = "trap 'echo bye >&2; exit 3' TERM; echo \"ready $$\" >&2; while :; do sleep 0.05; done";
        let mut daemon = scripted(run, "true")?;
        assert!(daemon.start().is_err(), "it runs already");
        assert_eq!(daemon.stop(READY)?.code(), Some(3), "SIGTERM lets it finish");
        daemon.start()?;
        daemon.kill9()?;
        daemon.start()?;
        let pids: Vec<String> =
            daemon.log().lines().filter_map(|line| line.strip_prefix("ready ").map(str::to_owned)).collect();
        assert_eq!(pids.len(), 3, "the log keeps all: {}", daemon.log());
        assert_eq!(pids[2], daemon.process().pid().to_string());
        Ok(())
    }

    #[test]
    fn a_daemon_that_ends_early_shows_its_log() {
        let error =
            scripted("echo key worker_kye is unknown >&2; exit 2", "true").err().map(|e| e.to_string());
        assert!(error.as_ref().is_some_and(|e| e.contains("worker_kye")), "{error:?}");
    }

    #[test]
    fn the_status_is_asked_until_it_is_as_wanted() -> Result<()> {
        let marker = tempfile::tempdir()?;
        // The first answer has no tunnel, the later ones have.
        let status = format!(
            "cd {}; [ -e asked ] && echo '{{\"tunnels\":1}}' || echo '{{\"tunnels\":0}}'; touch asked",
            marker.path().display()
        );
        let daemon = scripted("echo ready >&2; exec sleep 1000", &status)?;
        let up = daemon.wait_for_status("a tunnel", READY, |status| status["tunnels"] == 1)?;
        assert_eq!(up["tunnels"], 1);
        let never = daemon.wait_for_status("two tunnels", Duration::ZERO, |status| status["tunnels"] == 2);
        assert!(never.is_err_and(|error| error.to_string().contains("two tunnels")));
        Ok(())
    }
}
