//! `fuzz`: runs the fuzz targets of `fuzz/` for a while each.

use std::env;
use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::command::{cargo, output, run, say};
use crate::{ebpf, prerequisites, target_directory};

const CARGO_FUZZ: &str = "0.13.2";

/// What to fuzz, and for how long.
#[derive(clap::Args)]
pub(crate) struct Fuzz {
    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// The target; all of them where none is given.
    target: Option<String>,
}

/// Runs the targets one after the other; the first that finds something ends it.
pub(crate) fn fuzz(options: &Fuzz) -> Result<()> {
    prerequisites::fuzzing()?;
    let cargo_fuzz = prerequisites::tool("cargo-fuzz", CARGO_FUZZ, "it runs the fuzz targets")?;
    ebpf::build()?;
    // cargo finds its subcommands in the path. Sanitizers are unstable, though every toolchain has them.
    let path = env::var_os("PATH").unwrap_or_default();
    let tools = cargo_fuzz.parent().map(PathBuf::from);
    let path = env::join_paths(tools.into_iter().chain(env::split_paths(&path)))?;
    let cargo_fuzz = |subcommand: &str| {
        let mut fuzz = cargo("fuzz");
        fuzz.env("PATH", &path).env("RUSTC_BOOTSTRAP", "1").args([subcommand, "--fuzz-dir", "fuzz"]);
        fuzz
    };
    let listed = output(&mut cargo_fuzz("list"))?;
    let targets: Vec<_> = match &options.target {
        Some(target) => vec![target.as_str()],
        None => listed.lines().collect(),
    };
    for target in targets {
        ensure!(
            listed.lines().any(|name| name == target),
            "there is no fuzz target {target}, only\n{listed}"
        );
        say(&format!("fuzzing {target} for {} s", options.seconds));
        run(cargo_fuzz("run")
            .arg("--target-dir")
            .arg(target_directory().join("fuzz"))
            .args([target, "--", "-print_final_stats=1"])
            .arg(format!("-max_total_time={}", options.seconds)))?;
    }
    Ok(())
}
