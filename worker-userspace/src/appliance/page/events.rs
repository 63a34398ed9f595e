//! Events: who did what, and what happened by itself.

use jiff::Timestamp;
use maud::{Markup, html};

use super::layout::{Body, Frame, Room, page};
use super::parts::{Icon, Tone, badge, empty, pager};
use super::words;
use super::workers::search;
use crate::appliance::audit::{Event, EventKind};

/// A page of the list.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct List {
    /// The kind that was asked for.
    pub(super) kind: Option<EventKind>,
    /// What was searched for.
    pub(super) query: String,
    /// The page behind the event of this number; `None`: the newest.
    pub(super) before: Option<i64>,
    /// The rows, the newest first.
    pub(super) rows: Vec<Event>,
    /// Whether there are older ones.
    pub(super) more: bool,
}

impl List {
    fn is_filtered(&self) -> bool {
        self.kind.is_some() || !self.query.is_empty()
    }

    fn place(&self, before: Option<i64>) -> String {
        let before = before.map(|id| id.to_string()).unwrap_or_default();
        super::query(&[
            ("q", &self.query),
            ("kind", self.kind.map_or("", EventKind::word)),
            ("before", &before),
        ])
    }
}

/// How much attention a kind wants.
fn tone(kind: EventKind) -> Tone {
    use EventKind::*;
    match kind {
        NodeConnected | NodeAdded | WorkerEnabled | LoginOk | Started => Tone::Ok,
        KeyRefused | LoginFailed | LoginLimited | RequestRefused | EventsLost => Tone::Bad,
        NodeDisconnected | WorkerDisabled | WorkerRemoved | CloudRemoved | StreamRefused | SaveRefused
        | Stopped => Tone::Warn,
        RoleChanged | WorkerAdded | WorkerChanged | CloudAdded | CloudChanged | KeyShown | KeyRotated
        | NodeChanged | TokenChanged | LogChanged => Tone::Info,
        NodeForgotten | StreamOpened | StreamClosed | Logout | Other => Tone::Off,
    }
}

/// The word of a kind, for people.
fn title(kind: EventKind) -> String {
    let words = kind.word().replace('-', " ");
    let mut letters = words.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

/// The whole page.
pub(super) fn list(frame: &Frame, list: &List) -> Markup {
    let live = format!("/live/events{}", list.place(None));
    page(
        frame,
        Body {
            title: "Events",
            room: Some(Room::Events),
            // Older pages do not change.
            live: list.before.is_none().then_some(live.as_str()),
            main: html! {
                div.head { div { h1 { "Events" } p { "Who did what, and what happened by itself." } } }
                form.tools role="search" method="get" action="/events" data-filter {
                    (search("Search events", &list.query, "Worker, actor, address or text"))
                    div {
                        label.unseen for="kind" { "Kind" }
                        select #kind name="kind" {
                            option value="" { "All kinds" }
                            @for kind in EventKind::ALL {
                                option value=(kind.word()) selected[list.kind == Some(*kind)] { (title(*kind)) }
                            }
                        }
                    }
                    button.button.unscripted { "Search" }
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
            section.card aria-label="Events" {
                @if list.rows.is_empty() {
                    @let title = if list.is_filtered() { "Nothing found" } else { "No event yet" };
                    (empty(Icon::Events, title, html! {
                        p #count { @if list.is_filtered() { "No event is as you want." } @else { "What happens from now on is written down here." } }
                        @if list.is_filtered() { div.actions { a.button href="/events" { "Show all events" } } }
                    }))
                } @else { div.wide { (table(&list.rows)) } (pages(list)) }
            }
        }
    }
}

fn table(rows: &[Event]) -> Markup {
    html! {
        table.list.cards.events {
            caption { span.unseen { "Events" } }
            thead {
                tr {
                    th scope="col" { "Time" } th scope="col" { "Kind" } th scope="col" { "About" }
                    th scope="col" { "What happened" } th scope="col" { "By" }
                }
            }
            tbody {
                @for event in rows {
                    tr id={ "event-" (event.id) } {
                        td.mark.number.small.muted { (words::at(event.time)) }
                        td.lead { (badge(tone(event.kind), &title(event.kind))) }
                        td.break.room.none[event.subject.is_empty()] data-label="About" { (event.subject) }
                        td.break.high data-label="What" { (event.text) }
                        td.high.firm data-label="By" {
                            div {
                                (event.actor)
                                @if let Some(source) = event.source { span.under.mono.number { (source) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn pages(list: &List) -> Markup {
    let newest = list.before.map(|_| format!("/events{}", list.place(None)));
    let last = list.rows.last().map(|event| event.id).filter(|_| list.more);
    let older = last.map(|id| format!("/events{}", list.place(Some(id))));
    let text = match (list.before, list.more) {
        (None, false) => words::count(list.rows.len(), "event", "events"),
        (None, true) => format!("The newest {}", list.rows.len()),
        (Some(_), _) => words::count(list.rows.len(), "older event", "older events"),
    };
    html! { div #count { (pager(&text, newest.as_deref(), older.as_deref(), ("Newest", "Older"))) } }
}

/// Events in a few words, for a worker's page.
pub(super) fn entries(events: &[Event], now: Timestamp) -> Markup {
    html! {
        ul.entries {
            @for event in events {
                li id={ "event-" (event.id) } {
                    div { (badge(tone(event.kind), &title(event.kind))) " " span.break { (event.text) } }
                    (words::ago(event.time, now))
                }
            }
        }
    }
}
