//! The configuration as the service reads it: the file that it finds, or that was named to it, with its variables and
//! credentials, and without root's right to pass over owners and modes. Not with the variables of this shell.

use std::path::{Path, PathBuf};

use super::handed::Handed;
use super::host::{Host, HostError, failed};
use super::unprivileged::unprivileged;
use super::{Service, VARIABLE};
use crate::config::{self, Config, Environment, Faults, Loaded, PLACES};

/// Where systemd has a service's credentials.
const CREDENTIALS: &str = "/run/credentials/dworker.service";

/// What a service's configuration is read from. Dropping it removes the copies of the credentials.
#[derive(Debug)]
pub struct Reading {
    /// What systemd knows of the service.
    pub service: Option<Service>,
    /// The file; none: the variables say all.
    pub file: Option<PathBuf>,
    /// What it is handed beside the file.
    pub handed: Handed,
    environment: Environment,
    is_here: bool,
}

impl Reading {
    /// Finds it; `named` is the file, as its host names it, where somebody has named one.
    ///
    /// # Errors
    /// systemd can't be asked, or something of what the service is handed can't be read.
    pub fn of(host: &Host, named: Option<&Path>) -> Result<Reading, HostError> {
        let (service, handed) = (host.service()?, host.handed()?);
        let environment = environment(&handed, service.as_ref());
        let file = match named {
            Some(named) => Some(host.at(named)),
            None => config::find(&PLACES.map(|place| host.at(Path::new(place))), &environment),
        };
        Ok(Reading { service, file, handed, environment, is_here: host.is_here() })
    }

    /// Reads it.
    ///
    /// # Errors
    /// It can't be tried; what is wrong with the configuration is the inner one.
    pub fn read(&self) -> Result<Result<Loaded, Faults>, HostError> {
        let Reading { file, environment, .. } = self;
        match file {
            // What it names is below the root, too, and so can't be looked at.
            Some(file) if !self.is_here => {
                let text = std::fs::read_to_string(file).map_err(failed("reading", file))?;
                Ok(Config::parse_in(&text, &file.display().to_string(), environment))
            }
            file => unprivileged(|| Config::read(file.as_deref(), environment))
                .map_err(|source| HostError::Run { command: "capset".into(), source }),
        }
    }

    /// What was read, with credentials where the service will have them.
    pub fn shown(&self, mut loaded: Loaded) -> Loaded {
        if let Some(copies) = self.handed.copies() {
            loaded.effective.moved(copies, Path::new(CREDENTIALS));
        }
        loaded
    }

    /// What it was read from, for people.
    pub fn source(&self) -> String {
        self.file.as_ref().map_or("environment".to_owned(), |file| file.display().to_string())
    }
}

/// What the service will find around it.
fn environment(handed: &Handed, service: Option<&Service>) -> Environment {
    let mut variables: Vec<(String, String)> = service.map(|s| s.environment.clone()).unwrap_or_default();
    variables.retain(|(name, _)| name != VARIABLE);
    // As systemd has it, files of variables count above the unit's own.
    variables.extend(handed.variables.iter().cloned());
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    Environment::new(&name.unwrap_or_default(), variables)
}
