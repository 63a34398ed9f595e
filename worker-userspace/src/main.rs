//! The command line: parses, dispatches, and turns errors into exit codes.

mod cli;

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use dworker::config::Key;
use dworker::daemon::{Beginning, Daemon, Inheritance, Invocation, Predecessor};
use dworker::telemetry;

/// An eBPF-accelerated transparent proxy: SDKs that know no proxy reach what only a remote site can reach.
#[derive(Parser)]
#[command(name = "dworker", version, about, max_term_width = 100, after_help = cli::EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the roles that the configuration asks for, until SIGTERM
    Run {
        #[command(flatten)]
        config: cli::config::Given,
    },
    /// The configuration: checked, shown, or made of the older product's
    #[command(subcommand, after_help = cli::EXIT_CODES)]
    Config(cli::config::ConfigCommand),
    /// Have a new process take over, with the configuration and the program that are there now; nothing is cut
    #[command(after_help = cli::EXIT_CODES)]
    Reload(cli::lifetime::Reload),
    /// Check the configuration, put in order what the service needs, and start, reload or restart it where that is due
    #[command(after_help = cli::EXIT_CODES)]
    Reconfigure(cli::reconfigure::Reconfigure),
    /// Whether connections are captured
    #[command(subcommand, after_help = cli::EXIT_CODES)]
    Steer(cli::lifetime::SteerCommand),
    /// Show what a running daemon does: tunnels, lanes, steering, connections
    #[command(after_help = cli::EXIT_CODES)]
    Status(cli::status::StatusCommand),
    /// Say what would happen to a connection, and why: steered, direct or refused
    #[command(after_help = cli::why::EXIT_CODES)]
    Why(cli::why::WhyCommand),
    /// Look whether all works, by trying it: hooks, names, certificates, the appliance, targets; each fault with its remedy
    #[command(after_help = cli::doctor::EXIT_CODES)]
    Doctor(cli::doctor::Doctor),
    /// Be what `doctor` sends into a captured cgroup
    #[command(hide = true)]
    Canary {
        /// What to do there
        errand: String,
    },
    /// Show what happens, as it happens: connections steered, refused, opened, closed; nodes that take over
    #[command(after_help = cli::EXIT_CODES)]
    Monitor(cli::monitor::MonitorCommand),
    /// Follow the daemon's log, by parts of it
    #[command(after_help = cli::EXIT_CODES)]
    Tail(cli::tail::Tail),
    /// Distributed workers: the processes at one site that share a key
    #[command(subcommand, after_help = cli::EXIT_CODES)]
    Worker(cli::worker::WorkerCommand),
    /// Clouds: managed endpoints, each carried by a worker or by none
    #[command(subcommand, after_help = cli::EXIT_CODES)]
    Cloud(cli::cloud::CloudCommand),
    /// Nodes: the worker processes that have ever connected
    #[command(subcommand, after_help = cli::EXIT_CODES)]
    Node(cli::node::NodeCommand),
    /// Connections: those open now, and the last that ended
    #[command(after_help = cli::EXIT_CODES)]
    Connections(cli::connections::Connections),
    /// Events: who did what, and what happened to whom
    #[command(after_help = cli::EXIT_CODES)]
    Events(cli::events::Events),
    /// What a daemon logs
    #[command(after_help = cli::EXIT_CODES)]
    Log(cli::log::Log),
    /// The admin token of an appliance
    #[command(subcommand, after_help = cli::EXIT_CODES)]
    Token(cli::token::TokenCommand),
    /// Print a script that completes this command in a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write a man page for each command
    #[command(hide = true)]
    Man {
        /// Where to
        directory: PathBuf,
    },
    /// Make worker keys, and the hashes that the appliance knows them by
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Print a new worker key and its SHA-256
    New,
    /// Print the SHA-256 of the worker key on standard input
    Hash,
}

