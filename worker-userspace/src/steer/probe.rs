//! What this machine has, found by trying and never by its version.
//!
//! Each error is one cause with its remedy. What only some kernels have and steering can do without
//! is a [`Features`] flag.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

/// What the kernel may lack and steering can do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// `bpf_set_retval` (5.18): a refused `connect()` fails with the true errno. Without it: with `EPERM`.
    pub set_retval: bool,
    /// `bpf_skc_to_mptcp_sock` (5.19): `getpeername()` of a Multipath TCP socket gives the address asked for. Without it:
    /// the forwarder's.
    pub mptcp: bool,
}

/// A directory on cgroup v2 to which programs can be attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// The directory, absolute.
    pub path: PathBuf,
    /// The cgroup's id: the directory's inode number.
    pub id: u64,
}

impl Cgroup {
    /// False when the directory was removed since. One that was made again in its place is another cgroup.
    pub fn is_alive(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|directory| directory.ino() == self.id)
    }
}

/// Why this machine cannot steer, or not there.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No cgroup v2.
    #[error(
        "no cgroup v2 is mounted, and steering attaches to one: boot with `systemd.unified_cgroup_hierarchy=1`, \
         or run `mount -t cgroup2 none /sys/fs/cgroup/unified`"
    )]
    NoCgroup2,
    /// The configured directory is not there.
    #[error("cgroup {written:?}: there is no directory {path:?}; `systemd-cgls` shows those that exist")]
    NoSuchCgroup {
        /// As the configuration has it.
        written: PathBuf,
        /// Where that was looked for.
        path: PathBuf,
    },
    /// The configured directory is something else.
    #[error("cgroup {written:?}: {path:?} is not a directory of cgroup v2, which is mounted at {mount:?}")]
    NotCgroup2 {
        /// As the configuration has it.
        written: PathBuf,
        /// Where that led.
        path: PathBuf,
        /// Where it should have led.
        mount: PathBuf,
    },
    /// A capability is missing.
    #[error(
        "this process lacks {missing}, and loading programs into the kernel needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN \
         (or CAP_SYS_ADMIN): run it as root, or give the service \
         `AmbientCapabilities=CAP_BPF CAP_PERFMON CAP_NET_ADMIN`"
    )]
    Capability {
        /// Which.
        missing: String,
    },
    /// The kernel does not say what it should.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// How it failed.
        source: io::Error,
    },
    /// The kernel refuses programs altogether.
    #[error(
        "the kernel refuses to load any program, though the capabilities are there: {reason}. Look for \
         CONFIG_CGROUP_BPF in its configuration, for seccomp or a container's policy around this process, and for lockdown in /sys/kernel/security"
    )]
    NoBpf {
        /// The kernel's words.
        reason: String,
    },
}

/// Finds the configured cgroups. Each is absolute, or relative to where cgroup v2 is mounted.
///
/// # Errors
/// The first that cannot be attached to.
pub fn cgroups(written: &[PathBuf]) -> Result<Vec<Cgroup>, ProbeError> {
    let mount = mount()?;
    written.iter().map(|written| cgroup(&mount, written)).collect()
}

/// Where cgroup v2 is mounted.
///
/// # Errors
/// It is not.
pub fn mount() -> Result<PathBuf, ProbeError> {
    let mountinfo =
        fs::read_to_string("/proc/self/mountinfo").map_err(io_error("reading /proc/self/mountinfo"))?;
    cgroup2_mount(&mountinfo).ok_or(ProbeError::NoCgroup2)
}

/// The cgroup that is written so; `/` is the root of cgroup v2, wherever that is mounted.
///
/// # Errors
/// It is not there, or no cgroup.
pub fn cgroup(mount: &Path, written: &Path) -> Result<Cgroup, ProbeError> {
    // `join` keeps an absolute path as it is.
    let path = if written == Path::new("/") { mount.to_owned() } else { mount.join(written) };
    let directory = match File::open(&path) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ProbeError::NoSuchCgroup { written: written.to_owned(), path });
        }
        Err(error) => return Err(io_error(format!("opening the cgroup {}", path.display()))(error)),
    };
    let reading = || format!("asking what {} is", path.display());
    let metadata = directory.metadata().map_err(io_error(reading()))?;
    let filesystem = fstatfs(&directory).map_err(|errno| io_error(reading())(errno.into()))?;
    if !metadata.is_dir() || filesystem.filesystem_type() != CGROUP2_SUPER_MAGIC {
        return Err(ProbeError::NotCgroup2 { written: written.to_owned(), path, mount: mount.to_owned() });
    }
    Ok(Cgroup { id: metadata.ino(), path })
}

/// The ids of a cgroup, absolute or relative to where cgroup v2 is mounted, and of those that are below it now.
///
/// # Errors
/// There is no such cgroup.
pub fn below(written: &Path) -> Result<Vec<u64>, ProbeError> {
    let top = cgroup(&mount()?, written)?;
    let (mut ids, mut waiting) = (vec![top.id], vec![top.path]);
    while let Some(path) = waiting.pop() {
        // One that has just gone has nothing below it.
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        for directory in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            ids.push(directory.ino());
            waiting.push(directory.path());
        }
    }
    Ok(ids)
}

