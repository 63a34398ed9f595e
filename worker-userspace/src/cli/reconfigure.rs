//! `dworker reconfigure`.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use dworker::config::{self, Config, Environment, PLACES};
use dworker::daemon::News;
use dworker::inspect::api::RELOAD;
use dworker::service::{self, Executor, Host, Plan, Service, VARIABLE, Wanted};
use http::Method;

use super::client::Client;
use super::config::Given;
use super::{Done, Failure, Whom};

/// Check the configuration, put in order what the service needs, and start, reload or restart it where that is due.
#[derive(Debug, Args)]
pub(crate) struct Reconfigure {
    #[command(flatten)]
    given: Given,
    /// Show what would be done and why, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// The host whose files lie below this directory, as an image's do: nothing runs there
    #[arg(long, value_name = "DIRECTORY")]
    root: Option<PathBuf>,
}

impl Reconfigure {
    pub(crate) async fn run(self) -> Done {
        let mut host = Host::new(self.root.as_deref());
        let mut service = host.service().map_err(failed)?;
        let environment = environment(&host, service.as_ref());
        let places = PLACES.map(|place| host.at(Path::new(place)));
        let named = self.given.config.is_some();
        let file = self.given.config.clone().map(|file| host.at(&file));
        let file = file.or_else(|| config::find(&places, &environment));
        let read = match &file {
            // What it names is below the root, too, and so can't be looked at.
            Some(file) if self.root.is_some() => {
                let text = fs::read_to_string(file)
                    .map_err(|error| Failure::Failed(format!("{}: {error}", file.display())))?;
                Config::parse_in(&text, &file.display().to_string(), &environment)
            }
            file => Config::read(file.as_deref(), &environment),
        };
        let loaded = read.map_err(Failure::Wrong)?;
        for warning in &loaded.warnings {
            eprintln!("warning: {warning}");
        }
        let program = program(&self)?;
        let inside = file.as_deref().map(|file| host.inside(file));
        let wanted = Wanted::of(&loaded, &program, inside.as_deref(), named);
        if let Some(service) = service.as_mut().filter(|service| service.active) {
            service.news = news(&loaded.config.control_socket).await;
        }
        let found = host.find(&wanted, service).map_err(failed)?;
        let plan = service::plan(&wanted, &found);
        self.carry_out(&plan, &mut host)
    }

    fn carry_out(&self, plan: &Plan, host: &mut impl Executor) -> Done {
        for note in &plan.notes {
            eprintln!("note: {note}");
        }
        if plan.steps.is_empty() {
            println!("nothing to do: all is as the configuration wants it");
        }
        if self.dry_run {
            print!("{plan}");
            return Ok(());
        }
        for step in &plan.steps {
            println!("{step}");
            host.carry_out(step).map_err(failed)?;
        }
        Ok(())
    }
}

fn failed(error: impl ToString) -> Failure {
    Failure::Failed(error.to_string())
}

/// What the service will find around it: not this shell's variables, but those of its unit.
fn environment(host: &Host, service: Option<&Service>) -> Environment {
    let mut variables: Vec<(String, String)> = service.map(|s| s.environment.clone()).unwrap_or_default();
    variables.retain(|(name, _)| name != VARIABLE);
    if let Some(directory) = host.credentials() {
        variables.push(("CREDENTIALS_DIRECTORY".into(), directory.display().to_string()));
    }
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    Environment::new(&name.unwrap_or_default(), variables)
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
        let News { news } = Client::new(&Whom::at(socket)).await?.ask(Method::GET, RELOAD, None).await?;
        Ok::<_, Failure>(news)
    };
    ask.await.map_err(|why| format!("it can't be asked: {why}"))
}
