//! The servers and clients of the lab, as processes of their own.
//!
//! `lab-tool serve JSON` and `lab-tool connect JSON`: the JSON is a [`tests::traffic::Service`] or a
//! [`tests::traffic::Connect`]. Each connection that has ended is a line of JSON on standard output, a
//! [`tests::traffic::Report`].

mod connect;
mod serve;
mod transfer;

use anyhow::{Context, Result, bail};
use tests::traffic::Report;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", task] => serve::run(serde_json::from_str(task).context("what to serve")?),
        ["connect", task] => connect::run(&serde_json::from_str(task).context("what to connect to")?),
        _ => bail!("usage: lab-tool serve JSON | connect JSON"),
    }
}

/// Prints a report on a line of its own, whatever other threads print.
fn print(report: &Report) -> Result<()> {
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}
