//! `GET /model/info`

use axum::Json;
use axum::extract::State;

use super::error::Failure;
use super::openapi::errors::ModelProblems;
use super::state::{AppState, loading};
use crate::captioner::{ModelInfo, OtherModel};
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
    let captioner = state.loaded().ok_or_else(loading)?;
    let others = captioner.other_models().into_iter();
    let others = others.map(|(name, model)| OtherModel::of(name, model.info()));
    Ok(Json(ModelInfo { others: others.collect(), ..captioner.info().clone() }))
}
