//! The service's unit, as systemd reads it. That the daemon does all its work under it is what
//! `cargo xtask package --test` shows, in a booted system.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

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
    // With what comes with `reconfigure`, under a systemd that knows it.
    let root = root(252, CONFIGURATION)?;
    reconfigure(&root, &[])?;
    let (_directory, path) =
        unit(&format!("{}\n{}", packaged()?, fs::read_to_string(root.path().join(DROP_IN))?))?;
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

const DROP_IN: &str = "etc/systemd/system/dworker.service.d/10-reconfigure.conf";

/// A host's files, with this version of systemd.
fn root(systemd: u32, configuration: &str) -> Result<TempDir> {
    let root = tempfile::tempdir()?;
    let at = |path: &str| root.path().join(path);
    fs::create_dir_all(at("etc/dworker"))?;
    fs::write(at("etc/dworker/dworker.toml"), configuration)?;
    fs::create_dir_all(at("usr/lib/systemd"))?;
    fs::write(at(&format!("usr/lib/systemd/libsystemd-shared-{systemd}.so")), "")?;
    Ok(root)
}

fn reconfigure(root: &TempDir, more: &[&str]) -> Result<String> {
    Command::new(program()?).args(["reconfigure", "--root"]).arg(root.path()).args(more).check()
}

#[test]
fn what_an_older_systemd_does_not_take_is_not_written() -> Result<()> {
    let root = root(237, CONFIGURATION)?;
    reconfigure(&root, &[])?;
    let drop_in = fs::read_to_string(root.path().join(DROP_IN))?;
    assert!(!drop_in.contains("SystemCallFilter"), "{drop_in}");
    assert!(drop_in.contains("\nCapabilityBoundingSet=CAP_SYS_ADMIN\n"), "{drop_in}");
    fs::create_dir_all(root.path().join("etc/dworker/credentials"))?;
    fs::write(root.path().join("etc/dworker/credentials/apikey"), "any value")?;
    let refused = Command::new(program()?).args(["reconfigure", "--root"]).arg(root.path()).output()?;
    assert!(refused.status.code() == Some(2) && refused.stderr.contains("worker_key_file"), "{refused}");
    Ok(())
}

#[test]
fn links_below_a_root_lead_nowhere_outside() -> Result<()> {
    let (root, outside) = (root(252, CONFIGURATION)?, tempfile::tempdir()?);
    symlink(outside.path(), root.path().join("etc/systemd"))?;
    symlink("../../../../../../../../dworker-srv", root.path().join("srv"))?;
    let shown = reconfigure(&root, &["--dry-run"])?;
    assert!(shown.contains("would write "), "{shown}");
    // systemctl may refuse to enable a unit behind such a link.
    let _ = Command::new(program()?).args(["reconfigure", "--root"]).arg(root.path()).output()?;
    assert_eq!(fs::read_dir(outside.path())?.count(), 0, "it has written outside");
    assert!(root.path().join("dworker-srv/dworker 100%").is_dir() && !Path::new("/dworker-srv").exists());
    assert!(root.path().join(outside.path().strip_prefix("/")?).join("system/dworker.service").is_file());
    Ok(())
}

#[test]
fn a_configuration_that_was_named_stays_named() -> Result<()> {
    let root = root(252, "")?;
    let other = "/srv/other.toml";
    fs::create_dir_all(root.path().join("srv"))?;
    fs::write(root.path().join("srv/other.toml"), CONFIGURATION)?;
    let run = |more: &[&str]| {
        Command::new(program()?).args(["reconfigure", "--root"]).arg(root.path()).args(more).output()
    };
    let relative = run(&["--config", "srv/other.toml"])?;
    assert!(relative.status.code() == Some(2) && relative.stderr.contains("begins with /"), "{relative}");
    assert!(run(&["--config", other])?.status.success());
    let again = run(&[])?;
    assert!(again.stdout.starts_with("nothing to do") && again.stderr.contains(other), "{again}");
    fs::write(root.path().join("etc/dworker/dworker.toml"), CONFIGURATION)?;
    assert!(run(&["--config", "/etc/dworker/dworker.toml"])?.status.success());
    let drop_in = fs::read_to_string(root.path().join(DROP_IN))?;
    assert!(!drop_in.contains("--config"), "{drop_in}");
    Ok(())
}

