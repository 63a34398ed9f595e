//! `dworker connections`.

use clap::{Args, Subcommand};
use dworker::inspect::ledger::FlowReport;
use dworker::inspect::print::{age, bytes};
use http::Method;
use serde_json::{Value, json};

use super::client::query;
use super::table::{dash, table};
use super::{Common, Done, Failure};

const PATH: &str = "/api/v1/connections";

/// The connections, or what to do with them.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Connections {
    #[command(subcommand)]
    command: Option<ConnectionsCommand>,
    #[command(flatten)]
    list: List,
}

/// What to do with connections.
#[derive(Debug, Subcommand)]
pub(crate) enum ConnectionsCommand {
    /// List the connections, newest first
    List(List),
    /// Close connections, with a reset at both ends
    Close(Close),
}

/// Which connections.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Those that have ended lately, too
    #[arg(long)]
    all: bool,
    /// Only those with this in what is known of them: target, process, user, worker, addresses, trace, reason
    #[arg(long)]
    text: Option<String>,
    /// Only those with this in their target
    #[arg(long)]
    target: Option<String>,
    /// Only those that this worker carries, or this node of it (WORKER/HOST)
    #[arg(long, value_name = "WORKER")]
    carrier: Option<String>,
    /// Only those of this process
    #[arg(long)]
    pid: Option<u32>,
    /// How many at most
    #[arg(long, default_value = "100")]
    limit: usize,
    #[command(flatten)]
    common: Common,
}

/// Which to close.
#[derive(Debug, Args)]
pub(crate) struct Close {
    /// Their numbers
    #[arg(required = true)]
    ids: Vec<u64>,
    #[command(flatten)]
    common: Common,
}

impl Connections {
    pub(crate) async fn run(self) -> Done {
        match self.command {
            None => self.list.run().await,
            Some(ConnectionsCommand::List(list)) => list.run().await,
            Some(ConnectionsCommand::Close(close)) => close.run().await,
        }
    }
}

impl List {
    async fn run(self) -> Done {
        let pid = self.pid.map(|pid| pid.to_string());
        let filter = [
            ("phase", (!self.all).then_some("open")),
            ("text", self.text.as_deref()),
            ("target", self.target.as_deref()),
            ("carrier", self.carrier.as_deref()),
            ("pid", pid.as_deref()),
        ];
        // Of those that have ended it is not how long ago they began.
        let lasted = if self.all { "lasted" } else { "age" };
        let header = ["id", "target", "who", "carrier", "state", "up", "down", "rate", lasted];
        let shown = |flows: &[FlowReport]| table(&header, flows.iter().map(row));
        self.common.list(&format!("{PATH}{}", query(&filter)), self.limit, "no connection", shown).await
    }
}

fn row(flow: &FlowReport) -> Vec<String> {
    let who = match (&flow.process, &flow.from, &flow.source) {
        (Some(process), _, _) => format!("{}[{}]", process.comm, process.pid),
        (_, Some(worker), _) => format!("worker {worker}"),
        (_, _, Some(source)) => source.to_string(),
        _ => "-".into(),
    };
    vec![
        flow.id.to_string(),
        flow.target.clone(),
        who,
        dash(flow.carrier.as_deref().unwrap_or_default()),
        flow.state.clone(),
        bytes(flow.bytes_up),
        bytes(flow.bytes_down),
        format!("{}/s", bytes(flow.rate_up + flow.rate_down)),
        age(std::time::Duration::from_millis(flow.age_ms)),
    ]
}

impl Close {
    async fn run(self) -> Done {
        let mut client = self.common.client().await?;
        let (mut closed, mut first) = (Vec::new(), None);
        // Each is tried: that one has ended meanwhile concerns no other.
        for id in self.ids {
            match client.ask::<()>(Method::DELETE, &format!("{PATH}/{id}"), None).await {
                Ok(()) => closed.push(id),
                Err(failure @ Failure::Refused(_)) => {
                    if let Some(before) = first.replace(failure) {
                        eprintln!("dworker: {before}");
                    }
                }
                Err(failure) => return Err(failure),
            }
        }
        let answer: Value = json!({ "closed": closed });
        self.common.format.print(&answer, || {
            closed.iter().map(|id| format!("connection {id} closed\n")).collect::<String>()
        })?;
        first.map_or(Ok(()), Err)
    }
}
