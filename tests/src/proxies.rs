//! Real HTTP proxies, squid and tinyproxy, between the site and everything behind the router.
//!
//! They run on the router, `proxy.corp.example` for the site: the site reaches nothing behind it but TCP port 443.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::User;
use tempfile::TempDir;

use crate::command::Command;
use crate::label::is_alive;
use crate::net;
use crate::pki::Validity;
use crate::process::Process;
use crate::topology::Lab;

/// The proxies' name at the site.
pub const PROXY_NAME: &str = "proxy.corp.example";
/// The user that a proxy knows, and the password, as a URL has them.
pub const PROXY_LOGIN: &str = "worker:open%2es3same";
/// What no message may show of it.
pub const PROXY_PASSWORD: &str = "open.s3same";

const START: Duration = Duration::from_secs(30);
/// Where squid keeps what its processes share; each name begins with that of its service.
const SHARED_MEMORY: &str = "/dev/shm";
const SERVICE: &str = "dwlabsquid";

/// The program of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyKind {
    /// Debian's squid: its answers tell the cause in a header of its own.
    Squid,
    /// Debian's tinyproxy: HTTP/1.0 at times, and one status for all that it can't reach.
    Tinyproxy,
}

/// What a proxy asks at one of its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Nothing.
    Open,
    /// A user and a password ([`PROXY_LOGIN`]).
    Login,
    /// Nobody gets through.
    Closed,
    /// TLS; squid only.
    Secured,
}

impl Door {
    const ALL: [Door; 4] = [Door::Open, Door::Login, Door::Closed, Door::Secured];

    fn port(self) -> u16 {
        match self {
            Door::Open => 3128,
            Door::Login => 3129,
            Door::Closed => 3130,
            Door::Secured => 3131,
        }
    }
}

/// A proxy with all its ports. Dropping it stops it.
#[derive(Debug)]
pub struct HttpProxy {
    commands: Vec<Command>,
    processes: Vec<Process>,
    /// What a process says once it listens, and how often.
    ready: (&'static str, usize),
    /// Where squid writes requests down; tinyproxy prints them.
    log: Option<PathBuf>,
    /// squid's service, whose shared memory a killed one leaves.
    service: Option<String>,
    _directory: TempDir,
}

impl Lab {
    /// Starts a proxy on the router.
    pub fn http_proxy(&self, kind: ProxyKind) -> Result<HttpProxy> {
        // Beside the lab's own directory, which is root's alone: squid insists on being somebody else.
        let directory = tempfile::Builder::new().prefix("dwlab-proxy-").tempdir()?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        let (commands, ready, log, service) = match kind {
            ProxyKind::Squid => {
                let service =
                    format!("{SERVICE}{}x{}", std::process::id(), SEQUENCE.fetch_add(1, Ordering::Relaxed));
                let config = self.squid(directory.path())?;
                let command =
                    self.router().command("squid").args(["-N", "-d1", "-n", &service, "-f"]).arg(config);
                let log = directory.path().join("access.log");
                let times = Door::ALL.len() * net::PROXY.both().len();
                (vec![command], ("Socket connections at", times), Some(log), Some(service))
            }
            ProxyKind::Tinyproxy => {
                let doors = Door::ALL.into_iter().filter(|door| *door != Door::Secured);
                let command = |door| {
                    let config = tinyproxy(directory.path(), door)?;
                    Ok(self.router().command("tinyproxy").args(["-d", "-c"]).arg(config))
                };
                let commands = doors.map(command).collect::<Result<Vec<_>>>()?;
                (commands, ("Accepting connections", 1), None, None)
            }
        };
        let mut proxy =
            HttpProxy { commands, processes: Vec::new(), ready, log, service, _directory: directory };
        proxy.start()?;
        Ok(proxy)
    }

