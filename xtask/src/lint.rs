//! `lint`: formatting, clippy, and the rules for dependencies.

use anyhow::Result;

use crate::command::{cargo, run, say};
use crate::{ebpf, prerequisites, target_directory};

const CARGO_DENY: &str = "0.20.2";
/// The workspace, and what stands beside it with a lock file of its own.
const MANIFESTS: [&str; 3] = ["Cargo.toml", "worker-ebpf/Cargo.toml", "fuzz/Cargo.toml"];

/// Which checks to add.
#[derive(clap::Args, Default)]
pub(crate) struct Lint {
    /// Also look for known vulnerabilities, in a database from the network.
    #[arg(long)]
    advisories: bool,
}

/// Runs all checks and stops at the first that fails.
pub(crate) fn lint(options: &Lint) -> Result<()> {
    say("checking the format");
    for manifest in MANIFESTS {
        run(cargo("fmt").args(["--all", "--check", "--manifest-path", manifest]))?;
    }
    // The daemon embeds the programs, so even checking it needs them.
    ebpf::build()?;
    say("clippy");
    run(cargo("clippy").args(["--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))?;
    say("clippy for the kernel's programs");
    ebpf::clippy()?;
    say("clippy for the fuzz targets");
    prerequisites::fuzzing()?;
    // Into the same directory: most of what they depend on has been checked a moment ago.
    run(cargo("clippy")
        .args(["--manifest-path", "fuzz/Cargo.toml", "--target-dir"])
        .arg(target_directory())
        .args(["--locked", "--", "-D", "warnings"]))?;
    let cargo_deny =
        prerequisites::tool("cargo-deny", CARGO_DENY, "it checks dependencies, licences, sources")?;
    let advisories = options.advisories.then_some("advisories");
    for manifest in MANIFESTS {
        say(&format!("cargo deny for {manifest}"));
        run(std::process::Command::new(&cargo_deny)
            .current_dir(crate::root())
            .args(["--log-level", "warn", "--manifest-path", manifest, "--locked"])
            .args(["check", "--hide-inclusion-graph", "bans", "licenses", "sources"])
            .args(advisories))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    /// Where they differ, what the fuzz targets depend on is checked once more: for minutes.
    #[test]
    fn fuzz_targets_are_checked_with_the_profile_of_the_workspace() {
        let profile = |manifest: &'static str| manifest.split_once("\n[profile.dev]\n").expect("a profile").1;
        let workspace = profile(include_str!("../../Cargo.toml"));
        assert_eq!(profile(include_str!("../../fuzz/Cargo.toml")), workspace);
    }
}
