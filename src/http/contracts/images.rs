//! Images in the text of a request.

use super::body::Received;
use crate::captioner::Photo;
use crate::fetch::is_url;
use crate::http::extract::encoded;
use crate::http::state::AppState;
use cutline_error::{Error, ErrorKind, Result};

/// The image that `reference` is or names: base64, a `data:` URI, or the address of an image.
///
/// # Errors
/// [`MalformedRequest`](ErrorKind::MalformedRequest) or [`ImageTooLarge`](ErrorKind::ImageTooLarge);
/// those of [`Fetcher::fetch`](crate::fetch::Fetcher::fetch).
pub(super) async fn photo(reference: &str, received: &Received, state: &AppState) -> Result<Photo> {
    if is_url(reference) {
        return state.fetcher().fetch(reference, state.decoders()?.budget()).await;
    }
    sent(reference, received, state)
}

fn sent(reference: &str, received: &Received, state: &AppState) -> Result<Photo> {
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
    check_count(references.len(), most)?;
    // A copy takes the place of the image, for which the memory is counted.
    let urls = references.iter().filter(|reference| is_url(reference));
    let urls = urls.map(|url| (*url).to_owned()).collect();
    let mut fetched = state.fetcher().fetch_all(urls, state.decoders()?.budget()).await.into_iter();
    let each = references.iter().map(|reference| {
        if is_url(reference) {
            let lost = || Err(Error::internal("an image was not fetched"));
            fetched.next().unwrap_or_else(lost)
        } else {
            sent(reference, received, state)
        }
    });
    each.collect()
}

/// Checks the number of images in a request.
///
/// # Errors
/// [`ImageRequired`](ErrorKind::ImageRequired) or [`BatchTooLarge`](ErrorKind::BatchTooLarge).
pub(super) fn check_count(images: usize, most: usize) -> Result<()> {
    match images {
        0 => Err(required()),
        _ if images > most => Err(Error::new(
            ErrorKind::BatchTooLarge,
            format!("a request may have at most {most} images; send several requests"),
        )),
        _ => Ok(()),
    }
}

/// The error of a request without an image.
pub(super) fn required() -> Error {
    Error::new(
        ErrorKind::ImageRequired,
        "there is no image in the request, and this model only describes images; send one",
    )
}
