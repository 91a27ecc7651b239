//! Bodies within the limits of the server. The `Content-Type` is not looked at.

use axum::extract::Request;
use serde::Deserialize;

use crate::captioner::Budget;
use crate::http::body::{BodyLimits, BodyPermit, LimitedBody, TooLarge};
use crate::http::state::AppState;
use crate::text;
use cutline_error::{Error, ErrorKind, Result};

/// Room for everything in a body that is not an image, such as the history of a chat.
const TEXT_BYTES: usize = 1 << 20;

/// Copies of each byte that may be in memory at a time: the body, an image in it that is decoded, and a
/// text without its escapes.
const COPIES: u64 = 3;

/// A body in memory, with its share of the budget.
pub(super) struct Received {
    pub(super) bytes: Vec<u8>,
    pub(super) permit: BodyPermit,
}

/// Reads a body with up to `images` images in base64.
///
/// # Errors
/// [`ImageTooLarge`](ErrorKind::ImageTooLarge) or [`BatchTooLarge`](ErrorKind::BatchTooLarge),
/// [`RequestTimeout`](ErrorKind::RequestTimeout), [`QueueFull`](ErrorKind::QueueFull) if memory for the
/// body is short, [`UnsupportedFormat`](ErrorKind::UnsupportedFormat) for an unknown
/// `Content-Encoding`.
pub(super) async fn receive(
    request: Request,
    state: &AppState,
    budget: &Budget,
    images: usize,
) -> Result<Received> {
    let (parts, body) = request.into_parts();
    let settings = state.settings();
    // Four characters for three bytes, and the line breaks of some encoders.
    let encoded = settings.max_image_bytes.saturating_mul(images).saturating_mul(3) / 2;
    // A body that is larger than the whole budget could never be read.
    let memory = usize::try_from(budget.capacity() / COPIES).unwrap_or(usize::MAX);
    let bytes = encoded.saturating_add(TEXT_BYTES).min(memory);
    let too_large = match images {
        1 => TooLarge::Image(settings.max_image_bytes),
        _ => TooLarge::Batch(bytes),
    };
    let limits = BodyLimits { bytes, copies: COPIES, time: settings.request_timeout, too_large };
    let body = LimitedBody::new(&parts.headers, body, limits, budget)?;
    let permit = body.permit();
    let bytes = body.collect().await?;
    Ok(Received { bytes, permit })
}

impl Received {
    /// The body as JSON.
    ///
    /// # Errors
    /// [`MalformedRequest`](ErrorKind::MalformedRequest): it is something else, or a field has a wrong
    /// type.
    pub(super) fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T> {
        from_json(&self.bytes)
    }
}

/// `json` as JSON, for bodies of which it is only a part.
///
/// # Errors
/// As [`Received::json`].
pub(super) fn from_json<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T> {
    let malformed = |detail: String| Error::new(ErrorKind::MalformedRequest, detail);
    let json = text::without_mark(json).map_err(|why| malformed(format!("the body {why}")))?;
    serde_json::from_slice(json).map_err(|error| {
        // serde_json's sentence names the field or the type that was expected, and never quotes
        // more than a line.
        let reason: String = error.to_string().chars().take(200).collect();
        malformed(format!("the body is not JSON as expected here ({reason}); correct it"))
            .with_source(error)
    })
}
