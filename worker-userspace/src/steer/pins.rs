//! What of steering outlives the daemon: links and maps that hang on names in a bpf file system.
//!
//! ```text
//! <steer.pins>/maps/RULES4-<layout> ...             adopted by the next daemon that reads the same layout of this one
//! <steer.pins>/links/<daemon>-<cgroup>-dw_connect4 ...
//! <steer.pins>/alive/<process id>                 an empty directory, locked by a daemon that is captured itself
//! <steer.pins>/owner-<daemon>                     an empty directory: the daemon that captures here, or would
//! ```
//!
//! A daemon always loads its own programs, with the maps that it finds, and attaches them before it removes the links of
//! the daemon before it. In between both sets run, the second one on what the first has rewritten already, as a parent
//! cgroup's programs do: that changes nothing. So a restart after a crash, a reload and an upgrade are the same thing, and
//! nobody is unsteered in any of them.
//!
//! What must hold: one daemon at a time has the directory (a lock, which is handed on with it); a daemon that stops
//! in order leaves nothing.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use worker_common::{Layout, MAPS};

use crate::sockets::{self, Sockets, name};

/// Where systems mount the bpf file system, and where it is mounted for the default of `steer.pins` if they do not.
const SYSTEMS: &str = "/sys/fs/bpf";

/// What the name of an owner's directory begins with.
const OWNER: &str = "owner-";

/// Why nothing can be kept in the kernel. Each names the directory and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// Another daemon steers with this directory.
    #[error(
        "steer.pins = {}: another dworker steers with it; stop that one, or set another `steer.pins`", .0.display()
    )]
    Taken(PathBuf),
    /// No bpf file system.
    #[error(
        "steer.pins = {}: there is no bpf file system, and it can't be mounted on {}: {source}; run \
         `mount -t bpf bpf {SYSTEMS}`, as systemd does at boot", path.display(), on.display()
    )]
    NotMounted {
        /// The directory.
        path: PathBuf,
        /// Where it would be mounted.
        on: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file or directory.
    #[error("steer.pins: {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// How it failed.
        source: io::Error,
    },
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinsError {
    move |source| PinsError::Io { doing, path: path.to_owned(), source }
}

/// The directory, taken by this process.
#[derive(Debug)]
pub struct Pins {
    directory: PathBuf,
    /// Tells this daemon's links from those of the one before it.
    daemon: String,
    /// While it is taken.
    lock: Mutex<Option<File>>,
}

impl Pins {
    /// Makes the directory, on a bpf file system that is mounted where there is none, and takes it, by
    /// the lock of the daemon that hands it on, if there is one.
    ///
    /// # Errors
    /// Another daemon has it, or it can't be made.
    pub fn take(directory: &Path, sockets: &Sockets) -> Result<Pins, PinsError> {
        let pins = Pins::beside(directory)?;
        pins.lock_by(sockets)?;
        Ok(pins)
    }

    /// As [`Pins::take`], while another daemon may have it: [`lock_by`](Self::lock_by) follows.
    ///
    /// # Errors
    /// It can't be made.
    pub fn beside(directory: &Path) -> Result<Pins, PinsError> {
        make(directory)?;
        let daemon = format!("{:016x}", rand::random::<u64>());
        let pins = Pins { directory: directory.to_owned(), daemon, lock: Mutex::default() };
        for part in [pins.maps(), pins.links()] {
            make_private(&part).map_err(failed("making", &part))?;
        }
        Ok(pins)
    }

    /// Takes the directory, where it is not taken yet.
    ///
    /// # Errors
    /// Another daemon has it.
    pub fn lock_by(&self, sockets: &Sockets) -> Result<(), PinsError> {
        let directory = &self.directory;
        let open = File::open(directory).map_err(failed("opening", directory))?;
        let locked = sockets.lock(name::PINS_LOCK, open).map_err(failed("locking", directory))?;
        let lock = locked.ok_or_else(|| PinsError::Taken(directory.clone()))?;
        *self.held() = Some(lock);
        Ok(())
    }

    /// Leaves the directory to the daemon that it was handed on to: a third one may follow that one while this one lets
    /// its connections end. Closed and not unlocked, since the lock is that one's, too.
    pub fn leave(&self) {
        *self.held() = None;
    }

