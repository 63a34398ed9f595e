//! `dworker status`.

use clap::Args;
use dworker::inspect::api::STATUS;
use dworker::inspect::print;
use dworker::inspect::status::Status;
use http::Method;

use super::{Common, Done};

/// Show what a daemon does.
#[derive(Debug, Args)]
pub(crate) struct StatusCommand {
    #[command(flatten)]
    common: Common,
}

impl StatusCommand {
    pub(crate) async fn run(self) -> Done {
        let status: Status = self.common.client().await?.ask(Method::GET, STATUS, None).await?;
        self.common.format.print(&status, || print::plain(&status))
    }
}
