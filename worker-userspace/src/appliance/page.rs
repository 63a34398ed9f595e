//! The web page: server-rendered HTML that works by itself, and a little JavaScript that makes it live.
//!
//! What must hold: nothing is loaded from elsewhere, and no script or style stands in the HTML, so that the content
//! policy needs no exception; every form that changes something has the session's word against forgery; what a user
//! typed is escaped by the templates and is never part of a script. A page is made of a view: a plain struct that says
//! what it shows. So there is one template for each thing, for the whole page, and for its live part alike.
//!
//! | file | concern |
//! |---|---|
//! | `page/layout.rs`, `parts.rs`, `plot.rs`, `words.rs` | the frame; buttons, badges, fields; plots; numbers in words |
//! | `page/workers.rs`, `worker.rs`, `worker_form.rs` | Distributed Workers: the list, one of them, its form and its key |
//! | `page/clouds.rs`, `connections.rs`, `events.rs` | the other rooms |
//! | `page/sign_in.rs` | signing in; pages of errors |
//! | `page/data.rs` | views from records, live nodes, connections and events |
//! | `page/routes.rs`, `page/routes/` | paths: who may ask, what is done, what is shown then |
//! | `page/live.rs`, `page/views.rs`, `page/follow.rs` | what changes while one looks: streams, what they share, events |
//! | `page/flash.rs` | what an action has to say on the next page |
//! | `page/assets.rs`, `page/assets/` | style sheet, scripts, icon |

mod assets;
mod clouds;
mod connections;
mod data;
mod events;
mod flash;
mod follow;
mod layout;
mod live;
mod parts;
mod plot;
mod routes;
#[cfg(test)]
mod samples;
mod sign_in;
#[cfg(test)]
mod tests;
mod views;
mod words;
mod worker;
mod worker_form;
mod workers;

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use tokio::sync::Semaphore;

use super::admin::Admin;
use super::audit::Audit;
use super::login::Login;
use super::registry::Registry;
use crate::drain::Drain;
use crate::inspect::ledger::Ledger;
use flash::Flashes;
use views::Views;

/// What the page shows, and what it does things with.
pub struct Parts {
    /// Records and changes of them.
    pub admin: Admin,
    /// Who is connected.
    pub registry: Arc<Registry>,
    /// Connections.
    pub ledger: Ledger,
    /// What is done by hand.
    pub audit: Audit,
    /// Who may look.
    pub login: Login,
    /// Whether browsers and workers come over TLS.
    pub tls: bool,
    /// The appliance's host name.
    pub host: String,
    /// Ends what is live.
    pub drain: Drain,
}

/// What all requests share.
struct Page {
    admin: Admin,
    registry: Arc<Registry>,
    ledger: Ledger,
    audit: Audit,
    login: Login,
    tls: bool,
    host: String,
    drain: Drain,
    flashes: Flashes,
    /// Places for live streams.
    streams: Arc<Semaphore>,
    /// What they show.
    views: Views,
    /// Stands in what sessions share for the word of each against forgery. Nobody knows it, so nobody has typed it.
    mark: String,
}

impl Page {
    fn new(parts: Parts) -> Page {
        let Parts { admin, registry, ledger, audit, login, tls, host, drain } = parts;
        Page {
            admin,
            registry,
            ledger,
            audit,
            login,
            tls,
            host,
            drain,
            flashes: Flashes::default(),
            streams: Arc::new(Semaphore::new(live::MOST)),
            views: Views::default(),
            mark: format!("{:032x}", rand::random::<u128>()),
        }
    }
}

/// The page's paths, to be merged with those of the API; sizes, deadlines and the other headers are put around both.
pub fn router(parts: Parts) -> Router {
    routes::router(Arc::new(Page::new(parts)))
}

/// A query string of those values that are not empty, with its question mark.
fn query(values: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (key, value) in values.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = write!(text, "{}{key}=", if text.is_empty() { '?' } else { '&' });
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(byte.into()),
                byte => {
                    let _ = write!(text, "%{byte:02X}");
                }
            }
        }
    }
    text
}
