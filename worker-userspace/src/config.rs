//! The configuration: a TOML file, or the older product's own, with the environment above it; what is set decides the roles.
//!
//! What must hold: every fault is reported, all at once, one line each, with its place, the key, the value and the
//! remedy; no line ever shows a secret; an unknown key or variable is a fault, because a misspelt `deny` that is silently
//! ignored is a hole in a policy. The environment is handed in, never read from here.
//!
//! What counts, from above: variables (`DWORKER_*`, then `MORPHEUS_*`), the file, systemd's credentials, variables that
//! many programs obey (`https_proxy`), defaults.
//!
//! | file | about |
//! |---|---|
//! | `config.rs` | the structs that the rest of the house reads; from a file to them |
//! | `config/key.rs` | worker keys and their hashes |
//! | `config/fault.rs` | a fault, its line, and what is never shown in one |
//! | `config/schema.rs`, `meant.rs` | which keys there are, and their defaults; what an unknown one was meant to be |
//! | `config/ruby.rs` | scans the older product's file |
//! | `config/environment.rs` | variables, credentials, the host's name |
//! | `config/document.rs` | all of these as one document, each value with its origin |
//! | `config/reader.rs` | walks the document and collects faults |
//! | `config/values.rs`, `url.rs`, `duration.rs` | what single values mean |
//! | `config/sections.rs`, `appliance.rs`, `metrics.rs`, `proxy.rs`, `upstream.rs` | reads each section, judges them together |
//! | `config/files.rs` | reads and checks the files that are named |
//! | `config/effective.rs`, `template.rs` | what holds, for people; the commented file |

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use toml::de::DeTable;

use crate::target::{Host, Pattern};

mod appliance;
mod document;
mod duration;
mod effective;
mod environment;
mod fault;
mod files;
mod key;
mod meant;
mod metrics;
mod proxy;
mod reader;
mod ruby;
mod schema;
mod sections;
mod template;
mod upstream;
mod url;
mod values;

pub use document::Origin;
pub use effective::{Effective, Setting};
pub use environment::{Environment, UNIT_VARIABLE};
pub use fault::{Fault, Faults};
pub use files::{FileCause, FileError, Fingerprint, Identity, Password, read_roots, read_roots_directory};
pub(crate) use key::secret;
pub use key::{ApiKey, Key, KeyError, KeyHash};
pub use template::{import, template};
pub use upstream::{PasswordSource, ProxyLogin, Upstream};

// What the registry judges by the same rules.
pub(crate) use fault::{Wrong, holds_secret, mask_secrets, quote};
pub use url::ApiUrl;
pub(crate) use values::{group_name, is_number, pattern};

pub use schema::{PINS, SOCKET, credentials};

use document::Origins;
use reader::{Place, Reader};

/// Where the configuration is looked for where nobody names it: ours, then that of the older product.
pub const PLACES: [&str; 2] = ["/etc/dworker/dworker.toml", "/etc/morpheus/morpheus-worker.rb"];

/// A valid configuration, and what its administrator should know all the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// What it says.
    pub config: Config,
    /// What is allowed but hardly wanted, in the order of the file: plaintext, secrets that others may read.
    pub warnings: Vec<Fault>,
    /// Each key, what holds for it, and who says so.
    pub effective: Effective,
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
    /// How long a process that was replaced by a reload lives on for its open streams (`reload_drain`). Default 1 h, at
    /// most 7 days.
    pub reload_drain: Duration,
    /// The log filter in `tracing`'s syntax (`log`), known to parse. Default `info`.
    pub log: String,
    /// How its lines are written (`log_format`). Default text.
    pub log_format: LogFormat,
    /// What Prometheus reads (`[metrics]`).
    pub metrics: Metrics,
    /// The worker role: `appliance_url` with a key.
    pub worker: Option<Worker>,
    /// The appliance role: `[appliance]`.
    pub appliance: Option<Appliance>,
    /// The steering role: `[steer]`; only together with one of the others.
    pub steer: Option<Steer>,
    /// The entries for clients that know proxies: `[proxy]`; only together with one of the first two.
    pub proxy: Option<Proxy>,
}

/// How the log's lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; to the journal with fields.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// What Prometheus reads (`[metrics]`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metrics {
    /// Where it is served (`listen`), no address twice; nowhere where it is empty. Default [`Metrics::ADDRESS`].
    pub listen: Vec<SocketAddr>,
}

