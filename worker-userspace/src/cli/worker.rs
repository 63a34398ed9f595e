//! `dworker worker`.

use clap::{Args, Subcommand};
use dworker::appliance::api::workers::{Worker, WorkerDetail, WorkerSaved};
use dworker::config::parse_duration;
use dworker::inspect::print::bytes;
use http::Method;
use serde_json::{Map, Value, json};

use super::client::{one, query, quoted};
use super::node::node_lines;
use super::table::{ago, dash, details, rtt, table};
use super::{Common, Done, Failure, confirm, warn};

const PATH: &str = "/api/v1/workers";
/// How long an old key may go on to work, at most.
const LONGEST_GRACE: std::time::Duration = std::time::Duration::from_secs(30 * 24 * 3600);

/// What to do with distributed workers.
#[derive(Debug, Subcommand)]
pub(crate) enum WorkerCommand {
    /// List the workers
    List(List),
    /// Show one worker, with its nodes and clouds
    Show(One),
    /// Add a worker, and print its key
    Add(Add),
    /// Change a worker
    Edit(Edit),
    /// Let a worker's key work
    Enable(One),
    /// Refuse a worker's key, and cut its nodes
    Disable(One),
    /// Give a worker another key, and print it
    RotateKey(RotateKey),
    /// Remove a worker
    Remove(Remove),
}

/// Which workers.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only those with this in their name, description or proxy hosts
    #[arg(long)]
    text: Option<String>,
    /// Only enabled ones
    #[arg(long, conflicts_with = "disabled")]
    enabled: bool,
    /// Only disabled ones
    #[arg(long)]
    disabled: bool,
    #[command(flatten)]
    common: Common,
}

/// One worker.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// Its name or number
    worker: String,
    #[command(flatten)]
    common: Common,
}

/// A new worker.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Its name: 1 to 63 of a-z, 0-9 and -
    name: String,
    /// For people
    #[arg(long, default_value = "")]
    description: String,
    /// What it carries, separated by commas: vcenter.corp.example:443,*.lab.example
    #[arg(long, value_name = "LIST", default_value = "")]
    proxy_hosts: String,
    /// Refuse its key for now
    #[arg(long)]
    disabled: bool,
    /// Let its nodes open streams to other workers' proxy hosts
    #[arg(long)]
    may_open: bool,
    #[command(flatten)]
    common: Common,
}

/// What to change.
#[derive(Debug, Args)]
pub(crate) struct Edit {
    /// Its name or number
    worker: String,
    /// Another name
    #[arg(long)]
    name: Option<String>,
    /// Another description
    #[arg(long)]
    description: Option<String>,
    /// Other proxy hosts, in place of all
    #[arg(long, value_name = "LIST")]
    proxy_hosts: Option<String>,
    /// Whether its nodes may open streams to other workers' proxy hosts
    #[arg(long, value_name = "true|false")]
    may_open: Option<bool>,
    /// Only where it has this revision still
    #[arg(long)]
    revision: Option<i64>,
    #[command(flatten)]
    common: Common,
}

/// Another key.
#[derive(Debug, Args)]
pub(crate) struct RotateKey {
    /// Its name or number
    worker: String,
    /// How long the old key goes on to work, as in 0s, 12h, 7d
    #[arg(long, default_value = "24h")]
    grace: String,
    /// End a key that is in its grace already
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

/// Remove a worker.
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Its name or number
    worker: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    common: Common,
}

impl WorkerCommand {
    pub(crate) async fn run(self) -> Done {
        match self {
            WorkerCommand::List(list) => list.run().await,
            WorkerCommand::Show(one) => one.show().await,
            WorkerCommand::Add(add) => add.run().await,
            WorkerCommand::Edit(edit) => edit.run().await,
            WorkerCommand::Enable(one) => {
                save(&one.common, &one.worker, json!({ "enabled": true }), "enabled").await
            }
            WorkerCommand::Disable(one) => {
                save(&one.common, &one.worker, json!({ "enabled": false }), "disabled").await
            }
            WorkerCommand::RotateKey(rotate) => rotate.run().await,
            WorkerCommand::Remove(remove) => remove.run().await,
        }
    }
}

fn at(worker: &str) -> String {
    format!("{PATH}/{}", quoted(worker))
}

fn state(worker: &Worker) -> &'static str {
    match (worker.enabled, worker.live.up) {
        (false, _) => "disabled",
        (true, true) => "up",
        (true, false) => "down",
    }
}

