//! The configuration: one TOML file, and what is in it decides the roles.
//!
//! What must hold: every fault of a file is reported, all at once, one line each, with its place, the key,
//! the value and the remedy; no line ever shows a secret; an unknown key is a fault, because a misspelt
//! `deny` that is silently ignored is a hole in a policy. The environment is not read here.
//!
//! | file | about |
//! |---|---|
//! | `config.rs` | the structs that the rest of the house reads, and their defaults |
//! | `config/key.rs` | worker keys and their hashes |
//! | `config/fault.rs` | a fault, its line, and what is never shown in one |
//! | `config/schema.rs` | which keys there are; what an unknown one was meant to be |
//! | `config/reader.rs` | walks TOML and collects faults |
//! | `config/values.rs`, `url.rs`, `duration.rs` | what single values mean |
//! | `config/sections.rs`, `appliance.rs`, `proxy.rs` | reads each section, judges them together |
//! | `config/files.rs` | reads and checks the files that are named |

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use toml::de::DeTable;

use crate::target::{Host, Pattern};

mod appliance;
mod duration;
mod fault;
mod files;
mod key;
mod proxy;
mod reader;
mod schema;
mod sections;
mod url;
mod values;

pub use fault::{Fault, Faults};
pub use files::{FileCause, FileError, Fingerprint, Identity, Password, read_roots, read_roots_directory};
pub(crate) use key::secret;
pub use key::{Key, KeyError, KeyHash};

// What the registry judges by the same rules.
pub(crate) use fault::{Wrong, holds_secret, mask_secrets, quote};
pub use url::ApiUrl;
pub(crate) use values::{group_name, is_number, pattern};

use reader::{Place, Reader};

/// A valid configuration, and what its administrator should know all the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// What the file says.
    pub config: Config,
    /// What is allowed but hardly wanted, in the order of the file: plaintext, secrets that others may read.
    pub warnings: Vec<Fault>,
}

/// Everything that one file says, valid as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where the daemon keeps what must survive it (`state_dir`). Default `/var/lib/dworker`.
    pub state_dir: PathBuf,
    /// The socket that `dworker status` asks (`control_socket`). Default `/run/dworker/control.sock`; at most
    /// 107 bytes long, as the kernel's `sun_path` wants it.
    pub control_socket: PathBuf,
    /// How long a stop waits for open streams (`drain`). Default 10 s, at most one hour; 0 cuts at once.
    pub drain: Duration,
    /// The log filter in `tracing`'s syntax (`log`), known to parse. Default `info`.
    pub log: String,
    /// The worker role: `appliance_url` with a key.
    pub worker: Option<Worker>,
    /// The appliance role: `[appliance]`.
    pub appliance: Option<Appliance>,
    /// The steering role: `[steer]`; only together with one of the others.
    pub steer: Option<Steer>,
    /// The entries for clients that know proxies: `[proxy]`; only together with one of the first two.
    pub proxy: Option<Proxy>,
}

impl Config {
    /// Reads a file of at most 1 MiB, and every file that it names.
    ///
    /// # Errors
    /// All faults of the file and of the files that it names, in the order of the file.
    pub fn load(path: &Path) -> Result<Loaded, Faults> {
        let name = path.display().to_string();
        let (bytes, mode) = match files::read_file(path) {
            Ok(read) => read,
            Err(cause) => return Err(Reader::new(&name, "").only(&Place::file(), cause.wrong())),
        };
        match std::str::from_utf8(&bytes) {
            Ok(text) => Config::read(text, &name, Some(mode)),
            Err(error) => {
                let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
                let wrong = fault::wrong("not UTF-8, as TOML is", "save the file in UTF-8");
                Err(Reader::new(&name, &valid).only(&Place::at(valid.len()), wrong))
            }
        }
    }

    /// Reads a text that came from `file_name`, without looking at the files that it names.
    ///
    /// # Errors
    /// All faults of the text, in its order.
    pub fn parse(text: &str, file_name: &str) -> Result<Loaded, Faults> {
        Config::read(text, file_name, None)
    }

