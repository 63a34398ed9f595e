//! Who would connect: the process, its cgroup, whether that is captured, whether it is excluded, and in whose network it
//! lives.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::judge::Caller;
use super::kernel::{Kernel, KernelError};
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
    /// What somebody has seen of the process who may look at it: a daemon may see only its own in `/proc`.
    pub seen: Option<Seen>,
}

/// What there is to see of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// What it is called, in characters that can be shown.
    pub comm: String,
    /// The device and the number of its network namespace.
    pub netns: (u64, u64),
}

/// What can be read of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// What it is called, and where it lives.
    pub seen: Seen,
    /// Its real user, which is what the programs are told of.
    pub uid: Option<u32>,
    /// Its cgroup, below where cgroup v2 is mounted.
    pub cgroup: Option<PathBuf>,
}

impl Process {
    /// Reads it. The network namespace takes the right to trace it.
    ///
    /// # Errors
    /// There is no such process, or this one may not see it.
    pub fn read(pid: u32) -> Result<Process, ScopeError> {
        let read = |file: &'static str| {
            fs::read_to_string(format!("/proc/{pid}/{file}")).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => ScopeError::NoProcess(pid),
                _ => ScopeError::Process { pid, file, source },
            })
        };
        let status = read("status")?;
        let comm = shown(read("comm")?.trim_end());
        let netns = namespace(&pid.to_string()).map_err(|source| ScopeError::Process {
            pid,
            file: "ns/net",
            source,
        })?;
        let cgroup = cgroup_of(&read("cgroup")?).map(Path::to_owned);
        Ok(Process { seen: Seen { comm, netns }, uid: real_uid(&status), cgroup })
    }
}

/// A process's name without what would move a terminal's cursor.
pub fn shown(comm: &str) -> String {
    comm.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn namespace(of: &str) -> io::Result<(u64, u64)> {
    fs::metadata(format!("/proc/{of}/ns/net")).map(|file| (file.dev(), file.ino()))
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
    /// That nothing is captured anywhere: steering was switched off by hand.
    pub off: bool,
    /// By what it is excluded.
    pub excluded: Option<Excluded>,
    /// What the programs ask.
    pub caller: Caller,
}

/// What keeps one out of steering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Excluded {
    /// Its user, as this host calls him.
    User(String),
    /// The cgroup that it is in, or below.
    Cgroup(PathBuf),
}

impl std::fmt::Display for Excluded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Excluded::User(name) => write!(f, "user {name}"),
            Excluded::Cgroup(path) => write!(f, "cgroup {}", path.display()),
        }
    }
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
    /// What is excluded can't be read.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl Scope {
    /// True where the programs see the connection.
    pub fn is_captured(&self) -> bool {
        self.captured.is_some() && !self.off
    }

    /// True where they leave alone whatever it connects to.
    pub fn is_left_alone(&self) -> bool {
        !self.is_captured() || self.caller.own || self.caller.excluded || self.caller.foreign_netns
    }
}

