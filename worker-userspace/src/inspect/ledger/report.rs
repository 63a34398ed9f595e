//! Connections as `status` and the API show them, and which of them are asked for.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::LISTED;
use super::flow::{Entry, Flow, Origin, Process};
use crate::refusal::Refusal;

/// A connection as `status` and the API show it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(as = Connection)]
pub struct FlowReport {
    /// Number of the connection in this daemon's life.
    pub id: u64,
    /// Joins the log lines of both ends, hexadecimal.
    pub trace: String,
    /// How it came in.
    pub entry: Entry,
    /// `opening`, `open`, `closed`, or why it was not made or was cut (`refused`, `timeout`, `denied`, `reset`, ...).
    pub state: String,
    /// One line on why, where it was not made or was cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Name or address, and port.
    pub target: String,
    /// What the application asked `connect()` for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub original: Option<SocketAddr>,
    /// Who asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The address that it came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub source: Option<SocketAddr>,
    /// The user that proved to be one, where an entry asks for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The group of the worker that it came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Who carries it: `group/node`; the last one, where one was lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub carrier: Option<String>,
    /// Carriers that were lost before the target was dialled.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: u32,
    /// The stream that it is carried in, while it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamPlace>,
    /// The address that was dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub dialled: Option<SocketAddr>,
    /// True where that address is a proxy's, which dialled the target.
    #[serde(default, skip_serializing_if = "is_false")]
    pub proxied: bool,
    /// How long resolution and dial took, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dial_us: Option<u64>,
    /// Bytes from the opener to the target.
    pub bytes_up: u64,
    /// Bytes from the target to the opener.
    pub bytes_down: u64,
    /// Bytes per second from the opener to the target, over the last second; 0 once it has ended.
    #[serde(default)]
    pub rate_up: u64,
    /// Bytes per second from the target to the opener, over the last second; 0 once it has ended.
    #[serde(default)]
    pub rate_down: u64,
    /// When it came in, seconds since 1970.
    pub since: u64,
    /// How long it has lasted, or lasted, in milliseconds.
    pub age_ms: u64,
}

impl FlowReport {
    /// Whether it is there still, or is being made.
    pub fn is_open(&self) -> bool {
        matches!(self.state.as_str(), "open" | "opening")
    }

    /// Its stream, among all of this daemon: who carries it, or, of one that a worker opened, whose that is; lane; number.
    pub fn stream_key(&self) -> Option<String> {
        let place = self.stream?;
        let whose = self.carrier.as_ref().or(self.from.as_ref());
        let whose = whose.map(|whose| format!("{whose}/")).unwrap_or_default();
        Some(format!("{whose}{}/{}", place.lane, place.id))
    }

    /// By what it is asked for: its number and its trace.
    pub fn keys(&self) -> [String; 2] {
        [self.id.to_string(), self.trace.clone()]
    }

    /// True where this is its number, its trace or its stream.
    pub fn is_called(&self, id: &str) -> bool {
        self.keys().into_iter().chain(self.stream_key()).any(|key| key.eq_ignore_ascii_case(id))
    }
}

/// Where a stream is, and what waits there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StreamPlace {
    /// The lane's number in its session.
    pub lane: u8,
    /// The stream's number on that lane.
    pub id: u32,
    /// Bytes that the other end may have on the way to here: the stream's credit.
    #[serde(default)]
    pub window: u32,
    /// Bytes that came by it and that nobody has taken here yet.
    #[serde(default)]
    pub held: u64,
    /// Bytes that wait to be sent by it.
    #[serde(default)]
    pub queued: u64,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl From<&Flow> for FlowReport {
    fn from(flow: &Flow) -> FlowReport {
        let [rate_up, rate_down] = flow.rates();
        FlowReport {
            id: flow.id,
            trace: format!("{:016x}", flow.trace),
            entry: flow.entry,
            state: flow.state().to_owned(),
            reason: flow.outcome().and_then(Result::err).map(|refusal| refusal.text.clone()),
            target: flow.target.to_string(),
            original: flow.origin.original,
            process: flow.origin.process.clone(),
            source: flow.origin.source,
            user: flow.origin.user.clone(),
            from: flow.origin.from.clone(),
            carrier: flow.carrier(),
            retries: flow.retries(),
            stream: flow.place().map(|(lane, id, account)| StreamPlace {
                lane,
                id,
                window: account.window,
                held: account.held,
                queued: account.queued as u64,
            }),
            dialled: flow.dial().map(|dialled| dialled.address),
            proxied: flow.dial().is_some_and(|dialled| dialled.proxied),
            dial_us: flow.dial().map(|dialled| dialled.dial.as_micros() as u64),
            bytes_up: flow.meter.up.load(Ordering::Relaxed),
            bytes_down: flow.meter.down.load(Ordering::Relaxed),
            rate_up,
            rate_down,
            since: flow.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            age_ms: flow.age().as_millis() as u64,
        }
    }
}