    /// With the mode of the file the named files are checked too.
    fn read(text: &str, file_name: &str, mode: Option<u32>) -> Result<Loaded, Faults> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let (document, errors) = DeTable::parse_recoverable(text);
        let mut reader = Reader::new(file_name, text);
        if !reader.syntax(document.get_ref(), errors) {
            return Err(reader.faults());
        }
        let (config, named) = sections::read(&mut reader, document.get_ref());
        if let Some(mode) = mode {
            files::check(&mut reader, &named, mode);
        }
        reader.finish(config)
    }
}

/// The worker role.
#[derive(Debug, Clone, PartialEq)]
pub struct Worker {
    /// Where the worker dials (`appliance_url`).
    pub appliance: ApplianceUrl,
    /// How it authenticates (`worker_key` or `worker_key_file`).
    pub key: KeySource,
    /// PEM certificates trusted beside the system's roots (`ca_file`). Default none.
    pub ca_file: Option<PathBuf>,
    /// A directory of such, `*.pem`, `*.crt` and `*.cer` (`ca_dir`). Default none.
    pub ca_dir: Option<PathBuf>,
    /// What it shows an appliance that asks (`client_certificate`, `client_key`). Default nothing.
    pub identity: Option<TlsFiles>,
    /// How many websockets one session has (`lanes`), 1 to 8. Default 2.
    pub lanes: u8,
    /// What the worker itself says of what it may dial (`[egress]`). Default: all that the appliance says.
    pub egress: Egress,
}

/// An appliance's address, as a worker dials it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplianceUrl {
    /// Name or address; also what the certificate must say.
    pub host: Host,
    /// TCP port. Default 443, or 80 in plaintext.
    pub port: u16,
    /// `ws://` instead of `wss://`: only where the file says `http://` *and* `insecure_plaintext = true`.
    pub plaintext: bool,
}

impl ApplianceUrl {
    /// Reads `https://host[:port]` as a command takes it; `http://` only where `insecure_plaintext` says so.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn parse(text: &str, insecure_plaintext: bool) -> Result<ApplianceUrl, String> {
        url::parse(text, insecure_plaintext, url::Plaintext::OPTION)
            .map_err(|wrong| format!("{}: {}", wrong.problem, wrong.remedy))
    }
}

/// Reads a duration as the configuration has them (`10s`, `7d`), at most `most`.
///
/// # Errors
/// What is wrong, and what to do.
pub fn parse_duration(text: &str, most: Duration) -> Result<Duration, String> {
    let parsed = duration::parse(text, &(Duration::ZERO..=most));
    parsed.map_err(|wrong| format!("{}: {}", wrong.problem, wrong.remedy))
}

/// Where the worker key stands.
#[derive(Debug, Clone, PartialEq)]
pub enum KeySource {
    /// In the file itself (`worker_key`).
    Inline(Key),
    /// Alone in another file (`worker_key_file`), white space around it ignored.
    File(PathBuf),
}

/// A worker's own part of its egress policy (`[egress]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Egress {
    /// Of what the appliance says, only this may be dialled; where it says nothing, this (`allow`). Never empty;
    /// `None`: all that the appliance says.
    pub allow: Option<Vec<Pattern>>,
    /// What may not; wins over both. Default none.
    pub deny: Vec<Pattern>,
    /// How long one dial may take (`connect_timeout`), 100 ms to 2 min. Default 10 s.
    pub connect_timeout: Duration,
}

