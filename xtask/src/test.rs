//! `test`: every test of the workspace, those that need root included.

use anyhow::Result;

use crate::command::{cargo, run, say};
use crate::{ebpf, prerequisites};

/// Runs the tests; `arguments` go to `cargo test`.
pub(crate) fn test(arguments: &[String]) -> Result<()> {
    prerequisites::root_for("test")?;
    prerequisites::lab()?;
    ebpf::build()?;
    say("building dworker: the lab runs it");
    run(cargo("build").args(["--workspace", "--bins", "--locked"]))?;
    say("testing");
    run(cargo("test").args(["--workspace", "--locked"]).args(arguments))
}
