//! Distributed Workers: the list, and what confirms an action on one.

use std::time::Duration;

use maud::{Markup, html};

use super::layout::{Body, Frame, Room, csrf_field, page};
use super::parts::{Icon, Tone, badge, empty, icon, pager};
use super::plot::{self, Throughput};
use super::words;

/// Samples that a row's plot shows.
pub(super) const SPARK: usize = 60;
/// Proxy hosts that a row names; the rest is counted.
const NAMED: usize = 3;

/// How a worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// A node takes new streams.
    Up,
    /// No node has ever connected.
    Waiting,
    /// Nodes are known, and none takes new streams.
    Down,
    /// It is switched off.
    Disabled,
}

impl State {
    /// As a badge.
    pub(super) fn badge(self) -> Markup {
        match self {
            State::Up => badge(Tone::Ok, "Up"),
            State::Waiting => badge(Tone::Warn, "Waiting for a node"),
            State::Down => badge(Tone::Bad, "Down"),
            State::Disabled => badge(Tone::Off, "Disabled"),
        }
    }

    /// As the end of a sentence that begins with the worker's name.
    pub(super) fn sentence(self) -> &'static str {
        match self {
            State::Up => "is up",
            State::Waiting => "waits for its first node",
            State::Down => "is down",
            State::Disabled => "is disabled",
        }
    }
}

/// How many nodes play which role.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Roles {
    /// 0 or 1.
    pub(super) primary: usize,
    /// Connected, and next.
    pub(super) standby: usize,
    /// Connected, and going.
    pub(super) leaving: usize,
    /// Known, and not connected.
    pub(super) offline: usize,
}

impl Roles {
    fn badges(self) -> Markup {
        let roles = [
            (self.primary, Tone::Ok, "primary"),
            (self.standby, Tone::Info, "standby"),
            (self.leaving, Tone::Warn, "leaving"),
            (self.offline, Tone::Off, "offline"),
        ];
        html! {
            span.chips {
                @for (n, tone, word) in roles { @if n > 0 { (badge(tone, &format!("{n} {word}"))) } }
            }
        }
    }
}

/// A worker's row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    /// The store's number.
    pub(super) id: i64,
    /// Its name.
    pub(super) name: String,
    /// For people; may be empty.
    pub(super) description: String,
    /// How it is.
    pub(super) state: State,
    /// Its nodes.
    pub(super) roles: Roles,
    /// What it carries, clouds included.
    pub(super) proxy_hosts: Vec<String>,
    /// Open now.
    pub(super) streams: usize,
    /// Of the last minutes.
    pub(super) throughput: Throughput,
    /// Of the node that carries new streams.
    pub(super) round_trip: Option<Duration>,
}

/// All of them together.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Sums {
    /// Workers that there are.
    pub(super) workers: usize,
    /// Those that are up.
    pub(super) up: usize,
    /// Connected nodes.
    pub(super) nodes: usize,
    /// Open streams.
    pub(super) streams: usize,
    /// Bytes per second, towards the targets and from them.
    pub(super) rate: (f64, f64),
}

/// A page of the list.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct List {
    /// Of all workers, not of this page.
    pub(super) sums: Sums,
    /// What was searched for.
    pub(super) query: String,
    /// How many were found.
    pub(super) found: usize,
    /// From 0.
    pub(super) page: usize,
    /// Rows of a full page.
    pub(super) size: usize,
    /// The rows.
    pub(super) rows: Vec<Row>,
}

