//! `man`: man pages and shell completions, as packages have them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{cargo, output, run, say};
use crate::{ebpf, target_directory};

/// The files of each shell's completions.
const SHELLS: [(&str, &str); 3] = [("bash", "dworker"), ("zsh", "_dworker"), ("fish", "dworker.fish")];

/// Writes them: `target/man` and `target/completions`.
pub(crate) fn man() -> Result<()> {
    ebpf::build()?;
    run(cargo("build").args(["--locked", "--package", "worker-userspace", "--bin", "dworker"]))?;
    let target = target_directory();
    let (pages, completions) = (target.join("man"), target.join("completions"));
    write(&target.join("debug/dworker"), &pages, &completions)?;
    say(&format!("{} and {}", pages.display(), completions.display()));
    Ok(())
}

/// Has a program write its own, in these directories and with nothing beside them.
pub(crate) fn write(dworker: &Path, pages: &Path, completions: &Path) -> Result<()> {
    // Pages of commands that are gone must not be packaged.
    for directory in [pages, completions] {
        if directory.exists() {
            fs::remove_dir_all(directory).with_context(|| format!("removing {}", directory.display()))?;
        }
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    }
    run(Command::new(dworker).arg("man").arg(pages))?;
    for (shell, name) in SHELLS {
        let script = output(Command::new(dworker).args(["completions", shell]))?;
        let path = completions.join(shell);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        fs::write(path.join(name), script).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
