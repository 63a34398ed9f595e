//! Errors as RFC 9457 has them: `application/problem+json`.

use std::fmt;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The media type of a problem document.
pub const MEDIA_TYPE: &str = "application/problem+json";
/// What the types of our problems begin with.
const PREFIX: &str = "urn:dworker:problem:";

/// The kinds of problems. Each has one status and one word, and neither changes its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request can't be read: no JSON, a query or a path that means nothing.
    Malformed,
    /// The request can be read, but a value in it may not be so.
    Invalid,
    /// Without a credential that works.
    Unauthorised,
    /// With a credential, but not allowed.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// The path knows no such method.
    Method,
    /// Against what is there: a name that is taken, a worker that the configuration manages.
    Conflict,
    /// Somebody else changed it meanwhile.
    Stale,
    /// The body is too large.
    TooLarge,
    /// The body is not of the type that is read.
    MediaType,
    /// The request was not finished in time.
    Timeout,
    /// Too many attempts.
    Limited,
    /// A fault of ours.
    Internal,
    /// Not now: the store can't be written, or too many are served.
    Unavailable,
    /// Not by this daemon: it has another role.
    OtherRole,
}

impl Kind {
    const ALL: [Kind; 15] = [
        Kind::Malformed,
        Kind::Invalid,
        Kind::Unauthorised,
        Kind::Forbidden,
        Kind::NotFound,
        Kind::Method,
        Kind::Conflict,
        Kind::Stale,
        Kind::TooLarge,
        Kind::MediaType,
        Kind::Timeout,
        Kind::Limited,
        Kind::Internal,
        Kind::Unavailable,
        Kind::OtherRole,
    ];

    /// The status that it is answered with.
    pub fn status(self) -> StatusCode {
        self.told().0
    }

    /// Status, word, title.
    fn told(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Kind::Malformed => (StatusCode::BAD_REQUEST, "malformed", "The request can't be read"),
            Kind::Invalid => (StatusCode::UNPROCESSABLE_ENTITY, "invalid", "A value is not valid"),
            Kind::Unauthorised => (StatusCode::UNAUTHORIZED, "unauthorised", "Not signed in"),
            Kind::Forbidden => (StatusCode::FORBIDDEN, "forbidden", "Not allowed"),
            Kind::NotFound => (StatusCode::NOT_FOUND, "not-found", "Not found"),
            Kind::Method => (StatusCode::METHOD_NOT_ALLOWED, "method", "No such method here"),
            Kind::Conflict => (StatusCode::CONFLICT, "conflict", "In conflict with what is there"),
            Kind::Stale => (StatusCode::PRECONDITION_FAILED, "stale", "Changed meanwhile"),
            Kind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The body is too large"),
            Kind::MediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type", "Not this type of body"),
            Kind::Timeout => (StatusCode::REQUEST_TIMEOUT, "timeout", "The request was not finished in time"),
            Kind::Limited => (StatusCode::TOO_MANY_REQUESTS, "limited", "Too many attempts"),
            Kind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "A fault of the appliance"),
            Kind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Not now"),
            Kind::OtherRole => (StatusCode::NOT_IMPLEMENTED, "other-role", "Not a task of this daemon"),
        }
    }

    fn of(status: StatusCode) -> Kind {
        let by_status = Kind::ALL.into_iter().find(|kind| kind.status() == status);
        by_status.unwrap_or(match status.is_client_error() {
            true => Kind::Malformed,
            false => Kind::Internal,
        })
    }
}

/// A problem document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// What kind of problem: `urn:dworker:problem:` and a word, which never changes its meaning.
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    pub kind: Box<str>,
    /// The kind, for people.
    #[schema(value_type = String)]
    pub title: Box<str>,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong with this very request, and what to do.
    pub detail: String,
    /// The path of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub instance: Option<Box<str>>,
    /// What is wrong with which field; empty where no field is to blame.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub errors: Vec<FieldError>,
    #[serde(skip)]
    pub(super) retry_after: Option<u32>,
}

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// The field, as in `proxy_hosts[1]`.
    pub field: String,
    /// What is wrong with it, and what to do.
    pub detail: String,
}

impl Problem {
    /// A problem of this kind.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Problem {
        let (status, word, title) = kind.told();
        Problem {
            kind: format!("{PREFIX}{word}").into(),
            title: title.into(),
            status: status.as_u16(),
            detail: detail.into(),
            instance: None,
            errors: Vec::new(),
            retry_after: None,
        }
    }

    /// A value that may not be so.
    pub fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Problem {
        let (field, detail) = (field.into(), detail.into());
        Problem::new(Kind::Invalid, format!("{field}: {detail}")).with(field, detail)
    }

    /// A path or a thing that is not there.
    pub fn not_found(detail: impl Into<String>) -> Problem {
        Problem::new(Kind::NotFound, detail)
    }

    /// Adds what is wrong with a field.
    pub fn with(mut self, field: impl Into<String>, detail: impl Into<String>) -> Problem {
        self.errors.push(FieldError { field: field.into(), detail: detail.into() });
        self
    }

    /// Says when to try again.
    pub fn retry_after(mut self, wait: Duration) -> Problem {
        self.retry_after = Some(wait.as_secs().clamp(1, u32::MAX.into()) as u32);
        self
    }

    /// The document for an answer that is an error without one.
    pub(super) fn of(status: StatusCode, detail: &str) -> Problem {
        let kind = Kind::of(status);
        let detail = match (detail, kind) {
            ("", Kind::NotFound) => "there is nothing at this path; /api/v1/openapi.json lists what there is",
            ("", Kind::Method) => "the header `Allow` says which methods this path knows",
            ("", _) => status.canonical_reason().unwrap_or("the request failed"),
            (said, _) => said,
        };
        Problem { status: status.as_u16(), ..Problem::new(kind, detail) }
    }

    /// Its kind.
    pub fn is(&self, kind: Kind) -> bool {
        self.kind.strip_prefix(PREFIX) == Some(kind.told().1)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Problem {}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        // Strings and numbers always serialise.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut put = |name: HeaderName, value| response.headers_mut().insert(name, value);
        put(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if self.is(Kind::Unauthorised) {
            put(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"dworker\""));
        }
        if let Some(wait) = self.retry_after {
            put(RETRY_AFTER, HeaderValue::from(wait));
        }
        // For who knows more of the request: see `layers`.
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_status_and_a_word_of_its_own() {
        for (i, kind) in Kind::ALL.into_iter().enumerate() {
            assert!(Problem::new(kind, "").is(kind));
            assert_eq!(Kind::of(kind.status()), kind);
            for other in &Kind::ALL[..i] {
                assert!(other.told().1 != kind.told().1 && !Problem::new(kind, "").is(*other), "{kind:?}");
            }
        }
        assert_eq!(Kind::of(StatusCode::IM_A_TEAPOT), Kind::Malformed);
        assert_eq!(Problem::of(StatusCode::IM_A_TEAPOT, "").status, 418);
    }

    #[test]
    fn a_document_reads_as_the_rfc_has_it() {
        let problem = Problem::invalid("name", "it is empty").retry_after(Duration::from_secs(3));
        let expected = serde_json::json!({
            "type": "urn:dworker:problem:invalid",
            "title": "A value is not valid",
            "status": 422,
            "detail": "name: it is empty",
            "errors": [{ "field": "name", "detail": "it is empty" }],
        });
        assert_eq!(serde_json::to_value(&problem).unwrap(), expected);
        let response = problem.into_response();
        assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(response.headers()[RETRY_AFTER], "3");
    }
}
