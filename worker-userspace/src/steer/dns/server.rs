//! Serving: the ports, what they share, and who owns the tasks.

use std::any::Any;
use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinError, JoinSet};

use super::answer::{self, Pending, Verdict};
use super::counters::Counters;
use super::ports::{self, Port};
use super::{Resolvers, tcp, udp};
use crate::config::Families;
use crate::drain::Gate;
use crate::sockets::{Sockets, name};
use crate::steer::names::{Names, NamesError};

/// Ports that stand ready for resolvers that were not asked yet. Hosts have one to three resolvers; containers
/// and VPNs bring more.
const SPARE_PORTS: usize = 8;

/// No more ports are made: as many as the kernel's map of resolvers holds.
const MOST_PORTS: usize = 256;

/// Queries by UDP that wait for a resolver or for an address, over all ports.
const MOST_QUERIES: usize = 1024;

/// TCP connections, over all ports.
const MOST_CONNECTIONS: usize = 256;

/// How long queries in flight have when the server stops.
const GRACE: Duration = Duration::from_secs(2);

/// What the configuration says of DNS.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Which of A and AAAA proxy hosts have.
    pub families: Families,
    /// The port at which resolvers are asked, 53 but in tests.
    pub upstream_port: u16,
}

/// Why DNS can't be served. Messages name the port and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No socket.
    #[error("a port for DNS can't be bound on the loopback address: {0}")]
    Bind(#[source] io::Error),
    /// Every number was taken for one of UDP, TCP, IPv4 and IPv6.
    #[error(
        "no port of {tries} was free for UDP and TCP on 127.0.0.1 and ::1; \
         see `ss -lntu` for what holds so many, or widen net.ipv4.ip_local_port_range"
    )]
    NoCommonPort {
        /// How many were tried.
        tries: usize,
    },
    /// The kernel did not take the mark.
    #[error("the sockets of DNS port {port} can't be marked as dworker's: {source}")]
    Mark {
        /// The port.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel did not take the port.
    #[error("DNS port {port} can't be offered to the steering programs: {source}")]
    Offer {
        /// The port.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel did not forget the ports of the daemon before this one.
    #[error("the ports for DNS of the daemon before this one can't be adopted: {0}")]
    Adopt(#[source] io::Error),
    /// A bug; the sockets of a port are gone with it.
    #[error("a DNS listener panicked: {0}")]
    Panicked(String),
}

/// DNS on bound ports; [`run`](Self::run) serves.
pub struct Server {
    shared: Arc<Shared>,
    ports: Vec<Port>,
    used: mpsc::Receiver<()>,
}

/// What all ports share.
pub(super) struct Shared {
    pub(super) names: Arc<Names>,
    pub(super) resolvers: Arc<dyn Resolvers>,
    pub(super) settings: Settings,
    pub(super) counters: Arc<Counters>,
    pub(super) queries: Arc<Semaphore>,
    pub(super) connections: Arc<Semaphore>,
    /// Names assign one after the other anyway: no second thread waits for the first one's disk.
    assigning: Semaphore,
    /// Through it come all questions.
    pub(super) gate: Gate,
    pub(super) sockets: Sockets,
    used_ports: Mutex<HashSet<u16>>,
    used: mpsc::Sender<()>,
}

impl Server {
    /// Binds the spare ports, marks their sockets and offers them. Needs a tokio runtime.
    ///
    /// # Errors
    /// When a port can't be bound, marked or offered.
    pub fn new(
        names: Arc<Names>,
        resolvers: Arc<dyn Resolvers>,
        settings: Settings,
    ) -> Result<Server, ServerError> {
        Server::adopt(names, resolvers, settings, &Sockets::default(), Gate::always_open())
    }

    /// As [`Server::new`], with the ports of a server before this one where their sockets live on. Questions come
    /// through `gate`.
    ///
    /// # Errors
    /// As [`Server::new`].
    pub fn adopt(
        names: Arc<Names>,
        resolvers: Arc<dyn Resolvers>,
        settings: Settings,
        sockets: &Sockets,
        gate: Gate,
    ) -> Result<Server, ServerError> {
        let mut ports = ports::adopt(&*resolvers, sockets.named(name::DNS), sockets)?;
        let numbers = ports.iter().map(|port| port.number);
        let in_use: HashSet<u16> = numbers.filter(|port| resolvers.resolver_of(*port).is_some()).collect();
        while ports.len() < MOST_PORTS.min(in_use.len() + SPARE_PORTS) {
            ports.push(ports::open(&*resolvers, sockets)?);
        }
        // Each port sends once.
        let (sender, used) = mpsc::channel(MOST_PORTS);
        let shared = Shared {
            names,
            resolvers,
            settings,
            counters: Arc::default(),
            queries: Arc::new(Semaphore::new(MOST_QUERIES)),
            connections: Arc::new(Semaphore::new(MOST_CONNECTIONS)),
            assigning: Semaphore::new(1),
            gate,
            sockets: sockets.clone(),
            used_ports: Mutex::new(in_use),
            used: sender,
        };
        Ok(Server { shared: Arc::new(shared), ports, used })
    }

    /// What was counted, for as long as one likes to ask.
    pub fn counters(&self) -> Arc<Counters> {
        self.shared.counters.clone()
    }

    /// Serves until `shutdown`, then lets queries in flight finish for a moment.
    ///
    /// # Errors
    /// When a listener's task panicked; all others end with it.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let (mut ready, mut used) = (self.ports.len(), self.shared.used_ports().len());
        for port in std::mem::take(&mut self.ports) {
            self.serve(port, &mut tasks, &stopped);
        }
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(()) = self.used.recv() => {
                    used += 1;
                    while ready < MOST_PORTS.min(used + SPARE_PORTS) {
                        match ports::open(&*self.shared.resolvers, &self.shared.sockets) {
                            Ok(port) => self.serve(port, &mut tasks, &stopped),
                            Err(error) => {
                                // The next port that comes into use makes up for it.
                                tracing::warn!("no spare port replaces the one that is now in use: {error}");
                                break;
                            }
                        }
                        ready += 1;
                    }
                    if used == MOST_PORTS {
                        tracing::warn!("{MOST_PORTS} resolvers were asked; further ones get no port, so they are not captured");
                    }
                }
                Some(ended) = tasks.join_next() => {
                    ended.map_err(|error| ServerError::Panicked(panic_text(error)))?;
                }
            }
        }
        let _ = stop.send(true);
        let finish = async {
            while let Some(ended) = tasks.join_next().await {
                ended.map_err(|error| ServerError::Panicked(panic_text(error)))?;
            }
            Ok(())
        };
        // What is not done by then is cut, with the tasks' set.
        tokio::time::timeout(GRACE, finish).await.unwrap_or(Ok(()))
    }

    fn serve(&self, port: Port, tasks: &mut JoinSet<()>, stopped: &watch::Receiver<bool>) {
        tracing::debug!(port = port.number, "serving DNS");
        for socket in port.udp {
            tasks.spawn(udp::serve(socket.into(), port.number, self.shared.clone(), stopped.clone()));
        }
        for listener in port.tcp {
            tasks.spawn(tcp::serve(listener, port.number, self.shared.clone(), stopped.clone()));
        }
    }
}

