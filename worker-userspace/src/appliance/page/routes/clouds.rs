//! The paths of clouds.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Form, State};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::get;
use maud::Markup;
use serde::Deserialize;

use super::{Asked, Problem, not_saved, wrongs};
use crate::appliance::admin::{AdminError, EditCloud, NewCloud, Ref};
use crate::appliance::login::Caller;
use crate::appliance::page::{Page, clouds};
use crate::appliance::records::CloudType;
use crate::web::extract::{Path, Query};

pub(super) fn router() -> Router<Arc<Page>> {
    Router::new()
        .route("/clouds", get(list))
        .route("/clouds/new", get(new).post(add))
        .route("/clouds/{id}/edit", get(edit).post(save))
        .route("/clouds/{id}/remove", get(ask_remove).post(remove))
}

type Shared = State<Arc<Page>>;

async fn list(State(page): Shared, caller: Caller, Query(asked): Query<Asked>) -> Markup {
    clouds::list(&page.frame(&caller, "/clouds"), &page.clouds(&asked.q, asked.page))
}

/// What the form sends.
#[derive(Debug, Deserialize)]
struct Fields {
    #[serde(default)]
    name: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    api_url: String,
    #[serde(default)]
    worker: String,
    revision: Option<i64>,
}

impl Fields {
    /// The worker that was chosen, by its number. What is none is taken for a name, so the answer says that there is none.
    fn worker(&self) -> Option<Ref> {
        match self.worker.trim() {
            "" => None,
            text => Some(text.parse().map_or_else(|_| Ref::from(text), Ref::Id)),
        }
    }

    /// The form again, with all that was typed.
    fn again(self, existing: Option<(i64, String)>) -> clouds::Form {
        clouds::Form {
            existing,
            name: self.name,
            kind: self.kind,
            api_url: self.api_url,
            worker: self.worker,
            revision: self.revision.unwrap_or_default(),
        }
    }
}

async fn new(State(page): Shared, caller: Caller) -> Markup {
    let form = clouds::Form { kind: CloudType::Vmware.word().to_owned(), ..clouds::Form::default() };
    clouds::form(&page.frame(&caller, "/clouds/new"), &form, &page.choices(), &[])
}

async fn add(State(page): Shared, caller: Caller, Form(fields): Form<Fields>) -> Result<Response, Problem> {
    let new = NewCloud {
        name: fields.name.clone(),
        kind: fields.kind.clone(),
        api_url: fields.api_url.clone(),
        worker: fields.worker(),
    };
    match page.admin.add_cloud(new, &caller.actor()).await {
        Ok((cloud, warnings)) => {
            let said = format!("{} is added.", cloud.name);
            Ok(page.done(&caller, "/clouds", said, &warnings).into_response())
        }
        Err(error) => refused(&page, &caller, fields.again(None), error),
    }
}

async fn edit(State(page): Shared, caller: Caller, Path(id): Path<i64>) -> Result<Markup, Problem> {
    let form = page.cloud_form(id)?;
    Ok(clouds::form(&page.frame(&caller, "/clouds"), &form, &page.choices(), &[]))
}

async fn save(
    State(page): Shared,
    caller: Caller,
    Path(id): Path<i64>,
    Form(fields): Form<Fields>,
) -> Result<Response, Problem> {
    let existing = page.cloud_form(id)?.existing;
    let edit = EditCloud {
        name: Some(fields.name.clone()),
        kind: Some(fields.kind.clone()),
        api_url: Some(fields.api_url.clone()),
        worker: Some(fields.worker()),
    };
    match page.admin.edit_cloud(id, edit, fields.revision, &caller.actor()).await {
        Ok((cloud, warnings)) => {
            let said = format!("{} is saved.", cloud.name);
            Ok(page.done(&caller, "/clouds", said, &warnings).into_response())
        }
        Err(error) => refused(&page, &caller, fields.again(existing), error),
    }
}

/// The form again, with what is wrong.
fn refused(page: &Page, caller: &Caller, form: clouds::Form, error: AdminError) -> Result<Response, Problem> {
    let Some(wrongs) = wrongs(&error, "api_url") else { return Err(error.into()) };
    let html = clouds::form(&page.frame(caller, "/clouds"), &form, &page.choices(), &wrongs).into_string();
    Ok((not_saved(&error), Html(html)).into_response())
}

async fn ask_remove(State(page): Shared, caller: Caller, Path(id): Path<i64>) -> Result<Markup, Problem> {
    let cloud = page.admin.cloud(&Ref::Id(id))?;
    let worker = cloud.worker.and_then(|worker| page.record(worker).ok());
    let worker = worker.as_ref().map(|worker| worker.name.as_str());
    Ok(clouds::remove(&page.frame(&caller, "/clouds"), id, &cloud.name, worker))
}

async fn remove(State(page): Shared, caller: Caller, Path(id): Path<i64>) -> Result<Redirect, Problem> {
    let cloud = page.admin.cloud(&Ref::Id(id))?;
    page.admin.remove_cloud(id, None, &caller.actor()).await?;
    Ok(page.done(&caller, "/clouds", format!("{} is removed.", cloud.name), &[]))
}
