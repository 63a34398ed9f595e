//! `dworker reconfigure`.

use std::path::{Path, PathBuf};

use clap::Args;
use dworker::config::PLACES;
use dworker::daemon::{News, trial};
use dworker::inspect::api::RELOAD;
use dworker::service::{self, Executor, Host, Plan, Reading, Wanted};
use http::Method;
use nix::unistd::geteuid;

use super::client::Client;
use super::config::Given;
use super::{Done, Failure};

/// Check the configuration, put in order what the service needs, and start, reload or restart it where that is due.
#[derive(Debug, Args)]
pub(crate) struct Reconfigure {
    #[command(flatten)]
    given: Given,
    /// Show what would be done and why, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Restart a daemon that can't be asked what a reload would bring, which cuts what is open
    #[arg(long)]
    restart: bool,
    /// The host whose files lie below this directory, as an image's do: nothing runs there
    #[arg(long, value_name = "DIRECTORY")]
    root: Option<PathBuf>,
}

impl Reconfigure {
    pub(crate) async fn run(self) -> Done {
        let mut host = Host::new(self.root.as_deref());
        let named = self.named(&host)?;
        let reading = Reading::of(&host, named.as_deref()).map_err(failed)?;
        let read = reading.read().map_err(failed)?;
        let Reading { mut service, file, handed, .. } = reading;
        let marks = handed.marks.clone();
        drop(handed);
        let loaded = read.map_err(Failure::Wrong)?;
        for warning in &loaded.warnings {
            eprintln!("warning: {warning}");
        }
        let program = program(&self)?;
        let inside = file.as_deref().map(|file| host.inside(file));
        let mut wanted = Wanted::of(&loaded, &program, inside.as_deref(), named.is_some());
        wanted.restart = self.restart;
        if let Some(service) = service.as_mut().filter(|service| service.active) {
            // Where it listens now, which the configuration may have changed.
            let socket = service.socket.as_ref().unwrap_or(&loaded.config.control_socket);
            service.news = news(socket).await;
        }
        let running = service.as_ref().and_then(|service| Some((service.pid?, service.socket.clone())));
        let mut found = host.find(&wanted, service, marks).map_err(failed)?;
        // Another user can only look at what would be done.
        if let Some((pid, socket)) = running.filter(|_| geteuid().is_root()) {
            let unfit = trial(&loaded.config, pid, socket.as_deref());
            found.unfit = unfit.iter().map(ToString::to_string).collect();
        }
        let plan = service::plan(&wanted, &found);
        self.carry_out(&plan, &mut host)
    }

    fn carry_out(&self, plan: &Plan, host: &mut impl Executor) -> Done {
        for note in &plan.notes {
            eprintln!("note: {note}");
        }
        if !plan.faults.is_empty() {
            return Err(Failure::Unfit(plan.faults.join("\n")));
        }
        if plan.steps.is_empty() {
            println!("nothing to do: all is as the configuration wants it");
        }
        if self.dry_run {
            print!("{plan}");
            return Ok(());
        }
        service::carry_out(plan, host, |step| println!("{step}")).map_err(failed)
    }

    /// The configuration that was named, now or by an earlier run.
    fn named(&self, host: &Host) -> Result<Option<PathBuf>, Failure> {
        match (&self.given.config, &self.root) {
            (Some(file), Some(_)) if file.is_relative() => Err(Failure::Usage(format!(
                "--config {}: with --root it is a path of that host, which begins with /",
                file.display()
            ))),
            (Some(file), _) => std::path::absolute(file).map(Some).map_err(failed),
            (None, _) => {
                let before = host.named().map_err(failed)?;
                if let Some(file) = &before {
                    eprintln!(
                        "note: the configuration is {}, as it was named before; `--config {}` goes back",
                        file.display(),
                        PLACES[0]
                    );
                }
                Ok(before)
            }
        }
    }
}

fn failed(error: impl ToString) -> Failure {
    Failure::Failed(error.to_string())
}

/// What the unit is to start: this program; below another root the one that packages install.
fn program(asked: &Reconfigure) -> Result<PathBuf, Failure> {
    match asked.root {
        Some(_) => Ok("/usr/bin/dworker".into()),
        None => {
            std::env::current_exe().map_err(|error| Failure::Failed(format!("this program's path: {error}")))
        }
    }
}

/// What a reload would bring, as the daemon itself knows it.
async fn news(socket: &Path) -> Result<Vec<String>, String> {
    let ask = async {
        let News { news } = Client::at(socket).await?.ask(Method::GET, RELOAD, None).await?;
        Ok::<_, Failure>(news)
    };
    ask.await.map_err(|why| format!("it can't be asked: {why}"))
}
