//! A kernel for tests that need no root. It judges connections with the real kernel's own code, and keeps
//! its tables in memory; what it cannot do is move a connection, so the test connects to where it is told.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use socket2::SockRef;
use worker_common::decision::{EHOSTUNREACH, Path, Transport, path};
use worker_common::{
    Addr, Config, Dest, Entry, Flow, FlowKey, PortRule, Synthetic, Verdict, World, decide, limits,
};

use super::kernel::*;
use super::rules;

/// What became of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It goes where it wants.
    Direct,
    /// Connect to this address instead.
    To(SocketAddr),
    /// connect() fails with this errno.
    Refused(i32),
}

/// The tables.
#[derive(Default)]
pub(crate) struct FakeKernel {
    state: Mutex<State>,
    after_write: Mutex<Option<AfterWrite>>,
}

/// Looks at the kernel after each write of a rule.
type AfterWrite = Box<dyn FnMut(&FakeKernel) + Send>;

struct State {
    config: Config,
    rules: HashMap<IpNet, Entry>,
    groups: HashMap<u16, i32>,
    down: HashMap<Dest, (Instant, i32)>,
    marked: HashSet<SocketAddr>,
    flows: HashMap<FlowKey, Flow>,
    spares: VecDeque<u16>,
    resolvers: HashMap<IpAddr, u16>,
    counters: HashMap<Counter, u64>,
    events: VecDeque<Refused>,
    reader: Option<Waker>,
    own: bool,
    excluded_users: HashSet<u32>,
    excluded_cgroups: HashSet<u64>,
    /// The entries that were written (`+`) and removed (`-`).
    writes: Vec<String>,
    /// The numbers of the writes to come, from 0, that the kernel has no memory for.
    failing: Range<usize>,
}

impl Default for State {
    fn default() -> State {
        State {
            config: Config {
                netns_cookie: 1,
                synthetic: Synthetic::NONE,
                listener4: 0,
                listener6: 0,
                exclude: 0,
            },
            rules: HashMap::new(),
            groups: HashMap::new(),
            down: HashMap::new(),
            marked: HashSet::new(),
            flows: HashMap::new(),
            spares: VecDeque::new(),
            resolvers: HashMap::new(),
            counters: HashMap::new(),
            events: VecDeque::new(),
            reader: None,
            own: false,
            excluded_users: HashSet::new(),
            excluded_cgroups: HashSet::new(),
            writes: Vec::new(),
            failing: 0..0,
        }
    }
}

impl FakeKernel {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What connect() from `source` to `target` does in a captured process: bind the socket, ask this, and connect it to
    /// where this says.
    pub(crate) fn connect(&self, source: SocketAddr, target: SocketAddr) -> Outcome {
        let mut state = self.state();
        let dest = Dest::from(target);
        match path(Transport::Stream, &dest, &state.config.synthetic) {
            Path::Pass | Path::DnsLinkLocal => Outcome::Direct,
            Path::Refuse(reason) => state.refuse(&dest, reason, EHOSTUNREACH, 0),
            Path::Dns => match state.stand_in(target.ip()) {
                Some(port) => state.send(source, &dest, port, &PortRule::NONE, Flow::DNS, Counter::DnsTcp),
                None => Outcome::Direct,
            },
            Path::Rules => match decide(&*state, &dest) {
                Verdict::Direct => state.pass(Counter::Direct),
                Verdict::Own => state.pass(Counter::Own),
                Verdict::Excluded => state.pass(Counter::Excluded),
                Verdict::ForeignNetns => state.pass(Counter::ForeignNetns),
                Verdict::Refuse { reason, errno, rule } => state.refuse(&dest, reason, errno, rule),
                Verdict::FailOpen(rule) => {
                    state.tell(&dest, Reason::FailOpen, 0, rule.rule);
                    Outcome::Direct
                }
                Verdict::Steer(rule) => {
                    let port = state.config.listener(&dest.addr);
                    state.send(source, &dest, port, &rule, 0, Counter::Steered)
                }
            },
        }
    }

