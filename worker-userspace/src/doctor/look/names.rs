//! Files and resolvers that names are looked up by.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::config::Config;
use crate::doctor::facts::Names;
use crate::inspect::status::Status;
use crate::steer::names::{self, PatternIndex, Prefixes, check_overlap, hosts_conflicts, hosts_entries};
use crate::target::{HostPattern, Name, Pattern};

/// Resolvers that glibc reads.
const MOST: usize = 3;
/// Time for an answer, and how often it is asked.
const PATIENCE: Duration = Duration::from_secs(1);
const TRIES: usize = 2;
/// Asks for the name servers of the root: every resolver has an answer, even if it is that it will not.
const QUESTION: [u8; 17] = [0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];

pub(super) async fn look(root: &Path, config: &Config, status: Option<&Status>, elsewhere: bool) -> Names {
    let mut found = Names {
        nsswitch: nsswitch(&read(root, "etc/nsswitch.conf")),
        over_tls: over_tls(root),
        ..Names::default()
    };
    if let Some(steer) = &config.steer {
        let prefixes = Prefixes::new(steer.synthetic4, steer.synthetic6).ok();
        if let Some(prefixes) = prefixes.filter(|_| !elsewhere) {
            found.overlap = check_overlap(&prefixes).err().map(|error| error.to_string());
        }
        if let Some(prefixes) = prefixes.filter(|_| status.is_none()) {
            let checked = names::check_file(&names::file_in(&config.state_dir), prefixes);
            found.file = checked.err().map(|error| error.to_string());
        }
        found.hosts = hosts(&root.join("etc/hosts"), &patterns(config, status));
    }
    if !elsewhere {
        found.resolvers = ask_all(nameservers(&read(root, "etc/resolv.conf"))).await;
    }
    found
}

