//! Processes, mounts, disks, ports.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;
use nix::unistd::geteuid;

use crate::config::Config;
use crate::doctor::facts::{Port, State, System};
use crate::inspect::status::Status;
use crate::sockets;
use crate::steer::pins::Pins;
use crate::steer::probe;

/// What a listening socket's state is in `/proc/net/tcp`.
const LISTEN: &str = "0A";

pub(super) fn look(root: &Path, config: &Config, status: Option<&Status>) -> System {
    let own = root.join("proc/self");
    let daemon = status.map(|status| root.join(format!("proc/{}", status.pid)));
    let lacks =
        |process: &Path| probe::missing_capabilities(&fs::read_to_string(process.join("status")).ok()?);
    let network = |process: &Path| fs::read_link(process.join("ns/net")).ok();
    let elsewhere = daemon.as_deref().and_then(network).is_some_and(|theirs| network(&own) != Some(theirs));
    let limit = |process: &Path| open_files(&fs::read_to_string(process.join("limits")).ok()?);
    let steer = config.steer.as_ref();
    let steers = status.and_then(|status| status.steer.as_ref()).is_some_and(|steer| !steer.off);
    System {
        daemon_lacks: daemon.as_deref().and_then(lacks),
        lacks: lacks(&own),
        elsewhere,
        cgroup2: steer.map(|_| probe::mount().map_err(|error| error.to_string())),
        unpinnable: steer.and_then(|steer| unpinnable(&steer.pins, steers)),
        state: state(&config.state_dir, status.is_some()),
        descriptors: match &daemon {
            Some(process) => limit(process),
            // A start raises it as far as it may.
            None => getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_, hard)| hard),
        },
        ports: if elsewhere { Vec::new() } else { ports(root, config) },
    }
}

/// The soft limit of open files, by the text of `/proc/PID/limits`.
fn open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let soft = line.split_ascii_whitespace().next()?;
    if soft == "unlimited" { Some(u64::MAX) } else { soft.parse().ok() }
}

fn unpinnable(pins: &Path, steers: bool) -> Option<String> {
    let shown = pins.display();
    match Pins::is_pinnable(pins) {
        Ok(true) => None,
        Ok(false) => Some(format!(
            "steer.pins = {shown}: it is on no bpf file system, so nothing outlives the daemon there"
        )),
        // A start makes it.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !steers => None,
        Err(error) => {
            Some(format!("steer.pins = {shown}: {error}: a daemon that dies leaves nothing to the next one"))
        }
    }
}

fn state(path: &Path, is_used: bool) -> State {
    let mut state = State { path: path.to_owned(), ..State::default() };
    let trial = path.join(format!(".doctor-{}", std::process::id()));
    match fs::OpenOptions::new().write(true).create_new(true).open(&trial) {
        Ok(_) => {
            let _ = fs::remove_file(&trial);
        }
        // A start makes it.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_used => return state,
        // What is not for this user may be for the daemon's.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !geteuid().is_root() => {}
        Err(error) => state.unwritable = Some(error.to_string()),
    }
    state.space = statvfs(path).ok().map(|found| {
        let block = found.fragment_size();
        (found.blocks_available().saturating_mul(block), found.blocks().saturating_mul(block))
    });
    state
}

fn ports(root: &Path, config: &Config) -> Vec<Port> {
    let read = |file: &str| fs::read_to_string(root.join("proc/self/net").join(file)).unwrap_or_default();
    let listening: Vec<(SocketAddr, u64)> =
        [read("tcp"), read("tcp6")].iter().flat_map(|text| listeners(text)).collect();
    let of = |address: &SocketAddr| -> Vec<u64> {
        let there = listening.iter().filter(|(other, _)| in_the_way(*other, *address));
        // One for all of IPv6 may have left IPv4 to others, as the daemon's own does: only a try tells.
        let there = there.filter(|(other, _)| is_same_family(*other, *address) || is_taken(*address));
        there.map(|(_, inode)| *inode).collect()
    };
    let wanted: Vec<_> = config.listens().map(|(key, address)| (key, address, of(&address))).collect();
    let inodes: HashSet<u64> = wanted.iter().flat_map(|(_, _, inodes)| inodes).copied().collect();
    let holders = holders(root, &inodes);
    let port = |(key, address, inodes): (&'static str, SocketAddr, Vec<u64>)| {
        let mut who: Vec<(u32, String)> =
            inodes.iter().filter_map(|inode| holders.get(inode)).flatten().cloned().collect();
        who.sort();
        who.dedup();
        Port { key, address, holders: who, is_taken: !inodes.is_empty() }
    };
    wanted.into_iter().map(port).collect()
}

/// Whether a listener keeps others off an address, or may: one for all of IPv6 has IPv4's port, too, where it was not
/// told otherwise.
pub fn in_the_way(listener: SocketAddr, address: SocketAddr) -> bool {
    let (there, here) = (listener.ip().to_canonical(), address.ip());
    let is_all = |ip: IpAddr| ip.is_unspecified() && (ip.is_ipv6() || here.is_ipv4());
    let reaches = |ip: IpAddr| ip.is_ipv4() == here.is_ipv4() && here.is_unspecified();
    listener.port() == address.port() && (there == here || is_all(there) || reaches(there))
}

fn is_same_family(a: SocketAddr, b: SocketAddr) -> bool {
    a.ip().to_canonical().is_ipv4() == b.is_ipv4()
}

