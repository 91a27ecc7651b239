//! Images in the text of a request.

use super::body::Received;
use crate::captioner::Photo;
use crate::http::extract::encoded;
use crate::http::state::AppState;
use cutline_error::{Error, ErrorKind, Result};

/// The image that `reference` is or names: base64, a `data:` URI, or the address of an image.
///
/// # Errors
/// [`MalformedRequest`](ErrorKind::MalformedRequest) or [`ImageTooLarge`](ErrorKind::ImageTooLarge).
pub(super) async fn photo(reference: &str, received: &Received, state: &AppState) -> Result<Photo> {
    let bytes = encoded::image(reference, state.settings().max_image_bytes)?;
    Ok(received.permit.photo(bytes))
}

/// All images of a request, in order.
///
/// # Errors
/// As [`photo`]; [`ImageRequired`](ErrorKind::ImageRequired) if there is none, and
/// [`BatchTooLarge`](ErrorKind::BatchTooLarge) if there are too many.
pub(super) async fn photos(
    references: &[&str],
    received: &Received,
    state: &AppState,
) -> Result<Vec<Photo>> {
    let most = state.settings().max_images_per_request;
    if references.is_empty() {
        return Err(required());
    }
    if references.len() > most {
        return Err(Error::new(
            ErrorKind::BatchTooLarge,
            format!("a request may have at most {most} images; send several requests"),
        ));
    }
    let mut photos = Vec::with_capacity(references.len());
    for reference in references {
        photos.push(photo(reference, received, state).await?);
    }
    Ok(photos)
}

/// The error of a request without an image.
pub(super) fn required() -> Error {
    Error::new(
        ErrorKind::ImageRequired,
        "there is no image in the request, and this model only describes images; send one",
    )
}
