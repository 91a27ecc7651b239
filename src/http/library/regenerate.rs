//! Captions photos of the library again, from their files on this machine.

use std::fs::File;
use std::io::Read;
use std::path::Path as FilePath;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::header::ETAG;
use axum::response::{IntoResponse, Response};
use cutline_library::{Applied, Asset, Change, ContentHash, Field, NameKind, Written};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::time::timeout;
use utoipa::ToSchema;

use super::edit::body;
use super::{etag, hash, no_photo, with};
use crate::captioner::{CaptionParams, Choice, ParameterFields, Photo, Priority};
use crate::http::error::Failure;
use crate::http::openapi::bodies::RegenerateRequest;
use crate::http::openapi::errors::LibraryRegenerateProblems;
use crate::http::state::AppState;
use crate::library;
use crate::prompts;
use cutline_error::{Error, ErrorKind, Result};

/// What became of a photo that was captioned again.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Regenerated {
    /// The version of the photo now.
    pub(super) version: u64,
    /// Which text was written.
    pub(super) field: Field,
    /// The text; empty if the model found no description.
    pub(super) text: String,
    #[serde(flatten)]
    pub(super) written: Written,
}

/// Captions a photo again
///
/// Reads the photo from a path that the library knows, if its content is still the same. The text replaces
/// one of a model. If a person has decided about the present text, it is a suggestion. The body has parameters
/// of a caption, such as `prompt`, `num_beams`, and `model` for another model or a route.
#[utoipa::path(
    post,
    path = "/library/assets/{hash}/regenerate",
    operation_id = "library_regenerate",
    tag = "library",
    params(("hash" = String, Path, description = "The hash of the photo")),
    request_body(content = RegenerateRequest, content_type = "application/json",
                 example = json!({"prompt": "a photo of", "num_beams": 3})),
    responses(
        (status = OK, description = "What became of it; the version is the ETag", body = Regenerated),
        LibraryRegenerateProblems,
    ),
)]
pub(in crate::http) async fn one(
    State(state): State<AppState>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    let hash = hash(&name)?;
    let params = parameters(body(&state, request).await?)?;
    let limit = state.settings().request_timeout;
    let work = Box::pin(regenerate(&state, hash, params, None, Priority::Interactive));
    let late = |_| Error::too_late("caption", limit, "ask for fewer tokens or beams");
    let done = timeout(limit, work).await.map_err(late)??;
    Ok(([(ETAG, etag(done.version))], Json(done)).into_response())
}

/// Parameters of captions that are about the answer.
pub(in crate::http) const MEANINGLESS: [&str; 4] = ["stream", "colors", "num_captions", "rerank"];

/// The parameters of captions in a body.
///
/// # Errors
/// [`InvalidParameter`](ErrorKind::InvalidParameter).
pub(super) fn parameters(given: Map<String, Value>) -> Result<CaptionParams> {
    let mut fields = ParameterFields::default();
    for (name, value) in given {
        if MEANINGLESS.contains(&name.as_str()) {
            let detail = format!("{name} means nothing here; leave it out");
            return Err(Error::parameter(name, detail));
        }
        if name == "variables" && value.is_object() {
            fields.add_text(&name, &value.to_string())?;
            continue;
        }
        fields.add(&name, value)?;
    }
    fields.finish()
}

/// Captions a photo of the library, and stores the text.
///
/// # Errors
/// [`PhotoUnavailable`](ErrorKind::PhotoUnavailable): there is no file with its content. Those of a caption.
pub(super) async fn regenerate(
    state: &AppState,
    hash: ContentHash,
    params: CaptionParams,
    run: Option<i64>,
    priority: Priority,
) -> Result<Regenerated> {
    let captioner = state.captioner()?;
    let found = with(state, move |store| store.asset(&hash)).await?;
    let asset = found.ok_or_else(|| no_photo(&hash))?;
    let most = state.settings().max_image_bytes;
    let size = asset.bytes.unwrap_or(most as u64).min(most as u64);
    let permit = captioner.budget().take(size)?;
    let reading = tokio::task::spawn_blocking(move || read(&asset, most));
    let bytes =
        reading.await.map_err(|join| Error::internal("reading crashed").with_source(join))??;
    let params = match params.template {
        None => params,
        Some(_) => {
            with(state, move |store| prompts::resolve(store, &params, "library", Some(&hash)))
                .await?
        }
    };
    let recipe = params.recipe.clone();
    let style = params.kept_style();
    let field = library::field(style);
    let photos = vec![Photo::new(bytes, permit)];
    let streams = match params.model {
        // Many photos leave the machine only if somebody asks for it by name.
        None => captioner.start_here(photos, params, priority).await?,
        Some(_) => captioner.start_all(photos, params, priority).await?,
    };
    let stream = streams.into_iter().next().ok_or_else(|| Error::internal("an image was lost"))?;
    // Stored here, as part of the run.
    let (caption, kept) = stream.end_unkept().await?;
    let kept = kept.ok_or_else(|| Error::internal("the captioner does not know of the library"))?;
    let author = library::author(&caption.model, &caption.digest, &kept.fingerprint, &kept.prompt);
    let appearance = caption.appearance.as_deref();
    let mut asset = library::asset(&caption.image, caption.colors.as_ref(), appearance, author)?;
    asset.run = run;
    let text = if caption.fallback.is_none() { caption.caption } else { String::new() };
    if !text.is_empty() {
        let confidence = caption.captions.first().and_then(Choice::known_confidence);
        asset.text(field, library::kept_text(style, &text), confidence);
        let waited = Duration::from_secs_f64(caption.timings.total_ms.max(0.0) / 1000.0);
        let cost = caption.routing.as_ref().and_then(|routing| routing.cost);
        library::expose(&mut asset, recipe.as_deref(), waited, cost);
    }
    let change = Change::Asset(Box::new(asset));
    let applied = with(state, move |store| store.apply(vec![change])).await?;
    let Some(Applied::Asset { version, texts, .. }) = applied.into_iter().next() else {
        return Err(Error::internal("a caption was lost"));
    };
    let written = texts.first().copied().unwrap_or(Written::Unchanged);
    Ok(Regenerated { version, field, text, written })
}

/// The file of a photo, from the first of its paths where it still is.
fn read(asset: &Asset, most: usize) -> Result<Vec<u8>> {
    let paths = asset.names.iter().filter(|name| name.kind == NameKind::Path);
    let mut known = 0;
    for name in paths {
        known += 1;
        if let Some(bytes) = content(FilePath::new(&name.name), most, asset.bytes)
            && ContentHash::of(&bytes) == asset.hash
        {
            return Ok(bytes);
        }
    }
    let detail = if known == 0 {
        "the library knows no file of this photo; caption it once with `cutline caption --library`"
    } else {
        "no file of this photo is where the library last saw it, or its content has changed; put it \
         back, or caption it at its new place with `cutline caption --library`"
    };
    Err(Error::new(ErrorKind::PhotoUnavailable, detail))
}

/// The content of a regular file of this size, if it is known, that is not too large. Pipes and devices may
/// never end.
fn content(path: &FilePath, most: usize, size: Option<u64>) -> Option<Vec<u8>> {
    let found = path.metadata().ok()?;
    let other = size.is_some_and(|size| size != found.len());
    if !path.is_absolute() || !found.is_file() || other || found.len() > most as u64 {
        return None;
    }
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(most as u64 + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() <= most).then_some(bytes)
}
