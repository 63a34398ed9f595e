//! `dworker config`, and where every command that needs a configuration finds it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use dworker::config::{self, Faults, Loaded};
use dworker::service::{Host, HostError, NAME, Reading};
use nix::unistd::geteuid;

use super::{Done, Failure, Format, print_all};

/// Which configuration.
#[derive(Debug, Args)]
pub(crate) struct Given {
    /// The configuration; `.rb` is that of the older product. Without it /etc/dworker/dworker.toml, else
    /// /etc/morpheus/morpheus-worker.rb, else the environment alone; as root, but for `run`, what the installed service
    /// reads, with its variables and credentials
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// A configuration that was read.
pub(crate) struct Read {
    /// What it was read from.
    pub(crate) source: String,
    pub(crate) loaded: Loaded,
    /// As the service reads it, with its credentials: files that are there as long as this is.
    reading: Option<Reading>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unread {
    #[error("{0}")]
    Wrong(Faults),
    /// What the service is handed can't be found out.
    #[error("{0}")]
    Host(HostError),
}

impl Unread {
    /// Each thing that is wrong, in a line.
    pub(crate) fn lines(&self) -> Vec<String> {
        match self {
            Unread::Wrong(faults) => faults.iter().map(ToString::to_string).collect(),
            Unread::Host(error) => vec![error.to_string()],
        }
    }
}

impl From<Unread> for Failure {
    fn from(unread: Unread) -> Failure {
        match unread {
            Unread::Wrong(faults) => Failure::Wrong(faults),
            Unread::Host(error) => Failure::Failed(error.to_string()),
        }
    }
}

impl Given {
    /// Reads it as the service does, where root names none and the service is installed; else in this process's
    /// environment.
    pub(crate) fn load(&self) -> Result<Read, Unread> {
        let host = Host::new(None);
        let of_service =
            self.config.is_none() && geteuid().is_root() && host.has_unit().map_err(Unread::Host)?;
        if !of_service {
            let (source, loaded) = self.load_here().map_err(Unread::Wrong)?;
            return Ok(Read { source, loaded, reading: None });
        }
        let named = host.named().map_err(Unread::Host)?;
        let reading = Reading::of(&host, named.as_deref()).map_err(Unread::Host)?;
        let loaded = reading.read().map_err(Unread::Host)?.map_err(Unread::Wrong)?;
        Ok(Read { source: reading.source(), loaded, reading: Some(reading) })
    }

    /// Reads it in this process's environment, as a daemon does; the first is what it was read from.
    pub(crate) fn load_here(&self) -> Result<(String, Loaded), Faults> {
        config::read(self.config.as_deref())
    }
}

/// The configuration, without a daemon.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say everything that is wrong with it, and what is allowed but hardly wanted
    Check(Given),
    /// Print each key, what holds for it, and who says so; secrets as ***
    Show {
        #[command(flatten)]
        given: Given,
        #[command(flatten)]
        format: Format,
    },
    /// Make a TOML file of the older product's morpheus-worker.rb, secrets included
    Import {
        /// The older product's file
        file: PathBuf,
        /// Where to, mode 600, instead of standard output
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Replace a file that is there
        #[arg(long, requires = "output")]
        force: bool,
    },
    /// Print a file with every key, its meaning and its default, all commented out
    Template,
}

impl ConfigCommand {
    pub(crate) fn run(self) -> Done {
        match self {
            ConfigCommand::Check(given) => {
                let Read { source, loaded, reading } = given.load()?;
                for warning in &loaded.warnings {
                    eprintln!("warning: {warning}");
                }
                let whose = if reading.is_some() { format!(" for {NAME}") } else { String::new() };
                print_all(&format!("{source}: valid{whose}\n"))
            }
            ConfigCommand::Show { given, format } => {
                let Read { loaded, reading, .. } = given.load()?;
                let loaded = match &reading {
                    Some(reading) => reading.shown(loaded),
                    None => loaded,
                };
                format.print(&loaded.effective, || loaded.effective.to_string())
            }
            ConfigCommand::Import { file, output, force } => {
                let made = config::import(&file).map_err(Failure::Wrong)?;
                match output {
                    None => print_all(&made),
                    Some(output) => save(&output, &made, force),
                }
            }
            ConfigCommand::Template => print_all(&config::template()),
        }
    }
}

/// Writes a file that only its owner reads, whole or not at all.
fn save(path: &Path, text: &str, force: bool) -> Done {
    let failed = |error: io::Error| {
        let remedy = match error.kind() {
            io::ErrorKind::AlreadyExists => ": choose another, or replace it with `--force`",
            _ => "",
        };
        Failure::Failed(format!("--output {}: {error}{remedy}", path.display()))
    };
    let fresh = path.with_extension(format!("new.{}", std::process::id()));
    let written =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            match force {
                true => fs::rename(&fresh, path),
                // Fails where something is there, which `rename` would replace.
                false => fs::hard_link(&fresh, path),
            }
        });
    // After a rename there is nothing left.
    let _ = fs::remove_file(&fresh);
    written.map_err(failed)
}
