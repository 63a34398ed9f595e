//! As the service will see files: as root, but without what lets root pass over owners and modes. The kernel itself judges,
//! so that access lists, masks and mounts are judged, too.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::{io, thread};

/// `linux/capability.h`.
const VERSION: u32 = 0x2008_0522;
const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_DAC_READ_SEARCH: u32 = 2;

#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Does something on a thread of its own that has let go of these rights.
///
/// # Errors
/// The kernel does not take them away.
pub(super) fn unprivileged<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = scope.spawn(|| let_go().map(|()| work()));
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Of this thread only.
fn let_go() -> io::Result<()> {
    let mut header = Header { version: VERSION, pid: 0 };
    let mut data = [Data::default(); 2];
    let call = |number, header: &mut Header, data: *mut Data| {
        // SAFETY: both are as the kernel wants them, of this version, and live as long as the call.
        match unsafe { libc::syscall(number, header as *mut Header, data) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    call(libc::SYS_capget, &mut header, data.as_mut_ptr())?;
    let kept = !(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH);
    data[0].effective &= kept;
    // access() takes what is permitted.
    data[0].permitted &= kept;
    call(libc::SYS_capset, &mut header, data.as_mut_ptr())
}

/// Why a directory can't be written to; nothing where it can, or is not there.
pub(super) fn unwritable(directory: &Path) -> Option<io::Error> {
    let path = CString::new(directory.as_os_str().as_bytes()).ok()?;
    // SAFETY: the text ends with a zero and lives as long as the call.
    let failed = unsafe { libc::access(path.as_ptr(), libc::W_OK | libc::X_OK) } != 0;
    let error = io::Error::last_os_error();
    Some(error).filter(|error| failed && error.kind() != io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown};

    #[test]
    fn what_is_anothers_is_not_read_by_root_without_its_rights() {
        assert!(nix::unistd::geteuid().is_root(), "run it as root");
        let directory = tempfile::tempdir().unwrap();
        let (file, state) = (directory.path().join("file"), directory.path().join("state"));
        fs::write(&file, "text").unwrap();
        fs::create_dir(&state).unwrap();
        let read = || unprivileged(|| fs::read(&file).map_err(|error| error.kind())).unwrap();
        let write = || unprivileged(|| unwritable(&state).map(|error| error.kind())).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(&state, Permissions::from_mode(0o700)).unwrap();
        assert_eq!((read().is_ok(), write()), (true, None));
        chown(&file, Some(1000), Some(1000)).unwrap();
        chown(&state, Some(1000), Some(1000)).unwrap();
        assert_eq!(
            (read(), write()),
            (Err(io::ErrorKind::PermissionDenied), Some(io::ErrorKind::PermissionDenied))
        );
        assert!(fs::read(&file).is_ok(), "this thread has all of its rights");
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        assert!(read().is_ok());
        assert!(unprivileged(|| unwritable(&directory.path().join("gone"))).unwrap().is_none());
    }
}
