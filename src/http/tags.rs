//! `POST /tags/generate`

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use tokio::time::timeout;

use super::contracts::names;
use super::error::Failure;
use super::extract::{self, TagUpload};
use super::observe::ImageReport;
use super::openapi::bodies::{RawImage, SQUARE, TagForm, TagJson, TagQuery};
use super::openapi::errors::TagProblems;
use super::state::AppState;
use super::taggers;
use crate::captioner::{TagParams, Tagged};
use cutline_error::Error;

/// Tags an image with words of an allowed list
///
/// Never with others, never with more of a category than it takes, and with none twice. A category may stay
/// empty. Images are sent as for a caption.
#[utoipa::path(
    post,
    path = "/tags/generate",
    operation_id = "generate_tags",
    tag = "tags",
    params(TagQuery),
    request_body(content(
        (TagForm = "multipart/form-data"),
        (
            inline(TagJson) = "application/json",
            example = json!({"image": SQUARE, "vocabulary": ["red", "square"], "k": 1}),
        ),
        (inline(RawImage) = "image/*"),
        (inline(RawImage) = "application/octet-stream"),
    )),
    responses(
        (status = OK, description = "The tags of each category", body = Tagged),
        TagProblems,
    ),
)]
pub(super) async fn generate(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, Failure> {
    // Before the body is read: a client that waits for `100 Continue` need not send it.
    let captioner = state.captioner()?;
    let TagUpload { photo, asked } = extract::tag_upload(request, &state, captioner).await?;
    let name = names::check(asked.model.as_deref(), &state, captioner)?;
    let captioner = captioner.local(name.as_deref())?;
    let params = TagParams { weights: state.settings().tag_weights, ..asked.params };
    let limit = state.settings().request_timeout;
    let work = Box::pin(async {
        let tagger = taggers::of(&state, captioner, asked.vocabulary).await?;
        captioner.tag(photo, &tagger, &params, state.near_tags()).await
    });
    let late = |_| Error::too_late("answer", limit, "allow fewer tags");
    let tagged = timeout(limit, work).await.map_err(late)??;
    let report = ImageReport::of_tagged(&tagged);
    let mut response = Json(tagged).into_response();
    response.extensions_mut().insert(report);
    Ok(response)
}
