//! Signing in with the admin token, and pages for who goes wrong.

use http::StatusCode;
use maud::{Markup, html};

use super::layout::bare;
use super::parts::{Field, Input, Tone, Wrong, note};

/// What the page has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Say {
    /// Nothing: somebody comes.
    Welcome,
    /// The session has ended.
    Ended,
    /// Signed out.
    Bye,
    /// Something is wrong with what was sent; one line.
    Wrong(String),
}

/// The page; `next` is where to go on, a path of this appliance.
pub(super) fn sign_in(say: &Say, next: &str) -> Markup {
    let wrongs = match say {
        Say::Wrong(text) => vec![Wrong { field: "token", text: text.clone() }],
        _ => Vec::new(),
    };
    let field = Field {
        name: "token",
        label: "Admin token",
        optional: false,
        help: html! { "It begins with " code { "dwa_" } "." },
        wrongs: &wrongs,
    };
    bare(
        "Sign in",
        html! {
            @match say {
                Say::Ended => (note(Tone::Info, html! { "Your session has ended. Sign in to go on." })),
                Say::Bye => (note(Tone::Ok, html! { "You are signed out." })),
                Say::Welcome | Say::Wrong(_) => {},
            }
            div.card {
                h1 { "Sign in" }
                p.muted { "to this appliance" }
                form.form method="post" action="/sign-in" {
                    input type="hidden" name="next" value=(next) {}
                    // Password managers want to know whose token it is.
                    input type="text" name="username" value="admin" autocomplete="username" hidden {}
                    (field.input("", "password", Input { required: true, complete: "current-password", focus: true, ..Input::default() }))
                    button.button.main { "Sign in" }
                }
                details {
                    summary { "Where is the token?" }
                    p { "On the appliance's host, as root, this makes a new one and shows it once:" }
                    p { code { "dworker token reset" } }
                    p { "The first one was shown when dworker started for the first time, unless that was under systemd, "
                        "whose journal would have kept it. Only a hash of it is kept anywhere." }
                }
            }
        },
    )
}

/// A page for an error.
pub(super) fn problem(status: StatusCode, text: &str, trace: Option<&str>) -> Markup {
    let title = match status {
        StatusCode::NOT_FOUND => "There is no such page",
        StatusCode::FORBIDDEN => "This was not done",
        StatusCode::CONFLICT => "Somebody else was faster",
        StatusCode::PAYLOAD_TOO_LARGE => "That is too much",
        StatusCode::TOO_MANY_REQUESTS => "Too many attempts",
        status if status.is_server_error() => "Something went wrong here",
        _ => "This did not work",
    };
    bare(
        title,
        html! {
            div.card {
                p.muted.small { (status.as_u16()) " " (status.canonical_reason().unwrap_or_default()) }
                h1 { (title) }
                p { (text) }
                @if let Some(trace) = trace {
                    p.small.muted.after { "The appliance's log tells more, under trace " code { (trace) } "." }
                }
                p.after { a.button href="/" { "Go to the start" } }
            }
        },
    )
}