/// Whether an address can't be bound. Nobody can connect to it meanwhile.
fn is_taken(address: SocketAddr) -> bool {
    sockets::bind(address).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// The listening sockets, with their inodes, by the text of `/proc/net/tcp` or `tcp6`.
fn listeners(text: &str) -> Vec<(SocketAddr, u64)> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        if *state != LISTEN {
            return None;
        }
        let (address, port) = local.split_once(':')?;
        // Each word as the host has it.
        let words: Vec<u32> = (0..address.len() / 8)
            .map(|at| u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok())
            .collect::<Option<_>>()?;
        let address: IpAddr = match words[..] {
            [word] => Ipv4Addr::from(word.to_ne_bytes()).into(),
            [a, b, c, d] => {
                let mut bytes = [0; 16];
                for (to, word) in bytes.chunks_exact_mut(4).zip([a, b, c, d]) {
                    to.copy_from_slice(&word.to_ne_bytes());
                }
                Ipv6Addr::from(bytes).into()
            }
            _ => return None,
        };
        Some((SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?), inode.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// The sockets that a process has open, as far as this one may see.
fn sockets(process: &Path) -> impl Iterator<Item = u64> {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let links = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    links.filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok())
}

/// Where a process listens.
pub(super) fn listeners_of(process: &Path) -> Vec<SocketAddr> {
    let own: HashSet<u64> = sockets(process).collect();
    let files = ["tcp", "tcp6"].map(|file| process.join("net").join(file));
    let all = files.iter().flat_map(|file| listeners(&fs::read_to_string(file).unwrap_or_default()));
    all.filter(|(_, inode)| own.contains(inode)).map(|(address, _)| address).collect()
}

/// Which processes have these sockets open, as far as this one may see.
fn holders(root: &Path, inodes: &HashSet<u64>) -> HashMap<u64, Vec<(u32, String)>> {
    let mut all: HashMap<u64, Vec<(u32, String)>> = HashMap::new();
    if inodes.is_empty() {
        return all;
    }
    for process in fs::read_dir(root.join("proc")).into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        for inode in sockets(&process.path()).filter(|inode| inodes.contains(inode)) {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            all.entry(inode).or_default().push((pid, command.trim_end().to_owned()));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};

    #[test]
    fn listening_sockets_are_read_and_found_with_who_has_them() {
        let listeners4 = std::net::TcpListener::bind("127.0.0.1:0").ok();
        // A host may be without IPv6.
        let listeners6 = std::net::TcpListener::bind("[::1]:0").ok();
        assert!(listeners4.is_some());
        for (listener, file) in [(listeners4, "tcp"), (listeners6, "tcp6")] {
            let Some(listener) = listener else { continue };
            let address = listener.local_addr().unwrap();
            let found = listeners(&fs::read_to_string(format!("/proc/self/net/{file}")).unwrap());
            let (_, inode) = found.iter().find(|(found, _)| *found == address).expect("this one's");
            let who = holders(Path::new("/"), &HashSet::from([*inode]));
            assert!(who[inode].iter().any(|(pid, _)| *pid == std::process::id()), "{who:?}");
        }
    }

    #[test]
    fn who_listens_everywhere_is_in_the_way_of_all() {
        let at = |text: &str| text.parse().unwrap();
        for (listener, address, expected) in [
            ("127.0.0.1:443", "127.0.0.1:443", true),
            ("127.0.0.1:443", "127.0.0.1:444", false),
            ("0.0.0.0:443", "127.0.0.1:443", true),
            ("127.0.0.1:443", "0.0.0.0:443", true),
            ("[::]:443", "0.0.0.0:443", true),
            ("[::]:443", "10.0.0.1:443", true),
            ("[::]:443", "10.0.0.1:444", false),
            ("0.0.0.0:443", "[::]:443", false),
            ("10.0.0.1:443", "[::]:443", false),
            ("[::1]:443", "0.0.0.0:443", false),
            ("[::ffff:10.0.0.1]:443", "10.0.0.1:443", true),
            ("[::ffff:10.0.0.1]:443", "10.0.0.2:443", false),
            ("[::]:443", "[2001:db8::1]:443", true),
            ("10.0.0.1:443", "10.0.0.2:443", false),
        ] {
            assert_eq!(in_the_way(at(listener), at(address)), expected, "{listener} {address}");
        }
    }

    #[test]
    fn a_listener_for_both_families_has_the_port_and_one_for_ipv6_leaves_it() {
        for (only_v6, expected) in [(false, true), (true, false)] {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
            socket.set_only_v6(only_v6).unwrap();
            socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into()).unwrap();
            socket.listen(1).unwrap();
            let port = socket.local_addr().unwrap().as_socket().unwrap().port();
            let text = format!(
                "appliance_url = \"https://a.example\"\nworker_key_file = \"/k\"\n[proxy]\nhttp = [\"127.0.0.1:{port}\"]\n"
            );
            let config = Config::parse(&text, "dworker.toml").unwrap().config;
            let found = ports(Path::new("/"), &config);
            let found = found.iter().find(|found| found.key == "proxy.http").unwrap();
            assert_eq!(found.is_taken, expected, "{found:?}");
            let is_ours = found.holders.iter().any(|(pid, _)| *pid == std::process::id());
            assert_eq!(is_ours, expected, "{found:?}");
        }
    }

    #[test]
    fn the_limit_of_open_files_is_the_soft_one() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max open files            1024                 524288               files     \n";
        assert_eq!(open_files(text), Some(1024));
        assert_eq!(
            open_files("Max open files            unlimited            unlimited            files\n"),
            Some(u64::MAX)
        );
        assert_eq!(open_files(""), None);
    }

    #[test]
    fn a_state_directory_is_tried_and_nothing_is_left_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let found = state(directory.path(), true);
        assert!(found.unwritable.is_none() && found.space.is_some(), "{found:?}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        let gone = directory.path().join("gone");
        assert!(state(&gone, true).unwritable.is_some());
        assert!(state(&gone, false).unwritable.is_none(), "a start makes it");
    }
}
