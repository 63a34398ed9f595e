//! This host, or one whose files lie below a directory: what is found there, and what carries steps out.
//!
//! What must hold: a file is replaced whole or not at all; below a directory nothing outside it is touched, wherever its links
//! lead, and systemd is asked nothing.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::handed::Handed;
use super::unprivileged::{unprivileged, unwritable};
use super::{
    Access, Action, CREDENTIALS, DROP_IN, Executor, Found, NAME, PACKAGED, Service, Step, UNIT, VARIABLE,
    Wanted, root, settings,
};

/// Where systemd says that it runs.
const RUNNING: &str = "/run/systemd/system";
/// The largest file that is read of a unit, in bytes.
const LARGEST: u64 = 1 << 20;
/// Where systemd's own library is, whose name has the version.
const LIBRARIES: [&str; 5] = [
    "/usr/lib/systemd",
    "/lib/systemd",
    "/usr/lib64/systemd",
    "/usr/lib/x86_64-linux-gnu/systemd",
    "/usr/lib/aarch64-linux-gnu/systemd",
];
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
    /// The service did not start with what was changed, and does again without.
    #[error(
        "{first}\nwhat was changed of the unit is put back, and the service runs so, with the configuration as it stands"
    )]
    PutBack {
        /// Why it did not start.
        first: String,
    },
    /// The service did not start with what was changed, and does not without: the configuration itself is not put back.
    #[error(
        "{first}\nand it does not run as before either: {then}\ncorrect what it says, and run `dworker reconfigure` again"
    )]
    Down {
        /// Why it did not start.
        first: String,
        /// Why not then.
        then: String,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => ": run it as root, with sudo",
        _ => "",
    }
}

