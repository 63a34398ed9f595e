//! The world of the tests: a network namespace, cgroups, and a daemon without anything but listeners.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dworker::steer::kernel::{Counter, FlowRecord, Kernel, Refused, next_event};
use dworker::steer::probe;
use dworker::steer::programs::Programs;
use dworker::steer::rules::{Rule, Rules};
use ipnet::{Ipv4Net, Ipv6Net};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use socket2::SockRef;

/// "Remote" hosts: addresses on this namespace's loopback.
pub(crate) const REMOTE4: &str = "198.51.100.1";
pub(crate) const REMOTE6: &str = "2001:db8::1";
/// What the names of our cgroups begin with; the process id of the tests follows.
const PREFIX: &str = "dworker-steer-kernel-";
const CHILD: &str = "child";
/// An interface that is no loopback.
pub(crate) const DEVICE: &str = "dw0";
/// Where systems mount the bpf file system.
const BPF: &str = "/sys/fs/bpf";
/// How long something may take that should be there already.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// Moves this process into a network namespace of its own. Call it before there are threads.
pub(crate) fn enter() {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect(
        "these tests make network namespaces and load programs: run them as root (sudo cargo xtask test)",
    );
    // The bpf file system that a daemon mounts stays in here, and what is pinned in it ends with this process. The
    // system's own is none of these tests'.
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_SLAVE, nothing).expect("mounts of our own");
    while umount2(BPF, MntFlags::MNT_DETACH).is_ok() {}
    sweep();
    for line in [
        "link set lo up".to_owned(),
        format!("address add {REMOTE4}/32 dev lo"),
        "address add 198.51.100.2/32 dev lo".to_owned(),
        format!("address add {REMOTE6}/128 dev lo nodad"),
        // A way to nowhere, which stays down.
        format!("link add {DEVICE} type veth peer name {DEVICE}-peer"),
    ] {
        run("ip", &line.split(' ').collect::<Vec<_>>());
    }
}

/// A directory for what outlives a daemon, another one with each call. No bpf file system is there at first.
pub(crate) fn pins() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    Path::new(BPF).join(format!("dworker-{}", COUNT.fetch_add(1, Ordering::Relaxed)))
}

