//! The paths of Distributed Workers.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Form, State};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use http::HeaderMap;
use http::header::HOST;
use jiff::Timestamp;
use maud::Markup;
use serde::Deserialize;

use super::{Asked, not_saved, wrongs};
use crate::appliance::admin::{AdminError, EditWorker, HostList, NewWorker, Warning};
use crate::appliance::login::Caller;
use crate::appliance::page::worker_form::{self, NewKey};
use crate::appliance::page::{Page, worker, workers};
use crate::appliance::records::Worker;
use crate::config::Key;
use crate::tunnel::message::{Id, parse_id};
use crate::web::Problem;
use crate::web::extract::{Path, Query};

pub(super) fn router() -> Router<Arc<Page>> {
    Router::new()
        .route("/workers", get(list))
        .route("/workers/new", get(new).post(add))
        .route("/workers/{id}", get(one))
        .route("/workers/{id}/key", get(key))
        .route("/workers/{id}/edit", get(edit).post(save))
        .route("/workers/{id}/rotate", get(ask_rotate).post(rotate))
        .route("/workers/{id}/enable", post(enable))
        .route("/workers/{id}/disable", get(ask_disable).post(disable))
        .route("/workers/{id}/remove", get(ask_remove).post(remove))
        .route("/workers/{id}/nodes/{node}/order", post(order))
        .route("/workers/{id}/nodes/{node}/forget", get(ask_forget).post(forget))
}

type Shared = State<Arc<Page>>;

async fn list(State(page): Shared, caller: Caller, Query(asked): Query<Asked>) -> Markup {
    workers::list(&page.frame(&caller, "/workers"), &page.workers(&asked.q, asked.page))
}

async fn one(State(page): Shared, caller: Caller, Path(which): Path<String>) -> Result<Response, Problem> {
    let id = page.admin.worker(&which.as_str().into())?.id;
    let path = format!("/workers/{id}");
    // By its name, as people write it: its page is at its number, which stays.
    if which != id.to_string() {
        return Ok(Redirect::to(&path).into_response());
    }
    let detail = page.worker(id).await?;
    Ok(worker::detail(&page.frame(&caller, &path), &detail).into_response())
}

/// What the form sends.
#[derive(Debug, Deserialize)]
struct Fields {
    #[serde(default)]
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    proxy_hosts: String,
    enabled: Option<String>,
    may_open: Option<String>,
    revision: Option<i64>,
}

impl Fields {
    /// The form again, with all that was typed.
    fn again(self, existing: Option<(i64, String)>, from_file: bool) -> worker_form::Form {
        worker_form::Form {
            existing,
            from_file,
            name: self.name,
            description: self.description,
            proxy_hosts: self.proxy_hosts,
            enabled: self.enabled.is_some(),
            may_open: self.may_open.is_some(),
            revision: self.revision.unwrap_or_default(),
        }
    }
}

async fn new(State(page): Shared, caller: Caller) -> Markup {
    let form = worker_form::Form { enabled: true, ..worker_form::Form::default() };
    worker_form::form(&page.frame(&caller, "/workers/new"), &form, &[])
}

async fn add(
    State(page): Shared,
    caller: Caller,
    headers: HeaderMap,
    Form(fields): Form<Fields>,
) -> Result<Response, Problem> {
    let new = NewWorker {
        name: fields.name.clone(),
        description: fields.description.clone(),
        proxy_hosts: HostList::Text(fields.proxy_hosts.clone()),
        enabled: fields.enabled.is_some(),
        may_open: fields.may_open.is_some(),
    };
    match page.admin.add_worker(new, &caller.actor()).await {
        Ok((worker, key, warnings)) => Ok(show_key(&page, &caller, &headers, &worker, key, None, &warnings)),
        Err(error) => refused(&page, &caller, fields.again(None, false), error),
    }
}

