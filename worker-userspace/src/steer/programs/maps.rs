//! The programs' maps, and with them the [`Kernel`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use aya::Ebpf;
use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, Queue, RingBuf, SkStorage};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use worker_common::{
    Addr, Config, Counter, Dest, DownUntil, Entry, Event, Flow, FlowKey, Synthetic, limits, mark,
};

use super::super::kernel::{FlowRecord, Kernel, KernelError, MapStatus, ProgramStatus, Refused};
use super::super::rules;
use super::{Programs, ProgramsError};

/// The maps, each behind a lock of its own; no lock is held across more than a few system calls.
pub(super) struct Maps {
    config: Mutex<(Array<MapData, Config>, Config)>,
    rules4: Mutex<LpmTrie<MapData, u32, Entry>>,
    rules6: Mutex<LpmTrie<MapData, Addr, Entry>>,
    groups: Mutex<Array<MapData, u32>>,
    down: Mutex<HashMap<MapData, Dest, DownUntil>>,
    flows: Mutex<HashMap<MapData, FlowKey, Flow>>,
    marks: Mutex<SkStorage<MapData, u32>>,
    spares: Mutex<Queue<MapData, u16>>,
    stands: HashMap<MapData, u16, Addr>,
    counters: PerCpuArray<MapData, u64>,
    events: Mutex<Events>,
    /// What does not change of all of them.
    described: Vec<MapStatus>,
}

/// The ring buffer, and where it is watched once somebody asks in a runtime.
enum Events {
    Idle(Option<RingBuf<MapData>>),
    Watched(AsyncFd<RingBuf<MapData>>),
}

impl Maps {
    /// Takes the maps out of the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Maps, ProgramsError> {
        let described = describe(ebpf).map_err(failed("asking about the programs' maps"))?;
        let mut config: Array<_, Config> = map(ebpf, "CONFIG")?;
        let told = Config {
            netns_cookie: netns_cookie()?,
            synthetic: Synthetic::NONE,
            listener4: 0,
            listener6: 0,
            zero: 0,
        };
        config.set(0, told, 0).map_err(failed("writing the programs' configuration"))?;
        Ok(Maps {
            described,
            config: Mutex::new((config, told)),
            rules4: Mutex::new(map(ebpf, "RULES4")?),
            rules6: Mutex::new(map(ebpf, "RULES6")?),
            groups: Mutex::new(map(ebpf, "GROUP_STATE")?),
            down: Mutex::new(map(ebpf, "DOWN")?),
            flows: Mutex::new(map(ebpf, "FLOWS")?),
            marks: Mutex::new(map(ebpf, "MARK")?),
            spares: Mutex::new(map(ebpf, "SPARES")?),
            stands: map(ebpf, "STANDS")?,
            counters: map(ebpf, "COUNTERS")?,
            events: Mutex::new(Events::Idle(Some(map(ebpf, "EVENTS")?))),
        })
    }

    /// Marks a socket of ours.
    pub(super) fn mark(&self, socket: &impl AsRawFd, value: u32) -> io::Result<()> {
        lock(&self.marks).insert(socket, value, 0).map_err(io_error)
    }

    /// The port of the listener on 127.0.0.1.
    pub(super) fn listener4(&self) -> u16 {
        lock(&self.config).1.listener4
    }

    fn configure(&self, change: impl FnOnce(&mut Config)) -> Result<(), KernelError> {
        let mut config = lock(&self.config);
        let (map, told) = &mut *config;
        change(told);
        map.set(0, *told, 0).map_err(failed("writing the programs' configuration"))
    }
}

impl Kernel for Programs {
    fn set_synthetic(&self, v4: Ipv4Net, v6: Ipv6Net) -> Result<(), KernelError> {
        self.maps.configure(|config| config.synthetic = rules::synthetic(v4, v6))?;
        self.put_rules(v4.into(), &rules::NO_NAME)?;
        self.put_rules(v6.into(), &rules::NO_NAME)
    }

    fn set_listeners(&self, port4: u16, port6: u16) -> Result<(), KernelError> {
        self.maps.configure(|config| (config.listener4, config.listener6) = (port4, port6))
    }

    fn mark_listener(&self, socket: BorrowedFd<'_>) -> Result<(), KernelError> {
        self.maps.mark(&socket, mark::LISTENER).map_err(KernelError::io("marking a socket of ours"))
    }

    fn put_rules(&self, net: IpNet, entry: &Entry) -> Result<(), KernelError> {
        let put = match rules::canonical(net) {
            IpNet::V4(net) => lock(&self.maps.rules4).insert(&key4(net), entry, 0),
            IpNet::V6(net) => lock(&self.maps.rules6).insert(&key6(net), entry, 0),
        };
        put.map_err(full_or_failed(|| format!("the rules for {net}"), limits::RULES))
    }

