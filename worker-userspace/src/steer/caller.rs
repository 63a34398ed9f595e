//! Who would connect: the process, its cgroup, whether that is captured, and in whose network it lives.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::judge::Caller;
use super::probe::{self, Cgroup, ProbeError};

/// Of whom is asked. Nobody: of somebody in a captured cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Who {
    /// A process.
    pub pid: Option<u32>,
    /// A cgroup: absolute, or below where cgroup v2 is mounted.
    pub cgroup: Option<PathBuf>,
    /// A user.
    pub uid: Option<u32>,
}

/// What there is to know of one who connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The process: `command[pid]`.
    pub process: Option<String>,
    /// Its user.
    pub uid: Option<u32>,
    /// Its cgroup.
    pub cgroup: Option<PathBuf>,
    /// The captured cgroup that it is in, or below.
    pub captured: Option<PathBuf>,
    /// What the programs ask.
    pub caller: Caller,
}

/// Why nothing is known of one.
#[derive(Debug, thiserror::Error)]
pub enum ScopeError {
    /// There is no such process.
    #[error("there is no process {0}, as this daemon sees processes; `ps` shows those that there are")]
    NoProcess(u32),
    /// What the kernel says of a process can't be read.
    #[error("process {pid}: {file}: {source}")]
    Process {
        /// The process.
        pid: u32,
        /// The file below `/proc`.
        file: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// No such cgroup.
    #[error(transparent)]
    Cgroup(#[from] ProbeError),
}

impl Scope {
    /// True where the programs see the connection.
    pub fn is_captured(&self) -> bool {
        self.captured.is_some()
    }
}

/// Finds out about one; `captured` is what steering is attached to.
///
/// # Errors
/// There is no such process or cgroup.
pub fn find(who: &Who, captured: &[Cgroup]) -> Result<Scope, ScopeError> {
    let alive = || captured.iter().filter(|cgroup| cgroup.is_alive());
    let mut scope =
        Scope { process: None, uid: who.uid, cgroup: None, captured: None, caller: Caller::default() };
    if let Some(pid) = who.pid {
        let read = |file: &'static str| {
            fs::read_to_string(format!("/proc/{pid}/{file}")).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => ScopeError::NoProcess(pid),
                _ => ScopeError::Process { pid, file, source },
            })
        };
        let status = read("status")?;
        let comm: String =
            read("comm")?.trim_end().chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        scope.process = Some(format!("{comm}[{pid}]"));
        scope.uid = scope.uid.or(effective_uid(&status));
        let namespace =
            |of: &str| fs::metadata(format!("/proc/{of}/ns/net")).map(|file| (file.dev(), file.ino()));
        let theirs = namespace(&pid.to_string()).map_err(|source| ScopeError::Process {
            pid,
            file: "ns/net",
            source,
        })?;
        let ours =
            namespace("self").map_err(|source| ScopeError::Process { pid, file: "self/ns/net", source })?;
        scope.caller = Caller { own: pid == std::process::id(), foreign_netns: theirs != ours };
        let (text, mount) = (read("cgroup")?, probe::mount()?);
        scope.cgroup = cgroup_of(&text).map(|path| mount.join(path));
    }
    scope.cgroup = match (&who.cgroup, scope.cgroup) {
        (Some(written), _) => probe::cgroups(std::slice::from_ref(written))?.pop().map(|cgroup| cgroup.path),
        (None, Some(found)) => Some(found),
        (None, None) => alive().next().map(|cgroup| cgroup.path.clone()),
    };
    scope.captured = scope.cgroup.as_deref().and_then(|cgroup| above(cgroup, captured)).map(Path::to_owned);
    Ok(scope)
}

/// The id of a process's cgroup.
pub fn cgroup_id(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    Some(fs::metadata(probe::mount().ok()?.join(cgroup_of(&text)?)).ok()?.ino())
}

/// The captured cgroup that `cgroup` is, or is below. By what the kernel goes by, which is not the path.
fn above<'c>(cgroup: &Path, captured: &'c [Cgroup]) -> Option<&'c Path> {
    let id = |path: &Path| fs::metadata(path).ok().map(|directory| directory.ino());
    let ids: Vec<u64> = cgroup.ancestors().filter_map(id).collect();
    captured.iter().find(|captured| captured.is_alive() && ids.contains(&captured.id)).map(|c| &*c.path)
}

/// The cgroup, below where cgroup v2 is mounted, by the text of `/proc/PID/cgroup`.
fn cgroup_of(text: &str) -> Option<&Path> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(path.strip_suffix(" (deleted)").unwrap_or(path)))
}

/// By the text of `/proc/PID/status`.
fn effective_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_what_the_kernel_says() {
        let scope = find(&Who { pid: Some(std::process::id()), ..Who::default() }, &[]);
        // Where there is no cgroup v2 there is no steering either.
        let Ok(scope) = scope else { return };
        assert!(scope.process.unwrap().ends_with(&format!("[{}]", std::process::id())));
        assert_eq!(scope.caller, Caller { own: true, foreign_netns: false });
        assert_eq!((scope.uid.is_some(), scope.captured), (true, None));
        let gone = find(&Who { pid: Some(u32::MAX), ..Who::default() }, &[]).unwrap_err();
        assert!(gone.to_string().starts_with("there is no process 4294967295"), "{gone}");
    }

    #[test]
    fn the_kernels_texts_are_read() {
        assert_eq!(cgroup_of("12:cpu:/a\n0::/b/c d\n"), Some(Path::new("b/c d")));
        assert_eq!(cgroup_of("0::/b (deleted)\n"), Some(Path::new("b")));
        assert_eq!(cgroup_of("1:name=systemd:/x\n"), None);
        assert_eq!(effective_uid("Name:\tx\nUid:\t1000\t33\t33\t33\n"), Some(33));
    }
}
