//! Reads the library.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use cutline_library::duplicates::{self, Duplicates};
use cutline_library::{
    Asset, Facet, Features, FeedbackRow, Neighbour, Page, Probe, Revision, Run, Similar, Sort,
    Stats,
};
use tokio::time::timeout;

use super::{Parameters, etag, hash, library, no_photo, with};
use crate::captioner::TextParams;
use crate::engine::Ability;
use crate::http::error::Failure;
use crate::http::openapi::bodies::RawImage;
use crate::http::openapi::errors::LibraryProblems;
use crate::http::state::AppState;
use crate::library::embedding_space;
use cutline_error::{Error, ErrorKind, Result};

/// Finds photos with captions
///
/// Words, "phrases", `-words`, `OR`, and the filters `tag:`, `color:`, `mood:`, `model:`, `missing:`, `is:`,
/// `after:`, `before:`, `confidence:`, `caption:`, `alt:` and `name:`. Highlights have the words that were
/// found between U+E000 and U+E001.
#[utoipa::path(
    get,
    path = "/library/assets",
    operation_id = "library_find",
    tag = "library",
    params(
        ("q" = Option<String>, Query, description = "What is searched for; all photos if not given"),
        ("sort" = Option<Sort>, Query, description = "The order"),
        ("limit" = Option<usize>, Query, description = "Photos on the page", minimum = 1, maximum = 200),
        ("cursor" = Option<String>, Query, description = "The `next` of the page before"),
        ("unfinished" = Option<bool>, Query, description = "The last word may be the beginning of one"),
        ("count" = Option<bool>, Query, description = "Count all photos that there are"),
    ),
    responses((status = OK, description = "A page of photos", body = Page), LibraryProblems),
)]
pub(in crate::http) async fn find(
    State(state): State<AppState>,
    request: Request,
) -> Result<Json<Page>, Failure> {
    let known = ["q", "sort", "limit", "cursor", "unfinished", "count"];
    let query = Parameters::read(request.uri().query(), &known)?.query()?;
    Ok(Json(with(&state, move |store| store.find(&query)).await?))
}

/// Counts the colours, moods, models and tags of photos
#[utoipa::path(
    get,
    path = "/library/facets",
    operation_id = "library_facets",
    tag = "library",
    params(("q" = Option<String>, Query, description = "Only photos that this finds")),
    responses((status = OK, description = "Values and their numbers", body = [Facet]), LibraryProblems),
)]
pub(in crate::http) async fn facets(
    State(state): State<AppState>,
    request: Request,
) -> Result<Json<Vec<Facet>>, Failure> {
    let query = Parameters::read(request.uri().query(), &["q"])?.query()?;
    Ok(Json(with(&state, move |store| store.facets(&query)).await?))
}

/// Counts what the library contains
#[utoipa::path(
    get,
    path = "/library/stats",
    operation_id = "library_stats",
    tag = "library",
    responses((status = OK, description = "Numbers", body = Stats), LibraryProblems),
)]
pub(in crate::http) async fn stats(State(state): State<AppState>) -> Result<Json<Stats>, Failure> {
    Ok(Json(with(&state, |store| store.stats()).await?))
}

/// Reads a photo's texts
#[utoipa::path(
    get,
    path = "/library/assets/{hash}",
    operation_id = "library_asset",
    tag = "library",
    params(("hash" = String, Path, description = "The hash of the photo, as captions have it")),
    responses(
        (status = OK, description = "The photo; its version is the ETag", body = Asset),
        (status = NOT_MODIFIED, description = "It has the version in `If-None-Match`"),
        LibraryProblems,
    ),
)]
pub(in crate::http) async fn asset(
    State(state): State<AppState>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let hash = hash(&name)?;
    let found = with(&state, move |store| store.asset(&hash)).await?;
    let asset = found.ok_or_else(|| no_photo(&hash))?;
    let tag = etag(asset.version);
    if headers.get(IF_NONE_MATCH) == Some(&tag) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, tag)]).into_response());
    }
    Ok(([(ETAG, tag)], Json(asset)).into_response())
}

