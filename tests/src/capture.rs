//! What a process prints: kept whole, written to a log file, and waited for line by line.
//!
//! All output stays in memory until the process is dropped: a process of the lab lives for one test.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Which of the two outputs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout = 0,
    Stderr = 1,
}

/// Both outputs of one process.
pub(crate) struct Capture {
    path: Option<PathBuf>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    file: Option<File>,
    text: [Vec<u8>; 2],
    open: usize,
}

impl Capture {
    /// A capture that also writes both outputs, as they come, to the file `path`.
    pub(crate) fn new(path: Option<PathBuf>) -> Result<Arc<Capture>> {
        let file = match &path {
            Some(path) => Some(File::create(path).with_context(|| format!("creating {}", path.display()))?),
            None => None,
        };
        let state = Mutex::new(State { file, ..State::default() });
        Ok(Arc::new(Capture { path, state, changed: Condvar::new() }))
    }

    /// Where the log file is.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Reads one output to its end on a thread of its own.
    pub(crate) fn follow(self: &Arc<Self>, stream: Stream, mut pipe: impl Read + Send + 'static) {
        self.lock().open += 1;
        let capture = Arc::clone(self);
        thread::spawn(move || {
            let mut chunk = vec![0; 64 * 1024];
            loop {
                let read = match pipe.read(&mut chunk) {
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Ok(0) | Err(_) => break,
                    Ok(read) => read,
                };
                let mut state = capture.lock();
                state.text[stream as usize].extend_from_slice(&chunk[..read]);
                if let Some(file) = &mut state.file {
                    // Ignored: a full disk must not lose what the test is waiting for.
                    let _ = file.write_all(&chunk[..read]);
                }
                capture.changed.notify_all();
            }
            capture.lock().open -= 1;
            capture.changed.notify_all();
        });
    }

    /// All that one output has brought so far.
    pub(crate) fn text(&self, stream: Stream) -> String {
        String::from_utf8_lossy(&self.lock().text[stream as usize]).into_owned()
    }

    /// The last lines of both outputs, for an error message.
    pub(crate) fn tail(&self, lines: usize) -> String {
        let state = self.lock();
        let mut tail = String::new();
        for (name, text) in ["stdout", "stderr"].iter().zip(&state.text) {
            let text = String::from_utf8_lossy(text);
            let skip = text.lines().count().saturating_sub(lines);
            for line in text.lines().skip(skip) {
                tail.push_str(&format!("\n  {name}: {line}"));
            }
        }
        tail
    }

    /// Waits for a whole line that `wanted` accepts, in either output, from the beginning on.
    /// `None` when the time is over, or when both outputs end without one.
    pub(crate) fn line(&self, within: Duration, mut wanted: impl FnMut(&str) -> bool) -> Option<String> {
        let deadline = Instant::now() + within;
        let mut seen = [0, 0];
        let mut state = self.lock();
        loop {
            let ended = state.open == 0;
            for (text, seen) in state.text.iter().zip(&mut seen) {
                while let Some(end) = line_end(&text[*seen..], ended) {
                    let line = String::from_utf8_lossy(&text[*seen..*seen + end]).into_owned();
                    *seen = (*seen + end + 1).min(text.len());
                    if wanted(&line) {
                        return Some(line);
                    }
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if ended || left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(|e| e.into_inner()).0;
        }
    }

    /// Waits until both outputs have ended; false when the time is over first.
    pub(crate) fn ended(&self, within: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), within, |state| state.open > 0);
        waited.unwrap_or_else(|e| e.into_inner()).0.open == 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while holding the lock leaves at worst half a chunk: the text is still worth reading.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The length of the first line; an unfinished one counts only when no more will come.
fn line_end(text: &[u8], ended: bool) -> Option<usize> {
    match text.iter().position(|&byte| byte == b'\n') {
        None if ended && !text.is_empty() => Some(text.len()),
        end => end,
    }
}

#[cfg(test)]
mod tests {
    use std::io::pipe;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn a_line_is_found_when_it_comes_and_only_whole() -> Result<()> {
        let capture = Capture::new(None)?;
        let (reader, mut writer) = pipe()?;
        capture.follow(Stream::Stderr, reader);
        writer.write_all(b"starting\nrea")?;
        assert_eq!(capture.line(SOON, |line| line == "starting").as_deref(), Some("starting"));
        assert_eq!(capture.line(Duration::from_millis(20), |line| line.starts_with("rea")), None);
        writer.write_all(b"dy on 443\n")?;
        assert_eq!(capture.line(SOON, |line| line.contains("ready")).as_deref(), Some("ready on 443"));
        Ok(())
    }

    #[test]
    fn the_end_of_output_ends_the_wait() -> Result<()> {
        let capture = Capture::new(None)?;
        let (reader, mut writer) = pipe()?;
        capture.follow(Stream::Stdout, reader);
        writer.write_all(b"no newline")?;
        drop(writer);
        assert_eq!(capture.line(SOON, |line| line == "no newline").as_deref(), Some("no newline"));
        assert_eq!(capture.line(SOON, |line| line == "ready"), None);
        assert!(capture.ended(SOON));
        assert_eq!(capture.tail(5), "\n  stdout: no newline");
        Ok(())
    }
}
