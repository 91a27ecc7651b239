//! `POST /image/process`

use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use tokio::time::timeout;

use super::error::Failure;
use super::extract;
use super::observe::ImageReport;
use super::openapi::bodies::{ImageForm, ImageJson, ImageQuery, RawImage, SQUARE};
use super::openapi::errors::ImageProblems;
use super::state::AppState;
use crate::captioner::{ProcessTimings, ProcessedImage};
use crate::metrics::Stage;
use cutline_error::{Error, Result};

/// Describes an image without the model
///
/// Format, size, orientation, hash, dominant colours, mood, brightness, contrast, sharpness and
/// colourfulness. Also available while the model is loading.
#[utoipa::path(
    post,
    path = "/image/process",
    operation_id = "process_image",
    tag = "images",
    params(ImageQuery),
    request_body(content(
        (ImageForm = "multipart/form-data"),
        (inline(ImageJson) = "application/json", example = json!({"image": SQUARE})),
        (inline(RawImage) = "image/*"),
        (inline(RawImage) = "application/octet-stream"),
    )),
    responses(
        (status = OK, description = "The properties of the image", body = ProcessedImage),
        ImageProblems,
    ),
)]
pub(super) async fn process(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, Failure> {
    let decoders = state.decoders()?;
    let settings = state.settings();
    let image = extract::image(request, &state, decoders.budget()).await?;
    let limit = settings.request_timeout;
    let too_late = |_| Error::too_late("result", limit, "send a smaller image");
    let processed = timeout(limit, decoders.process(image)).await.map_err(too_late)??;
    let ProcessTimings { decode_ms, analysis_ms, .. } = processed.timings;
    for (stage, spent) in [(Stage::Decode, decode_ms), (Stage::Analysis, analysis_ms)] {
        state.metrics().stage(stage, Duration::from_secs_f64(spent / 1e3));
    }
    let report = ImageReport::of_processed(&processed);
    let mut response = Json(processed).into_response();
    response.extensions_mut().insert(report);
    Ok(response)
}
