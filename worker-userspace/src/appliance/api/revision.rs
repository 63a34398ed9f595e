//! Who saves says which state the save is based on: by `If-Match` with the `ETag` of an answer, or by `revision`
//! in the body. A save that is based on another state is refused, and nothing is lost.
//!
//! The tag is that of the record alone: what is live beside it changes without it.

use axum::extract::FromRequestParts;
use axum::response::{IntoResponse, Response};
use http::header::{ETAG, IF_MATCH};
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use serde::Serialize;

use crate::appliance::admin::AdminError;
use crate::web::extract::Json;
use crate::web::{Kind, Problem};

/// An answer with the revision of its record.
pub(super) struct Tagged<T>(pub(super) StatusCode, pub(super) i64, pub(super) T);

impl<T: Serialize> IntoResponse for Tagged<T> {
    fn into_response(self) -> Response {
        let mut response = (self.0, Json(self.2)).into_response();
        // A number in quotes always makes a header.
        if let Ok(tag) = HeaderValue::try_from(format!("\"{}\"", self.1)) {
            response.headers_mut().insert(ETAG, tag);
        }
        response
    }
}

/// The states that a request may be based on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum IfMatch {
    /// It does not say.
    Absent,
    /// `*`: whatever it is, as long as it is there.
    Any,
    /// One of these.
    Revisions(Vec<i64>),
}

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<IfMatch, Problem> {
        let mut revisions = Vec::new();
        let values = parts.headers.get_all(IF_MATCH);
        if values.iter().next().is_none() {
            return Ok(IfMatch::Absent);
        }
        for value in values {
            for tag in value.to_str().unwrap_or_default().split(',') {
                match tag.trim() {
                    "*" => return Ok(IfMatch::Any),
                    // Tags that we have not given, weak ones too, match nothing.
                    tag => revisions.extend(tag.trim_matches('"').parse::<i64>().ok()),
                }
            }
        }
        Ok(IfMatch::Revisions(revisions))
    }
}

impl IfMatch {
    /// The revision that a change of a record with revision `current` must find, `body` being the one in its body.
    ///
    /// # Errors
    /// The request is based on another state.
    pub(super) fn expect(&self, what: &str, current: i64, body: Option<i64>) -> Result<Option<i64>, Problem> {
        match self {
            IfMatch::Revisions(revisions) if !revisions.contains(&current) => {
                let detail = format!(
                    "{what} has changed since you loaded it: its revision is {current} now; load it again"
                );
                Err(Problem::new(Kind::Stale, detail))
            }
            IfMatch::Revisions(_) if body.is_some_and(|body| body != current) => Err(Problem::new(
                Kind::Malformed,
                "`If-Match` and `revision` name different states: send one of them",
            )),
            IfMatch::Revisions(_) => Ok(Some(current)),
            IfMatch::Any | IfMatch::Absent => Ok(body),
        }
    }

    /// The problem of a change that was refused: a conflict that the header asked about has a status of its own.
    pub(super) fn refused(&self, error: AdminError) -> Problem {
        match (self, &error) {
            (IfMatch::Revisions(_), AdminError::Conflict { .. }) => {
                Problem::new(Kind::Stale, error.to_string())
            }
            _ => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    async fn parsed(values: &[&str]) -> IfMatch {
        let request =
            values.iter().fold(Request::builder(), |request, value| request.header(IF_MATCH, *value));
        IfMatch::from_request_parts(&mut request.body(()).unwrap().into_parts().0, &()).await.unwrap()
    }

    #[tokio::test]
    async fn a_state_is_named_by_header_or_body() {
        assert_eq!(parsed(&[]).await, IfMatch::Absent);
        assert_eq!(parsed(&["*"]).await, IfMatch::Any);
        assert_eq!(parsed(&["\"3\"", "\"4\", \"x\", W/\"5\""]).await, IfMatch::Revisions(vec![3, 4]));
        let expect =
            |given: &IfMatch, body| given.expect("worker a", 3, body).map_err(|problem| problem.status);
        assert_eq!(expect(&IfMatch::Absent, None), Ok(None));
        assert_eq!(expect(&IfMatch::Absent, Some(2)), Ok(Some(2)), "the save itself compares");
        assert_eq!(expect(&IfMatch::Any, Some(2)), Ok(Some(2)));
        assert_eq!(expect(&parsed(&["\"3\""]).await, None), Ok(Some(3)));
        assert_eq!(expect(&parsed(&["\"3\""]).await, Some(3)), Ok(Some(3)));
        assert_eq!(expect(&parsed(&["\"3\""]).await, Some(2)), Err(400));
        assert_eq!(expect(&parsed(&["\"2\""]).await, None), Err(412));
        assert_eq!(expect(&parsed(&["W/\"3\""]).await, None), Err(412));
        assert_eq!(expect(&parsed(&["nonsense"]).await, None), Err(412));
    }
}
