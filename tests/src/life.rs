//! Waiting for the end of any process, ours or not.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A descriptor of a process that becomes readable when it ends (pidfd, Linux 5.3). Unlike its id it
/// never means another process.
#[derive(Debug)]
pub(crate) struct Life(OwnedFd);

impl Life {
    /// Of the process with this id.
    pub(crate) fn of(pid: u32) -> io::Result<Life> {
        // SAFETY: pidfd_open takes a process id and flags and touches no memory of ours.
        let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
        Ok(Life(unsafe { OwnedFd::from_raw_fd(descriptor as i32) }))
    }

    /// Waits until the process has ended, without reaping it; false when the time is over first.
    pub(crate) fn ends_within(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(ready) if ready > 0 => return true,
                Ok(_) | Err(Errno::EINTR) if left.is_zero() => return false,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
    }
}
