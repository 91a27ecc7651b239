//! Reads requests for the fuzz targets in `fuzz/`; compiled with `--cfg fuzzing` only.

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Uri};

use super::{ImageCount, Reader, Uploads};
use crate::captioner::{Budget, CaptionParams, ParameterFields};
use crate::config::HttpSettings;
use crate::fetch::Fetcher;
use cutline_error::{Error, Result};

/// What a request contains.
#[derive(Debug, PartialEq)]
pub struct ReadRequest {
    /// The name and the number of bytes of each image, or its error.
    pub images: Vec<(Option<String>, Result<usize, String>)>,
    /// The parameters.
    pub params: CaptionParams,
}

/// Reads a request whose body arrives in pieces of at most `piece` bytes (at least 1). `limit` is the
/// number of images of a batch; `None` for a request for one caption.
///
/// # Errors
/// Those of the extractors; also an [`Internal`](cutline_error::ErrorKind::Internal) error if memory is
/// still claimed afterwards.
pub async fn read(
    content_type: &str,
    uri: Uri,
    body: &[u8],
    piece: usize,
    limit: Option<usize>,
    settings: &HttpSettings,
) -> Result<ReadRequest> {
    let pieces: Vec<_> = body.chunks(piece.max(1)).map(Bytes::copy_from_slice).collect();
    let pieces = tokio_stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>));
    let mut request = Request::new(Body::from_stream(pieces));
    *request.uri_mut() = uri;
    let value = HeaderValue::from_str(content_type);
    request.headers_mut().insert(CONTENT_TYPE, value.map_err(|_| super::malformed("no header"))?);
    let budget = Budget::new(settings.max_inflight_bytes);
    let count = limit.map_or(ImageCount::One, ImageCount::Many);
    let fetcher = Fetcher::new(settings.fetch.clone());
    let reader = Reader { settings, budget: &budget, count, optional: false };
    let read = reader.read(request, Some(ParameterFields::default()), &fetcher).await;
    let read = read.map(|Uploads { items, params }| {
        let size = |photo: Result<crate::captioner::Photo>| {
            photo.map(|photo| photo.len()).map_err(|error| error.to_string())
        };
        let images = items.into_iter().map(|item| (item.name, size(item.photo))).collect();
        ReadRequest { images, params }
    });
    if budget.held() > 0 {
        return Err(Error::internal("a request that was read still claims memory"));
    }
    read
}
