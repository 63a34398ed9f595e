//! `dworker reload`, `dworker steer`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use dworker::inspect::api::{RELOAD, STEER_OFF, STEER_ON};
use dworker::steer::pins::{Pins, PinsError};
use http::Method;
use serde_json::{Value, json};

use super::{Common, Done, Failure};

/// How long a reload may take: longer than all its deadlines together.
const PATIENCE: Duration = Duration::from_secs(60);

/// Have a new process take over.
#[derive(Debug, Args)]
pub(crate) struct Reload {
    #[command(flatten)]
    common: Common,
}

impl Reload {
    pub(crate) async fn run(self) -> Done {
        let mut client = self.common.client().await?.patient(PATIENCE);
        let answer: Value = client.ask(Method::POST, RELOAD, None).await?;
        self.common.format.print(&answer, || format!("process {} serves now\n", answer["pid"]))
    }
}

/// Whether connections are captured.
#[derive(Debug, Subcommand)]
pub(crate) enum SteerCommand {
    /// Capture nothing any more, until `steer on` or a restart; without a daemon, remove what one left in the kernel
    Off(Off),
    /// Capture again
    On(On),
}

/// Capture nothing.
#[derive(Debug, Args)]
pub(crate) struct Off {
    /// What `steer.pins` says, for where no daemon is there to be asked
    #[arg(long, value_name = "DIRECTORY", default_value = "/sys/fs/bpf/dworker")]
    pins: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// Capture again.
#[derive(Debug, Args)]
pub(crate) struct On {
    #[command(flatten)]
    common: Common,
}

impl SteerCommand {
    pub(crate) async fn run(self) -> Done {
        match self {
            SteerCommand::Off(off) => off.run().await,
            SteerCommand::On(On { common }) => {
                let answer: Value = common.client().await?.ask(Method::POST, STEER_ON, None).await?;
                common.format.print(&answer, || said(&answer, "on"))
            }
        }
    }
}

impl Off {
    async fn run(self) -> Done {
        let Off { pins, common } = self;
        // Whether a daemon has them is what their lock says; its socket may outlive it, in the service manager's store.
        let answer: Value = match Pins::remove_left(&pins) {
            Err(PinsError::Taken(_)) => common.client().await?.ask(Method::POST, STEER_OFF, None).await?,
            Ok(removed) => json!({ "changed": removed, "removed": removed.then_some(pins) }),
            Err(error) => return Err(Failure::Failed(error.to_string())),
        };
        common.format.print(&answer, || match answer["removed"].as_str() {
            Some(pins) => format!("no daemon is there; removed {pins}\n"),
            None => said(&answer, "off"),
        })
    }
}

fn said(answer: &Value, what: &str) -> String {
    match answer["changed"] == true {
        true => format!("steering is {what}\n"),
        false => format!("steering was {what} already\n"),
    }
}
