//! Sockets that are there before this process and live on after it: from the service manager (socket activation, its
//! store of descriptors) or from the process before this one, and for whoever comes next.
//!
//! What must hold: a listener that was handed on goes to who listens there now, found by its address and type or by its
//! name, so that no connection in its queue is lost; what nobody wants is closed, and the log says so; every
//! listener of ours is among what is handed on.

use std::collections::HashSet;
use std::fmt;
use std::fs::{File, TryLockError};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// The first descriptor that a service manager passes.
const FIRST: RawFd = 3;
/// More descriptors than any daemon has of ours: the variable says something else.
const MOST: usize = 4096;

/// Binds what is to be a listener. `[::]` means IPv6 only, so that `0.0.0.0` can stand beside it.
///
/// # Errors
/// The address is taken, or is none of this host's.
pub fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A daemon that was restarted need not wait for its old connections to be forgotten.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// What a socket is for, as the manager's store and the process that follows know it.
pub mod name {
    /// The control socket.
    pub const CONTROL: &str = "control";
    /// The port that workers dial.
    pub const APPLIANCE: &str = "appliance";
    /// An entry for clients that know proxies.
    pub const ENTRY: &str = "entry";
    /// Where Prometheus reads.
    pub const METRICS: &str = "metrics";
    /// Where captured connections arrive.
    pub const FORWARDER: &str = "forwarder";
    /// One of the sockets of a port that stands for a resolver.
    pub const DNS: &str = "dns";
    /// All of them.
    pub const ALL: [&str; 6] = [CONTROL, APPLIANCE, ENTRY, METRICS, FORWARDER, DNS];

    /// The lock of the state directory. Locks are for the process that follows only.
    pub const STATE_LOCK: &str = "lock of state_dir";
    /// The lock of the directory of what outlives a process in the kernel.
    pub const PINS_LOCK: &str = "lock of steer.pins";
    /// The file of the names, and its lock.
    pub const NAMES_LOCK: &str = "lock of the names";
}

/// A descriptor with what it is for.
pub type Named = (String, OwnedFd);

/// Is told of each socket that is kept.
type Observer = Box<dyn Fn(&str, BorrowedFd<'_>) + Send + Sync>;

/// The sockets of this process. Clones are the same.
#[derive(Clone, Default)]
pub struct Sockets(Arc<Shared>);

#[derive(Default)]
struct Shared {
    inherited: Mutex<Vec<Named>>,
    kept: Mutex<Vec<Named>>,
    observer: Mutex<Option<Observer>>,
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |list: &Mutex<Vec<Named>>| {
            lock(list).iter().map(|(name, _)| name.clone()).collect::<Vec<String>>()
        };
        f.debug_struct("Sockets")
            .field("inherited", &names(&self.0.inherited))
            .field("kept", &names(&self.0.kept))
            .finish_non_exhaustive()
    }
}

impl Sockets {
    /// With these from the process before this one.
    pub fn new(inherited: Vec<Named>) -> Sockets {
        Sockets(Arc::new(Shared { inherited: inherited.into(), ..Shared::default() }))
    }

