//! The program, built to run on systems that are older than this one.
//!
//! It is linked dynamically, against a C library of 2012: `getaddrinfo` loads what nsswitch.conf names (sss, resolve, ldap,
//! mdns), and a static glibc can load only modules of exactly its own version. Zig brings stubs of each version of glibc,
//! so no old system is needed to link on.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::CRATE;
use crate::command::{cargo, output, run, say};
use crate::{ebpf, prerequisites, root, target_directory};

const CARGO_ZIGBUILD: &str = "0.24.1";
/// Zig, as PyPI has it.
const ZIGLANG: &str = "0.13.0";
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The oldest glibc that it runs with: that of RHEL 7 and CentOS 7, which is Rust's own floor, too.
pub(super) const FLOOR: (u32, u32) = (2, 17);

/// A program that was built.
pub(super) struct Program {
    pub(super) path: PathBuf,
    /// What tells the packagers which it is.
    pub(super) arguments: Vec<String>,
}

/// Builds it; quickly for this system only.
pub(super) fn program(quick: bool) -> Result<Program> {
    ebpf::build()?;
    if quick {
        say("building the program, as for tests");
        // The very build that the tests have made.
        run(cargo("build").args(["--workspace", "--bins", "--locked"]))?;
        return Ok(Program { path: target_directory().join("debug/dworker"), arguments: Vec::new() });
    }
    let zigbuild =
        prerequisites::tool("cargo-zigbuild", CARGO_ZIGBUILD, "it links against an old C library")?;
    let (major, minor) = FLOOR;
    say(&format!("building the program for glibc {major}.{minor} and newer"));
    let mut build = Command::new(zigbuild);
    build.current_dir(root()).env("CARGO_ZIGBUILD_PYTHON_PATH", zig()?.join("bin/python3"));
    build.args(["zigbuild", "--release", "--locked", "--package", CRATE, "--bins", "--target"]);
    run(build.arg(format!("{TARGET}.{major}.{minor}")))?;
    let path = target_directory().join(TARGET).join("release/dworker");
    let needed = needed(&output(Command::new("objdump").arg("-T").arg(&path))?);
    let needed = needed.context("the program needs no glibc at all: it can't be what was asked for")?;
    ensure!(
        needed <= FLOOR,
        "the program needs glibc {}.{}, and {major}.{minor} was promised",
        needed.0,
        needed.1
    );
    Ok(Program { path, arguments: vec!["--target".into(), TARGET.into()] })
}

/// A Python environment with Zig in it.
fn zig() -> Result<PathBuf> {
    let place = root().join("target/tools/zig");
    let pip = place.join("bin/pip");
    let is_there = || {
        let said = output(Command::new(&pip).args(["show", "ziglang"])).unwrap_or_default();
        said.lines().any(|line| line == format!("Version: {ZIGLANG}"))
    };
    if !is_there() {
        if prerequisites::is_debian() {
            prerequisites::apt(&["python3-venv"], "Zig comes from PyPI")?;
        }
        say(&format!("fetching zig {ZIGLANG}: it has the C libraries of old systems"));
        run(Command::new("python3").args(["-m", "venv"]).arg(&place))?;
        run(Command::new(&pip).args(["install", "--quiet", &format!("ziglang=={ZIGLANG}")]))?;
    }
    Ok(place)
}

/// The newest version of glibc that a symbol of `objdump -T` wants.
fn needed(symbols: &str) -> Option<(u32, u32)> {
    let versions = symbols.split(|c: char| c.is_whitespace() || c == '(' || c == ')');
    let versions = versions.filter_map(|word| {
        let mut parts = word.strip_prefix("GLIBC_")?.split('.').map(|part| part.parse().ok());
        Some((parts.next()??, parts.next()??))
    });
    versions.max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_symbol_sets_the_floor() {
        let symbols = "DYNAMIC SYMBOL TABLE:\n\
                       0000000000000000      DF *UND*  0000000000000000 (GLIBC_2.2.5) memcpy\n\
                       0000000000000000      DF *UND*  0000000000000000 (GLIBC_2.34) __libc_start_main\n\
                       0000000000000000  w   DF *UND*  0000000000000000  GLIBC_2.9   pipe2\n\
                       0000000000000000      DF *UND*  0000000000000000 (GCC_3.0) _Unwind_Resume\n";
        assert_eq!(needed(symbols), Some((2, 34)));
        assert_eq!(needed("no symbols"), None);
    }
}
