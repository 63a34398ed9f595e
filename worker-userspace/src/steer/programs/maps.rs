//! The programs' maps, and with them the [`Kernel`].

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
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
    Addr, Config, Counter, Dest, DownUntil, Entry, Event, Flow, FlowKey, Layout, MAPS, limits, mark,
};

use super::super::kernel::{FlowRecord, Kernel, KernelError, MapStatus, ProgramStatus, Refused};
use super::super::pins::Pins;
use super::super::rules;
use super::{Programs, ProgramsError};

/// The maps, each behind a lock of its own; no lock is held across more than a few system calls.
pub(super) struct Maps {
    config: Mutex<(Array<MapData, Config>, Config)>,
    daemons: Mutex<HashMap<MapData, u32, u64>>,
    excluded_users: Mutex<HashMap<MapData, u32, u32>>,
    excluded_cgroups: Mutex<HashMap<MapData, u64, u32>>,
    rules4: Mutex<LpmTrie<MapData, u32, Entry>>,
    rules6: Mutex<LpmTrie<MapData, Addr, Entry>>,
    groups: Mutex<Array<MapData, u32>>,
    down: Mutex<HashMap<MapData, Dest, DownUntil>>,
    places: Mutex<Array<MapData, Flow>>,
    flows: Mutex<HashMap<MapData, FlowKey, Flow>>,
    marks: Mutex<SkStorage<MapData, u32>>,
    spares: Mutex<Queue<MapData, u16>>,
    resolvers: Mutex<HashMap<MapData, Addr, u16>>,
    stands: Mutex<HashMap<MapData, u16, Addr>>,
    counters: PerCpuArray<MapData, u64>,
    events: Mutex<Events>,
    /// What does not change of all of them.
    described: Vec<MapStatus>,
    /// Those that can be pinned.
    files: Vec<(&'static Layout, OwnedFd)>,
}

/// The ring buffer, and where it is watched once somebody asks in a runtime.
enum Events {
    /// Where a reader begins is what the one before it left: so it is made when the first event is asked for.
    Idle(Option<Box<Map>>),
    Watched(Box<AsyncFd<RingBuf<MapData>>>),
}

impl Maps {
    /// Takes the maps out of the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Maps, ProgramsError> {
        // Before they are taken out of it.
        let described = describe(ebpf).map_err(failed("asking about the programs' maps"))?;
        let files = files(ebpf).map_err(KernelError::io("holding the programs' maps"))?;
        let config: Array<_, Config> = map(ebpf, "CONFIG")?;
        // A daemon before this one may serve until this one is ready: what it told stands until then.
        let found = config.get(&0, 0).map_err(failed("reading the programs' configuration"))?;
        let told = if found.listener4 == 0 { Config::NEW } else { found };
        let told = Config { netns_cookie: netns_cookie()?, ..told };
        Ok(Maps {
            config: Mutex::new((config, told)),
            daemons: Mutex::new(map(ebpf, "DAEMONS")?),
            excluded_users: Mutex::new(map(ebpf, "EXCLUDED_USERS")?),
            excluded_cgroups: Mutex::new(map(ebpf, "EXCLUDED_CGROUPS")?),
            rules4: Mutex::new(map(ebpf, "RULES4")?),
            rules6: Mutex::new(map(ebpf, "RULES6")?),
            groups: Mutex::new(map(ebpf, "GROUP_STATE")?),
            down: Mutex::new(map(ebpf, "DOWN")?),
            places: Mutex::new(map(ebpf, "PLACES")?),
            flows: Mutex::new(map(ebpf, "FLOWS")?),
            marks: Mutex::new(map(ebpf, "MARK")?),
            spares: Mutex::new(map(ebpf, "SPARES")?),
            resolvers: Mutex::new(map(ebpf, "RESOLVERS")?),
            stands: Mutex::new(map(ebpf, "STANDS")?),
            counters: map(ebpf, "COUNTERS")?,
            events: Mutex::new(Events::Idle(Some(Box::new(raw(ebpf, "EVENTS")?)))),
            described,
            files,
        })
    }

