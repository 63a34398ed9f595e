//! The canary: a process in a captured cgroup, which looks at what happens to its own sockets, hook by hook.
//!
//! It asks for a name that only steering's DNS answers ([`CANARY`]), of a resolver that applications ask anyway, and
//! connects to addresses that no name is ever given. So nothing that is somebody's is asked or connected to; where no hook
//! fires, a resolver says that there is no such name, and a datagram ends at the first router. It lives in a cgroup of its
//! own, below the captured one, which is removed with it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::steer::dns::CANARY;

/// Time for one answer. They come from this host.
const PATIENCE: Duration = Duration::from_secs(1);
/// Time for the C library's resolver: a second try of its own included.
const LIBC: Duration = Duration::from_secs(6);
/// Time for all of it.
const ALL: Duration = Duration::from_secs(25);
/// What the cgroups are called, before the process that made them.
const NAME: &str = "dworker-doctor-";
/// Ports that are connected to at the addresses of nobody.
const TCP: u16 = 443;
const DISCARD: u16 = 9;

/// What a canary is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errand {
    /// The cgroup that it is to live in.
    pub cgroup: PathBuf,
    /// The user that it is to be.
    pub uid: u32,
    /// Whom it is to ask.
    pub resolver: Ipv4Addr,
    /// The addresses of the canary's name, which no other name has.
    pub v4: Ipv4Addr,
    /// The same.
    pub v6: Ipv6Addr,
}

/// What it saw of one hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Heard {
    /// The program did what it is for.
    Fires,
    /// It did not: what happened instead.
    Silent(String),
    /// It can't be seen, since another one does not.
    Unknown,
}

impl Heard {
    fn of(fires: bool, otherwise: impl FnOnce() -> String) -> Heard {
        if fires { Heard::Fires } else { Heard::Silent(otherwise()) }
    }

    /// This, where the one that it depends on fires.
    fn behind(self, other: &Heard) -> Heard {
        if *other == Heard::Fires { self } else { Heard::Unknown }
    }
}

/// All that it saw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Song {
    /// By attach type, in bpftool's words.
    pub hooks: BTreeMap<String, Heard>,
    /// Whether the rules of each family are there: an address of nobody is refused.
    pub rules: BTreeMap<String, Heard>,
    /// Whether the C library's look-up of the canary's name ended here. `None`: there was no end.
    pub libc: Option<Heard>,
}

/// Does the errand; this process is the canary.
///
/// # Errors
/// It does not get where it is to be.
pub fn sing(errand: &Errand) -> io::Result<Song> {
    let procs = errand.cgroup.join("cgroup.procs");
    let entering = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", procs.display()));
    fs::write(&procs, "0").map_err(entering)?;
    if errand.uid != 0 {
        nix::unistd::setuid(errand.uid.into())?;
    }
    let server4 = SocketAddr::new(errand.resolver.into(), 53);
    let mapped = SocketAddr::new(errand.resolver.to_ipv6_mapped().into(), 53);
    let any4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
    let any6 = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    let mut song = Song::default();
    let mut hooks = |hook: &str, heard: Heard| song.hooks.insert(hook.to_owned(), heard);

    let (connect4, getpeername4) = connected(any4, server4, errand.v4);
    let sock_ops = by_tcp(server4, errand.v4).behind(&connect4);
    hooks("cgroup_sock_ops", sock_ops);
    hooks("cgroup_inet4_getpeername", getpeername4);
    let (sendmsg4, recvmsg4) = unconnected(any4, server4, errand.v4);
    hooks("cgroup_udp4_recvmsg", recvmsg4);
    let rules4 = refused_tcp(SocketAddr::new(errand.v4.into(), TCP)).behind(&connect4);
    // A host may be without IPv6.
    let rules6 = match UdpSocket::bind(any6) {
        Err(_) => None,
        Ok(_) => {
            let (connect6, getpeername6) = connected(any6, mapped, errand.v4);
            hooks("cgroup_inet6_getpeername", getpeername6);
            let (by4, recvmsg6) = unconnected(any6, mapped, errand.v4);
            // The kernel sees a datagram to a mapped address as one of IPv4.
            hooks("cgroup_udp6_recvmsg", recvmsg6.behind(&by4));
            hooks("cgroup_udp6_sendmsg", refused_datagram(SocketAddr::new(errand.v6.into(), DISCARD)));
            let rules6 = refused_tcp(SocketAddr::new(errand.v6.into(), TCP)).behind(&connect6);
            hooks("cgroup_inet6_connect", connect6);
            Some(rules6)
        }
    };
    hooks("cgroup_udp4_sendmsg", sendmsg4);
    hooks("cgroup_inet4_connect", connect4.clone());
    song.rules = [("IPv4", Some(rules4)), ("IPv6", rules6)]
        .into_iter()
        .filter_map(|(family, heard)| Some((family.to_owned(), heard?)))
        .collect();
    song.libc = by_libc([errand.v4.into(), errand.v6.into()]).map(|heard| heard.behind(&connect4));
    Ok(song)
}