    /// Where a captured process's question to `resolver` over UDP goes; `None`: there.
    pub(crate) fn ask(&self, resolver: IpAddr) -> Option<SocketAddr> {
        let mut state = self.state();
        let port = state.stand_in(resolver)?;
        state.count(Counter::DnsUdp);
        Some(SocketAddr::new(Addr::from(resolver).loopback().into(), port))
    }

    /// What would become of a connection; nothing is noted.
    pub(crate) fn judge(&self, target: SocketAddr) -> Verdict {
        decide(&*self.state(), &target.into())
    }

    /// The entries that were written (`+`) and removed (`-`) since the last call.
    pub(crate) fn take_writes(&self) -> Vec<String> {
        std::mem::take(&mut self.state().writes)
    }

    /// All entries.
    pub(crate) fn rules(&self) -> HashMap<IpNet, Entry> {
        self.state().rules.clone()
    }

    /// Makes writes of rules fail; the next has number 0.
    pub(crate) fn fail_writes(&self, failing: Range<usize>) {
        self.state().failing = failing;
    }

    /// Has somebody look after each write of a rule.
    pub(crate) fn after_write(&self, look: impl FnMut(&FakeKernel) + Send + 'static) {
        *self.after_write.lock().unwrap() = Some(Box::new(look));
    }

    fn wrote(&self) {
        if let Some(look) = self.after_write.lock().unwrap().as_mut() {
            look(self);
        }
    }

    /// Whether the connections that follow are the daemon's own.
    pub(crate) fn set_own(&self, own: bool) {
        self.state().own = own;
    }
}

impl State {
    fn count(&mut self, counter: Counter) {
        *self.counters.entry(counter).or_default() += 1;
    }

    fn write(&mut self, what: String) -> Result<(), KernelError> {
        let fails = self.failing.contains(&0);
        self.failing = self.failing.start.saturating_sub(1)..self.failing.end.saturating_sub(1);
        if fails {
            return Err(KernelError::io(what)(std::io::Error::from_raw_os_error(libc::ENOMEM)));
        }
        self.writes.push(what);
        Ok(())
    }

    fn pass(&mut self, counter: Counter) -> Outcome {
        self.count(counter);
        Outcome::Direct
    }

    fn refuse(&mut self, dest: &Dest, reason: Reason, errno: u32, rule: u32) -> Outcome {
        self.tell(dest, reason, errno, rule);
        Outcome::Refused(errno as i32)
    }

    fn tell(&mut self, dest: &Dest, reason: Reason, errno: u32, rule: u32) {
        self.count(reason.counter());
        self.events.push_back(Refused {
            target: (*dest).into(),
            process: captured(),
            reason,
            errno: (errno != 0).then_some(errno as i32),
            rule: (rule != 0).then_some(rule),
            cgroup: 0,
            at: Duration::ZERO,
        });
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn send(
        &mut self,
        source: SocketAddr,
        dest: &Dest,
        listener: u16,
        rule: &PortRule,
        flags: u32,
        counter: Counter,
    ) -> Outcome {
        self.count(counter);
        let flow = Flow {
            cgroup: 1,
            comm: *b"captured\0\0\0\0\0\0\0\0",
            tgid: captured().id,
            uid: 0,
            dest: *dest,
            rule: rule.rule,
            group: rule.group,
            listener,
            flags,
        };
        self.flows.insert(FlowKey::new(source, listener), flow);
        Outcome::To(SocketAddr::new(dest.addr.loopback().into(), listener))
    }

    fn stand_in(&mut self, resolver: IpAddr) -> Option<u16> {
        let resolver = resolver.to_canonical();
        if self.own {
            self.count(Counter::Own);
            return None;
        }
        let port = match self.resolvers.get(&resolver) {
            Some(port) => *port,
            None => {
                let Some(port) = self.spares.pop_front() else {
                    self.count(Counter::DnsNoPort);
                    return None;
                };
                self.resolvers.insert(resolver, port);
                port
            }
        };
        if self.is_marked(&resolver.into(), port) {
            return Some(port);
        }
        self.count(Counter::DnsNoListener);
        None
    }

    fn is_marked(&self, addr: &Addr, port: u16) -> bool {
        self.marked.contains(&SocketAddr::new(addr.loopback().into(), port))
    }
}

fn captured() -> Process {
    Process { id: std::process::id(), uid: 0, command: "captured".to_owned() }
}

impl World for State {
    fn entry(&self, addr: &Addr) -> Option<&Entry> {
        let addr = IpAddr::from(*addr);
        let covering = self.rules.iter().filter(|(net, _)| net.contains(&addr));
        covering.max_by_key(|(net, _)| net.prefix_len()).map(|(_, entry)| entry)
    }

