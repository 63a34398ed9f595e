//! What the lab needs from its machine, and how to say what is missing.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The Debian packages that the lab needs beyond a minimal system, each with what shows that it is there.
fn packages() -> impl Iterator<Item = (&'static str, &'static Path)> {
    include_str!("../packages.txt").lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?, Path::new(words.next()?)))
    })
}

/// Fails when this process may not make network namespaces.
pub(crate) fn root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the lab makes network namespaces and cgroups: run as root: sudo cargo xtask test");
    }
    Ok(())
}

/// The words for a tool that is not there.
pub(crate) fn missing(program: &Path) -> String {
    let name = program.file_name().unwrap_or(program.as_os_str());
    let brings = packages().find(|(_, proof)| proof.file_name() == Some(name));
    let package = brings.map_or(name.to_string_lossy(), |(package, _)| package.into());
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
    fn a_missing_tool_names_its_package() {
        for (tool, package) in [
            ("/usr/sbin/dnsmasq", "dnsmasq-base"),
            ("/usr/lib/go-1.19/bin/go", "golang-1.19-go"),
            ("dig", "bind9-dnsutils"),
            ("strace", "strace"),
        ] {
            let words = missing(Path::new(tool));
            assert!(
                words.ends_with(&format!("apt-get install --no-install-recommends {package}")),
                "{words}"
            );
        }
        assert!(tool("dwlab-no-such-tool", &[], "").unwrap_err().to_string().contains("apt-get install"));
    }
}
