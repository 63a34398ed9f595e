//! Connections: those open now and the last that ended.

use std::time::Duration;

use maud::{Markup, html};

use super::layout::{Body, Frame, Room, page};
use super::parts::{Icon, Tone, badge, empty, pager};
use super::words;
use super::workers::{Question, confirm, search, throughput_tile};
use crate::inspect::ledger::Phase;

/// A connection's row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    /// Its number.
    pub(super) id: u64,
    /// Joins the log lines of both ends.
    pub(super) trace: String,
    /// How it came in, for people.
    pub(super) entry: &'static str,
    /// Name or address, and port.
    pub(super) target: String,
    /// Command and pid of who asked, or the worker's node.
    pub(super) process: Option<String>,
    /// The worker that carries it, with its number where it still is.
    pub(super) worker: Option<(String, Option<i64>)>,
    /// The worker's node.
    pub(super) node: Option<String>,
    /// `opening`, `open`, `closed`, or why not.
    pub(super) state: String,
    /// One line on why.
    pub(super) reason: Option<String>,
    /// Bytes towards the target and from it.
    pub(super) bytes: (u64, u64),
    /// Bytes per second towards the target and from it, while it is open.
    pub(super) rate: Option<(f64, f64)>,
    /// How long it has lasted, or lasted.
    pub(super) age: Duration,
}

impl Row {
    pub(super) fn is_open(&self) -> bool {
        matches!(self.state.as_str(), "open" | "opening")
    }

    fn badge(&self) -> Markup {
        match self.state.as_str() {
            "open" => badge(Tone::Ok, "open"),
            "opening" => badge(Tone::Info, "opening"),
            "closed" => badge(Tone::Off, "closed"),
            other => badge(Tone::Bad, other),
        }
    }
}

/// Which connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) enum Which {
    /// Those that are open.
    Open,
    /// Those that were not made, or were cut.
    Failed,
    /// All that are known.
    #[default]
    All,
}

impl Which {
    const ALL: [Which; 3] = [Which::All, Which::Open, Which::Failed];

    /// Its word in the query.
    pub(super) fn word(self) -> &'static str {
        match self {
            Which::Open => "open",
            Which::Failed => "failed",
            Which::All => "",
        }
    }

    /// The one with this word; others are all.
    pub(super) fn of(word: &str) -> Which {
        Which::ALL.into_iter().find(|which| which.word() == word).unwrap_or_default()
    }

    fn title(self) -> &'static str {
        match self {
            Which::Open => "Open",
            Which::Failed => "Refused or cut",
            Which::All => "All",
        }
    }

    /// As the ledger is asked for them.
    pub(super) fn phase(self) -> Option<Phase> {
        match self {
            Which::All => None,
            Which::Open => Some(Phase::Open),
            Which::Failed => Some(Phase::Failed),
        }
    }
}

/// The list.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct List {
    /// What was searched for.
    pub(super) query: String,
    /// Which are shown.
    pub(super) which: Which,
    /// Open now, whatever was searched for.
    pub(super) open: usize,
    /// Since the start.
    pub(super) total: u64,
    /// Bytes per second of all that are open, towards the targets and from them.
    pub(super) rate: (f64, f64),
    /// The page behind the connection with this number; `None`: the newest.
    pub(super) before: Option<u64>,
    /// How many of those that were found are newer than this page's.
    pub(super) newer: usize,
    /// How many were found, on all pages.
    pub(super) found: usize,
    /// The rows, the newest first.
    pub(super) rows: Vec<Row>,
}

impl List {
    /// The query string of the page behind `before`.
    fn place(&self, before: Option<u64>) -> String {
        let before = before.map(|id| id.to_string()).unwrap_or_default();
        super::query(&[("q", &self.query), ("state", self.which.word()), ("before", &before)])
    }
}

/// The whole page.
pub(super) fn list(frame: &Frame, list: &List) -> Markup {
    let live = format!("/live/connections{}", list.place(list.before));
    page(
        frame,
        Body {
            title: "Connections",
            room: Some(Room::Connections),
            live: Some(&live),
            main: html! {
                div.head {
                    div {
                        h1 { "Connections" }
                        p { "Those that are open, and the last that ended, as they pass through this appliance." }
                    }
                }
                (live_list(list))
            },
        },
    )
}

