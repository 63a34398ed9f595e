//! The unit, and what a configuration adds to it: fewer capabilities where a role is not there, and places that the unit
//! would hide.
//!
//! What must hold: what comes into force only with a restart is in the stamp, which the service is started with; all
//! else is not.

use std::path::Path;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{CREDENTIALS, Found, OWN, Wanted};

/// The unit that packages bring.
const PACKAGED: &str = include_str!("../../../packaging/systemd/dworker.service");
/// The program in it.
const PROGRAM: &str = "/usr/bin/dworker";
/// How files begin that are ours to write.
const OURS: &str = "# Written by `dworker reconfigure`: what is changed here is lost; `systemctl edit dworker` adds to it.\n";
/// The variable that tells a running service under which settings it was started.
pub const VARIABLE: &str = "DWORKER_UNIT";
/// The unit's own `TimeoutStopSec` is enough for this `drain`.
const DRAIN: Duration = Duration::from_secs(10);
/// How long the rest of a stop may take.
const STOP: Duration = Duration::from_secs(20);
/// What the unit hides, and what shows it again.
const HIDDEN: [(&[&str], &str); 2] =
    [(&["/home", "/root", "/run/user"], "ProtectHome=read-only"), (&["/tmp", "/var/tmp"], "PrivateTmp=no")];

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

/// The unit where no package has brought one.
pub(super) fn unit(program: &Path) -> String {
    format!("{OURS}{}", PACKAGED.replace(PROGRAM, &quoted(program)))
}

/// True where a file is ours to write.
pub(super) fn is_ours(text: &str) -> bool {
    text.starts_with(OURS)
}

pub(super) fn of(wanted: &Wanted, credentials: &[&str]) -> Settings {
    let mut settings = Settings::default();
    let Settings { start, rest, unit } = &mut settings;
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
        start.push("SystemCallFilter=~bpf".into());
    }
    if !wanted.listen.iter().any(|address| address.port() < 1024) {
        start.push("# No port below 1024 is listened on.".into());
        start.push("CapabilityBoundingSet=~CAP_NET_BIND_SERVICE".into());
    }
    for (path, _) in wanted.directories() {
        start.push(format!("ReadWritePaths={}", quoted(&path)));
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
        start.push(format!("ExecStart={} run --config {}", quoted(&wanted.program), quoted(file)));
    }
    if !wanted.control_socket.starts_with(OWN[1]) {
        let socket = quoted(&wanted.control_socket);
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
    // A service has copies of its credentials, made when it is started.
    let texts = settings.start.iter().chain(&found.others).chain(found.credentials.values());
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

#[cfg(test)]
mod tests {
    use super::*;

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
