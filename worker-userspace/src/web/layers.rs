//! What surrounds every route: deadlines, sizes, security headers, and problem documents for whatever error
//! comes without one.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use http::header::{
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::time::timeout;

use super::problem::{Kind, MEDIA_TYPE, Problem};

/// Time from a request's head to its answer's, the request's body included; but see [`no_return`].
pub const DEADLINE: Duration = Duration::from_secs(10);
/// Most bytes of a request's body.
pub const LARGEST_BODY: usize = 64 * 1024;
/// Longest text of an error that becomes the detail of a problem.
const LONGEST_TEXT: usize = 4096;

/// Puts all of it around `router`. Paths that nobody knows are answered here too.
pub fn around(router: Router) -> Router {
    // The last layer is the outermost.
    router
        .fallback(async || StatusCode::NOT_FOUND)
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .layer(from_fn(bounded))
        .layer(from_fn(told))
        .layer(from_fn(secured))
}

/// True for paths that machines ask: their errors are problem documents.
pub fn is_api(path: &str) -> bool {
    matches!(path, "/api" | "/healthz" | "/readyz") || path.starts_with("/api/")
}

tokio::task_local! {
    /// True once the request that the task answers is past its point of no return.
    static NO_RETURN: Arc<AtomicBool>;
}

/// To be called by a request's own task when it begins what is not taken back any more: from then on the deadline
/// does not cut it, since "timeout" would say that it did not happen. What was begun must end by itself, and soon.
pub fn no_return() {
    // Elsewhere than in a request there is no deadline.
    let _ = NO_RETURN.try_with(|begun| begun.store(true, Ordering::Relaxed));
}

/// In time.
async fn bounded(request: Request, next: Next) -> Response {
    let late = |_| {
        let detail = format!("head and body must arrive, and be answered, within {DEADLINE:?}");
        Problem::new(Kind::Timeout, detail).into_response()
    };
    let begun = Arc::new(AtomicBool::new(false));
    let mut answer = pin!(NO_RETURN.scope(begun.clone(), next.run(request)));
    match timeout(DEADLINE, &mut answer).await {
        Err(_) if begun.load(Ordering::Relaxed) => answer.await,
        answer => answer.unwrap_or_else(late),
    }
}

/// True where a request says that its body is larger than any may be. The body need not be read then; where it
/// does not say, reading it fails.
pub fn is_too_large(headers: &HeaderMap) -> bool {
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    length.is_some_and(|length| length > LARGEST_BODY as u64)
}

/// The answer to a body that is larger than any may be.
pub fn too_large() -> Problem {
    Problem::new(Kind::TooLarge, format!("a body has at most {LARGEST_BODY} bytes"))
}

fn is_json(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind == "application/json")
}

/// Errors as problem documents that name the path; elsewhere than in the API as a line of text.
async fn told(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let response = next.run(request).await;
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let problem = match parts.extensions.remove::<Problem>() {
        Some(problem) => problem,
        // What has a form of its own keeps it: a page, or what is not ready.
        None if !is_api(&path) && parts.headers.contains_key(CONTENT_TYPE) || is_json(&parts.headers) => {
            return Response::from_parts(parts, body);
        }
        None if status == StatusCode::PAYLOAD_TOO_LARGE => too_large(),
        None => {
            let text = to_bytes(body, LONGEST_TEXT).await.unwrap_or_default();
            Problem::of(status, &String::from_utf8_lossy(&text))
        }
    };
    let (body, media_type) = match is_api(&path) {
        true => {
            let problem = Problem { instance: Some(path.into()), ..problem };
            (serde_json::to_vec(&problem).unwrap_or_default(), MEDIA_TYPE)
        }
        false => {
            (format!("{}: {}\n", problem.title, problem.detail).into_bytes(), "text/plain; charset=utf-8")
        }
    };
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    parts.headers.remove(CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(body))
}

