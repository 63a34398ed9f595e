//! `dworker log`.

use clap::Args;
use dworker::inspect::api::LOG;
use dworker::telemetry::Filter;
use http::Method;
use serde_json::json;

use super::{Done, Here};

/// Show what a daemon logs, or change it until its next start.
#[derive(Debug, Args)]
pub(crate) struct Log {
    /// error, warn, info, debug, trace, or a filter such as dworker::tunnel=debug,info
    filter: Option<String>,
    /// How long it holds, as in 10m; then what was before comes back
    #[arg(long = "for", value_name = "DURATION", requires = "filter")]
    lasts: Option<String>,
    #[command(flatten)]
    here: Here,
}

impl Log {
    pub(crate) async fn run(self) -> Done {
        let Log { filter, lasts, here } = self;
        let mut client = here.client().await?;
        let now: Filter = match filter {
            None => client.ask(Method::GET, LOG, None).await?,
            Some(filter) => {
                let wanted = match lasts {
                    Some(lasts) => json!({ "filter": filter, "for": lasts }),
                    None => json!({ "filter": filter }),
                };
                client.ask(Method::PUT, LOG, Some(&wanted)).await?
            }
        };
        here.format.print(&now, || match (&now.then, now.until) {
            (Some(then), Some(until)) => format!("{}\nuntil {until:.0}, then {then}\n", now.filter),
            _ => format!("{}\n", now.filter),
        })
    }
}