impl Metrics {
    /// The default.
    pub const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 19464);
}

/// Finds the configuration where nobody names it: the first of `places` that is there and sets anything, since a
/// package installs one that is all comments. None: nothing is there, and the environment sets something.
pub fn find(places: &[PathBuf], environment: &Environment) -> Option<PathBuf> {
    let sets = |path: &&PathBuf| match files::read_file(path) {
        Ok((bytes, _)) => bytes
            .split(|byte| *byte == b'\n')
            .any(|line| line.trim_ascii_start().first().is_some_and(|first| *first != b'#')),
        // Why it can't be read is told to who reads it.
        Err(cause) => !matches!(cause, FileCause::Missing),
    };
    let found = places.iter().find(sets).or_else(|| places.iter().find(|path| path.exists()));
    match found {
        None if !environment.configures() => places.first(),
        found => found,
    }
    .cloned()
}

/// Reads the configuration as a daemon does, in this process's environment: the one that is named, else the one that is
/// found. The first is what it was read from.
///
/// # Errors
/// As [`Config::read`].
pub fn read(named: Option<&Path>) -> Result<(String, Loaded), Faults> {
    let environment = Environment::of_process();
    let file = named.map(Path::to_owned).or_else(|| find(&PLACES.map(PathBuf::from), &environment));
    let name = file.as_ref().map_or("environment".to_owned(), |file| file.display().to_string());
    Config::read(file.as_deref(), &environment).map(|loaded| (name, loaded))
}

impl Config {
    /// Reads a file of at most 1 MiB, every file that it names, and the environment above it. A file whose name ends in
    /// `.rb` is the older product's. Without a file, the environment says all.
    ///
    /// # Errors
    /// All faults of all of them: first those of the file, in its order.
    pub fn read(file: Option<&Path>, environment: &Environment) -> Result<Loaded, Faults> {
        let Some(path) = file else {
            return Source { name: "environment", text: "", language: Language::Toml }
                .read(environment, Some(0o600));
        };
        let name = path.display().to_string();
        let (text, mode) = text_of(path)?;
        Source { name: &name, text: &text, language: Language::of(path) }.read(environment, Some(mode))
    }

    /// Where it listens, each address with the key that says so.
    pub fn listens(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        let appliance = self.appliance.iter().map(|section| ("appliance.listen", &section.listen));
        let proxy = self.proxy.iter();
        let proxy = proxy.flat_map(|proxy| [("proxy.http", &proxy.http), ("proxy.socks", &proxy.socks)]);
        let all = appliance.chain(proxy).chain([("metrics.listen", &self.metrics.listen)]);
        all.flat_map(|(key, addresses)| addresses.iter().map(move |address| (key, *address)))
    }

    /// The files that are read when the daemon starts, and not again.
    pub fn read_once(&self) -> Vec<&Path> {
        let key = self.worker.iter().filter_map(|worker| match &worker.key {
            KeySource::File(path) => Some(path),
            KeySource::Inline(_) => None,
        });
        let upstream = self.worker.iter().filter_map(|worker| worker.upstream.as_ref()?.login.as_ref());
        let upstream = upstream.filter_map(|login| match &login.password {
            PasswordSource::File(path) => Some(path),
            PasswordSource::Inline(_) => None,
        });
        let entry = self.proxy.iter().filter_map(|proxy| Some(&proxy.login.as_ref()?.password_file));
        key.chain(upstream).chain(entry).map(PathBuf::as_path).collect()
    }

    /// Reads a file and every file that it names, in no environment.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn load(path: &Path) -> Result<Loaded, Faults> {
        Config::read(Some(path), &Environment::default())
    }

    /// Reads a text that came from `file_name`, without looking at the files that it names, in no environment.
    ///
    /// # Errors
    /// All faults of the text, in its order.
    pub fn parse(text: &str, file_name: &str) -> Result<Loaded, Faults> {
        Config::parse_in(text, file_name, &Environment::default())
    }

    /// The same in an environment.
    ///
    /// # Errors
    /// All faults of the text, in its order, and of the environment.
    pub fn parse_in(text: &str, file_name: &str, environment: &Environment) -> Result<Loaded, Faults> {
        Source { name: file_name, text, language: Language::of(Path::new(file_name)) }.read(environment, None)
    }
}

