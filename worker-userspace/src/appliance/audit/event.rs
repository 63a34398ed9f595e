//! What is kept of what happened: an event, its kind, and how events are asked for.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::LONGEST_NAME;
use crate::config::mask_secrets;

/// Something that happened, as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Rises with each event; 0 before it is kept.
    pub id: i64,
    /// When it happened.
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// What kind of thing.
    pub kind: EventKind,
    /// Who did it.
    pub actor: String,
    /// What it was done to: a worker's or a cloud's name, `worker/node`, a target.
    pub subject: String,
    /// What exactly, for people.
    pub text: String,
    /// From which address.
    #[schema(value_type = Option<String>)]
    pub source: Option<IpAddr>,
}

/// Something that has just happened.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    /// What kind of thing.
    pub kind: EventKind,
    /// Who did it.
    pub actor: String,
    /// What it was done to.
    pub subject: String,
    /// What exactly, for people.
    pub text: String,
    /// From which address.
    pub source: Option<IpAddr>,
}

/// Who asks for a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// As events show it: `admin`, `root on this host`.
    pub name: String,
    /// Where the request came from.
    pub source: Option<IpAddr>,
}

impl Actor {
    /// An actor without an address.
    pub fn local(name: impl Into<String>) -> Actor {
        Actor { name: name.into(), source: None }
    }

    /// An actor at an address.
    pub fn at(name: impl Into<String>, source: IpAddr) -> Actor {
        Actor { name: name.into(), source: Some(source) }
    }

    /// The name as records keep it.
    pub(in crate::appliance) fn signature(&self) -> String {
        mask_secrets(&self.name, LONGEST_NAME)
    }

    /// What this actor has just done.
    pub fn did(&self, kind: EventKind, subject: impl Into<String>, text: impl Into<String>) -> NewEvent {
        let (subject, text) = (subject.into(), text.into());
        NewEvent { kind, actor: self.name.clone(), subject, text, source: self.source }
    }
}

/// What an event belongs to. Of all events that are kept each class is sure of its share, so that what comes by
/// itself, however fast, takes no place from what people did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// What was done by somebody who may, and by the appliance itself.
    Deed,
    /// Who came and went, or came in vain: strangers and workers can make as many as they like.
    Visit,
    /// Connections.
    Stream,
}

impl Class {
    /// All of them.
    pub const ALL: &[Class] = &[Class::Deed, Class::Visit, Class::Stream];

    /// The word for it in the store.
    pub fn word(self) -> &'static str {
        match self {
            Class::Deed => "deed",
            Class::Visit => "visit",
            Class::Stream => "stream",
        }
    }
}

/// The kinds, each with its class and its word. A macro, so that no kind can lack one.
macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $kind:ident: $class:ident = $word:literal,)+) => {
        /// What kind of thing happened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        // What the words are, too; the document of the API does not look into macros.
        #[serde(rename_all = "kebab-case")]
        pub enum EventKind {
            $($(#[doc = $doc])+ $kind,)+
        }

        impl EventKind {
            /// All of them.
            pub const ALL: &[EventKind] = &[$(EventKind::$kind),+];

            /// The word for it in the API, in filters and in the store.
            pub fn word(self) -> &'static str {
                match self { $(EventKind::$kind => $word),+ }
            }

            /// What it belongs to.
            pub fn class(self) -> Class {
                match self { $(EventKind::$kind => Class::$class),+ }
            }
        }
    };
}

