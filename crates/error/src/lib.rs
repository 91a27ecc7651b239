//! The error type of cutline: an [`ErrorKind`] with a stable code, and a message for the user.
//!
//! It is independent of protocols: the HTTP server maps [`ErrorKind`] to a status, the command line
//! to an exit status.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// A result with this error type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. [`ErrorKind::code`] is part of the HTTP contract and never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The multipart body, the JSON or the base64 of the request is malformed.
    MalformedRequest,
    /// The body of the request arrived too slowly.
    RequestTimeout,
    /// The caption was not finished within the time limit of a request.
    InferenceTimeout,
    /// The image has more bytes or pixels than the limits allow.
    ImageTooLarge,
    /// The batch has more images, or more bytes, than the limits allow.
    BatchTooLarge,
    /// The image has an unsupported format.
    UnsupportedFormat,
    /// The image has a supported format, but is corrupt.
    UndecodableImage,
    /// The image at an address could not be fetched.
    FetchFailed,
    /// A parameter is unknown, out of range, or contradicts another.
    InvalidParameter,
    /// The request needs an API key and has none.
    Unauthorized,
    /// The API key of the request is not valid.
    Forbidden,
    /// The API key of the request is valid, but not for this.
    InsufficientScope,
    /// A page of another web site, which the settings do not allow, wants to connect.
    OriginNotAllowed,
    /// The client has exceeded its request rate.
    RateLimited,
    /// The budget of the API key is used up.
    QuotaExhausted,
    /// The queue is full; nothing was queued.
    QueueFull,
    /// The model is not loaded or not warmed up yet.
    NotReady,
    /// The server is shutting down and accepts no new work.
    ShuttingDown,
    /// No resource has this path.
    NotFound,
    /// The resource does not support this method.
    MethodNotAllowed,
    /// The resource has been changed since the version that the request names.
    PreconditionFailed,
    /// The request must name the version of the resource that it changes.
    PreconditionRequired,
    /// The disk is full; nothing was stored.
    StorageFull,
    /// There is no file with the content of a photo that the library knows.
    PhotoUnavailable,
    /// Another process has been writing to the library for too long.
    LibraryBusy,
    /// No model has the name in the request.
    ModelNotFound,
    /// The request has no image, and only images can be described.
    ImageRequired,
    /// The loaded model cannot do what is asked.
    Unsupported,
    /// A setting is invalid.
    Config,
    /// The model cannot be found, downloaded, read or run.
    Model,
    /// The device is out of memory; a smaller batch may fit.
    OutOfMemory,
    /// The device refuses all further work of this process; only a restart helps.
    DeviceLost,
    /// A file cannot be read or written.
    Io,
    /// A bug in this program.
    Internal,
}

impl ErrorKind {
    /// The stable, machine-readable name, as the HTTP contract lists it.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::MalformedRequest => "malformed_request",
            Self::RequestTimeout => "request_timeout",
            Self::InferenceTimeout => "inference_timeout",
            Self::ImageTooLarge => "image_too_large",
            Self::BatchTooLarge => "batch_too_large",
            Self::UnsupportedFormat => "unsupported_format",
            Self::UndecodableImage => "undecodable_image",
            Self::FetchFailed => "fetch_failed",
            Self::InvalidParameter => "invalid_parameter",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::InsufficientScope => "insufficient_scope",
            Self::OriginNotAllowed => "origin_not_allowed",
            Self::RateLimited => "rate_limited",
            Self::QuotaExhausted => "insufficient_quota",
            Self::QueueFull => "queue_full",
            Self::NotReady => "not_ready",
            Self::ShuttingDown => "shutting_down",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::PreconditionFailed => "precondition_failed",
            Self::PreconditionRequired => "precondition_required",
            Self::StorageFull => "storage_full",
            Self::PhotoUnavailable => "photo_unavailable",
            Self::LibraryBusy => "library_busy",
            Self::ModelNotFound => "model_not_found",
            Self::ImageRequired => "image_required",
            Self::Unsupported => "unsupported",
            Self::Config => "invalid_setting",
            Self::Model => "model_error",
            Self::OutOfMemory => "out_of_memory",
            Self::DeviceLost => "device_lost",
            Self::Io => "io_error",
            Self::Internal => "internal",
        }
    }
}

