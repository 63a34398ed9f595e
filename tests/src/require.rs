//! What the lab needs from its machine, and how to say what is missing.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The Debian packages that the lab needs beyond a minimal system.
pub const PACKAGES: &[&str] = &[
    "bind9-dnsutils",
    "bpftool",
    "dnsmasq-base",
    "golang-1.19-go",
    "golang-github-vmware-govmomi-dev",
    "iproute2",
    "musl-tools",
    "nftables",
    "openjdk-17-jdk-headless",
    "python3-venv",
];

/// Which package brings a tool, where the names differ.
const PACKAGE_OF: &[(&str, &str)] = &[
    ("dig", "bind9-dnsutils"),
    ("dnsmasq", "dnsmasq-base"),
    ("go", "golang-1.19-go"),
    ("ip", "iproute2"),
    ("java", "openjdk-17-jdk-headless"),
    ("musl-gcc", "musl-tools"),
    ("nft", "nftables"),
    ("python3", "python3-venv"),
];

/// Fails when this process may not make network namespaces.
pub(crate) fn root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the lab makes network namespaces and cgroups: run as root: sudo cargo xtask test");
    }
    Ok(())
}

/// The words for a tool that is not there.
pub(crate) fn missing(program: &Path) -> String {
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
    let package = PACKAGE_OF.iter().find(|(tool, _)| *tool == name).map_or(name.as_ref(), |(_, p)| p);
    format!("{} is not installed: apt-get install --no-install-recommends {package}", program.display())
}

/// Runs a tool of the system where this process is, feeding it `input`; its standard output.
pub(crate) fn tool(program: &str, args: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| match e.kind() {
            ErrorKind::NotFound => anyhow::anyhow!(missing(Path::new(program))),
            _ => anyhow::Error::new(e).context(format!("starting {program}")),
        })?;
    let written = child.stdin.take().map(|mut pipe| pipe.write_all(input.as_bytes()));
    let output = child.wait_with_output().with_context(|| format!("waiting for {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} {} failed ({}): {}\n{input}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    if let Some(Err(error)) = written {
        return Err(error).with_context(|| format!("feeding {program}"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_package_is_in_the_list() {
        for (tool, package) in PACKAGE_OF {
            assert!(PACKAGES.contains(package), "{tool} comes from {package}, which is not in PACKAGES");
        }
    }

    #[test]
    fn a_missing_tool_names_its_package() {
        assert!(
            missing(Path::new("/usr/sbin/dnsmasq"))
                .ends_with("apt-get install --no-install-recommends dnsmasq-base")
        );
        assert!(tool("dwlab-no-such-tool", &[], "").unwrap_err().to_string().contains("apt-get install"));
    }
}