pub(super) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostError {
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
        match self.is_here {
            true => self.root.join(path),
            false => root::resolve(&self.root, path),
        }
    }

    pub(super) fn is_here(&self) -> bool {
        self.is_here
    }

    /// The configuration that an earlier run named to the daemon.
    ///
    /// # Errors
    /// The drop-in can't be read.
    pub fn named(&self) -> Result<Option<PathBuf>, HostError> {
        Ok(self.text(Path::new(DROP_IN))?.and_then(|text| settings::named(&text)))
    }

    /// How a file is named on it.
    pub fn inside(&self, place: &Path) -> PathBuf {
        Path::new("/").join(place.strip_prefix(&self.root).unwrap_or(place))
    }

    /// What the service will be handed, beside the variables that systemd itself tells of.
    ///
    /// # Errors
    /// Something of it can't be read.
    pub fn handed(&self) -> Result<Handed, HostError> {
        let (packaged, unit) = (self.packaged()?, self.text(Path::new(UNIT))?);
        let mut texts: Vec<String> = unit.or(packaged).into_iter().collect();
        texts.extend(self.others()?);
        Handed::of(self, &texts)
    }

    /// True where the service is installed.
    ///
    /// # Errors
    /// Its unit can't be read.
    pub fn has_unit(&self) -> Result<bool, HostError> {
        Ok(self.text(Path::new(UNIT))?.is_some() || self.packaged()?.is_some())
    }

    fn packaged(&self) -> Result<Option<String>, HostError> {
        for path in PACKAGED {
            if let Some(text) = self.text(Path::new(path))? {
                return Ok(Some(text));
            }
        }
        Ok(None)
    }

    /// What administrators add to the unit.
    fn others(&self) -> Result<Vec<String>, HostError> {
        let drop_in = Path::new(DROP_IN);
        let mut others = Vec::new();
        for path in self.list(drop_in.parent().unwrap_or(drop_in))? {
            if path != drop_in && path.extension().is_some_and(|extension| extension == "conf") {
                others.extend(self.text(&path)?);
            }
        }
        Ok(others)
    }

    /// systemd's version.
    fn systemd(&self) -> Option<u32> {
        let number = |text: &str| {
            let digits = text.split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse().ok()
        };
        if self.is_here {
            let said = run(Command::new("systemctl").arg("--version")).ok()?;
            return number(said.strip_prefix("systemd ")?);
        }
        let names = LIBRARIES
            .iter()
            .filter_map(|directory| fs::read_dir(self.at(Path::new(directory))).ok())
            .flatten();
        names
            .filter_map(|entry| number(entry.ok()?.file_name().to_str()?.strip_prefix("libsystemd-shared-")?))
            .max()
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
        let pid = value("MainPID");
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let begins = format!("{VARIABLE}=");
        let settings =
            environ.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(begins.as_bytes()));
        Ok(Some(Service {
            active,
            pid: pid.parse().ok().filter(|pid| active && *pid != 0),
            stale: value("NeedDaemonReload") == "yes",
            settings: settings.map(|settings| String::from_utf8_lossy(settings).into_owned()),
            environment: assignments(value("Environment")),
            socket: listening(&Path::new("/proc").join(pid)).into_iter().next(),
            news: Ok(Vec::new()),
        }))
    }

    /// What tells a file from the one that was there before; nothing where there is none. Not what stands in it: everybody
    /// may see the stamp, and guess.
    pub(super) fn mark(&self, path: &Path) -> Result<Option<String>, HostError> {
        match fs::metadata(self.at(path)) {
            Ok(file) => {
                let (seconds, rest) = (file.mtime(), file.mtime_nsec());
                Ok(Some(format!("{} {} {seconds}.{rest}", file.len(), file.ino())))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("looking at", path)(error)),
        }
    }

    /// What there is; `handed` are the [marks](Handed::marks) of what the service is handed.
    ///
    /// # Errors
    /// Something can't be read.
    pub fn find(
        &self,
        wanted: &Wanted,
        service: Option<Service>,
        handed: Vec<String>,
    ) -> Result<Found, HostError> {
        let mut credentials = BTreeMap::new();
        for path in self.list(Path::new(CREDENTIALS))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            credentials.extend(self.mark(&path)?.map(|mark| (name, mark)));
        }
        let mut modes = BTreeMap::new();
        for path in wanted.looked_at() {
            match fs::metadata(self.at(&path)) {
                Ok(metadata) => {
                    // An image's files become root's when it is made.
                    let uid = if self.is_here { metadata.uid() } else { 0 };
                    modes.insert(path, Access { uid, mode: metadata.mode() & 0o7777 });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("looking at", &path)(error)),
            }
        }
        let drop_in = self.text(Path::new(DROP_IN))?;
        Ok(Found {
            packaged: self.packaged()?,
            unit: self.text(Path::new(UNIT))?,
            others: self.others()?,
            credentials,
            handed,
            modes,
            unwritable: self.unwritable(wanted)?,
            foreign_runtime: self.is_foreign(wanted, drop_in.as_deref())?,
            unfit: Vec::new(),
            program: if self.is_here { changeable(&wanted.program) } else { None },
            systemd: self.systemd(),
            drop_in,
            enabled: self.is_enabled()?,
            service,
        })
    }

    /// Directories of the service that it can't write to.
    fn unwritable(&self, wanted: &Wanted) -> Result<Vec<(PathBuf, String)>, HostError> {
        // Another user can only look at what would be done.
        if !self.is_here || !nix::unistd::geteuid().is_root() {
            return Ok(Vec::new());
        }
        let mut directories = vec![wanted.state_dir.clone()];
        directories.extend(wanted.directories().into_iter().map(|(path, _)| path));
        directories.dedup();
        let judged = move || {
            let judge = |path: PathBuf| unwritable(&path).map(|why| (path, why.to_string()));
            directories.into_iter().filter_map(judge).collect()
        };
        unprivileged(judged).map_err(|source| HostError::Run { command: "capset".into(), source })
    }

    /// True where the directory that the service would have below /run has something else in it.
    fn is_foreign(&self, wanted: &Wanted, drop_in: Option<&str>) -> Result<bool, HostError> {
        let Some(name) = wanted.runtime_directory().filter(|_| self.is_here) else { return Ok(false) };
        let ours = format!("RuntimeDirectory={name}");
        if drop_in.is_some_and(|text| text.lines().any(|line| line == ours)) {
            return Ok(false);
        }
        let files = self.list(&Path::new("/run").join(name))?;
        Ok(files.iter().any(|file| file.file_name() != wanted.control_socket.file_name()))
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

    pub(super) fn text(&self, path: &Path) -> Result<Option<String>, HostError> {
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
    pub(super) fn list(&self, directory: &Path) -> Result<Vec<PathBuf>, HostError> {
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
                // What is above it is for everybody.
                let above = place
                    .parent()
                    .map_or(Ok(()), |above| DirBuilder::new().recursive(true).mode(0o755).create(above));
                above
                    .and_then(|()| DirBuilder::new().recursive(true).mode(*mode).create(&place))
                    .and_then(|()| fs::set_permissions(&place, Permissions::from_mode(*mode)))
                    .map_err(failed("making", path))
            }
            Step::Mode { path, from, to, .. } => {
                let place = self.at(path);
                let owned = if from.uid == 0 { Ok(()) } else { chown(&place, Some(0), Some(0)) };
                owned
                    .and_then(|()| fs::set_permissions(&place, Permissions::from_mode(*to)))
                    .map_err(failed("changing", path))
            }
            Step::Remove { path, .. } => fs::remove_file(self.at(path)).map_err(failed("removing", path)),
            Step::Write { path, after, .. } => self.write(path, after),
            Step::Manage { action, .. } => self.manage(*action),
        }
    }
}