    /// Gives them the names by which the next daemon finds them.
    pub(super) fn pin(&self, pins: &Pins) -> Result<(), KernelError> {
        for (layout, file) in &self.files {
            let path = pins.map(layout);
            let failed = || KernelError::io(format!("making {}", path.display()));
            // One that was to follow may have left its own.
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(failed())?,
            }
            let map = MapData::from_fd(file.try_clone().map_err(failed())?);
            let map = map.map_err(|error| failed()(io_error(error)))?;
            map.pin(&path).map_err(|error| failed()(io::Error::other(error)))?;
        }
        Ok(())
    }

    /// The record of a connection that has a place, and the place.
    fn placed(&self, key: &FlowKey) -> Result<Option<(u32, Flow)>, MapError> {
        let Some(place) = key.place() else { return Ok(None) };
        let flow = lock(&self.places).get(&place, 0)?;
        Ok((flow.listener == key.listener && flow.is_whole()).then_some((place, flow)))
    }

    /// Marks a socket of ours.
    pub(super) fn mark(&self, socket: &impl AsRawFd, value: u32) -> io::Result<()> {
        lock(&self.marks).insert(socket, value, 0).map_err(io_error)
    }

    /// The process id that the programs have noted for a socket that was marked to register; `None`: they did not see it.
    pub(super) fn registered(&self, socket: &impl AsRawFd) -> io::Result<Option<u32>> {
        let mark = lock(&self.marks).get(socket, 0).map_err(io_error)?;
        Ok(Some(mark & !mark::REGISTER).filter(|id| *id != 0))
    }

    /// The process ids of the daemons that are captured themselves, in the initial pid namespace.
    pub(super) fn daemons(&self) -> Result<HashSet<u32>, KernelError> {
        let daemons = lock(&self.daemons);
        daemons.keys().collect::<Result<_, _>>().map_err(failed("reading which daemons there are"))
    }

    /// Forgets a daemon that has ended.
    pub(super) fn forget_daemon(&self, ended: u32) -> Result<(), KernelError> {
        absent_is_fine(lock(&self.daemons).remove(&ended))
            .map_err(KernelError::io("forgetting a daemon that has ended"))
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

    fn rules(&self) -> Result<Vec<(IpNet, Entry)>, KernelError> {
        let reading = "reading the rules that are there";
        let mut all = Vec::new();
        for found in lock(&self.maps.rules4).iter() {
            let (key, entry) = found.map_err(failed(reading))?;
            let address = Ipv4Addr::from(key.data().to_ne_bytes());
            all.extend(Ipv4Net::new(address, length(key.prefix_len())).map(|net| (net.into(), entry)));
        }
        for found in lock(&self.maps.rules6).iter() {
            let (key, entry) = found.map_err(failed(reading))?;
            if let IpAddr::V6(address) = IpAddr::from(key.data()) {
                all.extend(Ipv6Net::new(address, length(key.prefix_len())).map(|net| (net.into(), entry)));
            }
        }
        Ok(all)
    }

    fn flow(&self, listener: u16, source: SocketAddr) -> Result<Option<FlowRecord>, KernelError> {
        let key = FlowKey::new(source, listener);
        let found = match self.maps.placed(&key) {
            Ok(None) => present(lock(&self.maps.flows).get(&key, 0)),
            placed => placed.map(|placed| placed.map(|(_, flow)| flow)),
        };
        let found = found.map_err(failed(format!("looking up the connection from {source}")))?;
        Ok(found.as_ref().map(FlowRecord::from))
    }

    fn forget_flow(&self, listener: u16, source: SocketAddr) -> Result<(), KernelError> {
        let key = FlowKey::new(source, listener);
        let taking = || format!("taking the connection from {source}");
        match self.maps.placed(&key).map_err(failed(taking()))? {
            Some((place, _)) => lock(&self.maps.places).set(place, Flow::NONE, 0).map_err(failed(taking())),
            None => absent_is_fine(lock(&self.maps.flows).remove(&key)).map_err(KernelError::io(taking())),
        }
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

    fn adopt_dns_ports(&self, ports: &HashSet<u16>) -> Result<HashSet<u16>, KernelError> {
        let reading = "reading which ports stand for resolvers";
        let mut kept = HashSet::new();
        let (mut resolvers, mut stands) = (lock(&self.maps.resolvers), lock(&self.maps.stands));
        for found in resolvers.iter().collect::<Result<Vec<_>, _>>().map_err(failed(reading))? {
            let (resolver, port): (Addr, u16) = found;
            match ports.contains(&port) {
                true => drop(kept.insert(port)),
                false => absent_is_fine(resolvers.remove(&resolver))
                    .map_err(KernelError::io(format!("forgetting the resolver of port {port}")))?,
            }
        }
        for found in stands.iter().collect::<Result<Vec<_>, _>>().map_err(failed(reading))? {
            let (port, _): (u16, Addr) = found;
            // Not those that are new since the look at the resolvers: a question may have taken one meanwhile.
            if !ports.contains(&port) {
                absent_is_fine(stands.remove(&port))
                    .map_err(KernelError::io(format!("forgetting the resolver of port {port}")))?;
            }
        }
        // One at a time goes round the queue, since a question may need one meanwhile.
        let mut spares = lock(&self.maps.spares);
        let mut round = HashSet::new();
        loop {
            let port = match spares.pop(0) {
                Ok(port) => port,
                Err(MapError::ElementNotFound) => break,
                Err(error) => return Err(failed("reading which ports are spare")(error)),
            };
            let known = !round.insert(port);
            if ports.contains(&port) && !kept.contains(&port) {
                spares.push(port, 0).map_err(failed(format!("keeping port {port} for DNS")))?;
            }
            if known {
                break;
            }
        }
        // Also those that a question took from the queue meanwhile.
        let taken = stands.keys().collect::<Result<HashSet<u16>, _>>().map_err(failed(reading))?;
        kept.extend(round.union(&taken).filter(|port| ports.contains(port)));
        Ok(kept)
    }

    fn set_excluded(&self, users: &[u32], cgroups: &[(u64, u32)]) -> Result<(), KernelError> {
        let mut exclude = if users.is_empty() { 0 } else { Config::EXCLUDE_USERS };
        for (_, level) in cgroups {
            if *level > Config::DEEPEST {
                let (what, limit) =
                    ("a cgroup so deep in `steer.exclude_cgroups`".to_owned(), Config::DEEPEST as usize);
                return Err(KernelError::Full { what, limit });
            }
            exclude |= 1 << level;
        }
        replace(&mut lock(&self.maps.excluded_users), users, "the users in `steer.exclude_users`")?;
        let ids: Vec<u64> = cgroups.iter().map(|(id, _)| *id).collect();
        replace(&mut lock(&self.maps.excluded_cgroups), &ids, "the cgroups in `steer.exclude_cgroups`")?;
        self.maps.configure(|config| config.exclude = exclude)
    }

    fn excludes_user(&self, user: u32) -> Result<bool, KernelError> {
        let found = present(lock(&self.maps.excluded_users).get(&user, 0));
        Ok(found.map_err(failed(format!("asking whether user {user} is excluded")))?.is_some())
    }

    fn excludes_cgroup(&self, cgroup: u64) -> Result<bool, KernelError> {
        let found = present(lock(&self.maps.excluded_cgroups).get(&cgroup, 0));
        Ok(found.map_err(failed(format!("asking whether cgroup {cgroup} is excluded")))?.is_some())
    }

    fn is_daemon(&self, process: u32) -> Result<bool, KernelError> {
        let found = present(lock(&self.maps.daemons).get(&process, 0));
        Ok(found.map_err(failed(format!("asking whether process {process} is a daemon")))?.is_some())
    }

    fn resolver_of(&self, port: u16) -> Result<Option<IpAddr>, KernelError> {
        match lock(&self.maps.stands).get(&port, 0) {
            Ok(addr) => Ok(Some(addr.into())),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed(format!("asking for which resolver port {port} stands"))(error)),
        }
    }

    fn resolvers(&self) -> Result<Vec<(IpAddr, u16)>, KernelError> {
        let stands = lock(&self.maps.stands);
        let found = stands.iter().map(|found| found.map(|(port, addr)| (addr.into(), port)));
        found.collect::<Result<_, _>>().map_err(failed("asking for which resolvers ports stand"))
    }

    fn detach(&self) {
        self.left.store(true, std::sync::atomic::Ordering::Relaxed);
        self.let_go();
    }

    fn leave(&self) {
        self.left.store(true, std::sync::atomic::Ordering::Relaxed);
        self.lock().links.clear();
    }

    fn take_back(&self) -> Result<(), KernelError> {
        // The one that was to follow has written its own.
        self.maps.configure(|_| ())?;
        self.take_back_pins()
            .map_err(|error| KernelError::io("taking back what is attached")(io::Error::other(error)))
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
                // Each resolver has a port, and each such port its resolver.
                "RESOLVERS" | "STANDS" => Some(lock(&self.maps.stands).keys().count()),
                "DAEMONS" => Some(lock(&self.maps.daemons).keys().count()),
                "EXCLUDED_USERS" => Some(lock(&self.maps.excluded_users).keys().count()),
                // As the kernel has cut it.
                "EXCLUDED_CGROUP" => Some(lock(&self.maps.excluded_cgroups).keys().count()),
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
                    let ring = RingBuf::try_from(*ring).map_err(io::Error::other)?;
                    // SAFETY: the ring owns its descriptor and keeps it until it is dropped.
                    let watched = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?;
                    *self = Events::Watched(Box::new(watched));
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

/// A map's type, in bpftool's words; `None` for those that no program here has.
fn kind(map: &Map) -> Option<(&'static str, &MapData)> {
    Some(match map {
        Map::Array(data) => ("array", data),
        Map::HashMap(data) => ("hash", data),
        Map::LpmTrie(data) => ("lpm_trie", data),
        Map::LruHashMap(data) => ("lru_hash", data),
        Map::PerCpuArray(data) => ("percpu_array", data),
        Map::Queue(data) => ("queue", data),
        Map::RingBuf(data) => ("ringbuf", data),
        Map::SkStorage(data) => ("sk_storage", data),
        _ => return None,
    })
}

/// Descriptors of those that are pinned.
fn files(ebpf: &Ebpf) -> io::Result<Vec<(&'static Layout, OwnedFd)>> {
    let found = MAPS.iter().filter_map(|layout| Some((layout, kind(ebpf.map(layout.name)?)?.1)));
    found.map(|(layout, data)| Ok((layout, data.fd().as_fd().try_clone_to_owned()?))).collect()
}

/// All maps, those of the loader too.
fn describe(ebpf: &Ebpf) -> Result<Vec<MapStatus>, MapError> {
    let mut all = Vec::new();
    for (kind, data) in ebpf.maps().filter_map(|(_, map)| kind(map)) {
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

fn raw(ebpf: &mut Ebpf, name: &str) -> Result<Map, ProgramsError> {
    ebpf.take_map(name).ok_or_else(|| ProgramsError::Stale { what: format!("the map {name}") })
}

/// Makes a map hold these keys and no others; those that stay are there all the time.
fn replace<K: Pod + Eq + std::hash::Hash>(
    map: &mut HashMap<MapData, K, u32>,
    keys: &[K],
    what: &str,
) -> Result<(), KernelError> {
    let before = map.keys().collect::<Result<Vec<K>, _>>().map_err(failed(format!("reading {what}")))?;
    for key in before.iter().filter(|key| !keys.contains(key)) {
        absent_is_fine(map.remove(key)).map_err(KernelError::io(format!("removing some of {what}")))?;
    }
    for key in keys {
        map.insert(key, 1, 0).map_err(full_or_failed(|| what.to_owned(), limits::EXCLUDED))?;
    }
    Ok(())
}

fn length(prefix: u32) -> u8 {
    u8::try_from(prefix).unwrap_or(u8::MAX)
}

/// A map as what the programs use it for.
fn map<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<T, ProgramsError> {
    let map = raw(ebpf, name)?;
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