/// A thumbnail never changes: another photo has another hash. Only for the one who asked, not for caches
/// on the way.
const FOR_EVER: HeaderValue = HeaderValue::from_static("private, max-age=31536000, immutable");

/// Reads a photo's thumbnail
///
/// A small picture, with at most 256 pixels along the longer side.
#[utoipa::path(
    get,
    path = "/library/assets/{hash}/thumbnail",
    operation_id = "library_thumbnail",
    tag = "library",
    params(("hash" = String, Path, description = "The hash of the photo")),
    responses(
        (status = OK, description = "The picture", body = inline(RawImage), content_type = "image/jpeg"),
        (status = NOT_MODIFIED, description = "It is the one in `If-None-Match`"),
        LibraryProblems,
    ),
)]
pub(in crate::http) async fn thumbnail(
    State(state): State<AppState>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let hash = hash(&name)?;
    let found = with(&state, move |store| store.thumbnail(&hash)).await?;
    let thumbnail = found.ok_or_else(|| {
        let detail =
            "the library has no thumbnail of this photo; caption it again with the library on";
        Error::new(ErrorKind::NotFound, detail)
    })?;
    let tag = etag(&blake3::hash(&thumbnail.bytes).to_hex()[..32]);
    if headers.get(IF_NONE_MATCH) == Some(&tag) {
        return Ok(
            (StatusCode::NOT_MODIFIED, [(ETAG, tag), (CACHE_CONTROL, FOR_EVER)]).into_response()
        );
    }
    // Whatever wrote the library, nothing but a picture is served as one.
    let media_type = match thumbnail.media_type.as_str() {
        "image/webp" => "image/webp",
        "image/png" => "image/png",
        "image/avif" => "image/avif",
        _ => "image/jpeg",
    };
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(media_type)),
        (ETAG, tag),
        (CACHE_CONTROL, FOR_EVER),
    ];
    Ok((headers, thumbnail.bytes).into_response())
}

/// Reads the history of a photo's texts
///
/// The newest revision first.
#[utoipa::path(
    get,
    path = "/library/assets/{hash}/history",
    operation_id = "library_history",
    tag = "library",
    params(("hash" = String, Path, description = "The hash of the photo")),
    responses((status = OK, description = "Revisions", body = [Revision]), LibraryProblems),
)]
pub(in crate::http) async fn history(
    State(state): State<AppState>,
    Path(name): Path<String>,
) -> Result<Json<Vec<Revision>>, Failure> {
    let hash = hash(&name)?;
    let found = with(&state, move |store| store.history(&hash)).await?;
    Ok(Json(found.ok_or_else(|| no_photo(&hash))?))
}

/// Finds photos that look like one
///
/// Only photos with features in the library can be compared.
#[utoipa::path(
    get,
    path = "/library/assets/{hash}/similar",
    operation_id = "library_similar",
    tag = "library",
    params(
        ("hash" = String, Path, description = "The hash of the photo"),
        ("limit" = Option<usize>, Query, description = "Photos at most", minimum = 1, maximum = 200),
    ),
    responses((status = OK, description = "The most similar first", body = [Neighbour]), LibraryProblems),
)]
pub(in crate::http) async fn similar(
    State(state): State<AppState>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<Vec<Neighbour>>, Failure> {
    let probe = Probe::Asset(hash(&name)?);
    let parameters = Parameters::read(request.uri().query(), &["limit"])?;
    let limit = parameters.limit()?.unwrap_or(20);
    let similar = Similar { probe, limit, min_score: -1.0 };
    Ok(Json(with(&state, move |store| store.similar(&similar)).await?))
}

/// Finds photos that match a text
///
/// Among those that were captioned with `LIBRARY_EMBEDDINGS`. The score is the cosine of the embeddings of text and
/// photo.
#[utoipa::path(
    get,
    path = "/library/similar",
    operation_id = "library_match",
    tag = "library",
    params(
        ("text" = String, Query, description = "What the photos show", max_length = 1000),
        ("limit" = Option<usize>, Query, description = "Photos at most", minimum = 1, maximum = 200),
    ),
    responses((status = OK, description = "The best first", body = [Neighbour]), LibraryProblems),
)]
pub(in crate::http) async fn matching(
    State(state): State<AppState>,
    request: Request,
) -> Result<Json<Vec<Neighbour>>, Failure> {
    let parameters = Parameters::read(request.uri().query(), &["text", "limit"])?;
    let limit = parameters.limit()?.unwrap_or(20);
    let text = parameters.text("text").trim().to_owned();
    if text.is_empty() || text.chars().count() > 1000 {
        let detail = "text must have 1 to 1000 characters; say what the photos show";
        return Err(Error::parameter("text", detail).into());
    }
    let features = embedding(&state, text).await?;
    let similar = Similar { probe: Probe::Features(features), limit, min_score: -1.0 };
    Ok(Json(with(&state, move |store| store.similar(&similar)).await?))
}

