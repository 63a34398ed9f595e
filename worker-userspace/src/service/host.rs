//! This host, or one whose files lie below a directory: what is found there, and what carries steps out.
//!
//! What must hold: a file is replaced whole or not at all; below a directory nothing outside it is touched, and systemd is
//! asked nothing.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{
    Action, CREDENTIALS, DROP_IN, Executor, Found, NAME, PACKAGED, Service, Step, UNIT, VARIABLE, Wanted,
};

/// Where systemd says that it runs.
const RUNNING: &str = "/run/systemd/system";
/// The largest file that is read of a unit, in bytes.
const LARGEST: u64 = 1 << 20;
/// Lines of the journal that tell why a start failed.
const LINES: &str = "15";

/// What can't be found or done.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A file or directory.
    #[error("{doing} {}: {source}{}", path.display(), remedy(.source))]
    File {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// How it failed.
        source: io::Error,
    },
    /// A command can't be run.
    #[error("running `{command}`: {source}")]
    Run {
        /// What was run.
        command: String,
        /// How it failed.
        source: io::Error,
    },
    /// A command failed.
    #[error("`{command}` failed: {said}")]
    Failed {
        /// What was run.
        command: String,
        /// What it said, and the journal.
        said: String,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => ": run it as root, with sudo",
        _ => "",
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostError {
    move |source| HostError::File { doing, path: path.to_owned(), source }
}

/// A host's files and its systemd.
#[derive(Debug, Clone)]
pub struct Host {
    /// Where its files are.
    root: PathBuf,
    is_here: bool,
}

impl Host {
    /// This host; or the one whose files lie below a directory, of which nothing runs.
    pub fn new(root: Option<&Path>) -> Host {
        Host { root: root.unwrap_or(Path::new("/")).to_owned(), is_here: root.is_none() }
    }

    /// Where one of its files is.
    pub fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// How a file is named on it.
    pub fn inside(&self, place: &Path) -> PathBuf {
        Path::new("/").join(place.strip_prefix(&self.root).unwrap_or(place))
    }

    /// The directory of its credentials, where it is there.
    pub fn credentials(&self) -> Option<PathBuf> {
        Some(self.at(Path::new(CREDENTIALS))).filter(|path| path.is_dir())
    }

    /// What systemd knows of the service; none where it does not run.
    ///
    /// # Errors
    /// It can't be asked.
    pub fn service(&self) -> Result<Option<Service>, HostError> {
        if !self.is_here || !Path::new(RUNNING).is_dir() {
            return Ok(None);
        }
        let properties = "--property=ActiveState,MainPID,NeedDaemonReload,Environment";
        let said = run(Command::new("systemctl").args(["show", NAME, properties]))?;
        let value = |name: &str| {
            said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
        };
        let active = matches!(value("ActiveState"), "active" | "reloading");
        let environ = fs::read(format!("/proc/{}/environ", value("MainPID"))).unwrap_or_default();
        let begins = format!("{VARIABLE}=");
        let settings =
            environ.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(begins.as_bytes()));
        Ok(Some(Service {
            active,
            stale: value("NeedDaemonReload") == "yes",
            settings: settings.map(|settings| String::from_utf8_lossy(settings).into_owned()),
            environment: assignments(value("Environment")),
            news: Ok(Vec::new()),
        }))
    }

    /// What there is.
    ///
    /// # Errors
    /// Something can't be read.
    pub fn find(&self, wanted: &Wanted, service: Option<Service>) -> Result<Found, HostError> {
        let mut packaged = None;
        for path in PACKAGED {
            packaged = packaged.or(self.text(Path::new(path))?);
        }
        let drop_in = Path::new(DROP_IN);
        let mut others = Vec::new();
        for path in self.list(drop_in.parent().unwrap_or(drop_in))? {
            if path != drop_in && path.extension().is_some_and(|extension| extension == "conf") {
                others.extend(self.text(&path)?);
            }
        }
        let mut credentials = BTreeMap::new();
        for path in self.list(Path::new(CREDENTIALS))? {
            let file = fs::metadata(self.at(&path)).map_err(failed("looking at", &path))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // Not what stands in it: everybody may see the stamp, and guess.
            let mark = format!("{} {} {}.{}", file.len(), file.ino(), file.mtime(), file.mtime_nsec());
            credentials.insert(name, mark);
        }
        let mut modes = BTreeMap::new();
        for path in wanted.looked_at() {
            match fs::metadata(self.at(&path)) {
                Ok(metadata) => drop(modes.insert(path, metadata.permissions().mode() & 0o7777)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("looking at", &path)(error)),
            }
        }
        Ok(Found {
            packaged,
            unit: self.text(Path::new(UNIT))?,
            drop_in: self.text(drop_in)?,
            others,
            credentials,
            modes,
            enabled: self.is_enabled()?,
            service,
        })
    }

    fn is_enabled(&self) -> Result<bool, HostError> {
        // It fails for each state but `enabled`, and says it all the same.
        let mut command = self.systemctl();
        let output = command.args(["is-enabled", NAME]).output();
        let output = output.map_err(|source| HostError::Run { command: line(&command), source })?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().starts_with("enabled"))
    }

    fn systemctl(&self) -> Command {
        let mut command = Command::new("systemctl");
        if !self.is_here {
            command.arg("--root").arg(&self.root);
        }
        command
    }

    fn text(&self, path: &Path) -> Result<Option<String>, HostError> {
        let place = self.at(path);
        let read = fs::metadata(&place).and_then(|metadata| match metadata.len() {
            0..=LARGEST => fs::read_to_string(&place),
            _ => Err(io::ErrorKind::FileTooLarge.into()),
        });
        match read {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("reading", path)(error)),
        }
    }

    /// The files of a directory, as its host names them, in order.
    fn list(&self, directory: &Path) -> Result<Vec<PathBuf>, HostError> {
        let entries = match fs::read_dir(self.at(directory)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("listing", directory)(error)),
        };
        let names: io::Result<Vec<_>> = entries.map(|entry| Ok(directory.join(entry?.file_name()))).collect();
        let mut names = names.map_err(failed("listing", directory))?;
        names.sort();
        Ok(names)
    }

    /// Writes a file that everybody may read, whole or not at all.
    fn write(&self, path: &Path, text: &str) -> Result<(), HostError> {
        let place = self.at(path);
        let directory = place.parent().unwrap_or(&place);
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(failed("making", directory))?;
        let fresh = place.with_extension("new");
        // What a run that was killed has left.
        let _ = fs::remove_file(&fresh);
        let written =
            OpenOptions::new().write(true).create_new(true).mode(0o644).open(&fresh).and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                // Whatever the umask is.
                file.set_permissions(Permissions::from_mode(0o644))?;
                file.sync_all()?;
                fs::rename(&fresh, &place)
            });
        written.map_err(|error| {
            let _ = fs::remove_file(&fresh);
            failed("writing", path)(error)
        })
    }

    fn manage(&self, action: Action) -> Result<(), HostError> {
        let verb = match action {
            Action::ReadUnits => "daemon-reload",
            Action::Enable => "enable",
            Action::Start => "start",
            Action::Reload => "reload",
            Action::Restart => "restart",
        };
        let mut command = self.systemctl();
        command.arg(verb);
        if action != Action::ReadUnits {
            command.arg(NAME);
        }
        // Why a service did not start is in its own words.
        run(&mut command).map(drop).map_err(|error| match (error, action) {
            (HostError::Failed { command, said }, Action::Start | Action::Reload | Action::Restart) => {
                let journal = Command::new("journalctl")
                    .args(["--unit", NAME, "--lines", LINES, "--output", "cat", "--no-pager", "--quiet"])
                    .output();
                let journal = journal.map(|output| output.stdout).unwrap_or_default();
                let journal = String::from_utf8_lossy(&journal).into_owned();
                HostError::Failed { command, said: format!("{said}\n{}", journal.trim_end()) }
            }
            (error, _) => error,
        })
    }
}