    fn held(&self) -> MutexGuard<'_, Option<File>> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Removes all that daemons left in the kernel. False: there was nothing.
    ///
    /// # Errors
    /// A daemon has it, or something can't be removed.
    pub fn remove_left(directory: &Path) -> Result<bool, PinsError> {
        match is_bpf(directory) {
            Ok(true) => {}
            // Nothing can be pinned elsewhere.
            Ok(false) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed("looking at", directory)(error)),
        }
        let pins = Pins {
            directory: directory.to_owned(),
            daemon: String::new(),
            lock: Mutex::new(Some(take(directory)?)),
        };
        pins.remove_all()?;
        Ok(true)
    }

    /// Whether something can be pinned in a directory.
    ///
    /// # Errors
    /// It can't be seen; above all, it is not there.
    pub fn is_pinnable(directory: &Path) -> io::Result<bool> {
        is_bpf(directory)
    }

    /// How many links are pinned in a directory.
    pub fn links_left(directory: &Path) -> usize {
        read(&directory.join("links")).map_or(0, |links| links.len())
    }

    /// The lock, for the daemon that follows.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn lock(&self) -> io::Result<OwnedFd> {
        Ok(self.held().as_ref().ok_or(io::ErrorKind::NotFound)?.try_clone()?.into())
    }

    /// Where a map is.
    pub(super) fn map(&self, map: &Layout) -> PathBuf {
        let Layout { name, key, value, entries, meaning } = map;
        self.maps().join(format!("{name}-{key}-{value}-{entries}-{meaning}"))
    }

    /// Where this daemon's link of a program to a cgroup is.
    pub(super) fn link(&self, cgroup: u64, program: &str) -> PathBuf {
        self.links().join(format!("{}-{cgroup}-{program}", self.daemon))
    }

    /// Notes that the process with this id, which is ours, is alive: for as long as the result is open, in whatever pid
    /// namespace somebody asks. `None`: it is noted already.
    pub(super) fn note_alive(&self, id: u32) -> Result<Option<File>, PinsError> {
        let note = self.alive().join(id.to_string());
        for part in [self.alive(), note.clone()] {
            make_private(&part).map_err(failed("making", &part))?;
        }
        try_lock(&note)
    }

    /// True where a process that was noted with this id has not ended. The note of one that has is removed.
    pub(super) fn is_alive(&self, id: u32) -> Result<bool, PinsError> {
        let note = self.alive().join(id.to_string());
        if !note.exists() {
            return Ok(false);
        }
        let ended = try_lock(&note)?.is_some();
        if ended {
            fs::remove_dir(&note).map_err(failed("removing", &note))?;
        }
        Ok(!ended)
    }

    /// Makes this daemon the owner: removes the links of others, and maps that this one does not read. Its own must be
    /// attached.
    pub(super) fn own(&self) -> Result<(), PinsError> {
        let owner = self.owner();
        make_private(&owner).map_err(failed("making", &owner))?;
        self.remove_links(|owner| owner != self.daemon)?;
        let kept = [self.maps(), self.links(), self.alive(), owner];
        let maps: Vec<PathBuf> = MAPS.iter().map(|map| self.map(map)).collect();
        let parts = read(&self.directory)?.into_iter().filter(|part| !kept.contains(part));
        let old = read(&self.maps())?.into_iter().filter(|map| !maps.contains(map));
        for surplus in parts.chain(old) {
            remove_all(&surplus).map_err(failed("removing", &surplus))?;
        }
        Ok(())
    }

    /// True where another daemon is the owner.
    ///
    /// # Errors
    /// It can't be seen: then there may be one.
    pub(super) fn has_other_owner(&self) -> Result<bool, PinsError> {
        let other = |part: &PathBuf| {
            let name = part.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.starts_with(OWNER) && *part != self.owner()
        };
        Ok(read(&self.directory)?.iter().any(other))
    }

    /// Removes this daemon's links.
    pub(super) fn remove_own_links(&self) -> Result<(), PinsError> {
        self.remove_links(|owner| owner == self.daemon)
    }

    /// Removes all but the directory itself, which stays taken; where another daemon is the owner, this one's links.
    pub(super) fn put_away(&self) -> Result<(), PinsError> {
        self.remove_own_links()?;
        if !self.has_other_owner()? {
            for map in read(&self.maps())? {
                remove_all(&map).map_err(failed("removing", &map))?;
            }
        }
        Ok(())
    }

    /// Removes this daemon's links; and all the rest, where no other daemon is the owner.
    pub(super) fn remove_own(&self) -> Result<(), PinsError> {
        self.remove_own_links()?;
        if self.has_other_owner()? { Ok(()) } else { self.remove_all() }
    }

    /// Removes the links of all daemons first: from then on nothing is captured.
    fn remove_all(&self) -> Result<(), PinsError> {
        self.remove_links(|_| true)?;
        match remove_all(&self.directory) {
            // Mounted there by a daemon.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                umount2(&self.directory, MntFlags::MNT_DETACH)
                    .map_err(|errno| failed("unmounting", &self.directory)(errno.into()))?;
                fs::remove_dir(&self.directory).map_err(failed("removing", &self.directory))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(failed("removing", &self.directory)),
        }
    }

    fn remove_links(&self, of: impl Fn(&str) -> bool) -> Result<(), PinsError> {
        let links = read(&self.links())?;
        let owner = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.split('-').next().unwrap_or_default().to_owned()
        };
        // What rewrites goes before the ways back.
        let mut links: Vec<PathBuf> = links.into_iter().filter(|path| of(&owner(path))).collect();
        let rewrites = |path: &PathBuf| {
            let name = path.to_string_lossy().into_owned();
            ["connect", "sendmsg"].iter().any(|hook| name.contains(hook))
        };
        links.sort_by_key(|path| !rewrites(path));
        for link in links {
            fs::remove_file(&link).map_err(failed("removing", &link))?;
        }
        Ok(())
    }

    fn maps(&self) -> PathBuf {
        self.directory.join("maps")
    }

    fn alive(&self) -> PathBuf {
        self.directory.join("alive")
    }

    fn owner(&self) -> PathBuf {
        self.directory.join(format!("{OWNER}{}", self.daemon))
    }

    fn links(&self) -> PathBuf {
        self.directory.join("links")
    }
}

