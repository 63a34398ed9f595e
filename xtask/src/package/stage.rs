//! All that is packaged, in one directory, as it will be installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::directory;
use crate::command::run;
use crate::{man, root};

/// Where it is.
fn place() -> PathBuf {
    directory().join("stage")
}

/// Gathers all anew.
pub(super) fn stage(program: &Path) -> Result<()> {
    let place = place();
    match fs::remove_dir_all(&place) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", place.display()));
        }
        _ => {}
    }
    fs::create_dir_all(place.join("doc"))?;
    let dworker = place.join("dworker");
    run(Command::new("strip")
        .args(["--strip-all", "--remove-section=.comment", "-o"])
        .arg(&dworker)
        .arg(program))?;
    man::write(&dworker, &place.join("man"), &place.join("completions"))?;
    for page in entries(&place.join("man"))? {
        // Without name and time, so that one page is always the same file.
        run(Command::new("gzip").args(["-9", "--no-name"]).arg(page))?;
    }
    let packaging = root().join("packaging");
    copy(&packaging.join("dworker.toml"), &place)?;
    copy(&packaging.join("systemd/dworker.service"), &place)?;
    for dashboard in entries(&packaging.join("grafana"))?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
    {
        copy(&dashboard, &place.join("doc"))?;
    }
    for page in
        entries(&root().join("docs"))?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "md"))
    {
        copy(&page, &place.join("doc"))?;
    }
    Ok(())
}

/// Has the configuration end with another line than that of the sources.
pub(super) fn change_configuration(line: &str) -> Result<()> {
    let path = place().join("dworker.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    fs::write(&path, format!("{text}{line}\n")).with_context(|| format!("writing {}", path.display()))
}

fn copy(file: &Path, directory: &Path) -> Result<()> {
    let to = directory.join(file.file_name().unwrap_or_default());
    fs::copy(file, &to).with_context(|| format!("copying {} to {}", file.display(), to.display()))?;
    Ok(())
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let read = fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))?;
    let mut paths = read.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}
