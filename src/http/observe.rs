//! The outermost layer: gives every request an id, counts it, writes its log line and its
//! `server-timing`, and puts the id into problem documents.

use std::error::Error as _;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use axum::middleware::Next;
use axum::response::Response;
use futures_core::Stream;
use tracing::field::Empty;
use tracing::{Instrument, Span};
use uuid::Uuid;

use super::connection::{BusyGuard, Connection};
use super::contracts::Contract;
use super::contracts::error::{contract_status, shape};
use super::error::{Failure, status};
use super::state::{ActiveRequest, AppState};
use super::unread::BodyEnd;
use crate::captioner::{
    CacheState, Caption, ImageInfo, ProcessTimings, ProcessedImage, TagTimings, Tagged, Timings,
};
use crate::metrics::{Metrics, milliseconds};
use crate::telemetry;
use cutline_error::Error;

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(super) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
/// The backend of a route that answered.
const BACKEND: HeaderName = HeaderName::from_static("x-cutline-backend");
/// Requests to backends.
const ATTEMPTS: HeaderName = HeaderName::from_static("x-cutline-attempts");

/// Maximum length of an id that a client may choose.
const MAX_ID: usize = 128;

/// Data about a processed image for the log and `server-timing`; an extension of the response.
#[derive(Debug, Clone)]
pub(super) struct ImageReport {
    image_hash: String,
    caption_length: Option<usize>,
    cache: Option<CacheState>,
    batch_size: Option<usize>,
    /// The backend that answered, and the number of attempts, if a route was asked.
    routing: Option<(String, u32)>,
    /// The stages in order, in milliseconds.
    stages: Vec<(&'static str, f64)>,
}

impl ImageReport {
    /// The loggable facts of `caption`: not its text.
    pub(super) fn of(caption: &Caption) -> Self {
        let Timings { decode_ms, queue_ms, inference_ms, .. } = caption.timings;
        Self {
            image_hash: caption.image.hash.clone(),
            caption_length: Some(caption.caption.chars().count()),
            cache: Some(caption.cache),
            batch_size: caption.batch_size,
            routing: caption.routing.as_ref().map(|way| (way.backend.clone(), way.attempts)),
            stages: vec![("decode", decode_ms), ("queue", queue_ms), ("inference", inference_ms)],
        }
    }

    /// The backend of a route that answered.
    fn backend(&self) -> Option<&str> {
        self.routing.as_ref().map(|(backend, _)| backend.as_str())
    }

    /// The loggable facts of an image that was tagged: not its tags.
    pub(super) fn of_tagged(tagged: &Tagged) -> Self {
        let TagTimings { caption_ms, ranking_ms, .. } = tagged.timings;
        Self {
            image_hash: tagged.image.hash.clone(),
            caption_length: tagged.caption.as_ref().map(|caption| caption.chars().count()),
            cache: None,
            batch_size: None,
            routing: None,
            stages: vec![("caption", caption_ms), ("ranking", ranking_ms)],
        }
    }

    /// The loggable facts of an image that was compared with texts, or asked about.
    pub(super) fn of_image(image: &ImageInfo) -> Self {
        Self {
            image_hash: image.hash.clone(),
            caption_length: None,
            cache: None,
            batch_size: None,
            routing: None,
            stages: Vec::new(),
        }
    }

    /// The loggable facts of an image that was processed without the model.
    pub(super) fn of_processed(image: &ProcessedImage) -> Self {
        let ProcessTimings { decode_ms, analysis_ms, .. } = image.timings;
        Self {
            image_hash: image.image.info.hash.clone(),
            caption_length: None,
            cache: None,
            batch_size: None,
            routing: None,
            stages: vec![("decode", decode_ms), ("analysis", analysis_ms)],
        }
    }
}

/// The request's id; an extension of the request, for responses that contain it in their body.
#[derive(Debug, Clone)]
pub(super) struct RequestId(pub(super) String);

/// The result of a streamed response, an extension of it. The writer of the stream keeps a clone and
/// sets the result before the last part.
#[derive(Debug, Clone, Default)]
pub(super) struct StreamResult(Arc<OnceLock<(Option<ImageReport>, Option<Failure>)>>);

impl StreamResult {
    /// The stream is complete.
    pub(super) fn completed(&self, report: Option<ImageReport>) {
        let _ = self.0.set((report, None));
    }