/// Whether a connection is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It is, or is being made.
    Open,
    /// It has ended, or was not made.
    Ended,
    /// It was not made, or was cut.
    Failed,
}

impl Phase {
    fn takes(self, outcome: Option<Result<(), &Refusal>>) -> bool {
        match self {
            Phase::Open => outcome.is_none(),
            Phase::Ended => outcome.is_some(),
            Phase::Failed => matches!(outcome, Some(Err(_))),
        }
    }
}

/// Which connections are asked for. What is `None` does not matter.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Still open, ended, or failed.
    pub phase: Option<Phase>,
    /// A part of what is shown of them; letters A to Z in either case.
    pub text: Option<String>,
    /// A part of the target, in any case.
    pub target: Option<String>,
    /// Who carries it: a whole `group/node`, or a group.
    pub carrier: Option<String>,
    /// How it came in.
    pub entry: Option<Entry>,
    /// The process that asked.
    pub pid: Option<u32>,
    /// Only those older than this number: the last one of the page before.
    pub after: Option<u64>,
    /// Most connections of a page.
    pub limit: Option<usize>,
}

/// A page of the connections that are asked for, and where it stands among all of them.
#[derive(Debug, Default)]
pub struct Found {
    /// The page, newest first.
    pub items: Vec<FlowReport>,
    /// How many are newer than those of the page.
    pub newer: usize,
    /// How many there are in all.
    pub total: usize,
}

impl Filter {
    /// Most connections of a page.
    pub(super) fn most(&self) -> usize {
        self.limit.unwrap_or(LISTED).min(LISTED)
    }

    /// True where the connection is one of those that are asked for; pages aside.
    pub fn takes(&self, flow: &Flow) -> bool {
        let carrier = |wanted: &String| {
            flow.carrier().is_some_and(|carrier| {
                carrier == *wanted || carrier.split_once('/').is_some_and(|(group, _)| group == wanted)
            })
        };
        let target = |part: &String| flow.target.to_string().contains(&part.to_ascii_lowercase());
        self.phase.is_none_or(|phase| phase.takes(flow.outcome()))
            && self.entry.is_none_or(|entry| flow.entry == entry)
            && self.pid.is_none_or(|pid| flow.origin.process.as_ref().is_some_and(|p| p.pid == pid))
            && self.carrier.as_ref().is_none_or(carrier)
            && self.target.as_ref().is_none_or(target)
            && self.text.as_ref().is_none_or(|part| words(flow).contains(&part.to_ascii_lowercase()))
    }
}

/// What people know a connection by, each on a line, in small letters.
fn words(flow: &Flow) -> String {
    let Origin { original, process, source, user, from } = &flow.origin;
    let mut words = format!("{}\n{:016x}\n{}\n{}", flow.target, flow.trace, flow.entry.title(), flow.state());
    let mut add = |word: fmt::Arguments<'_>| {
        words.push('\n');
        // A string takes whatever is written.
        let _ = words.write_fmt(word);
    };
    if let Some(Err(refusal)) = flow.outcome() {
        add(format_args!("{}", refusal.text));
    }
    if let Some(process) = process {
        add(format_args!("{} {}", process.comm, process.pid));
    }
    if let Some(user) = user {
        add(format_args!("{user}"));
    }
    if let Some(from) = from {
        add(format_args!("worker {from}"));
    }
    if let Some(carrier) = flow.carrier() {
        add(format_args!("{carrier}"));
    }
    for address in [original, source, &flow.dial().map(|dialled| dialled.address)].into_iter().flatten() {
        add(format_args!("{address}"));
    }
    words.make_ascii_lowercase();
    words
}
