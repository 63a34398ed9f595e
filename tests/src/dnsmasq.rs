//! A real resolver, dnsmasq, that logs every query it gets.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command::Command;
use crate::host::Host;
use crate::net::Dual;
use crate::process::Process;

const START: Duration = Duration::from_secs(10);

/// A resolver on port 53 of two addresses. It asks nobody: what it does not know does not exist.
#[derive(Debug)]
pub struct Resolver {
    command: Command,
    config: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    text: String,
    process: Process,
    /// What earlier processes logged.
    log: String,
}

/// One query that a resolver got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// The name, as it was asked.
    pub name: String,
    /// The type, such as `A`, `AAAA` or `PTR`.
    pub kind: String,
    /// Who asked.
    pub from: IpAddr,
}

impl Resolver {
    /// Starts one that knows `records` and what `more` says in dnsmasq's words.
    pub(crate) fn start(host: &Host, listen: Dual, records: &[(&str, Dual)], more: &str) -> Result<Resolver> {
        let mut text = format!(
            "keep-in-foreground\nlog-facility=-\nlog-queries\nuser=root\ngroup=root\npid-file=\n\
             no-resolv\nno-hosts\nlocal=/#/\nbind-interfaces\nexcept-interface=lo\n\
             listen-address={}\nlisten-address={}\n",
            listen.v4, listen.v6
        );
        for (name, address) in records {
            writeln!(text, "host-record={name},{},{}", address.v4, address.v6)?;
        }
        text += more;
        let config = host.directory().join("dnsmasq.conf");
        let command = host.command("dnsmasq").arg(format!("--conf-file={}", config.display()));
        let process = run(&command, &config, &text)?;
        Ok(Resolver { command, config, state: Mutex::new(State { text, process, log: String::new() }) })
    }

    /// Adds lines of dnsmasq's configuration, such as `host-record=NAME,ADDRESS`, `cname=...` or
    /// `txt-record=...`, each of at most 1024 bytes. The resolver is started anew for it; [`Resolver::queries`] forgets nothing.
    pub fn add(&self, lines: &str) -> Result<()> {
        let mut state = self.lock();
        writeln!(state.text, "{lines}")?;
        state.process.stop(START)?;
        let logged = state.process.stderr();
        state.log.push_str(&logged);
        state.process = run(&self.command, &self.config, &state.text)?;
        Ok(())
    }

    /// Every query so far, in order. A query is logged before it is answered.
    pub fn queries(&self) -> Vec<Query> {
        let state = self.lock();
        let now = state.process.stderr();
        state.log.lines().chain(now.lines()).filter_map(query).collect()
    }

    /// Whether anybody asked for this name, for any type.
    pub fn was_asked(&self, name: &str) -> bool {
        self.queries().iter().any(|query| query.name.eq_ignore_ascii_case(name))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn run(command: &Command, config: &PathBuf, text: &str) -> Result<Process> {
    fs::write(config, text).with_context(|| format!("writing {}", config.display()))?;
    let process = command.clone().spawn()?;
    // dnsmasq has bound its sockets when it says so.
    process.wait_for_line("started, version", START)?;
    Ok(process)
}

/// Reads `dnsmasq: query[A] direct.example from 10.77.1.10`.
fn query(line: &str) -> Option<Query> {
    let (_, rest) = line.split_once("query[")?;
    let (kind, rest) = rest.split_once("] ")?;
    let (name, from) = rest.rsplit_once(" from ")?;
    Some(Query { name: name.to_owned(), kind: kind.to_owned(), from: from.trim().parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_from_the_log() {
        let got = query("dnsmasq: query[AAAA] direct.example from fd77:0:0:1::10");
        assert_eq!(
            got,
            Some(Query {
                name: "direct.example".into(),
                kind: "AAAA".into(),
                from: "fd77:0:0:1::10".parse().expect("an address")
            })
        );
        assert_eq!(query("dnsmasq: config direct.example is 10.77.4.10"), None);
    }
}
