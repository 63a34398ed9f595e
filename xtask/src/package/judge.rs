//! What the distributions' own judges say of the packages: nothing that is not explained beside them.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::say;
use crate::{prerequisites, root};

/// Judges the deb; `packaging/deb/lintian-overrides` has what is meant so, with reasons.
pub(super) fn lintian(deb: &Path) -> Result<()> {
    prerequisites::apt(&["lintian"], "it judges the deb")?;
    say("lintian");
    // It ends with success whatever it finds of warnings and less, so its words count.
    judge(
        Command::new("lintian").args(["--tag-display-limit", "0", "--display-info", "--allow-root"]).arg(deb),
        |said| said.trim().is_empty(),
    )
}

/// Judges the rpm; `packaging/rpm/rpmlint.toml` has what is meant so, with reasons.
pub(super) fn rpmlint(rpm: &Path) -> Result<()> {
    prerequisites::apt(&["rpmlint"], "it judges the rpm")?;
    say("rpmlint");
    let config = root().join("packaging/rpm/rpmlint.toml");
    judge(Command::new("rpmlint").arg("--config").arg(config).arg(rpm), |said| {
        said.lines().any(|line| line.contains(" 0 errors, 0 warnings"))
    })
}

fn judge(command: &mut Command, is_clean: impl Fn(&str) -> bool) -> Result<()> {
    let output = command.output().with_context(|| format!("starting {:?}", command.get_program()))?;
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    ensure!(
        output.status.success() && is_clean(&said),
        "{:?} has found something: mend it, or explain it where the others are explained\n{said}",
        command.get_program()
    );
    Ok(())
}
