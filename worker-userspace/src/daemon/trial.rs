//! What only a start finds out, without one: asked before a daemon that runs is stopped for another.
//!
//! What must hold: what is told would keep a start from serving on this host as it is now; nothing is changed, and what the
//! daemon has that runs counts as free, since it will be.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use super::StartError;
use crate::config::{Config, Metrics};
use crate::doctor::look;
use crate::inspect::control::Control;
use crate::sockets;
use crate::steer::steering::Steering;

/// The service manager.
const MANAGER: u32 = 1;

/// Why a start with `config` would fail, though it is valid. `daemon` is the process that runs, and `socket` where it listens
/// for commands.
pub fn trial(config: &Config, daemon: u32, socket: Option<&Path>) -> Vec<StartError> {
    let mut failures = Vec::new();
    if socket != Some(config.control_socket.as_path()) {
        failures.extend(Control::vacant(&config.control_socket).err().map(StartError::from));
    }
    // What the service manager has is passed on, or is for whom it says.
    let own: Vec<SocketAddr> = [daemon, MANAGER].into_iter().flat_map(look::listeners).collect();
    for (key, address) in config.listens() {
        // It gives way to whoever has it.
        if own.contains(&address) || address == Metrics::ADDRESS {
            continue;
        }
        match sockets::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_in_the_way(&own, address) => {}
            Err(source) => failures.push(StartError::Listen { key, address, source }),
            Ok(_) => {}
        }
    }
    if let Some(steer) = &config.steer {
        failures.extend(Steering::unfit(steer, &config.state_dir).into_iter().map(StartError::from));
    }
    failures
}

/// Whether an address can't be had because of one of these, which are for one family each.
fn is_in_the_way(own: &[SocketAddr], address: SocketAddr) -> bool {
    own.iter().any(|own| own.is_ipv4() == address.is_ipv4() && look::in_the_way(*own, address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    #[test]
    fn what_only_a_start_finds_is_found_without_one() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let [taken, wide] = ["127.0.0.1:0", "127.0.0.2:0"].map(|address| TcpListener::bind(address).unwrap());
        let taken = taken.local_addr().unwrap();
        let wide = SocketAddr::from(([0, 0, 0, 0], wide.local_addr().unwrap().port()));
        let (_listener, socket) = (UnixListener::bind(at("c.sock")).unwrap(), at("c.sock"));
        fs::write(at("names"), "dworker names 1 240.0.0.0/16 2001:2::/48\n").unwrap();
        let text = format!(
            "state_dir = {:?}\ncontrol_socket = {socket:?}\nappliance_url = \"https://a.example\"\nworker_key_file = \"/k\"\n\
             [proxy]\nhttp = [\"{taken}\", \"{wide}\", \"192.0.2.77:3128\"]\nallow_anonymous = true\n\
             [steer]\ncgroups = [\"no-such-cgroup\"]\nexclude_users = [\"no-such-user\"]\nproxy_hosts = [\"b.example\"]\n",
            directory.path()
        );
        let config = Config::parse(&text, "dworker.toml").unwrap().config;
        let tried = |daemon: u32, socket: Option<&Path>| -> Vec<String> {
            trial(&config, daemon, socket).iter().map(ToString::to_string).collect()
        };
        // Whatever process 1 is, these are not its.
        let found = tried(MANAGER, None);
        let wanted = [
            "another dworker answers there",
            &*format!("proxy.http = {taken}: Address already in use"),
            &format!("proxy.http = {wide}: Address already in use"),
            "proxy.http = 192.0.2.77:3128: Cannot assign",
            "no-such-cgroup",
            "no user no-such-user",
            "was made for the synthetic prefixes 240.0.0.0/16",
        ];
        assert_eq!(found.len(), wanted.len(), "{found:#?}");
        for (found, wanted) in found.iter().zip(wanted) {
            assert!(found.contains(wanted), "{wanted}: {found}");
        }
        // What the daemon itself has is free for the next one.
        let own = tried(std::process::id(), Some(&socket));
        assert_eq!(own, found[3..], "{own:#?}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "something was made");
    }
}
