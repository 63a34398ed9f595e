//! Composes the roles that the configuration asks for, owns their tasks, and stops them.
//!
//! The order of a start is the order of need: the control socket first (two daemons never share one), then
//! the tunnel's ends, then what captures. A stop goes the other way round: first nothing is captured any
//! more, then what runs may end, then the rest is cut.

mod appliance;
mod channel;
mod listening;
mod log;
mod metrics;
mod news;
mod node;
mod orders;
mod probe;
mod proxy;
mod readiness;
mod reload;
mod roles;
mod steering;
mod successor;
mod trial;
mod why;

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{SysconfVar, sysconf};
use rustls::crypto::aws_lc_rs;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::appliance::admin::AdminError;
use crate::appliance::store::StoreError;
use crate::config::{self, Config, FileError};
use crate::drain::Drain;
use crate::egress::dial::Dialler;
use crate::egress::policy::Policy;
use crate::inspect;
use crate::inspect::control::{Control, ControlError};
use crate::inspect::ledger::Ledger;
use crate::notify;
use crate::sockets::{Named, Sockets, name};
use crate::steer::names::has_steered;
use crate::steer::pins::{Pins, PinsError};
use crate::steer::steering::SteerError;
use crate::threads::{self, Threads};
use crate::tunnel::credit::Budget;
use crate::tunnel::handshake::{Dial, Unprepared};
use crate::tunnel::lane::Settings;
use crate::tunnel::message::Hello;
use crate::tunnel::tls::TlsError;
use crate::tunnel::tls::expiry::Expiry;
use crate::web::layers;
use crate::worker::{Parts, Uplink};
use appliance::Appliance;
use listening::Listening;
use orders::Order;
use readiness::Believed;
use reload::Standing;
use roles::{Roles, reports};

pub use news::{Beginning, News};
pub use reload::Invocation;
pub use successor::{Inheritance, Predecessor};
pub use trial::trial;

/// Orders that wait.
const ORDERS: usize = 8;

