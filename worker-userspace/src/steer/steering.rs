//! Steering as a whole: the kernel's programs, the names, DNS, and what leads a captured connection back to
//! what it is for.
//!
//! What must hold:
//! - Nothing is captured before everything that it leads to is there: hence the order of a start.
//! - A change of what is steered ([`Steering::update`]) leaves alone what stays: no connection to a proxy host that was
//!   one before and is one afterwards goes another way, or is refused, in between.
//! - A change that does not work out changes nothing.
//!
//! Dropping a [`Steering`]'s last handle detaches the programs.

mod explain;
mod fit;
mod lifetime;
mod plan;
mod report;
mod slots;
mod table;

pub use report::Counted;

use std::cmp::Reverse;
use std::collections::{HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::dns::{self, Resolvers, Server, ServerError};
use super::kernel::{Arrival, FlowRecord, Kernel, KernelError, next_event};
use super::names::{Change, NameRules, Names, NamesError, OverlapError, PrefixError, Prefixes, Synthetic};
use super::pins::{Pins, PinsError};
use super::probe::ProbeError;
use super::programs::{Programs, ProgramsError};
use super::rules::RulesError;
use crate::config::{Families, Steer};
use crate::drain::Gate;
use crate::inspect::monitor::Hub;
use crate::inspect::status::RefusedStatus;
use crate::sockets::{Sockets, name};
use crate::target::{Host, Name, Pattern};
pub use explain::{Explained, Led};
pub use fit::user;
use lifetime::{Attached, Attaching};
use plan::{Plan, Planner};
use slots::Slots;
use table::Table;

/// Where names are found before DNS is asked.
const HOSTS: &str = "/etc/hosts";

/// Why steering did not start, or did not change. Each names the thing and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    /// The machine lacks something, or a cgroup is not there.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The programs.
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    /// What outlives this process.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// A map.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The rules don't fit the kernel's tables.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Rules(Vec<RulesError>),
    /// The synthetic prefixes.
    #[error(transparent)]
    Prefixes(#[from] PrefixError),
    /// The synthetic prefixes are in use on this host.
    #[error(transparent)]
    Overlap(#[from] OverlapError),
    /// The names.
    #[error(transparent)]
    Names(#[from] NamesError),
    /// DNS.
    #[error(transparent)]
    Dns(#[from] ServerError),
    /// A user that is not there.
    #[error("steer.exclude_users: this host has no user {name}; `getent passwd` shows those that it has")]
    NoSuchUser {
        /// The name.
        name: String,
    },
    /// The users can't be looked up.
    #[error("steer.exclude_users: looking up {name}: {source}")]
    Users {
        /// The name.
        name: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// `/etc/hosts`.
    #[error("{}: {source}; proxy hosts that stand there are never asked of DNS, so it must be readable", path.display())]
    Hosts {
        /// The file.
        path: Box<Path>,
        /// Why it can't be read.
        #[source]
        source: io::Error,
    },
    /// It stands still.
    #[error("another process takes over: ask again when it has")]
    Standing,
    /// The forwarder's listener.
    #[error("listening on {address}: {source}")]
    Listen {
        /// The address.
        address: IpAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Who carries, and what is steered for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Carrier {
    /// Its id: the same for as long as the daemon runs, and nobody else's.
    pub id: i64,
    /// Its name, for people.
    pub name: String,
    /// What it carries.
    pub proxy_hosts: Vec<Pattern>,
}

/// Steering that is on.
pub struct Steering {
    kernel: Arc<dyn Kernel>,
    names: Arc<Names>,
    rules: Arc<Installed>,
    /// Also the lock that orders changes.
    planner: Mutex<Planner>,
    /// Why the last change came to nothing.
    problem: Mutex<Option<String>>,
    listeners: Vec<SocketAddr>,
    dns: Arc<dns::Counters>,
    down_for: Duration,
    /// Which addresses of a name are answered.
    families: Families,
    /// Where names are found before DNS is asked.
    hosts: Box<Path>,
    /// The carriers that are not there.
    down: Mutex<HashSet<i64>>,
    sockets: Sockets,
    refused: Mutex<VecDeque<RefusedStatus>>,
    /// Who looks at what happens.
    hub: OnceLock<Hub>,
    /// Where the connections came from by which the daemon made itself known to the programs.
    registered: Mutex<HashSet<SocketAddr>>,
    /// What attaches; set once, by a start on the real kernel.
    attaching: OnceLock<Attaching>,
    /// Another process takes over, or has. Changes under the locks of both who plans and what is attached, so whoever has
    /// either may ask.
    standing: AtomicBool,
}

/// What a start takes over from the process before it, and how it waits for its turn.
#[derive(Debug)]
pub struct Inherited {
    /// Sockets, and the locks that came from [`Steering::pause`].
    pub sockets: Sockets,
    /// Through it comes all that is new.
    pub gate: Gate,
    /// Steering was switched off by hand.
    pub off: bool,
    /// The programs, where they were loaded ahead.
    pub programs: Option<Programs>,
    /// A process before this one serves until this one [takes over](Steering::take_over), with whatever pins.
    pub follows: bool,
}

impl Default for Inherited {
    fn default() -> Inherited {
        Inherited {
            sockets: Sockets::default(),
            gate: Gate::always_open(),
            off: false,
            programs: None,
            follows: false,
        }
    }
}

/// What [`Steering::start`] leaves to be run.
pub struct Started {
    /// The handle.
    pub steering: Arc<Steering>,
    /// Where captured connections arrive.
    pub forwarder: Vec<TcpListener>,
    /// DNS for captured applications.
    pub dns: Server,
}

impl Steering {
    /// Loads the programs and makes all that a captured connection leads to; needs root and a tokio runtime.
    /// [`capture`](Self::capture) follows. `carriers` may be none yet. What the process before this one left is taken out
    /// of `inherited`; questions come through its gate.
    ///
    /// # Errors
    /// The first thing that does not work; what was attached before stays so, and nothing else.
    pub fn start(
        config: &Steer,
        state_dir: &Path,
        carriers: Vec<Carrier>,
        mut inherited: Inherited,
    ) -> Result<Started, SteerError> {
        let (scope, found) = fit::captured(config)?;
        let users = fit::users(config)?;
        let prefixes = fit::prefixes(config)?;
        let programs = inherited.programs.take().map_or_else(|| Steering::load_ahead(config), Ok)?;
        if let Some(pins) = programs.pins() {
            pins.lock_by(&inherited.sockets)?;
        }
        let programs = Arc::new(programs);
        programs.set_excluded(&users, &found.excluded)?;
        let (hosts, kernel) = (Path::new(HOSTS), programs.clone());
        let started = Steering::prepare(kernel, config, prefixes, state_dir, hosts, carriers, &inherited)?;
        for path in &found.missing {
            tracing::warn!("nothing is captured in {} yet: there is no such cgroup", path.display());
        }
        let now = Mutex::new(Attached { off: inherited.off, found });
        let attaching = Attaching { programs, scope, users, alone: !inherited.follows, now };
        let _ = started.steering.attaching.set(attaching);
        Ok(started)
    }

    /// Loads the programs, which takes the kernel a moment, while another daemon may still have the pins.
    ///
    /// # Errors
    /// What keeps them from being loaded.
    pub fn load_ahead(config: &Steer) -> Result<Programs, SteerError> {
        Ok(Programs::load(Some(Pins::beside(&config.pins)?))?)
    }

    /// Everything but attaching, with any kernel.
    fn prepare(
        kernel: Arc<dyn Kernel>,
        config: &Steer,
        prefixes: Prefixes,
        state_dir: &Path,
        hosts: &Path,
        carriers: Vec<Carrier>,
        inherited: &Inherited,
    ) -> Result<Started, SteerError> {
        let Inherited { sockets, gate, .. } = inherited;
        kernel.set_synthetic(prefixes.v4(), prefixes.v6())?;
        let apart = [prefixes.v4().into(), prefixes.v6().into()];
        let table = Table::new(kernel.clone(), &apart)?;
        let next = NonZeroU32::MIN.saturating_add(table.highest());
        let rules = Arc::new(Installed { plan: RwLock::default(), table });
        let names = Arc::new(Names::adopt(state_dir, prefixes, rules.clone(), sockets)?);

        let mut forwarder = Vec::new();
        for socket in sockets.named(name::FORWARDER) {
            let listener = TcpListener::from(socket);
            let address = Ipv4Addr::LOCALHOST.into();
            listener.set_nonblocking(true).map_err(|source| SteerError::Listen { address, source })?;
            forwarder.push(listener);
        }
        let is_v4 = |listener: &TcpListener| listener.local_addr().is_ok_and(|address| address.is_ipv4());
        if !forwarder.iter().any(is_v4) {
            forwarder.push(listener(Ipv4Addr::LOCALHOST.into())?);
        }
        if forwarder.iter().all(is_v4) {
            forwarder.extend(listener(Ipv6Addr::LOCALHOST.into()).ok());
        }
        let mut listeners = Vec::new();
        for listener in &forwarder {
            kernel.mark_listener(listener.as_fd())?;
            let failed = |source| SteerError::Listen { address: Ipv4Addr::LOCALHOST.into(), source };
            sockets.keep(name::FORWARDER, listener).map_err(failed)?;
            listeners.push(listener.local_addr().map_err(failed)?);
        }
        let port = |v6| listeners.iter().find(|l| l.is_ipv6() == v6).map_or(0, SocketAddr::port);
        kernel.set_listeners(port(false), port(true))?;

        let settings = dns::Settings { families: config.families, upstream_port: 53 };
        let resolvers = Arc::new(KernelResolvers(kernel.clone()));
        let server = Server::adopt(names.clone(), resolvers, settings, sockets, gate.clone())?;
        let planner = Planner {
            synthetic: (prefixes.v4(), prefixes.v6()),
            closed: config.addresses_closed,
            hosts: hosts.into(),
            slots: Slots::default(),
            next,
        };
        let steering = Arc::new(Steering {
            kernel,
            names,
            rules,
            planner: planner.into(),
            problem: Mutex::default(),
            listeners,
            dns: server.counters(),
            down_for: config.down_for,
            families: config.families,
            hosts: hosts.into(),
            down: Mutex::default(),
            sockets: sockets.clone(),
            refused: Mutex::default(),
            hub: OnceLock::new(),
            registered: Mutex::default(),
            attaching: OnceLock::new(),
            standing: AtomicBool::new(false),
        });
        steering.update(carriers)?;
        Ok(Started { steering, forwarder, dns: server })
    }

    /// Replaces what is steered, and by whom it is carried. Blocks: for the time of a system call for each prefix and
    /// each known name that changes, and of a few look-ups for each that does not.
    ///
    /// When it returns, connections to new proxy hosts are captured and their names answered; those to former ones go
    /// direct, their names are asked of the resolvers again, and who still has such a name's synthetic address is
    /// refused. A name that becomes a proxy host again has its old address again. What is connected stays connected.
    /// A carrier that was not there before is taken to be up until [`set_carrier`](Self::set_carrier) says otherwise.
    ///
    /// # Errors
    /// Then what was steered before is steered on, and `status` says why; but for [`SteerError::Standing`], which is no
    /// fault.
    pub fn update(&self, carriers: Vec<Carrier>) -> Result<(), SteerError> {
        let mut planner = lock(&self.planner);
        if self.is_standing() {
            return Err(SteerError::Standing);
        }
        let result = self.replace(&mut planner, carriers);
        planner.slots.settle(self.rules.plan().carriers.keys().copied());
        *lock(&self.problem) = result.as_ref().err().map(ToString::to_string);
        result
    }

    fn replace(&self, planner: &mut Planner, carriers: Vec<Carrier>) -> Result<(), SteerError> {
        let start = Instant::now();
        let before = self.rules.plan();
        let plan = Arc::new(planner.plan(carriers, &before)?);
        for (slot, _) in
            plan.carriers.iter().filter(|(id, _)| !before.carriers.contains_key(id)).map(|(_, c)| c)
        {
            self.kernel.set_group_state(*slot, None)?;
        }
        let change = self.names.change();
        match self.bring(&change, &plan) {
            Ok((written, removed)) => {
                let rules = plan.rules.len();
                tracing::info!(rules, written, removed, took = ?start.elapsed(), "what is steered has changed");
                Ok(())
            }
            Err(error) => {
                if let Err(again) = self.bring(&change, &before) {
                    tracing::error!("the rules from before a change that failed are not all back: {again}");
                    change.distrust();
                }
                Err(error.into())
            }
        }
    }

    /// Brings the kernel and the names from whatever they have to a plan; returns how many entries were written and
    /// removed.
    fn bring(&self, change: &Change<'_>, plan: &Arc<Plan>) -> Result<(usize, usize), KernelError> {
        // From the first new entry on, captured connections come that only the new plan knows.
        self.rules.set(plan.clone());
        let table = &self.rules.table;
        let mut entries: Vec<_> = plan.entries().collect();
        // The longest prefix first, since it decides, and an entry says all about what is below it: so whatever an
        // address meets was wanted before or is wanted now, and nothing is half of either. Removal goes the other way.
        entries.sort_unstable_by_key(|(net, _)| Reverse(net.prefix_len()));
        let (mut wanted, mut written) = (HashSet::with_capacity(entries.len()), 0);
        for (net, entry) in entries {
            written += usize::from(table.put(net, entry)?);
            wanted.insert(net);
        }
        // In between: names that are no proxy hosts any more are not answered when their rule goes.
        change.set(plan.patterns.clone(), |name, addresses| {
            let Some(entry) = plan.for_name(name) else { return Ok(false) };
            for net in nets(addresses) {
                written += usize::from(table.put(net, &entry)?);
                wanted.insert(net);
            }
            Ok::<_, KernelError>(true)
        })?;
        Ok((written, table.keep(&wanted)?))
    }

    /// Takes the kernel's record of a connection that the forwarder accepted.
    pub fn take_flow(&self, listener: u16, source: SocketAddr, socket: BorrowedFd<'_>) -> Arrival {
        self.kernel.take_flow(listener, source, socket).unwrap_or_else(|error| {
            tracing::error!(%source, "a captured connection's record can't be read: {error}");
            Arrival::Foreign
        })
    }

    /// True for a connection by which the daemon made itself known to the programs; once.
    pub fn is_own(&self, source: SocketAddr) -> bool {
        self.registered().remove(&source)
    }

    /// The host that a captured connection is for; `None`: a synthetic address without a name.
    pub fn host_of(&self, record: &FlowRecord) -> Option<Host> {
        self.host_at(record.target)
    }

    /// The host that a connection to this address is for, were it captured.
    pub(super) fn host_at(&self, target: SocketAddr) -> Option<Host> {
        let address = target.ip();
        if let Some(name) = self.names.name_of(address) {
            return Some(Host::Name(name));
        }
        if self.names.contains(address) {
            return None;
        }
        Some(self.rules.plan().host_at(address, target.port()))
    }

    /// Has the kernel answer the next `connect()` to this address with `errno`, for a moment.
    pub fn set_down(&self, address: SocketAddr, errno: i32) {
        if self.down_for.is_zero() {
            return;
        }
        if let Err(error) = self.kernel.set_down(address, errno, self.down_for) {
            tracing::warn!(%address, "the kernel can't be told that it is down: {error}");
        }
    }

    /// Says whether a carrier is there. While it is not, `connect()` fails at once. Of carriers that nothing is steered
    /// for it need not be said. False: steering [stands still](Self::pause), so say it again.
    pub fn set_carrier(&self, carrier: i64, up: bool) -> bool {
        let planner = lock(&self.planner);
        if self.is_standing() {
            return false;
        }
        match up {
            true => drop(lock(&self.down).remove(&carrier)),
            false => drop(lock(&self.down).insert(carrier)),
        }
        let Some(slot) = planner.slots.of(carrier) else { return true };
        let errno = (!up).then_some(libc::EHOSTUNREACH);
        if let Err(error) = self.kernel.set_group_state(slot, errno) {
            tracing::error!(carrier, "the kernel can't be told who carries: {error}");
        }
        true
    }

    /// Captures nothing any more. What was captured goes on.
    pub fn detach(&self) {
        self.kernel.detach();
    }

    /// Tells `hub` of what the kernel refuses, too. The first one stays.
    pub fn tell(&self, hub: Hub) {
        let _ = self.hub.set(hub);
    }

    /// Logs what the kernel refuses, for as long as it is polled.
    pub async fn watch(self: Arc<Self>, mut gate: Gate) {
        loop {
            match gate.through(|| next_event(&*self.kernel)).await {
                Ok(event) => self.note(&event),
                Err(error) => {
                    tracing::error!("the kernel's events can't be read any more: {error}");
                    return;
                }
            }
        }
    }
}

/// A listener on loopback whose number the kernel chooses.
fn listener(address: IpAddr) -> Result<TcpListener, SteerError> {
    let make = || {
        let address = SocketAddr::new(address, 0);
        let socket =
            socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        // What it accepts inherits this: a short answer in two pieces must not wait for a delayed acknowledgement.
        socket.set_tcp_nodelay(true)?;
        socket.bind(&address.into())?;
        socket.listen(4096)?;
        socket.set_nonblocking(true)?;
        Ok(TcpListener::from(socket))
    };
    make().map_err(|source| SteerError::Listen { address, source })
}

/// What is steered, and what of it is in the kernel.
struct Installed {
    plan: RwLock<Arc<Plan>>,
    table: Table,
}

impl Installed {
    fn plan(&self) -> Arc<Plan> {
        self.plan.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, plan: Arc<Plan>) {
        *self.plan.write().unwrap_or_else(PoisonError::into_inner) = plan;
    }
}

/// Puts a name's rule into the kernel before its address is answered.
impl NameRules for Installed {
    fn on_assigned(&self, name: &Name, addresses: Synthetic) -> io::Result<()> {
        // It is asked of proxy hosts only, and never while a plan is being changed.
        let entry = self.plan().for_name(name).ok_or_else(|| io::Error::other("no rule names it"))?;
        for net in nets(addresses) {
            self.table.put(net, &entry).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

fn nets(addresses: Synthetic) -> [IpNet; 2] {
    [IpAddr::from(addresses.v4).into(), IpAddr::from(addresses.v6).into()]
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves behind them what was there, or what was just to be there.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct KernelResolvers(Arc<dyn Kernel>);

impl Resolvers for KernelResolvers {
    fn resolver_of(&self, port: u16) -> Option<IpAddr> {
        self.0.resolver_of(port).unwrap_or_else(|error| {
            tracing::error!(port, "the resolver of a DNS port can't be read: {error}");
            None
        })
    }

    fn offer_port(&self, port: u16) -> io::Result<()> {
        self.0.offer_dns_port(port).map_err(io::Error::other)
    }

    fn adopt_ports(&self, ports: &HashSet<u16>) -> io::Result<HashSet<u16>> {
        self.0.adopt_dns_ports(ports).map_err(io::Error::other)
    }

    fn take_flow(&self, listener: u16, source: SocketAddr, socket: BorrowedFd<'_>) -> bool {
        self.0.take_flow(listener, source, socket).is_ok_and(|arrival| arrival.captured().is_some())
    }

    fn mark_listener(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.0.mark_listener(socket).map_err(io::Error::other)
    }
}

#[cfg(test)]
pub(crate) mod tests;