    fn own(&self) -> bool {
        self.own
    }

    fn excluded(&self) -> bool {
        self.excluded_users.contains(&captured().uid)
    }

    fn foreign_netns(&self) -> bool {
        false
    }

    fn bound(&self) -> bool {
        false
    }

    fn group_errno(&self, group: u16) -> u32 {
        self.groups.get(&group).map_or(0, |errno| errno.unsigned_abs())
    }

    fn down_errno(&self, dest: &Dest) -> u32 {
        let down = self.down.get(dest).filter(|(until, _)| Instant::now() < *until);
        down.map_or(0, |(_, errno)| errno.unsigned_abs())
    }

    fn listening(&self, addr: &Addr) -> bool {
        self.is_marked(addr, self.config.listener(addr))
    }
}

impl Kernel for FakeKernel {
    fn set_synthetic(&self, v4: Ipv4Net, v6: Ipv6Net) -> Result<(), KernelError> {
        self.state().config.synthetic = rules::synthetic(v4, v6);
        self.put_rules(v4.into(), &rules::NO_NAME)?;
        self.put_rules(v6.into(), &rules::NO_NAME)
    }

    fn set_listeners(&self, port4: u16, port6: u16) -> Result<(), KernelError> {
        let config = &mut self.state().config;
        (config.listener4, config.listener6) = (port4, port6);
        Ok(())
    }

    fn mark_listener(&self, socket: BorrowedFd<'_>) -> Result<(), KernelError> {
        let bound =
            SockRef::from(&socket).local_addr().map_err(KernelError::io("marking a socket of ours"))?;
        self.state().marked.extend(bound.as_socket());
        Ok(())
    }

    fn put_rules(&self, net: IpNet, entry: &Entry) -> Result<(), KernelError> {
        let mut state = self.state();
        let net = rules::canonical(net);
        let family = |other: &&IpNet| matches!(other, IpNet::V4(_)) == matches!(net, IpNet::V4(_));
        if !state.rules.contains_key(&net) && state.rules.keys().filter(family).count() == limits::RULES {
            return Err(KernelError::Full { what: format!("the rules for {net}"), limit: limits::RULES });
        }
        state.write(format!("+{net}"))?;
        state.rules.insert(net, *entry);
        drop(state);
        self.wrote();
        Ok(())
    }

    fn remove_rules(&self, net: IpNet) -> Result<(), KernelError> {
        let mut state = self.state();
        state.write(format!("-{net}"))?;
        state.rules.remove(&rules::canonical(net));
        drop(state);
        self.wrote();
        Ok(())
    }

    fn rules(&self) -> Result<Vec<(IpNet, Entry)>, KernelError> {
        Ok(self.state().rules.iter().map(|(net, entry)| (*net, *entry)).collect())
    }

    fn flow(&self, listener: u16, source: SocketAddr) -> Result<Option<FlowRecord>, KernelError> {
        Ok(self.state().flows.get(&FlowKey::new(source, listener)).map(FlowRecord::from))
    }

    fn forget_flow(&self, listener: u16, source: SocketAddr) -> Result<(), KernelError> {
        self.state().flows.remove(&FlowKey::new(source, listener));
        Ok(())
    }

    fn config(&self) -> Config {
        self.state().config
    }

    fn entry(&self, address: IpAddr) -> Result<Option<Entry>, KernelError> {
        Ok(World::entry(&*self.state(), &address.into()).copied())
    }