/// What was asked for can't be done as it was asked.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("dworker: {}", in_full(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, but those that it tells itself.
fn in_full(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match told.as_str() {
        "" => cause,
        _ if told.contains(&cause) => told,
        _ => format!("{told}: {cause}"),
    })
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run { config } => {
            // Before anything is opened, and before an upgrade can move the program away.
            let (invocation, predecessor) = (Invocation::of_this_process()?, Predecessor::find());
            let (file, loaded) = match config.load_here() {
                Ok(read) => read,
                Err(faults) => {
                    eprintln!("{faults}");
                    predecessor.inspect(|predecessor| predecessor.failed(&faults.to_string()));
                    // What is wrong with the text stays wrong, and nobody needs to try again.
                    return Ok(if faults.may_pass() { ExitCode::FAILURE } else { ExitCode::from(USAGE) });
                }
            };
            telemetry::start(&loaded.config.log, loaded.config.log_format)?;
            tracing::info!("configuration: {file}");
            let invocation = invocation.beginning(Beginning::of(config.config.clone(), &loaded));
            for warning in &loaded.warnings {
                tracing::warn!("{warning}");
            }
            let inheritance = match predecessor {
                Some(predecessor) => predecessor.inherit(&loaded.config)?,
                None => Inheritance::of_manager(),
            };
            dworker::memory::keep_freed();
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let outcome = runtime
                .block_on(async { Daemon::start(loaded.config, inheritance, invocation).await?.run().await });
            // A look-up that hangs in the system's resolver holds a thread; neither a stop nor the reason why a
            // start failed waits for it.
            runtime.shutdown_background();
            outcome?;
        }
        Command::Config(command) => return Ok(cli::run(async { command.run() })),
        Command::Reload(command) => return Ok(cli::run(command.run())),
        Command::Reconfigure(command) => return Ok(cli::run(command.run())),
        Command::Steer(command) => return Ok(cli::run(command.run())),
        Command::Status(command) => return Ok(cli::run(command.run())),
        Command::Why(command) => return Ok(cli::run_to_code(command.run())),
        Command::Doctor(command) => return Ok(cli::run_to_code(command.run())),
        Command::Canary { errand } => return cli::doctor::canary(&errand),
        Command::Monitor(command) => return Ok(cli::run(command.run())),
        Command::Tail(command) => return Ok(cli::run(async { command.run() })),
        Command::Completions { shell } => {
            // Written at once: a shell that reads only a part of it is no fault.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "dworker", &mut script);
            return Ok(cli::run(async { cli::print_all(&String::from_utf8_lossy(&script)) }));
        }
        Command::Man { directory } => {
            std::fs::create_dir_all(&directory)
                .and_then(|()| clap_mangen::generate_to(Cli::command(), &directory))
                .with_context(|| format!("writing man pages to {}", directory.display()))?;
        }
        Command::Worker(command) => return Ok(cli::run(command.run())),
        Command::Cloud(command) => return Ok(cli::run(command.run())),
        Command::Node(command) => return Ok(cli::run(command.run())),
        Command::Connections(command) => return Ok(cli::run(command.run())),
        Command::Events(command) => return Ok(cli::run(command.run())),
        Command::Log(command) => return Ok(cli::run(command.run())),
        Command::Token(command) => return Ok(cli::run(command.run())),
        Command::Key { command: KeyCommand::New } => {
            let key = Key::generate().context("the kernel gave no randomness")?;
            println!("worker_key = \"{}\"", key.reveal());
            println!("key_sha256 = \"{}\"", key.hash());
        }
        Command::Key { command: KeyCommand::Hash } => {
            let mut text = String::new();
            std::io::stdin().take(1024).read_to_string(&mut text).context("reading standard input")?;
            let key: Key =
                text.trim().parse().context("standard input holds no worker key; give it the key alone")?;
            println!("{}", key.hash());
        }
    }
    Ok(ExitCode::SUCCESS)
}
