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
mod plan;
mod slots;
mod table;

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::caller;
use super::dns::{self, Resolvers, Server, ServerError};
use super::kernel::{FlowRecord, Kernel, KernelError, Refused, next_event};
use super::names::{
    Change, NameRules, Names, NamesError, OverlapError, PrefixError, Prefixes, Synthetic, check_overlap,
};
use super::probe::{self, Cgroup, ProbeError};
use super::programs::{Programs, ProgramsError};
use super::rules::{Rule, RulesError};
use crate::config::{Families, Steer};
use crate::inspect::ledger::Process;
use crate::inspect::monitor::{Happening, Hub, What};
use crate::inspect::status::{
    LinkStatus, MapStatus, NameStatus, ProgramStatus, RefusedStatus, RuleStatus, SteerStatus,
};
use crate::target::{Host, Name, Pattern, Target};
pub use explain::{Explained, Led};
use plan::{Plan, Planner};
use slots::Slots;
use table::Table;

/// Refusals of the kernel that `status` remembers.
const REMEMBERED: usize = 64;
/// Names that `status` lists.
const LISTED: usize = 1024;
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
    /// `/etc/hosts`.
    #[error("{}: {source}; proxy hosts that stand there are never asked of DNS, so it must be readable", path.display())]
    Hosts {
        /// The file.
        path: Box<Path>,
        /// Why it can't be read.
        #[source]
        source: io::Error,
    },
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
    refused: Mutex<VecDeque<RefusedStatus>>,
    /// Who looks at what happens.
    hub: OnceLock<Hub>,
    /// Where the one connection came from by which the daemon made itself known to the programs.
    registered: OnceLock<SocketAddr>,
    /// What is captured.
    cgroups: OnceLock<Vec<Cgroup>>,
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
    /// Loads and attaches the programs; needs root and a tokio runtime. `carriers` may be none yet.
    ///
    /// # Errors
    /// The first thing that does not work; nothing stays attached then.
    pub fn start(config: &Steer, state_dir: &Path, carriers: Vec<Carrier>) -> Result<Started, SteerError> {
        let cgroups = probe::cgroups(&config.cgroups)?;
        let prefixes = Prefixes::new(config.synthetic4, config.synthetic6)?;
        check_overlap(&prefixes)?;
        let programs = Arc::new(Programs::load()?);
        let started =
            Steering::prepare(programs.clone(), config, prefixes, state_dir, Path::new(HOSTS), carriers)?;
        // Last of all: now everything is there that a captured connection leads to.
        if let Some(source) = programs.attach(&cgroups)? {
            let _ = started.steering.registered.set(source);
        }
        let _ = started.steering.cgroups.set(cgroups);
        Ok(started)
    }

    /// Everything but attaching, with any kernel.
    fn prepare(
        kernel: Arc<dyn Kernel>,
        config: &Steer,
        prefixes: Prefixes,
        state_dir: &Path,
        hosts: &Path,
        carriers: Vec<Carrier>,
    ) -> Result<Started, SteerError> {
        kernel.set_synthetic(prefixes.v4(), prefixes.v6())?;
        let rules = Arc::new(Installed { plan: RwLock::default(), table: Table::new(kernel.clone()) });
        let names = Arc::new(Names::open(state_dir, prefixes, rules.clone())?);

        let (v4, v6) = (listener(Ipv4Addr::LOCALHOST.into())?, listener(Ipv6Addr::LOCALHOST.into()).ok());
        let forwarder: Vec<TcpListener> = [Some(v4), v6].into_iter().flatten().collect();
        let mut listeners = Vec::new();
        for listener in &forwarder {
            kernel.mark_listener(listener.as_fd())?;
            let address = Ipv4Addr::LOCALHOST.into();
            listeners.push(listener.local_addr().map_err(|source| SteerError::Listen { address, source })?);
        }
        let port = |v6| listeners.iter().find(|l| l.is_ipv6() == v6).map_or(0, SocketAddr::port);
        kernel.set_listeners(port(false), port(true))?;

        let settings = dns::Settings { families: config.families, upstream_port: 53 };
        let server = Server::new(names.clone(), Arc::new(KernelResolvers(kernel.clone())), settings)?;
        let planner = Planner {
            synthetic: (prefixes.v4(), prefixes.v6()),
            hosts: hosts.into(),
            slots: Slots::default(),
            next: NonZeroU32::MIN,
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
            refused: Mutex::default(),
            hub: OnceLock::new(),
            registered: OnceLock::new(),
            cgroups: OnceLock::new(),
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
    /// Then what was steered before is steered on, and `status` says why.
    pub fn update(&self, carriers: Vec<Carrier>) -> Result<(), SteerError> {
        let mut planner = lock(&self.planner);
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
        match self.switch(&change, &plan) {
            Ok((written, removed)) => {
                let rules = plan.rules.len();
                tracing::info!(rules, written, removed, took = ?start.elapsed(), "what is steered has changed");
                Ok(())
            }
            Err(error) => {
                if let Err(again) = self.switch(&change, &before) {
                    tracing::error!("the rules from before a change that failed are not all back: {again}");
                    change.distrust();
                }
                Err(error.into())
            }
        }
    }

    /// Brings the kernel and the names from whatever they have to a plan; returns how many entries were written and
    /// removed.
    fn switch(&self, change: &Change<'_>, plan: &Arc<Plan>) -> Result<(usize, usize), KernelError> {
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

    /// Takes the kernel's record of a connection to the forwarder; `None`: the kernel did not send it here.
    pub fn take_flow(&self, listener: u16, source: SocketAddr) -> Option<FlowRecord> {
        self.kernel.take_flow(listener, source).unwrap_or_else(|error| {
            tracing::error!(%source, "a captured connection's record can't be read: {error}");
            None
        })
    }

    /// True for the one connection by which the daemon made itself known to the programs.
    pub fn is_own(&self, source: SocketAddr) -> bool {
        self.registered.get() == Some(&source)
    }

    /// The host that a captured connection is for; `None`: a synthetic address without a name.
    pub fn host_of(&self, record: &FlowRecord) -> Option<Host> {
        let address = record.target.ip();
        if let Some(name) = self.names.name_of(address) {
            return Some(Host::Name(name));
        }
        if self.names.contains(address) {
            return None;
        }
        Some(self.rules.plan().host_at(address, record.target.port()))
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
    /// for it need not be said.
    pub fn set_carrier(&self, carrier: i64, up: bool) {
        let planner = lock(&self.planner);
        let Some(slot) = planner.slots.of(carrier) else { return };
        let errno = (!up).then_some(libc::EHOSTUNREACH);
        if let Err(error) = self.kernel.set_group_state(slot, errno) {
            tracing::error!(carrier, "the kernel can't be told who carries: {error}");
        }
    }

    /// The cgroups that were removed since they were captured: nobody is captured there any more. Costs a system call
    /// for each cgroup.
    pub fn dead_cgroups(&self) -> impl Iterator<Item = &Path> {
        self.cgroups
            .get()
            .into_iter()
            .flatten()
            .filter(|cgroup| !cgroup.is_alive())
            .map(|cgroup| &*cgroup.path)
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
    pub async fn watch(self: Arc<Self>) {
        loop {
            match next_event(&*self.kernel).await {
                Ok(event) => self.note(&event),
                Err(error) => {
                    tracing::error!("the kernel's events can't be read any more: {error}");
                    return;
                }
            }
        }
    }

    fn note(&self, event: &Refused) {
        let name = self.names.name_of(event.target.ip()).map(|name| name.to_string());
        let (target, process, reason) =
            (event.target, event.process.to_string(), event.reason.counter().word().to_owned());
        let shown = name.clone().unwrap_or_default();
        if let Some(hub) = self.hub.get() {
            hub.tell(|| happening(event, name.as_deref()));
        }
        match event.errno {
            Some(errno) => {
                tracing::warn!(%target, name = %shown, %process, errno, "refused in connect(): {reason}")
            }
            None => {
                tracing::warn!(%target, name = %shown, %process, "went direct although a rule names it: {reason}")
            }
        }
        let mut refused = lock(&self.refused);
        refused.truncate(REMEMBERED - 1);
        refused.push_front(RefusedStatus { target, name, process, reason, errno: event.errno });
    }

    fn maps(&self) -> Vec<MapStatus> {
        let maps = self.kernel.maps().unwrap_or_else(|error| {
            tracing::warn!("the maps can't be read: {error}");
            Vec::new()
        });
        let [v4, v6] = self.rules.table.count();
        let counted = |mut found: MapStatus| {
            // The synthetic prefixes have an entry of their own each.
            match found.name.as_str() {
                "RULES4" => found.entries = Some(v4 as u64 + 1),
                "RULES6" => found.entries = Some(v6 as u64 + 1),
                _ => {}
            }
            found
        };
        maps.into_iter().map(map).map(counted).collect()
    }

    /// What `status` shows.
    pub fn status(&self) -> SteerStatus {
        let programs = self.kernel.programs().unwrap_or_else(|error| {
            tracing::warn!("the programs can't be read: {error}");
            Vec::new()
        });
        let counters = self.kernel.counters().unwrap_or_default();
        let resolvers = self.kernel.resolvers().unwrap_or_default();
        let counts = self.dns.snapshot();
        let dns = [
            ("queries", counts.queries),
            ("answered", counts.answered),
            ("forwarded", counts.forwarded),
            ("stripped", counts.stripped),
            ("failed", counts.failed),
            ("dropped", counts.dropped),
        ];
        let plan = self.rules.plan();
        let carriers: HashMap<u16, &str> =
            plan.carriers.values().map(|(slot, name)| (*slot, name.as_str())).collect();
        let rule = |rule: &Rule| RuleStatus {
            id: rule.number.get(),
            pattern: rule.pattern.to_string(),
            carrier: carriers.get(&rule.group).copied().unwrap_or_default().to_owned(),
        };
        let name = |(name, addresses): (Name, Synthetic)| NameStatus {
            name: name.to_string(),
            addresses: [addresses.v4.into(), addresses.v6.into()],
        };
        SteerStatus {
            listeners: self.listeners.clone(),
            programs: programs.into_iter().map(program).collect(),
            maps: self.maps(),
            problem: lock(&self.problem).clone(),
            rules: plan.rules.iter().map(rule).collect(),
            names: self.names.all().into_iter().take(LISTED).map(name).collect(),
            resolvers: resolvers.into_iter().map(|(addr, port)| (addr.to_string(), port)).collect(),
            counters: counters.into_iter().map(|(counter, n)| (counter.word().to_owned(), n)).collect(),
            dns: dns.into_iter().map(|(what, n)| (what.to_owned(), n)).collect(),
            refused: lock(&self.refused).iter().cloned().collect(),
        }
    }
}

fn map(map: super::kernel::MapStatus) -> MapStatus {
    MapStatus {
        id: map.id,
        name: map.name,
        kind: map.kind.to_owned(),
        key_size: map.key_size,
        value_size: map.value_size,
        entries: map.entries.map(|n| n as u64),
        max_entries: map.max_entries,
    }
}

fn program(program: super::kernel::ProgramStatus) -> ProgramStatus {
    let link = |link: super::kernel::LinkStatus| LinkStatus {
        id: link.id,
        cgroup: link.cgroup,
        cgroup_id: link.cgroup_id,
        alive: link.alive,
    };
    ProgramStatus {
        id: program.id,
        name: program.name.to_owned(),
        kind: program.kind.to_owned(),
        tag: format!("{:016x}", program.tag),
        map_ids: program.map_ids,
        attach_type: program.attach_type.to_owned(),
        run_time_ns: program.run_time.as_nanos() as u64,
        run_cnt: program.run_count,
        links: program.links.into_iter().map(link).collect(),
    }
}

fn happening(event: &Refused, name: Option<&str>) -> Happening {
    let kind = if event.errno.is_some() { What::Refused } else { What::Direct };
    let host = name.map_or_else(
        || Host::addr(event.target.ip()),
        |name| match name.parse() {
            Ok(name) => Host::Name(name),
            Err(_) => Host::addr(event.target.ip()),
        },
    );
    Happening {
        target: Some(Target { host, port: event.target.port() }.to_string()),
        original: Some(event.target),
        process: Some(Process {
            pid: event.process.id,
            uid: event.process.uid,
            comm: event.process.command.clone(),
            // The programs do not say; a process that is gone by now was nowhere.
            cgroup_id: caller::cgroup_id(event.process.id).unwrap_or(0),
        }),
        reason: Some(event.reason.counter().word().to_owned()),
        errno: event.errno,
        ..Happening::new(kind)
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

    fn take_flow(&self, listener: u16, source: SocketAddr) -> bool {
        matches!(self.0.take_flow(listener, source), Ok(Some(_)))
    }

    fn mark_listener(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.0.mark_listener(socket).map_err(io::Error::other)
    }
}

#[cfg(test)]
pub(crate) mod tests;
