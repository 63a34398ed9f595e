//! One worker: its nodes, what it carries, what happened to it.

use std::time::Duration;

use jiff::Timestamp;
use maud::{Markup, html};

use super::events;
use super::layout::{Body, Frame, Room, csrf_field, page};
use super::parts::{Icon, Tone, badge, empty, icon, note, post};
use super::plot::{self, Throughput};
use super::words;
use super::workers::{Question, State, confirm};
use crate::appliance::audit::Event;
use crate::appliance::registry::HISTORY;
use crate::config::KeyHash;
use crate::inspect::status::NodeRole;

fn role(role: NodeRole) -> Markup {
    match role {
        NodeRole::Primary => badge(Tone::Ok, "Primary"),
        NodeRole::Standby => badge(Tone::Info, "Standby"),
        NodeRole::Leaving => badge(Tone::Warn, "Leaving"),
        NodeRole::Offline => badge(Tone::Off, "Offline"),
    }
}

/// A node.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    /// Its id, hexadecimal.
    pub(super) id: String,
    /// Its host's name.
    pub(super) host_name: String,
    /// What it does.
    pub(super) role: NodeRole,
    /// Smoothed, where it is connected.
    pub(super) round_trip: Option<Duration>,
    /// Websockets that are up.
    pub(super) lanes: usize,
    /// Open now.
    pub(super) streams: usize,
    /// Of its software.
    pub(super) version: String,
    /// Where it connected from.
    pub(super) address: String,
    /// When it connected first.
    pub(super) first_seen: Timestamp,
    /// When it was connected last.
    pub(super) last_seen: Timestamp,
    /// The lowest is primary.
    pub(super) priority: Option<i32>,
}

/// A worker.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Detail {
    /// The store's number.
    pub(super) id: i64,
    /// Its name.
    pub(super) name: String,
    /// For people.
    pub(super) description: String,
    /// How it is.
    pub(super) state: State,
    /// Whether it is switched on.
    pub(super) enabled: bool,
    /// Whether the configuration file has it: then it is changed there.
    pub(super) from_file: bool,
    /// Whether its nodes may open streams to others.
    pub(super) may_open: bool,
    /// Its own proxy hosts.
    pub(super) proxy_hosts: Vec<String>,
    /// Number and name of its clouds, with the proxy host that each adds.
    pub(super) clouds: Vec<(i64, String, String)>,
    /// Its nodes, the primary first.
    pub(super) nodes: Vec<Node>,
    /// Of the last minutes.
    pub(super) throughput: Throughput,
    /// When it was added.
    pub(super) created: Timestamp,
    /// When it got its key, where that is another than the first.
    pub(super) rotated: Option<Timestamp>,
    /// Until when the key before works too.
    pub(super) grace: Option<Timestamp>,
    /// When its record was changed last, and by whom.
    pub(super) changed: (Timestamp, String),
    /// What happened to it, the newest first.
    pub(super) events: Vec<Event>,
    /// The time of this view.
    pub(super) now: Timestamp,
}

/// The whole page.
pub(super) fn detail(frame: &Frame, worker: &Detail) -> Markup {
    let live = format!("/live/workers/{}", worker.id);
    page(
        frame,
        Body {
            title: &worker.name,
            room: Some(Room::Workers),
            live: Some(&live),
            main: live_detail(&frame.csrf, worker),
        },
    )
}

/// What of the page is replaced while one looks.
pub(super) fn live_detail(csrf: &str, worker: &Detail) -> Markup {
    html! {
        div #live {
            p.crumb { a href="/workers" { (icon(Icon::Back)) "Distributed Workers" } }
            (head(csrf, worker))
            @if worker.from_file {
                (note(Tone::Info, html! { "The appliance's configuration file has this worker, under "
                    code { "[[appliance.groups]]" } ": its name, its key and its proxy hosts are changed there." }))
            }
            section.card aria-labelledby="throughput" {
                div.card-head { h2 #throughput { "Throughput" } (plot::keys(&worker.throughput)) }
                div.card-body { (plot::chart(&worker.throughput, HISTORY, &format!("{HISTORY} s"))) }
            }
            (nodes(csrf, worker))
            div.columns.side {
                (recent(worker))
                div { (carried(worker)) (facts(worker)) }
            }
        }
    }
}

