//! The limit of the log: who knocks often does not fill it.
//!
//! What must hold: warnings and errors of one kind, which is one place in the source, are [`LINES`] in [`PERIOD`] at most,
//! wherever they go; what is left out is counted, and the log says so.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level};

/// Lines of one kind in a [`PERIOD`].
const LINES: u32 = 100;
/// See [`LINES`].
const PERIOD: Duration = Duration::from_secs(5);

/// All that was left out since the start.
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// Lines that were left out since the start, because too many of their kind came, or nobody took them.
pub fn left_out() -> u64 {
    LEFT_OUT.load(Ordering::Relaxed)
}

/// Counts a line that was left out.
pub(super) fn leave_out() {
    LEFT_OUT.fetch_add(1, Ordering::Relaxed);
}

/// The limit of one output.
#[derive(Debug, Default)]
pub(super) struct Flood {
    /// By their places in the source, so there are not many.
    kinds: Mutex<HashMap<Identifier, Kind>>,
}

impl Flood {
    /// What becomes of an event.
    pub(super) fn turn(&self, event: &Event<'_>) -> Turn {
        if *event.metadata().level() > Level::WARN {
            return Turn::Plain;
        }
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = kinds.entry(event.metadata().callsite()).or_default().turn(Instant::now());
        if turn == Turn::LeftOut {
            leave_out();
        }
        turn
    }
}

/// What becomes of an event. As text it is what is said behind the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Plain,
    /// The first line after some were left out.
    First {
        left_out: u64,
    },
    /// The last line of its period.
    Last,
    LeftOut,
}

impl fmt::Display for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Turn::Plain | Turn::LeftOut => Ok(()),
            Turn::First { left_out } => write!(f, " ({left_out} more like this were left out before)"),
            Turn::Last => write!(f, " (more like this are only counted for up to {PERIOD:?})"),
        }
    }
}

/// The events of one kind.
#[derive(Debug, Default)]
struct Kind {
    /// When the present period began.
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Kind {
    fn turn(&mut self, now: Instant) -> Turn {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= PERIOD) {
            (self.since, self.lines) = (Some(now), 0);
        }
        self.lines = self.lines.saturating_add(1);
        match (self.lines, std::mem::take(&mut self.left_out)) {
            (..LINES, 0) => Turn::Plain,
            (..LINES, left_out) => Turn::First { left_out },
            (LINES, _) => Turn::Last,
            (_, left_out) => {
                self.left_out = left_out + 1;
                Turn::LeftOut
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_and_a_count() {
        let (mut kind, start) = (Kind::default(), Instant::now());
        let mut turns = |after: Duration, count: u32| -> Vec<Turn> {
            (0..count).map(|_| kind.turn(start + after)).collect()
        };
        let first = turns(Duration::ZERO, 1000);
        assert!(first[..99].iter().all(|turn| *turn == Turn::Plain));
        assert_eq!(first[99], Turn::Last);
        assert!(first[100..].iter().all(|turn| *turn == Turn::LeftOut));
        assert_eq!(turns(PERIOD - Duration::from_millis(1), 1), [Turn::LeftOut]);
        let second = turns(PERIOD, 110);
        assert_eq!(second[..2], [Turn::First { left_out: 901 }, Turn::Plain]);
        assert_eq!(second[99..101], [Turn::Last, Turn::LeftOut]);
        assert_eq!(turns(10 * PERIOD, 2), [Turn::First { left_out: 10 }, Turn::Plain]);
    }
}