/// The embedding of a text.
async fn embedding(state: &AppState, text: String) -> Result<Features> {
    library(state)?;
    let embedder = state.captioner()?.able(Ability::Embed)?;
    let info = embedder.info();
    let params = TextParams {
        texts: vec![text],
        max_text_tokens: Some(info.max_positions),
        ..TextParams::default()
    };
    let limit = state.settings().request_timeout;
    let embedded = timeout(limit, Box::pin(embedder.embed(None, params))).await;
    let embedded = embedded.map_err(|_| Error::too_late("answer", limit, "try again"))??;
    let vector = embedded.texts.into_iter().next().map(|text| text.embedding);
    let vector = vector.ok_or_else(|| Error::internal("a text was lost"))?;
    Ok(Features { space: embedding_space(&info.digest), vector })
}

/// Finds photos that look the same
///
/// Their difference hashes differ in few bits. All photos of the library are compared.
#[utoipa::path(
    get,
    path = "/library/duplicates",
    operation_id = "library_duplicates",
    tag = "library",
    params(
        ("bits" = Option<u32>, Query, description = "Bits that may differ; 5 if not given", maximum = 7),
        ("skip" = Option<usize>, Query, description = "Groups to leave out, those of earlier pages"),
        ("limit" = Option<usize>, Query, description = "Groups at most", minimum = 1, maximum = 200),
    ),
    responses((status = OK, description = "Groups, the oldest first", body = Duplicates), LibraryProblems),
)]
pub(in crate::http) async fn duplicates(
    State(state): State<AppState>,
    request: Request,
) -> Result<Json<Duplicates>, Failure> {
    let parameters = Parameters::read(request.uri().query(), &["bits", "skip", "limit"])?;
    let bits = parameters.parsed("bits", "a number from 0 to 7")?.unwrap_or(5);
    let skip = parameters.parsed("skip", "a number from 0 on")?.unwrap_or(0);
    let limit = parameters.limit()?.unwrap_or(50);
    Ok(Json(with(&state, move |store| duplicates::find(store, bits, skip, limit)).await?))
}

/// Reports feedback by day, model and prompt
#[utoipa::path(
    get,
    path = "/library/feedback",
    operation_id = "library_feedback",
    tag = "library",
    responses((status = OK, description = "The newest day first", body = [FeedbackRow]), LibraryProblems),
)]
pub(in crate::http) async fn feedback(
    State(state): State<AppState>,
) -> Result<Json<Vec<FeedbackRow>>, Failure> {
    Ok(Json(with(&state, |store| store.feedback_report()).await?))
}

/// Lists imports and changes of many photos
#[utoipa::path(
    get,
    path = "/library/runs",
    operation_id = "library_runs",
    tag = "library",
    responses((status = OK, description = "The newest first", body = [Run]), LibraryProblems),
)]
pub(in crate::http) async fn runs(
    State(state): State<AppState>,
) -> Result<Json<Vec<Run>>, Failure> {
    Ok(Json(with(&state, |store| store.runs(100)).await?))
}
