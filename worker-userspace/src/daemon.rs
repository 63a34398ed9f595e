//! Composes the roles that the configuration asks for, owns their tasks, and stops them.
//!
//! The order of a start is the order of need: the control socket first (two daemons never share one), then
//! the tunnel's ends, then what captures. A stop goes the other way round: first nothing is captured any
//! more, then what runs may end, then the rest is cut.

mod appliance;
mod node;
mod proxy;
mod readiness;
mod steering;
mod why;

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{SysconfVar, sysconf};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use crate::appliance::admin::AdminError;
use crate::appliance::registry::Registry;
use crate::appliance::store::StoreError;
use crate::config::{Config, FileError, read_roots};
use crate::drain::Drain;
use crate::egress::dial::Dialler;
use crate::egress::policy::Policy;
use crate::inspect;
use crate::inspect::api::{Lack, Reports};
use crate::inspect::control::{Control, ControlError};
use crate::inspect::ledger::Ledger;
use crate::inspect::status::{
    ApplianceStatus, Flows, LaneStatus, PolicyStatus, ProxyStatus, Status, WorkerStatus,
};
use crate::steer::steering::{SteerError, Steering};
use crate::target::{Pattern, Target};
use crate::tunnel::credit::{self, Budget};
use crate::tunnel::dial::{self, Words};
use crate::tunnel::handshake::{Dial, authorization};
use crate::tunnel::lane::Settings;
use crate::tunnel::message::{Capabilities, Hello, VERSION};
use crate::tunnel::tls::{self, TlsError};
use crate::web::layers;
use crate::worker::{Parts, Uplink};
use appliance::Appliance;
use readiness::Believed;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 4096;

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
    /// Keeps other daemons off the state directory.
    _own_state: File,
}

impl Daemon {
    /// Starts all roles of `config`.
    ///
    /// # Errors
    /// The first thing that does not work; what was started before it is undone.
    pub async fn start(config: Config) -> Result<Daemon, StartError> {
        raise_descriptor_limit();
        let state = |source| StartError::State { path: config.state_dir.clone(), source };
        let control = Control::bind(&config.control_socket)?;
        let Some(own_state) = node::take(&config.state_dir).map_err(state)? else {
            return Err(StartError::StateTaken(config.state_dir.clone()));
        };
        let drain = Drain::new(config.drain);
        let ledger = Ledger::default();
        drain.spawn("rates", ledger.clone().keep_rates(drain.clone()));
        let settings = Settings { budget: Arc::new(Budget::new(budget())), ..Settings::default() };
        let hello = Hello {
            version: VERSION,
            node: node::id(&config.state_dir).map_err(state)?,
            session: rand::random(),
            lane: 0,
            name: node::host_name(),
            software: env!("CARGO_PKG_VERSION").to_owned(),
            initial_credit: credit::INITIAL,
            max_streams: settings.max_streams,
            capabilities: Capabilities::OURS,
        };
        let mut roles = Roles {
            config: config.clone(),
            started: Instant::now(),
            ledger: ledger.clone(),
            registry: None,
            appliance: None,
            uplink: None,
            steering: None,
            proxy: None,
            found: Believed::default(),
        };

        let mut port = None;
        if let Some(section) = &config.appliance {
            let (appliance, bound) = Appliance::start(&config, section, &ledger, &drain).await?;
            roles.registry = Some(appliance.registry.clone());
            roles.appliance = Some(appliance);
            port = Some(bound);
        }

        if let Some(worker) = &config.worker {
            let tls = match worker.appliance.plaintext {
                false => {
                    let extra = match &worker.ca_file {
                        Some(path) => read_roots(path)?,
                        None => Vec::new(),
                    };
                    Some(tls::client(extra)?)
                }
                true => {
                    tracing::warn!(
                        "INSECURE: insecure_plaintext = true: worker_key and all traffic cross the network in the clear"
                    );
                    None
                }
            };
            let key = worker.key.read()?;
            let key = authorization(key.reveal()).ok_or_else(|| StartError::System {
                doing: "making the Authorization header",
                source: io::ErrorKind::InvalidData.into(),
            })?;
            let at = Target { host: worker.appliance.host.clone(), port: worker.appliance.port };
            let egress = &worker.egress;
            let uplink = Uplink::new(Parts {
                dial: Dial { appliance: dial::Appliance { at, tls, words: Words::CONFIGURATION }, key },
                hello: hello.clone(),
                lanes: worker.lanes,
                settings: settings.clone(),
                dialler: Dialler::new(
                    Policy::new(egress.allow.as_deref(), &egress.deny),
                    egress.connect_timeout,
                ),
                ledger: ledger.clone(),
                drain: drain.clone(),
            });
            uplink.start();
            roles.uplink = Some(uplink);
        }

        if let Some(steer) = &config.steer {
            roles.steering = steering::start(&roles, steer, &drain)?;
        }
        if let Some(config) = &config.proxy {
            roles.proxy = proxy::start(&roles, config, &drain)?;
        }
        let roles = Arc::new(roles);
        let reports = reports(&roles, &drain);
        let socket = match roles.appliance.as_ref().zip(port) {
            Some((appliance, port)) => appliance.serve(port, reports, &ledger, settings, hello, &drain),
            None => inspect::api::alone(reports),
        };
        let socket = socket.merge(inspect::monitor::router(ledger.hub().clone(), drain.clone()));
        // Not one of the drain's tasks: it answers until the end.
        let control = tokio::spawn(control.serve(drain.clone(), layers::around(socket)));
        Ok(Daemon { drain, roles, control, _own_state: own_state })
    }

