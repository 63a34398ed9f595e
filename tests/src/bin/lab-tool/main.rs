//! The servers and clients of the lab, as processes of their own.
//!
//! `lab-tool serve JSON` and `lab-tool connect JSON`: the JSON is a [`tests::traffic::Service`] or a
//! [`tests::traffic::Connect`]. Each connection that has ended is a line of JSON on standard output, a
//! [`tests::traffic::Report`]. `lab-tool load JSON` takes a [`tests::load::Load`] and prints [`tests::load::Outcome`]s. `lab-tool ask JSON` takes a [`tests::ask::Ask`] and prints a [`tests::ask::Answer`].
//!
//! `lab-tool lab` builds an empty lab, prints how to enter its hosts, and keeps it until SIGINT or SIGTERM.

mod ask;
mod connect;
mod load;
mod serve;
mod transfer;

use anyhow::{Context, Result, bail};
use nix::sys::signal::SigSet;
use tests::traffic::Report;
use tests::{Lab, Signal};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", task] => serve::run(serde_json::from_str(task).context("what to serve")?),
        ["connect", task] => connect::run(&serde_json::from_str(task).context("what to connect to")?),
        ["ask", task] => {
            let answer = ask::run(&serde_json::from_str(task).context("what to ask")?);
            println!("{}", serde_json::to_string(&answer)?);
            Ok(())
        }
        ["load", task] => load::run(&serde_json::from_str(task).context("which load?")?),
        ["lab"] => keep_lab(),
        _ => bail!("usage: lab-tool serve JSON | connect JSON | load JSON | ask JSON | lab"),
    }
}

/// A lab for a person to look around in.
fn keep_lab() -> Result<()> {
    // Blocked before any thread exists: the signal shall end the wait below, not the process.
    let mut end = SigSet::empty();
    end.add(Signal::SIGINT);
    end.add(Signal::SIGTERM);
    end.thread_block().context("blocking SIGINT and SIGTERM")?;
    let lab = Lab::new()?;
    for host in lab.hosts() {
        println!("{}: sh {}", host.name(), host.enter().display());
    }
    println!("the lab is up: Ctrl-C takes it down");
    end.wait().context("waiting for SIGINT or SIGTERM")?;
    Ok(())
}

/// Prints a report on a line of its own, whatever other threads print.
fn print(report: &Report) -> Result<()> {
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}