    /// With those that the service manager has passed to this process, if any: `LISTEN_PID`, `LISTEN_FDS` and
    /// `LISTEN_FDNAMES`, as `sd_listen_fds(3)` has them.
    ///
    /// Call it once, at the start of the program: the descriptors are taken as ours.
    pub fn of_manager() -> Sockets {
        let variable = |name| std::env::var(name).ok();
        let ours = variable("LISTEN_PID").is_some_and(|pid| pid == std::process::id().to_string());
        let count = variable("LISTEN_FDS").and_then(|count| count.parse::<usize>().ok());
        let Some(count) = count.filter(|count| ours && *count <= MOST) else { return Sockets::default() };
        let names = variable("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut inherited = Vec::new();
        for descriptor in (FIRST..).take(count) {
            let name = names.next().unwrap_or("unknown").to_owned();
            // SAFETY: by its variables the manager has passed this descriptor to this very process, for it alone.
            match unsafe { passed(descriptor) } {
                Some(socket) => inherited.push((name, socket)),
                None => {
                    tracing::warn!("the service manager names descriptor {descriptor}, and it is not open")
                }
            }
        }
        Sockets::new(inherited)
    }

    /// Takes the TCP listener that is bound to this very address.
    pub fn tcp(&self, address: SocketAddr) -> Option<TcpListener> {
        let bound = |socket: &OwnedFd| {
            let socket = SockRef::from(socket);
            let listens = socket.is_listener().unwrap_or(false) && socket.r#type().ok() == Some(Type::STREAM);
            listens && socket.local_addr().ok().and_then(|bound| bound.as_socket()) == Some(address)
        };
        let listener = TcpListener::from(self.take(|_, socket| bound(socket))?);
        listener.set_nonblocking(true).ok()?;
        Some(listener)
    }

    /// Takes the listener that is bound to this path.
    pub fn unix(&self, path: &Path) -> Option<UnixListener> {
        let bound = |socket: &OwnedFd| {
            let socket = SockRef::from(socket);
            let at = socket.local_addr().ok();
            let at = at.as_ref().and_then(|at| at.as_pathname());
            socket.is_listener().unwrap_or(false) && at == Some(path)
        };
        let listener = UnixListener::from(self.take(|_, socket| bound(socket))?);
        listener.set_nonblocking(true).ok()?;
        Some(listener)
    }

    /// Takes all of this name.
    pub fn named(&self, name: &str) -> Vec<OwnedFd> {
        std::iter::from_fn(|| self.take(|found, _| found == name)).collect()
    }

    /// Takes the one of this name.
    pub fn one(&self, name: &str) -> Option<OwnedFd> {
        self.take(|found, _| found == name)
    }

    /// Locks a file or a directory: with the lock of this name that the process before this one had on the very same, or
    /// with a new one. `None`: another process has it.
    ///
    /// # Errors
    /// The system's.
    pub fn lock(&self, name: &str, file: File) -> io::Result<Option<File>> {
        let identity = |file: &File| file.metadata().map(|found| (found.dev(), found.ino()));
        match self.one(name).map(File::from) {
            // The process before this one may have had another.
            Some(lock) if identity(&lock)? == identity(&file)? => Ok(Some(lock)),
            _ => try_lock(file),
        }
    }

    fn take(&self, wanted: impl Fn(&str, &OwnedFd) -> bool) -> Option<OwnedFd> {
        let mut inherited = lock(&self.0.inherited);
        let place = inherited.iter().position(|(name, socket)| wanted(name, socket))?;
        Some(inherited.swap_remove(place).1)
    }

    /// Closes what nobody has taken.
    pub fn close_rest(&self) {
        for (name, socket) in std::mem::take(&mut *lock(&self.0.inherited)) {
            // A file that is locked, for something that this process has not.
            if SockRef::from(&socket).r#type().is_err() {
                continue;
            }
            let bound = SockRef::from(&socket).local_addr().ok();
            let bound = bound.and_then(|bound| match bound.as_socket() {
                Some(address) => Some(address.to_string()),
                None => bound.as_pathname().map(|path| path.display().to_string()),
            });
            // The name of a control socket that nobody answers at any more.
            if let Some(path) =
                SockRef::from(&socket).local_addr().ok().as_ref().and_then(|at| at.as_pathname())
            {
                let _ = std::fs::remove_file(path);
            }
            tracing::info!(%name, "closed an inherited socket that nothing listens on any more: {}", bound.unwrap_or_default());
        }
    }

    /// Keeps a socket for who comes next.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn keep(&self, name: &str, socket: &impl AsFd) -> io::Result<()> {
        let socket = socket.as_fd().try_clone_to_owned()?;
        if let Some(observer) = &*lock(&self.0.observer) {
            observer(name, socket.as_fd());
        }
        lock(&self.0.kept).push((name.to_owned(), socket));
        Ok(())
    }

    /// From now on `observer` is told of each socket that is kept; of those that are kept already at once.
    pub fn observe(&self, observer: impl Fn(&str, BorrowedFd<'_>) + Send + Sync + 'static) {
        let kept = lock(&self.0.kept);
        kept.iter().for_each(|(name, socket)| observer(name, socket.as_fd()));
        *lock(&self.0.observer) = Some(Box::new(observer));
    }

    /// The ports of those of this name that are kept.
    pub fn ports(&self, name: &str) -> HashSet<u16> {
        let kept = lock(&self.0.kept);
        let bound = kept.iter().filter(|(found, _)| found == name);
        let bound = bound.filter_map(|(_, socket)| SockRef::from(socket).local_addr().ok()?.as_socket());
        bound.map(|address| address.port()).collect()
    }

    /// All that is kept, for who comes next.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn all(&self) -> io::Result<Vec<Named>> {
        let kept = lock(&self.0.kept);
        kept.iter().map(|(name, socket)| Ok((name.clone(), socket.try_clone()?))).collect()
    }

    /// Keeps nothing any more: nobody comes next, and who connects is refused as soon as nobody accepts.
    pub fn let_go(&self) {
        *lock(&self.0.observer) = None;
        lock(&self.0.kept).clear();
    }
}

