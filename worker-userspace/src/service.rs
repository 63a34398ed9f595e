//! The service on this host: what there is of it, what its configuration wants, and the steps from one to the other. It is
//! what `dworker reconfigure` does.
//!
//! What must hold: the plan is made of what was found, and of nothing else, so that what is shown beforehand is what is
//! done; when all is as it should be there is no step; only what would otherwise not come into force is restarted, and
//! what a reload does is never left to a restart; files that an administrator wrote are never written.
//!
//! | file | about |
//! |---|---|
//! | `service.rs` | what is wanted, what is found, the plan |
//! | `service/settings.rs` | the unit, and what the configuration adds to it |
//! | `service/faults.rs` | what the service could not do with a configuration |
//! | `service/handed.rs` | the variables and credentials that it will find |
//! | `service/reading.rs` | its configuration, as it reads it |
//! | `service/unprivileged.rs` | files as it will see them |
//! | `service/show.rs` | steps for people |
//! | `service/host.rs`, `root.rs` | finds, and carries out, on this host or below a directory |

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{Config, Loaded, Origin, PINS as DEFAULT_PINS, PLACES, SOCKET as DEFAULT_SOCKET};

mod faults;
mod handed;
mod host;
mod reading;
mod root;
mod settings;
mod show;
mod unprivileged;

pub use handed::Handed;
pub use host::{Host, HostError};
pub use reading::Reading;
pub use settings::VARIABLE;

/// The service's name.
pub const NAME: &str = "dworker.service";
/// Where packages put its unit.
const PACKAGED: [&str; 2] =
    ["/usr/lib/systemd/system/dworker.service", "/lib/systemd/system/dworker.service"];
/// Where it is written where no package has brought it.
const UNIT: &str = "/etc/systemd/system/dworker.service";
/// What the configuration adds to it.
const DROP_IN: &str = "/etc/systemd/system/dworker.service.d/10-reconfigure.conf";
/// Each file here is a credential of its name.
pub const CREDENTIALS: &str = "/etc/dworker/credentials";
/// Where the unit keeps state and sockets.
const OWN: [&str; 2] = ["/var/lib/dworker", "/run/dworker"];

/// What a configuration wants of the service.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The program.
    pub program: PathBuf,
    /// The configuration, where it is named to the daemon.
    named: Option<PathBuf>,
    /// Where it was read, where that is a file with a secret in it.
    secret_in: Option<PathBuf>,
    state_dir: PathBuf,
    control_socket: PathBuf,
    drain: Duration,
    steers: bool,
    pins: PathBuf,
    /// A daemon that can't be asked may be restarted.
    pub restart: bool,
    /// Those of what it captures that systemd makes where somebody wants them.
    slices: Vec<String>,
    listen: Vec<SocketAddr>,
    /// All files and directories that it names.
    paths: Vec<PathBuf>,
}

impl Wanted {
    /// Of what was read of `file`, which is named to the daemon where somebody named it, and it would not be found by itself.
    pub fn of(loaded: &Loaded, program: &Path, file: Option<&Path>, named: bool) -> Wanted {
        let Config { state_dir, control_socket, drain, steer, .. } = &loaded.config;
        let settings = loaded.effective.settings();
        let texts = settings.iter().filter_map(|setting| Some((setting, setting.value.as_ref()?.as_str()?)));
        let is_file = |origin: &Option<Origin>| matches!(origin, Some(Origin::File { .. }));
        // Secrets are shown as such.
        let mut secrets =
            texts.clone().filter(|(setting, text)| text.contains("***") && is_file(&setting.origin));
        Wanted {
            program: program.to_owned(),
            named: file.filter(|file| named && *file != Path::new(PLACES[0])).map(Path::to_owned),
            secret_in: file.filter(|_| secrets.next().is_some()).map(Path::to_owned),
            state_dir: state_dir.clone(),
            control_socket: control_socket.clone(),
            drain: *drain,
            steers: steer.is_some(),
            pins: steer.as_ref().map(|steer| steer.pins.clone()).unwrap_or_default(),
            restart: false,
            slices: steer
                .iter()
                .flat_map(|steer| &steer.cgroups)
                .filter_map(|cgroup| slice(cgroup))
                .collect(),
            listen: loaded.config.listens().map(|(_, address)| address).collect(),
            paths: texts.filter(|(_, text)| text.starts_with('/')).map(|(_, text)| text.into()).collect(),
        }
    }

