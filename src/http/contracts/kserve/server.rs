//! `GET /v2`, `/v2/health/live`, `/v2/health/ready`, and `POST /v2/repository/index`

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::VERSION;
use crate::http::contracts::names;
use crate::http::error::Failure;
use crate::http::health;
use crate::http::openapi::errors::{
    KserveLiveProblems, KserveModelProblems, KserveReadyProblems, KserveServerProblems,
};
use crate::http::state::{AppState, loading};

/// Extensions of the protocol. Triton's load tester asks for whatever is listed here.
pub(super) const EXTENSIONS: [&str; 3] =
    ["binary_tensor_data", "parameters", "model_configuration"];

/// Describes the server
#[utoipa::path(
    get,
    path = "/v2",
    operation_id = "kserve_server",
    tag = "kserve",
    responses(
        (
            status = OK,
            description = "Name, version, and the extensions of the protocol",
            body = Object,
        ),
        KserveServerProblems,
    ),
)]
pub(super) async fn show() -> Json<Value> {
    Json(json!({
        "name": env!("CARGO_PKG_NAME"),
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": EXTENSIONS,
    }))
}

/// Liveness probe
///
/// As `/health/live`.
#[utoipa::path(
    get,
    path = "/v2/health/live",
    operation_id = "kserve_live",
    tag = "kserve",
    responses(
        (status = OK, description = "The server works, loads its model or stops", body = Object),
        KserveLiveProblems,
    ),
)]
pub(super) async fn live(state: State<AppState>) -> Result<Json<Value>, Failure> {
    health::live(state).await.map(|_| Json(json!({"live": true})))
}

/// Readiness probe
///
/// As `/health/ready`.
#[utoipa::path(
    get,
    path = "/v2/health/ready",
    operation_id = "kserve_ready",
    tag = "kserve",
    responses(
        (
            status = OK,
            description = "The model is loaded, and the server is not stopping",
            body = Object,
        ),
        KserveReadyProblems,
    ),
)]
pub(super) async fn ready(state: State<AppState>) -> Result<Json<Value>, Failure> {
    health::ready(state).await.map(|_| Json(json!({"ready": true})))
}

/// Lists the model and its other names
#[utoipa::path(
    post,
    path = "/v2/repository/index",
    operation_id = "kserve_index",
    tag = "kserve",
    responses(
        (status = OK, description = "Triton's index of the model repository", body = Vec<Object>),
        KserveModelProblems,
    ),
)]
pub(super) async fn index(State(state): State<AppState>) -> Result<Json<Value>, Failure> {
    let captioner = state.loaded().ok_or_else(loading)?;
    let entry =
        |name: String| json!({"name": name, "version": VERSION, "state": "READY", "reason": ""});
    Ok(Json(names::all(&state, captioner).into_iter().map(entry).collect()))
}
