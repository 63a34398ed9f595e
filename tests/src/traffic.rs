//! Servers and clients for bytes: what they do, and what they report.
//!
//! They run as processes of their own (`lab-tool`), because a process is what steering captures. This
//! module is the half that a test sees; both halves share these types.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::command::Command;
use crate::daemon::binary;
use crate::host::Host;
use crate::net::Dual;
use crate::process::Process;

const START: Duration = Duration::from_secs(10);

/// What a server does with each connection. Each ends with a [`Report`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Serve {
    /// Sends back what comes, and its FIN after the client's.
    Echo,
    /// Reads to the client's FIN, then answers with the hexadecimal SHA-256 of it.
    Hash,
    /// Sends these bytes and its FIN at once, then reads to the client's FIN.
    Source {
        /// The stream to send.
        seed: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// Reads nothing, sends nothing, and keeps the connection until it is killed.
    Stall,
    /// Reads so many bytes, then resets the connection.
    Reset {
        /// How many bytes to read first.
        after: u64,
    },
    /// Awaits one byte, then sends these and resets the connection at once: what has left is on its way, the
    /// rest is lost.
    Slam {
        /// The stream to send.
        seed: u64,
        /// Its length in bytes.
        length: u64,
    },
}

/// A server and where it listens: what `lab-tool serve` gets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Service {
    /// What it does.
    pub serve: Serve,
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
}

/// Which socket a client uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Family {
    /// What the resolver answers first, then the others in turn.
    #[default]
    Any,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// IPv4 addresses through an IPv6 socket: `::ffff:10.77.3.30`.
    Mapped,
}

/// In which order a client sends and reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Both at once.
    #[default]
    Parallel,
    /// All is sent and the FIN with it, then it reads.
    SendFirst,
    /// It reads to the server's FIN, and only then sends.
    ReadFirst,
}

/// A client: what it connects to and what it sends. It always reads to the end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Connect {
    /// The host, by name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Which socket.
    pub family: Family,
    /// How many bytes to send.
    pub send: u64,
    /// Which bytes.
    pub seed: u64,
    /// In which order.
    pub order: Order,
    /// How many connections at once.
    pub count: u32,
    /// How many of these in a row.
    pub times: u32,
    /// Whether to read only after SIGUSR1.
    pub stall: bool,
    /// The user that it is, where that is not the caller.
    pub user: Option<u32>,
}

/// What one end of a connection saw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Why there was no connection: the errno of `connect()` such as `ECONNREFUSED`, or the
    /// resolver's words.
    pub failure: Option<String>,
    /// How long `connect()` took, in microseconds, all addresses together.
    pub connect_micros: u64,
    /// What `getpeername()` says.
    pub peer: Option<SocketAddr>,
    /// What `getsockname()` says.
    pub local: Option<SocketAddr>,
    /// How many bytes it could send.
    pub sent: u64,
    /// Their SHA-256.
    pub sent_sha256: String,
    /// Why sending ended early: an errno such as `EPIPE`.
    pub send_failure: Option<String>,
    /// How many bytes it got.
    pub received: u64,
    /// Their SHA-256.
    pub received_sha256: String,
    /// What it got, as text, when that is short.
    pub text: Option<String>,
    /// How reading ended: `eof`, or an errno such as `ECONNRESET`. Empty when nothing was read.
    pub end: String,
}

/// A server of bytes. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    process: Process,
}

impl Connect {
    /// A client that sends nothing but its FIN.
    pub fn to(host: impl ToString, port: u16) -> Connect {
        Connect {
            host: host.to_string(),
            port,
            family: Family::default(),
            send: 0,
            seed: 1,
            order: Order::default(),
            count: 1,
            times: 1,
            stall: false,
            user: None,
        }
    }

    /// Chooses the socket's family.
    pub fn family(mut self, family: Family) -> Connect {
        self.family = family;
        self
    }

    /// Sends so many bytes before the FIN.
    pub fn send(mut self, length: u64) -> Connect {
        self.send = length;
        self
    }

    /// Chooses the bytes; 1 unless set. Of several connections, number `n` has the seed plus `n`.
    pub fn seed(mut self, seed: u64) -> Connect {
        self.seed = seed;
        self
    }

    /// Chooses the order of sending and reading.
    pub fn order(mut self, order: Order) -> Connect {
        self.order = order;
        self
    }

    /// Makes so many connections at once.
    pub fn count(mut self, count: u32) -> Connect {
        self.count = count;
        self
    }

