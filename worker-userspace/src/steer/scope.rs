//! Which cgroups are captured and which are left out, now: services come and go, and their cgroups with them.
//!
//! What must hold: a cgroup that is made again is found again, whatever of the path to it was made with it; who waits
//! for a change misses none.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use super::probe::{self, Cgroup, ProbeError};

/// How often it is looked, too, where the kernel says nothing: what it can watch has a limit.
const LOOK: Duration = Duration::from_secs(5);

/// The cgroups that the configuration names.
#[derive(Debug)]
pub(super) struct Scope {
    mount: PathBuf,
    captured: Vec<PathBuf>,
    excluded: Vec<PathBuf>,
}

/// What of them is there.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// To be captured.
    pub(super) captured: Vec<Cgroup>,
    /// To be captured as soon as they are made.
    pub(super) missing: Vec<PathBuf>,
    /// To be left out: their ids, and their levels below the root.
    pub(super) excluded: Vec<(u64, u32)>,
}

impl Scope {
    pub(super) fn new(captured: &[PathBuf], excluded: &[PathBuf]) -> Result<Scope, ProbeError> {
        let mount = probe::mount()?;
        Ok(Scope { mount, captured: captured.into(), excluded: excluded.into() })
    }

    /// Looks for them. At `first` one that is not there, and hardly ever will be, is an error.
    pub(super) fn find(&self, first: bool) -> Result<Found, ProbeError> {
        let may_come = |path: &Path| !first || self.may_come(path);
        let mut found = Found::default();
        for written in &self.captured {
            match probe::cgroup(&self.mount, written) {
                Ok(cgroup) if found.captured.contains(&cgroup) => {}
                Ok(cgroup) => found.captured.push(cgroup),
                Err(ProbeError::NoSuchCgroup { path, .. }) if may_come(&path) => found.missing.push(path),
                Err(error) => return Err(error),
            }
        }
        for written in &self.excluded {
            match probe::cgroup(&self.mount, written) {
                Ok(cgroup) => found.excluded.push((cgroup.id, self.level(&cgroup.path))),
                Err(ProbeError::NoSuchCgroup { path, .. }) if may_come(&path) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// A unit of the service manager's or something in one, or in a cgroup that is there: all else is a slip of the pen.
    fn may_come(&self, path: &Path) -> bool {
        let unit = |part: &Path| {
            let unit = part.extension().and_then(|unit| unit.to_str());
            matches!(unit, Some("slice" | "service" | "scope"))
        };
        let Ok(below) = path.strip_prefix(&self.mount) else { return false };
        let in_one = path.parent().is_some_and(|parent| parent != self.mount && parent.is_dir());
        below.ancestors().any(unit) || in_one
    }

    fn level(&self, path: &Path) -> u32 {
        path.strip_prefix(&self.mount).map_or(0, |below| below.components().count()) as u32
    }

    /// The directories in which something that was named may be made or removed, and that are there.
    fn watched(&self) -> impl Iterator<Item = &Path> {
        let named = self.captured.iter().chain(&self.excluded);
        let mounted = |path: &&Path| path.starts_with(&self.mount);
        // An absolute path is walked up to where cgroup v2 is mounted, a relative one is below it.
        named
            .flat_map(|written| written.ancestors().skip(1))
            .filter(move |path| !path.is_absolute() || mounted(path))
    }
}

/// As an asynchronous descriptor wants it.
struct Notices(Inotify);

impl AsRawFd for Notices {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Tells that something may have changed.
pub(super) struct Watch {
    inotify: Option<AsyncFd<Notices>>,
    directories: Vec<PathBuf>,
}

impl Watch {
    /// Needs a tokio runtime.
    pub(super) fn new(scope: &Scope) -> Watch {
        let directories = scope.watched().map(|path| scope.mount.join(path)).collect();
        let make = || -> io::Result<AsyncFd<Notices>> {
            let notices = Notices(Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?);
            // SAFETY: the instance owns its descriptor and keeps it until it is dropped.
            Ok(unsafe { AsyncFd::register_with_interest(notices, Interest::READABLE) }?)
        };
        let inotify = make()
            .inspect_err(|error| {
                tracing::warn!("cgroups can't be watched, so a service that is restarted is captured up to {LOOK:?} later: {error}");
            })
            .ok();
        let watch = Watch { inotify, directories };
        watch.arm();
        watch
    }

    /// Watches what is there of the directories. Look after it, not before.
    pub(super) fn arm(&self) {
        let Some(inotify) = &self.inotify else { return };
        let changes = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_ONLYDIR;
        for directory in &self.directories {
            match inotify.get_ref().0.add_watch(directory, changes) {
                Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(error) => tracing::debug!("{} can't be watched: {error}", directory.display()),
            }
        }
    }

    /// Waits until something may have changed.
    pub(super) async fn changed(&self) {
        let Some(inotify) = &self.inotify else { return tokio::time::sleep(LOOK).await };
        // An error of the watch is no more than that nothing is heard.
        let _ = timeout(LOOK, async {
            let mut ready = inotify.readable().await?;
            while inotify.get_ref().0.read_events().is_ok_and(|events| !events.is_empty()) {}
            ready.clear_ready();
            io::Result::Ok(())
        })
        .await;
    }
}
