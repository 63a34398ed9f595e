//! What happens to workers and connections, as events of the audit; and who was seen, for the records.
//!
//! What must hold: nobody who comes with a wrong key again and again, or opens what is refused, fills the audit;
//! nothing here waits.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use super::admin::{Admin, NodeSeen, Page, WorkerFilter};
use super::audit::{Actor, Audit, EventKind, NewEvent};
use super::registry::{Witness, named, node};
use super::roster::Group;
use super::sparse::{PERIOD, Sparse};
use crate::accept;
use crate::config::{Key, KeyHash};
use crate::drain::Drain;
use crate::inspect::ledger::{Flow, FlowEvent, Ledger};
use crate::inspect::monitor::{Happening, Hub, What};
use crate::tunnel::message::{Hello, Id};

/// Watches the registry and the ledger. Clones are the same.
#[derive(Debug, Clone)]
pub struct Watch(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    audit: Audit,
    /// The records are loaded after there is a registry that they are published to.
    admin: OnceLock<Admin>,
    /// Wrong keys, by source.
    keys: Sparse<IpAddr>,
    /// Connections that came to nothing: who, from where, whereto.
    refusals: Sparse<(String, Option<IpAddr>, String)>,
    /// Who looks at what happens.
    hub: OnceLock<Hub>,
}

impl Watch {
    /// Tells `audit`.
    pub fn new(audit: Audit) -> Watch {
        let (keys, refusals) = (Sparse::default(), Sparse::default());
        Watch(Arc::new(Shared { audit, admin: OnceLock::new(), keys, refusals, hub: OnceLock::new() }))
    }

    /// From now on the nodes that are seen are noted, and refused keys are told apart.
    pub fn note_in(&self, admin: Admin) {
        let _ = self.0.admin.set(admin);
    }

    /// Tells of connections too.
    pub fn observe(&self, ledger: &Ledger) {
        let _ = self.0.hub.set(ledger.hub().clone());
        let watch = self.clone();
        ledger.observe(move |event| {
            if let Some(event) = watch.told(event) {
                watch.0.audit.record(event);
            }
        });
    }

    /// Tells from time to time of what was only counted, until `drain` stops.
    pub async fn run(self, drain: Drain) {
        while tokio::time::timeout(PERIOD, drain.stopping()).await.is_err() {
            self.tell_rest();
        }
    }

    /// Tells of what was only counted until now.
    pub fn tell_rest(&self) {
        let dworker = Actor::local("dworker");
        let ((keys, other_keys), (refusals, others)) = (self.0.keys.rest(), self.0.refusals.rest());
        keys.into_iter().chain(refusals).for_each(|event| self.0.audit.record(event));
        if other_keys > 0 {
            let text = format!("{other_keys} more, from other sources");
            self.0.audit.record(dworker.did(EventKind::KeyRefused, "unknown", text));
        }
        if others > 0 {
            let text = format!("{others} more connections, of others or to other targets");
            self.0.audit.record(dworker.did(EventKind::StreamRefused, "many", text));
        }
    }

    /// A connection's event: each has one, when its target is dialled or when that came to nothing; but what comes to
    /// nothing again and again is counted.
    fn told(&self, event: &FlowEvent<'_>) -> Option<NewEvent> {
        match event {
            FlowEvent::Dialled(flow) => {
                let by = flow.carrier().map(|carrier| format!(", carried by {carrier}")).unwrap_or_default();
                let text = format!("connection {}{by}", flow.id);
                Some(opener(flow).did(EventKind::StreamOpened, flow.target.to_string(), text))
            }
            FlowEvent::Ended(flow) => {
                let refusal = flow.outcome()?.err().filter(|_| !flow.is_dialled())?;
                let (who, target) = (opener(flow), flow.target.to_string());
                // Each process has a number of its own.
                let name = flow.origin.process.as_ref().map_or_else(|| who.name.clone(), |p| p.comm.clone());
                self.0.refusals.note((name, who.source, target.clone()), || {
                    who.did(EventKind::StreamRefused, target, format!("connection {}: {refusal}", flow.id))
                })
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
        let news = self.0.keys.note(accept::source(source), || {
            let hash = key.and_then(|key| key.parse::<Key>().ok()).map(|key| key.hash());
            let (subject, text) = self.explain(hash);
            Actor::at("unknown", source).did(EventKind::KeyRefused, subject, text)
        });
        if let Some(event) = news {
            self.0.audit.record(event);
        }
    }
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
    use std::time::Duration;

    use super::*;
    use crate::appliance::audit::{Event, EventQuery, Limits};
    use crate::appliance::store::Store;
    use crate::appliance::store::sqlite::Sqlite;
    use crate::inspect::ledger::{Entry, Origin};
    use crate::refusal::{Code, Refusal};
    use crate::tunnel::message::OpenOk;

    #[tokio::test]
    async fn a_connection_is_told_once_as_opened_or_as_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Arc::new(Sqlite::open(directory.path()).await.expect("a store"));
        let drain = Drain::new(Duration::from_secs(10));
        let limits = Limits { age: Duration::from_secs(3600), count: 1000 };
        let audit = Audit::start(store.clone(), limits, &drain);
        let (watch, ledger) = (Watch::new(audit.clone()), Ledger::default());
        watch.observe(&ledger);
        let open = |port, source: &str| {
            let source = Some(source.parse().expect("an address"));
            let origin = Origin { from: Some("site-a".into()), source, ..Origin::default() };
            let target = crate::target::Target { host: "vc.example".parse().expect("a host"), port };
            ledger.open(Entry::Relayed, 1, target, origin)
        };
        let told = async || {
            audit.flush().await;
            let events = store.events(&EventQuery::default()).await.expect("events");
            events.into_iter().rev().collect::<Vec<Event>>()
        };
        open(1, "192.0.2.1:1000").end(Err(Refusal::new(Code::Denied, "not yours")));
        let dialled = open(2, "192.0.2.1:1001");
        dialled.carried_by("site-b/node".into());
        dialled.dialled(OpenOk {
            address: "192.0.2.1:2".parse().expect("an address"),
            dial: Duration::ZERO,
            proxied: false,
        });
        dialled.end(Err(Refusal::new(Code::Reset, "cut")));
        // Again and again, each from a port of its own.
        for port in 1002..1500 {
            open(1, &format!("192.0.2.1:{port}")).end(Err(Refusal::new(Code::Denied, "not yours")));
        }
        open(1, "192.0.2.2:1").end(Err(Refusal::new(Code::Denied, "not yours")));
        open(3, "192.0.2.1:1").end(Err(Refusal::new(Code::Denied, "not yours")));
        watch.tell_rest();
        watch.tell_rest();
        let (opened, refused) = (EventKind::StreamOpened, EventKind::StreamRefused);
        let told: Vec<_> = told().await.into_iter().map(|e| (e.kind, e.subject, e.text)).collect();
        let event = |kind, port, text: &str| (kind, format!("vc.example:{port}"), text.to_owned());
        assert_eq!(
            told,
            [
                event(refused, 1, "connection 1: denied: not yours"),
                event(opened, 2, "connection 2, carried by site-b/node"),
                event(refused, 1, "connection 501: denied: not yours"),
                event(refused, 3, "connection 502: denied: not yours"),
                event(refused, 1, "connection 1: denied: not yours; and 498 more like it"),
            ]
        );
        assert_eq!(drain.finish().await, 0);
    }
}
