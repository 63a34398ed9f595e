//! The log: one line an event on standard error, for journald.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

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

/// Starts the log with `tracing`'s filter syntax. Called once.
///
/// # Errors
/// The filter does not parse.
pub fn start(filter: &str) -> Result<(), FilterError> {
    let filter =
        EnvFilter::try_new(filter).map_err(|source| FilterError { filter: filter.to_owned(), source })?;
    // Under systemd the journal has the time already.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    match journal {
        true => builder.without_time().init(),
        false => builder.init(),
    }
    Ok(())
}