/// Why the daemon did not start. Each names what is wrong and where.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The control socket.
    #[error("control_socket: {0}")]
    Control(#[from] ControlError),
    /// A TLS file.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A file that the configuration names.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that a worker dials with.
    #[error(transparent)]
    Worker(#[from] Unprepared),
    /// A listening address.
    #[error("{key} = {address}: {source}{}", listen_remedy(.source))]
    Listen {
        /// Which key of the configuration has it.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The state directory.
    #[error("state_dir: {}: {source}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The state directory is in use.
    #[error("state_dir: {}: another dworker uses it; stop it, or set another `state_dir`", .0.display())]
    StateTaken(PathBuf),
    /// The operating system.
    #[error("{doing}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The registry's file.
    #[error("the registry: {0}")]
    Store(#[from] StoreError),
    /// What the configuration says of workers does not go with what the registry has.
    #[error("{0}")]
    Admin(#[from] AdminError),
    /// Steering.
    #[error("steer: {0}")]
    Steer(#[from] SteerError),
}

/// A daemon whose roles are running.
pub struct Daemon {
    drain: Drain,
    roles: Arc<Roles>,
    control: JoinHandle<()>,
    /// Keeps the control socket's name for the process that follows.
    control_left: Arc<AtomicBool>,
    sockets: Sockets,
    invocation: Invocation,
    orders: mpsc::Receiver<Order>,
    predecessor: Option<Predecessor>,
    /// Keeps other daemons off the state directory, while this process is the daemon.
    own_state: Option<File>,
    /// The threads of lanes, which end with it.
    _threads: threads::Running,
}

/// How a process stops to be the daemon.
enum End {
    Stopped,
    /// Another process is the daemon now.
    Replaced,
}

impl Daemon {
    /// Starts all roles of `config`, with what the process before this one has handed on. Where that waits for this
    /// one, nothing is accepted before [`run`](Self::run).
    ///
    /// # Errors
    /// The first thing that does not work; what was started before it is undone, and a process before this one told.
    pub async fn start(
        config: Config,
        mut inheritance: Inheritance,
        invocation: Invocation,
    ) -> Result<Daemon, StartError> {
        gather_randomness();
        let drain = Drain::new(config.drain);
        drain.set_open(inheritance.predecessor.is_none());
        match Daemon::assemble(config, &mut inheritance, invocation, drain.clone()).await {
            Ok(daemon) => Ok(Daemon { predecessor: inheritance.predecessor, ..daemon }),
            Err(error) => {
                // Before the other process goes on: nothing of this one comes in between.
                drain.cut().await;
                inheritance.let_go().await;
                if let Some(predecessor) = inheritance.predecessor {
                    predecessor.failed(&error.to_string());
                }
                Err(error)
            }
        }
    }

    async fn assemble(
        config: Config,
        inheritance: &mut Inheritance,
        invocation: Invocation,
        drain: Drain,
    ) -> Result<Daemon, StartError> {
        raise_descriptor_limit();
        let state = |source| StartError::State { path: config.state_dir.clone(), source };
        let sockets = inheritance.sockets.clone();
        let listening = Listening(&sockets);
        let control = match sockets.unix(&config.control_socket) {
            Some(listener) => Control::adopt(listener, &config.control_socket)?,
            None => Control::bind(&config.control_socket)?,
        };
        listening.keep(name::CONTROL, control.listener())?;
        let control_left = control.left();
        let own_state = node::take(&config.state_dir, &sockets).map_err(state)?;
        let Some(own_state) = own_state else {
            return Err(StartError::StateTaken(config.state_dir.clone()));
        };
        if let Some(steer) = &config.steer {
            inheritance.load(steer);
        }
        let ledger = Ledger::default();
        drain.spawn("rates", ledger.clone().keep_rates(drain.clone()));
        let (threads, lane_threads) = Threads::start()
            .map_err(|source| StartError::System { doing: "starting the threads of lanes", source })?;
        let budget = Arc::new(Budget::new(budget()));
        let settings = Settings { budget, threads: threads.clone(), ..Settings::default() };
        let node = node::id(&config.state_dir).map_err(state)?;
        let hello = Hello::of(node, node::host_name(), settings.max_streams);
        let mut roles = Roles {
            config: config.clone(),
            started: Instant::now(),
            ledger: ledger.clone(),
            threads,
            registry: None,
            appliance: None,
            uplink: None,
            steering: None,
            proxy: None,
            found: Believed::default(),
            expiry: Expiry::default(),
            collected: metrics::nothing(),
        };
        drain.spawn("expiry", roles.expiry.clone().run(drain.clone()));

        let mut port = None;
        if let Some(section) = &config.appliance {
            let (appliance, bound) =
                Appliance::start(&config, section, listening, &ledger, &roles.expiry, &drain).await?;
            roles.registry = Some(appliance.registry.clone());
            roles.appliance = Some(appliance);
            port = Some(bound);
        }

        if let Some(worker) = &config.worker {
            let dial = Dial::of(worker, &roles.expiry)?;
            if dial.appliance.tls.is_none() {
                tracing::warn!(
                    "INSECURE: insecure_plaintext = true: worker_key and all traffic cross the network in the clear"
                );
            }
            let proxy = dial.proxy.clone();
            let egress = &worker.egress;
            let uplink = Uplink::new(Parts {
                dial,
                hello: hello.clone(),
                lanes: worker.lanes,
                settings: settings.clone(),
                dialler: Dialler::new(
                    Policy::new(egress.allow.as_deref(), &egress.deny),
                    egress.connect_timeout,
                )
                .through(proxy),
                ledger: ledger.clone(),
                drain: drain.clone(),
            });
            uplink.start();
            roles.uplink = Some(uplink);
        }

        if config.steer.is_none() && has_steered(&config.state_dir) {
            // What this daemon has left when it steered. Another's is none of ours, whether that lives or has crashed and
            // comes back.
            match Pins::remove_left(Path::new(config::PINS)) {
                Ok(false) | Err(PinsError::Taken(_)) => {}
                Ok(true) => tracing::info!("removed what a daemon that steered has left in the kernel"),
                Err(error) => tracing::warn!("what a daemon that steered has left: {error}"),
            }
        }
        let entries = match &config.proxy {
            Some(config) => proxy::bind(&roles, config, listening, &drain)?,
            None => None,
        };
        let scraped = metrics::listen(&roles, listening)?;
        // From here on nothing fails any more: what is captured leads to who serves.
        if let Some(steer) = &config.steer {
            let inherited = inheritance.steering(drain.gate()).await?;
            roles.steering = steering::start(&roles, steer, inherited, &drain)?;
        }
        roles.proxy = entries.map(|entries| entries.serve(&drain));
        let roles = Arc::new(roles);
        metrics::serve(&roles, scraped, &drain);
        let reports = reports(&roles, &drain);
        let socket = match roles.appliance.as_ref().zip(port) {
            Some((appliance, port)) => appliance.serve(port, reports, &ledger, settings, hello, &drain),
            None => inspect::api::alone(reports),
        };
        let (sender, orders) = mpsc::channel(ORDERS);
        // An order takes longer than what is asked in passing.
        let orders_of = orders::routes(roles.steering.clone(), sender, &invocation);
        let monitor = inspect::monitor::router(
            ledger.hub().clone(),
            |written| crate::steer::probe::below(written).map_err(|error| error.to_string()),
            drain.clone(),
        );
        let socket = layers::around(socket.merge(monitor)).merge(orders_of);
        let socket = socket.merge(log::routes(&roles, &drain)).merge(metrics::routes(&roles));
        let socket = socket.merge(probe::routes(&roles));
        // Not one of the drain's tasks: it answers until the end.
        let control = tokio::spawn(control.serve(drain.clone(), socket));
        Ok(Daemon {
            drain,
            roles,
            control,
            control_left,
            sockets,
            invocation,
            orders,
            predecessor: None,
            own_state: Some(own_state),
            _threads: lane_threads,
        })
    }

    /// Runs until SIGTERM or SIGINT, or until another process has taken over; then stops.
    ///
    /// # Errors
    /// The signals can't be waited for; or the process before this one serves on.
    pub async fn run(mut self) -> Result<(), StartError> {
        let signals = |source| StartError::System { doing: "waiting for signals", source };
        let mut terminate = signal(SignalKind::terminate()).map_err(signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(signals)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(signals)?;
        let predecessor = self.predecessor.take().map(Arc::new);
        if let Err(error) = self.take_over(predecessor.as_ref()).await {
            self.undo().await;
            if let Some(predecessor) = predecessor {
                predecessor.failed(&error.to_string());
            }
            return Err(error);
        }
        // It is let go.
        drop(predecessor);
        tracing::info!("ready");
        let end = loop {
            let asked = tokio::select! {
                _ = terminate.recv() => break End::Stopped,
                _ = interrupt.recv() => break End::Stopped,
                _ = hangup.recv() => None,
                Some(order) = self.orders.recv() => Some(order),
            };
            notify::status("a new process takes over");
            let mut stopped = false;
            let stop = async {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                stopped = true;
            };
            let outcome = reload::replace(&self.invocation, &self, stop).await;
            match &outcome {
                Ok(pid) => tracing::info!(pid, "another process has taken over"),
                Err(why) if stopped => tracing::info!("not reloaded: {why}"),
                Err(why) => {
                    tracing::error!("not reloaded, all is as before: {why}");
                    notify::ready();
                }
            }
            let replaced = outcome.is_ok();
            if let Some(order) = asked {
                // Who asked may be gone.
                let _ = order.send(outcome);
            }
            if replaced {
                break End::Replaced;
            }
            if stopped {
                break End::Stopped;
            }
        };
        match end {
            End::Replaced => self.leave(),
            End::Stopped => {
                tracing::info!("stopping; a second signal cuts what is open");
                notify::stopping();
                name::ALL.into_iter().for_each(notify::forget);
                self.sockets.let_go();
                // First of all nothing is captured any more.
                if let Some(steering) = &self.roles.steering {
                    steering.detach();
                }
            }
        }
        let cut = tokio::select! {
            cut = self.drain.finish() => cut,
            _ = terminate.recv() => self.drain.cut().await,
            _ = interrupt.recv() => self.drain.cut().await,
        };
        match cut {
            0 => tracing::info!("stopped"),
            n => tracing::warn!("stopped; {n} tasks were cut"),
        }
        self.control.abort();
        // Its end removes the socket.
        let _ = (&mut self.control).await;
        if let Some(appliance) = &self.roles.appliance {
            appliance.close(matches!(end, End::Replaced)).await;
        }
        Ok(())
    }

    /// Becomes the daemon, where another process was it until now.
    async fn take_over(&self, predecessor: Option<&Arc<Predecessor>>) -> Result<(), StartError> {
        let replacing =
            |source| StartError::System { doing: "taking over from the process before this one", source };
        if let Some(predecessor) = predecessor.cloned() {
            let ready = tokio::task::spawn_blocking(move || predecessor.ready()).await;
            ready.map_err(io::Error::other).flatten().map_err(replacing)?;
        }
        // First of all: where it does not work out, the other process goes on.
        if let (Some(_), Some(steering)) = (predecessor, &self.roles.steering) {
            steering.take_over()?;
        }
        // What has a name is ours to remove from now on.
        self.control_left.store(false, Ordering::Relaxed);
        self.sockets.close_rest();
        self.tell_manager();
        if let Some(predecessor) = predecessor {
            self.drain.set_open(true);
            predecessor.serving();
        }
        notify::ready();
        if let Some(every) = notify::watchdog() {
            let (roles, drain) = (self.roles.clone(), self.drain.clone());
            // What is only left to end is nobody's to watch.
            self.drain.spawn("watchdog", async move {
                tokio::select! {
                    () = keep_alive(every, &roles) => {}
                    () = drain.stopping() => {}
                }
            });
        }
        Ok(())
    }

    /// Has the service manager keep the sockets of this process, and no others: what it keeps may be nobody's any more.
    fn tell_manager(&self) {
        if notify::is_on() {
            name::ALL.into_iter().for_each(notify::forget);
            self.sockets.observe(notify::store);
        }
    }

    /// Ends all that this process began: another one serves on, or none.
    async fn undo(&self) {
        // Its name is the other's.
        self.control_left.store(true, Ordering::Relaxed);
        self.control.abort();
        self.drain.cut().await;
        if let Some(steering) = &self.roles.steering {
            steering.detach();
        }
    }

    /// Leaves everything to the process that is the daemon now, and ends what is open here.
    fn leave(&mut self) {
        self.control_left.store(true, Ordering::Relaxed);
        self.control.abort();
        self.sockets.let_go();
        self.own_state = None;
        if let Some(steering) = &self.roles.steering {
            steering.leave();
        }
        if let Some(appliance) = &self.roles.appliance {
            appliance.leave();
        }
        let patience = self.roles.config.reload_drain;
        self.drain.set_deadline(patience);
        let open = self.roles.ledger.open_count();
        tracing::info!(open, "what is open may end, for {patience:?}; SIGTERM cuts it");
    }
}

impl Standing for Daemon {
    async fn pause(&self) -> Result<(Vec<Named>, bool), String> {
        self.drain.set_open(false);
        if let Some(appliance) = &self.roles.appliance {
            appliance.pause().await;
        }
        let no_descriptor = |error: io::Error| format!("what is to be handed on: {error}");
        let mut all = self.sockets.all().map_err(no_descriptor)?;
        if let Some(lock) = &self.own_state {
            all.push((name::STATE_LOCK.to_owned(), lock.try_clone().map_err(no_descriptor)?.into()));
        }
        let Some(steering) = self.roles.steering.clone() else { return Ok((all, false)) };
        let paused = tokio::task::spawn_blocking(move || steering.pause()).await;
        let (locks, off) = paused.map_err(io::Error::other).flatten().map_err(no_descriptor)?;
        all.extend(locks);
        Ok((all, off))
    }

    async fn resume(&self) {
        self.tell_manager();
        if let Some(steering) = self.roles.steering.clone() {
            let resumed = tokio::task::spawn_blocking(move || steering.resume()).await;
            let errors = match resumed {
                Ok(errors) => errors.iter().map(ToString::to_string).collect(),
                Err(panicked) => vec![panicked.to_string()],
            };
            for why in errors {
                tracing::error!("steering is not all as it was: {why}");
            }
        }
        if let (Some(appliance), Some(config)) = (&self.roles.appliance, &self.roles.config.appliance) {
            appliance.resume(&config.groups).await;
        }
        self.drain.set_open(true);
    }
}

/// Tells the manager that this process is alive, for as long as its parts answer.
async fn keep_alive(every: Duration, roles: &Roles) {
    let mut ticks = tokio::time::interval(every);
    loop {
        ticks.tick().await;
        // Whoever holds one of these for ever keeps it from being told.
        let _open = roles.ledger.open_count();
        if let Some(registry) = &roles.registry {
            drop(registry.groups());
        }
        roles.threads.answer().await;
        notify::alive();
    }
}

fn listen_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => ": ports below 1024 need root or CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrInUse => ": something else listens there; `ss -ltnp` shows what",
        io::ErrorKind::AddrNotAvailable => ": this host has no such address; `ip address` shows those it has",
        _ => "",
    }
}

/// Bytes that all peers together may make this process hold.
fn budget() -> usize {
    const MOST: usize = 2 * 1024 * 1024 * 1024;
    let [pages, size] = [SysconfVar::_PHYS_PAGES, SysconfVar::PAGE_SIZE]
        .map(|what| sysconf(what).ok().flatten().and_then(|n| usize::try_from(n).ok()));
    let memory = pages.zip(size).and_then(|(pages, size)| pages.checked_mul(size));
    memory.map_or(MOST, |memory| MOST.min(memory / 4))
}

/// Has TLS gather its randomness beside all else of a start. It measures the processor's jitter for it, which takes tens of
/// milliseconds, and the first handshake would wait for that.
fn gather_randomness() {
    tokio::task::spawn_blocking(|| {
        // Where it fails now, the handshake that needs it says so.
        let _ = aws_lc_rs::default_provider().secure_random.fill(&mut [0]);
    });
}

/// Each connection takes a descriptor; the default soft limit of 1024 is a relic.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!("the limit of open files stays as it is: {error}");
    }
}