    /// Directories that the daemon writes to and that the unit does not make, with their modes.
    fn directories(&self) -> Vec<(PathBuf, u32)> {
        let socket = self.control_socket.parent().unwrap_or(Path::new("/")).to_owned();
        let all = [(self.state_dir.clone(), 0o700), (socket, 0o755)];
        let made = |path: &Path| OWN.iter().any(|own| path.starts_with(own)) || in_run(path).is_some();
        all.into_iter().filter(|(path, _)| !made(path)).collect()
    }

    /// The directory of the control socket, below /run, which is empty after each boot: systemd makes it at each start.
    fn runtime_directory(&self) -> Option<&str> {
        in_run(self.control_socket.parent()?).filter(|_| !self.control_socket.starts_with(OWN[1]))
    }

    /// True where a unit of ours names the program.
    fn writes_program(&self, found: &Found) -> bool {
        found.packaged.is_none() || self.named.is_some() || self.names_socket()
    }

    /// True where commands must be told where the control socket is.
    fn names_socket(&self) -> bool {
        self.control_socket != Path::new(DEFAULT_SOCKET)
    }

    /// Files and directories of which [`Found::modes`] must tell.
    fn looked_at(&self) -> Vec<PathBuf> {
        let directories = self.directories().into_iter().map(|(path, _)| path);
        directories.chain(self.secret_in.clone()).chain([CREDENTIALS.into(), OWN[0].into()]).collect()
    }
}

/// What is below /run of a path, whatever /run is called.
fn in_run(path: &Path) -> Option<&str> {
    let below = path.strip_prefix("/run").or_else(|_| path.strip_prefix("/var/run")).ok()?.to_str()?;
    Some(below).filter(|below| !below.is_empty())
}

/// Where cgroup v2 is mounted, where it has slices in it.
const CGROUPS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

/// The slice of the system's own manager that a cgroup is: `a.slice/a-b.slice`, each named with what it is in. One inside
/// of a unit is another manager's.
fn slice(cgroup: &Path) -> Option<String> {
    let below = CGROUPS.iter().find_map(|mount| cgroup.strip_prefix(mount).ok());
    let below = below.or_else(|| cgroup.strip_prefix("/").ok()).unwrap_or(cgroup).to_str()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.:\\".contains(c);
    let mut above = String::new();
    for name in below.split('/') {
        let stem = name.strip_suffix(".slice")?;
        let last = stem.strip_prefix(above.as_str())?;
        if last.is_empty() || last.contains('-') || !last.chars().all(plain) {
            return None;
        }
        above = format!("{stem}-");
    }
    Some(below.rsplit('/').next()?.to_owned())
}

/// What there is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    /// The unit that a package has brought.
    pub packaged: Option<String>,
    /// The unit that comes before that one.
    pub unit: Option<String>,
    /// What was written for an earlier configuration.
    pub drop_in: Option<String>,
    /// What administrators add to the unit.
    pub others: Vec<String>,
    /// Files of [`CREDENTIALS`], and what tells a file from the one that was there before.
    pub credentials: BTreeMap<String, String>,
    /// All other files that variables and credentials come from, with the same.
    pub handed: Vec<String>,
    /// Whose those files and directories are that are there, and who may read them.
    pub modes: BTreeMap<PathBuf, Access>,
    /// The directories of the service that it could not write to, and why.
    pub unwritable: Vec<(PathBuf, String)>,
    /// The directory below /run that the service would have as its own has something else in it.
    pub foreign_runtime: bool,
    /// Why another start than that of the daemon that runs would fail, with the configuration that is there.
    pub unfit: Vec<String>,
    /// Why the program should not be that of a root service.
    pub program: Option<String>,
    /// systemd's version, where that is known.
    pub systemd: Option<u32>,
    /// It is started at boot.
    pub enabled: bool,
    /// The service, where systemd runs here.
    pub service: Option<Service>,
}

/// Whose a file is, and its mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// The owner.
    pub uid: u32,
    /// The mode.
    pub mode: u32,
}