/// Goes on at the page of a new key, which is given out once.
fn show_key(
    page: &Page,
    caller: &Caller,
    headers: &HeaderMap,
    worker: &Worker,
    key: Key,
    replaces: Option<String>,
    warnings: &[Warning],
) -> Response {
    let path = format!("/workers/{}/key", worker.id);
    let new = NewKey {
        id: worker.id,
        name: worker.name.clone(),
        key,
        appliance_url: page.url(headers),
        replaces,
        warnings: warnings.iter().map(ToString::to_string).collect(),
    };
    match caller.session() {
        Some(session) => {
            page.flashes.show(session.csrf(), &path, new);
            Redirect::to(&path).into_response()
        }
        // Somebody with the token and no browser: there is no session to keep it for.
        None => worker_form::key(&page.frame(caller, &path), &new).into_response(),
    }
}

async fn key(State(page): Shared, caller: Caller, Path(id): Path<i64>) -> Response {
    let path = format!("/workers/{id}/key");
    let frame = page.frame(&caller, &path);
    match page.flashes.shown(&frame.csrf, &path) {
        Some(new) => worker_form::key(&frame, &new).into_response(),
        None => {
            let said =
                "The key was shown already, and is kept nowhere. Who has lost it rotates it.".to_owned();
            page.done(&caller, &format!("/workers/{id}"), said, &[]).into_response()
        }
    }
}

async fn edit(State(page): Shared, caller: Caller, Path(id): Path<i64>) -> Result<Markup, Problem> {
    let form = page.worker_form(id)?;
    Ok(worker_form::form(&page.frame(&caller, &format!("/workers/{id}/edit")), &form, &[]))
}

async fn save(
    State(page): Shared,
    caller: Caller,
    Path(id): Path<i64>,
    Form(fields): Form<Fields>,
) -> Result<Response, Problem> {
    let now = page.worker_form(id)?;
    // What the configuration file says is not in the form.
    let ours = |text: &String| (!now.from_file).then(|| text.clone());
    let edit = EditWorker {
        name: ours(&fields.name),
        description: Some(fields.description.clone()),
        proxy_hosts: ours(&fields.proxy_hosts).map(HostList::Text),
        enabled: Some(fields.enabled.is_some()),
        may_open: (!now.from_file).then_some(fields.may_open.is_some()),
    };
    match page.admin.edit_worker(id, edit, fields.revision, &caller.actor()).await {
        Ok((worker, warnings)) => {
            let said = format!("{} is saved.", worker.name);
            Ok(page.done(&caller, &format!("/workers/{id}"), said, &warnings).into_response())
        }
        Err(error) => {
            let mut form = fields.again(now.existing.clone(), now.from_file);
            if now.from_file {
                (form.name, form.proxy_hosts, form.may_open) = (now.name, now.proxy_hosts, now.may_open);
            }
            refused(&page, &caller, form, error)
        }
    }
}

/// The form again, with what is wrong.
fn refused(
    page: &Page,
    caller: &Caller,
    form: worker_form::Form,
    error: AdminError,
) -> Result<Response, Problem> {
    let Some(wrongs) = wrongs(&error, "proxy_hosts") else { return Err(error.into()) };
    let html = worker_form::form(&page.frame(caller, "/workers"), &form, &wrongs).into_string();
    Ok((not_saved(&error), Html(html)).into_response())
}

async fn ask_rotate(State(page): Shared, caller: Caller, Path(id): Path<i64>) -> Result<Markup, Problem> {
    let worker = page.record(id)?;
    let ends = worker.key_in_grace(Timestamp::now());
    Ok(worker::rotate(&page.frame(&caller, "/workers"), id, &worker.name, ends))
}

#[derive(Debug, Deserialize)]
struct Grace {
    grace: u64,
    /// The key of which the dialog said that it ends.
    #[serde(default)]
    ends: String,
}

async fn rotate(
    State(page): Shared,
    caller: Caller,
    Path(id): Path<i64>,
    headers: HeaderMap,
    Form(form): Form<Grace>,
) -> Result<Response, Problem> {
    let grace = Duration::from_secs(form.grace);
    // Of another key than this one nobody has said that it may end.
    let ends = page.record(id)?.key_in_grace(Timestamp::now());
    let force = ends.is_some_and(|(key, _)| key.to_string() == form.ends);
    let (worker, key, warnings) = page.admin.rotate_key(id, grace, force, &caller.actor()).await?;
    let said = match worker.previous_key {
        Some((_, until)) => format!("The old key works until {}.", until.strftime("%Y-%m-%d %H:%M:%S UTC")),
        None => "The old key works no more, and nodes that use it are cut off.".to_owned(),
    };
    Ok(show_key(&page, &caller, &headers, &worker, key, Some(said), &warnings))
}

