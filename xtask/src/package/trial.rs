//! Tries packages where they are meant to be: in a Debian that is booted for it, with systemd, in the lab's network.
//!
//! The trial itself is an example of the package `tests`, where the lab is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::directory;
use crate::command::{cargo, output, run, say};
use crate::{prerequisites, root};

/// The system that is installed to be booted: small, and what the trial itself needs.
const SUITE: &str = "bookworm";
const MIRROR: &str = "http://deb.debian.org/debian";
const INCLUDED: &str = "ca-certificates,curl,dbus,iproute2,systemd-sysv";

/// The last line of the newer package's configuration.
pub(super) const CHANGED: &str = "# Of a later version.";

/// Installs the deb, has it work, replaces it by the newer one, removes it and purges it.
pub(super) fn deb(deb: &Path, newer: &Path) -> Result<()> {
    prerequisites::lab()?;
    prerequisites::apt(
        &["debootstrap", "systemd-container"],
        "the packages are tried in a system that is booted for it",
    )?;
    let system = system()?;
    say("building the lab");
    run(cargo("build").args(["--workspace", "--bins", "--locked"]))?;
    say("trying the deb in a booted system");
    run(cargo("run")
        .args(["--locked", "--quiet", "--package", "tests", "--example", "packages", "--"])
        .args([&system, deb, newer, &root().join("packaging/rpm")]))
}

/// Installs and removes the rpm below a root, where no scripts run; and looks at those.
pub(super) fn rpm(rpm: &Path) -> Result<()> {
    prerequisites::apt(&["rpm"], "the rpm is looked at with it")?;
    say("trying the rpm below a root");
    let root = directory().join("rpm-root");
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(&root)?;
    let query = |what: &str| output(Command::new("rpm").args(["--query", "--package", what]).arg(rpm));
    let scripts = query("--scripts")?;
    for script in ["postinstall", "preuninstall", "postuninstall"] {
        ensure!(
            scripts.contains(&format!("{script} scriptlet")),
            "the rpm has no {script} script:\n{scripts}"
        );
    }
    let configurations = query("--configfiles")?;
    ensure!(
        configurations.trim() == "/etc/dworker/dworker.toml",
        "the rpm's configurations: {configurations}"
    );
    let requires = query("--requires")?;
    ensure!(requires.contains("libc.so.6"), "the rpm does not say that it needs the C library:\n{requires}");
    let change = |what: &[&str]| {
        let mut rpm = Command::new("rpm");
        rpm.arg("--root").arg(&root).args(["--nodeps", "--noscripts"]).args(what);
        run(&mut rpm)
    };
    change(&["--install", rpm.to_str().context("the path is not UTF-8")?])?;
    let program = root.join("usr/bin/dworker");
    let version = output(Command::new(&program).arg("--version"))?;
    ensure!(version.starts_with("dworker "), "{}: {version}", program.display());
    change(&["--erase", "dworker"])?;
    ensure!(!program.exists(), "{} is left", program.display());
    fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))
}

/// A Debian that nobody has booted yet. Made once: what a trial changes is in a layer above it.
fn system() -> Result<PathBuf> {
    let system = directory().join(format!("system-{SUITE}"));
    if !system.is_dir() {
        say(&format!("installing Debian's {SUITE} into {}", system.display()));
        let fresh = system.with_extension("new");
        let _ = fs::remove_dir_all(&fresh);
        fs::create_dir_all(&fresh)?;
        let mut debootstrap = Command::new("debootstrap");
        debootstrap
            .args(["--variant=minbase", &format!("--include={INCLUDED}"), SUITE])
            .arg(&fresh)
            .arg(MIRROR);
        output(&mut debootstrap).context("installing a system; the mirror may be out of reach")?;
        // This machine's name, which it copies.
        fs::remove_file(fresh.join("etc/hostname"))?;
        fs::rename(&fresh, &system)?;
    }
    Ok(system)
}
