//! Requests that are answered before their body was read.
//!
//! The rest of such a body cannot be skipped, so the connection ends with the answer. The answer must
//! say so: otherwise a client or a proxy sends its next request on that connection and loses it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::{Body, BodyDataStream, Bytes, HttpBody};
use axum::extract::Request;
use futures_core::Stream;

/// Whether the body of a request was read to its end.
#[derive(Debug)]
pub(super) struct BodyEnd(Arc<AtomicBool>);

impl BodyEnd {
    /// Watches the body of `request`.
    pub(super) fn watch(request: Request) -> (Request, Self) {
        let (head, body) = request.into_parts();
        if body.is_end_stream() {
            return (Request::from_parts(head, body), Self(Arc::new(AtomicBool::new(true))));
        }
        let ended = Arc::new(AtomicBool::new(false));
        let watched = WatchedBody {
            left: body.size_hint().exact(),
            stream: body.into_data_stream(),
            ended: Arc::clone(&ended),
        };
        (Request::from_parts(head, Body::from_stream(watched)), Self(ended))
    }

    /// Whether the end has been read by now, or there was no body.
    pub(super) fn was_read(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A body that notes its end.
struct WatchedBody {
    stream: BodyDataStream,
    /// Bytes until the end, if the client announced them. Some readers do not ask for more after that.
    left: Option<u64>,
    ended: Arc<AtomicBool>,
}

impl Stream for WatchedBody {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let chunk = ready!(Pin::new(&mut self.stream).poll_next(cx));
        if let Some(Ok(bytes)) = &chunk {
            self.left = self.left.map(|left| left.saturating_sub(bytes.len() as u64));
        }
        if chunk.is_none() || self.left == Some(0) {
            self.ended.store(true, Ordering::Relaxed);
        }
        Poll::Ready(chunk)
    }
}