async fn enable(State(page): Shared, caller: Caller, Path(id): Path<i64>) -> Result<Redirect, Problem> {
    let worker = page.admin.set_enabled(id, true, &caller.actor()).await?;
    Ok(page.done(&caller, &format!("/workers/{id}"), format!("{} is enabled.", worker.name), &[]))
}

async fn ask_disable(State(page): Shared, caller: Caller, Path(id): Path<i64>) -> Result<Markup, Problem> {
    let worker = page.record(id)?;
    Ok(worker::disable(&page.frame(&caller, "/workers"), id, &worker.name, page.worker_streams(id)))
}

async fn disable(State(page): Shared, caller: Caller, Path(id): Path<i64>) -> Result<Redirect, Problem> {
    let worker = page.admin.set_enabled(id, false, &caller.actor()).await?;
    Ok(page.done(&caller, &format!("/workers/{id}"), format!("{} is disabled.", worker.name), &[]))
}

async fn ask_remove(State(page): Shared, caller: Caller, Path(id): Path<i64>) -> Result<Markup, Problem> {
    let worker = page.record(id)?;
    let frame = page.frame(&caller, "/workers");
    Ok(worker::remove(&frame, id, &worker.name, page.worker_streams(id), &page.clouds_of(id)))
}

async fn remove(State(page): Shared, caller: Caller, Path(id): Path<i64>) -> Result<Redirect, Problem> {
    let worker = page.record(id)?;
    page.admin.remove_worker(id, None, &caller.actor()).await?;
    Ok(page.done(&caller, "/workers", format!("{} is removed.", worker.name), &[]))
}

fn id_of(text: &str) -> Result<Id, Problem> {
    parse_id(text).ok_or_else(|| Problem::not_found("No node has such an id."))
}

#[derive(Debug, Deserialize)]
struct Order {
    #[serde(default)]
    priority: String,
}

async fn order(
    State(page): Shared,
    caller: Caller,
    Path((id, node)): Path<(i64, String)>,
    Form(form): Form<Order>,
) -> Result<Redirect, Problem> {
    let priority = match form.priority.trim() {
        "" => None,
        text => Some(text.parse().map_err(|_| {
            Problem::invalid("order", format!("{text:?} is not a whole number; leave it empty for none"))
        })?),
    };
    let node = page.admin.set_node_priority(id, id_of(&node)?, priority, &caller.actor()).await?;
    let said = match node.priority {
        Some(priority) => format!("The order of {} is {priority}.", node.host_name),
        None => format!("{} has no order of its own.", node.host_name),
    };
    Ok(page.done(&caller, &format!("/workers/{id}"), said, &[]))
}

async fn ask_forget(
    State(page): Shared,
    caller: Caller,
    Path((id, node)): Path<(i64, String)>,
) -> Result<Markup, Problem> {
    let wanted = id_of(&node)?;
    let found = page.admin.nodes(id).into_iter().find(|known| known.id == wanted);
    let found = found.ok_or_else(|| Problem::not_found("There is no such node any more."))?;
    let connected = page.is_connected(id, &wanted);
    Ok(worker::forget(&page.frame(&caller, "/workers"), id, &node, &found.host_name, connected))
}

async fn forget(
    State(page): Shared,
    caller: Caller,
    Path((id, node)): Path<(i64, String)>,
) -> Result<Redirect, Problem> {
    page.admin.forget_node(id, id_of(&node)?, &caller.actor()).await?;
    Ok(page.done(&caller, &format!("/workers/{id}"), "The node is forgotten.".to_owned(), &[]))
}

impl Page {
    /// Where workers reach this appliance: as the browser did.
    fn url(&self, headers: &HeaderMap) -> String {
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let is_fine = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
        let host = if !host.is_empty() && host.chars().all(is_fine) { host } else { self.host.as_str() };
        format!("{}://{host}", if self.tls { "https" } else { "http" })
    }
}
