//! `dworker status`.

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use dworker::inspect::api::STATUS;
use dworker::inspect::objects::{self, Object};
use dworker::inspect::status::Status;
use dworker::inspect::{print, schema};
use dworker::web::{Kind, Problem};
use http::Method;
use serde_json::Value;

use super::client::query;
use super::{Common, Done, Failure, print_all};

/// Show what a daemon does.
#[derive(Debug, Args)]
pub(crate) struct StatusCommand {
    /// Only what there is of one kind; all of it in short where left out
    #[arg(value_enum)]
    object: Option<Word>,
    /// Only the one with this id or name. Those of prog, map and link are the kernel's: bpftool takes them too
    #[arg(requires = "object")]
    id: Option<String>,
    /// Print the JSON schema of what this and other commands print with -j
    #[arg(long, exclusive = true)]
    schema: bool,
    #[command(flatten)]
    common: Common,
}

/// A kind, as it is written on the command line.
#[derive(Debug, Clone, Copy)]
struct Word(Object);

impl ValueEnum for Word {
    fn value_variants<'a>() -> &'a [Word] {
        const ALL: [Word; Object::ALL.len()] = {
            let mut all = [Word(Object::Prog); Object::ALL.len()];
            let mut at = 0;
            while at < all.len() {
                all[at] = Word(Object::ALL[at]);
                at += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self.0 {
            Object::Prog => "programs in the kernel",
            Object::Map => "their maps",
            Object::Link => "their attachments to cgroups",
            Object::Rule => "what is steered, and who carries it",
            Object::Flow => "connections, open and ended",
            Object::Dns => "names with their addresses, resolvers, counters",
            Object::Tunnel => "sessions between appliance and workers, with their lanes",
            Object::Stream => "streams that are open",
        };
        Some(PossibleValue::new(self.0.word()).help(help))
    }
}

impl StatusCommand {
    pub(crate) async fn run(self) -> Done {
        if self.schema {
            return print_all(&schema::text());
        }
        let path = format!("{STATUS}{}", query(&[("item", self.id.as_deref())]));
        let status: Status = self.common.client().await?.ask(Method::GET, &path, None).await?;
        let format = self.common.format;
        let Some(Word(object)) = self.object else { return format.print(&status, || print::plain(&status)) };
        let items = objects::list(&status, object);
        let Some(id) = self.id else {
            let all: Vec<&Value> = items.iter().map(|item| &item.json).collect();
            let (word, more) = (object.word(), objects::more(&status, object));
            if more > 0 {
                eprintln!("dworker: {more} more are not listed; `dworker status {word} ID` finds them, too");
            }
            return format.print(&all, || items.iter().map(|item| item.plain.as_str()).collect());
        };
        match items.iter().find(|item| item.is(&id)) {
            Some(item) => format.print(&item.json, || item.plain.clone()),
            None => {
                let text = format!(
                    "there is no {} {id:?}: `dworker status {}` lists those that there are",
                    object.word(),
                    object.word()
                );
                Err(Failure::Refused(Problem::new(Kind::NotFound, text)))
            }
        }
    }
}
