//! The unit, and what a configuration adds to it: fewer capabilities where a role is not there, and places that the unit
//! would hide.
//!
//! What must hold: what comes into force only with a restart is in the stamp, which the service is started with; all
//! else is not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{CREDENTIALS, Found, Wanted};
use crate::config::UNIT_VARIABLE;

/// The unit that packages bring.
const PACKAGED: &str = include_str!("../../../packaging/systemd/dworker.service");
/// The program in it.
const PROGRAM: &str = "/usr/bin/dworker";
/// How files begin that are ours to write.
const OURS: &str = "# Written by `dworker reconfigure`: what is changed here is lost; `systemctl edit dworker` adds to it.\n";
/// The variable that tells a running service under which settings it was started.
pub const VARIABLE: &str = UNIT_VARIABLE;
/// How a configuration is named to the daemon.
const NAMED: &str = " run --config ";
/// The unit's own `TimeoutStopSec` is enough for this `drain`.
pub(super) const DRAIN: Duration = Duration::from_secs(10);
/// How long the rest of a stop may take.
pub(super) const STOP: Duration = Duration::from_secs(20);
/// What the unit hides, and what shows it again.
const HIDDEN: [(&[&str], &str); 2] =
    [(&["/home", "/root", "/run/user"], "ProtectHome=read-only"), (&["/tmp", "/var/tmp"], "PrivateTmp=no")];

/// What the unit has for systemd from this version on. An older one ignores what it does not know, and an allow list of which
/// it knows nothing allows nothing.
const GROUPS_OF_CALLS: u32 = 239;
/// The first version that has `LoadCredential=`.
pub(super) const CREDENTIALS_SINCE: u32 = 247;
/// The first that knows CAP_BPF and CAP_PERFMON; numbers above those that it knows are taken by some before it only.
const NEW_CAPABILITIES: u32 = 247;
/// The first that makes `StateDirectory=`.
pub(super) const OWN_DIRECTORIES: u32 = 235;
/// The first that has `StartLimitIntervalSec=` where the unit has it.
const LIMITS_IN_UNIT: u32 = 230;
/// The first that slows down a service that fails again and again.
const RESTART_STEPS: u32 = 254;

/// What a configuration adds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    /// What only a start brings into force.
    start: Vec<String>,
    /// What systemd obeys as soon as it has read it.
    rest: Vec<String>,
    /// What it obeys at the next start, which nobody has to hurry for.
    unit: Vec<String>,
}

/// All that the unit hides.
pub(super) fn hidden() -> impl Iterator<Item = &'static str> {
    HIDDEN.iter().flat_map(|(above, _)| above.iter().copied())
}

/// The unit where no package has brought one.
pub(super) fn unit(program: &Path) -> String {
    format!("{OURS}{}", PACKAGED.replace(PROGRAM, &quoted(program)))
}

/// True where a file is ours to write.
pub(super) fn is_ours(text: &str) -> bool {
    text.starts_with(OURS)
}

/// What it adds under this version of systemd; where that is not known, only what each version takes.
pub(super) fn of(wanted: &Wanted, credentials: &[&str], systemd: Option<u32>) -> Settings {
    let mut settings = Settings::default();
    let Settings { start, rest, unit } = &mut settings;
    let since = |version| systemd.is_some_and(|systemd| systemd >= version);
    if since(GROUPS_OF_CALLS) {
        start.push(
            "# What services need without what root alone may, of which bpf() is one: so it comes last."
                .into(),
        );
        start.push("SystemCallFilter=@system-service".into());
        start.push("SystemCallFilter=~@privileged".into());
        if wanted.steers {
            start.push("SystemCallFilter=bpf".into());
        }
        start.push("SystemCallErrorNumber=EPERM".into());
    }
    if wanted.steers && !since(NEW_CAPABILITIES) {
        start.push("# This systemd knows no CAP_BPF and CAP_PERFMON, which are parts of this one.".into());
        start.push("CapabilityBoundingSet=CAP_SYS_ADMIN".into());
    }
    if systemd.is_some_and(|systemd| systemd < LIMITS_IN_UNIT) {
        rest.push("StartLimitInterval=0".into());
    }
    if since(RESTART_STEPS) {
        rest.push("# Who fails again and again is slowed down, and is never away for long.".into());
        rest.push("RestartSteps=20".into());
        rest.push("RestartMaxDelaySec=5s".into());
    }
    if !wanted.slices.is_empty() {
        let slices = wanted.slices.join(" ");
        unit.push(
            "# What is captured is there before the first program in it, so that none goes uncaptured."
                .into(),
        );
        unit.push(format!("Wants={slices}"));
        unit.push(format!("After={slices}"));
    }
    if !wanted.steers {
        start.push("# Nothing is captured here.".into());
        start.push("CapabilityBoundingSet=~CAP_BPF CAP_PERFMON CAP_NET_ADMIN".into());
    }
    if !wanted.listen.iter().any(|address| address.port() < 1024) {
        start.push("# No port below 1024 is listened on.".into());
        start.push("CapabilityBoundingSet=~CAP_NET_BIND_SERVICE".into());
    }
    for (path, _) in wanted.directories() {
        start.push(format!("ReadWritePaths={}", quoted(&path)));
        unit.push(format!("RequiresMountsFor={}", quoted(&path)));
    }
    if let Some(directory) = wanted.runtime_directory() {
        start.push("# Below /run nothing outlives a boot.".into());
        start.push(format!("RuntimeDirectory={}", quoted(Path::new(directory))));
    }
    let named = wanted.paths.iter().chain(&wanted.named);
    for (above, shown) in HIDDEN {
        if named.clone().any(|path| above.iter().any(|above| path.starts_with(above))) {
            start.push(format!("# The configuration names files below {}.", above.join(", ")));
            start.push(shown.into());
        }
    }
    for name in credentials {
        start.push(format!("LoadCredential={name}:{CREDENTIALS}/{name}"));
    }
    if let Some(file) = &wanted.named {
        start.push("ExecStart=".into());
        start.push(format!("ExecStart={}{NAMED}{}", quoted(&wanted.program), argument(file)));
    }
    if wanted.names_socket() {
        let socket = argument(&wanted.control_socket);
        rest.push("ExecReload=".into());
        rest.push(format!("ExecReload={} reload --socket {socket}", quoted(&wanted.program)));
    }
    if wanted.drain > DRAIN {
        rest.push("# Longer than `drain`.".into());
        rest.push(format!("TimeoutStopSec={}s", (wanted.drain + STOP).as_secs()));
    }
    settings
}