    fn remove_rules(&self, net: IpNet) -> Result<(), KernelError> {
        let removed = match rules::canonical(net) {
            IpNet::V4(net) => lock(&self.maps.rules4).remove(&key4(net)),
            IpNet::V6(net) => lock(&self.maps.rules6).remove(&key6(net)),
        };
        absent_is_fine(removed).map_err(KernelError::io(format!("removing the rules for {net}")))
    }

    fn config(&self) -> Config {
        lock(&self.maps.config).1
    }

    fn entry(&self, address: IpAddr) -> Result<Option<Entry>, KernelError> {
        let found = match address.to_canonical() {
            IpAddr::V4(v4) => lock(&self.maps.rules4).get(&key4(v4.into()), 0),
            IpAddr::V6(v6) => lock(&self.maps.rules6).get(&key6(v6.into()), 0),
        };
        present(found).map_err(failed(format!("looking up the rules for {address}")))
    }

    fn group_state(&self, group: u16) -> Result<i32, KernelError> {
        let errno = lock(&self.maps.groups).get(&group.into(), 0);
        Ok(errno.map_err(failed(format!("reading the state of group {group}")))? as i32)
    }

    fn down(&self, target: SocketAddr) -> Result<Option<(i32, Duration)>, KernelError> {
        let found = present(lock(&self.maps.down).get(&Dest::from(target), 0))
            .map_err(failed(format!("asking whether {target} is down")))?;
        let now = monotonic()?;
        // As the programs see it: what is over is not there.
        let left =
            |down: DownUntil| Some((down.errno as i32, Duration::from_nanos(down.until).checked_sub(now)?));
        Ok(found.and_then(left))
    }

    fn take_flow(&self, listener: u16, source: SocketAddr) -> Result<Option<FlowRecord>, KernelError> {
        let key = FlowKey { source: source.ip().into(), port: source.port(), listener };
        let mut flows = lock(&self.maps.flows);
        let flow = match flows.get(&key, 0) {
            Ok(flow) => flow,
            Err(MapError::KeyNotFound) => return Ok(None),
            Err(error) => return Err(failed(format!("looking up the connection from {source}"))(error)),
        };
        absent_is_fine(flows.remove(&key))
            .map_err(KernelError::io(format!("taking the connection from {source}")))?;
        Ok(Some(FlowRecord::from(&flow)))
    }

    fn set_down(&self, target: SocketAddr, errno: i32, duration: Duration) -> Result<(), KernelError> {
        let until = monotonic()?.saturating_add(duration);
        let until = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
        lock(&self.maps.down)
            .insert(Dest::from(target), DownUntil { until, errno: errno.unsigned_abs(), zero: 0 }, 0)
            .map_err(failed(format!("noting that {target} is down")))
    }

    fn set_group_state(&self, group: u16, errno: Option<i32>) -> Result<(), KernelError> {
        if usize::from(group) >= limits::GROUPS {
            return Err(KernelError::Group { group, limit: limits::GROUPS });
        }
        lock(&self.maps.groups)
            .set(group.into(), errno.unwrap_or(0).unsigned_abs(), 0)
            .map_err(failed(format!("writing the state of group {group}")))
    }

    fn offer_dns_port(&self, port: u16) -> Result<(), KernelError> {
        lock(&self.maps.spares)
            .push(port, 0)
            .map_err(full_or_failed(|| format!("port {port} for DNS"), limits::RESOLVERS))
    }

    fn resolver_of(&self, port: u16) -> Result<Option<IpAddr>, KernelError> {
        match self.maps.stands.get(&port, 0) {
            Ok(addr) => Ok(Some(addr.into())),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed(format!("asking for which resolver port {port} stands"))(error)),
        }
    }

    fn resolvers(&self) -> Result<Vec<(IpAddr, u16)>, KernelError> {
        let stands = self.maps.stands.iter().map(|found| found.map(|(port, addr)| (addr.into(), port)));
        stands.collect::<Result<_, _>>().map_err(failed("asking for which resolvers ports stand"))
    }

    fn detach(&self) {
        self.lock().links.clear();
    }

    fn counters(&self) -> Result<Vec<(Counter, u64)>, KernelError> {
        let read = |counter: &Counter| {
            let per_cpu = self.maps.counters.get(&(*counter as u32), 0)?;
            Ok((*counter, per_cpu.iter().sum()))
        };
        Counter::ALL.iter().map(read).collect::<Result<_, _>>().map_err(failed("reading the counters"))
    }

    fn poll_event(&self, context: &mut Context<'_>) -> Poll<Result<Refused, KernelError>> {
        lock(&self.maps.events).poll(context).map_err(KernelError::io("waiting for the kernel's events"))
    }

    fn maps(&self) -> Result<Vec<MapStatus>, KernelError> {
        let mut maps = self.maps.described.clone();
        for map in &mut maps {
            // What can hold a hundred thousand entries is not walked through: who writes the rules has counted them.
            map.entries = match map.name.as_str() {
                "DOWN" => Some(lock(&self.maps.down).keys().count()),
                "FLOWS" => Some(lock(&self.maps.flows).keys().count()),
                // Each resolver has a port, and each such port its resolver.
                "RESOLVERS" | "STANDS" => Some(self.maps.stands.keys().count()),
                _ => None,
            };
        }
        Ok(maps)
    }

    fn programs(&self) -> Result<Vec<ProgramStatus>, KernelError> {
        self.status().map_err(KernelError::io("asking about our programs"))
    }
}