kinds! {
    /// A worker was added.
    WorkerAdded: Deed = "worker-added",
    /// A worker was changed.
    WorkerChanged: Deed = "worker-changed",
    /// A worker was enabled.
    WorkerEnabled: Deed = "worker-enabled",
    /// A worker was disabled.
    WorkerDisabled: Deed = "worker-disabled",
    /// A worker was removed.
    WorkerRemoved: Deed = "worker-removed",
    /// A new worker's key was shown.
    KeyShown: Deed = "key-shown",
    /// A worker got another key, which was shown.
    KeyRotated: Deed = "key-rotated",
    /// Somebody came with a key that does not work.
    KeyRefused: Visit = "key-refused",
    /// A cloud was added.
    CloudAdded: Deed = "cloud-added",
    /// A cloud was changed.
    CloudChanged: Deed = "cloud-changed",
    /// A cloud was removed.
    CloudRemoved: Deed = "cloud-removed",
    /// A node connected for the first time.
    NodeAdded: Visit = "node-added",
    /// A node got another priority.
    NodeChanged: Deed = "node-changed",
    /// A node was forgotten.
    NodeForgotten: Deed = "node-forgotten",
    /// A node connected.
    NodeConnected: Visit = "node-connected",
    /// A node's last lane was lost or closed.
    NodeDisconnected: Visit = "node-disconnected",
    /// A node became primary or standby.
    RoleChanged: Visit = "role-changed",
    /// A stream was opened.
    StreamOpened: Stream = "stream-opened",
    /// A stream was refused.
    StreamRefused: Stream = "stream-refused",
    /// A stream was closed by hand.
    StreamClosed: Deed = "stream-closed",
    /// Somebody signed in.
    LoginOk: Deed = "login-ok",
    /// Somebody came with a token or password that does not work.
    LoginFailed: Visit = "login-failed",
    /// Somebody tried too often.
    LoginLimited: Visit = "login-limited",
    /// Somebody signed out.
    Logout: Deed = "logout",
    /// The admin token was made or changed.
    TokenChanged: Deed = "token-changed",
    /// What is logged was changed.
    LogChanged: Deed = "log-changed",
    /// A request was refused for a reason that smells of an attack.
    RequestRefused: Visit = "request-refused",
    /// A save was refused.
    SaveRefused: Deed = "save-refused",
    /// The appliance started.
    Started: Deed = "started",
    /// The appliance stopped in order.
    Stopped: Deed = "stopped",
    /// Events came faster than they could be kept.
    EventsLost: Visit = "events-lost",
    /// Another version of dworker knows what it was.
    Other: Visit = "other",
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A word that is no kind of event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no kind of event: the kinds are {}", words())]
pub struct UnknownEventKind;

fn words() -> String {
    EventKind::ALL.iter().map(|kind| kind.word()).collect::<Vec<_>>().join(", ")
}

impl FromStr for EventKind {
    type Err = UnknownEventKind;

    fn from_str(text: &str) -> Result<EventKind, UnknownEventKind> {
        EventKind::ALL.iter().copied().find(|kind| kind.word() == text).ok_or(UnknownEventKind)
    }
}

/// Which events are asked for. They come newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct EventQuery {
    /// One of these kinds; empty means all.
    pub kinds: Vec<EventKind>,
    /// Of this subject, or of what lies below it (`site-a` and `site-a/node`).
    pub subject: Option<String>,
    /// Not before.
    pub since: Option<Timestamp>,
    /// Before.
    pub until: Option<Timestamp>,
    /// With this in their actor, subject, text or source; letters A to Z in either case.
    pub text: Option<String>,
    /// The page behind the one that ended with this id.
    pub before: Option<i64>,
    /// At most so many, up to [`EventQuery::MOST`].
    pub limit: u32,
}

impl EventQuery {
    /// The largest page.
    pub const MOST: u32 = 1000;

    /// True where an event is one of those that are asked for, as the store judges it; pages aside.
    pub fn means(&self, event: &Event) -> bool {
        let concerns = |subject: &String| {
            let below = event.subject.strip_prefix(subject.as_str());
            below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
        };
        let mentions = |part: &String| {
            let part = part.to_ascii_lowercase();
            let has = |text: &str| text.to_ascii_lowercase().contains(&part);
            has(&event.text)
                || has(&event.subject)
                || has(&event.actor)
                || event.source.is_some_and(|source| has(&source.to_string()))
        };
        (self.kinds.is_empty() || self.kinds.contains(&event.kind))
            && self.since.is_none_or(|since| event.time >= since)
            && self.until.is_none_or(|until| event.time < until)
            && self.subject.as_ref().is_none_or(concerns)
            && self.text.as_ref().is_none_or(mentions)
    }
}

impl Default for EventQuery {
    fn default() -> EventQuery {
        EventQuery {
            kinds: Vec::new(),
            subject: None,
            since: None,
            until: None,
            text: None,
            before: None,
            limit: 100,
        }
    }
}
