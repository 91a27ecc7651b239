//! `GET /admin/backends`

use axum::Json;
use axum::extract::State;

use super::error::Failure;
use super::openapi::errors::ModelProblems;
use super::state::{AppState, loading};
use crate::routing::{Board, Routes};
use cutline_error::Result;

/// State of backends and routes
///
/// Whether each backend gets requests, what it has done since the start, and which routes name it. Both
/// lists are empty on a server without routes.
#[utoipa::path(
    get,
    path = "/admin/backends",
    operation_id = "admin_backends",
    tag = "operation",
    responses((status = OK, description = "All backends and routes", body = Board), ModelProblems),
)]
pub(super) async fn show(State(state): State<AppState>) -> Result<Json<Board>, Failure> {
    state.loaded().ok_or_else(loading)?;
    Ok(Json(state.routes().map(Routes::board).unwrap_or_default()))
}
