//! `dworker doctor`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use dworker::appliance::api::nodes::Node;
use dworker::config::{Config, SOCKET};
use dworker::daemon::News;
use dworker::doctor::facts::Facts;
use dworker::doctor::{canary, diagnose, look};
use dworker::inspect::api::{PROBE, RELOAD, STATUS};
use dworker::inspect::finding::Diagnosis;
use dworker::inspect::probe::Tried;
use dworker::inspect::status::{NodeRole, Status};
use http::Method;
use tokio::signal::ctrl_c;

use super::client::{Client, one};
use super::config::{Given, Read};
use super::{Failure, Format};

/// What is said of exit codes in `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes: 0 nothing is wrong, 1 warnings, 2 errors, 3 it could not look";

/// Where it could not look.
const COULD_NOT: u8 = 3;
/// Time for the daemon to try its proxy hosts.
const TRYING: Duration = Duration::from_secs(120);
/// Nodes that are asked for.
const NODES: usize = 10_000;

/// Look whether all works.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    given: Given,
    /// The daemon's control socket, where that is not the configuration's
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(flatten)]
    format: Format,
}

impl Doctor {
    /// Looks, prints, and gives the exit code.
    pub(crate) async fn run(self) -> Result<u8, Failure> {
        let looked = tokio::select! {
            looked = self.look() => looked,
            // What was made is removed all the same: it is waited for.
            _ = ctrl_c() => Err(Failure::Failed("interrupted".into())),
        };
        let diagnosis = match looked {
            Ok(diagnosis) => diagnosis,
            Err(why) => {
                eprintln!("dworker: {why}");
                return Ok(COULD_NOT);
            }
        };
        self.format.print(&diagnosis, || diagnosis.plain())?;
        Ok(diagnosis.exit_code())
    }

    async fn look(&self) -> Result<Diagnosis, Failure> {
        let mut facts = Facts::default();
        // To the end: the service's credentials are there as long as it is.
        let read = self.given.load();
        let config = match &read {
            Ok(Read { source, loaded, .. }) => {
                facts.source.clone_from(source);
                let warnings = loaded.warnings.iter().map(ToString::to_string).collect();
                facts.config = Some(Ok((loaded.config.clone(), warnings)));
                Some(loaded.config.clone())
            }
            Err(unread) => {
                facts.source = "no valid configuration".into();
                facts.config = Some(Err(unread.lines()));
                None
            }
        };
        let socket = match (&self.socket, &config) {
            (Some(socket), _) => socket.clone(),
            (None, Some(config)) => config.control_socket.clone(),
            (None, None) => SOCKET.into(),
        };
        let status = match Daemon::reach(&socket).await {
            Ok(mut daemon) => daemon.status().await,
            Err(why) => Err(why),
        };
        if let Some(config) = &config {
            look::host(config, status.as_ref().ok(), &mut facts).await;
            facts.hooks = hooks(config, status.as_ref().ok(), facts.system.elsewhere).await?;
        }
        if let Ok(status) = &status {
            // A connection on which nothing was asked while the canaries sang is closed by now.
            if let Ok(mut daemon) = Daemon::reach(&socket).await {
                let again = daemon.status().await.ok();
                if let (Some(hooks), Some(again)) = (&mut facts.hooks, again) {
                    look::again(hooks, status, &again);
                }
                facts.news = daemon.news().await;
                if status.appliance.is_some() {
                    facts.offline = daemon.offline().await;
                }
            }
            facts.tried = Some(tried(&socket).await);
        }
        facts.daemon = Some(match status {
            Ok(status) => Ok(Box::new(status)),
            Err(why) => Err((socket, why)),
        });
        Ok(diagnose(&facts))
    }
}

async fn hooks(
    config: &Config,
    status: Option<&Status>,
    elsewhere: bool,
) -> Result<Option<dworker::doctor::facts::Hooks>, Failure> {
    let (config, status) = (config.clone(), status.cloned());
    let looking = tokio::task::spawn_blocking(move || look::hooks(&config, status.as_ref(), elsewhere));
    looking.await.map_err(|error| Failure::Failed(error.to_string()))
}

/// The daemon, through its control socket.
struct Daemon(Client);

impl Daemon {
    async fn reach(socket: &Path) -> Result<Daemon, String> {
        Client::at(socket).await.map(Daemon).map_err(|failure| failure.to_string())
    }

    async fn status(&mut self) -> Result<Status, String> {
        self.0.ask(Method::GET, STATUS, None).await.map_err(|failure| failure.to_string())
    }

    /// What a reload would bring.
    async fn news(&mut self) -> Vec<String> {
        let news = self.0.ask::<News>(Method::GET, RELOAD, None).await;
        news.map(|news| news.news).unwrap_or_default()
    }

    /// Nodes that are not connected, with their workers.
    async fn offline(&mut self) -> Vec<(String, String)> {
        let nodes = self.0.all("/api/v1/nodes?role=offline", NODES).await.unwrap_or_default();
        let nodes = nodes.iter().filter_map(|node| one::<Node>(node).ok());
        nodes
            .filter(|node| node.role == NodeRole::Offline)
            .map(|node| (node.worker, node.host_name))
            .collect()
    }
}

/// Has the daemon try its proxy hosts, which takes longer than what it is asked in passing.
async fn tried(socket: &Path) -> Result<Tried, String> {
    let Daemon(client) = Daemon::reach(socket).await?;
    client.patient(TRYING).ask(Method::POST, PROBE, None).await.map_err(|failure| failure.to_string())
}

/// Is the canary: does the errand, and prints what it saw.
pub(crate) fn canary(errand: &str) -> anyhow::Result<ExitCode> {
    let errand = serde_json::from_str(errand).context("this is for `dworker doctor` alone")?;
    let song = canary::sing(&errand).context("the errand")?;
    let text = serde_json::to_string(&song).context("writing what was seen")?;
    std::io::stdout().write_all(text.as_bytes()).context("writing what was seen")?;
    Ok(ExitCode::SUCCESS)
}