/// Makes the directory where it is missing.
fn make(directory: &Path) -> Result<(), PinsError> {
    let parent = directory.parent().unwrap_or(directory);
    if parent != Path::new(SYSTEMS) {
        fs::create_dir_all(parent).map_err(failed("making", parent))?;
    }
    if !directory.exists() && (is_bpf(parent).unwrap_or(false) || parent != Path::new(SYSTEMS)) {
        make_private(directory).map_err(failed("making", directory))?;
    }
    if is_bpf(directory).unwrap_or(false) {
        return Ok(());
    }
    let on = if parent == Path::new(SYSTEMS) { parent } else { directory };
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), on, Some("bpf"), flags, Some("mode=700")).map_err(|errno| PinsError::NotMounted {
        path: directory.to_owned(),
        on: on.to_owned(),
        source: errno.into(),
    })?;
    tracing::info!("mounted a bpf file system on {}", on.display());
    make_private(directory).map_err(failed("making", directory))
}

fn make_private(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn is_bpf(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.filesystem_type() == BPF_FS_MAGIC)
}

fn take(directory: &Path) -> Result<File, PinsError> {
    try_lock(directory)?.ok_or_else(|| PinsError::Taken(directory.to_owned()))
}

/// `None`: somebody has it.
fn try_lock(directory: &Path) -> Result<Option<File>, PinsError> {
    let file = File::open(directory).map_err(failed("opening", directory))?;
    sockets::try_lock(file).map_err(failed("locking", directory))
}

/// What is in a directory; in one that is not there, nothing.
fn read(directory: &Path) -> Result<Vec<PathBuf>, PinsError> {
    let list = || fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>();
    match list() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(failed("listing", directory)),
    }
}

/// As the standard library's, which first tries what a bpf file system does not have.
fn remove_all(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.is_dir() {
        return fs::remove_file(path);
    }
    for entry in fs::read_dir(path)? {
        remove_all(&entry?.path())?;
    }
    fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a directory on a file system that answers nothing but errors.
    #[test]
    fn what_can_not_be_seen_counts_as_another_daemons() {
        let directory = tempfile::tempdir().unwrap();
        let of = |directory: PathBuf| Pins { directory, daemon: "a".to_owned(), lock: Mutex::default() };
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let unreadable = of(file.clone());
        let error = unreadable.has_other_owner().unwrap_err().to_string();
        assert!(error.contains(&format!("listing {}", file.display())), "{error}");
        assert!(unreadable.remove_own().is_err());
        assert!(file.exists());

        let pins = of(directory.path().join("pins"));
        assert!(!pins.has_other_owner().unwrap(), "there is nothing");
        for owner in ["a", "b"] {
            assert!(!pins.has_other_owner().unwrap());
            fs::create_dir_all(pins.directory.join(format!("{OWNER}{owner}"))).unwrap();
        }
        assert!(pins.has_other_owner().unwrap());
    }
}
