//! `dworker cloud`.

use clap::{Args, Subcommand};
use dworker::appliance::api::clouds::{Cloud, CloudSaved};
use http::Method;
use serde_json::{Map, Value, json};

use super::client::{one, query, quoted};
use super::table::{ago, dash, details, table};
use super::{Common, Done, Failure, confirm, warn};

const PATH: &str = "/api/v1/clouds";

/// What to do with clouds.
#[derive(Debug, Subcommand)]
pub(crate) enum CloudCommand {
    /// List the clouds
    List(List),
    /// Show one cloud
    Show(One),
    /// Add a cloud
    Add(Add),
    /// Change a cloud
    Edit(Edit),
    /// Give a cloud to a worker, or to none
    Assign(Assign),
    /// Remove a cloud
    Remove(Remove),
}

/// Which clouds.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only those with this in their name or API URL
    #[arg(long)]
    text: Option<String>,
    /// Only those of this type
    #[arg(long, value_name = "TYPE")]
    r#type: Option<String>,
    /// Only those that this worker carries
    #[arg(long)]
    worker: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// One cloud.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// Its name or number
    cloud: String,
    #[command(flatten)]
    common: Common,
}

/// A new cloud.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Its name
    name: String,
    /// vmware, vmwareCloudAws, nutanix, openstack, xenserver or macstadium
    #[arg(long, value_name = "TYPE")]
    r#type: String,
    /// Where its API is: https://HOST[:PORT][/PATH]
    #[arg(long, value_name = "URL")]
    api_url: String,
    /// The worker that carries it, by name or number
    #[arg(long)]
    worker: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// What to change.
#[derive(Debug, Args)]
pub(crate) struct Edit {
    /// Its name or number
    cloud: String,
    /// Another name
    #[arg(long)]
    name: Option<String>,
    /// Another type
    #[arg(long, value_name = "TYPE")]
    r#type: Option<String>,
    /// Another place of its API
    #[arg(long, value_name = "URL")]
    api_url: Option<String>,
    /// Only where it has this revision still
    #[arg(long)]
    revision: Option<i64>,
    #[command(flatten)]
    common: Common,
}

/// To whom.
#[derive(Debug, Args)]
pub(crate) struct Assign {
    /// Its name or number
    cloud: String,
    /// The worker's name or number
    #[arg(conflicts_with = "none")]
    worker: Option<String>,
    /// To none: it is reached without a worker
    #[arg(long)]
    none: bool,
    #[command(flatten)]
    common: Common,
}

/// Remove a cloud.
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Its name or number
    cloud: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    common: Common,
}

impl CloudCommand {
    pub(crate) async fn run(self) -> Done {
        match self {
            CloudCommand::List(list) => list.run().await,
            CloudCommand::Show(one) => one.run().await,
            CloudCommand::Add(add) => add.run().await,
            CloudCommand::Edit(edit) => edit.run().await,
            CloudCommand::Assign(assign) => {
                if assign.worker.is_none() && !assign.none {
                    let remedy = "name the worker that is to carry the cloud, or say `--none`: it is then reached without one";
                    return Err(Failure::Usage(remedy.into()));
                }
                let body = json!({ "worker": assign.worker });
                save(&assign.common, &assign.cloud, body).await
            }
            CloudCommand::Remove(remove) => remove.run().await,
        }
    }
}

fn at(cloud: &str) -> String {
    format!("{PATH}/{}", quoted(cloud))
}

fn carrier(cloud: &Cloud) -> String {
    cloud.worker.as_ref().map_or("-".into(), |worker| worker.name.clone())
}

impl List {
    async fn run(self) -> Done {
        let filter = [
            ("text", self.text.as_deref()),
            ("type", self.r#type.as_deref()),
            ("worker", self.worker.as_deref()),
        ];
        let row = |cloud: &Cloud| {
            let (kind, worker) = (cloud.kind.to_string(), carrier(cloud));
            vec![cloud.id.to_string(), cloud.name.clone(), kind, worker, dash(&cloud.api_url)]
        };
        let header = ["id", "name", "type", "worker", "api url"];
        let shown = |clouds: &[Cloud]| table(&header, clouds.iter().map(row));
        self.common.list(&format!("{PATH}{}", query(&filter)), usize::MAX, "no cloud", shown).await
    }
}

impl One {
    async fn run(self) -> Done {
        let found: Value = self.common.client().await?.ask(Method::GET, &at(&self.cloud), None).await?;
        let cloud: Cloud = one(&found)?;
        self.common.format.print(&found, || {
            details(
                &format!("cloud {}: {}", cloud.name, cloud.kind),
                &[
                    ("id", cloud.id.to_string()),
                    ("api_url", cloud.api_url.clone()),
                    ("proxy_host", cloud.proxy_host.clone()),
                    ("worker", carrier(&cloud)),
                    ("changed", format!("{} ago by {}", ago(cloud.changed), cloud.changed_by)),
                    ("revision", cloud.revision.to_string()),
                ],
            )
        })
    }
}

impl Add {
    async fn run(self) -> Done {
        let body =
            json!({ "name": self.name, "type": self.r#type, "api_url": self.api_url, "worker": self.worker });
        let saved: Value = self.common.client().await?.ask(Method::POST, PATH, Some(&body)).await?;
        tell(&self.common, &saved, "added")
    }
}

impl Edit {
    async fn run(self) -> Done {
        let mut body = Map::new();
        body.extend(self.name.map(|name| ("name".into(), json!(name))));
        body.extend(self.r#type.map(|kind| ("type".into(), json!(kind))));
        body.extend(self.api_url.map(|url| ("api_url".into(), json!(url))));
        if body.is_empty() {
            return Err(Failure::Usage("say what to change: --name, --type or --api-url".into()));
        }
        body.extend(self.revision.map(|revision| ("revision".into(), json!(revision))));
        save(&self.common, &self.cloud, body.into()).await
    }
}

impl Remove {
    async fn run(self) -> Done {
        confirm(self.yes, &format!("remove cloud {}", self.cloud))?;
        let () = self.common.client().await?.ask(Method::DELETE, &at(&self.cloud), None).await?;
        self.common.format.print(&Value::Null, || format!("cloud {} removed\n", self.cloud))
    }
}

async fn save(common: &Common, cloud: &str, body: Value) -> Done {
    let saved: Value = common.client().await?.ask(Method::PATCH, &at(cloud), Some(&body)).await?;
    tell(common, &saved, "changed")
}

fn tell(common: &Common, answer: &Value, done: &str) -> Done {
    let saved: CloudSaved = one(answer)?;
    warn(&saved.warnings);
    common.format.print(answer, || {
        let carried = match &saved.cloud.worker {
            Some(worker) => format!("carried by worker {}", worker.name),
            None => "without a worker".into(),
        };
        format!("cloud {} {done}: {} {carried}\n", saved.cloud.name, saved.cloud.proxy_host)
    })
}