impl Events {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Refused>> {
        loop {
            let ring = match self {
                Events::Watched(ring) => ring,
                Events::Idle(ring) => {
                    // `None` only after the line below failed once: then there is no ring any more.
                    let ring = ring.take().ok_or(io::ErrorKind::BrokenPipe)?;
                    // SAFETY: the ring owns its descriptor and keeps it until it is dropped.
                    *self = Events::Watched(unsafe {
                        AsyncFd::register_with_interest(ring, Interest::READABLE)
                    }?);
                    continue;
                }
            };
            while let Some(record) = ring.get_mut().next() {
                if let Some(refused) = read::<Event>(&record).and_then(|event| Refused::from_event(&event)) {
                    return Poll::Ready(Ok(refused));
                }
            }
            // Empty: what arrives between this and the next look at the ring makes it ready again.
            ready!(ring.poll_read_ready(context))?.clear_ready();
        }
    }
}

/// All maps, those of the loader too.
fn describe(ebpf: &Ebpf) -> Result<Vec<MapStatus>, MapError> {
    let mut all = Vec::new();
    for (_, map) in ebpf.maps() {
        let (kind, data) = match map {
            Map::Array(data) => ("array", data),
            Map::HashMap(data) => ("hash", data),
            Map::LpmTrie(data) => ("lpm_trie", data),
            Map::LruHashMap(data) => ("lru_hash", data),
            Map::PerCpuArray(data) => ("percpu_array", data),
            Map::Queue(data) => ("queue", data),
            Map::RingBuf(data) => ("ringbuf", data),
            Map::SkStorage(data) => ("sk_storage", data),
            _ => continue,
        };
        let info = data.info()?;
        all.push(MapStatus {
            id: info.id(),
            // As the kernel has cut it, so that bpftool says the same.
            name: info.name_as_str().unwrap_or_default().to_owned(),
            kind,
            key_size: info.key_size(),
            value_size: info.value_size(),
            entries: None,
            max_entries: info.max_entries(),
        });
    }
    all.sort_unstable_by_key(|map| map.id);
    Ok(all)
}

/// The record in these bytes, unless they are too many or too few.
fn read<T: Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: as many bytes as a `T` has, and of those every pattern is one: it is `Pod`.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// A map as what the programs use it for.
fn map<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<T, ProgramsError> {
    let map = ebpf.take_map(name).ok_or_else(|| ProgramsError::Stale { what: format!("the map {name}") })?;
    T::try_from(map).map_err(|error| ProgramsError::Stale { what: format!("the right map {name} ({error})") })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the locks guard are file descriptors: a panic elsewhere does not make them wrong.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key4(net: Ipv4Net) -> Key<u32> {
    Key::new(net.prefix_len().into(), u32::from_ne_bytes(net.network().octets()))
}

fn key6(net: Ipv6Net) -> Key<Addr> {
    Key::new(net.prefix_len().into(), IpAddr::from(net.network()).into())
}

fn io_error(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        other => io::Error::other(other),
    }
}

fn failed(doing: impl Into<String>) -> impl FnOnce(MapError) -> KernelError {
    let failed = KernelError::io(doing);
    |error| failed(io_error(error))
}

fn full_or_failed(what: impl FnOnce() -> String, limit: usize) -> impl FnOnce(MapError) -> KernelError {
    move |error| {
        let (what, error) = (what(), io_error(error));
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::E2BIG) => KernelError::Full { what, limit },
            _ => KernelError::Io { doing: format!("storing {what}"), source: error },
        }
    }
}

fn present<T>(found: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

fn absent_is_fine(removed: Result<(), MapError>) -> io::Result<()> {
    match removed.map_err(|error| match error {
        MapError::KeyNotFound => io::Error::from_raw_os_error(libc::ENOENT),
        error => io_error(error),
    }) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// `CLOCK_MONOTONIC`, the clock of the programs.
fn monotonic() -> Result<Duration, KernelError> {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .map_err(|errno| KernelError::io("reading the monotonic clock")(errno.into()))
}

/// The cookie of this thread's network namespace; 0 where the kernel does not tell (before 5.14).
fn netns_cookie() -> Result<u64, KernelError> {
    let asking = || KernelError::io("asking for the cookie of our network namespace");
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).map_err(asking())?;
    let mut cookie = 0_u64;
    let mut size = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the socket is open, and `cookie` has the `size` bytes that the option writes.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut size,
        )
    };
    match (got, io::Error::last_os_error()) {
        (0, _) => Ok(cookie),
        (_, error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(0),
        (_, error) => Err(asking()(error)),
    }
}
