//! `GET /model/info`

use axum::Json;
use axum::extract::State;

use super::error::Failure;
use super::openapi::errors::ModelProblems;
use super::state::{AppState, loading};
use crate::captioner::ModelInfo;
use cutline_error::Result;

/// Describes the loaded model
#[utoipa::path(
    get,
    path = "/model/info",
    operation_id = "model_info",
    tag = "operation",
    responses(
        (status = OK, description = "The model and how it runs", body = ModelInfo),
        ModelProblems,
    ),
)]
pub(super) async fn info(State(state): State<AppState>) -> Result<Json<ModelInfo>, Failure> {
    state.loaded().map(|captioner| Json(captioner.info().clone())).ok_or_else(|| loading().into())
}