    fn group_state(&self, group: u16) -> Result<i32, KernelError> {
        Ok(self.state().groups.get(&group).copied().unwrap_or(0))
    }

    fn down(&self, target: SocketAddr) -> Result<Option<(i32, Duration)>, KernelError> {
        let left =
            |(until, errno): &(Instant, i32)| Some((*errno, until.checked_duration_since(Instant::now())?));
        Ok(self.state().down.get(&target.into()).and_then(left))
    }

    fn set_down(&self, target: SocketAddr, errno: i32, duration: Duration) -> Result<(), KernelError> {
        self.state().down.insert(target.into(), (Instant::now() + duration, errno));
        Ok(())
    }

    fn set_group_state(&self, group: u16, errno: Option<i32>) -> Result<(), KernelError> {
        if usize::from(group) >= limits::GROUPS {
            return Err(KernelError::Group { group, limit: limits::GROUPS });
        }
        self.state().groups.insert(group, errno.unwrap_or(0));
        Ok(())
    }

    fn offer_dns_port(&self, port: u16) -> Result<(), KernelError> {
        let spares = &mut self.state().spares;
        if spares.len() == limits::RESOLVERS {
            return Err(KernelError::Full { what: format!("port {port} for DNS"), limit: limits::RESOLVERS });
        }
        spares.push_back(port);
        Ok(())
    }

    fn adopt_dns_ports(&self, ports: &HashSet<u16>) -> Result<HashSet<u16>, KernelError> {
        let mut state = self.state();
        state.resolvers.retain(|_, port| ports.contains(port));
        state.spares.retain(|port| ports.contains(port));
        Ok(state.resolvers.values().chain(&state.spares).copied().collect())
    }

    fn set_excluded(&self, users: &[u32], cgroups: &[(u64, u32)]) -> Result<(), KernelError> {
        let mut state = self.state();
        state.excluded_users = users.iter().copied().collect();
        state.excluded_cgroups = cgroups.iter().map(|(id, _)| *id).collect();
        Ok(())
    }

    fn excludes_user(&self, user: u32) -> Result<bool, KernelError> {
        Ok(self.state().excluded_users.contains(&user))
    }

    fn excludes_cgroup(&self, cgroup: u64) -> Result<bool, KernelError> {
        Ok(self.state().excluded_cgroups.contains(&cgroup))
    }

    fn is_daemon(&self, _: u32) -> Result<bool, KernelError> {
        Ok(self.state().own)
    }

    fn resolver_of(&self, port: u16) -> Result<Option<IpAddr>, KernelError> {
        let state = self.state();
        Ok(state.resolvers.iter().find(|(_, stands)| **stands == port).map(|(resolver, _)| *resolver))
    }

    fn resolvers(&self) -> Result<Vec<(IpAddr, u16)>, KernelError> {
        Ok(self.state().resolvers.iter().map(|(resolver, port)| (*resolver, *port)).collect())
    }

    fn detach(&self) {}

    fn leave(&self) {}

    fn take_back(&self) -> Result<(), KernelError> {
        Ok(())
    }

    fn counters(&self) -> Result<Vec<(Counter, u64)>, KernelError> {
        let state = self.state();
        Ok(Counter::ALL.iter().map(|c| (*c, state.counters.get(c).copied().unwrap_or(0))).collect())
    }