/// Finds out about one; `captured` is what steering is attached to, and `kernel` knows what is excluded. Blocks where this
/// host asks others for its users.
///
/// # Errors
/// There is no such process or cgroup.
pub fn find(who: &Who, captured: &[Cgroup], kernel: &dyn Kernel) -> Result<Scope, ScopeError> {
    let mut scope = Scope {
        process: None,
        uid: who.uid,
        cgroup: None,
        captured: None,
        off: false,
        excluded: None,
        caller: Caller::default(),
    };
    let mount = probe::mount()?;
    if let Some(pid) = who.pid {
        let process = match &who.seen {
            Some(seen) => Process { seen: seen.clone(), uid: None, cgroup: None },
            None => Process::read(pid)?,
        };
        let ours =
            namespace("self").map_err(|source| ScopeError::Process { pid, file: "self/ns/net", source })?;
        scope.process = Some(format!("{}[{pid}]", process.seen.comm));
        scope.uid = scope.uid.or(process.uid);
        // One that was replaced and lets its connections end is the programs' own, too.
        scope.caller.own = pid == std::process::id() || kernel.is_daemon(pid)?;
        scope.caller.foreign_netns = process.seen.netns != ours;
        scope.cgroup = process.cgroup.map(|path| mount.join(path));
    }
    scope.cgroup = match (&who.cgroup, scope.cgroup) {
        (Some(written), _) => Some(probe::cgroup(&mount, written)?.path),
        (None, Some(found)) => Some(found),
        (None, None) => captured.iter().find(|cgroup| cgroup.is_alive()).map(|cgroup| cgroup.path.clone()),
    };
    let around: Vec<(u64, PathBuf)> =
        scope.cgroup.as_deref().map(|cgroup| around(cgroup, &mount)).unwrap_or_default();
    let is_around = |cgroup: &&Cgroup| cgroup.is_alive() && around.iter().any(|(id, _)| *id == cgroup.id);
    scope.captured = captured.iter().find(is_around).map(|cgroup| cgroup.path.clone());
    scope.excluded = excluded(scope.uid, &around, kernel)?;
    scope.caller.excluded = scope.excluded.is_some();
    Ok(scope)
}

/// In the order of the programs.
fn excluded(
    uid: Option<u32>,
    around: &[(u64, PathBuf)],
    kernel: &dyn Kernel,
) -> Result<Option<Excluded>, KernelError> {
    if let Some(uid) = uid
        && kernel.excludes_user(uid)?
    {
        let user = nix::unistd::User::from_uid(uid.into()).ok().flatten();
        return Ok(Some(Excluded::User(user.map_or_else(|| uid.to_string(), |user| user.name))));
    }
    for (id, path) in around {
        if kernel.excludes_cgroup(*id)? {
            return Ok(Some(Excluded::Cgroup(path.clone())));
        }
    }
    Ok(None)
}

/// A cgroup and those that it is in, by what the kernel goes by, which is not the path. Directories above where cgroup v2
/// is mounted have numbers of another file system.
fn around(cgroup: &Path, mount: &Path) -> Vec<(u64, PathBuf)> {
    // One that is gone is in nothing.
    let Ok(path) = cgroup.canonicalize() else { return Vec::new() };
    let mount = mount.canonicalize().unwrap_or_else(|_| mount.to_owned());
    let inside = path.ancestors().take_while(|path| path.starts_with(&mount));
    inside.filter_map(|path| Some((fs::metadata(path).ok()?.ino(), path.to_owned()))).collect()
}

/// The cgroup, below where cgroup v2 is mounted, by the text of `/proc/PID/cgroup`.
fn cgroup_of(text: &str) -> Option<&Path> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(path.strip_suffix(" (deleted)").unwrap_or(path)))
}

