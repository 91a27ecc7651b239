//! The status of a call that failed: headers without a body.

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::wire::{GRPC, STATUS};
use crate::http::error::problem;
use cutline_error::{Error, ErrorKind};

const MESSAGE: &str = "grpc-message";

/// What must be encoded in a message: everything but printable ASCII, and the percent sign.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// Turns an error response into one of gRPC. Its other headers remain, as metadata.
pub(in crate::http) fn set(response: &mut Response, error: &Error) {
    *response.status_mut() = StatusCode::OK;
    *response.body_mut() = Body::empty();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, GRPC);
    headers.insert(STATUS, HeaderValue::from(code(error.kind())));
    let message = utf8_percent_encode(problem(error, None).detail, ENCODED).to_string();
    if let Ok(message) = HeaderValue::from_str(&message) {
        headers.insert(MESSAGE, message);
    }
}

/// gRPC's number for a kind of error.
fn code(kind: ErrorKind) -> u16 {
    const INVALID_ARGUMENT: u16 = 3;
    const DEADLINE_EXCEEDED: u16 = 4;
    const NOT_FOUND: u16 = 5;
    const PERMISSION_DENIED: u16 = 7;
    const RESOURCE_EXHAUSTED: u16 = 8;
    const FAILED_PRECONDITION: u16 = 9;
    const UNIMPLEMENTED: u16 = 12;
    const INTERNAL: u16 = 13;
    const UNAVAILABLE: u16 = 14;
    const UNAUTHENTICATED: u16 = 16;
    match kind {
        ErrorKind::MalformedRequest
        | ErrorKind::ImageRequired
        | ErrorKind::ImageTooLarge
        | ErrorKind::BatchTooLarge
        | ErrorKind::UnsupportedFormat
        | ErrorKind::UndecodableImage
        | ErrorKind::FetchFailed
        | ErrorKind::InvalidParameter
        | ErrorKind::Unsupported => INVALID_ARGUMENT,
        ErrorKind::RequestTimeout | ErrorKind::InferenceTimeout => DEADLINE_EXCEEDED,
        ErrorKind::ModelNotFound => NOT_FOUND,
        ErrorKind::Forbidden | ErrorKind::InsufficientScope | ErrorKind::OriginNotAllowed => {
            PERMISSION_DENIED
        }
        ErrorKind::PreconditionFailed
        | ErrorKind::PreconditionRequired
        | ErrorKind::PhotoUnavailable => FAILED_PRECONDITION,
        ErrorKind::RateLimited
        | ErrorKind::QuotaExhausted
        | ErrorKind::QueueFull
        | ErrorKind::StorageFull => RESOURCE_EXHAUSTED,
        ErrorKind::NotFound | ErrorKind::MethodNotAllowed => UNIMPLEMENTED,
        ErrorKind::NotReady | ErrorKind::ShuttingDown | ErrorKind::LibraryBusy => UNAVAILABLE,
        ErrorKind::Unauthorized => UNAUTHENTICATED,
        ErrorKind::Config
        | ErrorKind::Model
        | ErrorKind::OutOfMemory
        | ErrorKind::DeviceLost
        | ErrorKind::Io
        | ErrorKind::Internal => INTERNAL,
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;
    use crate::http::error::Failure;

    #[test]
    fn an_error_is_a_number_and_an_encoded_message() {
        let error = Error::parameter("ü", "ü is 100% wrong");
        let mut response = Failure(error.clone()).into_response();
        set(&mut response, &error);
        assert_eq!(response.status(), StatusCode::OK);
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("grpc-status"), "3");
        assert_eq!(header("grpc-message"), "%C3%BC is 100%25 wrong");
        assert_eq!(header("content-type"), "application/grpc");
    }

    #[test]
    fn internals_stay_hidden() {
        let error = Error::internal("the secret");
        let mut response = Failure(error.clone()).into_response();
        set(&mut response, &error);
        assert_eq!(response.headers()["grpc-status"], "13");
        assert!(!format!("{:?}", response.headers()).contains("secret"));
    }
}
