//! Bodies within the limits of the server. The `Content-Type` is not looked at.

use axum::extract::Request;
use serde::Deserialize;

use crate::captioner::Budget;
use crate::http::body::{BodyLimits, BodyPermit, LimitedBody};
use crate::http::state::AppState;
use crate::text;
use cutline_error::{Error, ErrorKind, Result};

/// Room for everything in a body that is not an image, such as the history of a chat.
const TEXT_BYTES: usize = 1 << 20;

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
    let limits = BodyLimits::of_json(images, TEXT_BYTES, state.settings(), budget);
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
