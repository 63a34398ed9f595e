//! The appliance role: its records, who is connected, its port with the tunnel, the API and the page.
//!
//! The records are loaded and the addresses are bound before anything else starts; the port is served last, when
//! all that it can be asked for is there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;

use super::StartError;
use super::listening::Listening;
use crate::appliance::admin::{Admin, Publish, SystemResolver};
use crate::appliance::api::{self, Routers};
use crate::appliance::audit::{Actor, Audit, EventKind, Limits, NewEvent};
use crate::appliance::endpoint::Endpoint;
use crate::appliance::login::{Login, new_token};
use crate::appliance::page;
use crate::appliance::registry::Registry;
use crate::appliance::roster::Roster;
use crate::appliance::steerable::Steerable;
use crate::appliance::store::Store;
use crate::appliance::store::sqlite::Sqlite;
use crate::appliance::watch::Watch;
use crate::config::{self, Config, KeyHash};
use crate::drain::Drain;
use crate::inspect::api::Reports;
use crate::inspect::ledger::Ledger;
use crate::sockets::name;
use crate::telemetry;
use crate::tunnel::lane::Settings;
use crate::tunnel::message::{Hello, Id};
use crate::tunnel::tls::expiry::Expiry;
use crate::tunnel::tls::{Listener, listener};
use crate::web::layers::around;

/// How long a stop waits until the last events are kept.
const LAST_EVENTS: Duration = Duration::from_secs(5);

/// The role, loaded.
pub(super) struct Appliance {
    /// Where it listens.
    pub(super) listen: Vec<SocketAddr>,
    /// Who is connected.
    pub(super) registry: Arc<Registry>,
    store: Arc<Sqlite>,
    admin: Admin,
    audit: Audit,
    watch: Watch,
    /// What keeps events: it stops when nothing happens any more.
    keeping: Drain,
    login: Login,
}

/// Where a saved change is in force.
struct InForce {
    registry: Arc<Registry>,
    login: Login,
}

impl Publish for InForce {
    fn publish(&self, roster: Roster) {
        self.registry.apply(roster);
    }

    fn admit(&self, token: Option<KeyHash>) {
        self.login.set_token(token);
    }

    fn connected(&self, worker: i64) -> Vec<Id> {
        self.registry.group(worker).map(|group| group.connected()).unwrap_or_default()
    }
}

/// Its port, bound and not served yet.
pub(super) struct Port {
    tls: Option<Arc<Listener>>,
    listeners: Vec<TcpListener>,
}

impl Appliance {
    /// Loads the records and binds the addresses.
    ///
    /// # Errors
    /// A file, an address, or the registry.
    pub(super) async fn start(
        config: &Config,
        appliance: &config::Appliance,
        listening: Listening<'_>,
        ledger: &Ledger,
        expiry: &Expiry,
        drain: &Drain,
    ) -> Result<(Appliance, Port), StartError> {
        let tls = match listener::Files::of(appliance) {
            Some(files) => {
                let listener = Listener::read(&files, expiry)?;
                drain.spawn("TLS files", listener.clone().watch(files, expiry.clone(), drain.clone()));
                Some(listener)
            }
            None => {
                tracing::warn!(
                    "INSECURE: appliance.insecure_plaintext = true: worker keys, the admin token and all traffic cross the network in the clear"
                );
                None
            }
        };
        let mut listeners = Vec::new();
        let mut bound = Vec::new();
        for address in &appliance.listen {
            let listener = listening.on("appliance.listen", name::APPLIANCE, *address)?;
            bound.push(listener.local_addr().unwrap_or(*address));
            listeners.push(listener);
        }

        let store = Arc::new(Sqlite::open(&config.state_dir).await?);
        let limits = Limits { age: appliance.events_age, count: appliance.events_max };
        let keeping = Drain::new(LAST_EVENTS);
        let audit = Audit::start(store.clone(), limits, &keeping);
        audit.record(Actor::local("dworker").did(EventKind::Started, "dworker", env!("CARGO_PKG_VERSION")));
        let watch = Watch::new(audit.clone());
        let registry = Arc::new(Registry::new(appliance.failback, config.drain, Box::new(watch.clone())));
        let recorded = audit.clone();
        let login = Login::new(tls.is_some(), move |event| recorded.record(event));
        let publish = InForce { registry: registry.clone(), login: login.clone() };
        let admin =
            Admin::start(store.clone(), audit.clone(), publish, SystemResolver::default(), &keeping).await?;
        watch.note_in(admin.clone());
        watch.observe(ledger);
        drain.spawn("watch", watch.clone().run(drain.clone()));
        if let Some(steer) = &config.steer {
            admin.add_check(Steerable::new(steer.synthetic4, steer.synthetic6));
        }
        admin.sync_file_groups(&appliance.groups).await?;
        drain.spawn("registry", registry.clone().run(drain.clone()));
        if admin.admin_token().is_none() {
            first_token(&admin).await?;
        }
        let appliance = Appliance { listen: bound, registry, store, admin, audit, watch, keeping, login };
        Ok((appliance, Port { tls, listeners }))
    }