/// The sockets with a path on which a process listens; a daemon has one, for commands. `process` is its directory in /proc.
fn listening(process: &Path) -> Vec<PathBuf> {
    let links = fs::read_dir(process.join("fd")).into_iter().flatten();
    let links = links.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let inodes: Vec<String> = links
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let sockets = fs::read_to_string(process.join("net/unix")).unwrap_or_default();
    let listener = |line: &str| {
        // Num RefCount Protocol Flags Type St Inode Path; a listener's flags are 00010000.
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, _, _, "00010000", _, _, inode, _, ..] = fields[..] else { return None };
        let path = PathBuf::from(&line[line.find(" /")? + 1..]);
        Some(path).filter(|_| inodes.iter().any(|found| found == inode))
    };
    sockets.lines().filter_map(listener).collect()
}

/// Why others than root may change a program: who may write to it, or to a directory above it.
fn changeable(program: &Path) -> Option<String> {
    program.ancestors().find_map(|path| {
        let metadata = fs::metadata(path).ok()?;
        // In a directory with this bit nobody replaces what is another's.
        let sticky = metadata.is_dir() && metadata.mode() & 0o1000 != 0;
        let told = |who: String| Some(format!("{who} may change {}", path.display()));
        match (metadata.uid(), metadata.mode()) {
            (0, mode) if mode & 0o002 != 0 && !sticky => told("everybody".into()),
            (0, mode) if mode & 0o020 != 0 && metadata.gid() != 0 && !sticky => {
                told(format!("group {}", metadata.gid()))
            }
            (0, _) => None,
            (uid, _) => told(format!("user {uid}")),
        }
    })
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs a command to its end; its standard output.
pub(super) fn run(command: &mut Command) -> Result<String, HostError> {
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
    fn a_daemon_is_asked_where_it_listens() {
        let directory = tempfile::tempdir().unwrap();
        let (here, gone) = (directory.path().join("a b.sock"), directory.path().join("gone.sock"));
        let _listener = std::os::unix::net::UnixListener::bind(&here).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&gone).unwrap());
        let found = listening(Path::new("/proc/self"));
        assert!(found.contains(&here) && !found.contains(&gone), "{found:?}");
        assert!(listening(Path::new("/proc/0")).is_empty());
    }

    #[test]
    fn who_may_change_a_program_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("dworker");
        fs::write(&program, "").unwrap();
        let judge = |mode, uid| {
            chown(&program, Some(uid), Some(0)).unwrap();
            fs::set_permissions(&program, Permissions::from_mode(mode)).unwrap();
            changeable(&program)
        };
        assert_eq!(judge(0o755, 0), None);
        assert!(judge(0o757, 0).unwrap().starts_with("everybody may change "));
        assert!(judge(0o755, 1000).unwrap().starts_with("user 1000 may change "));
        judge(0o755, 0);
        fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(changeable(&program).unwrap().ends_with(&directory.path().display().to_string()));
    }

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