impl Executor for Host {
    fn carry_out(&mut self, step: &Step) -> Result<(), HostError> {
        match step {
            Step::Directory { path, mode, .. } => {
                let place = self.at(path);
                let made = DirBuilder::new().recursive(true).mode(*mode).create(&place);
                made.and_then(|()| fs::set_permissions(&place, Permissions::from_mode(*mode)))
                    .map_err(failed("making", path))
            }
            Step::Mode { path, to, .. } => fs::set_permissions(self.at(path), Permissions::from_mode(*to))
                .map_err(failed("changing", path)),
            Step::Write { path, after, .. } => self.write(path, after),
            Step::Manage { action, .. } => self.manage(*action),
        }
    }
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs a command to its end; its standard output.
fn run(command: &mut Command) -> Result<String, HostError> {
    let output = command.output().map_err(|source| HostError::Run { command: line(command), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let said = if said.is_empty() { output.status.to_string() } else { said };
    Err(HostError::Failed { command: line(command), said })
}

/// The assignments of a line as systemd prints them: words, in quotes where they have spaces.
fn assignments(line: &str) -> Vec<(String, String)> {
    let (mut words, mut word, mut quote, mut escaped) = (Vec::new(), String::new(), None, false);
    for c in line.chars() {
        match (quote, c) {
            _ if escaped => {
                word.push(c);
                escaped = false;
            }
            (Some('"') | None, '\\') => escaped = true,
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, ' ') => words.push(std::mem::take(&mut word)),
            (_, c) => word.push(c),
        }
    }
    words.push(word);
    words
        .iter()
        .filter_map(|word| word.split_once('='))
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemd_prints_of_variables_is_read() {
        let line = r#"DWORKER_LANES=4 "no_proxy=a, b" "Q=say \"x\"" EMPTY= DWORKER_UNIT=12"#;
        let read = assignments(line);
        let expected = [
            ("DWORKER_LANES", "4"),
            ("no_proxy", "a, b"),
            ("Q", "say \"x\""),
            ("EMPTY", ""),
            ("DWORKER_UNIT", "12"),
        ];
        assert_eq!(read, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert!(assignments("").is_empty());
    }
}
