//! `POST /caption/generate`

use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use tokio::time::timeout;

use super::contracts::names;
use super::dto::StreamEvent;
use super::error::Failure;
use super::extract::{self, Upload};
use super::observe::{ImageReport, RequestId};
use super::openapi::bodies::{CaptionForm, CaptionJson, CaptionQuery, RawImage, SQUARE};
use super::openapi::caption_example;
use super::openapi::errors::CaptionProblems;
use super::prompts::Templates;
use super::state::AppState;
use super::stream;
use crate::captioner::{Caption, Captioner};
use cutline_error::{Error, Result};

/// Captions an image
///
/// Answers at once, or word by word with `stream=true`. A request with `image_url` in the query string
/// needs no body.
#[utoipa::path(
    post,
    path = "/caption/generate",
    operation_id = "generate_caption",
    tag = "captions",
    params(CaptionQuery),
    request_body(content(
        (CaptionForm = "multipart/form-data"),
        (
            inline(CaptionJson) = "application/json",
            example = json!({"image": SQUARE, "max_new_tokens": 10}),
        ),
        (inline(RawImage) = "image/*"),
        (inline(RawImage) = "application/octet-stream"),
    )),
    responses(
        (
            status = OK,
            description = "The caption; with `stream=true` `token` events, then `done` or `error`",
            content(
                (Caption = "application/json", example = json!(caption_example())),
                (StreamEvent = "text/event-stream"),
            ),
        ),
        CaptionProblems,
    ),
)]
pub(super) async fn generate(
    State(state): State<AppState>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, Failure> {
    // Before the body is read: a client that waits for `100 Continue` need not send it.
    let captioner = state.captioner()?;
    let settings = state.settings();
    let templates = Templates::of(&state, &request);
    let mut upload = extract::upload(request, &state, captioner).await?;
    let model = upload.params.model.take();
    upload.params.model = names::check(model.as_deref(), &state, captioner)?;
    let Upload { photo, params } = upload;
    let (photo, params) = Box::pin(templates.one(photo, params)).await?;
    let upload = Upload { photo, params };
    let limit = settings.request_timeout;
    if upload.params.stream {
        return Ok(stream::respond(captioner, upload, limit, id).await?);
    }
    whole(captioner, upload, limit).await
}

async fn whole(
    captioner: &Captioner,
    upload: Upload,
    limit: Duration,
) -> Result<Response, Failure> {
    // Boxed: this future is large, and every future around it would be as well.
    let work = Box::pin(captioner.caption(upload.photo, upload.params));
    // On a timeout the future is dropped, which cancels the caption.
    let caption = timeout(limit, work).await.map_err(|_| too_late(limit))??;
    let report = ImageReport::of(&caption);
    let mut response = Json(caption).into_response();
    response.extensions_mut().insert(report);
    Ok(response)
}

/// The error of a caption that takes longer than `limit`.
pub(super) fn too_late(limit: Duration) -> Error {
    Error::too_late("caption", limit, "ask for fewer tokens or beams")
}
