//! `package`: what an administrator installs: a deb and an rpm, with their checksums and what they are made of.
//!
//! ```text
//! build      the program, for the oldest C library that it shall run with
//! stage      all that is packaged, in target/package/stage
//! deb, rpm   by cargo-deb and cargo-generate-rpm, as worker-userspace/Cargo.toml says
//! judge      lintian and rpmlint find nothing that is not explained
//! sum        SHA256SUMS, and a list of all parts (SBOM, CycloneDX)
//! test       install, configure, work, upgrade, remove, purge, in a Debian that is booted for it
//! ```

mod bom;
mod build;
mod judge;
mod stage;
mod trial;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::command::{output, run, say};
use crate::{prerequisites, root};

const CARGO_DEB: &str = "3.8.0";
const CARGO_GENERATE_RPM: &str = "0.21.0";
/// The package that is one.
const CRATE: &str = "worker-userspace";

/// What to make.
#[derive(clap::Args)]
pub(crate) struct Package {
    /// A package of the development build, for this very system: quick, and for the test only.
    #[arg(long)]
    quick: bool,
    /// Make no rpm, whose tool has to be built first.
    #[arg(long)]
    no_rpm: bool,
    /// Try what was made, in a Debian that is booted for it. Needs root.
    #[arg(long)]
    test: bool,
}

/// Makes the packages, and tries them where asked.
pub(crate) fn package(options: &Package) -> Result<()> {
    if options.test {
        prerequisites::root_for("package --test")?;
    }
    let program = build::program(options.quick)?;
    let directory = directory();
    stage::stage(&program.path)?;
    clean(&directory)?;
    let mut made = vec![deb(&program, &directory, None)?];
    if !options.no_rpm {
        made.push(rpm(&program)?);
    }
    let bom = directory.join("dworker.cdx.json");
    bom::write(&bom)?;
    made.push(bom);
    judge::lintian(&made[0])?;
    if !options.no_rpm {
        judge::rpmlint(&made[1])?;
    }
    sums(&directory, &made)?;
    if options.test {
        // The same program, in a package that is newer, whose configuration says something else; away from those that are
        // handed out.
        let beside = directory.join("newer");
        fs::create_dir_all(&beside)?;
        clean(&beside)?;
        stage::change_configuration(trial::CHANGED)?;
        let newer = deb(&program, &beside, Some(&next(env!("CARGO_PKG_VERSION"))?))?;
        trial::deb(&made[0], &newer)?;
        if !options.no_rpm {
            trial::rpm(&made[1])?;
        }
    }
    for path in made {
        println!("{}", path.display());
    }
    Ok(())
}

/// Where packages are made.
fn directory() -> PathBuf {
    root().join("target/package")
}

/// Removes packages that were made before: who installs `*.deb` gets these ones.
fn clean(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb" || extension == "rpm") {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// The version of a package that follows this one.
fn next(version: &str) -> Result<String> {
    let (before, last) = version.rsplit_once('.').context("a version without parts")?;
    Ok(format!("{before}.{}-1", last.parse::<u32>().with_context(|| version.to_owned())? + 1))
}

/// Makes the deb; with another version than the workspace's where that is given.
fn deb(program: &build::Program, directory: &Path, version: Option<&str>) -> Result<PathBuf> {
    let tool = prerequisites::tool("cargo-deb", CARGO_DEB, "it makes the deb")?;
    say("making the deb");
    let mut command = std::process::Command::new(tool);
    command.current_dir(root()).args([
        "deb",
        "--quiet",
        "--no-build",
        "--no-strip",
        "--package",
        CRATE,
        "--output",
    ]);
    command.arg(directory).args(&program.arguments);
    command.args(version.map(|version| format!("--deb-version={version}")));
    let said = output(&mut command)?;
    let path = PathBuf::from(said.lines().last().unwrap_or_default());
    ensure!(path.is_file(), "cargo-deb does not say what it made: {said}");
    let depends = output(std::process::Command::new("dpkg-deb").arg("--field").arg(&path).arg("Depends"))?;
    let (major, minor) = build::FLOOR;
    let wanted = format!("libc6 (>= {major}.{minor})");
    ensure!(depends.trim() == wanted, "the deb depends on {depends}, and should on {wanted}");
    Ok(path)
}

/// Makes the rpm.
fn rpm(program: &build::Program) -> Result<PathBuf> {
    let tool = prerequisites::tool("cargo-generate-rpm", CARGO_GENERATE_RPM, "it makes the rpm")?;
    say("making the rpm");
    let path = directory().join(format!("dworker-{}-1.x86_64.rpm", env!("CARGO_PKG_VERSION")));
    // The oldest rpm that shall read it knows no newer compression.
    let mut command = std::process::Command::new(tool);
    command.current_dir(root()).args([
        "generate-rpm",
        "--package",
        CRATE,
        "--payload-compress",
        "xz",
        "--output",
    ]);
    run(command.arg(&path).args(&program.arguments))?;
    Ok(path)
}

/// Writes the checksums, as `sha256sum --check` reads them.
fn sums(directory: &Path, made: &[PathBuf]) -> Result<()> {
    let names = made.iter().filter_map(|path| path.file_name());
    let sums = output(std::process::Command::new("sha256sum").current_dir(directory).args(names))?;
    let path = directory.join("SHA256SUMS");
    fs::write(&path, sums).with_context(|| format!("writing {}", path.display()))
}
