//! The messages of the server.

use serde::Serialize;
use utoipa::ToSchema;

use crate::captioner::Caption;
use crate::http::dto::Problem;
use crate::http::error::{problem, retry_seconds};
use cutline_error::Error;

/// A message of the server on `/api/realtime`. The last message of a request is `done`, `error` or
/// `cancelled`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(in crate::http) enum RealtimeEvent<'a> {
    /// The image is decoded and waits for the model. Not sent for a cached answer.
    Queued {
        id: &'a str,
        /// Images that are waiting, this one included.
        position: usize,
    },
    /// The model has begun. Not sent for a cached answer.
    Started { id: &'a str },
    /// The caption so far, including the prompt.
    Token { id: &'a str, text: &'a str },
    /// The whole answer.
    Done {
        id: &'a str,
        /// The id of the request in the server's log.
        request_id: &'a str,
        result: &'a Caption,
    },
    /// The request has failed. Without an id, a message of the client was refused, and requests in
    /// progress continue.
    Error {
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false)]
        id: Option<&'a str>,
        /// Seconds to wait before the next attempt.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false)]
        retry_after: Option<u64>,
        error: Problem<'a>,
    },
    /// The request was dropped, as the client wished.
    Cancelled { id: &'a str },
    /// The answer to a `ping`.
    Pong {
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false)]
        id: Option<&'a str>,
    },
}

impl<'a> RealtimeEvent<'a> {
    /// The event of a request, or of a message, that has failed.
    pub(super) fn error(
        id: Option<&'a str>,
        error: &'a Error,
        request_id: Option<&'a str>,
    ) -> Self {
        let retry_after = retry_seconds(error);
        Self::Error { id, retry_after, error: problem(error, request_id) }
    }
}
