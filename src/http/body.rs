//! Reading a request's body within a size and a time.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use tokio::time::timeout;
use tokio_stream::StreamExt;

use crate::error::{Error, ErrorKind, Result};

/// How much a body may hold and how long it may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct BodyLimits {
    /// Bytes of the whole body.
    pub(super) bytes: usize,
    /// Bytes of the image in it, for the error's sentence.
    pub(super) image_bytes: usize,
    /// From the end of the headers to the end of the body.
    pub(super) time: Duration,
}

/// The whole body.
///
/// # Errors
/// [`ImageTooLarge`](ErrorKind::ImageTooLarge) as soon as that is known,
/// [`RequestTimeout`](ErrorKind::RequestTimeout), or
/// [`MalformedRequest`](ErrorKind::MalformedRequest) when the connection broke off.
pub(super) async fn read(headers: &HeaderMap, body: Body, limits: BodyLimits) -> Result<Vec<u8>> {
    let announced = announced_length(headers);
    if announced.is_some_and(|length| length > limits.bytes) {
        return Err(too_large(limits.image_bytes));
    }
    let collecting = collect(body, announced.unwrap_or(0), limits);
    timeout(limits.time, collecting).await.map_err(|_| {
        Error::new(
            ErrorKind::RequestTimeout,
            format!(
                "the body did not arrive within {} s; send a smaller image or use a faster \
                 connection",
                limits.time.as_secs_f64()
            ),
        )
    })?
}

async fn collect(body: Body, announced: usize, limits: BodyLimits) -> Result<Vec<u8>> {
    // Only so much on the word of a client that may never send it.
    let mut bytes = Vec::with_capacity(announced.min(1 << 20));
    let mut stream = body.into_data_stream();
    while let Some(chunk) = stream.next().await {
        let chunk: Bytes = chunk.map_err(|error| {
            Error::new(
                ErrorKind::MalformedRequest,
                "the body broke off before its end; send the request again",
            )
            .with_source(error)
        })?;
        if bytes.len() + chunk.len() > limits.bytes {
            return Err(too_large(limits.image_bytes));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn announced_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// [`ErrorKind::ImageTooLarge`] for more than `limit` bytes.
pub(super) fn too_large(limit: usize) -> Error {
    Error::new(
        ErrorKind::ImageTooLarge,
        format!(
            "the image has more than the {limit} bytes that are accepted; scale it down or \
             compress it more"
        ),
    )
}
