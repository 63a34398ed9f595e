//! `bench`: measures dworker beside others, and a part of the house at its largest.

use anyhow::Result;

use crate::command::{cargo, run, say};
use crate::{ebpf, prerequisites, target_directory};

/// Whom dworker is measured beside, and what looks where the time goes.
pub(crate) const PACKAGES: [&str; 7] = [
    "libnginx-mod-stream",
    "linux-perf",
    "nginx-light",
    "openssh-client",
    "openssh-server",
    "redsocks",
    "stunnel4",
];

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Bench {
    /// `registry` (2,000 workers, 10,000 proxy hosts, a million events), or what `--list` names, and options:
    /// `--help` behind `--` explains them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds with optimisation and measures.
pub(crate) fn bench(options: &Bench) -> Result<()> {
    if options.arguments == ["registry"] {
        return run(cargo("bench").args(["--locked", "-p", "worker-userspace", "--bench", "registry"]));
    }
    let only_tells = |argument: &String| {
        ["--list", "--help", "-h"].contains(&argument.as_str()) || argument.starts_with("--show")
    };
    if options.arguments.iter().any(only_tells) {
        ebpf::build()?;
        let bench = ["--quiet", "--locked", "--package", "bench", "--"];
        return run(cargo("run").args(bench).args(&options.arguments));
    }
    prerequisites::root_for("bench")?;
    prerequisites::lab()?;
    if prerequisites::is_debian() {
        prerequisites::apt(&PACKAGES, "dworker is measured beside them")?;
    }
    ebpf::build()?;
    say("building with optimisation");
    run(cargo("build").args(["--release", "--workspace", "--bins", "--locked"]))?;
    run(std::process::Command::new(target_directory().join("release/bench"))
        .current_dir(crate::root())
        .args(&options.arguments))
}