    /// Runs until SIGTERM or SIGINT, then stops.
    ///
    /// # Errors
    /// The signals can't be waited for.
    pub async fn run(self) -> Result<(), StartError> {
        let signals = |source| StartError::System { doing: "waiting for signals", source };
        let mut terminate = signal(SignalKind::terminate()).map_err(signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(signals)?;
        tracing::info!("ready");
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping; a second signal cuts what is open");
        // First of all nothing is captured any more.
        if let Some(steering) = &self.roles.steering {
            steering.detach();
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
        let _ = self.control.await;
        if let Some(appliance) = &self.roles.appliance {
            appliance.close().await;
        }
        Ok(())
    }
}

/// What `status` is made of.
struct Roles {
    config: Config,
    started: Instant,
    ledger: Ledger,
    registry: Option<Arc<Registry>>,
    appliance: Option<Appliance>,
    uplink: Option<Arc<Uplink>>,
    steering: Option<Arc<Steering>>,
    proxy: Option<ProxyStatus>,
    found: Believed<Vec<Lack>>,
}

impl Roles {
    fn status(&self) -> Status {
        let appliance =
            self.config.appliance.as_ref().zip(self.appliance.as_ref()).map(|(config, appliance)| {
                ApplianceStatus {
                    listen: appliance.listen.clone(),
                    plaintext: config.tls.is_none(),
                    groups: appliance.registry.groups().iter().map(|group| group.status()).collect(),
                }
            });
        let worker = self.config.worker.as_ref().zip(self.uplink.as_ref()).map(|(config, uplink)| {
            let told = uplink.told();
            WorkerStatus {
                appliance: uplink.appliance(),
                connected: uplink.session().is_up(),
                problem: uplink.problem(),
                lanes: uplink.session().lanes().iter().map(|lane| LaneStatus::of(lane)).collect(),
                allow: texts(config.egress.allow.iter().flatten()),
                deny: texts(&config.egress.deny),
                role: told.role.map(|told| told.role.word().to_owned()),
                role_epoch: told.role.map(|told| told.epoch),
                policy: PolicyStatus::of(told.policy.as_deref(), config.egress.allow.is_some()),
            }
        });
        let steer = self.steering.as_ref().map(|steering| steering.status());
        let named = [
            ("appliance", appliance.is_some()),
            ("worker", worker.is_some()),
            ("steer", steer.is_some()),
            ("proxy", self.proxy.is_some()),
        ];
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            roles: named.into_iter().filter(|(_, on)| *on).map(|(name, _)| name.to_owned()).collect(),
            appliance,
            worker,
            steer,
            proxy: self.proxy.clone(),
            flows: Flows {
                open: self.ledger.open_count(),
                total: self.ledger.total(),
                recent: self.ledger.report(),
            },
        }
    }
}

/// What the daemon says of itself to who asks over HTTP.
fn reports(roles: &Arc<Roles>, drain: &Drain) -> Reports {
    let (reported, asked, drain) = (roles.clone(), roles.clone(), drain.clone());
    let explained = roles.clone();
    Reports {
        why: Arc::new(move |asked| Box::pin(why::why(explained.clone(), asked))),
        status: Arc::new(move || reported.status()),
        unready: Arc::new(move || {
            let (roles, stopping) = (asked.clone(), drain.is_stopping());
            Box::pin(async move {
                match stopping {
                    true => vec![Lack { part: "stopping", detail: "dworker is stopping".to_owned() }],
                    false => roles.unready().await,
                }
            })
        }),
    }
}

fn texts<'p>(patterns: impl IntoIterator<Item = &'p Pattern>) -> Vec<String> {
    patterns.into_iter().map(ToString::to_string).collect()
}

fn listen_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => ": ports below 1024 need root or CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrInUse => ": something else listens there; `ss -ltnp` shows what",
        io::ErrorKind::AddrNotAvailable => ": this host has no such address; `ip address` shows those it has",
        _ => "",
    }
}

/// Binds a listener. `[::]` means IPv6 only, so that `0.0.0.0` can stand beside it.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A daemon that was restarted need not wait for its old connections to be forgotten.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Bytes that all peers together may make this process hold.
fn budget() -> usize {
    const MOST: usize = 1024 * 1024 * 1024;
    let [pages, size] = [SysconfVar::_PHYS_PAGES, SysconfVar::PAGE_SIZE]
        .map(|what| sysconf(what).ok().flatten().and_then(|n| usize::try_from(n).ok()));
    let memory = pages.zip(size).and_then(|(pages, size)| pages.checked_mul(size));
    memory.map_or(MOST, |memory| MOST.min(memory / 4))
}

/// Each connection takes a descriptor; the default soft limit of 1024 is a relic.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!("the limit of open files stays as it is: {error}");
    }
}