/// The whole page.
pub(super) fn list(frame: &Frame, list: &List) -> Markup {
    let live = format!("/live/workers{}", place(&list.query, list.page));
    page(
        frame,
        Body {
            title: "Distributed Workers",
            room: Some(Room::Workers),
            live: Some(&live),
            main: html! {
                div.head {
                    div {
                        h1 { "Distributed Workers" }
                        p { "Each worker carries connections to the endpoints of one site." }
                    }
                    div.actions {
                        a.button.main href="/workers/new" { (icon(Icon::Plus)) "Add a worker" }
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
            @if list.sums.workers == 0 { (first_steps()) } @else {
                (tiles(&list.sums))
                form.tools role="search" method="get" action="/workers" data-filter {
                    (search("Search workers", &list.query, "Name, description or proxy host"))
                    button.button.unscripted { "Search" }
                }
                section.card aria-label="Workers" {
                    @if list.rows.is_empty() {
                        (empty(Icon::Search, "Nothing found", html! {
                            p #count { "No worker has “" (list.query) "” in its name, description or proxy hosts." }
                            div.actions { a.button href="/workers" { "Show all workers" } }
                        }))
                    } @else {
                        div.wide { (table(&list.rows)) }
                        (pages(list))
                    }
                }
            }
        }
    }
}

fn tiles(sums: &Sums) -> Markup {
    html! {
        dl.tiles {
            div { dt { "Workers up" } dd { (sums.up) small { " of " (sums.workers) } } }
            div { dt { "Nodes connected" } dd { (sums.nodes) } }
            div { dt { "Open streams" } dd { (sums.streams) } }
            (throughput_tile(sums.rate))
        }
    }
}

/// Bytes per second towards the targets and from them, as a number on top of a page.
pub(super) fn throughput_tile((sent, received): (f64, f64)) -> Markup {
    html! {
        div {
            dt { "Throughput" }
            dd {
                span { (icon(Icon::Down)) (words::rate(received)) span.unseen { " received," } } " "
                span { (icon(Icon::Up)) (words::rate(sent)) span.unseen { " sent" } }
            }
        }
    }
}

/// The field that filters a list.
pub(super) fn search(label: &str, query: &str, example: &str) -> Markup {
    html! {
        div.grow {
            label.unseen for="q" { (label) }
            span.search {
                (icon(Icon::Search))
                input #q name="q" type="search" value=(query) autocomplete="off" placeholder=(example) {}
            }
        }
    }
}

fn first_steps() -> Markup {
    html! {
        section.card {
            (empty(Icon::Workers, "No worker yet", html! {
                p { "A worker is a dworker process at a site. It dials this appliance over port 443, and carries "
                    "connections to what only the site can reach." }
                ol.steps {
                    li { strong { "Add a worker here." } " Name it after its site, and list what it shall carry." }
                    li { strong { "Copy its key." } " It is shown once, with the lines for the worker's configuration." }
                    li { strong { "Start dworker at the site." } " It appears here as the primary node within seconds." }
                }
                div.actions { a.button.main href="/workers/new" { (icon(Icon::Plus)) "Add the first worker" } }
            }))
        }
    }
}

fn table(rows: &[Row]) -> Markup {
    html! {
        table.list.cards {
            caption { span.unseen { "Workers" } }
            thead {
                tr {
                    th scope="col" { "Worker" } th scope="col" { "Status" } th scope="col" { "Nodes" }
                    th scope="col" { "Proxy hosts" } th.right scope="col" { "Streams" }
                    th scope="col" { "Throughput" } th.right scope="col" { "Round trip" }
                }
            }
            tbody { @for row in rows { (one(row)) } }
        }
    }
}

fn one(row: &Row) -> Markup {
    let (up, down) = row.throughput.now();
    let connected = row.roles.primary + row.roles.standby + row.roles.leaving > 0;
    html! {
        tr id={ "worker-" (row.id) } data-say={ (row.name) " " (row.state.sentence()) } {
            td.lead {
                a href={ "/workers/" (row.id) } { (row.name) }
                @if !row.description.is_empty() { span.under.clip { (row.description) } }
            }
            td.mark { (row.state.badge()) }
            td data-label="Nodes" {
                @if row.roles == Roles::default() { span.muted { "none yet" } } @else { (row.roles.badges()) }
            }
            td.high data-label="Proxy hosts" { (hosts(&row.proxy_hosts)) }
            td.right.number.none[!connected] data-label="Streams" { (row.streams) }
            td.high.none[!connected] data-label="Throughput" {
                @if connected {
                    div {
                        (plot::spark(&row.throughput, SPARK))
                        span.under.number { (words::rate(up + down)) }
                    }
                } @else { span.muted { "–" } }
            }
            td.right.number.none[row.round_trip.is_none()] data-label="Round trip" {
                @if let Some(time) = row.round_trip { (words::round_trip(time)) } @else { span.muted { "–" } }
            }
        }
    }
}

fn hosts(hosts: &[String]) -> Markup {
    html! {
        @if hosts.is_empty() { span.muted { "none" } } @else {
            span.chips {
                @for host in hosts.iter().take(NAMED) { span.chip { (host) } }
                @if hosts.len() > NAMED { span.chip.more { "and " (hosts.len() - NAMED) " more" } }
            }
        }
    }
}

fn pages(list: &List) -> Markup {
    let first = list.page * list.size;
    let last = first + list.rows.len();
    let text = match list.found {
        n if n == list.rows.len() => words::count(n, "worker", "workers"),
        n => format!("{} to {last} of {n} workers", first + 1),
    };
    let newer = (list.page > 0).then(|| format!("/workers{}", place(&list.query, list.page - 1)));
    let older = (last < list.found).then(|| format!("/workers{}", place(&list.query, list.page + 1)));
    html! { div #count { (pager(&text, newer.as_deref(), older.as_deref(), ("Previous", "Next"))) } }
}

/// The query string of a page of the list.
fn place(query: &str, page: usize) -> String {
    let page = (page > 0).then(|| page.to_string());
    super::query(&[("q", query), ("page", page.as_deref().unwrap_or_default())])
}

/// A question before an action. The page's dialog takes the form out of it.
pub(super) struct Question<'a> {
    pub(super) room: Room,
    pub(super) title: &'a str,
    pub(super) body: Markup,
    pub(super) action: &'a str,
    /// Empty: it can't be done, and there is only the way back.
    pub(super) word: &'a str,
    pub(super) danger: bool,
    pub(super) back: &'a str,
}

/// The page of a question: of use by itself where there is no JavaScript.
pub(super) fn confirm(frame: &Frame, question: &Question<'_>) -> Markup {
    page(
        frame,
        Body {
            title: question.title,
            room: Some(question.room),
            live: None,
            main: html! {
                div.narrow {
                    div.card.card-pad {
                        form.confirm #confirm method="post" action=(question.action) {
                            (csrf_field(&frame.csrf))
                            h1 #confirm-title { (question.title) }
                            (question.body)
                            div.form-end {
                                @if question.word.is_empty() {
                                    a.button href=(question.back) data-cancel { "Back" }
                                } @else {
                                    a.button href=(question.back) data-cancel { "Cancel" }
                                    button.button.danger[question.danger].main[!question.danger] { (question.word) }
                                }
                            }
                        }
                    }
                }
            },
        },
    )
}
