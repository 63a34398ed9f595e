//! The JSON API below `/api/v1`: on the appliance's port behind the [login](super::login), and on the control
//! socket.
//!
//! What must hold: a route is registered together with its description, so the document that is served lists
//! exactly what there is; whatever a client sends is a problem document or an answer that the document describes.
//!
//! | file | concern |
//! |---|---|
//! | `api.rs` | what all routes share; the two routers |
//! | `api/workers.rs`, `nodes.rs`, `clouds.rs` | the registry's records, with what is live of them |
//! | `api/events.rs`, `connections.rs`, `stream.rs` | what happened, what is carried, and both as it happens |
//! | `api/session.rs` | signing in and out, the admin token |
//! | `api/revision.rs` | `ETag`, `If-Match` and `revision` |
//! | `api/refused.rs` | why a change was refused, as a problem |
//! | `api/document.rs` | the OpenAPI document |

pub mod clouds;
mod connections;
mod document;
mod events;
pub mod nodes;
mod refused;
mod revision;
pub mod session;
mod stream;
#[cfg(test)]
mod tests;
pub mod workers;

use std::sync::Arc;

use axum::middleware::{from_fn, from_fn_with_state};
use axum::{Extension, Router};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::admin::Admin;
use super::audit::Audit;
use super::login::{Login, greet, guard, local};
use super::registry::Registry;
use crate::drain::Drain;
use crate::inspect;
use crate::inspect::api::Reports;
use crate::inspect::ledger::Ledger;
use document::Document;
use stream::Streams;

/// What the routes work on. Clones are the same.
#[derive(Clone)]
pub struct Api {
    admin: Admin,
    audit: Audit,
    registry: Arc<Registry>,
    ledger: Ledger,
    login: Login,
    drain: Drain,
    streams: Arc<Streams>,
}

/// What the API stands on.
pub struct Parts {
    /// The records.
    pub admin: Admin,
    /// Where events are kept.
    pub audit: Audit,
    /// Who is connected.
    pub registry: Arc<Registry>,
    /// The connections.
    pub ledger: Ledger,
    /// Who may ask.
    pub login: Login,
    /// What all daemons answer.
    pub reports: Reports,
    /// Ends the streams.
    pub drain: Drain,
}

/// The same routes for two kinds of callers. Neither has the [layers](crate::web::layers) yet.
pub struct Routers {
    /// For the appliance's port: behind the login.
    pub network: Router,
    /// For the control socket.
    pub socket: Router,
}

/// All routes.
pub fn routers(parts: Parts) -> Routers {
    let Parts { admin, audit, registry, ledger, login, reports, drain } = parts;
    let door = login.clone();
    let api = Api { admin, audit, registry, ledger, login, drain, streams: Arc::default() };
    let (open, mut described) = open().with_state(api.clone()).split_for_parts();
    let (reporting, more) = inspect::api::open().with_state(reports.clone()).split_for_parts();
    described.merge(more);
    let guarded = guarded().with_state(api).merge(inspect::api::guarded().with_state(reports));
    let (guarded, more) = guarded.split_for_parts();
    described.merge(more);
    let document = Extension(Document::new(&document::finish(described)));
    let network = open
        .clone()
        .merge(reporting.clone().route_layer(from_fn_with_state(door.clone(), greet)))
        .merge(guarded.clone().route_layer(from_fn_with_state(door, guard)));
    let socket = open.merge(reporting).merge(guarded.route_layer(from_fn(local)));
    Routers { network: network.layer(document.clone()), socket: socket.layer(document) }
}

/// For everybody.
fn open() -> OpenApiRouter<Api> {
    OpenApiRouter::default().routes(routes!(session::sign_in))
}

/// For who may administer.
fn guarded() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(workers::list, workers::add))
        .routes(routes!(workers::show, workers::edit, workers::remove))
        .routes(routes!(workers::rotate_key))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::list_of_worker))
        .routes(routes!(nodes::edit, nodes::forget))
        .routes(routes!(clouds::list, clouds::add))
        .routes(routes!(clouds::show, clouds::edit, clouds::remove))
        .routes(routes!(connections::list))
        .routes(routes!(connections::show, connections::close))
        .routes(routes!(events::list))
        .routes(routes!(stream::show))
        .routes(routes!(session::show, session::sign_out))
        .routes(routes!(session::reset_token))
        .routes(routes!(document::show))
}