/// The user that the programs are told of, which is the real one, by the text of `/proc/PID/status`.
fn real_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steer::fake::FakeKernel;

    fn mount_path() -> PathBuf {
        probe::mount().unwrap()
    }

    #[test]
    fn a_process_is_known_by_what_the_kernel_says() {
        let kernel = FakeKernel::default();
        let me = Who { pid: Some(std::process::id()), ..Who::default() };
        let scope = find(&me, &[], &kernel).expect("cgroup v2 is mounted, as steering needs it");
        assert!(scope.process.unwrap().ends_with(&format!("[{}]", std::process::id())));
        assert_eq!(scope.caller, Caller { own: true, excluded: false, foreign_netns: false });
        assert_eq!((scope.captured, scope.excluded), (None, None));
        let uid = nix::unistd::getuid().as_raw();
        assert_eq!(scope.uid, Some(uid));
        // The same, where somebody else has looked; of a process that this one can't see.
        let Process { mut seen, uid: real, cgroup } = Process::read(std::process::id()).unwrap();
        assert_eq!(real, Some(uid));
        let asked = |seen: &Seen| {
            let (pid, cgroup) = (Some(u32::MAX), Some(mount_path().join(cgroup.as_ref().unwrap())));
            find(&Who { pid, cgroup, uid: real, seen: Some(seen.clone()) }, &[], &kernel).unwrap()
        };
        let told = asked(&seen);
        assert_eq!((told.uid, &told.cgroup, told.caller.foreign_netns), (scope.uid, &scope.cgroup, false));
        seen.netns.1 += 1;
        assert!(asked(&seen).caller.foreign_netns);
        // Another daemon of ours, as far as the programs know.
        let mut cat = std::process::Command::new("cat");
        let mut cat = cat.stdin(std::process::Stdio::piped()).spawn().unwrap();
        let other = Who { pid: Some(cat.id()), ..Who::default() };
        assert!(!find(&other, &[], &kernel).unwrap().caller.own);
        kernel.set_own(true);
        assert!(find(&other, &[], &kernel).unwrap().caller.own);
        kernel.set_own(false);
        drop(cat.stdin.take());
        cat.wait().unwrap();
        let gone = find(&Who { pid: Some(u32::MAX), ..Who::default() }, &[], &kernel).unwrap_err();
        assert!(gone.to_string().starts_with("there is no process 4294967295"), "{gone}");

        let mount = probe::mount().unwrap();
        let id = fs::metadata(&mount).unwrap().ino();
        let all = [Cgroup { path: mount.clone(), id }];
        let scope = find(&me, &all, &kernel).unwrap();
        assert_eq!(scope.captured.as_ref(), Some(&mount), "all is below the root");
        kernel.set_excluded(&[], &[(id, 0)]).unwrap();
        let scope = find(&me, &all, &kernel).unwrap();
        assert_eq!((scope.excluded, scope.caller.excluded), (Some(Excluded::Cgroup(mount)), true));
        kernel.set_excluded(&[uid], &[]).unwrap();
        assert!(matches!(find(&me, &all, &kernel).unwrap().excluded, Some(Excluded::User(_))));
        // Who is asked about need not be who is there.
        let other = Who { uid: Some(uid + 1), ..me };
        assert_eq!(find(&other, &all, &kernel).unwrap().excluded, None);
        let nobody = Who { uid: Some(u32::MAX - 1), ..Who::default() };
        kernel.set_excluded(&[u32::MAX - 1], &[]).unwrap();
        let excluded = find(&nobody, &[], &kernel).unwrap().excluded.unwrap();
        assert_eq!(excluded.to_string(), "user 4294967294");
    }

    #[test]
    fn nothing_outside_of_the_cgroups_is_around_one() {
        let root = tempfile::tempdir().unwrap();
        let (mount, beside) = (root.path().join("cgroup"), root.path().join("beside"));
        fs::create_dir_all(mount.join("a/b")).unwrap();
        fs::create_dir_all(&beside).unwrap();
        let around = |path: &Path| -> Vec<PathBuf> {
            let found = around(path, &mount).into_iter();
            let mount = mount.canonicalize().unwrap();
            found.map(|(_, path)| path.strip_prefix(&mount).unwrap().to_owned()).collect()
        };
        assert_eq!(around(&mount.join("a/b")), ["a/b", "a", ""].map(PathBuf::from));
        assert_eq!(around(&mount.join("a/b/..")), ["a", ""].map(PathBuf::from));
        assert_eq!(around(&mount), [PathBuf::from("")]);
        assert_eq!(around(&beside), Vec::<PathBuf>::new());
        assert_eq!(around(&mount.join("gone")), Vec::<PathBuf>::new());
    }

    #[test]
    fn the_kernels_texts_are_read() {
        assert_eq!(cgroup_of("12:cpu:/a\n0::/b/c d\n"), Some(Path::new("b/c d")));
        assert_eq!(cgroup_of("0::/b (deleted)\n"), Some(Path::new("b")));
        assert_eq!(cgroup_of("1:name=systemd:/x\n"), None);
        assert_eq!(real_uid("Name:\tx\nUid:\t1000\t33\t33\t33\n"), Some(1000));
    }
}