impl Shared {
    /// What to do with a query, counted.
    pub(super) fn decide(&self, query: &[u8]) -> Verdict {
        let verdict = answer::answer(query, &*self.names, self.settings.families);
        self.counters.queries.add();
        match verdict {
            Verdict::Reply(_) => self.counters.answered.add(),
            Verdict::Drop => self.counters.dropped.add(),
            Verdict::Assign(_) | Verdict::Forward => {}
        }
        verdict
    }

    /// The reply to a query whose name gets its first addresses now. `None`: another process gives them from now on, and
    /// answers whoever asks again.
    pub(super) async fn assign(self: &Arc<Self>, pending: Pending) -> Option<Vec<u8>> {
        let _turn = self.assigning.acquire().await;
        let (shared, name) = (self.clone(), pending.name().clone());
        let looked_up = tokio::task::spawn_blocking(move || shared.names.lookup(&name)).await;
        let addresses = match looked_up {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(NamesError::Frozen { .. })) => {
                self.counters.dropped.add();
                return None;
            }
            Ok(Err(error)) => {
                // A full prefix was said loudly when it filled up.
                if !matches!(error, NamesError::Full { .. }) {
                    tracing::error!("{error}");
                }
                None
            }
            Err(error) => {
                log_panic(error);
                None
            }
        };
        match addresses {
            Some(_) => self.counters.answered.add(),
            None => self.counters.failed.add(),
        }
        Some(pending.finish(addresses))
    }

    fn used_ports(&self) -> MutexGuard<'_, HashSet<u16>> {
        self.used_ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a port stands for a resolver; the first time, another spare one is made.
    pub(super) fn note_use(&self, port: u16) {
        if self.used_ports().insert(port) {
            // Full only when all ports there may be are in use.
            let _ = self.used.try_send(());
        }
    }
}

/// Ends when the server stops.
pub(super) async fn until(stopped: &mut watch::Receiver<bool>) {
    // A server that is gone has stopped, too.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// A query's or a connection's task that panicked took nothing else with it; but it is seen.
pub(super) fn log_panic(error: JoinError) {
    if error.is_panic() {
        tracing::error!("a DNS query's task panicked: {}", panic_text(error));
    }
}

fn panic_text(error: JoinError) -> String {
    let text =
        |payload: &(dyn Any + Send)| match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>())
        {
            (Some(text), _) => (*text).to_owned(),
            (_, Some(text)) => text.clone(),
            _ => "with no text".to_owned(),
        };
    match error.try_into_panic() {
        Ok(payload) => text(&*payload),
        Err(error) => error.to_string(),
    }
}
