//! `build-ebpf`: compiles `worker-ebpf` to `target/bpf/dworker.o`, which the daemon embeds.
//!
//! Rust's BPF target needs three things that the project's own toolchain lacks: unstable features, the source
//! of `core`, and `bpf-linker` for the compiler's LLVM. They come from a rustup nightly with `rust-src`, or from
//! Debian's packages, which this installs by itself. Whether anything must be compiled is cargo's to say, so
//! a second run takes a second.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{output, run, say};
use crate::{prerequisites, root};

/// The version that is built where none is installed.
const LINKER_VERSION: &str = "0.13.0";
/// The LLVM of Debian's compiler. A linker for it also reads what older LLVMs wrote.
const LLVM: u32 = 22;
/// Debian's compiler, the source of `core`, and what the linker is built with.
const PACKAGES: [&str; 5] = ["rustc-web", "cargo-web", "rust-web-src", "llvm-22-dev", "libzstd-dev"];
const TARGET: &str = "bpfel-unknown-none";
/// What is compiled lies apart from the workspace's own: other compiler, other target.
const BUILD: &str = "target/bpf/build";

/// Compiles the programs and returns the path of the object file.
pub(crate) fn build() -> Result<PathBuf> {
    let toolchain = Toolchain::find()?;
    let linker = toolchain.linker()?;
    run(toolchain
        .cargo("build")?
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Clink-arg=--btf"))?;
    let built = root().join(BUILD).join(TARGET).join("release/dworker");
    let object = root().join("target/bpf/dworker.o");
    publish(&built, &object)?;
    Ok(object)
}

/// Checks the programs with the clippy of the compiler that compiles them.
pub(crate) fn clippy() -> Result<()> {
    let toolchain = Toolchain::find()?;
    if let Toolchain::Debian = toolchain {
        prerequisites::apt(&["rust-web-clippy"], "it checks the programs for the kernel")?;
    }
    run(toolchain.cargo("clippy")?.args(["--", "-D", "warnings"]))
}

/// Copies the object to where the daemon's build looks for it, unless it is there already: a new one would make
/// cargo build the daemon anew. The daemon's build compares its age with the sources', so the age counts too.
fn publish(built: &Path, object: &Path) -> Result<()> {
    let reading = || format!("reading {}", built.display());
    let bytes = fs::read(built).with_context(reading)?;
    let age = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    let built_at = age(built).with_context(reading)?;
    if age(object).is_ok_and(|there| there >= built_at) && fs::read(object).is_ok_and(|there| there == bytes)
    {
        return Ok(());
    }
    let fresh = object.with_extension("new");
    fs::write(&fresh, bytes).with_context(|| format!("writing {}", fresh.display()))?;
    fs::rename(&fresh, object).with_context(|| format!("replacing {}", object.display()))
}

/// Who compiles.
enum Toolchain {
    /// A nightly of rustup's that has `rust-src`, and a linker for its LLVM.
    Rustup { name: String, linker: PathBuf },
    /// Debian's packages.
    Debian,
}

impl Toolchain {
    fn find() -> Result<Toolchain> {
        let nightly = nightly_with_source();
        if let Some((name, llvm)) = &nightly
            && let Some(linker) = linker_for(*llvm)
        {
            return Ok(Toolchain::Rustup { name: name.clone(), linker });
        }
        if prerequisites::is_debian() {
            return Ok(Toolchain::Debian);
        }
        match nightly {
            Some((name, llvm)) => bail!(
                "{name} can compile for BPF, but there is no bpf-linker for its LLVM {llvm}.\n\
                 Install one (https://github.com/aya-rs/bpf-linker#installation), for example with\n    \
                 cargo binstall bpf-linker\nand run `cargo xtask build-ebpf` again."
            ),
            None => bail!(
                "no compiler for BPF: this needs a nightly toolchain with the source of `core`, and bpf-linker. Run\n    \
                 rustup toolchain install nightly --component rust-src\n    \
                 cargo binstall bpf-linker\nand then `cargo xtask build-ebpf` again. \
                 (On Debian all this is installed from packages.)"
            ),
        }
    }

    /// The linker; builds it when it is missing.
    fn linker(&self) -> Result<PathBuf> {
        match self {
            Toolchain::Rustup { linker, .. } => Ok(linker.clone()),
            Toolchain::Debian => {
                Toolchain::install()?;
                build_linker()
            }
        }
    }

    /// A cargo for the kernel's target; installs what is missing.
    fn cargo(&self, subcommand: &str) -> Result<Command> {
        let mut cargo = match self {
            Toolchain::Rustup { name, .. } => {
                let mut cargo = clean("rustup");
                cargo.args(["run", name, "cargo"]);
                cargo
            }
            Toolchain::Debian => {
                Toolchain::install()?;
                let mut cargo = clean("/usr/bin/cargo");
                // Its own clippy comes before rustup's, which would bring another compiler.
                let path = std::env::var_os("PATH").unwrap_or_default();
                let path = std::iter::once("/usr/bin".into()).chain(std::env::split_paths(&path));
                cargo.env("PATH", std::env::join_paths(path)?);
                // Debian's compiler is a stable one; `-Z build-std` is the only unstable thing asked of it.
                cargo.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
        };
        cargo
            .current_dir(root().join("worker-ebpf"))
            .args([subcommand, "--release", "--locked", "-Z", "build-std=core", "--target", TARGET])
            .arg("--target-dir")
            .arg(root().join(BUILD));
        Ok(cargo)
    }

    fn install() -> Result<()> {
        prerequisites::apt(&PACKAGES, "they compile programs for the kernel")
    }
}

/// The first of rustup's nightlies that has the source of `core`, and its LLVM's major version.
fn nightly_with_source() -> Option<(String, u32)> {
    let listed = output(clean("rustup").args(["toolchain", "list"])).ok()?;
    listed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .find_map(|name| {
            let rustc = |args: &[&str]| output(clean("rustup").args(["run", name, "rustc"]).args(args)).ok();
            let sysroot = rustc(&["--print", "sysroot"])?;
            let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs");
            source.exists().then_some(())?;
            let version = rustc(&["--version", "--verbose"])?;
            let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
            Some((name.to_owned(), llvm.split('.').next()?.parse().ok()?))
        })
}

/// A bpf-linker that reads what LLVM `llvm` wrote: the user's own, or ours where it is not too old.
fn linker_for(llvm: u32) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join("bpf-linker"))
        .find(|file| file.is_file())
        .or_else(|| (llvm <= LLVM).then(our_linker).filter(|file| file.is_file()))
}

