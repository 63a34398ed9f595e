//! The captured process: this very program once more, in a cgroup, doing the system calls that a test tells it.
//!
//! A test holds a [`Client`]; its sockets are numbers there and descriptors here. Calls and answers are lines of
//! JSON on the process's standard input and output.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dworker::steer::pins::Pins;
use dworker::steer::probe;
use dworker::steer::programs::Programs;
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

const WANTED: &str = "DWORKER_STEER_CLIENT";
/// How long a call may wait for an answer that never comes.
const DEADLINE: Duration = Duration::from_secs(10);

/// The kinds of sockets that tests use.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Kind {
    Tcp4,
    Tcp6,
    Udp4,
    Udp6,
    Mptcp4,
    Mptcp6,
}

#[derive(Debug, Serialize, Deserialize)]
enum Call {
    Socket(Kind),
    Close(u32),
    Bind(u32, SocketAddr),
    /// `SO_BINDTODEVICE`.
    BindDevice(u32, String),
    Connect(u32, SocketAddr),
    /// connect() to `AF_UNSPEC`.
    Disconnect(u32),
    /// sendto() with `MSG_FASTOPEN`.
    FastOpen(u32, SocketAddr, Vec<u8>),
    Send(u32, Vec<u8>),
    SendTo(u32, SocketAddr, Vec<u8>),
    /// recvfrom().
    Receive(u32),
    Peer(u32),
    Local(u32),
    /// Opens a TCP socket, connects it and closes it, so often.
    ConnectOften(SocketAddr, u32),
    /// Sends a datagram to each, from as many threads at once.
    Ask(Vec<SocketAddr>, usize),
    /// Loads the programs and attaches them, as a daemon does; they stay until the process ends.
    Steer(Option<PathBuf>, Option<PathBuf>),
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Done,
    Socket(u32),
    Address(SocketAddr),
    Data(Vec<u8>, Option<SocketAddr>),
    Errno(i32),
    Failed(String),
}

/// Where a client lives.
#[derive(Debug, Default)]
pub(crate) struct Place<'a> {
    /// In this cgroup; where the test is, otherwise.
    pub(crate) cgroup: Option<&'a Path>,
    /// In a network namespace of its own, which has nothing but a loopback that is down.
    pub(crate) apart: bool,
    /// Under a program that takes a command, such as `setpriv`.
    pub(crate) under: &'a [&'a str],
}

/// A process that does what a test tells it. Dropping it ends it.
pub(crate) struct Client {
    child: Child,
    pipes: RefCell<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Client {
    pub(crate) fn new(place: &Place) -> Client {
        let program = std::env::current_exe().expect("our own path");
        let mut words: Vec<_> = place.under.iter().map(|word| (*word).into()).collect();
        words.push(program.into_os_string());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env(WANTED, "1").stdin(Stdio::piped()).stdout(Stdio::piped());
        let procs = place.cgroup.map(|cgroup| {
            OpenOptions::new()
                .write(true)
                .open(cgroup.join("cgroup.procs"))
                .expect("the cgroup can be joined")
        });
        let apart = place.apart;
        // SAFETY: between fork and exec only two system calls are made, and nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                if let Some(mut procs) = procs.as_ref() {
                    procs.write_all(b"0")?;
                }
                if apart {
                    unshare(CloneFlags::CLONE_NEWNET)?;
                }
                Ok(())
            });
        }
        let mut child = command.spawn().expect("the captured process starts");
        let calls = child.stdin.take().expect("piped");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        Client { child, pipes: RefCell::new((calls, answers)) }
    }

    /// A client in a cgroup.
    pub(crate) fn inside(cgroup: &Path) -> Client {
        Client::new(&Place { cgroup: Some(cgroup), ..Place::default() })
    }

    /// A client outside every captured cgroup.
    pub(crate) fn outside() -> Client {
        Client::new(&Place::default())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn socket(&self, kind: Kind) -> Remote<'_> {
        match self.call(&Call::Socket(kind)) {
            Answer::Socket(number) => Remote { client: self, number },
            other => panic!("socket({kind:?}): {other:?}"),
        }
    }

    /// A TCP socket of the right family, connected or refused.
    pub(crate) fn connect(&self, to: &str) -> Result<Remote<'_>, i32> {
        let kind = if address(to).is_ipv4() { Kind::Tcp4 } else { Kind::Tcp6 };
        let socket = self.socket(kind);
        socket.connect(to)?;
        Ok(socket)
    }

    /// Connects and closes a TCP socket, `count` times.
    pub(crate) fn connect_often(&self, to: SocketAddr, count: u32) {
        match self.call(&Call::ConnectOften(to, count)) {
            Answer::Done => {}
            other => panic!("connecting {count} times to {to}: {other:?}"),
        }
    }

    /// Sends a datagram to each address from so many threads, all to the same in the same moment.
    pub(crate) fn ask_at_once(&self, all: &[SocketAddr], threads: usize) {
        match self.call(&Call::Ask(all.to_owned(), threads)) {
            Answer::Done => {}
            other => panic!("{other:?}"),
        }
    }

    /// Loads the programs and attaches them to a cgroup, if one is given.
    pub(crate) fn steer(&self, cgroup: Option<&Path>) -> Result<(), String> {
        self.steer_with(cgroup, None)
    }

    /// As [`Client::steer`], with what outlives it.
    pub(crate) fn steer_with(&self, cgroup: Option<&Path>, pins: Option<&Path>) -> Result<(), String> {
        match self.call(&Call::Steer(cgroup.map(Path::to_owned), pins.map(Path::to_owned))) {
            Answer::Done => Ok(()),
            Answer::Failed(why) => Err(why),
            other => panic!("{other:?}"),
        }
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }

    fn call(&self, call: &Call) -> Answer {
        let mut line = serde_json::to_string(call).expect("plain data");
        let (calls, answers) = &mut *self.pipes.borrow_mut();
        writeln!(calls, "{line}").expect("the captured process listens");
        line.clear();
        answers.read_line(&mut line).expect("the captured process answers");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("the captured process ended: {e}: {line:?}"))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Ignored: it may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A socket of a client; `Err` is an errno.
