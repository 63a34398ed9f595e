//! Measures dworker beside others that do the same, on this machine and in one run.
//!
//! Numbers of different runs say nothing about each other: machines differ, and one differs from itself an hour ago.
//! So all carriers take turns in each round, and what counts are the ratios within a round.

mod carrier;
mod forward;
mod load;
mod pipe;
mod processes;
mod profile;
mod report;
mod results;
mod targets;
mod topic;
mod workers;
mod world;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

use topic::{Plan, Topic};

#[derive(Parser)]
#[command(about = "Measures dworker beside others that do the same, on this machine and in one run")]
#[command(name = "cargo xtask bench", subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    bench: Bench,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(clap::Args)]
struct Bench {
    /// What to measure; all unless given. `--list` says what there is.
    topics: Vec<String>,
    /// Say what there is to measure.
    #[arg(long)]
    list: bool,
    /// Print the tables of results that were kept, and measure nothing.
    #[arg(long, value_name = "RESULTS")]
    show: Option<PathBuf>,
    /// Rounds; each carrier has its turn in each.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds that each turn counts.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Who is measured where a topic compares carriers, separated by commas; all unless given.
    #[arg(long, value_delimiter = ',')]
    carriers: Vec<String>,
    /// One more to measure: 'NAME=SERVER COMMAND;CLIENT COMMAND'. Both find LISTEN (where the client is to
    /// listen), SERVER (where the server is to: over a path, on another host), the ports of these as LISTEN_PORT and
    /// SERVER_PORT, TARGET, CA, CERTIFICATE and KEY in their environment. Part of all topics that compare carriers.
    #[arg(long = "peer")]
    peers: Vec<carrier::Peer>,
    /// Look where the time goes, with perf: bulk, relay, connects, requests and stalled. The numbers are worse then.
    #[arg(long)]
    profile: bool,
    /// Where results and plots go.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Results of an earlier run, to say what moved.
    #[arg(long, default_value = "docs/bench.json")]
    before: PathBuf,
}

/// What the lab's processes are.
#[derive(clap::Subcommand)]
enum Role {
    #[command(hide = true)]
    Serve { at: SocketAddr },
    #[command(hide = true)]
    Load {
        load: String,
        /// The group id to have, by which a rule of nftables knows the process.
        #[arg(long)]
        group: Option<u32>,
    },
    #[command(hide = true)]
    Pipe(pipe::Pipe),
    #[command(hide = true)]
    Forward(forward::Forward),
    // A topic has the shorter name.
    #[command(hide = true, name = "simulate-workers")]
    Workers(workers::Workers),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse() {
        Arguments { role: Some(role), .. } => play(role),
        Arguments { bench, .. } => measure(bench),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn play(role: Role) -> Result<()> {
    let serving = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    // As many threads as dworker has.
    let threads = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match role {
        Role::Serve { at } => Ok(serving()?.block_on(load::server::serve(at))?),
        Role::Load { load, group } => {
            if let Some(group) = group {
                nix::unistd::setgid(group.into()).context("taking a group id")?;
            }
            let load = serde_json::from_str(&load).context("reading what to do")?;
            println!("{}", serde_json::to_string(&load::client::run(&load)?)?);
            Ok(())
        }
        Role::Pipe(pipe) => threads()?.block_on(pipe.run()),
        Role::Forward(forward) => threads()?.block_on(forward.run()),
        Role::Workers(workers) => threads()?.block_on(workers.run()),
    }
}

fn measure(bench: Bench) -> Result<()> {
    if bench.list {
        topic::ALL.iter().for_each(|topic| println!("{:<10} {}", topic.name, topic.what));
        return Ok(());
    }
    if let Some(kept) = bench.show {
        return report::show(&kept);
    }
    let topics: Vec<&Topic> = match bench.topics.is_empty() {
        true => topic::ALL.iter().collect(),
        false => bench.topics.iter().map(|name| find(name)).collect::<Result<_>>()?,
    };
    raise_files()?;
    let mut carriers = bench.carriers;
    if carriers.is_empty() {
        carriers.extend(carrier::ALL.map(str::to_owned));
    }
    let plan = Plan {
        rounds: bench.rounds.max(1),
        time: Duration::from_secs_f64(bench.seconds),
        carriers: carriers.into_iter().chain(bench.peers.iter().map(|peer| peer.name().to_owned())).collect(),
        peers: bench.peers,
        profile: bench.profile.then(|| profile::Profile { directory: bench.out.join("profile") }),
    };
    let mut results = results::Results::of(results::Run::here(plan.rounds, plan.time, &plan.carriers));
    let mut failed = Vec::new();
    for topic in topics {
        eprintln!("bench: {}: {}", topic.name, topic.what);
        results.begin(topic.name);
        // What the others brought in many minutes is not thrown away.
        if let Err(error) = (topic.run)(&plan, &mut results) {
            eprintln!("bench: {}: {error:#}", topic.name);
            failed.push(topic.name.to_owned());
        }
    }
    report::report(&results, &bench.out, &bench.before)?;
    failed.extend_from_slice(results.left_out());
    ensure!(failed.is_empty(), "not measured, or not wholly: {}", failed.join(", "));
    Ok(())
}

fn find(name: &str) -> Result<&'static Topic> {
    match topic::ALL.iter().find(|topic| topic.name == name) {
        Some(topic) => Ok(topic),
        None => bail!("there is no topic {name:?}: --list says what there is"),
    }
}

/// Thousands of connections need as many files at each end.
fn raise_files() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the number of open files")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// What the lab's processes are is a subcommand, and no topic could be asked for by the name of one.
    #[test]
    fn every_topic_can_be_asked_for_by_its_name() {
        Arguments::command().debug_assert();
        for topic in &topic::ALL {
            let arguments =
                Arguments::try_parse_from(["bench", topic.name, "--rounds", "1"]).expect(topic.name);
            assert_eq!(arguments.bench.topics, [topic.name]);
            assert!(arguments.role.is_none() && find(topic.name).is_ok());
        }
    }
}
