//! How memory is taken from the system.

/// Bytes at the end of an arena that are kept for what comes next, and the size from which on memory is mapped for itself.
/// A busy connection's buffers are 64 KiB each.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 4 * 1024 * 1024;

/// Keeps what is freed for the next buffer. By default glibc gives 128 KiB and more back at once, and a daemon that copies
/// spends a tenth of its time on being given the same pages again, zeroed.
pub fn keep_freed() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it changes numbers of the allocator's, under its own lock; where it refuses, all stays as it was.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT);
    }
}
