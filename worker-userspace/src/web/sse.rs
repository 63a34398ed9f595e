//! Server-sent events: an answer that goes on, one message at a time.
//!
//! What must hold: a reader that does not keep up is dropped, and nothing waits for it.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use hyper::body::Frame;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long a full queue is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// The writing end.
#[derive(Debug)]
pub struct Sender(mpsc::Sender<Bytes>);

/// The reader went away, or does not keep up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// An answer, and the end that writes it; so many messages wait for its reader. It ends when the sender is
/// dropped.
pub fn channel(depth: usize) -> (Sender, Response) {
    let (sender, queue) = mpsc::channel(depth);
    let mut response = Response::new(Body::new(Queue(queue)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    (Sender(sender), response)
}

impl Sender {
    /// Sends a message called `name`, whose data is JSON.
    ///
    /// # Errors
    /// Nobody reads it.
    pub async fn send(&self, name: &str, data: &impl Serialize) -> Result<(), Gone> {
        self.send_text(name, &serde_json::to_string(data).unwrap_or_default()).await
    }

    /// Sends a message called `name`.
    ///
    /// # Errors
    /// Nobody reads it.
    pub async fn send_text(&self, name: &str, data: &str) -> Result<(), Gone> {
        let mut text = format!("event: {name}\n");
        for line in data.split(['\n', '\r']) {
            text.extend(["data: ", line, "\n"]);
        }
        text.push('\n');
        self.put(text).await
    }

    /// Sends a message called `name` to a reader that may take its time; what it misses meanwhile is the caller's to
    /// count.
    ///
    /// # Errors
    /// Nobody reads it any more.
    pub async fn wait(&self, name: &str, data: &impl Serialize) -> Result<(), Gone> {
        let data = serde_json::to_string(data).unwrap_or_default();
        self.0.send(format!("event: {name}\ndata: {data}\n\n").into()).await.map_err(|_| Gone)
    }

    /// Says that the connection is alive.
    ///
    /// # Errors
    /// Nobody reads it.
    pub async fn keep_alive(&self) -> Result<(), Gone> {
        self.put(":\n\n".to_owned()).await
    }

    async fn put(&self, text: String) -> Result<(), Gone> {
        match timeout(PATIENCE, self.0.send(text.into())).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Gone),
        }
    }

    /// Waits until the reader is gone.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

/// The reading end, as a body.
#[derive(Debug)]
struct Queue(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Queue {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn messages_are_lines_and_who_does_not_read_is_dropped() {
        let (sender, response) = channel(16);
        sender.send("text", &"two\nlines").await.unwrap();
        sender.keep_alive().await.unwrap();
        sender.send_text("page", "<p>\n\na\rb").await.unwrap();
        sender.send_text("end", "").await.unwrap();
        drop(sender);
        let body = axum::body::to_bytes(response.into_body(), 1000).await.unwrap();
        assert_eq!(
            body,
            "event: text\ndata: \"two\\nlines\"\n\n:\n\nevent: page\ndata: <p>\ndata: \ndata: a\ndata: b\n\nevent: end\ndata: \n\n"
        );

        let (sender, response) = channel(16);
        for _ in 0..16 {
            sender.keep_alive().await.unwrap();
        }
        assert_eq!(sender.keep_alive().await, Err(Gone));
        drop(response);
        sender.closed().await;
        assert_eq!(sender.keep_alive().await, Err(Gone));
    }
}
