//! `dworker token`.

use clap::{Args, Subcommand};
use http::Method;
use serde_json::Value;

use super::{Common, Done};

/// What to do with the admin token.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make another admin token and print it; all sessions end. Through the control socket only
    Reset(Reset),
}

/// Make another one.
#[derive(Debug, Args)]
pub(crate) struct Reset {
    #[command(flatten)]
    common: Common,
}

impl TokenCommand {
    pub(crate) async fn run(self) -> Done {
        let TokenCommand::Reset(Reset { common }) = self;
        let made: Value = common.client().await?.ask(Method::POST, "/api/v1/token", None).await?;
        common.format.print(&made, || format!("{}\n", made["token"].as_str().unwrap_or_default()))
    }
}