/// Runs a tool and returns what it prints.
pub(crate) fn run(tool: &str, arguments: &[&str]) -> String {
    let output = Command::new(tool).args(arguments).output().unwrap_or_else(|e| panic!("{tool}: {e}"));
    assert!(output.status.success(), "{tool} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// The root of cgroup v2, found as the daemon finds it.
fn root() -> PathBuf {
    probe::cgroups(&[PathBuf::new()]).expect("cgroup v2").remove(0).path
}

/// Removes the cgroups of earlier runs that were killed.
fn sweep() {
    for entry in fs::read_dir(root()).expect("cgroup v2").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Ignored: a process may be ending in it yet; the next run sweeps again.
            let _ = fs::remove_dir(entry.path().join(CHILD));
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// A cgroup that ends with its owner.
pub(crate) struct Cgroup {
    pub(crate) path: PathBuf,
}

impl Cgroup {
    pub(crate) fn new() -> Cgroup {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Cgroup::make(root().join(name))
    }

    pub(crate) fn child(&self) -> Cgroup {
        Cgroup::make(self.path.join(CHILD))
    }

    fn make(path: PathBuf) -> Cgroup {
        fs::create_dir(&path).expect("a cgroup can be made");
        Cgroup { path }
    }

    pub(crate) fn found(&self) -> probe::Cgroup {
        probe::cgroups(std::slice::from_ref(&self.path)).expect("it is there").remove(0)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Those who joined it are children of this process, which have ended by now, or this process itself.
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                eprintln!("{}: {error}", self.path.display())
            }
            _ => {}
        }
    }
}

/// What a daemon is to the kernel: programs, and listeners behind them.
pub(crate) struct Daemon {
    pub(crate) kernel: Programs,
    pub(crate) listener4: TcpListener,
    pub(crate) listener6: TcpListener,
}

impl Daemon {
    /// A daemon that steers these patterns in this cgroup. Rules are numbered from 1, each in the group of its number.
    pub(crate) fn new(cgroup: &Cgroup, patterns: &[&str]) -> Daemon {
        let daemon = Daemon::unattached(patterns);
        daemon.attach(&[cgroup]);
        daemon
    }

    pub(crate) fn unattached(patterns: &[&str]) -> Daemon {
        Daemon::with(Programs::load(None).unwrap_or_else(|e| panic!("{e}")), patterns)
    }

    pub(crate) fn with(kernel: Programs, patterns: &[&str]) -> Daemon {
        let listener4 = listen("127.0.0.1:0");
        let listener6 = listen("[::1]:0");
        kernel.mark_listener(listener4.as_fd()).unwrap();
        kernel.mark_listener(listener6.as_fd()).unwrap();
        let daemon = Daemon { kernel, listener4, listener6 };
        daemon.kernel.set_listeners(daemon.port4(), daemon.port6()).unwrap();
        let (v4, v6) = synthetic();
        daemon.kernel.set_synthetic(v4, v6).unwrap();
        for (net, entry) in rules(patterns).prefixes() {
            daemon.kernel.put_rules(*net, entry).unwrap();
        }
        daemon
    }

    /// Attaches, and takes the connection by which the daemon tells who it is.
    pub(crate) fn attach(&self, cgroups: &[&Cgroup]) {
        let cgroups: Vec<_> = cgroups.iter().map(|cgroup| cgroup.found()).collect();
        self.kernel.attach(&cgroups).unwrap_or_else(|e| panic!("{e}"));
        let (_, record) = self.accept4();
        assert_eq!(record, None, "our own connection has no record");
        self.kernel.settle().unwrap_or_else(|e| panic!("{e}"));
    }

    pub(crate) fn port4(&self) -> u16 {
        port(&self.listener4)
    }

    pub(crate) fn port6(&self) -> u16 {
        port(&self.listener6)
    }

    /// Gives a name its synthetic address.
    pub(crate) fn name(&self, name: &str, address: &str, patterns: &[&str]) {
        let entry = rules(patterns).for_name(&name.parse().unwrap()).expect("a pattern matches the name");
        let address: IpAddr = address.parse().unwrap();
        self.kernel.put_rules(address.into(), &entry).unwrap();
    }

    /// The next connection on 127.0.0.1 and its record, which is taken.
    pub(crate) fn accept4(&self) -> (TcpStream, Option<FlowRecord>) {
        self.accept(&self.listener4)
    }

    /// The next connection on `::1` and its record, which is taken.
    pub(crate) fn accept6(&self) -> (TcpStream, Option<FlowRecord>) {
        self.accept(&self.listener6)
    }

    pub(crate) fn accept(&self, listener: &TcpListener) -> (TcpStream, Option<FlowRecord>) {
        let (stream, source) = listener.accept().expect("a connection");
        let arrival = self.kernel.take_flow(port(listener), source, stream.as_fd()).unwrap();
        (stream, arrival.captured())
    }

    /// Where the next captured connection wanted to go.
    pub(crate) fn target4(&self) -> String {
        self.accept4().1.expect("a record").target.to_string()
    }

    /// The counter's value.
    pub(crate) fn counter(&self, counter: Counter) -> u64 {
        let all = self.kernel.counters().unwrap();
        all.into_iter().find(|(found, _)| *found == counter).expect("every counter is listed").1
    }

    /// The next event, which must be there within the deadline.
    pub(crate) fn event(&self) -> Refused {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::time::timeout(DEADLINE, next_event(&self.kernel)).await.expect("an event").unwrap()
        })
    }

    /// A DNS port of the daemon: bound, marked and offered.
    pub(crate) fn dns_port(&self) -> DnsPort {
        let dns = DnsPort::bind();
        for udp in [&dns.udp4, &dns.udp6] {
            self.kernel.mark_listener(udp.as_fd()).unwrap();
        }
        for tcp in [&dns.tcp4, &dns.tcp6] {
            self.kernel.mark_listener(tcp.as_fd()).unwrap();
        }
        self.kernel.offer_dns_port(dns.port).unwrap();
        dns
    }
}

/// Four sockets on one port.
pub(crate) struct DnsPort {
    pub(crate) port: u16,
    pub(crate) udp4: UdpSocket,
    pub(crate) udp6: UdpSocket,
    pub(crate) tcp4: TcpListener,
    pub(crate) tcp6: TcpListener,
}