/// What systemd knows of the service, and the daemon of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// It runs.
    pub active: bool,
    /// Its main process, where it runs.
    pub pid: Option<u32>,
    /// systemd has not read its files since they changed.
    pub stale: bool,
    /// The unit's settings that it was started under, as [`VARIABLE`] names them.
    pub settings: Option<String>,
    /// Variables that its unit sets.
    pub environment: Vec<(String, String)>,
    /// Where it listens for commands.
    pub socket: Option<PathBuf>,
    /// What a reload would bring, as the daemon itself knows it; or why it can't be asked.
    pub news: Result<Vec<String>, String>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make a directory.
    Directory {
        /// Where.
        path: PathBuf,
        /// Who may enter.
        mode: u32,
        /// What for.
        why: String,
    },
    /// Change who may read: root alone.
    Mode {
        /// A file or directory.
        path: PathBuf,
        /// As it is.
        from: Access,
        /// The mode that it gets.
        to: u32,
        /// What for.
        why: String,
    },
    /// Write a file.
    Write {
        /// Where.
        path: PathBuf,
        /// What is there.
        before: Option<String>,
        /// What will be.
        after: String,
        /// What for.
        why: String,
    },
    /// Remove a file that was written.
    Remove {
        /// Where.
        path: PathBuf,
        /// What for.
        why: String,
    },
    /// Have systemd do something.
    Manage {
        /// What.
        action: Action,
        /// What for.
        why: String,
    },
}

/// What systemd does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Read the units again.
    ReadUnits,
    /// Start the service at boot.
    Enable,
    /// Start it now.
    Start,
    /// Have a new process take over; nothing is cut.
    Reload,
    /// Stop it and start it again.
    Restart,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// What an administrator should know all the same.
    pub notes: Vec<String>,
    /// Why nothing is to be done before it is mended.
    pub faults: Vec<String>,
}

/// Carries out one step after the other.
pub trait Executor {
    /// Carries it out.
    ///
    /// # Errors
    /// It can't be done. What was done before it stays.
    fn carry_out(&mut self, step: &Step) -> Result<(), HostError>;
}

/// Which steps lead from what is found to what is wanted.
pub fn plan(wanted: &Wanted, found: &Found) -> Plan {
    let mut plan = Plan::default();
    let known: Vec<&str> = crate::config::credentials().collect();
    let (credentials, strange): (Vec<&str>, Vec<&str>) =
        found.credentials.keys().map(String::as_str).partition(|name| known.contains(name));
    if !strange.is_empty() {
        plan.notes.push(format!(
            "{CREDENTIALS}: nothing takes {}: the names are {}",
            strange.join(", "),
            known.join(", ")
        ));
    }
    plan.judge(wanted, found, &credentials);
    plan.directories(wanted, found);
    let unit = plan.unit(wanted, found);
    if found.systemd.is_none() {
        let note =
            "systemd's version is not known: no filter for system calls, and CAP_SYS_ADMIN where it captures";
        plan.notes.push(note.into());
    }
    let settings = settings::of(wanted, &credentials, found.systemd);
    let stamp = settings::stamp(&unit, &settings, found);
    let drop_in = settings::drop_in(&settings, &stamp);
    if found.drop_in.as_ref() != Some(&drop_in) {
        plan.steps.push(Step::Write {
            path: DROP_IN.into(),
            before: found.drop_in.clone(),
            after: drop_in,
            why: "what the configuration adds to the unit".into(),
        });
    }
    plan.service(wanted, found, &stamp);
    plan
}

/// Carries a plan out, step after step. Where the service does not start with what was changed, it is put back to what it
/// ran with.
///
/// # Errors
/// The first step that can't be done; with what became of the service.
pub fn carry_out(
    plan: &Plan,
    host: &mut impl Executor,
    mut tell: impl FnMut(&Step),
) -> Result<(), HostError> {
    for (done, step) in plan.steps.iter().enumerate() {
        tell(step);
        let Err(error) = host.carry_out(step) else { continue };
        if !matches!(step, Step::Manage { action: Action::Restart, .. }) {
            return Err(error);
        }
        for step in back(&plan.steps[..done]) {
            tell(&step);
            host.carry_out(&step)
                .map_err(|then| HostError::Down { first: error.to_string(), then: then.to_string() })?;
        }
        return Err(HostError::PutBack { first: error.to_string() });
    }
    Ok(())
}

