//! Steering as a whole: the kernel's programs, the names, DNS, and what leads a captured connection back to
//! what it is for.
//!
//! The order of a start matters: nothing is captured before everything that it leads to is there. Dropping
//! a [`Steering`]'s last handle detaches the programs.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use ipnet::IpNet;

use super::dns::{self, Resolvers, Server, ServerError};
use super::kernel::{FlowRecord, Kernel, KernelError, Purpose, Refused, next_event};
use super::names::{
    NameRules, Names, NamesError, OverlapError, PrefixError, Prefixes, Synthetic, check_overlap,
    hosts_conflicts,
};
use super::probe::{self, ProbeError};
use super::programs::{Programs, ProgramsError};
use super::rules::{NO_NAME, Rule, Rules, RulesError};
use crate::config::Steer;
use crate::inspect::status::{LinkStatus, NameStatus, ProgramStatus, RefusedStatus, RuleStatus, SteerStatus};
use crate::target::{Host, HostPattern, Name, Pattern};

/// Refusals of the kernel that `status` remembers.
const REMEMBERED: usize = 64;
/// Names that `status` lists.
const LISTED: usize = 1024;
/// Where names are found before DNS is asked.
const HOSTS: &str = "/etc/hosts";

/// Why steering did not start. Each names the thing and the remedy.
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
    #[error("{HOSTS}: {0}")]
    Hosts(#[source] io::Error),
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

/// A pattern, and the number of the group that carries it.
#[derive(Debug, Clone)]
pub struct Steered {
    /// The proxy host.
    pub pattern: Pattern,
    /// Who carries it: its place in `carriers`.
    pub group: u16,
}

/// Steering that is on.
pub struct Steering {
    kernel: Arc<dyn Kernel>,
    names: Arc<Names>,
    /// Addresses that `/etc/hosts` gives to proxy hosts.
    hosts: HashMap<IpAddr, Name>,
    rules: Vec<Rule>,
    carriers: Vec<String>,
    listeners: Vec<SocketAddr>,
    dns: Arc<dns::Counters>,
    down_for: Duration,
    refused: Mutex<VecDeque<RefusedStatus>>,
    /// Where the one connection came from by which the daemon made itself known to the programs.
    registered: OnceLock<SocketAddr>,
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
    /// Loads and attaches the programs; needs root and a tokio runtime. `carriers` are the groups' names.
    ///
    /// # Errors
    /// The first thing that does not work; nothing stays attached then.
    pub fn start(
        config: &Steer,
        state_dir: &Path,
        steered: &[Steered],
        carriers: Vec<String>,
    ) -> Result<Started, SteerError> {
        let cgroups = probe::cgroups(&config.cgroups)?;
        let prefixes = Prefixes::new(config.synthetic4, config.synthetic6)?;
        check_overlap(&prefixes)?;
        let programs = Arc::new(Programs::load()?);
        let started =
            Steering::prepare(programs.clone(), config, prefixes, state_dir, HOSTS, steered, carriers)?;
        // Last of all: now everything is there that a captured connection leads to.
        if let Some(source) = programs.attach(&cgroups)? {
            let _ = started.steering.registered.set(source);
        }
        Ok(started)
    }

    /// Everything but attaching, with any kernel.
    fn prepare(
        kernel: Arc<dyn Kernel>,
        config: &Steer,
        prefixes: Prefixes,
        state_dir: &Path,
        hosts: &str,
        steered: &[Steered],
        carriers: Vec<String>,
    ) -> Result<Started, SteerError> {
        let rules: Vec<Rule> = (1..)
            .filter_map(NonZeroU32::new)
            .zip(steered)
            .map(|(number, s)| Rule { number, group: s.group, pattern: s.pattern.clone() })
            .collect();
        let tables = Rules::new(&rules, (config.synthetic4, config.synthetic6)).map_err(SteerError::Rules)?;
        kernel.set_synthetic(config.synthetic4, config.synthetic6)?;
        for (net, entry) in tables.prefixes() {
            kernel.put_rules(*net, entry)?;
        }
        let hosts = hosts_rules(&*kernel, &tables, Path::new(hosts), steered)?;
        let names =
            Names::open(state_dir, prefixes, Arc::new(KernelRules { kernel: kernel.clone(), tables }))?;
        names.set_patterns(steered.iter().map(|s| &s.pattern))?;
        let names = Arc::new(names);

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
        let steering = Arc::new(Steering {
            kernel,
            names,
            hosts,
            rules,
            carriers,
            listeners,
            dns: server.counters(),
            down_for: config.down_for,
            refused: Mutex::default(),
            registered: OnceLock::new(),
        });
        Ok(Started { steering, forwarder, dns: server })
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
        // A rule for addresses may match some ports of an address that `/etc/hosts` gives to a name.
        let rule = match record.purpose {
            // They are numbered from 1, in this order.
            Purpose::Rule { rule, .. } => (rule as usize).checked_sub(1).and_then(|at| self.rules.get(at)),
            Purpose::Dns => None,
        };
        let by_name = rule.is_some_and(|rule| !matches!(rule.pattern.host, HostPattern::Net(_)));
        match self.hosts.get(&address) {
            Some(name) if by_name => Some(Host::Name(name.clone())),
            _ => Some(Host::addr(address)),
        }
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

    /// Says whether a carrier is there. While it is not, `connect()` fails at once.
    pub fn set_carrier(&self, group: u16, up: bool) {
        let errno = (!up).then_some(libc::EHOSTUNREACH);
        if let Err(error) = self.kernel.set_group_state(group, errno) {
            tracing::error!(group, "the kernel can't be told who carries: {error}");
        }
    }

    /// Captures nothing any more. What was captured goes on.
    pub fn detach(&self) {
        self.kernel.detach();
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
        match event.errno {
            Some(errno) => {
                tracing::warn!(%target, name = %shown, %process, errno, "refused in connect(): {reason}")
            }
            None => {
                tracing::warn!(%target, name = %shown, %process, "went direct although a rule names it: {reason}")
            }
        }
        let mut refused = self.refused();
        refused.truncate(REMEMBERED - 1);
        refused.push_front(RefusedStatus { target, name, process, reason, errno: event.errno });
    }

    fn refused(&self) -> MutexGuard<'_, VecDeque<RefusedStatus>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
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
        let rule = |rule: &Rule| RuleStatus {
            id: rule.number.get(),
            pattern: rule.pattern.to_string(),
            carrier: self.carriers.get(usize::from(rule.group)).cloned().unwrap_or_default(),
        };
        let name = |(name, addresses): (Name, Synthetic)| NameStatus {
            name: name.to_string(),
            addresses: [addresses.v4.into(), addresses.v6.into()],
        };
        SteerStatus {
            listeners: self.listeners.clone(),
            programs: programs.into_iter().map(program).collect(),
            rules: self.rules.iter().map(rule).collect(),
            names: self.names.all().into_iter().take(LISTED).map(name).collect(),
            resolvers: resolvers.into_iter().map(|(addr, port)| (addr.to_string(), port)).collect(),
            counters: counters.into_iter().map(|(counter, n)| (counter.word().to_owned(), n)).collect(),
            dns: dns.into_iter().map(|(what, n)| (what.to_owned(), n)).collect(),
            refused: self.refused().iter().cloned().collect(),
        }
    }
}

fn program(program: super::kernel::ProgramStatus) -> ProgramStatus {
    let link =
        |link: super::kernel::LinkStatus| LinkStatus { id: link.id, cgroup: link.cgroup, alive: link.alive };
    ProgramStatus {
        id: program.id,
        name: program.name.to_owned(),
        attach_type: program.attach_type.to_owned(),
        run_time_ns: program.run_time.as_nanos() as u64,
        run_cnt: program.run_count,
        links: program.links.into_iter().map(link).collect(),
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

/// Makes rules for the addresses that `/etc/hosts` gives to proxy hosts: such names are never asked of DNS.
fn hosts_rules(
    kernel: &dyn Kernel,
    tables: &Rules,
    path: &Path,
    steered: &[Steered],
) -> Result<HashMap<IpAddr, Name>, SteerError> {
    let found = hosts_conflicts(path, steered.iter().map(|s| &s.pattern)).map_err(SteerError::Hosts)?;
    let mut hosts = HashMap::new();
    for (address, name) in found {
        let entry = tables.for_hosts_entry(&name, address).map_err(|error| SteerError::Rules(vec![error]))?;
        let Some(entry) = entry else { continue };
        match hosts.get(&address) {
            Some(first) => {
                tracing::warn!(%address, %name, %first, "{HOSTS} gives one address to two proxy hosts; the first counts");
            }
            None => {
                tracing::info!(%address, %name, "{HOSTS} answers for a proxy host; its address is steered to the name");
                kernel.put_rules(IpNet::from(address), &entry)?;
                hosts.insert(address, name);
            }
        }
    }
    Ok(hosts)
}

/// Puts a name's rule into the kernel before its address is answered.
struct KernelRules {
    kernel: Arc<dyn Kernel>,
    tables: Rules,
}

impl NameRules for KernelRules {
    fn on_assigned(&self, name: &Name, addresses: Synthetic, patterns: &[Pattern]) -> io::Result<()> {
        // A name that is no proxy host any more has nowhere to go; its old address may still be cached.
        let entry = if patterns.is_empty() { None } else { self.tables.for_name(name) };
        for address in [IpAddr::from(addresses.v4), IpAddr::from(addresses.v6)] {
            self.kernel
                .put_rules(IpNet::from(address), entry.as_ref().unwrap_or(&NO_NAME))
                .map_err(io::Error::other)?;
        }
        Ok(())
    }
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
mod tests {
    use super::*;
    use crate::steer::fake::FakeKernel;

    #[test]
    fn what_the_forwarder_accepts_sends_small_answers_at_once() {
        for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let listener = listener(address).unwrap();
            listener.set_nonblocking(false).unwrap();
            let _application = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            assert!(listener.accept().unwrap().0.nodelay().unwrap(), "{address}");
        }
    }

    #[tokio::test]
    async fn a_name_in_the_hosts_file_does_not_hide_the_rules_for_its_address() {
        let directory = tempfile::tempdir().unwrap();
        let hosts = directory.path().join("hosts");
        std::fs::write(&hosts, "10.20.0.5 vcenter.corp.example\n").unwrap();
        let text = r#"
            [steer]
            cgroups = ["app"]
            [appliance]
            listen = ["127.0.0.1:1"]
            insecure_plaintext = true
            [[appliance.groups]]
            name = "site"
            key_sha256 = "e2b85a3d0c4fe78d32c60be53475eb1d90896657c0340622f12dd8fc717aa420"
            proxy_hosts = ["vcenter.corp.example:443", "10.20.0.0/16:443,902"]
        "#;
        let config = crate::config::Config::parse(text, "test").unwrap_or_else(|e| panic!("{e}")).config;
        let steered: Vec<_> =
            config.steered().into_iter().map(|p| Steered { pattern: p.clone(), group: 0 }).collect();
        let steer = config.steer.as_ref().unwrap();
        let prefixes = Prefixes::new(steer.synthetic4, steer.synthetic6).unwrap();
        let kernel = Arc::new(FakeKernel::default());
        let started = Steering::prepare(
            kernel.clone(),
            steer,
            prefixes,
            directory.path(),
            hosts.to_str().unwrap(),
            &steered,
            vec!["site".into()],
        )
        .unwrap();
        let source = |port| SocketAddr::from(([127, 0, 0, 1], port));
        for (port, host) in [(443, Some("vcenter.corp.example")), (902, Some("10.20.0.5")), (22, None)] {
            let outcome = kernel.connect(source(port), SocketAddr::from(([10, 20, 0, 5], port)));
            let listener = started.forwarder[0].local_addr().unwrap().port();
            let taken = started.steering.take_flow(listener, source(port));
            let found = taken.map(|record| started.steering.host_of(&record).unwrap().to_string());
            assert_eq!(found.as_deref(), host, "port {port}: {outcome:?}");
        }
    }
}
