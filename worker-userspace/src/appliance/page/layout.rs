//! The frame around each page: head, bar, navigation, what has just happened.

use maud::{DOCTYPE, Markup, html};

use super::assets::{FAVICON, SCRIPT, STYLE, THEME};
use super::parts::{Icon, Tone, icon, note};

/// Where one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// Distributed Workers.
    Workers,
    /// Clouds.
    Clouds,
    /// Connections.
    Connections,
    /// Events.
    Events,
}

impl Room {
    const ALL: [Room; 4] = [Room::Workers, Room::Clouds, Room::Connections, Room::Events];

    fn path(self) -> &'static str {
        match self {
            Room::Workers => "/workers",
            Room::Clouds => "/clouds",
            Room::Connections => "/connections",
            Room::Events => "/events",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Room::Workers => "Workers",
            Room::Clouds => "Clouds",
            Room::Connections => "Connections",
            Room::Events => "Events",
        }
    }

    fn icon(self) -> Icon {
        match self {
            Room::Workers => Icon::Workers,
            Room::Clouds => Icon::Clouds,
            Room::Connections => Icon::Connections,
            Room::Events => Icon::Events,
        }
    }
}

/// What an action has to say on the next page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flash {
    /// What was done.
    pub(super) done: String,
    /// What the administrator should know all the same.
    pub(super) warnings: Vec<String>,
}

/// What all pages of a session have in common.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    /// The session's word against forged requests.
    pub(super) csrf: String,
    /// The appliance's host name.
    pub(super) host: String,
    /// What the last action has to say.
    pub(super) flash: Option<Flash>,
}

/// A page of a session.
pub(super) struct Body<'a> {
    /// What the tab is called.
    pub(super) title: &'a str,
    /// Which entry of the navigation is marked.
    pub(super) room: Option<Room>,
    /// Where its live content comes from, a path of this appliance.
    pub(super) live: Option<&'a str>,
    /// The content of `main`.
    pub(super) main: Markup,
}

/// The field that every form with a POST has.
pub(super) fn csrf_field(csrf: &str) -> Markup {
    html! { input type="hidden" name="csrf" value=(csrf) {} }
}

/// A page of a session as a document.
pub(super) fn page(frame: &Frame, body: Body<'_>) -> Markup {
    document(
        body.title,
        html! {
            a.skip href="#main" { "Skip to content" }
            header.top {
                div.top-in {
                    (brand("/workers"))
                    nav.nav aria-label="Main" {
                        ul {
                            @for room in Room::ALL {
                                li {
                                    a href=(room.path()) aria-current=[(body.room == Some(room)).then_some("page")] {
                                        (icon(room.icon())) (room.word())
                                    }
                                }
                            }
                        }
                    }
                    div.top-end {
                        @if body.live.is_some() { span.live #live-state hidden { "Live" } }
                        (theme_button())
                        form method="post" action="/sign-out" {
                            (csrf_field(&frame.csrf))
                            button.button.quiet.square { (icon(Icon::Leave)) span { "Sign out" } }
                        }
                    }
                }
            }
            main #main tabindex="-1" data-live=[body.live] {
                @if let Some(flash) = &frame.flash { (flashed(flash)) }
                (body.main)
            }
            footer.foot {
                span { "dworker " (env!("CARGO_PKG_VERSION")) }
                span { (frame.host) }
            }
            div #say.unseen role="status" aria-live="polite" {}
            dialog #dialog aria-labelledby="confirm-title" {}
        },
    )
}

/// A page for who is not signed in, or for an error.
pub(super) fn bare(title: &str, main: Markup) -> Markup {
    document(title, html! { main.sheet #main { (brand("/")) (main) } })
}

fn document(title: &str, body: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1, viewport-fit=cover";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { (title) " · dworker" }
                link rel="icon" href=(FAVICON.path) type="image/svg+xml";
                script src=(THEME.path) {}
                link rel="stylesheet" href=(STYLE.path);
                script src=(SCRIPT.path) defer {}
            }
            body { (body) }
        }
    }
}

fn brand(to: &str) -> Markup {
    html! {
        a.brand href=(to) {
            svg viewBox="0 0 32 32" aria-hidden="true" focusable="false" {
                rect.mark-ground width="32" height="32" rx="8" {}
                path.mark-line d="M9 21a7 7 0 0 1 14 0" {}
                circle.mark-dot cx="9" cy="21" r="2.75" {}
                circle.mark-dot cx="23" cy="21" r="2.75" {}
            }
            "dworker"
        }
    }
}

fn theme_button() -> Markup {
    html! {
        button.button.quiet.square.scripted #theme type="button" { (icon(Icon::Theme)) span { "Theme" } }
    }
}

fn flashed(flash: &Flash) -> Markup {
    html! {
        @if !flash.done.is_empty() { (note(Tone::Ok, html! { (flash.done) })) }
        @if !flash.warnings.is_empty() {
            (note(Tone::Warn, html! {
                @if let [warning] = flash.warnings.as_slice() { (warning) } @else {
                    h2 { "Saved, but look at this" }
                    ul { @for warning in &flash.warnings { li { (warning) } } }
                }
            }))
        }
    }
}
