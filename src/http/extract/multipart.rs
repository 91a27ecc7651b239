//! `multipart/form-data`, read as it arrives. A part that is too large is read to its end, but not
//! stored, so that the other images of a batch survive it.

use std::error::Error as _;

use axum::body::Body;
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Request};
use axum::http::request::Parts;

use super::{Form, Images, Transport, malformed};
use crate::captioner::{ParameterFields, too_long};
use crate::http::body::{TooLarge, append};
use cutline_error::{Error, Result};

pub(super) async fn read(
    parts: Parts,
    body: Body,
    images: &mut Images<'_>,
    form: &mut Form,
) -> Result<()> {
    let reader = images.reader;
    let max_image_bytes = reader.settings.max_image_bytes;
    let body = reader.limited(&parts, body, Transport::Multipart)?;
    let permit = body.permit();
    let mut request = Request::from_parts(parts, Body::from_stream(body));
    // axum's own limit of 2 MB ignores the settings; the stream enforces the configured limits.
    DefaultBodyLimit::disable().apply(&mut request);
    let mut parts = Multipart::from_request(request, &()).await.map_err(|error| {
        malformed("the Content-Type lacks the boundary; let the HTTP library write that header")
            .with_source(error)
    })?;
    while let Some(part) = parts.next_field().await.map_err(broken)? {
        let name = part.name().unwrap_or_default().to_owned();
        if name.is_empty() {
            return Err(malformed(format!("a part has no name; {}", reader.count.instructions())));
        }
        if reader.count.is_image(&name) {
            let file = part.file_name().map(str::to_owned);
            let photo = content(part, max_image_bytes)
                .await?
                .map(|bytes| permit.photo(bytes))
                .ok_or_else(|| TooLarge::Image(max_image_bytes).error());
            images.add(file, photo)?;
        } else {
            let content = content(part, ParameterFields::MAX_BYTES).await?;
            let content = content.ok_or_else(|| too_long(&name))?;
            let text = std::str::from_utf8(&content).map_err(|error| {
                Error::parameter(name.clone(), "the value is not UTF-8; send it as UTF-8 text")
                    .with_source(error)
            })?;
            form.add_text(&name, text)?;
        }
    }
    Ok(())
}

/// The content of the part; `None` for more than `limit` bytes, which are read and dropped.
async fn content(mut part: Field<'_>, limit: usize) -> Result<Option<Vec<u8>>> {
    let mut content = Some(Vec::new());
    while let Some(chunk) = part.chunk().await.map_err(broken)? {
        content = content.filter(|bytes| bytes.len() + chunk.len() <= limit);
        if let Some(bytes) = &mut content {
            append(bytes, &chunk)?;
        }
    }
    if let Some(bytes) = &mut content {
        bytes.shrink_to_fit();
    }
    Ok(content)
}

/// The error of the body itself if there is one, otherwise an error in the multipart format.
fn broken(error: MultipartError) -> Error {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<Error>() {
            return error.clone();
        }
        cause = error.source();
    }
    malformed(
        "the multipart body is broken or cut off; send it again, with all parts and the end line",
    )
    .with_source(error)
}