#[test]
fn root_is_told_of_what_the_service_reads_and_not_of_its_own_shell() -> Result<()> {
    // Instead of this machine's: its units, and what is handed to a service, are others.
    let place = tempfile::tempdir()?;
    let at = |path: &str| place.path().join(path);
    fs::create_dir_all(at("units/dworker.service.d"))?;
    fs::create_dir(at("run"))?;
    fs::write(at("units/dworker.service"), packaged()?)?;
    let named = at("named.toml");
    let drop_in =
        format!("[Service]\nExecStart=\nExecStart=/usr/bin/dworker run --config {}\n", named.display());
    fs::write(at("units/dworker.service.d/10-reconfigure.conf"), drop_in)?;
    let handed = format!(
        "[Service]\nEnvironmentFile={0}/variables\nLoadCredential=worker_key:{0}/key\n",
        place.path().display()
    );
    fs::write(at("units/dworker.service.d/own.conf"), handed)?;
    fs::write(at("variables"), "DWORKER_LANES=7\n")?;
    fs::write(at("key"), "dwk_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaA")?;
    fs::set_permissions(at("key"), fs::Permissions::from_mode(0o600))?;
    fs::write(&named, "appliance_url = \"https://127.0.0.1:1\"\nstate_dir = \"/nowhere\"\n")?;
    let run = |arguments: &[&str]| -> Result<Output> {
        let mounts = [("units", "/etc/systemd/system"), ("run", "/run")];
        let mounts = mounts.map(|(from, to)| format!("mount --bind {} {to} && ", at(from).display()));
        let script = format!("{} exec \"$@\"", mounts.concat());
        let run =
            Command::new("unshare").args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]);
        run.arg(program()?)
            .args(arguments)
            .env("https_proxy", "http://127.0.0.1:2")
            .env("DWORKER_DRAIN", "1s")
            .output()
    };
    let shown = run(&["config", "show"])?;
    assert!(shown.status.success(), "{shown}");
    for line in [
        "worker_key_file = \"/run/credentials/dworker.service/worker_key\" # credential worker_key",
        "lanes = 7 # $DWORKER_LANES",
        "drain = \"10s\" # default",
        "# proxy_address: not set",
    ] {
        assert!(shown.stdout.lines().any(|found| found == line), "{line}\n{shown}");
    }
    let checked = run(&["config", "check"])?;
    assert_eq!(checked.stdout, format!("{}: valid for dworker.service\n", named.display()), "{checked}");
    let said = run(&["doctor", "-j"])?.json()?;
    assert_eq!(said["config"], named.display().to_string(), "{said:#}");
    let findings = said["findings"].as_array().context("no findings")?;
    let severity =
        |id: &str| findings.iter().find(|finding| finding["id"] == id).map(|found| &found["severity"]);
    assert_eq!(severity("configuration"), Some(&"ok".into()), "{said:#}");
    // With the key, and without a proxy.
    assert_eq!(severity("appliance-unreachable"), Some(&"error".into()), "{said:#}");
    // Where one is named it is that one, here.
    let here = run(&["config", "show", "--config", named.to_str().context("a path")?])?;
    assert_eq!(here.status.code(), Some(2), "without the credential there is no key: {here}");
    assert_eq!(fs::read_dir(at("run"))?.count(), 0, "copies of the credentials are left");
    Ok(())
}

#[test]
fn a_file_that_the_service_is_handed_and_that_changes_is_a_change() -> Result<()> {
    let root = root(252, CONFIGURATION)?;
    let at = |path: &str| root.path().join(path);
    fs::create_dir_all(at("etc/systemd/system/dworker.service.d"))?;
    fs::write(
        at("etc/systemd/system/dworker.service.d/own.conf"),
        "[Service]\nEnvironmentFile=-/etc/default/dworker\nLoadCredential=apikey:/srv/apikey\n",
    )?;
    fs::create_dir_all(at("etc/default"))?;
    fs::create_dir_all(at("srv"))?;
    let stamped = || -> Result<String> {
        reconfigure(&root, &[])?;
        let again = reconfigure(&root, &[])?;
        assert!(again.starts_with("nothing to do"), "{again}");
        let text = fs::read_to_string(at(DROP_IN))?;
        Ok(text.lines().find(|line| line.contains("DWORKER_UNIT=")).context("no stamp")?.to_owned())
    };
    let mut stamps = vec![stamped()?];
    for (file, text) in [
        ("etc/default/dworker", "DWORKER_LANES=4\n"),
        ("etc/default/dworker", "DWORKER_LANES=5\n"),
        ("srv/apikey", "one"),
        ("srv/apikey", "two"),
    ] {
        fs::write(at(file), text)?;
        let stamp = stamped()?;
        assert!(!stamps.contains(&stamp), "{file} {text}");
        stamps.push(stamp);
    }
    Ok(())
}

#[test]
fn what_reconfigure_adds_to_it_is_understood_and_written_once() -> Result<()> {
    let root = root(252, CONFIGURATION)?;
    let at = |path: &str| root.path().join(path);
    fs::create_dir_all(at("etc/dworker/credentials"))?;
    fs::write(at("etc/dworker/credentials/apikey"), "any value")?;
    let reconfigure = |more: &[&str]| reconfigure(&root, more);
    let shown = reconfigure(&["--dry-run"])?;
    assert!(shown.contains("\n+++ /etc/systemd/system/dworker.service\n"), "{shown}");
    assert!(!at("etc/systemd").exists() && !at("srv").exists(), "a dry run has written");
    let done = reconfigure(&[])?;
    for step in ["make /srv/run, mode 755", "set the mode of", "enable dworker.service"] {
        assert!(done.contains(step), "{step}\n{done}");
    }
    assert_eq!(fs::metadata(at("etc/dworker/dworker.toml"))?.permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(at("srv"))?.permissions().mode() & 0o777, 0o755, "what is above it");
    assert_eq!(fs::metadata(at("srv/dworker 100%"))?.permissions().mode() & 0o777, 0o700);
    assert!(at("etc/systemd/system/multi-user.target.wants/dworker.service").is_symlink());
    let again = reconfigure(&[])?;
    assert!(again.starts_with("nothing to do"), "{again}");

    let drop_in = fs::read_to_string(at(DROP_IN))?;
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