impl DnsPort {
    fn bind() -> DnsPort {
        (0..100).find_map(|_| DnsPort::try_bind().ok()).expect("a port that is free four times")
    }

    fn try_bind() -> io::Result<DnsPort> {
        let tcp4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = tcp4.local_addr()?.port();
        let tcp6 = TcpListener::bind((Ipv6Addr::LOCALHOST, port))?;
        let udp4 = UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?;
        let udp6 = UdpSocket::bind((Ipv6Addr::LOCALHOST, port))?;
        for socket in [SockRef::from(&tcp4), SockRef::from(&tcp6), SockRef::from(&udp4), SockRef::from(&udp6)]
        {
            socket.set_read_timeout(Some(DEADLINE))?;
        }
        Ok(DnsPort { port, udp4, udp6, tcp4, tcp6 })
    }

    /// The next question over IPv4, answered with itself and an `!`.
    pub(crate) fn answer4(&self) -> Vec<u8> {
        answer(&self.udp4)
    }

    /// The next question over IPv6, answered with itself and an `!`.
    pub(crate) fn answer6(&self) -> Vec<u8> {
        answer(&self.udp6)
    }
}

/// Answers the next datagram with itself and an `!`.
pub(crate) fn answer(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 512];
    let (length, from) = socket.recv_from(&mut buffer).expect("a question");
    let mut data = buffer[..length].to_vec();
    data.push(b'!');
    socket.send_to(&data, from).expect("an answer");
    data.pop();
    data
}

/// A listener whose accept() does not wait for ever.
pub(crate) fn listen(address: &str) -> TcpListener {
    let listener = TcpListener::bind(address).unwrap_or_else(|e| panic!("{address}: {e}"));
    SockRef::from(&listener).set_read_timeout(Some(DEADLINE)).unwrap();
    listener
}

/// A UDP socket whose recv() does not wait for ever.
pub(crate) fn udp(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap_or_else(|e| panic!("{address}: {e}"));
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

pub(crate) fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().expect("bound").port()
}

/// True when nobody waits to be accepted.
pub(crate) fn is_idle(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).unwrap();
    let idle = listener.accept().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock);
    listener.set_nonblocking(false).unwrap();
    idle
}

pub(crate) fn synthetic() -> (Ipv4Net, Ipv6Net) {
    ("240.64.0.0/16".parse().unwrap(), "2001:2::/48".parse().unwrap())
}

/// Rules numbered from 1, each in the group of its number.
pub(crate) fn rules(patterns: &[&str]) -> Rules {
    let all: Vec<_> = patterns
        .iter()
        .zip(1..)
        .map(|(pattern, number)| Rule {
            number: NonZeroU32::new(number).unwrap(),
            group: number as u16,
            pattern: pattern.parse().unwrap_or_else(|e| panic!("{e}")),
        })
        .collect();
    Rules::new(&all, synthetic()).unwrap_or_else(|e| panic!("{e:?}"))
}

/// The names of our programs on a cgroup, as bpftool sees them.
pub(crate) fn attached(cgroup: &Path) -> Vec<String> {
    let shown = run("bpftool", &["cgroup", "show", cgroup.to_str().expect("text")]);
    shown.split_whitespace().filter(|word| word.starts_with("dw_")).map(str::to_owned).collect()
}

/// The address of a host and a port as text.
pub(crate) fn at(host: &str, port: u16) -> String {
    SocketAddr::new(host.parse().expect("an address"), port).to_string()
}

/// This process inside a cgroup; dropping it moves the process back to where it was.
pub(crate) struct Inside {
    before: PathBuf,
}

impl Cgroup {
    /// Moves this process into the cgroup.
    pub(crate) fn join(&self) -> Inside {
        let own = fs::read_to_string("/proc/self/cgroup").expect("our cgroup");
        let before = own.lines().find_map(|line| line.strip_prefix("0::/")).expect("a cgroup v2").to_owned();
        let before = probe::cgroups(&[PathBuf::from(before)]).expect("our own cgroup").remove(0).path;
        fs::write(self.path.join("cgroup.procs"), "0").expect("the cgroup can be joined");
        Inside { before }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        fs::write(self.before.join("cgroup.procs"), "0").expect("the way back");
    }
}