/// An error with a message that tells the user what to do.
///
/// The source is for the log; [`fmt::Display`] never includes it.
#[derive(Debug, Clone)]
pub struct Error(Box<ErrorInner>);

#[derive(Debug, Clone)]
struct ErrorInner {
    kind: ErrorKind,
    detail: Cow<'static, str>,
    field: Option<Cow<'static, str>>,
    retry_after: Option<Duration>,
    source: Option<std::sync::Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; `detail` says what is wrong, then what to do.
    pub fn new(kind: ErrorKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(ErrorInner {
            kind,
            detail: detail.into(),
            field: None,
            retry_after: None,
            source: None,
        }))
    }

    /// [`ErrorKind::InvalidParameter`] for the parameter `field`.
    pub fn parameter(
        field: impl Into<Cow<'static, str>>,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        let mut error = Self::new(ErrorKind::InvalidParameter, detail);
        error.0.field = Some(field.into());
        error
    }

    /// [`ErrorKind::Internal`]; `detail` is for the log, users of the server never see it.
    pub fn internal(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Internal, detail)
    }

    /// [`ErrorKind::Model`].
    pub fn model(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Model, detail)
    }

    /// [`ErrorKind::ShuttingDown`], for new work that arrives while the server stops.
    #[must_use]
    pub fn shutting_down() -> Self {
        Self::new(
            ErrorKind::ShuttingDown,
            "the server is stopping; send the request to another server",
        )
        .with_retry_after(Duration::from_secs(5))
    }

    /// [`ErrorKind::NotReady`], for work that arrives after the model has stopped for good.
    #[must_use]
    pub fn model_stopped() -> Self {
        Self::new(
            ErrorKind::NotReady,
            "the model of this server has stopped, and only a restart helps; send the request to \
             another server, or try again in a minute",
        )
        .with_retry_after(Duration::from_secs(30))
    }

    /// [`ErrorKind::InferenceTimeout`] after `limit`. `what` was not ready; `advice` says how to make
    /// it faster.
    #[must_use]
    pub fn too_late(what: &str, limit: Duration, advice: &str) -> Self {
        let seconds = limit.as_secs_f64();
        let detail = format!(
            "the {what} was not ready within {seconds} s; {advice}, or try again when the server is \
             less busy"
        );
        Self::new(ErrorKind::InferenceTimeout, detail)
    }

    /// Attaches the cause, for the log.
    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.0.source = Some(std::sync::Arc::from(source.into()));
        self
    }

    /// Sets how long to wait before a retry makes sense.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// What kind of error this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The message for the user.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// The name of the invalid parameter or setting, if any.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        self.0.field.as_deref()
    }

    /// How long to wait before a retry, if known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.detail)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|e| e as &(dyn std::error::Error + 'static))
    }
}

/// The message of a panic, from the payload that [`catch_unwind`](std::panic::catch_unwind) or a
/// thread's join returns; `None` for a payload that is not text.
#[must_use]
pub fn panic_message(payload: &(dyn Any + Send)) -> Option<&str> {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_the_detail_and_the_source_stays_reachable() {
        let io = std::io::Error::other("disk on fire");
        let error = Error::model("cannot read weights; check the disk").with_source(io);
        assert_eq!(error.to_string(), "cannot read weights; check the disk");
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "disk on fire");
        assert_eq!(error.kind().code(), "model_error");
    }

    #[test]
    fn a_parameter_error_names_its_field() {
        let error = Error::parameter("num_beams", "num_beams must be between 1 and 10");
        assert_eq!(error.field(), Some("num_beams"));
        assert_eq!(error.kind(), ErrorKind::InvalidParameter);
    }

    #[test]
    fn panic_messages_are_read_from_both_kinds_of_text() {
        assert_eq!(panic_message(&"static"), Some("static"));
        assert_eq!(panic_message(&String::from("formatted")), Some("formatted"));
        assert_eq!(panic_message(&7_u8), None);
    }
}
