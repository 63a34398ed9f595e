//! The project's own commands: `cargo xtask COMMAND`.

mod ebpf;

use std::path::Path;

use clap::Parser;

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    /// Compile the programs in `worker-ebpf` for the kernel, into `target/bpf/dworker.o`.
    ///
    /// On Debian what is missing (compiler, LLVM, linker) is installed first.
    BuildEbpf,
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::BuildEbpf => ebpf::build().map(|object| println!("{}", object.display())),
    }
}

/// The top of the source tree.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}
