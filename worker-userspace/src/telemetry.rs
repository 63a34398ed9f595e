//! The log: one line an event on standard error, for journald.
//!
//! What must hold: who knocks often does not fill the log. Warnings and errors of one kind, which is one place in
//! the source, are [`LINES`] in [`PERIOD`] at most; what is left out is counted, and the log says so.

use std::collections::HashMap;
use std::fmt;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{self, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Lines of one kind in a [`PERIOD`].
const LINES: u32 = 100;
/// See [`LINES`].
const PERIOD: Duration = Duration::from_secs(5);

/// The filter did not parse.
#[derive(Debug, thiserror::Error)]
#[error("log = {filter:?}: {source}: write a level (`info`) or a filter (`dworker::tunnel=debug,info`)")]
pub struct FilterError {
    /// What was written.
    filter: String,
    /// What is wrong with it.
    #[source]
    source: tracing_subscriber::filter::ParseError,
}

/// True where standard error goes to the journal: systemd says in `JOURNAL_STREAM` which file that is, and hands
/// the variable on to processes whose standard error is another by then.
pub fn is_journal() -> bool {
    let said = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let ours = std::fs::metadata("/proc/self/fd/2");
    ours.is_ok_and(|file| said == format!("{}:{}", file.dev(), file.ino()))
}

/// Starts the log with `tracing`'s filter syntax. Called once.
///
/// # Errors
/// The filter does not parse.
pub fn start(filter: &str) -> Result<(), FilterError> {
    let filter =
        EnvFilter::try_new(filter).map_err(|source| FilterError { filter: filter.to_owned(), source })?;
    // The journal has the time already.
    let journal = is_journal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // `dworker tail` tells the daemon's parts apart by their targets.
    let lines = format::format().with_target(journal).with_ansi(std::io::stderr().is_terminal());
    match journal {
        true => builder.event_format(Limited::new(lines.without_time())).init(),
        false => builder.event_format(Limited::new(lines)).init(),
    }
    Ok(())
}

/// Formats events, and leaves out those that come too often.
struct Limited<F> {
    format: F,
    /// By their places in the source, so there are not many.
    kinds: Mutex<HashMap<Identifier, Kind>>,
}

impl<F> Limited<F> {
    fn new(format: F) -> Self {
        Limited { format, kinds: Mutex::default() }
    }
}

impl<S, N, F> FormatEvent<S, N> for Limited<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if *event.metadata().level() > Level::WARN {
            return self.format.format_event(ctx, writer, event);
        }
        let turn = {
            let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
            kinds.entry(event.metadata().callsite()).or_default().turn(Instant::now())
        };
        let mut line = String::new();
        let added = match turn {
            Turn::LeftOut => return Ok(()),
            Turn::Plain => return self.format.format_event(ctx, writer, event),
            Turn::First { left_out } => format!(" ({left_out} more like this were left out before)"),
            Turn::Last => format!(" (more like this are only counted for up to {PERIOD:?})"),
        };
        self.format.format_event(ctx, Writer::new(&mut line), event)?;
        writeln!(writer, "{}{added}", line.trim_end_matches('\n'))
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

/// What becomes of an event.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Plain,
    /// The first line after some were left out.
    First {
        left_out: u64,
    },
    /// The last line of its period.
    Last,
    LeftOut,
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
pub(crate) mod tests {
    use std::io;
    use std::sync::Arc;

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

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged on this thread meanwhile, without times.
    pub(crate) fn logged(run: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let log = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .event_format(Limited::new(format::format().without_time().with_target(false).with_ansi(false)))
            .finish();
        tracing::subscriber::with_default(log, run);
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn one_kind_does_not_hide_another() {
        let said = logged(|| {
            for peer in 0..150 {
                tracing::warn!(peer, "refused");
                tracing::info!(peer, "asked");
            }
            tracing::error!("out of descriptors");
        });
        let count = |what| said.lines().filter(|line| line.contains(what)).count();
        assert_eq!((count("refused"), count("asked"), count("out of descriptors")), (100, 150, 1));
        let last = said.lines().rfind(|line| line.contains("refused")).unwrap();
        assert_eq!(last.trim(), "WARN refused peer=99 (more like this are only counted for up to 5s)");
    }
}