/// Locks a file or a directory until it is closed. `None`: another process has it.
///
/// # Errors
/// The system's.
pub fn try_lock(file: File) -> io::Result<Option<File>> {
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Takes a descriptor that whoever has started this process has passed to it by its number. What this process starts does
/// not inherit it. `None`: it is not open.
///
/// # Safety
/// Nobody else in this process has it.
pub(crate) unsafe fn passed(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: the caller's promise.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    if fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).is_err() {
        // It is not ours to close.
        std::mem::forget(descriptor);
        return None;
    }
    Some(descriptor)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A list of descriptors is whole at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpStream, UdpSocket};

    #[test]
    fn a_listener_is_found_by_what_it_is_and_keeps_its_queue() {
        let first = Sockets::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // The same port, and no listener: a datagram socket, and one that is connected.
        let datagrams = UdpSocket::bind(address).unwrap();
        let waiting = TcpStream::connect(address).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let control = UnixListener::bind(&path).unwrap();
        first.keep(name::DNS, &datagrams).unwrap();
        first.keep(name::ENTRY, &waiting).unwrap();
        first.keep(name::APPLIANCE, &listener).unwrap();
        first.keep(name::CONTROL, &control).unwrap();
        assert_eq!(first.ports(name::DNS), HashSet::from([address.port()]));
        assert!(first.ports(name::CONTROL).is_empty());
        let handed_on = first.all().unwrap();
        first.let_go();
        drop((listener, control));

        let second = Sockets::new(handed_on);
        assert!(second.tcp("127.0.0.2:1".parse().unwrap()).is_none());
        let taken = second.tcp(address).expect("the listener");
        assert!(second.tcp(address).is_none(), "it is taken once");
        taken.set_nonblocking(false).unwrap();
        assert_eq!(taken.accept().unwrap().1, waiting.local_addr().unwrap(), "who waited in its queue");
        assert!(second.unix(&directory.path().join("other.sock")).is_none());
        assert!(second.unix(&path).is_some());
        assert_eq!((second.named(name::DNS).len(), second.named(name::FORWARDER).len()), (1, 0));
        second.close_rest();
        assert!(second.one(name::ENTRY).is_none());
    }

    #[test]
    fn a_lock_that_was_handed_on_counts_for_what_it_is_on() {
        let directory = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| directory.path().join(name));
        let open = |path| File::create(path).unwrap();
        let none = Sockets::default();
        let first = none.lock("a", open(&a)).unwrap().expect("nobody has it");
        assert!(none.lock("a", open(&a)).unwrap().is_none());
        let handed_on = || Sockets::new(vec![("a".to_owned(), first.try_clone().unwrap().into())]);
        let second = handed_on().lock("a", open(&a)).unwrap().expect("it is handed on");
        let other = handed_on().lock("a", open(&b)).unwrap().expect("another file, which nobody has");
        assert!(none.lock("b", open(&b)).unwrap().is_none());
        drop((first, other));
        assert!(none.lock("a", open(&a)).unwrap().is_none(), "the second one has it");
        drop(second);
        assert!(none.lock("a", open(&a)).unwrap().is_some());
    }

    #[test]
    fn what_is_kept_is_told_of_once() {
        let sockets = Sockets::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        sockets.keep("before", &listener).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let seen = told.clone();
        sockets.observe(move |name, _| seen.lock().unwrap().push(name.to_owned()));
        sockets.keep("after", &listener).unwrap();
        assert_eq!(*told.lock().unwrap(), ["before", "after"]);
        // Who connects once all have let go is refused.
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert!(TcpStream::connect(address).is_ok(), "it is kept");
        sockets.let_go();
        assert!(TcpStream::connect(address).is_err());
    }
}