fn read(root: &Path, path: &str) -> String {
    fs::read(root.join(path)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// What is steered: as the daemon has it, else as the configuration says.
fn patterns(config: &Config, status: Option<&Status>) -> Vec<Pattern> {
    if let Some(steer) = status.and_then(|status| status.steer.as_ref()) {
        return steer.rules.iter().filter_map(|rule| rule.pattern.parse().ok()).collect();
    }
    let own = config.steer.iter().flat_map(|steer| &steer.proxy_hosts);
    let groups = config.appliance.iter().flat_map(|appliance| &appliance.groups);
    own.chain(groups.flat_map(|group| &group.proxy_hosts)).cloned().collect()
}

/// Proxy hosts in a hosts file; those that mean this host, too, where they are named without a wildcard.
fn hosts(path: &Path, patterns: &[Pattern]) -> Vec<(String, IpAddr)> {
    let mut found: Vec<(String, IpAddr)> = hosts_conflicts(path, &PatternIndex::new(patterns))
        .unwrap_or_default()
        .into_iter()
        .map(|(address, name)| (name.to_string(), address))
        .collect();
    let named: HashSet<&Name> = patterns
        .iter()
        .filter_map(|pattern| match &pattern.host {
            HostPattern::Name(name) => Some(name),
            _ => None,
        })
        .collect();
    for (address, name) in hosts_entries(path).unwrap_or_default() {
        let line = (name.to_string(), address);
        if named.contains(&name) && !found.contains(&line) {
            found.push(line);
        }
    }
    found
}

/// The sources of host names, by the text of nsswitch.conf.
fn nsswitch(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let hosts = lines.filter_map(|line| line.strip_prefix("hosts:")).next().unwrap_or_default();
    hosts.split_ascii_whitespace().map(str::to_owned).collect()
}

/// The resolvers that the C library asks, by the text of resolv.conf; where none stands there, this host.
pub(super) fn nameservers(text: &str) -> Vec<IpAddr> {
    let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix("nameserver"));
    let listed: Vec<&str> =
        lines.filter_map(|line| line.split_ascii_whitespace().next()).take(MOST).collect();
    match listed.is_empty() {
        true => vec![Ipv4Addr::LOCALHOST.into()],
        // A link-local one has a scope, by which it can't be asked from here.
        false => listed.iter().filter_map(|text| text.parse().ok()).collect(),
    }
}

async fn ask_all(resolvers: Vec<IpAddr>) -> Vec<(IpAddr, Result<Duration, String>)> {
    let mut asked = JoinSet::new();
    for (at, resolver) in resolvers.into_iter().enumerate() {
        asked.spawn(async move { (at, resolver, ask(SocketAddr::new(resolver, 53)).await) });
    }
    let mut said = asked.join_all().await;
    said.sort_by_key(|(at, ..)| *at);
    said.into_iter().map(|(_, resolver, said)| (resolver, said)).collect()
}

async fn ask(resolver: SocketAddr) -> Result<Duration, String> {
    let start = Instant::now();
    let mut last = String::new();
    for _ in 0..TRIES {
        match timeout(PATIENCE, ask_once(resolver)).await {
            Ok(Ok(())) => return Ok(start.elapsed()),
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => last = format!("no answer within {PATIENCE:?}"),
        }
    }
    Err(last)
}

/// Any answer is one: what it says of the root is not asked for.
async fn ask_once(resolver: SocketAddr) -> io::Result<()> {
    let any: IpAddr =
        if resolver.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(resolver).await?;
    let mut question = QUESTION;
    question[..2].copy_from_slice(&rand::random::<[u8; 2]>());
    socket.send(&question).await?;
    let mut answer = [0; 512];
    loop {
        let n = socket.recv(&mut answer).await?;
        if answer[..n].starts_with(&question[..2]) {
            return Ok(());
        }
    }
}

/// The setting by which systemd-resolved asks over TLS.
fn over_tls(root: &Path) -> Option<String> {
    let directory = root.join("etc/systemd/resolved.conf.d");
    let mut files: Vec<_> =
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "conf"));
    files.sort();
    // The last one counts.
    let all = [root.join("etc/systemd/resolved.conf")].into_iter().chain(files);
    let mut found = None;
    for file in all {
        let text = fs::read_to_string(&file).unwrap_or_default();
        for value in text.lines().filter_map(|line| line.trim().strip_prefix("DNSOverTLS=")) {
            let off = matches!(value.trim(), "" | "no" | "false" | "off" | "0");
            found = (!off).then(|| format!("DNSOverTLS={} in {}", value.trim(), file.display()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_files_are_read() {
        assert_eq!(
            nsswitch("passwd: files\nhosts:  files resolve [!UNAVAIL=return] dns # x\n"),
            ["files", "resolve", "[!UNAVAIL=return]", "dns"]
        );
        assert!(nsswitch("# hosts: files\n").is_empty());
        let resolvers = nameservers(
            "# nameserver 9.9.9.9\nnameserver 10.0.0.53\nsearch a\nnameserver fe80::1%eth0\nnameserver ::1\n",
        );
        assert_eq!(resolvers, ["10.0.0.53", "::1"].map(|text| text.parse::<IpAddr>().unwrap()));
        assert_eq!(nameservers("search a\n"), [IpAddr::from(Ipv4Addr::LOCALHOST)]);
        assert!(nameservers("nameserver fe80::1%eth0\n").is_empty());
    }

    #[test]
    fn the_last_word_on_tls_counts() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(over_tls(root.path()), None);
        let parts = root.path().join("etc/systemd/resolved.conf.d");
        fs::create_dir_all(&parts).unwrap();
        fs::write(
            root.path().join("etc/systemd/resolved.conf"),
            "[Resolve]\n#DNSOverTLS=no\nDNSOverTLS=opportunistic\n",
        )
        .unwrap();
        assert!(over_tls(root.path()).unwrap().starts_with("DNSOverTLS=opportunistic in "));
        fs::write(parts.join("10.conf"), "[Resolve]\nDNSOverTLS=no\n").unwrap();
        assert_eq!(over_tls(root.path()), None);
    }

    #[test]
    fn a_hosts_file_is_searched_for_what_stays_here_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        fs::write(
            &path,
            "127.0.0.1 localhost vcenter.corp.example\n10.20.0.5 a.lab.example\n127.0.0.1 b.lab.example\n",
        )
        .unwrap();
        let patterns =
            ["vcenter.corp.example:443", "*.lab.example"].map(|text| text.parse::<Pattern>().unwrap());
        let found: Vec<_> =
            hosts(&path, &patterns).iter().map(|(name, address)| format!("{name} {address}")).collect();
        assert_eq!(found, ["a.lab.example 10.20.0.5", "vcenter.corp.example 127.0.0.1"]);
    }

    #[tokio::test]
    async fn any_answer_shows_that_a_resolver_is_there() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let mut question = [0; 64];
            let (n, from) = server.recv_from(&mut question).await.unwrap();
            // Refused.
            question[2..4].copy_from_slice(&[0x81, 0x05]);
            server.send_to(&question[..n], from).await.unwrap();
        });
        assert!(ask(address).await.is_ok());
        serving.await.unwrap();
        // Nobody is there any more.
        assert!(ask(address).await.is_err());
    }
}
