//! What the commands need from their machine: root, packages of the system, tools of cargo's.
//!
//! On Debian what is missing is installed. Elsewhere packages have other names, so the answer there is the whole list
//! of what is missing and why.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::command::{cargo, output, run, say};
use crate::root;

/// Services that packages bring, or those that they need, and that the lab does without.
const SERVICES: [&str; 5] = ["squid", "prometheus", "nginx", "ssh", "redsocks"];
/// Where Debian has a script for each, and where systemd has units.
const PLACES: [&str; 3] = ["/etc/init.d", "/etc/systemd/system", "/lib/systemd/system"];
/// What Debian asks whether a package may start its service.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// A line of `tests/packages.txt`.
#[derive(Debug, PartialEq)]
struct Need {
    package: &'static str,
    /// A tool, or the path of a file.
    proof: &'static str,
    why: &'static str,
}

/// Fails when not root, with the line that helps.
pub(crate) fn root_for(command: &str) -> Result<()> {
    ensure!(
        is_root(),
        "this makes network namespaces and cgroups and loads programs into the kernel, so it needs root. Run\n    \
         sudo -E env \"PATH=$PATH\" cargo xtask {command}"
    );
    Ok(())
}

/// Installs what the lab needs, where something is missing.
pub(crate) fn lab() -> Result<()> {
    let needs = needs();
    if is_debian() {
        let packages: Vec<_> = needs.iter().map(|need| need.package).collect();
        return apt(&packages, "the lab needs them");
    }
    let missing: Vec<_> = needs.iter().filter(|need| !is_there(need.proof)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<_> = missing
        .iter()
        .map(|need| format!("    {} ({} on Debian): {}\n", need.proof, need.package, need.why))
        .collect();
    bail!("the lab needs what this machine lacks; install it and try again:\n{}", list.concat())
}

/// Installs what the fuzz targets need to compile. Elsewhere than on Debian a C++ compiler is the reader's to find.
pub(crate) fn fuzzing() -> Result<()> {
    if is_debian() { apt(&["g++"], "the fuzz targets contain libFuzzer, which is C++") } else { Ok(()) }
}

/// Installs those of these Debian packages that are missing; `why` completes "installing ...:".
pub(crate) fn apt(packages: &[&str], why: &str) -> Result<()> {
    let query = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status} ${Package}\n"])
        .args(packages)
        .output()
        .context("asking dpkg-query what is installed")?;
    // A package that dpkg has never heard of is no line, and an error that says no more.
    let listed = String::from_utf8(query.stdout)?;
    let missing: Vec<_> = packages
        .iter()
        .filter(|package| !listed.lines().any(|line| line.strip_prefix("installed ") == Some(package)))
        .copied()
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand = format!("apt-get install --no-install-recommends {}", missing.join(" "));
    ensure!(is_root(), "packages are missing, and installing them needs root. Run\n    sudo {by_hand}");
    say(&format!("installing {}: {why}", missing.join(" ")));
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "--yes", "-o", "DPkg::Lock::Timeout=600"]);
        apt
    };
    run(apt().arg("update"))?;
    // What is there already is somebody's, and stays as it is.
    let before = services(&PLACES.map(Path::new));
    let quiet = Quiet::begin(Path::new(POLICY))?;
    let installed = run(apt().args(["install", "--no-install-recommends"]).args(&missing))
        .with_context(|| format!("installing packages; `{by_hand}` by hand tells more"));
    drop(quiet);
    installed?;
    // Not at the next boot either: nobody asked this machine for them.
    let new = services(&[Path::new(PLACES[0])]).into_iter().filter(|service| !before.contains(service));
    let disabled: Vec<_> =
        new.map(|service| run(Command::new("update-rc.d").args([service, "disable"]))).collect();
    disabled.into_iter().collect()
}

/// The services that are in any of these places.
fn services(places: &[&Path]) -> Vec<&'static str> {
    let is_there = |service: &str| {
        let unit = format!("{service}.service");
        places.iter().any(|place| place.join(service).exists() || place.join(&unit).exists())
    };
    SERVICES.into_iter().filter(|service| is_there(service)).collect()
}

/// While it lives, no package starts a service. What the administrator says of that stays as it is.
struct Quiet<'p>(Option<&'p Path>);