    fn squid(&self, directory: &Path) -> Result<PathBuf> {
        let at = |name: &str| directory.join(name);
        let identity = self.pki().issue(&[PROXY_NAME], Validity::Current)?;
        fs::copy(&identity.certificate, at("tls.crt"))?;
        fs::copy(&identity.key, at("tls.key"))?;
        // `openssl passwd -apr1` of the password.
        fs::write(at("users"), "worker:$apr1$dworker1$TmsXW16kohhNy4iRt11mq.\n")?;
        let [v4, v6] = net::PROXY.both();
        let mut text = String::new();
        for address in [v4, v6] {
            for door in Door::ALL {
                let (host, port) = (bracketed(address), door.port());
                text += &match door {
                    Door::Secured => format!(
                        "https_port {host}:{port} tls-cert={0}/tls.crt tls-key={0}/tls.key\n",
                        directory.display()
                    ),
                    _ => format!("http_port {host}:{port}\n"),
                };
            }
        }
        text += &format!(
            "pid_filename none\ncoredump_dir none\nvisible_hostname proxy\ncache deny all\nshutdown_lifetime 0 seconds\n\
             logformat lab %rm %ru %>Hs\naccess_log stdio:{0}/access.log lab\nbuffered_logs off\ncache_log {0}/cache.log\n\
             auth_param basic program /usr/lib/squid/basic_ncsa_auth {0}/users\n\
             acl login localport {1}\nacl closed localport {2}\nacl known proxy_auth REQUIRED\n\
             http_access deny closed\nhttp_access allow login known\nhttp_access deny login\nhttp_access allow all\n",
            directory.display(),
            Door::Login.port(),
            Door::Closed.port()
        );
        fs::write(at("squid.conf"), text)?;
        let user = User::from_name("proxy")?.context("Debian's user `proxy` is missing: install squid")?;
        let (uid, gid) = (Some(user.uid.as_raw()), Some(user.gid.as_raw()));
        for name in ["", "tls.crt", "tls.key", "users"] {
            chown(at(name), uid, gid).with_context(|| format!("giving {name} to squid's user"))?;
        }
        Ok(at("squid.conf"))
    }
}

static SEQUENCE: AtomicU32 = AtomicU32::new(0);

fn tinyproxy(directory: &Path, door: Door) -> Result<PathBuf> {
    let path = directory.join(format!("{door:?}.conf"));
    let [v4, v6] = net::PROXY.both();
    let mut text = format!(
        "Port {}\nListen {v4}\nListen {v6}\nTimeout 600\nMaxClients 200\nLogLevel Info\n",
        door.port()
    );
    match door {
        Door::Login => text += &format!("BasicAuth worker {PROXY_PASSWORD}\n"),
        // To no port that anybody asks for.
        Door::Closed => text += "ConnectPort 1\n",
        Door::Open | Door::Secured => {}
    }
    fs::write(&path, text)?;
    Ok(path)
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

impl HttpProxy {
    /// What `proxy_address` takes for this port, with `login@` where there is one.
    pub fn url(door: Door, login: &str) -> String {
        let scheme = if door == Door::Secured { "https" } else { "http" };
        let at = if login.is_empty() { "" } else { "@" };
        format!("{scheme}://{login}{at}{PROXY_NAME}:{}", door.port())
    }

    /// Starts it, at first or after [`HttpProxy::kill9`].
    pub fn start(&mut self) -> Result<()> {
        sweep_shared_memory(self.service.as_deref());
        for command in &self.commands {
            let process = command.clone().spawn()?;
            let (line, mut times) = self.ready;
            process.wait_for(line, START, |said| {
                times -= usize::from(said.contains(line));
                times == 0
            })?;
            self.processes.push(process);
        }
        Ok(())
    }

    /// Ends it as a crash would.
    pub fn kill9(&mut self) -> Result<()> {
        for mut process in self.processes.drain(..) {
            process.kill9()?;
        }
        Ok(())
    }

    /// All that it has logged of requests.
    pub fn log(&self) -> String {
        let said: Vec<String> = self.processes.iter().map(Process::stdout).collect();
        let written = self.log.as_ref().and_then(|log| fs::read_to_string(log).ok());
        written.unwrap_or_default() + &said.concat()
    }
}

impl Drop for HttpProxy {
    fn drop(&mut self) {
        // At once: squid takes seconds to say goodbye. Nothing here may panic.
        let _ = self.kill9();
        sweep_shared_memory(self.service.as_deref());
    }
}

/// Removes what squids leave in shared memory that were killed: our own, and those of dead programs.
fn sweep_shared_memory(own: Option<&str>) {
    for entry in fs::read_dir(SHARED_MEMORY).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(SERVICE).and_then(|rest| rest.split('x').next()?.parse().ok());
        let is_own = own.is_some_and(|own| name.strip_prefix(own).is_some_and(|rest| rest.starts_with('-')));
        if is_own || owner.is_some_and(|owner| !is_alive(owner)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