pub(crate) struct Remote<'a> {
    client: &'a Client,
    number: u32,
}

impl Remote<'_> {
    fn done(&self, call: Call) -> Result<(), i32> {
        match self.client.call(&call) {
            Answer::Done => Ok(()),
            Answer::Errno(errno) => Err(errno),
            other => panic!("{call:?}: {other:?}"),
        }
    }

    fn address(&self, call: Call) -> String {
        match self.client.call(&call) {
            Answer::Address(address) => address.to_string(),
            other => panic!("{call:?}: {other:?}"),
        }
    }

    pub(crate) fn bind(&self, to: &str) {
        self.done(Call::Bind(self.number, address(to))).expect("bind");
    }

    pub(crate) fn bind_device(&self, device: &str) {
        self.done(Call::BindDevice(self.number, device.to_owned())).expect("SO_BINDTODEVICE");
    }

    pub(crate) fn connect(&self, to: &str) -> Result<(), i32> {
        self.done(Call::Connect(self.number, address(to)))
    }

    pub(crate) fn disconnect(&self) {
        self.done(Call::Disconnect(self.number)).expect("connect() to AF_UNSPEC");
    }

    pub(crate) fn fast_open(&self, to: &str, data: &[u8]) -> Result<(), i32> {
        self.done(Call::FastOpen(self.number, address(to), data.to_owned()))
    }

    pub(crate) fn send(&self, data: &[u8]) -> Result<(), i32> {
        self.done(Call::Send(self.number, data.to_owned()))
    }

    pub(crate) fn send_to(&self, to: &str, data: &[u8]) -> Result<(), i32> {
        self.done(Call::SendTo(self.number, address(to), data.to_owned()))
    }

    /// What comes next on a connection.
    pub(crate) fn read(&self) -> Vec<u8> {
        self.received().0
    }

    /// The next datagram, and from whom it seems to come.
    pub(crate) fn receive(&self) -> (Vec<u8>, String) {
        let (data, from) = self.received();
        (data, from.expect("a datagram has a sender").to_string())
    }

    fn received(&self) -> (Vec<u8>, Option<SocketAddr>) {
        match self.client.call(&Call::Receive(self.number)) {
            Answer::Data(data, from) => (data, from),
            other => panic!("recvfrom: {other:?}"),
        }
    }

    /// getpeername().
    pub(crate) fn peer(&self) -> String {
        self.address(Call::Peer(self.number))
    }

    /// getsockname().
    pub(crate) fn local(&self) -> String {
        self.address(Call::Local(self.number))
    }
}