/// UDP by `connect()`: connect and getpeername.
fn connected(any: SocketAddr, server: SocketAddr, wanted: Ipv4Addr) -> (Heard, Heard) {
    let asked = (|| {
        let socket = UdpSocket::bind(any)?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let id = rand::random();
        socket.send(&question(id))?;
        let mut answer = [0; 512];
        let n = socket.recv(&mut answer)?;
        Ok::<_, io::Error>((is_answer(&answer[..n], id, wanted), socket.peer_addr()?))
    })();
    match asked {
        Ok((true, peer)) => {
            let instead = || format!("getpeername() gives {peer} for {server}");
            (Heard::Fires, Heard::of(same(peer, server), instead))
        }
        Ok((false, _)) => (Heard::Silent(format!("{server} itself answered")), Heard::Unknown),
        Err(error) => (Heard::Silent(format!("no answer from {server}: {error}")), Heard::Unknown),
    }
}

/// UDP by `sendto()`: sendmsg and recvmsg.
fn unconnected(any: SocketAddr, server: SocketAddr, wanted: Ipv4Addr) -> (Heard, Heard) {
    let asked = (|| {
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let id = rand::random();
        socket.send_to(&question(id), server)?;
        let mut answer = [0; 512];
        let (n, from) = socket.recv_from(&mut answer)?;
        Ok::<_, io::Error>((is_answer(&answer[..n], id, wanted), from))
    })();
    match asked {
        Ok((true, from)) => {
            let instead = || format!("the answer of {server} comes from {from}");
            (Heard::Fires, Heard::of(same(from, server), instead))
        }
        Ok((false, _)) => (Heard::Silent(format!("{server} itself answered")), Heard::Unknown),
        Err(error) => (Heard::Silent(format!("no answer from {server}: {error}")), Heard::Unknown),
    }
}

/// A question over TCP is answered only where sock_ops has told from whom it comes.
fn by_tcp(server: SocketAddr, wanted: Ipv4Addr) -> Heard {
    let asked = (|| {
        let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let id = rand::random();
        let question = question(id);
        let mut framed = (question.len() as u16).to_be_bytes().to_vec();
        framed.extend(question);
        stream.write_all(&framed)?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut answer)?;
        Ok::<_, io::Error>(is_answer(&answer, id, wanted))
    })();
    match asked {
        Ok(true) => Heard::Fires,
        Ok(false) => Heard::Silent(format!("{server} itself answered over TCP")),
        Err(error) => Heard::Silent(format!("no answer from {server} over TCP: {error}")),
    }
}

/// A connection to an address of nobody, which the rules refuse.
fn refused_tcp(target: SocketAddr) -> Heard {
    let tried = (|| {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
        near(&socket, target)?;
        socket.connect_timeout(&target.into(), PATIENCE)
    })();
    refused(target, tried)
}

/// A datagram to one: only TCP is carried.
fn refused_datagram(target: SocketAddr) -> Heard {
    let tried = (|| {
        let socket = Socket::new(Domain::for_address(target), Type::DGRAM, Some(Protocol::UDP))?;
        near(&socket, target)?;
        socket.send_to(&[0], &target.into()).map(drop)
    })();
    refused(target, tried)
}

/// Nothing that it sends gets further than the first router.
fn near(socket: &Socket, target: SocketAddr) -> io::Result<()> {
    let socket = SockRef::from(socket);
    if target.is_ipv4() { socket.set_ttl_v4(1) } else { socket.set_unicast_hops_v6(1) }
}

fn refused(target: SocketAddr, tried: io::Result<()>) -> Heard {
    match tried {
        // Before 5.18 the kernel knows no other errno.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EHOSTUNREACH | libc::EPERM)) => Heard::Fires,
        Err(error) => Heard::Silent(format!("{target} is not refused: {error}")),
        Ok(()) => Heard::Silent(format!("{target} is not refused")),
    }
}

/// As every application would look it up. `None`: there is no end of it.
fn by_libc(wanted: [IpAddr; 2]) -> Option<Heard> {
    let (sender, found) = mpsc::channel();
    // It may hang, and then ends with the process.
    thread::spawn(move || {
        let found = dns_lookup::lookup_host(CANARY).map(Iterator::collect::<Vec<IpAddr>>);
        let _ = sender.send(found);
    });
    Some(match found.recv_timeout(LIBC).ok()? {
        Ok(found) if found.iter().any(|address| wanted.contains(address)) => Heard::Fires,
        Ok(found) => Heard::Silent(format!("getaddrinfo() gives {found:?} for {CANARY}")),
        Err(error) => Heard::Silent(format!("getaddrinfo() gives nothing for {CANARY}: {error}")),
    })
}

fn same(a: SocketAddr, b: SocketAddr) -> bool {
    (a.ip().to_canonical(), a.port()) == (b.ip().to_canonical(), b.port())
}

