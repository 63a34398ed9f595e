//! Why a connection was not made: one vocabulary from the worker's `connect()` to the application's.
//!
//! A [`Refusal`] travels in `OPEN_ERR` and `RESET`, becomes the errno of the application's next
//! `connect()`, and is what the log and `status` print.

use std::fmt;
use std::io;

/// The kinds of refusal. The numbers are the wire's: they never change meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Code {
    /// The target answered with a reset (`ECONNREFUSED`).
    Refused = 1,
    /// The target did not answer in time (`ETIMEDOUT`).
    Timeout = 2,
    /// No way to the target's host (`EHOSTUNREACH`).
    HostUnreachable = 3,
    /// No way to the target's network (`ENETUNREACH`).
    NetUnreachable = 4,
    /// The worker's resolver knows no such name.
    NameNotFound = 5,
    /// The worker's resolver failed.
    ResolveFailed = 6,
    /// The worker's egress policy, or the appliance's, does not allow the target.
    Denied = 7,
    /// No worker carries this target.
    NoRoute = 8,
    /// A worker should carry this target, but none is connected.
    NoWorker = 9,
    /// A limit was reached: streams, credit, descriptors.
    Limit = 10,
    /// An established connection was reset by its peer.
    Reset = 11,
    /// The tunnel was lost under an established stream.
    TunnelLost = 12,
    /// This end is shutting down.
    Shutdown = 13,
    /// A peer broke the protocol.
    Protocol = 14,
    /// Anything else; the text says what.
    Other = 15,
    /// An administrator closed the connection by hand.
    Closed = 16,
    /// The proxy that the worker goes through does not let it pass: another user, or another target.
    ProxyDenied = 17,
    /// The proxy that the worker goes through is not to be reached, or is no proxy.
    ProxyDown = 18,
}

impl Code {
    /// All of them. [`Code::Other`] is the first: it is what everything is that is no other.
    pub const ALL: [Code; 18] = [
        Code::Other,
        Code::Refused,
        Code::Timeout,
        Code::HostUnreachable,
        Code::NetUnreachable,
        Code::NameNotFound,
        Code::ResolveFailed,
        Code::Denied,
        Code::NoRoute,
        Code::NoWorker,
        Code::Limit,
        Code::Reset,
        Code::TunnelLost,
        Code::Shutdown,
        Code::Protocol,
        Code::Closed,
        Code::ProxyDenied,
        Code::ProxyDown,
    ];

    /// The wire's number as a code; numbers from newer versions become [`Code::Other`].
    pub fn from_wire(n: u16) -> Code {
        Code::ALL.into_iter().find(|code| *code as u16 == n).unwrap_or(Code::Other)
    }

    /// The code for what a system call failed with.
    pub(crate) fn from_errno(errno: i32) -> Code {
        match errno {
            libc::ECONNREFUSED => Code::Refused,
            libc::ETIMEDOUT => Code::Timeout,
            libc::EHOSTUNREACH | libc::EHOSTDOWN => Code::HostUnreachable,
            libc::ENETUNREACH | libc::ENETDOWN => Code::NetUnreachable,
            libc::ECONNRESET | libc::EPIPE => Code::Reset,
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL => Code::Limit,
            libc::EACCES | libc::EPERM => Code::Denied,
            _ => Code::Other,
        }
    }

    /// The errno that `connect()` would have given for this, had the application dialled itself.
    pub fn errno(self) -> i32 {
        match self {
            Code::Refused => libc::ECONNREFUSED,
            Code::Timeout => libc::ETIMEDOUT,
            Code::NetUnreachable => libc::ENETUNREACH,
            Code::Denied | Code::ProxyDenied => libc::EACCES,
            Code::Reset | Code::Closed => libc::ECONNRESET,
            Code::HostUnreachable
            | Code::NameNotFound
            | Code::ResolveFailed
            | Code::NoRoute
            | Code::NoWorker
            | Code::Limit
            | Code::TunnelLost
            | Code::Shutdown
            | Code::Protocol
            | Code::ProxyDown
            | Code::Other => libc::EHOSTUNREACH,
        }
    }