/// What of the page is replaced while one looks.
pub(super) fn live_list(list: &List) -> Markup {
    html! {
        div #live {
            dl.tiles {
                div { dt { "Open now" } dd { (list.open) } }
                div { dt { "Since the start" } dd { (list.total) } }
                (throughput_tile(list.rate))
            }
            form.tools role="search" method="get" action="/connections" data-filter {
                (search("Search connections", &list.query, "Process, target, worker, address or trace"))
                div {
                    label.unseen for="state" { "State" }
                    select #state name="state" {
                        @for which in Which::ALL {
                            option value=(which.word()) selected[which == list.which] { (which.title()) }
                        }
                    }
                }
                button.button.unscripted { "Search" }
            }
            section.card aria-label="Connections" {
                @if list.total == 0 {
                    (empty(Icon::Connections, "No connection yet", html! {
                        p { "As soon as a captured process connects to a proxy host, it is here: who it is, where it goes, "
                            "who carries it, and how many bytes have passed." }
                    }))
                } @else if list.rows.is_empty() {
                    (empty(Icon::Search, "Nothing found", html! {
                        p #count { "No connection that is open, or among the last that ended, is as you want." }
                        div.actions { a.button href="/connections" { "Show all connections" } }
                    }))
                } @else { div.wide { (table(&list.rows)) } (pages(list)) }
            }
        }
    }
}

fn table(rows: &[Row]) -> Markup {
    html! {
        table.list.cards {
            caption { span.unseen { "Connections" } }
            thead {
                tr {
                    th scope="col" { "Process" } th scope="col" { "Target" } th scope="col" { "Worker" }
                    th scope="col" { "State" } th.right scope="col" { "Received" } th.right scope="col" { "Sent" }
                    th.right scope="col" { "Age" } th scope="col" { span.unseen { "Actions" } }
                }
            }
            tbody { @for row in rows { (one(row)) } }
        }
    }
}

fn one(row: &Row) -> Markup {
    let amount = |bytes: u64, rate: Option<f64>| {
        html! {
            (words::bytes(bytes))
            @if let Some(rate) = rate { span.under { (words::rate(rate)) } }
        }
    };
    html! {
        tr.gone[!row.is_open()] id={ "connection-" (row.id) } {
            td.lead.firm {
                @if let Some(process) = &row.process { (process) } @else { span.muted { (row.entry) } }
                span.under { (row.entry) " · " span.mono { (row.trace) } }
            }
            td.break.room data-label="Target" { (row.target) }
            td.firm data-label="Worker" {
                @if let Some((name, id)) = &row.worker {
                    @if let Some(id) = id { a href={ "/workers/" (id) } { (name) } } @else { (name) }
                    @if let Some(node) = &row.node { span.under { (node) } }
                } @else { span.muted { "none" } }
            }
            td.high data-label="State" {
                (row.badge())
                @if let Some(reason) = &row.reason { span.under.break.reason { (reason) } }
            }
            td.right.number data-label="Received" { div { (amount(row.bytes.1, row.rate.map(|rate| rate.1))) } }
            td.right.number data-label="Sent" { div { (amount(row.bytes.0, row.rate.map(|rate| rate.0))) } }
            td.right.number data-label="Age" { (words::span(row.age)) }
            td.right {
                @if row.is_open() {
                    a.button.small.risky href={ "/connections/" (row.id) "/close" } data-dialog {
                        "Close" span.unseen { " the connection to " (row.target) }
                    }
                }
            }
        }
    }
}

fn pages(list: &List) -> Markup {
    let last = list.newer + list.rows.len();
    let text = match list.found {
        n if n == list.rows.len() => words::count(n, "connection", "connections"),
        n => format!("{} to {last} of {n} connections", list.newer + 1),
    };
    let newest = (list.newer > 0).then(|| format!("/connections{}", list.place(None)));
    let oldest = list.rows.last().map(|row| row.id).filter(|_| last < list.found);
    let older = oldest.map(|id| format!("/connections{}", list.place(Some(id))));
    html! { div #count { (pager(&text, newest.as_deref(), older.as_deref(), ("Newest", "Older"))) } }
}

/// Asks whether to close a connection.
pub(super) fn close(frame: &Frame, id: u64, target: &str, process: Option<&str>) -> Markup {
    let body = html! {
        p {
            "The connection to " strong { (target) }
            @if let Some(process) = process { " of " strong { (process) } }
            " is reset at both ends. What it was in the middle of fails; the application may connect again."
        }
    };
    let action = format!("/connections/{id}/close");
    confirm(
        frame,
        &Question {
            room: Room::Connections,
            title: "Close this connection?",
            body,
            action: &action,
            word: "Close the connection",
            danger: true,
            back: "/connections",
        },
    )
}
