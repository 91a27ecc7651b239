//! `POST /image/process`

use axum::Json;
use axum::extract::{Request, State};
use tokio::time::timeout;

use super::extract;
use super::state::AppState;
use crate::captioner::ProcessedImage;
use crate::error::{Error, ErrorKind, Result};

/// What can be told of an image without the model
///
/// Format, size, orientation, hash, dominant colours, mood, brightness, contrast, sharpness and
/// colourfulness; also while the model is being loaded.
#[utoipa::path(
    post,
    path = "/image/process",
    operation_id = "process_image",
    tag = "images",
    responses((status = OK, description = "What the image is like", body = ProcessedImage)),
)]
pub(super) async fn process(
    State(state): State<AppState>,
    request: Request,
) -> Result<Json<ProcessedImage>> {
    let decoders = state.decoders()?;
    let settings = state.settings();
    let image = extract::image(request, settings, decoders.budget()).await?;
    let limit = settings.request_timeout;
    let processed = timeout(limit, decoders.process(image)).await.map_err(|_| {
        Error::new(
            ErrorKind::InferenceTimeout,
            format!(
                "the image was not processed within {} s; send a smaller one, or try again when \
                 the server is less busy",
                limit.as_secs_f64()
            ),
        )
    })??;
    Ok(Json(processed))
}
