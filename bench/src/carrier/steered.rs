//! Ways of leading connections elsewhere that know nothing of it: dworker's programs, nftables, redsocks.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use tests::{Command, Config, Group, Host, Lab};

use super::dworker::UP;
use super::others::listening;
use super::{Carrier, End};
use crate::world::{Place, TARGET, TARGET_HOST, own};

const START: Duration = Duration::from_secs(10);
/// Clients of this group id are redirected, those that carry are not: they have no other mark of their own.
const REDIRECTED: u32 = 4242;
const TO_REDSOCKS: u32 = 4243;

fn at(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// The bare forwarder behind dworker's programs, in the place of its daemon's.
pub(crate) fn programs(host: &Host) -> Result<Carrier<'_>> {
    let listen = at(2101).to_string();
    let cgroup = host.cgroup().path().display().to_string();
    let command = own(["forward", "--listen", &listen, "--cgroup", &cgroup, "--host", TARGET_HOST])?;
    bare("programs", host, Place::captured(host), command)
}

/// The bare forwarder behind nftables' `redirect`.
pub(crate) fn redirect(host: &Host) -> Result<Carrier<'_>> {
    let listen = at(2102);
    redirected(host, REDIRECTED, listen)?;
    let command = own(["forward", "--listen", &listen.to_string()])?;
    bare("redirect", host, Place::grouped(host, REDIRECTED), command)
}

fn bare<'a>(name: &str, host: &'a Host, place: Place<'a>, command: Command) -> Result<Carrier<'a>> {
    let process = host.uncaptured(command).spawn()?;
    process.wait_for_line("listening", START)?;
    Ok(Carrier { name: name.into(), place, to: TARGET, ends: vec![End::Process(process)] })
}

/// redsocks behind nftables' `redirect`, and before dworker's SOCKS entry: what one did without steering.
pub(crate) fn redsocks<'a>(lab: &Lab, host: &'a Host, address: IpAddr) -> Result<Carrier<'a>> {
    let (listen, socks) = (at(2103), at(2104));
    redirected(host, TO_REDSOCKS, listen)?;
    let [appliance, worker] = beside(lab, host, address, socks)?;
    let file = host.directory().join("redsocks.conf");
    let text = format!(
        "base {{ log = stderr; log_info = off; daemon = off; redirector = iptables; rlimit_nofile = 20000; \
         redsocks_conn_max = 8000; }}\n\
         redsocks {{ local_ip = 127.0.0.1; local_port = {}; listenq = 4096; ip = 127.0.0.1; port = {}; type = socks5; }}\n",
        listen.port(),
        socks.port()
    );
    fs::write(&file, text)?;
    let redsocks = host.uncaptured(Command::new("/usr/sbin/redsocks").arg("-c").arg(&file)).spawn()?;
    listening(host, &redsocks, listen).context("starting redsocks")?;
    let place = Place::grouped(host, TO_REDSOCKS);
    Ok(Carrier {
        name: "redsocks".into(),
        place,
        to: TARGET,
        ends: vec![End::Process(redsocks), appliance, worker],
    })
}

/// An appliance at this address of the host, which takes SOCKS and steers nothing, and its worker.
fn beside(lab: &Lab, host: &Host, address: IpAddr, socks: SocketAddr) -> Result<[End; 2]> {
    let listen = SocketAddr::new(address, 443).to_string();
    let identity = lab.pki().issue(&[&address.to_string()], tests::Validity::Current)?;
    let group = Group::new("site-a", [TARGET_HOST])?;
    let config = Config::new()
        .appliance(&identity, &[&group])
        .set("appliance.listen", [listen.as_str()])
        .set("proxy.socks", [socks.to_string()]);
    let appliance = host.daemon("socks-appliance", config)?;
    let config = Config::new()
        .worker(&group, lab.pki().ca_file(), [TARGET_HOST])
        .set("appliance_url", format!("https://{listen}"));
    let worker = host.daemon("socks-worker", config)?;
    appliance.wait_for_group("site-a", UP).context("behind SOCKS")?;
    Ok([appliance, worker].map(|daemon| End::Daemon(Box::new(daemon))))
}

/// Has nftables lead connections of this group id to the target there.
fn redirected(host: &Host, group: u32, to: SocketAddr) -> Result<()> {
    host.netns().nft(&format!(
        "table ip bench{group} {{\n chain out {{\n  type nat hook output priority -100\n  \
         meta skgid {group} ip daddr {} tcp dport {} redirect to :{}\n }}\n}}",
        TARGET.ip(),
        TARGET.port(),
        to.port()
    ))?;
    // Else what has just been closed would fill the table of connections, whose size is the whole machine's.
    host.netns().sysctl("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "5")
}