impl List {
    async fn run(self) -> Done {
        let enabled = match (self.enabled, self.disabled) {
            (true, _) => Some("true"),
            (_, true) => Some("false"),
            _ => None,
        };
        let path = format!("{PATH}{}", query(&[("text", self.text.as_deref()), ("enabled", enabled)]));
        let row = |worker: &Worker| {
            vec![
                worker.id.to_string(),
                worker.name.clone(),
                state(worker).to_owned(),
                worker.live.connected.to_string(),
                dash(worker.live.primary.as_deref().unwrap_or_default()),
                rtt(worker.live.rtt_us),
                worker.live.streams.to_string(),
                format!("{}/s", bytes(worker.live.rate.sent + worker.live.rate.received)),
                dash(&worker.proxy_hosts.join(" ")),
            ]
        };
        let header = ["id", "name", "state", "nodes", "primary", "rtt", "streams", "rate", "proxy hosts"];
        let shown = |workers: &[Worker]| table(&header, workers.iter().map(row));
        self.common.list(&path, usize::MAX, "no worker", shown).await
    }
}

impl One {
    async fn show(self) -> Done {
        let found: Value = self.common.client().await?.ask(Method::GET, &at(&self.worker), None).await?;
        let detail: WorkerDetail = one(&found)?;
        self.common.format.print(&found, || {
            let worker = &detail.worker;
            let rotated = worker.rotated.map(|at| format!("{} ago", ago(at))).unwrap_or_default();
            let until =
                worker.previous_key_until.map(|until| format!("until {until:.0}")).unwrap_or_default();
            let mut text = details(
                &format!("worker {}: {}", worker.name, state(worker)),
                &[
                    ("id", worker.id.to_string()),
                    ("description", worker.description.clone()),
                    ("proxy_hosts", worker.proxy_hosts.join(" ")),
                    ("clouds", detail.clouds.join(", ")),
                    ("may_open", if worker.may_open { "yes".into() } else { String::new() }),
                    ("origin", worker.origin.word().to_owned()),
                    ("key_sha256", worker.key_sha256.clone()),
                    ("key rotated", rotated),
                    ("old key works", until),
                    ("changed", format!("{} ago by {}", ago(worker.changed), worker.changed_by)),
                    ("revision", worker.revision.to_string()),
                    (
                        "rate",
                        format!(
                            "sent {}/s  received {}/s",
                            bytes(worker.live.rate.sent),
                            bytes(worker.live.rate.received)
                        ),
                    ),
                ],
            );
            text.extend(detail.nodes.iter().map(node_lines));
            text
        })
    }
}

impl Add {
    async fn run(self) -> Done {
        let body = json!({
            "name": self.name,
            "description": self.description,
            "proxy_hosts": self.proxy_hosts,
            "enabled": !self.disabled,
            "may_open": self.may_open,
        });
        let saved: Value = self.common.client().await?.ask(Method::POST, PATH, Some(&body)).await?;
        tell(&self.common, &saved, "added")
    }
}

impl Edit {
    async fn run(self) -> Done {
        let mut body = Map::new();
        body.extend(self.name.map(|name| ("name".into(), json!(name))));
        body.extend(self.description.map(|text| ("description".into(), json!(text))));
        body.extend(self.proxy_hosts.map(|list| ("proxy_hosts".into(), json!(list))));
        body.extend(self.may_open.map(|may| ("may_open".into(), json!(may))));
        if body.is_empty() {
            let remedy = "say what to change: --name, --description, --proxy-hosts or --may-open";
            return Err(Failure::Usage(remedy.into()));
        }
        body.extend(self.revision.map(|revision| ("revision".into(), json!(revision))));
        save(&self.common, &self.worker, body.into(), "changed").await
    }
}

impl RotateKey {
    async fn run(self) -> Done {
        let grace = parse_duration(&self.grace, LONGEST_GRACE)
            .map_err(|error| Failure::Usage(format!("--grace {:?}: {error}", self.grace)))?;
        let body = json!({ "grace": grace.as_secs(), "force": self.force });
        let path = format!("{}/key", at(&self.worker));
        let saved: Value = self.common.client().await?.ask(Method::POST, &path, Some(&body)).await?;
        tell(&self.common, &saved, "has another key")
    }
}

impl Remove {
    async fn run(self) -> Done {
        confirm(self.yes, &format!("remove worker {}", self.worker))?;
        let () = self.common.client().await?.ask(Method::DELETE, &at(&self.worker), None).await?;
        self.common.format.print(&Value::Null, || format!("worker {} removed\n", self.worker))
    }
}

async fn save(common: &Common, worker: &str, body: Value, done: &str) -> Done {
    let saved: Value = common.client().await?.ask(Method::PATCH, &at(worker), Some(&body)).await?;
    tell(common, &saved, done)
}

/// What came of a save. A key stands alone on its line, as the configuration takes it.
fn tell(common: &Common, answer: &Value, done: &str) -> Done {
    let saved: WorkerSaved = one(answer)?;
    warn(&saved.warnings);
    common.format.print(answer, || {
        let mut text = format!("worker {} {done}\n", saved.worker.name);
        if let Some(key) = &saved.key {
            text += &format!("worker_key = \"{key}\"\n");
        }
        if let Some(until) = saved.worker.previous_key_until {
            text += &format!("the old key works until {until:.0}\n");
        }
        text
    })
}