/// Stands for all that comes into force only with a start.
pub(super) fn stamp(unit: &str, settings: &Settings, found: &Found) -> String {
    let mut hash = Sha256::new();
    // A service has copies of its credentials and variables, made when it is started.
    let handed = found.credentials.values().chain(&found.handed);
    let texts = settings.start.iter().chain(&found.others).chain(handed);
    for text in [unit].into_iter().chain(texts.map(String::as_str)) {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    }
    hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn drop_in(settings: &Settings, stamp: &str) -> String {
    let lines = settings.start.iter().chain(&settings.rest).map(|line| format!("{line}\n"));
    let unit: String = settings.unit.iter().map(|line| format!("{line}\n")).collect();
    let unit = if unit.is_empty() { unit } else { format!("[Unit]\n{unit}\n") };
    format!(
        "{OURS}\n{unit}[Service]\n{}# A service that was started with another value is restarted by `dworker reconfigure`.\n\
         Environment={VARIABLE}={stamp}\n",
        lines.collect::<String>()
    )
}

/// A path as a unit takes it.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy().replace('%', "%%");
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:%".contains(c);
    match text.chars().all(plain) {
        true => text,
        false => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
    }
}

/// A path as an argument of a command, in which systemd expands variables.
fn argument(path: &Path) -> String {
    quoted(path).replace('$', "$$")
}

/// The configuration that a drop-in of ours names to the daemon.
pub(super) fn named(drop_in: &str) -> Option<PathBuf> {
    let lines = drop_in.lines().filter_map(|line| line.strip_prefix("ExecStart="));
    let (_, word) = lines.filter_map(|line| line.split_once(NAMED)).next_back()?;
    let word = match word.strip_prefix('"').and_then(|word| word.strip_suffix('"')) {
        Some(inside) => {
            let mut plain = String::new();
            let mut chars = inside.chars();
            while let Some(c) = chars.next() {
                plain.extend(if c == '\\' { chars.next() } else { Some(c) });
            }
            plain
        }
        None => word.to_owned(),
    };
    Some(word.replace("$$", "$").replace("%%", "%").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_was_named_is_found_again() {
        for path in ["/srv/dworker.toml", "/srv/100% of $HOME.toml", "/srv/a\"b\\c d.toml"] {
            let drop_in =
                format!("{OURS}ExecStart=\nExecStart=/usr/bin/dworker{NAMED}{}\n", argument(Path::new(path)));
            assert_eq!(named(&drop_in).as_deref(), Some(Path::new(path)), "{drop_in}");
        }
        assert_eq!(named("ExecStart=/usr/bin/dworker run\n"), None);
    }

    #[test]
    fn a_path_is_one_word_for_systemd() {
        for (path, word) in [
            ("/srv/dworker", "/srv/dworker"),
            ("/srv/100%", "/srv/100%%"),
            ("/srv/a b", "\"/srv/a b\""),
            ("/srv/a\"b\\c", "\"/srv/a\\\"b\\\\c\""),
        ] {
            assert_eq!(quoted(Path::new(path)), word);
        }
    }

    #[test]
    fn the_unit_names_the_program_that_is_there() {
        let unit = unit(Path::new("/opt/dworker/bin/dworker"));
        assert!(unit.contains("\nExecStart=/opt/dworker/bin/dworker run\n"), "{unit}");
        assert!(unit.contains("\nExecReload=/opt/dworker/bin/dworker reload\n"), "{unit}");
        assert!(!unit.contains(PROGRAM) && is_ours(&unit));
        assert!(!is_ours(PACKAGED));
    }
}
