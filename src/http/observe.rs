//! What every request gets: an id, a place in the count of active requests, one line in the log,
//! `server-timing`, and its id in the problem document.

use std::error::Error as _;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use futures_core::Stream;
use tracing::field::Empty;
use tracing::{Instrument, Span};
use uuid::Uuid;

use super::connection::{Busy, Connection};
use super::error::{Failure, problem_body};
use super::state::{Active, AppState};
use crate::captioner::{CacheState, Caption, ProcessTimings, ProcessedImage, Timings};
use crate::metrics::{Metrics, milliseconds};
use crate::telemetry;
use cutline_error::Error;

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(super) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Longest id that is taken over from a request.
const MAX_ID: usize = 128;

/// What the log and `server-timing` say of an answered image. Rides in the answer's extensions.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    image_hash: String,
    caption_length: Option<usize>,
    cache: Option<CacheState>,
    batch_size: Option<usize>,
    /// The stages in their order, in milliseconds.
    stages: Vec<(&'static str, f64)>,
}

impl Outcome {
    /// What may be logged of `caption`: not its text.
    pub(super) fn of(caption: &Caption) -> Self {
        let Timings { decode_ms, queue_ms, inference_ms, .. } = caption.timings;
        Self {
            image_hash: caption.image.hash.clone(),
            caption_length: Some(caption.caption.chars().count()),
            cache: Some(caption.cache),
            batch_size: caption.batch_size,
            stages: vec![("decode", decode_ms), ("queue", queue_ms), ("inference", inference_ms)],
        }
    }

    /// What may be logged of an image that was looked at without the model.
    pub(super) fn of_processed(image: &ProcessedImage) -> Self {
        let ProcessTimings { decode_ms, analysis_ms, .. } = image.timings;
        Self {
            image_hash: image.image.info.hash.clone(),
            caption_length: None,
            cache: None,
            batch_size: None,
            stages: vec![("decode", decode_ms), ("analysis", analysis_ms)],
        }
    }
}

/// The request's id. Rides in the request's extensions, for answers that quote it in their middle.
#[derive(Debug, Clone)]
pub(super) struct RequestId(pub(super) String);

/// How an answer of many parts ended. Rides in the answer's extensions; whoever writes the parts
/// keeps a clone and says how it ended before the last one.
#[derive(Debug, Clone, Default)]
pub(super) struct Ending(Arc<OnceLock<(Option<Outcome>, Option<Failure>)>>);

impl Ending {
    /// All of it is written.
    pub(super) fn answered(&self, outcome: Option<Outcome>) {
        let _ = self.0.set((outcome, None));
    }

    /// The last part says that it failed.
    pub(super) fn failed(&self, error: Error) {
        let _ = self.0.set((None, Some(Failure(error))));
    }
}

/// The outermost layer.
pub(super) async fn observe(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    let active = state.enter();
    let connection = request.extensions().get::<ConnectInfo<Connection>>().map(|c| c.0.clone());
    let busy = connection.as_ref().map(Connection::busy);
    let has_body = has_body(request.headers());
    let line = Line::begin(&request, state.metrics().clone());
    request.extensions_mut().insert(RequestId(line.request_id.clone()));

    let mut response = next.run(request).instrument(line.span.clone()).await;

    let failed = response.status().is_client_error() || response.status().is_server_error();
    if let Some(connection) = connection.filter(|_| failed && has_body) {
        connection.linger();
    }
    match response.extensions_mut().remove::<Ending>() {
        Some(ending) => line.follow(response, ending, active, busy),
        None => {
            line.finish(&mut response);
            response
        }
    }
}

/// A body of many parts: the request lasts until the last one, or until the client has gone.
struct Followed {
    body: BodyDataStream,
    ending: Ending,
    status: u16,
    line: Line,
    _active: Active,
    _busy: Option<Busy>,
}

impl Stream for Followed {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let part = ready!(Pin::new(&mut self.body).poll_next(cx));
        if part.is_none() {
            self.write();
        }
        Poll::Ready(part)
    }
}

impl Followed {
    /// The log line, unless it is written, or there is no end yet.
    fn write(&mut self) {
        let ending = self.ending.clone();
        if let Some((outcome, failure)) = ending.0.get().filter(|_| !self.line.written) {
            let elapsed = self.line.begin.elapsed();
            self.line.write(self.status, elapsed, outcome.as_ref(), failure.as_ref());
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        // The connection may drop a body whose last part it has without asking for another.
        self.write();
    }
}

fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING)
        || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0")
}

/// The log line of one request. Dropped before [`finish`](Self::finish) it says that the client
/// left.
struct Line {
    begin: Instant,
    request_id: String,
    method: Method,
    route: String,
    metrics: Metrics,
    /// The request in a trace; it ends with the line.
    span: Span,
    written: bool,
}