/// A configuration's text, and the mode of its file.
fn text_of(path: &Path) -> Result<(String, u32), Faults> {
    let name = path.display().to_string();
    let only = |text: &str, place, wrong| Err(Reader::new(Origins::new(&name, text)).only(&place, wrong));
    let (bytes, mode) = match files::read_file(path) {
        Ok(read) => read,
        Err(cause) => return only("", Place::file(), cause.wrong()).map_err(Faults::of_files),
    };
    String::from_utf8(bytes).map(|text| (text, mode)).or_else(|error| {
        let valid = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]);
        only(&valid, Place::at(valid.len()), fault::wrong("not UTF-8", "save the file in UTF-8"))
    })
}

/// What a file is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Language {
    Toml,
    /// The older product's file.
    Ruby,
}

impl Language {
    fn of(path: &Path) -> Language {
        match path.extension().is_some_and(|extension| extension == "rb") {
            true => Language::Ruby,
            false => Language::Toml,
        }
    }
}

/// A file's text.
struct Source<'t> {
    name: &'t str,
    text: &'t str,
    language: Language,
}

impl Source<'_> {
    /// With the mode of the file the named files are checked too.
    fn read(&self, environment: &Environment, mode: Option<u32>) -> Result<Loaded, Faults> {
        let text = self.text.strip_prefix('\u{feff}').unwrap_or(self.text);
        let mut reader = Reader::new(Origins::new(self.name, text));
        let mut table = match self.language {
            Language::Toml => {
                let (document, errors) = DeTable::parse_recoverable(text);
                if !reader.syntax(document.get_ref(), errors) {
                    return Err(reader.faults());
                }
                document.into_inner()
            }
            Language::Ruby => {
                let (table, broken) = ruby::scan(text);
                broken.into_iter().for_each(|broken| reader.broken(broken));
                table
            }
        };
        let (assignments, unknown) = environment.assignments();
        document::complete(&mut table, reader.origins(), environment, &assignments);
        unknown.into_iter().for_each(|(variable, wrong)| reader.variable(variable, wrong));
        let (config, named) = sections::read(&mut reader, &table);
        let right = !reader.is_faulty();
        if let Some(mode) = mode {
            files::check(&mut reader, &named, mode, environment);
        }
        reader.finish(config, &table).map_err(|faults| if right { faults.of_files() } else { faults })
    }
}

/// The worker role.
#[derive(Debug, Clone, PartialEq)]
pub struct Worker {
    /// Where the appliance reaches this worker (`worker_url`). Default `https://` and the host's name; none where that
    /// name can't stand in a URL.
    pub url: Option<WorkerUrl>,
    /// Where the worker dials (`appliance_url`).
    pub appliance: ApplianceUrl,
    /// The key of a VDI gateway (`apikey` or `apikey_file`), which nobody needs yet.
    pub api_key: Option<ApiKeySource>,
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
    /// The proxy that it goes through (`proxy_address`). Default none.
    pub upstream: Option<Upstream>,
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

/// Reads a log filter as the configuration has it (`log`).
///
/// # Errors
/// What is wrong, and what to do.
pub fn parse_log_filter(text: &str) -> Result<String, String> {
    values::log_filter(text).map_err(|wrong| format!("{}: {}", wrong.problem, wrong.remedy))
}

/// Where an appliance reaches a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerUrl {
    /// Name or address.
    pub host: Host,
    /// TCP port. Default 443.
    pub port: u16,
}

/// Where the key of a VDI gateway stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiKeySource {
    /// In the configuration itself (`apikey`).
    Inline(ApiKey),
    /// Alone in another file (`apikey_file`), white space around it ignored.
    File(PathBuf),
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
    /// The captured cgroups, absolute or relative to the cgroup v2 root (`cgroups`), which is `/`; never empty. One that
    /// does not exist is waited for.
    pub cgroups: Vec<PathBuf>,
    /// Cgroups below them that are not captured, with all below those (`exclude_cgroups`). Default none.
    pub exclude_cgroups: Vec<PathBuf>,
    /// Users whose processes are not captured (`exclude_users`). Default none.
    pub exclude_users: Vec<User>,
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
    /// Whether connections to addresses are refused while no daemon is there (`addresses_without_daemon = "closed"`), as
    /// those to names always are. Default no: they go direct.
    pub addresses_closed: bool,
    /// Where the kernel keeps what outlives the daemon (`pins`). Default `/sys/fs/bpf/dworker`.
    pub pins: PathBuf,
}

/// A user of this host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum User {
    /// By name; whether there is one is found out at start.
    Name(String),
    /// By number.
    Id(u32),
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