    /// True where it is about who carried and says nothing of the target: another one may do.
    pub fn is_of_carrier(self) -> bool {
        matches!(self, Code::TunnelLost | Code::Shutdown)
    }

    /// The word for this code in logs and in `status`.
    pub fn word(self) -> &'static str {
        match self {
            Code::Refused => "refused",
            Code::Timeout => "timeout",
            Code::HostUnreachable => "host-unreachable",
            Code::NetUnreachable => "net-unreachable",
            Code::NameNotFound => "name-not-found",
            Code::ResolveFailed => "resolve-failed",
            Code::Denied => "denied",
            Code::NoRoute => "no-route",
            Code::NoWorker => "no-worker",
            Code::Limit => "limit",
            Code::Reset => "reset",
            Code::TunnelLost => "tunnel-lost",
            Code::Shutdown => "shutdown",
            Code::Protocol => "protocol",
            Code::Other => "error",
            Code::Closed => "closed-by-admin",
            Code::ProxyDenied => "proxy-denied",
            Code::ProxyDown => "proxy-down",
        }
    }
}

/// Why a connection was not made, or was cut.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Refusal {
    /// The kind.
    pub code: Code,
    /// The errno that the far end's kernel gave, 0 where there was none.
    pub errno: i32,
    /// One line for people, without secrets.
    pub text: String,
}

impl Refusal {
    /// A refusal that no kernel call gave.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Refusal { code, errno: 0, text: text.into() }
    }

    /// A refusal from a failed system call; the errno decides the code.
    pub fn from_io(error: &io::Error, doing: impl fmt::Display) -> Self {
        let errno = error.raw_os_error().unwrap_or(0);
        Refusal { code: Code::from_errno(errno), errno, text: format!("{doing}: {error}") }
    }

    /// The errno that the application is given: the far kernel's own where it says the same as the code. A peer
    /// must not make `connect()` return what means something else, or even success, to an application.
    pub fn connect_errno(&self) -> i32 {
        match self.code {
            Code::Limit | Code::Other => self.code.errno(),
            code if code == Code::from_errno(self.errno) => self.errno,
            code => code.errno(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.word(), self.text)
    }
}

/// For connections that end because this daemon does.
pub fn shutdown() -> Refusal {
    Refusal::new(Code::Shutdown, "dworker is stopping")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_the_wire_and_unknown_ones_become_other() {
        for n in 1..=18 {
            assert_eq!(Code::from_wire(n) as u16, n);
        }
        assert_eq!(Code::from_wire(0), Code::Other);
        assert_eq!(Code::from_wire(999), Code::Other);
    }

    #[test]
    fn the_far_kernels_errno_reaches_the_application() {
        let io = io::Error::from_raw_os_error(libc::ENETUNREACH);
        let refusal = Refusal::from_io(&io, "dialling 192.0.2.1:443");
        assert_eq!(refusal.code, Code::NetUnreachable);
        assert_eq!(refusal.connect_errno(), libc::ENETUNREACH);
        assert_eq!(Refusal::new(Code::NoWorker, "").connect_errno(), libc::EHOSTUNREACH);
    }

    #[test]
    fn a_peer_does_not_choose_what_connect_returns() {
        // EINPROGRESS would be taken for a connection, 512 would restart the call.
        for errno in [libc::EINPROGRESS, libc::EINTR, 512, 4095, libc::ECONNREFUSED] {
            let refusal = Refusal { code: Code::Timeout, errno, text: String::new() };
            assert_eq!(refusal.connect_errno(), libc::ETIMEDOUT, "{errno}");
        }
        let down = Refusal { code: Code::HostUnreachable, errno: libc::EHOSTDOWN, text: String::new() };
        assert_eq!(down.connect_errno(), libc::EHOSTDOWN);
    }
}