/// A question for the canary's IPv4 address.
fn question(id: u16) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    // Recursion desired; one question.
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in CANARY.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    // The root; A, IN.
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// The answer to it. Ours ends with the address: the question has no EDNS.
fn is_answer(message: &[u8], id: u16, wanted: Ipv4Addr) -> bool {
    message.starts_with(&id.to_be_bytes())
        && message.get(2).is_some_and(|flags| flags & 0x80 != 0)
        && message.get(6..8).is_some_and(|count| count != [0, 0])
        && message.ends_with(&wanted.octets())
}

/// Sends a canary into a cgroup of its own below `captured`. Blocks for as long as it sings.
///
/// # Errors
/// It could not be sent, or did not come back.
pub fn send(captured: &Path, errand: impl FnOnce(PathBuf) -> Errand) -> Result<Song, String> {
    sweep(captured);
    let cage = Cage::make(captured).map_err(|error| format!("a cgroup below it can't be made: {error}"))?;
    let errand = errand(cage.path.clone());
    let words = serde_json::to_string(&errand).map_err(|error| error.to_string())?;
    let mut child = Command::new("/proc/self/exe")
        .args(["canary", &words])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("a process can't be started: {error}"))?;
    let until = Instant::now() + ALL;
    let ended = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Ok(status),
            Ok(None) if Instant::now() < until => thread::sleep(Duration::from_millis(10)),
            Ok(None) => break Err(format!("it did not come back within {ALL:?}")),
            Err(error) => break Err(error.to_string()),
        }
    };
    if ended.is_err() {
        // Its cgroup can't be removed while it lives.
        let _ = child.kill();
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    ended?;
    serde_json::from_slice(&output.stdout).map_err(|_| {
        let said = String::from_utf8_lossy(&output.stderr);
        format!("it came back without a song: {} {}", output.status, said.trim())
    })
}

/// A cgroup that goes with this.
struct Cage {
    path: PathBuf,
}

impl Cage {
    fn make(captured: &Path) -> io::Result<Cage> {
        let path = captured.join(format!("{NAME}{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Cage { path })
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        // The kernel takes a moment until it counts a process that has ended as gone.
        for _ in 0..200 {
            match fs::remove_dir(&self.path) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    thread::sleep(Duration::from_millis(10));
                }
                _ => return,
            }
        }
    }
}

/// Removes what a doctor left who was killed.
fn sweep(captured: &Path) {
    for entry in fs::read_dir(captured).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(NAME)?.parse::<u32>().ok());
        if owner.is_some_and(|owner| !Path::new(&format!("/proc/{owner}")).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Message, Metadata};
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{RData, Record, RecordType};

    #[test]
    fn the_question_is_one_and_only_its_own_answer_is_taken() {
        let asked = Message::from_vec(&question(0x1234)).unwrap();
        assert_eq!((asked.id, asked.queries.len()), (0x1234, 1));
        assert_eq!(asked.queries[0].name.to_ascii(), format!("{CANARY}."));
        assert_eq!(asked.queries[0].query_type, RecordType::A);

        let ours = Ipv4Addr::new(240, 64, 0, 0);
        let answer = |addresses: &[Ipv4Addr]| {
            let mut answer = Message::response(asked.id, asked.op_code);
            answer.metadata = Metadata::response_from_request(&asked.metadata);
            answer.queries.clone_from(&asked.queries);
            for address in addresses {
                let name = asked.queries[0].name.clone();
                answer.add_answer(Record::from_rdata(name, 1, RData::A(A(*address))));
            }
            answer.to_vec().unwrap()
        };
        assert!(is_answer(&answer(&[ours]), 0x1234, ours));
        assert!(!is_answer(&answer(&[ours]), 0x1235, ours), "another question's");
        assert!(!is_answer(&answer(&[Ipv4Addr::LOCALHOST]), 0x1234, ours), "another's");
        assert!(!is_answer(&answer(&[]), 0x1234, ours), "no such name");
        assert!(!is_answer(&question(0x1234), 0x1234, ours), "a mirror");
        assert!(!is_answer(b"", 0x1234, ours));
    }

    #[test]
    fn nothing_is_known_behind_a_hook_that_is_silent() {
        let silent = || Heard::Silent(String::new());
        assert_eq!(Heard::Fires.behind(&Heard::Fires), Heard::Fires);
        assert_eq!(silent().behind(&Heard::Fires), silent());
        assert_eq!(silent().behind(&silent()), Heard::Unknown);
        assert_eq!(Heard::Fires.behind(&Heard::Unknown), Heard::Unknown);
    }

    #[test]
    fn a_dead_doctors_cage_is_swept_and_a_living_ones_is_not() {
        let captured = tempfile::tempdir().unwrap();
        let dead = captured.path().join(format!("{NAME}4294967295"));
        let living = captured.path().join(format!("{NAME}1"));
        let other = captured.path().join("app.service");
        for path in [&dead, &living, &other] {
            fs::create_dir(path).unwrap();
        }
        sweep(captured.path());
        assert!(!dead.exists() && living.exists() && other.exists());
    }
}
