//! The log: one line an event on standard error, as text or as JSON, or records with fields in the journal.
//!
//! What must hold: who knocks often does not fill it ([`flood`]), wherever it goes; nobody who logs waits for who reads; what is
//! logged can be changed while the daemon runs.
//!
//! | file | about |
//! |---|---|
//! | `telemetry.rs` | where the log goes, and what is in it |
//! | `telemetry/flood.rs` | its limit |
//! | `telemetry/record.rs` | an event with its fields; JSON |
//! | `telemetry/journal.rs` | the journal's protocol |
//! | `telemetry/stderr.rs` | standard error |
//! | `telemetry/level.rs` | what is logged, changed at run time |

mod flood;
mod journal;
mod level;
mod record;
mod stderr;

use std::fmt;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use jiff::Timestamp;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{self, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

pub use flood::left_out;
pub use level::{Filter, change_filter, filter, put_filter_back};

use crate::config::LogFormat;
use flood::{Flood, Turn};
use journal::{Journal, Sent};
use record::{Record, Records};

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

fn parsed(filter: &str) -> Result<EnvFilter, FilterError> {
    EnvFilter::try_new(filter).map_err(|source| FilterError { filter: filter.to_owned(), source })
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
pub fn start(filter: &str, format: LogFormat) -> Result<(), FilterError> {
    let (layer, handle) = reload::Layer::new(parsed(filter)?);
    let set = move |filter: EnvFilter| handle.reload(filter).map_err(|error| error.to_string());
    level::begin(filter, Box::new(set));
    tracing_subscriber::registry().with(layer).with(output(format)).init();
    Ok(())
}

type Filtered = tracing_subscriber::layer::Layered<reload::Layer<EnvFilter, Registry>, Registry>;

fn output(format: LogFormat) -> Box<dyn Layer<Filtered> + Send + Sync> {
    let journal = || Journal::connect(Path::new(journal::SOCKET)).ok();
    match format {
        LogFormat::Json => Records::new(|record| print(&record.json(Timestamp::now()))).boxed(),
        LogFormat::Text if is_journal() => match journal() {
            Some(journal) => Records::new(move |record| tell(&journal, record)).boxed(),
            // It has the time already. `dworker tail` tells the daemon's parts apart by their targets.
            None => text(|lines| Limited::new(lines.with_target(true).without_time())),
        },
        LogFormat::Text => text(Limited::new),
    }
}

fn text<F>(limited: impl FnOnce(format::Format) -> Limited<F>) -> Box<dyn Layer<Filtered> + Send + Sync>
where
    Limited<F>: FormatEvent<Filtered, format::DefaultFields> + Send + Sync + 'static,
{
    let lines = format::format().with_target(false).with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::fmt::layer().with_writer(|| stderr::Stderr).event_format(limited(lines)).boxed()
}

/// One line on standard error. Nobody is there who could be told that it was not written.
fn print(line: &impl fmt::Display) {
    stderr::write(format!("{line}\n").as_bytes());
}

fn tell(journal: &Journal, record: &Record) {
    match journal.send(record, Path::new(journal::SOCKET)) {
        Ok(Sent::Whole) => {}
        // It reads standard error as well, and no faster.
        Ok(Sent::NoRoom) => flood::leave_out(),
        Err(_) => print(&format_args!("{} {}", record.metadata.level(), record.line())),
    }
}

/// Formats events, and leaves out those that come too often.
struct Limited<F> {
    format: F,
    flood: Flood,
}

impl<F> Limited<F> {
    fn new(format: F) -> Self {
        Limited { format, flood: Flood::default() }
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
        match self.flood.turn(event) {
            Turn::LeftOut => Ok(()),
            Turn::Plain => self.format.format_event(ctx, writer, event),
            turn => {
                let mut line = String::new();
                self.format.format_event(ctx, Writer::new(&mut line), event)?;
                writeln!(writer, "{}{turn}", line.trim_end_matches('\n'))
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