/// Where cgroup v2 is mounted, by the text of a mountinfo file. On hybrid systems that is not `/sys/fs/cgroup`.
fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    let mounts: Vec<_> = mountinfo
        .lines()
        .filter_map(|line| {
            let (mount, filesystem) = line.split_once(" - ")?;
            let mut fields = mount.split(' ').skip(3);
            let (root, point) = (fields.next()?, fields.next()?);
            filesystem.starts_with("cgroup2 ").then(|| (root == "/", unescape(point)))
        })
        .collect();
    // A mount of a part of the hierarchy (a container's) serves where there is no whole one.
    let whole = mounts.iter().find(|(whole, _)| *whole).or(mounts.first());
    whole.map(|(_, point)| point.clone())
}

/// Blanks, tabs, newlines and backslashes are octal in mountinfo.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let [first, tail @ ..] = rest {
        let octal = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok();
        match (first, tail.get(..3).and_then(octal)) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// Finds out what the kernel has.
///
/// # Errors
/// When it lacks what steering cannot do without, or does not let us.
pub fn features() -> Result<Features, ProbeError> {
    let status = fs::read_to_string("/proc/self/status").map_err(io_error("reading /proc/self/status"))?;
    if let Some(missing) = missing_capabilities(&status) {
        return Err(ProbeError::Capability { missing });
    }
    let has = |helper| {
        is_helper_supported(ProgramType::CgroupSockAddr, helper)
            .map_err(|error| ProbeError::NoBpf { reason: error.to_string() })
    };
    Ok(Features {
        set_retval: has(BpfHelper::BPF_FUNC_set_retval)?,
        mptcp: has(BpfHelper::BPF_FUNC_skc_to_mptcp_sock)?,
    })
}

/// The capabilities that are missing, by the text of `/proc/self/status`.
pub fn missing_capabilities(status: &str) -> Option<String> {
    const SYS_ADMIN: u64 = 1 << 21;
    const NEEDED: [(&str, u64); 3] = [
        ("CAP_BPF", 1 << 39),
        // For the name of the process that connects; and without it the verifier adds barriers against
        // speculation to every program.
        ("CAP_PERFMON", 1 << 38),
        ("CAP_NET_ADMIN", 1 << 12),
    ];
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
    let missing: Vec<_> =
        NEEDED.iter().filter(|(_, bit)| effective & (bit | SYS_ADMIN) == 0).map(|(name, _)| *name).collect();
    (!missing.is_empty()).then(|| missing.join(" and "))
}

fn io_error(doing: impl Into<String>) -> impl FnOnce(io::Error) -> ProbeError {
    let doing = doing.into();
    move |source| ProbeError::Io { doing, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_wherever_it_is_mounted() {
        for (mountinfo, expected) in [
            (
                "29 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
                "/sys/fs/cgroup",
            ),
            (
                "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                 41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
                "/sys/fs/cgroup/unified",
            ),
            (
                "29 22 0:26 /docker/1 /part ro shared:4 - cgroup2 cgroup rw\n\
                 30 22 0:26 / /whole ro shared:4 - cgroup2 cgroup rw\n",
                "/whole",
            ),
            ("29 22 0:26 /docker/1 /part ro shared:4 - cgroup2 cgroup rw\n", "/part"),
            ("29 22 0:26 / /a\\040b\\134c rw - cgroup2 cgroup2 rw\n", "/a b\\c"),
        ] {
            assert_eq!(cgroup2_mount(mountinfo), Some(expected.into()), "{mountinfo}");
        }
        assert_eq!(cgroup2_mount("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), None);
        assert_eq!(cgroup2_mount("gibberish\n\n - cgroup2 \n"), None);
    }

    #[test]
    fn missing_capabilities_are_named() {
        for (effective, expected) in [
            ("000001ffffffffff", None),
            ("0000000000200000", None),
            ("000000c000001000", None),
            ("0000008000001000", Some("CAP_PERFMON")),
            ("0000004000001000", Some("CAP_BPF")),
            ("000000c000000000", Some("CAP_NET_ADMIN")),
            ("0000000000000000", Some("CAP_BPF and CAP_PERFMON and CAP_NET_ADMIN")),
        ] {
            let status = format!("Name:\tdworker\nCapPrm:\tffffffffffffffff\nCapEff:\t{effective}\n");
            assert_eq!(missing_capabilities(&status).as_deref(), expected, "{effective}");
        }
    }

    #[test]
    fn what_is_no_cgroup_is_named_with_where_one_would_be() {
        let mount = tempfile::tempdir().unwrap();
        let error = cgroup(mount.path(), Path::new("system.slice/none.service")).unwrap_err();
        assert!(matches!(error, ProbeError::NoSuchCgroup { .. }), "{error}");
        assert!(error.to_string().contains("system.slice/none.service"), "{error}");
        let error = cgroup(Path::new("/sys/fs/cgroup"), mount.path()).unwrap_err();
        assert!(matches!(error, ProbeError::NotCgroup2 { .. }), "{error}");
        let error = cgroup(Path::new("/sys/fs/cgroup"), Path::new("/proc/self/status")).unwrap_err();
        assert!(matches!(error, ProbeError::NotCgroup2 { .. }), "{error}");
    }
}