impl Line {
    fn begin(request: &Request, metrics: Metrics) -> Self {
        // The pattern, not the address: addresses are the clients' to invent.
        let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        let route = route.unwrap_or("unmatched").to_owned();
        let request_id = request_id(request.headers());
        let span = tracing::info_span!(
            target: "trace",
            "request",
            otel.kind = "server",
            http.route = route,
            http.request.method = request.method().as_str(),
            http.response.status_code = Empty,
            otel.status_code = Empty,
            request_id,
        );
        let parent = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
        telemetry::follow(&span, parent);
        Self {
            begin: Instant::now(),
            request_id,
            method: request.method().clone(),
            route,
            metrics,
            span,
            written: false,
        }
    }

    fn finish(mut self, response: &mut Response) {
        let failure = response.extensions_mut().remove::<Failure>();
        let outcome = response.extensions_mut().remove::<Outcome>();
        let elapsed = self.begin.elapsed();
        if let Some(Failure(error)) = &failure {
            *response.body_mut() = problem_body(error, Some(&self.request_id));
            // Of the body without the id.
            response.headers_mut().remove(CONTENT_LENGTH);
        }
        self.head(response, outcome.as_ref(), elapsed);
        self.write(response.status().as_u16(), elapsed, outcome.as_ref(), failure.as_ref());
    }

    /// The headers at once, the line when the body has ended.
    fn follow(
        self,
        mut response: Response,
        ending: Ending,
        active: Active,
        busy: Option<Busy>,
    ) -> Response {
        self.head(&mut response, None, self.begin.elapsed());
        let status = response.status().as_u16();
        response.map(|body| {
            let body = body.into_data_stream();
            let line = self;
            let followed = Followed { body, ending, status, line, _active: active, _busy: busy };
            Body::from_stream(followed)
        })
    }

    fn head(&self, response: &mut Response, outcome: Option<&Outcome>, elapsed: Duration) {
        let timing = server_timing(outcome, elapsed);
        for (name, value) in [(REQUEST_ID, &self.request_id), (SERVER_TIMING, &timing)] {
            // Both are visible ASCII.
            if let Ok(value) = HeaderValue::from_str(value) {
                response.headers_mut().insert(name, value);
            }
        }
    }

    fn count(&self, status: u16, elapsed: Duration, failure: Option<&Failure>) {
        self.metrics.request(&self.route, status, elapsed);
        // A probe that is told to wait is no work that was refused.
        let probe = self.route.starts_with("/health");
        if let Some(Failure(error)) = failure.filter(|_| !probe) {
            self.metrics.rejected(error.kind().code());
        }
    }

    fn write(
        &mut self,
        status: u16,
        elapsed: Duration,
        outcome: Option<&Outcome>,
        failure: Option<&Failure>,
    ) {
        self.written = true;
        self.span.record("http.response.status_code", status);
        if status >= 500 {
            self.span.record("otel.status_code", "ERROR");
        }
        self.count(status, elapsed, failure);
        let cause = failure.filter(|_| status >= 500).map(|failure| causes(&failure.0));
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    duration_ms = milliseconds(elapsed),
                    image_hash = outcome.map(|outcome| outcome.image_hash.as_str()),
                    caption_length = outcome.and_then(|outcome| outcome.caption_length),
                    request_id = self.request_id,
                    method = self.method.as_str(),
                    route = self.route,
                    status,
                    cache = outcome.and_then(|outcome| outcome.cache).map(CacheState::as_str),
                    batch_size = outcome.and_then(|outcome| outcome.batch_size),
                    code = failure.map(|failure| failure.0.kind().code()),
                    error = cause.as_deref(),
                    "request"
                )
            };
        }
        match StatusCode::from_u16(status) {
            Ok(StatusCode::INTERNAL_SERVER_ERROR) => line!(error),
            Ok(
                StatusCode::TOO_MANY_REQUESTS
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT,
            ) => line!(warn),
            _ => line!(info),
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.written {
            // nginx's status for a client that closed the connection; nobody receives it.
            self.write(499, self.begin.elapsed(), None, None);
        }
    }
}

/// The client's id if it can stand in a header and a log, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    headers
        .get(REQUEST_ID)
        .map(HeaderValue::as_bytes)
        .filter(|id| (1..=MAX_ID).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic))
        .and_then(|id| std::str::from_utf8(id).ok())
        .map_or_else(|| Uuid::now_v7().to_string(), str::to_owned)
}

fn server_timing(outcome: Option<&Outcome>, elapsed: Duration) -> String {
    let mut value = String::new();
    for (stage, spent) in outcome.iter().flat_map(|outcome| &outcome.stages) {
        // Writing to a string cannot fail.
        let _ = write!(value, "{stage};dur={spent}, ");
    }
    let _ = write!(value, "total;dur={}", milliseconds(elapsed));
    value
}

/// The error and what it was caused by, for the log.
fn causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let _ = write!(text, ": {next}");
        cause = next.source();
    }
    text
}
