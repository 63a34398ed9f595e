//! What the lab builds once and keeps under `target/lab`: clients and the simulator.
//!
//! An artefact is made anew when a source of it, or the way it is made, changes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use crate::require::missing;

/// A file of the folder `tests/clients`.
pub(crate) fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

/// The folder of what is built.
pub(crate) fn directory() -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target"), PathBuf::from);
    let directory = std::path::absolute(target.join("lab"))?;
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    Ok(directory)
}

/// The artefact `name`, made by `make` unless what is there comes from these very sources.
///
/// Only one process makes artefacts at a time; the others wait. `make` gets the path to create.
pub(crate) fn artefact(
    name: &str,
    sources: &[PathBuf],
    recipe: &str,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let directory = directory()?;
    let path = directory.join(name);
    let mut wanted = format!("{}\n{recipe}\n", path.display());
    for source in sources {
        wanted += &fs::read_to_string(source).with_context(|| format!("reading {}", source.display()))?;
    }
    let stamp = directory.join(format!("{name}.stamp"));
    let is_current = || path.exists() && fs::read_to_string(&stamp).is_ok_and(|made| made == wanted);
    if is_current() {
        return Ok(path);
    }
    let lock = File::create(directory.join("lock")).context("creating the lock of target/lab")?;
    lock.lock().context("waiting for the lock of target/lab")?;
    if is_current() {
        return Ok(path);
    }
    // The stamp goes first and comes last: what is half made is never taken for done.
    for old in [&stamp, &path] {
        remove(old)?;
    }
    make(&path).with_context(|| format!("making {name}"))?;
    fs::write(&stamp, wanted).with_context(|| format!("writing {}", stamp.display()))?;
    Ok(path)
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Runs a build tool of the machine, with the machine's environment and `env` besides.
pub(crate) fn build<S: AsRef<OsStr>>(program: &str, args: &[S], env: &[(&str, &OsStr)]) -> Result<()> {
    let output =
        Command::new(program).args(args).envs(env.iter().copied()).stdin(Stdio::null()).output().map_err(
            |error| match error.kind() {
                ErrorKind::NotFound => anyhow!(missing(Path::new(program))),
                _ => anyhow!(error).context(format!("starting {program}")),
            },
        )?;
    if !output.status.success() {
        bail!(
            "{program} failed ({}):\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