/// The steps that lead back to the service that ran before these.
fn back(done: &[Step]) -> Vec<Step> {
    let why = || "the service does not start with it".to_owned();
    let files = done.iter().rev().filter_map(|step| match step {
        Step::Write { path, before: Some(before), after, .. } => Some(Step::Write {
            path: path.clone(),
            before: Some(after.clone()),
            after: before.clone(),
            why: why(),
        }),
        Step::Write { path, before: None, .. } => Some(Step::Remove { path: path.clone(), why: why() }),
        _ => None,
    });
    let mut steps: Vec<Step> = files.collect();
    for action in [Action::ReadUnits, Action::Start] {
        steps.push(Step::Manage { action, why: "as it was".into() });
    }
    steps
}

impl Plan {
    fn directories(&mut self, wanted: &Wanted, found: &Found) {
        // An older systemd does not make it.
        let own = (OWN[0].into(), 0o700);
        let own =
            Some(own).filter(|_| found.systemd.is_some_and(|version| version < settings::OWN_DIRECTORIES));
        for (path, mode) in wanted.directories().into_iter().chain(own) {
            if !found.modes.contains_key(&path) {
                self.steps.push(Step::Directory { path, mode, why: "the configuration names it".into() });
            }
        }
        let mut private = |path: &Path, to: u32, why: &str| match found.modes.get(path) {
            Some(from) if from.mode & 0o077 != 0 || from.uid != 0 => {
                self.steps.push(Step::Mode { path: path.to_owned(), from: *from, to, why: why.into() });
            }
            _ => {}
        };
        private(Path::new(CREDENTIALS), 0o700, "secrets are in it");
        if let Some(file) = &wanted.secret_in {
            private(file, 0o600, "a secret is in it");
        }
    }

    /// The unit that will count.
    fn unit(&mut self, wanted: &Wanted, found: &Found) -> String {
        let own = settings::unit(&wanted.program);
        let written = found.unit.as_ref().filter(|unit| settings::is_ours(unit));
        match (&found.packaged, &found.unit) {
            // An administrator's own, whatever there is beside it.
            (_, Some(unit)) if written.is_none() => {
                self.notes.push(format!("{UNIT} is not of `dworker reconfigure`, and is left as it is"));
                unit.clone()
            }
            (Some(packaged), None) => packaged.clone(),
            (Some(_), Some(unit)) => {
                self.notes.push(format!("{UNIT} hides the package's unit: remove it"));
                unit.clone()
            }
            (None, before) => {
                if before.as_ref() != Some(&own) {
                    self.steps.push(Step::Write {
                        path: UNIT.into(),
                        before: before.clone(),
                        after: own.clone(),
                        why: "no package has brought a unit".into(),
                    });
                }
                own
            }
        }
    }

    fn service(&mut self, wanted: &Wanted, found: &Found, stamp: &str) {
        let written = self.steps.iter().any(|step| matches!(step, Step::Write { .. }));
        let mut manage = |action, why: String| self.steps.push(Step::Manage { action, why });
        if let Some(service) = &found.service
            && (written || service.stale)
        {
            manage(Action::ReadUnits, "its files have changed".into());
        }
        if !found.enabled {
            manage(Action::Enable, "it is not started at boot".into());
        }
        match &found.service {
            None => self.notes.push("systemd does not run here: nothing is started or reloaded".into()),
            Some(Service { active: false, .. }) => manage(Action::Start, "it does not run".into()),
            Some(service) if service.settings.as_deref() != Some(stamp) => {
                manage(Action::Restart, "its unit has changed since it was started".into());
            }
            Some(Service { news: Err(why), .. }) if wanted.restart => manage(Action::Restart, why.clone()),
            Some(Service { news: Err(why), .. }) => self.faults.push(format!(
                "the daemon runs, and {why}: `systemctl status dworker` says how it does; `dworker reconfigure --restart` \
                 restarts it, which cuts what is open"
            )),
            // A reload would ask where nobody listens yet.
            Some(Service { socket: Some(socket), .. }) if *socket != wanted.control_socket => {
                manage(Action::Restart, format!("its control socket moves away from {}", socket.display()));
            }
            Some(Service { news: Ok(news), .. }) if !news.is_empty() => {
                manage(Action::Reload, news.join("; "))
            }
            Some(_) => {}
        }
        // A reload is refused with its reason, and the daemon goes on; after a restart there is none.
        if self.steps.iter().any(|step| matches!(step, Step::Manage { action: Action::Restart, .. })) {
            let told = |why: &String| format!("the service would not start again with it: {why}");
            self.faults.extend(found.unfit.iter().map(told));
        }
    }
}

#[cfg(test)]
mod tests;
