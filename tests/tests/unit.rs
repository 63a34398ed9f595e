//! The service's unit, as systemd reads it. That the daemon does all its work under it is what
//! `cargo xtask package --test` shows, in a booted system.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use tempfile::TempDir;
use tests::{Command, Output, program};

/// Of 100: what `systemd-analyze security` calls OK ends at 50.
const EXPOSURE: u32 = 35;

/// The packaged unit.
fn packaged() -> Result<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/systemd/dworker.service");
    fs::read_to_string(path).with_context(|| path.to_owned())
}

/// A unit whose program is there, which that of the package is only once it is installed.
fn unit(text: &str) -> Result<(TempDir, PathBuf)> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("dworker.service");
    fs::write(&path, text.replace("/usr/bin/dworker", "/bin/true"))?;
    Ok((directory, path))
}

fn verify(text: &str) -> Result<Output> {
    let (_directory, path) = unit(text)?;
    Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(path).output()
}

#[test]
fn systemd_has_nothing_to_say_of_the_unit() -> Result<()> {
    let text = packaged()?;
    let said = verify(&text)?;
    // What it does not know is a warning only.
    assert!(said.status.success() && said.stderr.is_empty(), "{said}");
    let said = verify(&text.replace("WatchdogSec=", "WatchdogSecs="))?;
    assert!(said.stderr.contains("WatchdogSecs"), "{said}");
    Ok(())
}

#[test]
fn the_service_is_little_exposed() -> Result<()> {
    let (_directory, path) = unit(&packaged()?)?;
    let security = Command::new("systemd-analyze").args(["security", "--offline=true", "--no-pager"]);
    let said = security.arg(format!("--threshold={EXPOSURE}")).arg(path).output()?;
    assert!(said.status.success(), "{said}");
    Ok(())
}

/// A configuration for which the unit is not enough.
const CONFIGURATION: &str = r#"
state_dir = "/srv/dworker 100%"
control_socket = "/srv/run/control.sock"
drain = "60s"
appliance_url = "https://appliance.example"
worker_key = "dwk_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaA"
ca_file = "/root/ca.pem"
[steer]
cgroups = ["appliance.slice"]
proxy_hosts = ["vcenter.corp.example"]
"#;

#[test]
fn what_reconfigure_adds_to_it_is_understood_and_written_once() -> Result<()> {
    let root = tempfile::tempdir()?;
    let at = |path: &str| root.path().join(path);
    fs::create_dir_all(at("etc/dworker/credentials"))?;
    fs::write(at("etc/dworker/credentials/apikey"), "any value")?;
    fs::write(at("etc/dworker/dworker.toml"), CONFIGURATION)?;
    let reconfigure = |more: &[&str]| {
        Command::new(program()?).args(["reconfigure", "--root"]).arg(root.path()).args(more).check()
    };
    let shown = reconfigure(&["--dry-run"])?;
    assert!(shown.contains("\n+++ /etc/systemd/system/dworker.service\n"), "{shown}");
    assert!(!at("etc/systemd").exists() && !at("srv").exists(), "a dry run has written");
    let done = reconfigure(&[])?;
    for step in ["make /srv/run, mode 755", "set the mode of", "enable dworker.service"] {
        assert!(done.contains(step), "{step}\n{done}");
    }
    assert_eq!(fs::metadata(at("etc/dworker/dworker.toml"))?.permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(at("srv/dworker 100%"))?.permissions().mode() & 0o777, 0o700);
    assert!(at("etc/systemd/system/multi-user.target.wants/dworker.service").is_symlink());
    let again = reconfigure(&[])?;
    assert!(again.starts_with("nothing to do"), "{again}");

    let drop_in = at("etc/systemd/system/dworker.service.d/10-reconfigure.conf");
    let drop_in = fs::read_to_string(&drop_in)?;
    assert!(drop_in.contains("LoadCredential=apikey:"), "{drop_in}");
    let beside = |text: &str| {
        let (directory, path) = unit(&packaged()?)?;
        let place = directory.path().join("dworker.service.d");
        fs::create_dir(&place)?;
        fs::write(place.join("10-reconfigure.conf"), text.replace("/usr/bin/dworker", "/bin/true"))?;
        Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(path).output()
    };
    let said = beside(&drop_in)?;
    assert!(said.status.success() && said.stderr.is_empty(), "{said}\n{drop_in}");
    let said = beside(&drop_in.replace("TimeoutStopSec=", "TimeoutStopSecs="))?;
    assert!(said.stderr.contains("TimeoutStopSecs"), "the drop-in is not read: {said}");
    Ok(())
}

#[test]
fn each_capability_has_its_reason() -> Result<()> {
    let text = packaged()?;
    let set = text.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let set: Vec<_> = set.context("no CapabilityBoundingSet")?.split_whitespace().collect();
    let told: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# CAP_")?.split_once("  "))
        .map(|(name, reason)| {
            assert!(reason.trim().len() > 10, "CAP_{name}: {reason}");
            format!("CAP_{name}")
        })
        .collect();
    assert!(set.len() > 3, "{set:?}");
    // In pairs, so that none is without reason, and no reason without one.
    let spaced: Vec<_> = told.iter().map(String::as_str).collect();
    assert_eq!(set, spaced);
    Ok(())
}
