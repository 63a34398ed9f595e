//! `screenshots`: pictures of the web page, as the README shows them.
//!
//! They are made by an example of the package `tests`, where the lab and the browser are. Tests never do it: a run of
//! theirs leaves the tree as it was.

use std::path::PathBuf;

use anyhow::Result;

use crate::command::{cargo, run, say};
use crate::{ebpf, prerequisites, root};

/// Where the pictures go.
#[derive(clap::Args)]
pub(crate) struct Screenshots {
    /// The directory to write to; `docs/images` unless given.
    directory: Option<PathBuf>,
}

/// Takes the pictures.
pub(crate) fn screenshots(options: &Screenshots) -> Result<()> {
    prerequisites::root_for("screenshots")?;
    prerequisites::lab()?;
    if prerequisites::is_debian() {
        prerequisites::apt(
            &["fonts-inter", "pngquant"],
            "the pictures look the same everywhere, and are small",
        )?;
    }
    ebpf::build()?;
    let directory = match &options.directory {
        Some(directory) => std::path::absolute(directory)?,
        None => root().join("docs/images"),
    };
    say("building dworker and the lab");
    run(cargo("build").args(["--workspace", "--bins", "--locked"]))?;
    say("taking the pictures: three minutes, because plots have to fill");
    run(cargo("run")
        .args(["--locked", "--package", "tests", "--example", "screenshots", "--"])
        .arg(directory))
}
