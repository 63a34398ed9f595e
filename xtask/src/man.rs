//! `man`: man pages and shell completions, as packages have them.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::command::{cargo, run, say};
use crate::{ebpf, target_directory};

/// The files of each shell's completions.
const SHELLS: [(&str, &str); 3] = [("bash", "dworker"), ("zsh", "_dworker"), ("fish", "dworker.fish")];

/// Writes them: `target/man` and `target/completions`.
pub(crate) fn man() -> Result<()> {
    ebpf::build()?;
    run(cargo("build").args(["--locked", "--package", "worker-userspace", "--bin", "dworker"]))?;
    let target = target_directory();
    let dworker = target.join("debug/dworker");
    let (pages, completions) = (target.join("man"), target.join("completions"));
    // Pages of commands that are gone must not be packaged.
    for directory in [&pages, &completions] {
        if directory.exists() {
            fs::remove_dir_all(directory).with_context(|| format!("removing {}", directory.display()))?;
        }
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    }
    run(std::process::Command::new(&dworker).arg("man").arg(&pages))?;
    for (shell, name) in SHELLS {
        let output = std::process::Command::new(&dworker).args(["completions", shell]).output();
        let output = output.with_context(|| format!("running {}", dworker.display()))?;
        ensure!(
            output.status.success(),
            "dworker completions {shell}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let script = output.stdout;
        let path = completions.join(shell);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        fs::write(path.join(name), script).with_context(|| format!("writing {}", path.display()))?;
    }
    say(&format!("{} and {}", pages.display(), completions.display()));
    Ok(())
}