fn our_linker() -> PathBuf {
    root().join("target/tools/bin/bpf-linker")
}

/// Builds bpf-linker with Debian's LLVM, once.
fn build_linker() -> Result<PathBuf> {
    let linker = our_linker();
    if output(Command::new(&linker).arg("--version")).is_ok_and(|v| v.trim().ends_with(LINKER_VERSION)) {
        return Ok(linker);
    }
    say(&format!("building bpf-linker {LINKER_VERSION}: it links programs for the kernel"));
    run(prerequisites::quick(clean("/usr/bin/cargo").arg("install"))
        .env("RUSTC", "/usr/bin/rustc")
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{LLVM}"))
        .args(["bpf-linker", "--version", LINKER_VERSION, "--locked", "--force"])
        .args(["--no-default-features", "--features", &format!("llvm-{LLVM}"), "--root"])
        .arg(root().join("target/tools")))
    .context("building bpf-linker")?;
    Ok(linker)
}

/// A command without what `cargo xtask` and rustup have put into our environment, which is meant for
/// this build and would choose the wrong compiler, flags or libraries in the other.
fn clean(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(leaks) {
            command.env_remove(name);
        }
    }
    command
}

/// True for the variables that tell one build's cargo or rustc about that build. Where cargo keeps
/// its downloads and how it reaches the registry (`CARGO_HOME`, `CARGO_HTTP_*`, ...) holds for every build.
fn leaks(name: &str) -> bool {
    const PREFIXES: [&str; 9] = [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_BUILD_",
        "CARGO_CFG_",
        "CARGO_FEATURE_",
        "CARGO_PROFILE_",
        "CARGO_TARGET_",
        "RUSTC",
    ];
    const NAMES: [&str; 8] = [
        "CARGO",
        "CARGO_CRATE_NAME",
        "CARGO_PRIMARY_PACKAGE",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "RUST_RECURSION_COUNT",
        "LD_LIBRARY_PATH",
    ];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_belongs_to_this_build_stays_with_it() {
        for name in ["CARGO", "RUSTC", "RUSTC_WRAPPER", "RUSTFLAGS", "CARGO_TARGET_DIR", "RUSTUP_TOOLCHAIN"] {
            assert!(leaks(name), "{name}");
        }
        for name in
            ["CARGO_HOME", "RUSTUP_HOME", "CARGO_HTTP_CAINFO", "CARGO_REGISTRIES_X_INDEX", "PATH", "HOME"]
        {
            assert!(!leaks(name), "{name}");
        }
    }

    #[test]
    fn the_same_object_is_not_written_twice() {
        let dir = std::env::temp_dir().join(format!("xtask-publish-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (built, object) = (dir.join("built"), dir.join("dworker.o"));
        let inode = || fs::metadata(&object).unwrap().ino();
        fs::write(&built, "one").unwrap();
        publish(&built, &object).unwrap();
        let first = inode();
        publish(&built, &object).unwrap();
        assert_eq!(inode(), first);
        fs::write(&built, "two").unwrap();
        publish(&built, &object).unwrap();
        assert_eq!(fs::read_to_string(&object).unwrap(), "two");
        fs::remove_dir_all(&dir).unwrap();
    }
}
