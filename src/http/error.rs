//! The only place where an error becomes an HTTP response.

use std::any::Any;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{ACCEPT_ENCODING, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::coding::{self, UnsupportedCoding};
use super::dto::Problem;
use cutline_error::{Error, ErrorKind, panic_message};

/// The error response of a handler. The error stays in the extensions of the response until `observe`
/// has logged it and added the request id.
#[derive(Debug, Clone)]
pub(super) struct Failure(pub(super) Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

/// The message that hides internals from users of the server.
const INTERNAL: &str = "the server failed; try again, and if it fails again, report the request_id, \
                        which is also in the server's log";

impl IntoResponse for Failure {
    /// `observe` replaces the body later, because only it knows the request's id.
    fn into_response(self) -> Response {
        let mut response = Response::new(problem_body(&self.0, None));
        *response.status_mut() = status(self.0.kind());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = retry_seconds(&self.0) {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.0.kind() == ErrorKind::Unauthorized {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        let cause = std::error::Error::source(&self.0);
        if cause.is_some_and(|cause| cause.is::<UnsupportedCoding>()) {
            headers.insert(ACCEPT_ENCODING, coding::ACCEPTED);
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// The problem document as a body.
pub(super) fn problem_body(error: &Error, request_id: Option<&str>) -> Body {
    // Strings and numbers always serialise.
    serde_json::to_vec(&problem(error, request_id)).map_or_else(|_| Body::empty(), Body::from)
}

/// The problem document.
pub(super) fn problem<'a>(error: &'a Error, request_id: Option<&'a str>) -> Problem<'a> {
    let kind = error.kind();
    let status = status(kind);
    let hidden = status == StatusCode::INTERNAL_SERVER_ERROR;
    let code = if hidden { ErrorKind::Internal.code() } else { kind.code() };
    Problem {
        r#type: format!("urn:cutline:problem:{code}"),
        title: title(kind),
        status: status.as_u16(),
        detail: if hidden { INTERNAL } else { error.detail() },
        code,
        field: error.field().filter(|_| !hidden),
        request_id,
    }
}

/// The response to a request whose handler panicked.
pub(super) fn from_panic(payload: Box<dyn Any + Send>) -> Response {
    let message = panic_message(&*payload).unwrap_or("no message");
    Failure(Error::internal(format!("a handler panicked: {message}"))).into_response()
}

/// The status of every kind of error, as in the contract.
pub(super) fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::MalformedRequest | ErrorKind::ImageRequired => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound | ErrorKind::ModelNotFound => StatusCode::NOT_FOUND,
        ErrorKind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        ErrorKind::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
        ErrorKind::PhotoUnavailable => StatusCode::CONFLICT,
        ErrorKind::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
        ErrorKind::PreconditionRequired => StatusCode::PRECONDITION_REQUIRED,
        ErrorKind::StorageFull => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::ImageTooLarge | ErrorKind::BatchTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::UnsupportedFormat => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        // Not of the kind that clients repeat by themselves.
        ErrorKind::UndecodableImage
        | ErrorKind::FetchFailed
        | ErrorKind::InvalidParameter
        | ErrorKind::Unsupported => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorKind::Forbidden | ErrorKind::InsufficientScope | ErrorKind::OriginNotAllowed => {
            StatusCode::FORBIDDEN
        }
        ErrorKind::RateLimited | ErrorKind::QuotaExhausted | ErrorKind::QueueFull => {
            StatusCode::TOO_MANY_REQUESTS
        }
        ErrorKind::NotReady | ErrorKind::ShuttingDown | ErrorKind::LibraryBusy => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        ErrorKind::InferenceTimeout => StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::Config
        | ErrorKind::Model
        | ErrorKind::OutOfMemory
        | ErrorKind::DeviceLost
        | ErrorKind::Io
        | ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn title(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::MalformedRequest => "The request is malformed",
        ErrorKind::NotFound => "The address does not exist",
        ErrorKind::MethodNotAllowed => "The method is not allowed",
        ErrorKind::PreconditionFailed => "The state has changed",
        ErrorKind::PreconditionRequired => "The version is missing",
        ErrorKind::StorageFull => "The disk is full",
        ErrorKind::PhotoUnavailable => "The photo's file is not there",
        ErrorKind::LibraryBusy => "The library is busy",
        ErrorKind::ModelNotFound => "The model does not exist",
        ErrorKind::ImageRequired => "The image is missing",
        ErrorKind::Unsupported => "The model cannot do this",
        ErrorKind::RequestTimeout => "The request took too long to arrive",
        ErrorKind::ImageTooLarge => "The image is too large",
        ErrorKind::BatchTooLarge => "The batch is too large",
        ErrorKind::UnsupportedFormat => "The format is not supported",
        ErrorKind::UndecodableImage => "The image cannot be decoded",
        ErrorKind::FetchFailed => "The image cannot be fetched",
        ErrorKind::InvalidParameter => "A parameter is invalid",
        ErrorKind::Unauthorized => "An API key is missing",
        ErrorKind::Forbidden => "The API key is wrong",
        ErrorKind::InsufficientScope => "The API key is not for this",
        ErrorKind::OriginNotAllowed => "The web site is not allowed",
        ErrorKind::RateLimited => "Too many requests",
        ErrorKind::QuotaExhausted => "The budget is used up",
        ErrorKind::QueueFull => "The queue is full",
        ErrorKind::NotReady => "The server is not ready",
        ErrorKind::ShuttingDown => "The server is stopping",
        ErrorKind::InferenceTimeout => "The answer took too long",
        ErrorKind::Config
        | ErrorKind::Model
        | ErrorKind::OutOfMemory
        | ErrorKind::DeviceLost
        | ErrorKind::Io
        | ErrorKind::Internal => "The server failed",
    }
}

/// The value of `Retry-After`: whole seconds, and never 0, which would make clients retry at once.
pub(super) fn retry_seconds(error: &Error) -> Option<u64> {
    let after = retry_after(error)?;
    Some((after.as_secs() + u64::from(after.subsec_nanos() > 0)).max(1))
}

/// The contract promises `Retry-After` for these kinds, whether or not the error has a time.
fn retry_after(error: &Error) -> Option<Duration> {
    let promised = match error.kind() {
        ErrorKind::RateLimited | ErrorKind::QuotaExhausted | ErrorKind::QueueFull => {
            Some(Duration::from_secs(1))
        }
        ErrorKind::NotReady | ErrorKind::ShuttingDown | ErrorKind::LibraryBusy => {
            Some(Duration::from_secs(5))
        }
        _ => None,
    };
    error.retry_after().or(promised)
}