    /// Makes so many connections in a row, each the moment the one before has ended.
    pub fn times(mut self, times: u32) -> Connect {
        self.times = times;
        self
    }

    /// Reads nothing until SIGUSR1 comes. Each connection prints `stalled` once it is there.
    pub fn stall(mut self) -> Connect {
        self.stall = true;
        self
    }

    /// The command: put it on a host, and read its output with [`Report::read`].
    pub fn command(&self) -> Result<Command> {
        tool("connect", self)
    }

    /// Runs it captured on `host`; one report for each connection.
    pub fn captured(&self, host: &Host) -> Result<Vec<Report>> {
        Report::read(&host.captured(self.command()?).check()?)
    }

    /// Runs it captured on `host`; the report of its one connection.
    pub fn once(&self, host: &Host) -> Result<Report> {
        let mut reports = self.captured(host)?;
        match (reports.pop(), reports.is_empty()) {
            (Some(report), true) => Ok(report),
            _ => bail!("{self:?} is not one connection"),
        }
    }

    /// Runs it on `host` outside the captured cgroup; one report for each connection.
    pub fn uncaptured(&self, host: &Host) -> Result<Vec<Report>> {
        Report::read(&host.uncaptured(self.command()?).check()?)
    }
}

impl Report {
    /// Asserts that this client of an echo server sent `length` bytes of `seed`, got them back, and then the FIN.
    ///
    /// # Panics
    ///
    /// With `what` in the message, when it is otherwise.
    pub fn assert_echo(&self, seed: u64, length: u64, what: &str) {
        assert_eq!(self.failure, None, "{what}");
        assert_eq!((self.sent, self.send_failure.as_deref()), (length, None), "sent: {what}");
        assert_eq!((self.received, self.end.as_str()), (length, "eof"), "received: {what}");
        assert_eq!(self.received_sha256, Bytes::new(seed, length).sha256(), "{what}");
    }

    /// Reads the reports in what a client or a server printed.
    pub fn read(printed: &str) -> Result<Vec<Report>> {
        let reports = printed.lines().filter(|line| line.starts_with('{'));
        reports.map(|line| serde_json::from_str(line).with_context(|| format!("reading {line}"))).collect()
    }
}

impl Host {
    /// Starts a server on both addresses and waits until it listens.
    pub fn serve(&self, serve: Serve, at: Dual, port: u16) -> Result<Server> {
        let listen = at.both().map(|address| SocketAddr::new(address, port)).to_vec();
        let count = listen.len();
        let process = self.uncaptured(tool("serve", &Service { serve, listen })?).spawn()?;
        let mut listening = 0;
        process.wait_for("listening", START, |line| {
            listening += usize::from(line.starts_with("listening"));
            listening == count
        })?;
        Ok(Server { process })
    }
}

impl Server {
    /// What it saw of each connection that has ended.
    pub fn reports(&self) -> Result<Vec<Report>> {
        Report::read(&self.process.stdout())
    }

    /// Waits until so many connections have ended.
    pub fn wait_for_reports(&self, count: usize, within: Duration) -> Result<Vec<Report>> {
        let mut ended = 0;
        self.process.wait_for(&format!("report {count}"), within, |line| {
            ended += usize::from(line.starts_with('{'));
            ended == count
        })?;
        self.reports()
    }

    /// Waits until so many connections have been accepted.
    pub fn wait_for_connections(&self, count: usize, within: Duration) -> Result<()> {
        let mut accepted = 0;
        self.process
            .wait_for(&format!("connection {count}"), within, |line| {
                accepted += usize::from(line.starts_with("accepted"));
                accepted == count
            })
            .map(drop)
    }

    /// How many connections it has accepted so far.
    pub fn accepted(&self) -> usize {
        self.accepted_from().len()
    }

    /// Where the connections that it has accepted came from.
    pub fn accepted_from(&self) -> Vec<IpAddr> {
        let said = self.process.stdout();
        let peers = said.lines().filter_map(|line| line.strip_prefix("accepted "));
        peers.filter_map(|peer| peer.parse::<SocketAddr>().ok()).map(|peer| peer.ip()).collect()
    }
}

/// A command of the lab's own tool, which gets what to do as JSON.
pub(crate) fn tool(what: &str, task: &impl Serialize) -> Result<Command> {
    Ok(Command::new(binary("lab-tool")?).arg(what).arg(serde_json::to_string(task)?))
}
