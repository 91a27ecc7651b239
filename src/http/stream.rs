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
use super::observe::{Ending, Outcome, RequestId};
use crate::captioner::{CaptionEvent, CaptionStream, Captioner};
use cutline_error::{Error, Result};

/// A comment is sent when there is nothing else to send for so long, so that nothing on the way
/// takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Asks nginx not to gather the events.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Answers with `token` events, then `done` with the whole answer or `error` with a problem.
///
/// # Errors
/// Whatever is known to be wrong before the image is in the queue: that has a status of its own.
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
    let ending = Ending::default();
    // Room for one: a client that reads slowly is written to slowly.
    let (sender, events) = mpsc::channel(1);
    let talk = Talk { run, sender, deadline, limit, id, ending: ending.clone() };
    tokio::spawn(talk.run());
    let events = ReceiverStream::new(events).map(Ok::<_, Infallible>);
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    response.headers_mut().insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response.extensions_mut().insert(ending);
    Ok(response)
}

/// One answer on its way to the client.
struct Talk {
    run: CaptionStream,
    sender: mpsc::Sender<Event>,
    deadline: Instant,
    limit: Duration,
    id: RequestId,
    ending: Ending,
}

impl Talk {
    /// Ends after the last event, or when the client has gone, which drops the run.
    async fn run(mut self) {
        loop {
            let news = tokio::select! {
                () = self.sender.closed() => return,
                news = timeout_at(self.deadline, self.run.next()) => news,
            };
            let (event, last) = self.event(news.unwrap_or_else(|_| Err(too_late(self.limit))));
            if self.sender.send(event).await.is_err() || last {
                return;
            }
        }
    }

    /// The event for the client, and whether it is the last one.
    fn event(&self, news: Result<CaptionEvent>) -> (Event, bool) {
        let made = match &news {
            Ok(CaptionEvent::Text(text)) => {
                Event::default().event("token").json_data(TextSoFar { text })
            }
            Ok(CaptionEvent::Done(caption)) => {
                self.ending.answered(Some(Outcome::of(caption)));
                Event::default().event("done").json_data(caption)
            }
            Err(error) => {
                self.ending.failed(error.clone());
                self.error(error)
            }
        };
        let last = !matches!(news, Ok(CaptionEvent::Text(_)));
        match made {
            Ok(event) => (event, last),
            Err(error) => {
                let error = Error::internal("an event cannot be written").with_source(error);
                self.ending.failed(error.clone());
                // Strings and numbers always serialise.
                (self.error(&error).unwrap_or_default(), true)
            }
        }
    }

    fn error(&self, error: &Error) -> Result<Event, axum::Error> {
        Event::default().event("error").json_data(problem(error, Some(&self.id.0)))
    }
}
