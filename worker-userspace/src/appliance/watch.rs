//! What happens to workers and connections, as events of the audit; and who was seen, for the records.
//!
//! What must hold: nobody who comes with a wrong key again and again fills the audit; nothing here waits.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::admin::{Admin, NodeSeen, Page, WorkerFilter};
use super::audit::{Actor, Audit, EventKind, NewEvent};
use super::registry::{Witness, named, node};
use super::roster::Group;
use crate::accept;
use crate::config::{Key, KeyHash};
use crate::inspect::ledger::{Flow, FlowEvent, Ledger};
use crate::inspect::monitor::{Happening, Hub, What};
use crate::tunnel::message::{Hello, Id};

/// A source that comes with a wrong key is told of once in this time.
const SPARSE: Duration = Duration::from_secs(60);
/// Sources whose last wrong key is remembered; wrong keys of more are only logged.
const SOURCES: usize = 1024;

/// Watches the registry and the ledger. Clones are the same.
#[derive(Debug, Clone)]
pub struct Watch(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    audit: Audit,
    /// The records are loaded after there is a registry that they are published to.
    admin: OnceLock<Admin>,
    told: Mutex<HashMap<IpAddr, Instant>>,
    /// Who looks at what happens.
    hub: OnceLock<Hub>,
}

impl Watch {
    /// Tells `audit`.
    pub fn new(audit: Audit) -> Watch {
        Watch(Arc::new(Shared {
            audit,
            admin: OnceLock::new(),
            told: Mutex::default(),
            hub: OnceLock::new(),
        }))
    }

    /// From now on the nodes that are seen are noted, and refused keys are told apart.
    pub fn note_in(&self, admin: Admin) {
        let _ = self.0.admin.set(admin);
    }

    /// Tells of connections too.
    pub fn observe(&self, ledger: &Ledger) {
        let _ = self.0.hub.set(ledger.hub().clone());
        let watch = self.clone();
        ledger.observe(move |event| told(event).into_iter().for_each(|event| watch.0.audit.record(event)));
    }

    fn is_news(&self, source: IpAddr) -> bool {
        let mut told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let source = accept::source(source);
        if told.len() >= SOURCES {
            told.retain(|_, last| now < *last + SPARSE);
        }
        match told.get(&source) {
            Some(last) if now < *last + SPARSE => false,
            None if told.len() >= SOURCES => false,
            _ => {
                told.insert(source, now);
                true
            }
        }
    }

    /// Whose key was refused, and why.
    fn explain(&self, key: Option<KeyHash>) -> (String, &'static str) {
        let unknown = ("unknown".to_owned(), "no worker has this key");
        let (Some(key), Some(admin)) = (key, self.0.admin.get()) else { return unknown };
        let workers = admin.workers(&WorkerFilter::default(), Page::ALL).items;
        let with = |wanted: &dyn Fn(&super::records::Worker) -> bool| {
            workers.iter().find(|worker| wanted(worker)).map(|worker| worker.name.clone())
        };
        if let Some(name) = with(&|worker| worker.key == key) {
            return (name, "the worker is disabled");
        }
        match with(&|worker| worker.previous_key.is_some_and(|(previous, _)| previous == key)) {
            Some(name) => (name, "the key was replaced, and its grace is over, or the worker is disabled"),
            None => unknown,
        }
    }
}

/// Closes a connection because `actor` wants it. `false`: it is not open.
pub fn close_by_hand(ledger: &Ledger, audit: &Audit, id: u64, actor: Actor) -> bool {
    let Some(flow) = ledger.get(id).filter(|_| ledger.close(id, &actor.name)) else { return false };
    audit.record(actor.did(EventKind::StreamClosed, flow.target, format!("connection {id}, by hand")));
    true
}

/// `worker/host-1a2b3c4d`.
fn subject(group: &Group, hello: &Hello) -> String {
    format!("{}/{}", group.name, node(hello))
}

fn actor(group: &Group) -> Actor {
    Actor::local(format!("worker {}", group.name))
}

impl Witness for Watch {
    fn connected(&self, group: &Group, hello: &Hello, address: SocketAddr) {
        let source = address.ip().to_canonical();
        if let Some(admin) = self.0.admin.get() {
            let (host_name, software) = (hello.name.clone(), hello.software.clone());
            admin.node_seen(group.id, NodeSeen { id: hello.node, host_name, software, address: source });
        }
        let actor = Actor { source: Some(source), ..actor(group) };
        let text = format!("dworker {} connected", hello.software);
        self.0.audit.record(actor.did(EventKind::NodeConnected, subject(group, hello), text));
    }

