//! `POST /caption/generate` with `stream=true`: server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::dto::TextSoFar;
use super::error::problem;
use super::extract::Upload;
use super::generate::too_late;
use super::observe::{ImageReport, RequestId, StreamResult, name_backend};
use crate::captioner::{CaptionEvent, CaptionStream, Captioner};
use cutline_error::{Error, Result};

/// After this long without an event a comment is sent, so that no proxy takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Tells nginx not to buffer the events.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Answers with `token` events, then `done` with the whole answer or `error` with a problem.
///
/// # Errors
/// All errors before the image is queued, so that they are answered with their own status.
pub(super) async fn respond(
    captioner: &Captioner,
    upload: Upload,
    limit: Duration,
    id: RequestId,
) -> Result<Response> {
    let deadline = Instant::now() + limit;
    let start = Box::pin(async {
        let mut run = captioner.start(upload.photo, upload.params).await?;
        run.accepted().await?;
        Ok(run)
    });
    let run = timeout_at(deadline, start).await.map_err(|_| too_late(limit))??;
    let way = run.answered_by();
    let result = StreamResult::default();
    // A capacity of one: a slow reader slows the writer down.
    let (sender, events) = mpsc::channel(1);
    let writer = EventWriter { run, sender, deadline, limit, id, result: result.clone() };
    tokio::spawn(writer.run());
    let events = ReceiverStream::new(events).map(Ok::<_, Infallible>);
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    response.headers_mut().insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    if let Some(way) = &way {
        name_backend(&mut response, way);
    }
    response.extensions_mut().insert(result);
    Ok(response)
}

/// Writes the events of one caption.
struct EventWriter {
    run: CaptionStream,
    sender: mpsc::Sender<Event>,
    deadline: Instant,
    limit: Duration,
    id: RequestId,
    result: StreamResult,
}

impl EventWriter {
    /// Returns after the last event, or when the client disconnects, which cancels the caption.
    async fn run(mut self) {
        loop {
            let next = tokio::select! {
                () = self.sender.closed() => return,
                next = timeout_at(self.deadline, self.run.next()) => next,
            };
            let (event, last) = self.event(next.unwrap_or_else(|_| Err(too_late(self.limit))));
            if self.sender.send(event).await.is_err() || last {
                return;
            }
        }
    }

    /// The event for the client, and whether it is the last one.
    fn event(&self, next: Result<CaptionEvent>) -> (Event, bool) {
        let made = match &next {
            Ok(CaptionEvent::Text(text)) => {
                Event::default().event("token").json_data(TextSoFar { text })
            }
            Ok(CaptionEvent::Done(caption)) => {
                self.result.completed(Some(ImageReport::of(caption)));
                Event::default().event("done").json_data(caption)
            }
            Err(error) => {
                self.result.failed(error.clone());
                self.error(error)
            }
        };
        let last = !matches!(next, Ok(CaptionEvent::Text(_)));
        match made {
            Ok(event) => (event, last),
            Err(error) => {
                let error = Error::internal("an event cannot be written").with_source(error);
                self.result.failed(error.clone());
                // Strings and numbers always serialise.
                (self.error(&error).unwrap_or_default(), true)
            }
        }
    }

    fn error(&self, error: &Error) -> Result<Event, axum::Error> {
        Event::default().event("error").json_data(problem(error, Some(&self.id.0)))
    }
}