/// The appliance role (`[appliance]`).
#[derive(Debug, Clone, PartialEq)]
pub struct Appliance {
    /// Where it listens (`listen`); never empty, no address twice. A `[::]` entry means IPv6 only, so that
    /// `0.0.0.0` can stand beside it.
    pub listen: Vec<SocketAddr>,
    /// Its TLS identity; `None` only where the file says `insecure_plaintext = true`.
    pub tls: Option<TlsFiles>,
    /// The client certificates that it takes; `None`: it asks for none.
    pub clients: Option<ClientCertificates>,
    /// The worker groups that stand in the file (`[[appliance.groups]]`); names and keys are unique, and so is
    /// each pattern. Others are in the registry.
    pub groups: Vec<Group>,
    /// How long a node that was lost must be up before it is primary again (`failback`), at most one hour; doubled
    /// with each loss. Default 60 s.
    pub failback: Duration,
    /// How long events are kept (`events_age`), 1 to 3650 days. Default 90 days.
    pub events_age: Duration,
    /// How many events are kept (`events_max`), 1,000 to 10,000,000. Default 1,000,000.
    pub events_max: u64,
}

/// The files of a TLS identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsFiles {
    /// In PEM.
    Pem {
        /// The certificate, then the rest of its chain (`certificate`).
        certificate: PathBuf,
        /// The private key, PKCS#8, PKCS#1 or SEC1 (`key`).
        key: PathBuf,
    },
    /// All in one file.
    Pkcs12 {
        /// The file (`pkcs12`).
        file: PathBuf,
        /// Holds its password alone (`pkcs12_password_file`). `None`: the password is empty.
        password_file: Option<PathBuf>,
    },
}

/// The client certificates that an appliance takes from its workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificates {
    /// PEM: who signs them (`client_ca_file`).
    pub ca_file: PathBuf,
    /// Whether a worker must have one (`client_certificates`). Default yes.
    pub required: bool,
}

/// The workers that share one key.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// 1 to 63 of `a-z`, `0-9` and `-`; unique.
    pub name: String,
    /// SHA-256 of the worker key (`key_sha256`); unique.
    pub key: KeyHash,
    /// What its workers carry (`proxy_hosts`); never empty.
    pub proxy_hosts: Vec<Pattern>,
    /// Whether its workers may open streams to other groups' proxy hosts (`may_open`). Default no.
    pub may_open: bool,
}

/// The steering role (`[steer]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Steer {
    /// The captured cgroups, absolute or relative to the cgroup v2 root (`cgroups`); never empty. Whether they
    /// exist is found out at start.
    pub cgroups: Vec<PathBuf>,
    /// What is captured on a host without `[appliance]` (`proxy_hosts`); empty on an appliance, where the
    /// groups say it: ask [`Config::steered`].
    pub proxy_hosts: Vec<Pattern>,
    /// Synthetic IPv4 addresses (`synthetic4`), prefix length 8 to 28. Default `240.64.0.0/16`.
    pub synthetic4: Ipv4Net,
    /// Synthetic IPv6 addresses (`synthetic6`), prefix length 32 to 112. Default `2001:2::/48`.
    pub synthetic6: Ipv6Net,
    /// The address families that names are answered with (`families`). Default IPv4.
    pub families: Families,
    /// How long a failed dial is answered in `connect()` at once (`down_for`), 0 to 60 s. Default 2 s.
    pub down_for: Duration,
}

/// The entries for clients that know proxies (`[proxy]`). Whoever has no login is let in only on loopback, or where
/// the file says `allow_anonymous = true`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Where HTTP `CONNECT` is taken (`http`). Not both are empty, and no address stands twice.
    pub http: Vec<SocketAddr>,
    /// Where SOCKS5 is taken (`socks`).
    pub socks: Vec<SocketAddr>,
    /// Who is let in; `None`: everybody.
    pub login: Option<Login>,
}

/// Who is let in at the entries for clients that know proxies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The user (`user`): 1 to 255 bytes, no colon, nothing that can't be printed.
    pub user: String,
    /// Holds the password alone (`password_file`).
    pub password_file: PathBuf,
}

/// A set of address families, never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Families {
    /// Names have A records.
    pub ipv4: bool,
    /// Names have AAAA records.
    pub ipv6: bool,
}