    /// The stream ends with an error.
    pub(super) fn failed(&self, error: Error) {
        let _ = self.0.set((None, Some(Failure(error))));
    }
}

/// The layer itself.
pub(super) async fn observe(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let active = state.enter();
    let (mut request, body) = BodyEnd::watch(request);
    let connection = request.extensions().get::<ConnectInfo<Connection>>().map(|c| c.0.clone());
    let busy = connection.as_ref().map(Connection::begin_request);
    let has_body = has_body(request.headers());
    // HTTP/2 ends a request without its connection.
    let multiplexed = request.version() == Version::HTTP_2;
    let log = RequestLog::begin(&request, state.metrics().clone());
    request.extensions_mut().insert(RequestId(log.request_id.clone()));

    let mut response = next.run(request).instrument(log.span.clone()).await;

    let failed = response.status().is_client_error() || response.status().is_server_error();
    if let Some(connection) = connection.filter(|_| failed && has_body) {
        connection.linger();
    }
    // While the server stops, the client's next request needs a new connection, and so finds another
    // server.
    let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if !upgraded && !multiplexed && (!body.was_read() || state.draining()) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    match response.extensions_mut().remove::<StreamResult>() {
        Some(result) => log.follow(response, result, active, busy),
        None => {
            log.finish(&mut response);
            response
        }
    }
}

/// A streamed body. Its request lasts until the last part, or until the client disconnects.
struct ObservedBody {
    body: BodyDataStream,
    result: StreamResult,
    status: u16,
    log: RequestLog,
    _active: ActiveRequest,
    _busy: Option<BusyGuard>,
}

impl Stream for ObservedBody {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let part = ready!(Pin::new(&mut self.body).poll_next(cx));
        if part.is_none() {
            self.write();
        }
        Poll::Ready(part)
    }
}

impl ObservedBody {
    /// Writes the log line once the result is known, unless it is written already.
    fn write(&mut self) {
        let result = self.result.clone();
        if let Some((report, failure)) = result.0.get().filter(|_| !self.log.written) {
            let elapsed = self.log.begin.elapsed();
            self.log.write(self.status, elapsed, report.as_ref(), failure.as_ref());
        }
    }
}

impl Drop for ObservedBody {
    fn drop(&mut self) {
        // After the last part, the connection may drop the body without polling it again.
        self.write();
    }
}

fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING)
        || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0")
}

/// The log line, metrics and trace span of one request. If it is dropped before
/// [`finish`](Self::finish), the client has disconnected.
struct RequestLog {
    begin: Instant,
    request_id: String,
    method: Method,
    contract: Contract,
    route: String,
    metrics: Metrics,
    /// The span of the request in a trace; it ends with this value.
    span: Span,
    written: bool,
}

/// The log line, metrics and trace span of a request that is a message of a connection. If it is dropped
/// before [`finish`](Self::finish), the client has disconnected or cancelled the request.
pub(super) struct MessageLog(RequestLog);

impl MessageLog {
    /// Begins with a message to `route` whose first bytes arrived at `begin`.
    pub(super) fn begin(route: &'static str, begin: Instant, metrics: Metrics) -> Self {
        let request_id = Uuid::now_v7().to_string();
        let span = request_span(route, &Method::GET, &request_id);
        let route = route.to_owned();
        let method = Method::GET;
        let contract = Contract::Realtime;
        Self(RequestLog {
            begin,
            request_id,
            method,
            contract,
            route,
            metrics,
            span,
            written: false,
        })
    }

    pub(super) fn request_id(&self) -> &str {
        &self.0.request_id
    }

    pub(super) fn span(&self) -> Span {
        self.0.span.clone()
    }

    /// Writes the line of a request with this result.
    pub(super) fn finish(mut self, result: &Result<Caption, Error>) {
        let elapsed = self.0.begin.elapsed();
        match result {
            Ok(caption) => self.0.write(200, elapsed, Some(&ImageReport::of(caption)), None),
            Err(error) => {
                let status = status(error.kind()).as_u16();
                self.0.write(status, elapsed, None, Some(&Failure(error.clone())));
            }
        }
    }
}

/// Says which backend of a route answered.
pub(super) fn name_backend(response: &mut Response, (backend, attempts): &(String, u32)) {
    let headers = response.headers_mut();
    // The names in a file of routes are visible ASCII.
    if let Ok(backend) = HeaderValue::from_str(backend) {
        headers.insert(BACKEND, backend);
    }
    headers.insert(ATTEMPTS, HeaderValue::from(*attempts));
}

fn request_span(route: &str, method: &Method, request_id: &str) -> Span {
    tracing::info_span!(
        target: "trace",
        "request",
        otel.kind = "server",
        http.route = route,
        http.request.method = method.as_str(),
        http.response.status_code = Empty,
        otel.status_code = Empty,
        request_id,
    )
}

