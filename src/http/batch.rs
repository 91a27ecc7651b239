//! `POST /caption/batch`

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, Request, State};
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_stream::StreamExt;

use super::accept::prefers;
use super::contracts::names;
use super::dto::{BatchAnswer, BatchItem, BatchSummary, ItemResult};
use super::error::Failure;
use super::error::problem;
use super::extract::{self, UploadedImage, Uploads};
use super::generate::too_late;
use super::observe::{RequestId, StreamResult};
use super::openapi::bodies::{BatchForm, BatchRequest, CaptionQuery, RawImage, SQUARE};
use super::openapi::errors::BatchProblems;
use super::prompts::{Templates, resolved};
use super::state::AppState;
use crate::captioner::{Caption, CaptionStream, Captioner, Priority};
use crate::metrics::Metrics;
use cutline_error::{Error, Result};

const LINES: &str = "application/x-ndjson";

/// Captions many images
///
/// Results come together and in the order sent, or with `Accept: application/x-ndjson` one line each
/// as soon as it is ready. A bad image does not fail the others. The whole batch is queued at once
/// or refused.
#[utoipa::path(
    post,
    path = "/caption/batch",
    operation_id = "caption_batch",
    tag = "captions",
    params(CaptionQuery),
    request_body(content(
        (BatchForm = "multipart/form-data"),
        (BatchRequest = "application/json", example = json!({"images": [SQUARE], "num_beams": 3})),
        (inline(RawImage) = "image/*"),
        (inline(RawImage) = "application/octet-stream"),
    )),
    responses(
        (
            status = OK,
            description = "A result for every image",
            content((BatchAnswer = "application/json"), (BatchItem = "application/x-ndjson")),
        ),
        BatchProblems,
    ),
)]
pub(super) async fn batch(
    State(state): State<AppState>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, Failure> {
    // Before the body is read: a client that waits for `100 Continue` need not send it.
    let captioner = state.captioner()?;
    let settings = state.settings();
    let lines = prefers(request.headers(), LINES, "application/json");
    let templates = Templates::of(&state, &request);
    let mut uploads = extract::uploads(request, &state, captioner).await?;
    let model = uploads.params.model.take();
    uploads.params.model = names::check(model.as_deref(), &state, captioner)?;
    if uploads.params.stream {
        return Err(Failure(Error::parameter(
            "stream",
            "a batch does not stream words; leave stream out, and send Accept: \
             application/x-ndjson to get each result as soon as it is ready",
        )));
    }
    let metrics = state.metrics().clone();
    let results =
        Results::start(captioner, &templates, uploads, settings.request_timeout, metrics).await?;
    if lines { Ok(by_line(results, id)) } else { Ok(together(results, &id).await) }
}

/// The results as they become ready. Dropping it cancels the unfinished ones.
struct Results {
    /// Images that failed before they were queued.
    refused: Vec<(usize, Error)>,
    tasks: JoinSet<(usize, Result<Caption>)>,
    /// Unfinished images and their names.
    missing: BTreeMap<usize, Option<String>>,
    total: usize,
    metrics: Metrics,
}

/// One result.
struct BatchResult {
    index: usize,
    name: Option<String>,
    result: Result<Caption>,
}

impl Results {
    async fn start(
        captioner: &Captioner,
        templates: &Templates,
        uploads: Uploads,
        limit: Duration,
        metrics: Metrics,
    ) -> Result<Self> {
        let deadline = Instant::now() + limit;
        let total = uploads.items.len();
        let mut missing = BTreeMap::new();
        let mut refused = Vec::new();
        let (mut photos, mut places) = (Vec::new(), Vec::new());
        for (index, UploadedImage { name, photo }) in uploads.items.into_iter().enumerate() {
            missing.insert(index, name);
            match photo {
                Ok(photo) => {
                    photos.push(photo);
                    places.push(index);
                }
                Err(error) => refused.push((index, error)),
            }
        }
        let runs = Box::pin(async {
            if uploads.params.template.is_none() {
                return captioner.start_all(photos, uploads.params, Priority::Bulk).await;
            }
            let photos = resolved(templates, photos, uploads.params).await?;
            captioner.start_each(photos, Priority::Bulk).await
        });
        let runs = timeout_at(deadline, runs).await.map_err(|_| too_late(limit))??;
        let mut tasks = JoinSet::new();
        for (index, mut run) in places.into_iter().zip(runs) {
            tasks.spawn(async move {
                let result = end(&mut run, deadline, limit).await;
                (index, result)
            });
        }
        Ok(Self { refused, tasks, missing, total, metrics })
    }

    fn finished(&mut self, index: usize, result: Result<Caption>) -> BatchResult {
        if let Err(error) = &result {
            self.metrics.rejected(error.kind().code());
        }
        BatchResult { index, name: self.missing.remove(&index).flatten(), result }
    }
}

async fn end(run: &mut CaptionStream, deadline: Instant, limit: Duration) -> Result<Caption> {
    timeout_at(deadline, run.end()).await.unwrap_or_else(|_| Err(too_late(limit)))
}

impl Stream for Results {
    type Item = BatchResult;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<BatchResult>> {
        if let Some((index, error)) = self.refused.pop() {
            return Poll::Ready(Some(self.finished(index, Err(error))));
        }
        loop {
            return match ready!(self.tasks.poll_join_next(cx)) {
                Some(Ok((index, result))) => Poll::Ready(Some(self.finished(index, result))),
                // A task crashed. Its image is found at the end: it is still in `missing`.
                Some(Err(_)) => continue,
                None => {
                    let lost = self.missing.keys().next().copied();
                    let error = || Error::internal("the work on an image of a batch crashed");
                    Poll::Ready(lost.map(|index| self.finished(index, Err(error()))))
                }
            };
        }
    }
}

impl BatchResult {
    fn dto<'a>(&'a self, id: &'a RequestId) -> BatchItem<'a> {
        let result = match &self.result {
            Ok(caption) => ItemResult::Ok(caption),
            Err(error) => ItemResult::Error { error: problem(error, Some(&id.0)) },
        };
        BatchItem { index: self.index, name: self.name.as_deref(), result }
    }
}

/// All results, in order.
async fn together(mut results: Results, id: &RequestId) -> Response {
    let total = results.total;
    let mut all = Vec::with_capacity(total);
    while let Some(finished) = results.next().await {
        all.push(finished);
    }
    all.sort_unstable_by_key(|finished| finished.index);
    let ok = all.iter().filter(|finished| finished.result.is_ok()).count();
    Json(BatchAnswer {
        results: all.iter().map(|finished| finished.dto(id)).collect(),
        summary: BatchSummary { total, ok, failed: total - ok },
    })
    .into_response()
}

fn by_line(results: Results, id: RequestId) -> Response {
    let result = StreamResult::default();
    let mut missing = results.total;
    let of_lines = result.clone();
    let lines = results.map(move |finished| {
        missing = missing.saturating_sub(1);
        if missing == 0 {
            of_lines.completed(None);
        }
        // Strings and numbers always serialise.
        let mut line = serde_json::to_vec(&finished.dto(&id)).unwrap_or_default();
        line.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(line))
    });
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(LINES));
    response.extensions_mut().insert(result);
    response
}
