//! Standard error, without ever waiting for who reads it: a pipe that nobody empties, a journal that is stopped or a terminal
//! that is held would else stop each thread that logs, and with them the daemon.
//!
//! What must hold: a line is there whole, or cut and ended; what has no room is counted.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::flood;

/// What fits wherever `poll` says that there is room: `PIPE_BUF`. Sockets have more.
const PIECE: usize = 4096;

/// One at a time, so that lines do not mix; true while the last line was cut.
static CUT: Mutex<bool> = Mutex::new(false);

/// Writes a line to standard error, as far as there is room.
pub(super) fn write(line: &[u8]) {
    let mut cut = CUT.lock().unwrap_or_else(PoisonError::into_inner);
    to(io::stderr().as_fd(), line, &mut cut);
}

fn to(file: BorrowedFd<'_>, line: &[u8], cut: &mut bool) {
    // Behind a piece of another line this one begins anew.
    let whole: Vec<u8> = if *cut { [b"\n", line].concat() } else { line.to_vec() };
    let written = pieces(file, &whole);
    if written < whole.len() {
        flood::leave_out();
    }
    if written > 0 {
        *cut = written < whole.len();
    }
}

/// How much of it there was room for.
fn pieces(file: BorrowedFd<'_>, mut rest: &[u8]) -> usize {
    let mut written = 0;
    while !rest.is_empty() {
        let mut asked = [PollFd::new(file, PollFlags::POLLOUT)];
        let room = poll(&mut asked, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
        if !room || !asked[0].revents().is_some_and(|events| events.contains(PollFlags::POLLOUT)) {
            break;
        }
        match nix::unistd::write(file, &rest[..rest.len().min(PIECE)]) {
            Ok(n) => (written, rest) = (written + n, &rest[n..]),
            Err(nix::errno::Errno::EINTR) => {}
            // Nobody is there who could be told.
            Err(_) => break,
        }
    }
    written
}

/// As [`write`], for who formats into a writer: each write is one line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        write(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    /// Logs far more than fits, with nobody who reads; then reads.
    fn full(write: OwnedFd, mut read: impl Read) {
        let before = super::super::left_out();
        let (mut cut, line) = (false, format!("{}\n", "x".repeat(5000)));
        for _ in 0..1000 {
            to(write.as_fd(), line.as_bytes(), &mut cut);
        }
        assert!(super::super::left_out() > before + 500, "nothing was left out");
        let mut some = vec![0; PIECE];
        // Somebody reads again.
        while pieces(write.as_fd(), b"\n") == 0 {
            assert!(read.read(&mut some).unwrap() > 0);
        }
        to(write.as_fd(), b"after\n", &mut cut);
        drop(write);
        let mut rest = String::new();
        read.read_to_string(&mut rest).unwrap();
        assert!(
            rest.ends_with("\nafter\n"),
            "a line of its own: {:?}",
            &rest[rest.len().saturating_sub(80)..]
        );
    }

    #[test]
    fn who_does_not_read_stops_nobody() {
        let (read, write) = io::pipe().unwrap();
        full(write.into(), read);
        let (read, write) = UnixStream::pair().unwrap();
        full(write.into(), read);
    }
}