fn head(csrf: &str, worker: &Detail) -> Markup {
    let at = |action: &str| format!("/workers/{}/{action}", worker.id);
    html! {
        div.head {
            div {
                div.title #state data-say={ (worker.name) " " (worker.state.sentence()) } {
                    h1 { (worker.name) } (worker.state.badge())
                }
                @if !worker.description.is_empty() { p { (worker.description) } }
            }
            div.actions {
                a.button href=(at("edit")) { "Edit" }
                @if !worker.from_file { a.button href=(at("rotate")) data-dialog { "Rotate key" } }
                @if worker.enabled {
                    a.button href=(at("disable")) data-dialog { "Disable" }
                } @else { (post(&at("enable"), csrf, "", "Enable")) }
                @if !worker.from_file { a.button.risky href=(at("remove")) data-dialog { "Remove" } }
            }
        }
    }
}

fn nodes(csrf: &str, worker: &Detail) -> Markup {
    html! {
        section.card aria-labelledby="nodes" {
            div.card-head {
                h2 #nodes { "Nodes" }
                @if worker.nodes.len() > 1 {
                    span.small.muted { "New streams go to the primary: the lowest order, then the one that was here first." }
                }
            }
            @if worker.nodes.is_empty() {
                (empty(Icon::Workers, "No node has connected yet", html! {
                    p { "Start dworker at the site with this worker's key. Who has lost the key rotates it." }
                }))
            } @else {
                div.wide {
                    table.list.cards {
                        caption { span.unseen { "Nodes of " (worker.name) } }
                        thead {
                            tr {
                                th scope="col" { "Node" } th scope="col" { "Role" } th.right scope="col" { "Round trip" }
                                th.right scope="col" { "Lanes" } th.right scope="col" { "Streams" }
                                th scope="col" { "Version" } th scope="col" { "Seen" } th scope="col" { "Order" }
                            }
                        }
                        tbody { @for node in &worker.nodes { (one(csrf, worker, node)) } }
                    }
                }
            }
        }
    }
}

fn one(csrf: &str, worker: &Detail, node: &Node) -> Markup {
    let order = format!("order-{}", node.id);
    let offline = node.role == NodeRole::Offline;
    html! {
        tr.gone[offline] id={ "node-" (node.id) } data-say={ (node.host_name) " is " (node.role.word()) } {
            td.lead {
                (node.host_name)
                span.under { span.mono { (node.id.get(..8).unwrap_or(&node.id)) } " · " (node.address) }
            }
            td.mark { (role(node.role)) }
            td.right.number data-label="Round trip" {
                @if let Some(time) = node.round_trip { (words::round_trip(time)) } @else { "–" }
            }
            td.right.number data-label="Lanes" { (node.lanes) }
            td.right.number data-label="Streams" { (node.streams) }
            td data-label="Version" { (node.version) }
            td data-label="Seen" {
                @if offline { (words::ago(node.last_seen, worker.now)) } @else { "now" }
                span.under { "first " (words::ago(node.first_seen, worker.now)) }
            }
            td data-label="Order" {
                form.order method="post" action={ "/workers/" (worker.id) "/nodes/" (node.id) "/order" } {
                    (csrf_field(csrf))
                    label.unseen for=(order) { "Order of " (node.host_name) }
                    input id=(order) name="priority" type="number" min="-1000000" max="1000000" step="1"
                        value=[node.priority] placeholder="none" {}
                    button.button.small aria-label={ "Set the order of " (node.host_name) } { "Set" }
                }
                @if offline {
                    " "
                    a.small href={ "/workers/" (worker.id) "/nodes/" (node.id) "/forget" } data-dialog { "Forget" span.unseen { " " (node.host_name) } }
                }
            }
        }
    }
}