/// The headers that keep browsers from doing more with an answer than is meant. What a route has set stays.
///
/// No `Strict-Transport-Security`: it would hold for all ports of the name, and the appliance shares its host
/// with the software that it serves.
async fn secured(request: Request, next: Next) -> Response {
    const HEADERS: [(HeaderName, &str); 7] = [
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::extract::Json;
    use axum::routing::{get, post};
    use bytes::Bytes;
    use http::header::ALLOW;
    use hyper::body::Frame;
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use tower::ServiceExt;

    /// A body that never ends.
    struct Endless;

    impl hyper::body::Body for Endless {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Pending
        }
    }

    /// A body of so many bytes, without saying how many.
    struct Unsized(usize);

    impl hyper::body::Body for Unsized {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let piece = self.0.min(1000);
            self.0 -= piece;
            Poll::Ready((piece > 0).then(|| Ok(Frame::data(Bytes::from(vec![b' '; piece])))))
        }
    }

    async fn ask(method: &str, path: &str, body: Body) -> (StatusCode, HeaderMap, String) {
        let router = Router::new()
            .route("/api/v1/length", post(async |Json(text): Json<String>| text.len().to_string()))
            .route("/api/v1/panic", get(async || (StatusCode::IM_A_TEAPOT, "short and stout")))
            .route("/readyz", get(async || (StatusCode::SERVICE_UNAVAILABLE, Json([false]))))
            .route("/page", get(async || ([(CACHE_CONTROL, "max-age=60")], "page")));
        let request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, "application/json");
        let response = around(router).oneshot(request.body(body).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, 1 << 20).await.unwrap();
        (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn every_error_of_the_api_is_a_problem_document() {
        let json = |text: &str| Body::from(format!("{text:?}"));
        for (method, path, body, status, kind) in [
            ("GET", "/api/v1/nothing", Body::empty(), 404, "not-found"),
            ("GET", "/api", Body::empty(), 404, "not-found"),
            ("GET", "/api/v1/length", Body::empty(), 405, "method"),
            ("GET", "/api/v1/panic", Body::empty(), 418, "malformed"),
            ("POST", "/api/v1/length", Body::from("{}"), 422, "invalid"),
            ("POST", "/api/v1/length", json(&"x".repeat(LARGEST_BODY)), 413, "too-large"),
            ("POST", "/api/v1/length", Body::new(Unsized(LARGEST_BODY + 1)), 413, "too-large"),
            ("POST", "/api/v1/length", Body::new(Endless), 408, "timeout"),
        ] {
            let (answered, headers, body) = ask(method, path, body).await;
            assert_eq!(answered, status, "{method} {path}: {body}");
            assert_eq!(headers[CONTENT_TYPE], MEDIA_TYPE, "{path}");
            let problem: Problem = serde_json::from_str(&body).expect(&body);
            assert_eq!((problem.status, problem.instance.as_deref()), (status, Some(path)));
            assert_eq!(&*problem.kind, format!("urn:dworker:problem:{kind}"), "{path}");
            assert!(!problem.detail.is_empty());
            assert_eq!(headers.contains_key(ALLOW), status == 405);
        }
        let (status, headers, body) = ask("GET", "/readyz", Body::empty()).await;
        assert_eq!((status.as_u16(), body.as_str()), (503, "[false]"), "it says itself what is not ready");
        assert_eq!(headers[CONTENT_TYPE], "application/json");
        let (status, _, body) = ask("POST", "/api/v1/length", json(&"x".repeat(LARGEST_BODY - 2))).await;
        assert_eq!((status, body.as_str()), (StatusCode::OK, "65534"));
    }

    #[tokio::test]
    async fn every_answer_has_the_security_headers_unless_a_route_knows_better() {
        for path in ["/page", "/nothing", "/api/v1/nothing"] {
            let (_, headers, body) = ask("GET", path, Body::empty()).await;
            assert_eq!(headers[X_CONTENT_TYPE_OPTIONS], "nosniff", "{path}: {body}");
            assert_eq!(headers[CACHE_CONTROL], if path == "/page" { "max-age=60" } else { "no-store" });
            let csp = headers[CONTENT_SECURITY_POLICY].to_str().unwrap();
            assert!(csp.contains("default-src 'none'"), "{csp}");
        }
        let (_, headers, body) = ask("GET", "/nothing", Body::empty()).await;
        assert!(headers[CONTENT_TYPE].to_str().unwrap().starts_with("text/plain"), "{body}");
    }
}
