//! `dworker node`.

use clap::{Args, Subcommand};
use dworker::appliance::api::nodes::Node;
use dworker::inspect::print::bytes;
use dworker::web::Problem;
use http::Method;
use serde_json::{Value, json};

use super::client::{Client, one, query, quoted};
use super::table::{ago, dash, details, rtt, table};
use super::{Common, Done, Failure, confirm};

/// What to do with nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List the nodes, of one worker or of all
    List(List),
    /// Give a node its place in its worker's order: the lowest is primary
    Priority(Priority),
    /// Forget a node that is gone for good
    Forget(Forget),
}

/// Which nodes.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// A worker's name or number
    worker: Option<String>,
    /// Only those that do this now: primary, standby, leaving or offline
    #[arg(long)]
    role: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// Which place.
#[derive(Debug, Args)]
pub(crate) struct Priority {
    /// A worker's name or number
    worker: String,
    /// The node's id, the beginning of it, or its host's name
    node: String,
    /// A number, or `none`: behind all numbers
    #[arg(allow_negative_numbers = true)]
    priority: String,
    #[command(flatten)]
    common: Common,
}

/// Which node.
#[derive(Debug, Args)]
pub(crate) struct Forget {
    /// A worker's name or number
    worker: String,
    /// The node's id, the beginning of it, or its host's name
    node: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    common: Common,
}

impl NodeCommand {
    pub(crate) async fn run(self) -> Done {
        match self {
            NodeCommand::List(list) => list.run().await,
            NodeCommand::Priority(priority) => priority.run().await,
            NodeCommand::Forget(forget) => forget.run().await,
        }
    }
}

fn of_worker(worker: &str) -> String {
    format!("/api/v1/workers/{}/nodes", quoted(worker))
}

/// A node among its worker's details.
pub(super) fn node_lines(node: &Node) -> String {
    let live = match node.connected_since {
        Some(since) => {
            format!("  rtt {}  streams {}  connected for {}", rtt(node.rtt_us), node.streams, ago(since))
        }
        None => format!("  last seen {} ago", ago(node.last_seen)),
    };
    let priority = node.priority.map(|n| format!("  priority {n}")).unwrap_or_default();
    let line = format!(
        "node {}  {}  id {}  dworker {}{priority}{live}",
        node.host_name,
        node.role.word(),
        short(node),
        node.software
    );
    format!("\t{}", details(&line, &[]))
}

fn short(node: &Node) -> &str {
    node.id.get(..8).unwrap_or(&node.id)
}

/// The one node of a worker that is meant.
async fn find(client: &mut Client, worker: &str, text: &str) -> Result<Node, Failure> {
    let nodes = client.all(&(of_worker(worker) + "?"), usize::MAX).await?;
    let nodes = nodes.iter().map(one).collect::<Result<Vec<Node>, Failure>>()?;
    let wanted = text.to_ascii_lowercase();
    let is_meant = |node: &&Node| node.id.starts_with(&wanted) || node.host_name.eq_ignore_ascii_case(text);
    let meant: Vec<&Node> = nodes.iter().filter(is_meant).collect();
    match meant[..] {
        [node] => Ok(node.clone()),
        [] => Err(Failure::Refused(Problem::not_found(format!("worker {worker} has no node {text:?}")))),
        _ => {
            let ids: Vec<String> =
                meant.iter().map(|node| format!("{} ({})", node.id, node.host_name)).collect();
            Err(Failure::Usage(format!("{text:?} may be several nodes: {}", ids.join(", "))))
        }
    }
}

impl List {
    async fn run(self) -> Done {
        let path = self.worker.as_deref().map_or("/api/v1/nodes".into(), of_worker);
        let path = path + &query(&[("role", self.role.as_deref())]);
        let row = |node: &Node| {
            vec![
                node.worker.clone(),
                node.host_name.clone(),
                short(node).to_owned(),
                node.role.word().to_owned(),
                dash(&node.priority.map(|n| n.to_string()).unwrap_or_default()),
                rtt(node.rtt_us),
                node.streams.to_string(),
                bytes(node.bytes_sent),
                bytes(node.bytes_received),
                ago(node.last_seen),
                node.address.to_string(),
            ]
        };
        let header = [
            "worker", "host", "id", "role", "priority", "rtt", "streams", "sent", "received", "seen",
            "address",
        ];
        let shown = |nodes: &[Node]| table(&header, nodes.iter().map(row));
        self.common.list(&path, usize::MAX, "no node", shown).await
    }
}

impl Priority {
    async fn run(self) -> Done {
        let priority = match self.priority.as_str() {
            "none" => None,
            text => Some(text.parse::<i32>().map_err(|_| {
                Failure::Usage(format!("{text:?} is no priority: write a whole number, or `none`"))
            })?),
        };
        let mut client = self.common.client().await?;
        let node = find(&mut client, &self.worker, &self.node).await?;
        let path = format!("{}/{}", of_worker(&self.worker), node.id);
        let saved: Value = client.ask(Method::PATCH, &path, Some(&json!({ "priority": priority }))).await?;
        self.common.format.print(&saved, || {
            format!("node {} of {}: priority {}\n", node.host_name, self.worker, self.priority)
        })
    }
}

impl Forget {
    async fn run(self) -> Done {
        let mut client = self.common.client().await?;
        let node = find(&mut client, &self.worker, &self.node).await?;
        confirm(
            self.yes,
            &format!("forget node {} ({}) of worker {}", node.host_name, short(&node), self.worker),
        )?;
        // A person may have thought for longer than an idle connection is kept.
        let mut client = self.common.client().await?;
        let () =
            client.ask(Method::DELETE, &format!("{}/{}", of_worker(&self.worker), node.id), None).await?;
        self.common
            .format
            .print(&Value::Null, || format!("node {} of {} forgotten\n", node.host_name, self.worker))
    }
}