fn carried(worker: &Detail) -> Markup {
    html! {
        section.card aria-labelledby="carries" {
            div.card-head { h2 #carries { "Carries" } }
            div.card-body {
                dl.facts {
                    dt { "Proxy hosts" }
                    dd {
                        @if worker.proxy_hosts.is_empty() { span.muted { "none of its own" } } @else {
                            span.chips { @for host in &worker.proxy_hosts { span.chip { (host) } } }
                        }
                    }
                    dt { "Clouds" }
                    dd {
                        @if worker.clouds.is_empty() {
                            span.muted { "none; " } a href="/clouds" { "assign one" }
                        } @else {
                            ul {
                                @for (id, name, host) in &worker.clouds {
                                    li { a href={ "/clouds/" (id) "/edit" } { (name) } " " span.chip { (host) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn facts(worker: &Detail) -> Markup {
    html! {
        section.card aria-labelledby="key" {
            div.card-head { h2 #key { "Key and record" } }
            div.card-body {
                dl.facts {
                    dt { "Added" } dd { (words::ago(worker.created, worker.now)) }
                    dt { "Key" }
                    dd {
                        @if let Some(time) = worker.rotated { "changed " (words::ago(time, worker.now)) } @else { "the first one" }
                        @if let Some(until) = worker.grace {
                            br; "the one before works, too, and stops " (words::ahead(until, worker.now))
                        }
                    }
                    dt { "Changed" } dd { (words::ago(worker.changed.0, worker.now)) " by " (worker.changed.1) }
                    dt { "May open" }
                    dd { @if worker.may_open { "connections to other workers" } @else { "nothing" } }
                }
            }
        }
    }
}

fn recent(worker: &Detail) -> Markup {
    html! {
        section.card aria-labelledby="recent" {
            div.card-head {
                h2 #recent { "Recent events" }
                a.small href={ "/events" (super::query(&[("q", worker.name.as_str())])) } { "All events" }
            }
            @if worker.events.is_empty() {
                div.card-body { p.muted { "Nothing has happened yet." } }
            } @else { (events::entries(&worker.events, worker.now)) }
        }
    }
}

/// The grace choices: seconds, and words.
const GRACES: [(u64, &str); 5] = [
    (0, "None: the old key stops at once, and nodes that use it are cut off"),
    (900, "15 minutes"),
    (3_600, "1 hour"),
    (86_400, "1 day"),
    (604_800, "1 week"),
];

/// Asks how a key is to be rotated.
pub(super) fn rotate(frame: &Frame, id: i64, name: &str, ends: Option<(KeyHash, Timestamp)>) -> Markup {
    let body = html! {
        p { "The worker gets a new key, which is shown once. Put it on each of the worker's hosts while the old one still works." }
        @if let Some((key, until)) = ends {
            (note(Tone::Warn, html! {
                "The key before the present one (" span.mono { (key.short()) } ") was to work until "
                (words::at(until)) ". It ends now, and nodes that still use it are cut off. Who can wait, waits until then."
            }))
            input type="hidden" name="ends" value=(key) {}
        }
        div.field {
            label for="grace" { "How long the old key works" }
            select #grace name="grace" {
                @for (seconds, words) in GRACES { option value=(seconds) selected[seconds == 86_400] { (words) } }
            }
        }
    };
    let back = format!("/workers/{id}");
    let (title, action) = (format!("Rotate the key of {name}"), format!("{back}/rotate"));
    ask(frame, &title, body, &action, "Make a new key", ends.is_some(), &back)
}

/// Asks whether to disable a worker.
pub(super) fn disable(frame: &Frame, id: i64, name: &str, streams: usize) -> Markup {
    let body = html! {
        p { "Its key is refused and its nodes are cut off" @if streams > 0 { ", with " strong { (words::count(streams, "open stream", "open streams")) } }
            ". Its proxy hosts are not captured any more. Its record and its key stay: enable it to have all back." }
    };
    let back = format!("/workers/{id}");
    let (title, action) = (format!("Disable {name}?"), format!("{back}/disable"));
    ask(frame, &title, body, &action, "Disable", true, &back)
}

/// Asks whether to remove a worker.
pub(super) fn remove(
    frame: &Frame,
    id: i64,
    name: &str,
    streams: usize,
    clouds: &[(i64, String, String)],
) -> Markup {
    let (back, title) = (format!("/workers/{id}"), format!("Remove {name}?"));
    if !clouds.is_empty() {
        let body = html! {
            p { "It cannot be removed yet: it carries clouds. Give each to another worker, or to none, first:" }
            ul.bullets { @for (id, name, _) in clouds { li { a href={ "/clouds/" (id) "/edit" } { (name) } } } }
        };
        return confirm(
            frame,
            &Question {
                room: Room::Workers,
                title: &title,
                body,
                action: &back,
                word: "",
                danger: false,
                back: &back,
            },
        );
    }
    let body = html! {
        p { "Its record and its key are gone for good, and its nodes are cut off" @if streams > 0 { ", with " strong { (words::count(streams, "open stream", "open streams")) } } "." }
    };
    let action = format!("{back}/remove");
    ask(frame, &title, body, &action, "Remove the worker", true, &back)
}

/// Asks whether to forget a node, which can't be while it is connected.
pub(super) fn forget(frame: &Frame, id: i64, node: &str, host_name: &str, connected: bool) -> Markup {
    let body = html! { p {
        @if connected { "It is connected. Disable the worker or stop the process first." }
        @else { "It is offline, and is listed no more. Should it connect again, it is the newest node." }
    } };
    let back = format!("/workers/{id}");
    let (title, action) = (format!("Forget {host_name}?"), format!("{back}/nodes/{node}/forget"));
    let word = if connected { "" } else { "Forget the node" };
    ask(frame, &title, body, &action, word, true, &back)
}

fn ask(
    frame: &Frame,
    title: &str,
    body: Markup,
    action: &str,
    word: &str,
    danger: bool,
    back: &str,
) -> Markup {
    confirm(frame, &Question { room: Room::Workers, title, body, action, word, danger, back })
}
