//! The OpenAPI document, made of the routes themselves.

use axum::Extension;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use utoipa::PartialSchema;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    Components, ContentBuilder, InfoBuilder, OpenApi, Ref, RefOr, ResponseBuilder, SecurityRequirement,
};

use crate::web::problem::MEDIA_TYPE;
use crate::web::{FieldError, Problem};

/// The document as it is served.
#[derive(Debug, Clone)]
pub(super) struct Document(Bytes);

/// Adds what all routes have in common.
pub(super) fn finish(mut document: OpenApi) -> OpenApi {
    document.info = InfoBuilder::new()
        .title("dworker")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "The administration of an appliance: distributed workers, their nodes, clouds, connections and events. \
             Lists come in pages: `next` of an answer is the `cursor` of the page behind it. Errors are problem \
             documents (RFC 9457).",
        ))
        .build();
    let components = document.components.get_or_insert(Components::new());
    components.schemas.insert("Problem".into(), Problem::schema());
    components.schemas.insert("FieldError".into(), FieldError::schema());
    let bearer =
        HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("The admin token")).build();
    components.add_security_scheme("token", SecurityScheme::Http(bearer));
    let cookie = ApiKeyValue::with_description(
        "__Host-dworker",
        "A browser's session; what changes something needs the header `X-CSRF-Token` too",
    );
    components.add_security_scheme("session", SecurityScheme::ApiKey(ApiKey::Cookie(cookie)));
    let none: [&str; 0] = [];
    document.security =
        Some(vec![SecurityRequirement::new("token", none), SecurityRequirement::new("session", none)]);
    let problem = |what: &str| {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        RefOr::T(ResponseBuilder::new().description(what).content(MEDIA_TYPE, content).build())
    };
    for item in document.paths.paths.values_mut() {
        for operation in
            [&mut item.get, &mut item.post, &mut item.patch, &mut item.delete].into_iter().flatten()
        {
            // The handlers' names: each resource has a `list`.
            let tag = operation.tags.iter().flatten().next().cloned().unwrap_or_default();
            operation.operation_id = operation.operation_id.take().map(|name| format!("{tag}_{name}"));
            let responses = &mut operation.responses.responses;
            for (status, response) in responses.iter_mut() {
                if let RefOr::T(response) = response
                    && response.description.is_empty()
                {
                    let status = status.parse::<StatusCode>().ok();
                    response.description =
                        status.and_then(|status| status.canonical_reason()).unwrap_or("Done").into();
                }
            }
            responses.insert("4XX".into(), problem("What is wrong with the request"));
            responses.insert("5XX".into(), problem("What is wrong with the appliance"));
        }
    }
    document
}

impl Document {
    /// The document as it goes over the wire.
    pub(super) fn new(document: &OpenApi) -> Document {
        Document(document.to_json().unwrap_or_default().into())
    }
}

/// This document
#[utoipa::path(
    get, path = "/api/v1/openapi.json", tag = "document",
    responses((status = 200, description = "The OpenAPI document", content_type = "application/json", body = Object))
)]
pub(super) async fn show(Extension(Document(bytes)): Extension<Document>) -> Response {
    ([(CONTENT_TYPE, "application/json")], bytes).into_response()
}
