//! `dworker events`.

use std::time::Duration;

use clap::Args;
use dworker::appliance::audit::Event;
use dworker::config::parse_duration;
use jiff::{SignedDuration, Timestamp};

use super::client::query;
use super::table::{dash, table};
use super::{Common, Done, Failure};

/// How far back a duration may reach.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Which events.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Only of these kinds, separated by commas: worker-added,login-failed
    #[arg(long, value_name = "KINDS")]
    kind: Option<String>,
    /// Only of this subject, or of what lies below it: a worker, a cloud, WORKER/NODE
    #[arg(long)]
    subject: Option<String>,
    /// Not before this time, or since so long: 2026-01-31T12:00:00Z, 2h, 7d
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
    /// Before this time, or until so long ago
    #[arg(long, value_name = "WHEN")]
    until: Option<String>,
    /// Only those with this in their actor, subject, text or source
    #[arg(long)]
    text: Option<String>,
    /// How many at most, the newest
    #[arg(long, default_value = "100")]
    limit: usize,
    #[command(flatten)]
    common: Common,
}

impl Events {
    pub(crate) async fn run(self) -> Done {
        let (since, until) = (when("--since", self.since)?, when("--until", self.until)?);
        let filter = [
            ("kind", self.kind.as_deref()),
            ("subject", self.subject.as_deref()),
            ("since", since.as_deref()),
            ("until", until.as_deref()),
            ("text", self.text.as_deref()),
        ];
        let path = format!("/api/v1/events{}", query(&filter));
        let row = |event: &Event| {
            let source = event.source.map(|source| format!(" from {source}")).unwrap_or_default();
            vec![
                format!("{:.0}", event.time),
                event.kind.to_string(),
                format!("{}{source}", event.actor),
                dash(&event.subject),
                event.text.clone(),
            ]
        };
        // As in a log: the newest one at the end.
        let shown = |events: &[Event]| {
            table(&["time", "kind", "who", "subject", "what"], events.iter().rev().map(row))
        };
        self.common.list(&path, self.limit, "no event", shown).await
    }
}

/// A time as the API takes it, from a time or from how long ago it was.
fn when(option: &str, text: Option<String>) -> Result<Option<String>, Failure> {
    let Some(text) = text else { return Ok(None) };
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(Some(time.to_string()));
    }
    let wrong =
        |why: String| Failure::Usage(format!("{option} {text:?}: neither a time nor a duration: {why}"));
    let forms = "write a time as in 2026-01-31T12:00:00Z, or how long ago it was as in 90s, 15m, 2h or 7d";
    let ago = parse_duration(&text, LONGEST).map_err(|_| wrong(forms.to_owned()))?;
    let ago = SignedDuration::try_from(ago).map_err(|error| wrong(error.to_string()))?;
    let time = Timestamp::now().checked_sub(ago).map_err(|error| wrong(error.to_string()))?;
    Ok(Some(time.to_string()))
}