    /// Serves the port. What the control socket answers is returned.
    pub(super) fn serve(
        &self,
        port: Port,
        reports: Reports,
        ledger: &Ledger,
        settings: Settings,
        hello: Hello,
        drain: &Drain,
    ) -> Router {
        let Routers { network, socket } = api::routers(api::Parts {
            admin: self.admin.clone(),
            audit: self.audit.clone(),
            registry: self.registry.clone(),
            ledger: ledger.clone(),
            login: self.login.clone(),
            reports,
            drain: drain.clone(),
        });
        let page = page::router(page::Parts {
            admin: self.admin.clone(),
            registry: self.registry.clone(),
            ledger: ledger.clone(),
            audit: self.audit.clone(),
            login: self.login.clone(),
            tls: port.tls.is_some(),
            host: hello.name.clone(),
            drain: drain.clone(),
        });
        let endpoint = Endpoint {
            tls: port.tls,
            registry: self.registry.clone(),
            ledger: ledger.clone(),
            settings,
            hello,
            web: around(network.merge(page)),
            drain: drain.clone(),
        };
        for (listener, bound) in port.listeners.into_iter().zip(&self.listen) {
            tracing::info!(listen = %bound, "the appliance listens for workers");
            drain.spawn("endpoint", endpoint.clone().serve(listener));
        }
        socket
    }

    /// Saves nothing, until one of the next two.
    pub(super) async fn pause(&self) {
        self.admin.pause().await;
    }

    /// Goes on after [`pause`](Self::pause). What the file says of workers is said again: the process that was to take
    /// over may have had another file.
    pub(super) async fn resume(&self, groups: &[config::Group]) {
        self.admin.resume();
        if let Err(error) = self.admin.sync_file_groups(groups).await {
            tracing::error!("the workers of the configuration may not be as it says: {error}");
        }
    }

    /// Notes what somebody has done.
    pub(super) fn record(&self, event: NewEvent) {
        self.audit.record(event);
    }

    /// Leaves the registry to the process that follows.
    pub(super) fn leave(&self) {
        self.admin.hand_over();
        self.audit.record(Actor::local("dworker").did(
            EventKind::Stopped,
            "dworker",
            "another process took over",
        ));
    }

    /// Why no save could be made now; `None`: it could. Writes to find out.
    pub(super) async fn unwritable(&self) -> Option<String> {
        self.store.probe().await.err().map(|error| format!("the registry: {error}"))
    }

    /// Keeps the last events, and lets go of the files. All other tasks have ended.
    pub(super) async fn close(&self, replaced: bool) {
        self.watch.tell_rest();
        if !replaced {
            self.audit.record(Actor::local("dworker").did(EventKind::Stopped, "dworker", "stopped in order"));
        }
        if self.keeping.finish().await > 0 {
            tracing::error!("the last events were not kept: the registry's disk is too slow");
        }
        self.store.close().await;
    }
}

/// Makes the admin token of a new registry, and shows it. It goes to standard error and not through the log, and not
/// there either where that is the journal, which keeps what it is given: a token that is kept in the clear is none.
async fn first_token(admin: &Admin) -> Result<(), StartError> {
    if telemetry::is_journal() {
        tracing::warn!(
            "no admin token has been made, since standard error is the journal, which would keep it: \
             `dworker token reset` makes one and shows it"
        );
        return Ok(());
    }
    let token = new_token().map_err(|error| StartError::System {
        doing: "making the admin token",
        source: std::io::Error::other(error),
    })?;
    admin.set_admin_token(KeyHash::of(&token), &Actor::local("dworker")).await?;
    eprintln!("dworker: the admin token, shown this once: {token}");
    eprintln!(
        "dworker: sign in with it, or send it as `Authorization: Bearer`; `dworker token reset` makes another"
    );
    Ok(())
}
