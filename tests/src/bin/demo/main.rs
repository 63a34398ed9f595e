//! `cargo xtask demo`: the main job, shown on real software in a lab that comes and goes.
//!
//! Two processes: one tells the [`story`], the other looks after it. Ctrl-C or a crash ends the teller on the spot;
//! what it leaves is then swept by the one that outlives it. With `--keep` the teller stays and holds the lab,
//! without a terminal, until `--clean`.

mod keep;
mod report;
mod story;

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigHandler, Signal, signal};

use keep::Kept;

/// What the one process says to the other to have the story told.
const TELL: &str = "--tell";
const KEEP: &str = "--keep";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => look_after(false),
        [KEEP] => look_after(true),
        ["--clean"] => keep::clean().map(|()| true),
        [TELL] => story::tell().map(|_story| true),
        [TELL, KEEP] => story::tell().and_then(keep::hold).map(|()| true),
        _ => Err(anyhow::anyhow!("usage: demo [--keep | --clean]")),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Has the story told and cleans up whatever becomes of the teller. False where the teller has said what failed.
fn look_after(keep: bool) -> Result<bool> {
    if keep && Kept::find()?.is_some() {
        bail!("a lab is kept already: take it down with `cargo xtask demo --clean`");
    }
    let mut teller = Command::new(std::env::current_exe()?);
    teller.arg(TELL).args(keep.then_some(KEEP)).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut teller = teller.spawn().context("starting the teller")?;
    pass_signals_to(&teller)?;
    let mut told = teller.stdout.take().context("the teller has no output")?;
    // Ends when the teller does, or when it goes into the background.
    io::copy(&mut told, &mut io::stdout()).context("passing on what the teller says")?;
    if keep && Kept::find()?.is_some_and(|kept| kept.pid() == teller.id()) {
        return Ok(true);
    }
    let status = teller.wait()?;
    let swept = tests::sweep().context("cleaning up")?;
    let of_teller = format!("dwlab-{}-", teller.id());
    let left = swept.0.iter().any(|path| path.to_string_lossy().contains(&of_teller));
    match status.signal() {
        Some(signal) => println!("\nStopped by signal {signal}. The lab is swept away."),
        None if !left => println!("\nThe lab is taken down; nothing is left of it."),
        None => bail!("the lab left something behind: {:?}", swept.0),
    }
    Ok(status.success())
}

static TELLER: AtomicI32 = AtomicI32::new(0);

/// From now on this process outlives Ctrl-C and its like, and the teller does not.
fn pass_signals_to(teller: &Child) -> Result<()> {
    extern "C" fn pass(_: libc::c_int) {
        // SAFETY: kill is safe to call in a signal handler. The teller is waited for only once, at the end; a
        // signal after that finds no such process, for its id is not given out again so soon.
        unsafe { libc::kill(TELLER.load(Ordering::Relaxed), libc::SIGTERM) };
    }
    TELLER.store(teller.id() as i32, Ordering::Relaxed);
    for caught in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler does nothing but call kill with an atomic's value.
        unsafe { signal(caught, SigHandler::Handler(pass)) }.context("catching signals")?;
    }
    Ok(())
}