impl Quiet<'_> {
    fn begin(policy: &Path) -> Result<Quiet<'_>> {
        match OpenOptions::new().write(true).create_new(true).mode(0o755).open(policy) {
            Ok(mut file) => {
                // Removed also where it could not be written.
                let quiet = Quiet(Some(policy));
                file.write_all(
                    b"#!/bin/sh\n# Made by dworker's cargo xtask while it installs packages.\nexit 101\n",
                )
                .with_context(|| format!("writing {}", policy.display()))?;
                Ok(quiet)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Quiet(None)),
            Err(error) => Err(error).with_context(|| format!("making {}", policy.display())),
        }
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        if let Some(policy) = self.0 {
            // Where it stays, services are not started; the file says whose it is.
            let _ = fs::remove_file(policy);
        }
    }
}

/// A program from crates.io of exactly this version, built once and kept in `target/tools`.
pub(crate) fn tool(name: &str, version: &str, why: &str) -> Result<PathBuf> {
    let tool = root().join("target/tools/bin").join(name);
    if output(Command::new(&tool).arg("--version")).is_ok_and(|v| v.trim().ends_with(version)) {
        return Ok(tool);
    }
    say(&format!("building {name} {version}: {why}"));
    run(quick(&mut cargo("install"))
        .args([name, "--version", version, "--locked", "--force", "--quiet", "--root"])
        .arg(root().join("target/tools")))?;
    Ok(tool)
}

/// Has `cargo install` build without optimizing, which takes a quarter of the time: what is installed runs for seconds.
pub(crate) fn quick(install: &mut Command) -> &mut Command {
    install.env("CARGO_PROFILE_DEV_DEBUG", "0").arg("--debug")
}

/// True on Debian itself: its derivatives have other versions of what is installed here.
pub(crate) fn is_debian() -> bool {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let id = text.lines().find_map(|line| line.strip_prefix("ID="));
    id.is_some_and(|id| id.trim_matches('"') == "debian")
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// True where a tool is in the path, or in the administrator's; or where a file exists.
fn is_there(proof: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    Path::new(proof).is_absolute() && Path::new(proof).exists()
        || std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|directory| directory.join(proof).is_file())
}

fn needs() -> Vec<Need> {
    include_str!("../../tests/packages.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (package, rest) = line.split_once(' ')?;
            let (proof, why) = rest.trim_start().split_once(' ')?;
            Some(Need { package, proof, why: why.trim_start() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_list_is_read() {
        let lines = include_str!("../../tests/packages.txt").lines().filter(|line| !line.starts_with('#'));
        assert_eq!(needs().len(), lines.count());
        let dig = Need { package: "bind9-dnsutils", proof: "dig", why: "the tests ask resolvers with it" };
        assert_eq!(needs()[0], dig);
    }

    #[test]
    fn no_service_is_started_while_packages_are_installed_and_an_administrators_word_stays() {
        let directory = std::env::temp_dir().join(format!("dworker-xtask-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let policy = directory.join("policy-rc.d");
        let quiet = Quiet::begin(&policy).unwrap();
        let answer = Command::new(&policy).args(["squid", "start"]).status().unwrap();
        assert_eq!(answer.code(), Some(101), "it may start");
        drop(quiet);
        assert!(!policy.exists());
        fs::write(&policy, "#!/bin/sh\nexit 0\n").unwrap();
        drop(Quiet::begin(&policy).unwrap());
        assert_eq!(fs::read_to_string(&policy).unwrap(), "#!/bin/sh\nexit 0\n");
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_service_is_there_where_its_script_or_unit_is() {
        let scripts = std::env::temp_dir().join(format!("dworker-xtask-services-{}", std::process::id()));
        fs::create_dir(&scripts).unwrap();
        assert_eq!(services(&[&scripts]), [""; 0]);
        fs::write(scripts.join("ssh"), "").unwrap();
        fs::write(scripts.join("nginx.service"), "").unwrap();
        assert_eq!(services(&[Path::new("/nowhere"), &scripts]), ["nginx", "ssh"]);
        fs::remove_dir_all(scripts).unwrap();
    }

    #[test]
    fn a_proof_is_a_tool_or_a_file() {
        assert!(is_there("sh"));
        assert!(is_there("/bin/sh"));
        assert!(!is_there("no-such-tool"));
        assert!(!is_there("/bin/no-such-tool"));
    }
}
