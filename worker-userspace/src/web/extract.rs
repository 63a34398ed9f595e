//! What a request brings: its body, its query, its path. What is wrong with them is a [`Problem`], which names
//! the field.

use std::error::Error;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::problem::{Kind, Problem};

/// A body of JSON, in a request or in an answer.
#[derive(Debug, Clone, Copy)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Json<T>, Problem> {
        match axum::Json::from_request(request, state).await {
            Ok(axum::Json(value)) => Ok(Json(value)),
            Err(rejection) => Err(of_json(rejection)),
        }
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

fn of_json(rejection: JsonRejection) -> Problem {
    match &rejection {
        JsonRejection::MissingJsonContentType(_) => {
            Problem::new(Kind::MediaType, "send the body as JSON, with `Content-Type: application/json`")
        }
        JsonRejection::JsonDataError(error) => match field::<serde_json::Error>(error) {
            Some((field, detail)) if field != "." => Problem::invalid(field, detail),
            Some((_, detail)) => Problem::new(Kind::Invalid, format!("the body: {detail}")),
            None => Problem::new(Kind::Invalid, rejection.body_text()),
        },
        JsonRejection::JsonSyntaxError(error) => {
            let mut cause: &dyn Error = error;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            Problem::new(Kind::Malformed, format!("the body is no JSON: {cause}"))
        }
        other => Problem::of(other.status(), &other.body_text()),
    }
}

/// The parameters behind the `?`.
#[derive(Debug, Clone, Copy)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Query<T>, Problem> {
        match axum::extract::Query::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Query(value)),
            Err(rejection) => Err(of_query(rejection)),
        }
    }
}

fn of_query(rejection: QueryRejection) -> Problem {
    match field::<serde::de::value::Error>(&rejection) {
        Some((field, detail)) if field != "." => {
            let told = format!("the parameter {field}: {detail}");
            Problem::new(Kind::Malformed, told).with(field, detail)
        }
        Some((_, detail)) => Problem::new(Kind::Malformed, format!("the query: {detail}")),
        None => Problem::of(StatusCode::BAD_REQUEST, &rejection.body_text()),
    }
}

/// The variable parts of the path.
#[derive(Debug, Clone, Copy)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Path<T>, StatusCode> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Path(value)),
            // No thing has such a number or name; that the text can't even be one is no other answer, and how it was
            // read concerns nobody.
            Err(PathRejection::FailedToDeserializePathParams(_)) => Err(StatusCode::NOT_FOUND),
            Err(other) => Err(other.status()),
        }
    }
}

/// The field that an error is about, `.` for the whole, and what is wrong with it.
fn field<E: Error + 'static>(error: &(dyn Error + 'static)) -> Option<(String, String)> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<serde_path_to_error::Error<E>>() {
            return Some((found.path().to_string(), found.inner().to_string()));
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use http::header::CONTENT_TYPE;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Asked {
        #[serde(rename = "names")]
        _names: Vec<String>,
        #[serde(rename = "limit")]
        _limit: Option<u16>,
    }

    async fn json(body: &str, media_type: &str) -> Problem {
        let request = Request::builder().header(CONTENT_TYPE, media_type).body(Body::from(body.to_owned()));
        Json::<Asked>::from_request(request.unwrap(), &()).await.expect_err(body)
    }

    async fn query(text: &str) -> Problem {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Asked {
            #[serde(rename = "limit")]
            _limit: Option<u16>,
        }
        let request = Request::builder().uri(format!("/?{text}")).body(()).unwrap();
        Query::<Asked>::from_request_parts(&mut request.into_parts().0, &()).await.expect_err(text)
    }

    #[tokio::test]
    async fn a_wrong_body_is_a_problem_that_names_the_field() {
        const JSON: &str = "application/json";
        for (body, media_type, status, field, says) in [
            ("{}", "text/plain", 415, "", "Content-Type"),
            ("{", JSON, 400, "", "EOF"),
            ("{}", JSON, 422, "", "missing field `names`"),
            (r#"{"names":[]} x"#, JSON, 400, "", "trailing"),
            ("[]", JSON, 422, "", "invalid length"),
            (r#"{"names":["a",1]}"#, JSON, 422, "names[1]", "expected a string"),
            (r#"{"names":[],"limit":-1}"#, JSON, 422, "limit", "expected u16"),
            (r#"{"names":[],"nmaes":[]}"#, JSON, 422, "nmaes", "unknown field"),
            (r#"{"names":[],"names":[]}"#, JSON, 422, "", "duplicate field"),
        ] {
            let problem = json(body, media_type).await;
            let named = problem.errors.first().map_or("", |error| error.field.as_str());
            assert_eq!((problem.status, named), (status, field), "{body}: {problem:?}");
            assert!(problem.detail.contains(says), "{body}: {problem}");
        }
    }

    #[tokio::test]
    async fn a_wrong_query_is_a_problem_that_names_the_parameter() {
        for (text, field, says) in [
            ("limit=-1", "limit", "invalid digit"),
            ("limit=1&limit=2", "", "duplicate field"),
            ("limits=1", "limits", "unknown field"),
        ] {
            let problem = query(text).await;
            let named = problem.errors.first().map_or("", |error| error.field.as_str());
            assert_eq!((problem.status, named), (400, field), "{text}: {problem:?}");
            assert!(problem.detail.contains(says), "{text}: {problem}");
        }
    }
}
