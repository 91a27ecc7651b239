//! The captions that a connection is waiting for.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use super::entrance::InProgress;
use super::events::RealtimeEvent;
use super::outbox::{Left, Outbox};
use crate::accounts::Visit;
use crate::captioner::{Caption, CaptionEvent, CaptionParams, Captioner, Photo};
use crate::fetch::Fetcher;
use crate::http::generate::too_late;
use crate::http::observe::MessageLog;
use crate::http::prompts::Templates;
use cutline_error::{Error, Result};

/// The requests in progress by their ids. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Requests(Arc<Running>);

#[derive(Debug, Default)]
struct Running {
    tasks: Mutex<HashMap<String, JoinHandle<()>>>,
    /// Tasks that may still send something.
    unfinished: AtomicUsize,
    ended: Notify,
}

/// A task that may still send something.
struct Unfinished(Arc<Running>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.0.unfinished.fetch_sub(1, Ordering::Relaxed);
        self.0.ended.notify_one();
    }
}

impl Requests {
    /// Requests whose last event is not on its way.
    pub(super) fn len(&self) -> usize {
        self.0.tasks.lock().len()
    }

    /// Whether all events are on their way.
    pub(super) fn is_finished(&self) -> bool {
        self.0.unfinished.load(Ordering::Relaxed) == 0
    }

    pub(super) fn contains(&self, id: &str) -> bool {
        self.0.tasks.lock().contains_key(id)
    }

    /// Runs `request` until it has an answer.
    pub(super) fn start(&self, request: CaptionRequest) {
        let (id, span) = (request.id.clone(), request.log.span());
        // The lock keeps the task from ending before it is in the map.
        let mut tasks = self.0.tasks.lock();
        self.0.unfinished.fetch_add(1, Ordering::Relaxed);
        let (unfinished, requests) = (Unfinished(Arc::clone(&self.0)), self.clone());
        let work = async move {
            let _unfinished = unfinished;
            request.run(&requests).await;
        };
        let task = tokio::spawn(work.instrument(span));
        tasks.insert(id, task);
    }

    /// Drops the request with this id. Afterwards it sends nothing.
    ///
    /// Returns whether there was one.
    pub(super) async fn cancel(&self, id: &str) -> bool {
        let Some(task) = self.remove(id) else { return false };
        task.abort();
        let _ = task.await;
        true
    }

    /// Drops all requests.
    pub(super) fn cancel_all(&self) {
        self.0.tasks.lock().drain().for_each(|(_, task)| task.abort());
    }

    /// Waits until a task has finished since the last call.
    pub(super) async fn ended(&self) {
        self.0.ended.notified().await;
    }

    fn remove(&self, id: &str) -> Option<JoinHandle<()>> {
        self.0.tasks.lock().remove(id)
    }
}

/// The image of a request.
pub(super) enum Source {
    /// It came with the message.
    Sent(Photo),
    /// It is fetched from this address, which takes a part of the time for the answer.
    At(String, Fetcher),
}

/// A caption for a client that reads its events.
pub(super) struct CaptionRequest {
    pub(super) id: String,
    pub(super) source: Source,
    pub(super) params: CaptionParams,
    pub(super) captioner: Captioner,
    pub(super) templates: Templates,
    /// For a key that is limited in its requests at a time.
    pub(super) visit: Option<Visit>,
    /// Time for the answer.
    pub(super) limit: Duration,
    pub(super) log: MessageLog,
    pub(super) outbox: Outbox,
    pub(super) progress: InProgress,
}

/// Why a request has no caption.
enum Failed {
    Error(Error),
    Left,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Left> for Failed {
    fn from(_: Left) -> Self {
        Self::Left
    }
}

impl CaptionRequest {
    async fn run(self, requests: &Requests) {
        let Self { id, source, params, captioner, templates, visit, limit, log, outbox, progress } =
            self;
        let events = Events { id: &id, outbox: &outbox, limit, deadline: Instant::now() + limit };
        let result = match events.send_all(&captioner, &templates, source, params).await {
            Ok(caption) => Ok(caption),
            Err(Failed::Error(error)) => Err(error),
            Err(Failed::Left) => return,
        };
        // Before the last event, so that the client may use the id again as soon as it has read it.
        if requests.remove(&id).is_none() {
            return;
        }
        drop(visit);
        let event = match &result {
            Ok(caption) => {
                RealtimeEvent::Done { id: &id, request_id: log.request_id(), result: caption }
            }
            Err(error) => RealtimeEvent::error(Some(&id), error, Some(log.request_id())),
        };
        if outbox.last(&event, progress).await.is_ok() {
            log.finish(&result);
        }
    }
}

/// Sends the events of one request.
struct Events<'a> {
    id: &'a str,
    outbox: &'a Outbox,
    limit: Duration,
    deadline: Instant,
}

impl Events<'_> {
    /// Sends all events but the last one.
    async fn send_all(
        &self,
        captioner: &Captioner,
        templates: &Templates,
        source: Source,
        params: CaptionParams,
    ) -> Result<Caption, Failed> {
        let (id, wants_text) = (self.id, params.stream);
        let photo = match source {
            Source::Sent(photo) => photo,
            Source::At(url, fetcher) => {
                self.in_time(fetcher.fetch(&url, captioner.budget())).await?
            }
        };
        let (photo, params) = self.in_time(Box::pin(templates.one(photo, params))).await?;
        // Boxed: this future is large, and every future around it would be as well.
        let mut run = self.in_time(Box::pin(captioner.start(photo, params))).await?;
        self.in_time(run.accepted()).await?;
        if !run.is_cached() {
            if !run.has_started() {
                let position = captioner.status().queue_depth.max(1);
                self.outbox.event(&RealtimeEvent::Queued { id, position }).await?;
                self.in_time(run.started()).await?;
            }
            self.outbox.event(&RealtimeEvent::Started { id }).await?;
        }
        loop {
            match self.in_time(run.next()).await? {
                CaptionEvent::Text(text) if wants_text => {
                    self.outbox.event(&RealtimeEvent::Token { id, text: &text }).await?;
                }
                CaptionEvent::Text(_) => {}
                CaptionEvent::Done(caption) => return Ok(*caption),
            }
        }
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        timeout_at(self.deadline, work).await.unwrap_or_else(|_| Err(too_late(self.limit)))
    }
}
