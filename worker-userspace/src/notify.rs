//! What the service manager is told, as `sd_notify(3)` has it. Without a manager, nothing.

use std::env;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

/// Where the manager listens: a path, or an abstract name that begins with `@`.
struct Manager {
    socket: UnixDatagram,
    address: UnixAddr,
}

/// Read once: what this process starts does not inherit it unless it is told so.
fn manager() -> Option<&'static Manager> {
    static MANAGER: OnceLock<Option<Manager>> = OnceLock::new();
    let find = || {
        let name = env::var_os("NOTIFY_SOCKET")?;
        let address = match name.as_bytes() {
            [b'@', rest @ ..] => UnixAddr::new_abstract(rest),
            path => UnixAddr::new(path),
        };
        let made = address.map_err(io::Error::from).and_then(|address| {
            let socket = UnixDatagram::unbound()?;
            Ok(Manager { socket, address })
        });
        made.inspect_err(|error| tracing::warn!("NOTIFY_SOCKET={name:?}: {error}")).ok()
    };
    MANAGER.get_or_init(find).as_ref()
}

/// True where a manager listens.
pub fn is_on() -> bool {
    manager().is_some()
}

/// The daemon serves, and this is the process that does.
pub fn ready() {
    tell("READY=1\nSTATUS=serving");
}

/// What the daemon does, for people.
pub fn status(text: &str) {
    tell(&format!("STATUS={text}"));
}

/// The daemon stops.
pub fn stopping() {
    tell("STOPPING=1\nSTATUS=stopping");
}

/// Another process is the daemon now.
pub fn main_process(pid: u32) {
    tell(&format!("MAINPID={pid}"));
}

/// The daemon is alive. Is called by what would not be running otherwise.
pub fn alive() {
    tell("WATCHDOG=1");
}

/// How often the manager wants to hear that the daemon is alive: half of what it waits.
pub fn watchdog() -> Option<Duration> {
    let microseconds: u64 = env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    (is_on() && microseconds > 0).then(|| Duration::from_micros(microseconds) / 2)
}

/// Puts a socket into the manager's store, from which a daemon that is started after a crash gets it.
pub fn store(name: &str, socket: BorrowedFd<'_>) {
    send(&format!("FDSTORE=1\nFDNAME={name}"), &[socket]);
}

/// Takes all sockets of a name out of the manager's store.
pub fn forget(name: &str) {
    tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"));
}

fn tell(text: &str) {
    send(text, &[]);
}

fn send(text: &str, sockets: &[BorrowedFd<'_>]) {
    let Some(Manager { socket, address }) = manager() else { return };
    let raw: Vec<_> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    let passed = [ControlMessage::ScmRights(&raw)];
    let passed = if raw.is_empty() { &[][..] } else { &passed[..] };
    let text = [IoSlice::new(text.as_bytes())];
    if let Err(error) = sendmsg(socket.as_raw_fd(), &text, passed, MsgFlags::MSG_NOSIGNAL, Some(address)) {
        tracing::warn!("the service manager can't be told: {error}");
    }
}