impl RequestLog {
    fn begin(request: &Request, metrics: Metrics) -> Self {
        // The pattern, not the path: clients can invent any number of paths.
        let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        let route = route.unwrap_or("unmatched").to_owned();
        let request_id = request_id(request.headers());
        let span = request_span(&route, request.method(), &request_id);
        let parent = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
        telemetry::follow(&span, parent);
        Self {
            begin: Instant::now(),
            request_id,
            method: request.method().clone(),
            contract: contract(request),
            route,
            metrics,
            span,
            written: false,
        }
    }

    fn finish(mut self, response: &mut Response) {
        let failure = response.extensions_mut().remove::<Failure>();
        let report = response.extensions_mut().remove::<ImageReport>();
        let elapsed = self.begin.elapsed();
        if let Some(Failure(error)) = &failure {
            shape(self.contract, response, error, &self.request_id);
        }
        self.head(response, report.as_ref(), elapsed);
        // gRPC has a status of its own, behind 200.
        let status = match &failure {
            Some(Failure(error)) => contract_status(self.contract, error.kind()),
            None => response.status(),
        };
        self.write(status.as_u16(), elapsed, report.as_ref(), failure.as_ref());
    }

    /// Sets the headers at once, and writes the line when the body has ended.
    fn follow(
        self,
        mut response: Response,
        result: StreamResult,
        active: ActiveRequest,
        busy: Option<BusyGuard>,
    ) -> Response {
        self.head(&mut response, None, self.begin.elapsed());
        let status = response.status().as_u16();
        response.map(|body| {
            let body = body.into_data_stream();
            let log = self;
            let observed = ObservedBody { body, result, status, log, _active: active, _busy: busy };
            Body::from_stream(observed)
        })
    }

    fn head(&self, response: &mut Response, report: Option<&ImageReport>, elapsed: Duration) {
        if let Some(way) = report.and_then(|report| report.routing.as_ref()) {
            name_backend(response, way);
        }
        let timing = server_timing(report, elapsed);
        for (name, value) in [(REQUEST_ID, &self.request_id), (SERVER_TIMING, &timing)] {
            // Both are visible ASCII.
            if let Ok(value) = HeaderValue::from_str(value) {
                response.headers_mut().insert(name, value);
            }
        }
    }

    fn count(&self, status: u16, elapsed: Duration, failure: Option<&Failure>) {
        self.metrics.request(self.contract.as_str(), &self.route, status, elapsed);
        // A probe that reports an unready server is not refused work.
        let probe = ["/health", "/v2/health"].iter().any(|path| self.route.starts_with(path));
        if let Some(Failure(error)) = failure.filter(|_| !probe) {
            self.metrics.rejected(error.kind().code());
        }
    }

    fn write(
        &mut self,
        status: u16,
        elapsed: Duration,
        report: Option<&ImageReport>,
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
                    image_hash = report.map(|report| report.image_hash.as_str()),
                    caption_length = report.and_then(|report| report.caption_length),
                    request_id = self.request_id,
                    method = self.method.as_str(),
                    route = self.route,
                    status,
                    cache = report.and_then(|report| report.cache).map(CacheState::as_str),
                    batch_size = report.and_then(|report| report.batch_size),
                    contract = self.contract.as_str(),
                    backend = report.and_then(ImageReport::backend),
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

impl Drop for RequestLog {
    fn drop(&mut self) {
        if !self.written {
            // nginx's status for a client that disconnected; it is never sent.
            self.write(499, self.begin.elapsed(), None, None);
        }
    }
}

/// The contract of a request: that of its port, or else that of its address.
fn contract(request: &Request) -> Contract {
    let of_port = request.extensions().get::<Contract>().copied();
    of_port.unwrap_or_else(|| Contract::of(request.method(), request.uri().path()))
}

/// The client's id if it is safe in a header and a log, otherwise a new one.
fn request_id(headers: &HeaderMap) -> String {
    headers
        .get(REQUEST_ID)
        .map(HeaderValue::as_bytes)
        .filter(|id| (1..=MAX_ID).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic))
        .and_then(|id| std::str::from_utf8(id).ok())
        .map_or_else(|| Uuid::now_v7().to_string(), str::to_owned)
}

fn server_timing(report: Option<&ImageReport>, elapsed: Duration) -> String {
    let mut value = String::new();
    for (stage, spent) in report.iter().flat_map(|report| &report.stages) {
        // Writing to a string cannot fail.
        let _ = write!(value, "{stage};dur={spent}, ");
    }
    let _ = write!(value, "total;dur={}", milliseconds(elapsed));
    value
}

/// The error and its causes, for the log.
fn causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let _ = write!(text, ": {next}");
        cause = next.source();
    }
    text
}
