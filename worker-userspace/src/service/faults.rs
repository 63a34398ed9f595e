//! What the service could not do with a configuration, told before anything is touched.

use std::path::Path;

use super::{CREDENTIALS, DEFAULT_PINS, Found, OWN, Plan, Wanted, settings};

/// What is empty after each boot.
const IN_MEMORY: [&str; 5] = ["/run", "/var/run", "/tmp", "/var/tmp", "/dev"];
/// The unit may write to no other bpf file system.
const BPF: &str = "/sys/fs/bpf";

impl Plan {
    pub(super) fn judge(&mut self, wanted: &Wanted, found: &Found, credentials: &[&str]) {
        let mut fault = |text: String| self.faults.push(text);
        let state = &wanted.state_dir;
        if let Some(memory) = below(state, &IN_MEMORY) {
            fault(format!(
                "state_dir = {state:?}: what is below {memory} is lost at the next boot: name a directory on a disk, or leave \
                 it out for {}",
                OWN[0]
            ));
        }
        let socket = &wanted.control_socket;
        let directory = socket.parent().unwrap_or(Path::new("/"));
        if wanted.runtime_directory().is_none()
            && below(directory, &IN_MEMORY).is_some()
            && !directory.starts_with(OWN[1])
        {
            fault(format!(
                "control_socket = {socket:?}: {} can't be made for the service alone: name a socket in a directory of its \
                 own below /run, as in /run/dworker/control.sock",
                directory.display()
            ));
        }
        if let Some(name) = wanted.runtime_directory().filter(|_| found.foreign_runtime) {
            fault(format!(
                "control_socket = {socket:?}: /run/{name} has files of others in it, and systemd would remove them with the \
                 service: name a socket in a directory of its own"
            ));
        }
        if wanted.steers && !wanted.pins.starts_with(BPF) {
            fault(format!(
                "steer.pins = {:?}: the service may write to {BPF} only: name a directory there, or leave it out for \
                 {DEFAULT_PINS}",
                wanted.pins
            ));
        }
        if wanted.writes_program(found)
            && let Some(why) = hidden(&wanted.program).or(found.program.clone())
        {
            fault(format!(
                "{}: {why}: install it, for example with `install {} /usr/local/bin/dworker`, and run that",
                wanted.program.display(),
                wanted.program.display()
            ));
        }
        if let (false, Some(systemd)) = (credentials.is_empty(), found.systemd)
            && systemd < settings::CREDENTIALS_SINCE
        {
            fault(format!(
                "{CREDENTIALS}: systemd {systemd} hands no credentials to services, which takes {}: name the files in the \
                 configuration, as in worker_key_file = \"{CREDENTIALS}/worker_key\", or in a directory of another name",
                settings::CREDENTIALS_SINCE
            ));
        }
        for (path, why) in &found.unwritable {
            fault(format!(
                "{}: the service can't write there ({why}): it runs as root, but without the right to pass over owners and \
                 modes: make root its owner, with `chown -R root: {}`",
                path.display(),
                path.display()
            ));
        }
    }
}

/// The first of these that is above a path.
fn below<'a>(path: &Path, above: &[&'a str]) -> Option<&'a str> {
    above.iter().find(|above| path.starts_with(above)).copied()
}

/// Why the unit does not show a program.
fn hidden(program: &Path) -> Option<String> {
    let hidden = settings::hidden().find(|above| program.starts_with(above))?;
    Some(format!("the service sees nothing of {hidden}"))
}