    fn disconnected(&self, group: &Group, hello: &Hello) {
        if let Some(admin) = self.0.admin.get() {
            admin.node_left(group.id, hello.node);
        }
        let event =
            actor(group).did(EventKind::NodeDisconnected, subject(group, hello), "its last lane is down");
        self.0.audit.record(event);
    }

    fn primary(&self, group: &Group, node: Option<(&str, &Id)>, epoch: u64) {
        let text = match node {
            Some((name, id)) => {
                format!("{} is primary (epoch {epoch})", named(name, id))
            }
            None => format!("no node is connected (epoch {epoch})"),
        };
        if let Some(hub) = self.0.hub.get() {
            let name = node.map(|(name, _)| format!("/{name}")).unwrap_or_default();
            hub.tell(|| Happening {
                carrier: Some(format!("{}{name}", group.name)),
                reason: Some(text.clone()),
                ..Happening::new(What::Failover)
            });
        }
        self.0.audit.record(actor(group).did(EventKind::RoleChanged, &group.name, text));
    }

    fn refused(&self, key: Option<&str>, address: SocketAddr) {
        let source = address.ip().to_canonical();
        if !self.is_news(source) {
            return;
        }
        let hash = key.and_then(|key| key.parse::<Key>().ok()).map(|key| key.hash());
        let (subject, text) = self.explain(hash);
        let actor = Actor::at("unknown", source);
        self.0.audit.record(actor.did(EventKind::KeyRefused, subject, text));
    }
}

/// A connection's event: each has one, when its target is dialled or when that came to nothing.
fn told(event: &FlowEvent<'_>) -> Option<NewEvent> {
    let (flow, kind, text) = match event {
        FlowEvent::Dialled(flow) => {
            let by = flow.carrier().map(|carrier| format!(", carried by {carrier}")).unwrap_or_default();
            (flow, EventKind::StreamOpened, format!("connection {}{by}", flow.id))
        }
        FlowEvent::Ended(flow) => match flow.outcome() {
            Some(Err(refusal)) if !flow.is_dialled() => {
                (flow, EventKind::StreamRefused, format!("connection {}: {refusal}", flow.id))
            }
            _ => return None,
        },
    };
    Some(opener(flow).did(kind, flow.target.to_string(), text))
}

/// Who opened a connection.
fn opener(flow: &Flow) -> Actor {
    let origin = &flow.origin;
    let name = match (&origin.process, &origin.from, &origin.user) {
        (Some(process), _, _) => format!("{}[{}]", process.comm, process.pid),
        (_, Some(group), _) => format!("worker {group}"),
        (_, _, Some(user)) => format!("user {user}"),
        _ => "unknown".into(),
    };
    Actor { name, source: origin.source.map(|address| address.ip().to_canonical()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::ledger::{Entry, Origin};
    use crate::refusal::{Code, Refusal};

    #[test]
    fn a_connection_is_told_once_as_opened_or_as_refused() {
        let ledger = Ledger::default();
        let events: Arc<Mutex<Vec<NewEvent>>> = Arc::default();
        let kept = events.clone();
        ledger.observe(move |event| kept.lock().unwrap().extend(told(event)));
        let open = |port| {
            let origin = Origin { from: Some("site-a".into()), ..Origin::default() };
            let target = crate::target::Target { host: "vc.example".parse().unwrap(), port };
            ledger.open(Entry::Relayed, 1, target, origin)
        };
        open(1).end(Err(Refusal::new(Code::Denied, "not yours")));
        let dialled = open(2);
        dialled.carried_by("site-b/node".into());
        dialled.dialled("192.0.2.1:2".parse().unwrap(), Duration::ZERO);
        dialled.end(Err(Refusal::new(Code::Reset, "cut")));
        let told: Vec<(EventKind, String, String)> =
            events.lock().unwrap().drain(..).map(|event| (event.kind, event.subject, event.text)).collect();
        let event = |kind, port, text: &str| (kind, format!("vc.example:{port}"), text.to_owned());
        assert_eq!(
            told,
            [
                event(EventKind::StreamRefused, 1, "connection 1: denied: not yours"),
                event(EventKind::StreamOpened, 2, "connection 2, carried by site-b/node"),
            ]
        );
    }
}
