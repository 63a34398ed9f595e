//! Tools that any machine can install, each as its manual has it.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tests::{Command, Host, Lab, Process};

use super::{Carrier, End, Peer, Way};
use crate::world::{Place, TARGET};

const START: Duration = Duration::from_secs(10);

/// Starts both ends, the server first; each is up when it listens.
fn both<'a>(
    name: &str,
    way: Way<'a>,
    (near, far): (SocketAddr, SocketAddr),
    [server, client]: [Command; 2],
) -> Result<Carrier<'a>> {
    let mut ends = Vec::new();
    for (host, command, at) in [(way.far, server, far), (way.near, client, near)] {
        let process = host.uncaptured(command).spawn()?;
        listening(host, &process, at).with_context(|| format!("starting {name}"))?;
        ends.push(End::Process(process));
    }
    Ok(Carrier { name: name.into(), place: Place::plain(way.near), to: near, ends })
}

/// Waits until somebody listens there.
pub(super) fn listening(host: &Host, process: &Process, at: SocketAddr) -> Result<()> {
    let began = Instant::now();
    while host.within(|| std::net::TcpStream::connect(at))?.is_err() {
        if began.elapsed() > START || !process.is_running() {
            bail!("nobody listens at {at}: {}{}", process.stdout(), process.stderr());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // Who found its port taken is gone, and somebody else was asked.
    if !process.is_running() {
        bail!("it ended: {}{}", process.stdout(), process.stderr());
    }
    Ok(())
}

/// nginx's `stream` with TLS between its two halves.
pub(crate) fn nginx<'a>(lab: &Lab, way: Way<'a>) -> Result<Carrier<'a>> {
    let (near, far) = way.ports(1);
    let identity = lab.appliance_identity()?;
    let directory = way.near.directory();
    let halves = [
        format!(
            "listen {far} ssl; proxy_pass {TARGET}; ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.3;",
            identity.certificate.display(),
            identity.key.display()
        ),
        format!(
            "listen {near}; proxy_pass {far}; proxy_ssl on; proxy_ssl_protocols TLSv1.3; proxy_ssl_verify on; \
             proxy_ssl_name appliance.example; proxy_ssl_trusted_certificate {};",
            lab.pki().ca_file().display()
        ),
    ];
    let half = |half: &str, server: String| -> Result<Command> {
        let own = directory.join(format!("nginx-{half}"));
        fs::create_dir_all(&own)?;
        let file = own.join("nginx.conf");
        let text = format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\nuser root;\ndaemon off;\npid {0}/pid;\n\
             error_log stderr error;\nworker_processes 2;\nworker_rlimit_nofile 20000;\nevents {{ worker_connections 20000; }}\n\
             stream {{ tcp_nodelay on; server {{ {server} }} }}\n",
            own.display()
        );
        fs::write(&file, text)?;
        Ok(Command::new("/usr/sbin/nginx").arg("-p").arg(&own).arg("-c").arg(&file))
    };
    let [far_half, near_half] = halves;
    both("nginx", way, (near, far), [half("far", far_half)?, half("near", near_half)?])
}

/// stunnel at both ends.
pub(crate) fn stunnel<'a>(lab: &Lab, way: Way<'a>) -> Result<Carrier<'a>> {
    let (near, far) = way.ports(2);
    let identity = lab.appliance_identity()?;
    let common = "foreground = yes\npid =\nsyslog = no\ndebug = err\nsslVersion = TLSv1.3\nsocket = l:TCP_NODELAY=1\n\
                  socket = r:TCP_NODELAY=1\n[it]\n";
    let halves = [
        format!(
            "accept = {far}\nconnect = {TARGET}\ncert = {}\nkey = {}\n",
            identity.certificate.display(),
            identity.key.display()
        ),
        format!(
            "client = yes\naccept = {near}\nconnect = {far}\nverifyChain = yes\nCAfile = {}\n",
            lab.pki().ca_file().display()
        ),
    ];
    let half = |half: &str, text: String| -> Result<Command> {
        let file = way.near.directory().join(format!("stunnel-{half}.conf"));
        fs::write(&file, format!("{common}{text}"))?;
        Ok(Command::new("stunnel4").arg(&file))
    };
    let [far_half, near_half] = halves;
    both("stunnel", way, (near, far), [half("far", far_half)?, half("near", near_half)?])
}

/// OpenSSH's `-L`: many connections in one, as dworker has it.
pub(crate) fn ssh(way: Way<'_>) -> Result<Carrier<'_>> {
    let (near, far) = way.ports(3);
    let own = way.near.directory().join("ssh");
    fs::create_dir_all(&own)?;
    fs::set_permissions(&own, fs::Permissions::from_mode(0o700))?;
    let path = |name: &str| own.join(name).display().to_string();
    for name in ["host", "user"] {
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &path(name)]).check()?;
    }
    fs::copy(own.join("user.pub"), own.join("authorized"))?;
    let host_key = fs::read_to_string(own.join("host.pub"))?;
    fs::write(own.join("known"), format!("[{}]:{} {host_key}", far.ip(), far.port()))?;
    // Where sshd keeps its unprivileged half.
    fs::create_dir_all("/run/sshd")?;
    let server = Command::new("/usr/sbin/sshd")
        .args(["-D", "-e", "-f", "/dev/null", "-p", &far.port().to_string(), "-h", &path("host")])
        .args([
            "-o",
            &format!("ListenAddress={}", far.ip()),
            "-o",
            "PidFile=none",
            "-o",
            "StrictModes=no",
            "-o",
            "MaxSessions=100",
        ])
        .args(["-o", &format!("AuthorizedKeysFile={}", path("authorized")), "-o", "PermitRootLogin=yes"]);
    let client = Command::new("ssh")
        .args(["-N", "-F", "/dev/null", "-i", &path("user"), "-p", &far.port().to_string()])
        .args(["-o", &format!("UserKnownHostsFile={}", path("known")), "-o", "ExitOnForwardFailure=yes"])
        .args(["-L", &format!("{near}:{TARGET}"), &format!("root@{}", far.ip())]);
    both("ssh", way, (near, far), [server, client])
}

/// A tool that the command line names, as the nth of those.
pub(crate) fn given<'a>(peer: &Peer, nth: usize, lab: &Lab, way: Way<'a>) -> Result<Carrier<'a>> {
    let (near, far) = way.ports(4 + u16::try_from(nth)?);
    let identity = lab.appliance_identity()?;
    let shell = |line: &str| {
        Command::new("sh")
            .args(["-c", &format!("exec {line}")])
            .env("LISTEN", near.to_string())
            .env("SERVER", far.to_string())
            .env("SERVER_PORT", far.port().to_string())
            .env("LISTEN_PORT", near.port().to_string())
            .env("TARGET", TARGET.to_string())
            .env("CA", lab.pki().ca_file())
            .env("CERTIFICATE", &identity.certificate)
            .env("KEY", &identity.key)
    };
    both(&peer.name, way, (near, far), [shell(&peer.server), shell(&peer.client)])
}
