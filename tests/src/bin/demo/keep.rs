//! A lab that stays up after its demo.
//!
//! Its teller holds it and the lock of a file with its process id. The lock, not the id, says that it lives.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::{Context, Result, bail};
use nix::sys::eventfd::EventFd;
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use crate::story::Story;

/// A teller that holds a lab.
pub(crate) struct Kept {
    pid: u32,
    file: File,
}

impl Kept {
    /// The one that there is.
    pub(crate) fn find() -> Result<Option<Kept>> {
        let path = path()?;
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.with_context(|| format!("opening {}", path.display()))?,
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => {
                let text = io::read_to_string(&file)?;
                let pid = text.trim().parse().with_context(|| format!("reading {}", path.display()))?;
                Ok(Some(Kept { pid, file }))
            }
            Err(TryLockError::Error(error)) => Err(error).context("asking whether a lab is kept"),
        }
    }

    /// The teller's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }
}

/// Goes into the background with the lab and stays until [`clean`].
pub(crate) fn hold(story: Story) -> Result<()> {
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path()?)?;
    if file.try_lock().is_err() {
        bail!("another lab is kept already: take it down with `cargo xtask demo --clean`");
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    let end = end_of_service()?;
    story.say_how_to_enter()?;
    // A session of its own: closing the terminal is not the end.
    setsid().context("leaving the terminal")?;
    let nowhere = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&nowhere)?;
    dup2_stderr(&nowhere)?;
    // Last, for it tells the one who looks after us that all is well.
    dup2_stdout(&nowhere)?;
    while end.read().is_err() {}
    drop(story);
    Ok(())
}

/// Takes down the lab that was kept.
pub(crate) fn clean() -> Result<()> {
    match Kept::find()? {
        None => println!("No lab is kept."),
        Some(kept) => {
            kill(Pid::from_raw(kept.pid as i32), Signal::SIGTERM).context("ending the teller")?;
            // It holds the lock as long as it lives.
            kept.file.lock_shared().context("waiting for the teller's end")?;
            fs::remove_file(path()?)?;
            println!("The lab is taken down.");
        }
    }
    tests::sweep().context("sweeping what dead programs left").map(drop)
}

/// Beside the program, so that each build tree keeps its own.
fn path() -> Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("demo.kept"))
}

static END: AtomicI32 = AtomicI32::new(-1);

/// A descriptor that becomes readable when somebody asks this process to end.
fn end_of_service() -> Result<EventFd> {
    extern "C" fn end(_: libc::c_int) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: write is safe to call in a signal handler; the descriptor lives as long as the handler is set.
        unsafe { libc::write(END.load(Ordering::Relaxed), one.as_ptr().cast(), one.len()) };
    }
    let event = EventFd::new().context("making an eventfd")?;
    END.store(event.as_raw_fd(), Ordering::Relaxed);
    // SAFETY: the handler does nothing but write to the descriptor in an atomic.
    unsafe { signal(Signal::SIGTERM, SigHandler::Handler(end)) }.context("catching SIGTERM")?;
    Ok(event)
}
