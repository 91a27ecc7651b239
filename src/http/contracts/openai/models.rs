//! `GET /v1/models` and `GET /v1/models/{id}`

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::captioner::Captioner;
use crate::http::contracts::{names, unix_seconds};
use crate::http::error::Failure;
use crate::http::openapi::errors::OpenAiModelProblems;
use crate::http::state::{AppState, loading};

/// Lists the model and its other names
#[utoipa::path(
    get,
    path = "/v1/models",
    operation_id = "openai_models",
    tag = "openai",
    responses((status = OK, description = "OpenAI's list of models", body = Object), OpenAiModelProblems),
)]
pub(super) async fn list(State(state): State<AppState>) -> Result<Json<Value>, Failure> {
    let captioner = state.loaded().ok_or_else(loading)?;
    let names = names::all(&state, captioner).into_iter();
    let models: Vec<Value> = names.map(|name| model(&name, &state, captioner)).collect();
    Ok(Json(json!({"object": "list", "data": models})))
}

pub(super) async fn retrieve(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Failure> {
    let captioner = state.loaded().ok_or_else(loading)?;
    let model_name = names::check(Some(&id), &state, captioner)?;
    let all = names::all(&state, captioner);
    let named = all.iter().find(|name| **name == id);
    let name = named.or(model_name.as_ref()).unwrap_or(&captioner.info().id);
    Ok(Json(model(name, &state, captioner)))
}

fn model(name: &str, state: &AppState, captioner: &Captioner) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": unix_seconds().saturating_sub(state.uptime().as_secs()),
        "owned_by": "cutline",
        "context_length": captioner.named(Some(name)).info().max_positions,
        "architecture": {"input_modalities": ["image", "text"], "output_modalities": ["text"]},
        "capabilities": ["vision"],
    })
}