    fn poll_event(&self, context: &mut Context<'_>) -> Poll<Result<Refused, KernelError>> {
        let mut state = self.state();
        match state.events.pop_front() {
            Some(event) => Poll::Ready(Ok(event)),
            None => {
                state.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    fn maps(&self) -> Result<Vec<MapStatus>, KernelError> {
        Ok(Vec::new())
    }

    fn programs(&self) -> Result<Vec<ProgramStatus>, KernelError> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::num::NonZeroU32;
    use std::os::fd::AsFd;

    use super::*;
    use rules::{Rule, Rules};

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// The fake one does what the tests in `tests/steer_kernel` see the real one do.
    #[test]
    fn it_behaves_like_the_kernel() {
        let kernel = FakeKernel::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (here, source) = (listener.local_addr().unwrap(), addr("127.0.0.1:40000"));
        let synthetic = ("240.64.0.0/16".parse().unwrap(), "2001:2::/48".parse().unwrap());
        kernel.set_listeners(here.port(), 0).unwrap();
        kernel.set_synthetic(synthetic.0, synthetic.1).unwrap();
        let rule = |number, pattern: &str| Rule {
            number: NonZeroU32::new(number).unwrap(),
            group: 5,
            pattern: pattern.parse().unwrap(),
        };
        let rules = Rules::new(&[rule(1, "198.51.100.0/24:443"), rule(2, "vc.example")], synthetic).unwrap();
        for (net, entry) in rules.prefixes() {
            kernel.put_rules(*net, entry).unwrap();
        }
        let name = rules.for_name(&"vc.example".parse().unwrap()).unwrap();
        kernel.put_rules(addr("240.64.0.1:0").ip().into(), &name).unwrap();

        let (target, named) = (addr("198.51.100.7:443"), addr("240.64.0.1:443"));
        assert_eq!(kernel.connect(source, target), Outcome::Direct, "fails open without a marked listener");
        assert_eq!(
            kernel.connect(source, named),
            Outcome::Refused(libc::ECONNREFUSED),
            "a name fails closed"
        );
        kernel.mark_listener(listener.as_fd()).unwrap();
        assert_eq!(kernel.connect(source, target), Outcome::To(here));
        let flow = kernel.take_flow(here.port(), source, listener.as_fd()).unwrap().captured().unwrap();
        assert_eq!((flow.target, flow.purpose), (target, Purpose::Rule { rule: 1, group: 5 }));
        assert_eq!(kernel.take_flow(here.port(), source, listener.as_fd()).unwrap(), Arrival::Foreign);
        assert_eq!(kernel.connect(source, addr("198.51.100.7:80")), Outcome::Direct);
        assert_eq!(kernel.connect(source, addr("240.64.0.2:443")), Outcome::Refused(libc::EHOSTUNREACH));
        kernel.set_down(target, libc::ETIMEDOUT, Duration::from_secs(60)).unwrap();
        assert_eq!(kernel.connect(source, target), Outcome::Refused(libc::ETIMEDOUT));
        kernel.set_group_state(5, Some(libc::ENETUNREACH)).unwrap();
        assert_eq!(kernel.connect(source, named), Outcome::Refused(libc::ENETUNREACH));
        kernel.set_own(true);
        assert_eq!(kernel.connect(source, target), Outcome::Direct);
    }

    #[tokio::test]
    async fn refusals_are_events_and_resolvers_have_ports() {
        let kernel = FakeKernel::default();
        let resolver: IpAddr = "192.0.2.53".parse().unwrap();
        assert_eq!(kernel.ask(resolver), None, "no spare port");
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let here = socket.local_addr().unwrap();
        kernel.mark_listener(socket.as_fd()).unwrap();
        kernel.offer_dns_port(here.port()).unwrap();
        assert_eq!(kernel.resolver_of(here.port()).unwrap(), None);
        assert_eq!(kernel.ask(resolver), Some(here));
        assert_eq!(kernel.resolver_of(here.port()).unwrap(), Some(resolver));
        assert_eq!(kernel.connect(addr("127.0.0.1:1"), addr("192.0.2.53:53")), Outcome::To(here));
        assert_eq!(
            kernel
                .take_flow(here.port(), addr("127.0.0.1:1"), socket.as_fd())
                .unwrap()
                .captured()
                .map(|flow| flow.purpose),
            Some(Purpose::Dns)
        );

        kernel.set_synthetic("240.64.0.0/16".parse().unwrap(), "2001:2::/48".parse().unwrap()).unwrap();
        kernel.connect(addr("127.0.0.1:1"), addr("240.64.0.9:1"));
        let event = next_event(&kernel).await.unwrap();
        assert_eq!((event.reason, event.errno), (Reason::StaleSynthetic, Some(libc::EHOSTUNREACH)));
    }
}
