//! `demo`: from a fresh clone to a VMware SDK that manages a vCenter which its host cannot reach.
//!
//! The demo itself is a program of the package `tests`, where the lab is.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{cargo, run, say};
use crate::{ebpf, prerequisites, target_directory};

/// What to do with the lab after the show.
#[derive(clap::Args)]
pub(crate) struct Demo {
    /// Leave the lab up, and say how to enter it.
    #[arg(long, conflicts_with = "clean")]
    keep: bool,
    /// Take down the lab that `--keep` left.
    #[arg(long)]
    clean: bool,
}

/// Builds all that the demo needs and becomes it.
pub(crate) fn demo(options: &Demo) -> Result<()> {
    prerequisites::root_for("demo")?;
    if !options.clean {
        prerequisites::lab()?;
        ebpf::build()?;
    }
    say("building dworker and the lab");
    run(cargo("build").args([
        "--quiet",
        "--locked",
        "--package",
        "worker-userspace",
        "--package",
        "tests",
        "--bins",
    ]))?;
    let mut demo = Command::new(target_directory().join("debug/demo"));
    demo.args(options.keep.then_some("--keep")).args(options.clean.then_some("--clean"));
    // In its place, not below it: Ctrl-C then reaches the one process that cleans up.
    Err(demo.exec()).context("starting the demo")
}
