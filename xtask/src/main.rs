//! The project's own commands: `cargo xtask COMMAND`.

mod bench;
mod command;
mod demo;
mod ebpf;
mod fuzz;
mod lint;
mod man;
mod package;
mod prerequisites;
mod screenshots;
mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

/// The project's own commands.
///
/// What they need they install by themselves: packages on Debian, tools of cargo's under target/tools.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    /// Compile the programs in `worker-ebpf` for the kernel, into `target/bpf/dworker.o`.
    ///
    /// On Debian what is missing (compiler, LLVM, linker) is installed first.
    BuildEbpf,
    /// Run all tests, those that need root included.
    Test {
        /// Arguments for `cargo test`, after `--`.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Check the format, clippy's warnings and the rules for dependencies.
    Lint(lint::Lint),
    /// All that must pass before a change goes in: lint and test.
    Ci,
    /// Show an unchanged VMware SDK managing a vCenter that its host can neither resolve nor reach.
    Demo(demo::Demo),
    /// Measure dworker beside others that do the same, or a part of the house at its largest.
    Bench(bench::Bench),
    /// Take the pictures of the web page that the README shows.
    Screenshots(screenshots::Screenshots),
    /// Write man pages and shell completions, into `target/man` and `target/completions`.
    Man,
    /// Make the packages: a deb, an rpm, their checksums and what they are made of, in `target/package`.
    Package(package::Package),
    /// Run the fuzz targets.
    Fuzz(fuzz::Fuzz),
}

fn main() -> ExitCode {
    match run(Command::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            command::say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::BuildEbpf => ebpf::build().map(|object| println!("{}", object.display())),
        Command::Test { arguments } => test::test(&arguments),
        Command::Lint(options) => lint::lint(&options),
        Command::Ci => lint::lint(&lint::Lint::default()).and_then(|()| test::test(&[])),
        Command::Demo(options) => demo::demo(&options),
        Command::Bench(options) => bench::bench(&options),
        Command::Screenshots(options) => screenshots::screenshots(&options),
        Command::Man => man::man(),
        Command::Package(options) => package::package(&options),
        Command::Fuzz(options) => fuzz::fuzz(&options),
    }
}

/// The top of the source tree.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Where cargo puts what it builds of the workspace.
fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
