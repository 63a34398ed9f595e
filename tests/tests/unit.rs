//! The service's unit, as systemd reads it. That the daemon does all its work under it is what
//! `cargo xtask package --test` shows, in a booted system.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use tempfile::TempDir;
use tests::{Command, Output};

/// Of 100: what `systemd-analyze security` calls OK ends at 50.
const EXPOSURE: u32 = 35;

/// The packaged unit.
fn packaged() -> Result<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/systemd/dworker.service");
    fs::read_to_string(path).with_context(|| path.to_owned())
}

/// A unit whose program is there, which that of the package is only once it is installed.
fn unit(text: &str) -> Result<(TempDir, PathBuf)> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("dworker.service");
    fs::write(&path, text.replace("/usr/bin/dworker", "/bin/true"))?;
    Ok((directory, path))
}

fn verify(text: &str) -> Result<Output> {
    let (_directory, path) = unit(text)?;
    Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(path).output()
}

#[test]
fn systemd_has_nothing_to_say_of_the_unit() -> Result<()> {
    let text = packaged()?;
    let said = verify(&text)?;
    // What it does not know is a warning only.
    assert!(said.status.success() && said.stderr.is_empty(), "{said}");
    let said = verify(&text.replace("WatchdogSec=", "WatchdogSecs="))?;
    assert!(said.stderr.contains("WatchdogSecs"), "{said}");
    Ok(())
}

#[test]
fn the_service_is_little_exposed() -> Result<()> {
    let (_directory, path) = unit(&packaged()?)?;
    let security = Command::new("systemd-analyze").args(["security", "--offline=true", "--no-pager"]);
    let said = security.arg(format!("--threshold={EXPOSURE}")).arg(path).output()?;
    assert!(said.status.success(), "{said}");
    Ok(())
}

#[test]
fn each_capability_has_its_reason() -> Result<()> {
    let text = packaged()?;
    let set = text.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let set: Vec<_> = set.context("no CapabilityBoundingSet")?.split_whitespace().collect();
    let told: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# CAP_")?.split_once("  "))
        .map(|(name, reason)| {
            assert!(reason.trim().len() > 10, "CAP_{name}: {reason}");
            format!("CAP_{name}")
        })
        .collect();
    assert!(set.len() > 3, "{set:?}");
    // In pairs, so that none is without reason, and no reason without one.
    let spaced: Vec<_> = told.iter().map(String::as_str).collect();
    assert_eq!(set, spaced);
    Ok(())
}