impl Drop for Remote<'_> {
    fn drop(&mut self) {
        // A test that already fails may have lost its process.
        if !std::thread::panicking() {
            let _ = self.done(Call::Close(self.number));
        }
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// True in the captured process.
pub(crate) fn is_wanted() -> bool {
    std::env::var_os(WANTED).is_some()
}

/// The captured process: answers calls until its input ends.
pub(crate) fn serve() -> ExitCode {
    let mut state = State::default();
    for line in io::stdin().lines() {
        let Ok(line) = line else { break };
        let call = serde_json::from_str(&line).expect("a call");
        let answer = state.answer(call).unwrap_or_else(|error| match error.raw_os_error() {
            Some(errno) => Answer::Errno(errno),
            None => Answer::Failed(error.to_string()),
        });
        println!("{}", serde_json::to_string(&answer).expect("plain data"));
    }
    ExitCode::SUCCESS
}

#[derive(Default)]
struct State {
    sockets: HashMap<u32, Socket>,
    last: u32,
    programs: Option<Programs>,
}

impl State {
    fn answer(&mut self, call: Call) -> io::Result<Answer> {
        match call {
            Call::Socket(kind) => {
                let socket = open(kind)?;
                socket.set_read_timeout(Some(DEADLINE))?;
                self.last += 1;
                self.sockets.insert(self.last, socket);
                return Ok(Answer::Socket(self.last));
            }
            Call::Close(number) => drop(self.sockets.remove(&number)),
            Call::Bind(number, to) => {
                self.socket(number)?.set_reuse_address(true)?;
                self.socket(number)?.bind(&to.into())?;
            }
            Call::BindDevice(number, device) => self.socket(number)?.bind_device(Some(device.as_bytes()))?,
            Call::Connect(number, to) => self.socket(number)?.connect(&to.into())?,
            Call::Disconnect(number) => disconnect(self.socket(number)?)?,
            Call::FastOpen(number, to, data) => {
                self.socket(number)?.send_to_with_flags(&data, &to.into(), libc::MSG_FASTOPEN)?;
            }
            Call::Send(number, data) => drop(self.socket(number)?.send(&data)?),
            Call::SendTo(number, to, data) => drop(self.socket(number)?.send_to(&data, &to.into())?),
            Call::Receive(number) => {
                let mut buffer = [MaybeUninit::uninit(); 512];
                let (length, from) = self.socket(number)?.recv_from(&mut buffer)?;
                // SAFETY: recvfrom() wrote that many bytes.
                let data = buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
                return Ok(Answer::Data(data, from.as_socket()));
            }
            Call::Peer(number) => return Ok(Answer::Address(inet(&self.socket(number)?.peer_addr()?)?)),
            Call::Local(number) => return Ok(Answer::Address(inet(&self.socket(number)?.local_addr()?)?)),
            Call::ConnectOften(to, count) => {
                for _ in 0..count {
                    let socket = open(if to.is_ipv4() { Kind::Tcp4 } else { Kind::Tcp6 })?;
                    socket.connect(&to.into())?;
                }
            }
            Call::Ask(all, threads) => ask(&all, threads)?,
            Call::Steer(cgroup, pins) => {
                let pins = pins.map(|pins| Pins::beside(&pins)).transpose().map_err(io::Error::other)?;
                let programs = Programs::load(pins).map_err(io::Error::other)?;
                if let Some(cgroup) = cgroup {
                    attach(&programs, &cgroup).map_err(io::Error::other)?;
                }
                self.programs = Some(programs);
            }
        }
        Ok(Answer::Done)
    }

    fn socket(&self, number: u32) -> io::Result<&Socket> {
        self.sockets.get(&number).ok_or_else(|| io::Error::other("no such socket"))
    }
}

fn open(kind: Kind) -> io::Result<Socket> {
    let domain = match kind {
        Kind::Tcp4 | Kind::Udp4 | Kind::Mptcp4 => Domain::IPV4,
        Kind::Tcp6 | Kind::Udp6 | Kind::Mptcp6 => Domain::IPV6,
    };
    match kind {
        Kind::Tcp4 | Kind::Tcp6 => Socket::new(domain, Type::STREAM, Some(Protocol::TCP)),
        Kind::Udp4 | Kind::Udp6 => Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)),
        Kind::Mptcp4 | Kind::Mptcp6 => Socket::new(domain, Type::STREAM, Some(Protocol::MPTCP)),
    }
}

fn ask(all: &[SocketAddr], threads: usize) -> io::Result<()> {
    // They spin: woken from sleep, one would come long after the other.
    let arrived = AtomicUsize::new(0);
    let one = || {
        let socket = open(Kind::Udp4)?;
        let send = |(to, round): (&SocketAddr, usize)| {
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < round * threads {
                std::hint::spin_loop();
            }
            socket.send_to(b"?", &(*to).into()).map(drop)
        };
        // All rounds, whatever happens: the others wait for this thread.
        let sent: Vec<_> = all.iter().zip(1..).map(send).collect();
        sent.into_iter().collect()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })
}

fn attach(programs: &Programs, cgroup: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    use dworker::steer::kernel::Kernel;
    let listener = std::net::TcpListener::bind((IpAddr::from([127, 0, 0, 1]), 0))?;
    programs.set_listeners(listener.local_addr()?.port(), 0)?;
    programs.attach(&probe::cgroups(&[cgroup.to_owned()])?)?;
    // Kept open: a daemon that is killed takes its listener with it.
    std::mem::forget(OwnedFd::from(listener));
    Ok(())
}

fn inet(address: &SockAddr) -> io::Result<SocketAddr> {
    address.as_socket().ok_or_else(|| io::Error::other("not an internet address"))
}

fn disconnect(socket: &Socket) -> io::Result<()> {
    // SAFETY: an all-zero `sockaddr` is valid, and its family is `AF_UNSPEC`.
    let unspecified: libc::sockaddr = unsafe { std::mem::zeroed() };
    // SAFETY: the address lives across the call and has the length that is given.
    let failed = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            &raw const unspecified,
            size_of::<libc::sockaddr>() as libc::socklen_t,
        )
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
