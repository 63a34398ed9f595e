//! `dworker reload`, `dworker steer`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use dworker::config::{Config, PINS, SOCKET};
use dworker::inspect::api::{RELOAD, STEER_OFF, STEER_ON};
use dworker::steer::pins::{Pins, PinsError};
use http::Method;
use serde_json::{Value, json};

use super::client::Client;
use super::config::Given;
use super::{Done, Failure, Format, Here};

/// How long a reload may take: longer than all its deadlines together.
const PATIENCE: Duration = Duration::from_secs(60);

/// Have a new process take over.
#[derive(Debug, Args)]
pub(crate) struct Reload {
    #[command(flatten)]
    here: Here,
}

impl Reload {
    pub(crate) async fn run(self) -> Done {
        let mut client = self.here.client().await?.patient(PATIENCE);
        let answer: Value = client.ask(Method::POST, RELOAD, None).await?;
        self.here.format.print(&answer, || format!("process {} serves now\n", answer["pid"]))
    }
}

/// Whether connections are captured.
#[derive(Debug, Subcommand)]
pub(crate) enum SteerCommand {
    /// Capture nothing any more, until `steer on` or a restart; where no daemon answers, remove what one left in the kernel
    Off(Off),
    /// Capture again
    On(On),
}

/// Capture nothing.
#[derive(Debug, Args)]
pub(crate) struct Off {
    /// The daemon's control socket; without it what the configuration says
    #[arg(long, value_name = "PATH", help_heading = "Whom to ask")]
    socket: Option<PathBuf>,
    /// Where a daemon left something, for where none answers; without it what the configuration says
    #[arg(long, value_name = "DIRECTORY")]
    pins: Option<PathBuf>,
    #[command(flatten)]
    given: Given,
    #[command(flatten)]
    format: Format,
}

/// Capture again.
#[derive(Debug, Args)]
pub(crate) struct On {
    #[command(flatten)]
    here: Here,
}

impl SteerCommand {
    pub(crate) async fn run(self) -> Done {
        match self {
            SteerCommand::Off(off) => off.run().await,
            SteerCommand::On(On { here }) => {
                let answer: Value = here.client().await?.ask(Method::POST, STEER_ON, None).await?;
                here.format.print(&answer, || said(&answer, "on"))
            }
        }
    }
}

impl Off {
    async fn run(self) -> Done {
        let (socket, pins) = self.places()?;
        // A daemon's answer counts, whatever it steers with.
        if let Some(mut client) = Client::answering(&socket).await? {
            let answer: Value = client.ask(Method::POST, STEER_OFF, None).await?;
            return self.format.print(&answer, || said(&answer, "off"));
        }
        let (socket, pins) = (socket.display(), pins.as_path());
        let removed = Pins::remove_left(pins).map_err(|error| {
            Failure::Failed(match error {
                PinsError::Taken(pins) => format!(
                    "a daemon steers with {} and does not answer at {socket}: name its `control_socket` with \
                     `--socket`",
                    pins.display()
                ),
                error => error.to_string(),
            })
        })?;
        let answer = json!({
            "changed": removed,
            "removed": removed.then_some(pins),
            "socket": socket.to_string(),
            "pins": pins,
        });
        self.format.print(&answer, || match removed {
            true => format!("no daemon answers at {socket}; removed {}\n", pins.display()),
            false => format!("no daemon answers at {socket}, and nothing is left in {}\n", pins.display()),
        })
    }

    /// The socket to ask at, and where something may be left.
    fn places(&self) -> Result<(PathBuf, PathBuf), Failure> {
        if let (Some(socket), Some(pins)) = (&self.socket, &self.pins) {
            return Ok((socket.clone(), pins.clone()));
        }
        let config = match self.given.load() {
            Ok(read) => Some(read.loaded.config),
            Err(unread) if self.given.config.is_some() => return Err(unread.into()),
            // None is there, or no daemon would start with it; what was asked and looked at is told.
            Err(_) => None,
        };
        let (control, kept) = match config {
            Some(Config { control_socket, steer, .. }) => {
                (Some(control_socket), steer.map(|steer| steer.pins))
            }
            None => (None, None),
        };
        let socket = self.socket.clone().or(control).unwrap_or_else(|| SOCKET.into());
        Ok((socket, self.pins.clone().or(kept).unwrap_or_else(|| PINS.into())))
    }
}

fn said(answer: &Value, what: &str) -> String {
    match answer["changed"] == true {
        true => format!("steering is {what}\n"),
        false => format!("steering was {what} already\n"),
    }
}
