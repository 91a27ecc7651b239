//! What Ollama tells about models: `/api/tags`, `/api/show`, `/api/ps`, `/api/pull`, `/api/version`.

use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::captioner::Captioner;
use crate::http::contracts::body::receive;
use crate::http::contracts::json::Text;
use crate::http::contracts::names;
use crate::http::error::Failure;
use crate::http::openapi::errors::OllamaModelProblems;
use crate::http::state::{AppState, loading};
use cutline_error::Result;

/// The version of Ollama whose contract this is. Clients compare it with what they need.
const VERSION: &str = "0.30.7";

/// Loaded models never expire.
const EXPIRES: &str = "2999-12-31T23:59:59Z";

#[derive(Debug, Deserialize)]
struct ModelRequest<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    /// The older name of the field.
    #[serde(borrow)]
    name: Option<Text<'a>>,
    stream: Option<bool>,
}

/// The version of the contract
#[utoipa::path(
    get,
    path = "/api/version",
    operation_id = "ollama_version",
    tag = "ollama",
    responses((status = OK, description = "Ollama's version, and ours", body = Object)),
)]
pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": VERSION, "cutline": env!("CARGO_PKG_VERSION")}))
}

/// Lists the model and its other names
#[utoipa::path(
    get,
    path = "/api/tags",
    operation_id = "ollama_tags",
    tag = "ollama",
    responses((status = OK, description = "Ollama's list of models", body = Object), OllamaModelProblems),
)]
pub(super) async fn tags(State(state): State<AppState>) -> Result<Json<Value>, Failure> {
    let captioner = state.loaded().ok_or_else(loading)?;
    Ok(Json(json!({"models": entries(&state, captioner)})))
}

/// Lists the loaded model
#[utoipa::path(
    get,
    path = "/api/ps",
    operation_id = "ollama_ps",
    tag = "ollama",
    responses((status = OK, description = "Ollama's list of loaded models", body = Object), OllamaModelProblems),
)]
pub(super) async fn ps(State(state): State<AppState>) -> Result<Json<Value>, Failure> {
    let captioner = state.loaded().ok_or_else(loading)?;
    let mut models = entries(&state, captioner);
    let on_gpu = captioner.info().device != "cpu";
    for model in &mut models {
        model["expires_at"] = json!(EXPIRES);
        model["size_vram"] = if on_gpu { model["size"].clone() } else { json!(0) };
        model["context_length"] = json!(captioner.info().max_positions);
    }
    Ok(Json(json!({"models": models})))
}

/// Describes the model
#[utoipa::path(
    post,
    path = "/api/show",
    operation_id = "ollama_show",
    tag = "ollama",
    request_body(content = Object, content_type = "application/json",
                 example = json!({"model": "cutline-small"})),
    responses((status = OK, description = "Ollama's description of a model", body = Object), OllamaModelProblems),
)]
pub(super) async fn show(
    State(state): State<AppState>,
    request: Request,
) -> Result<Json<Value>, Failure> {
    let (captioner, _) = read(request, &state).await?;
    let info = captioner.info();
    Ok(Json(json!({
        "modelfile": format!("FROM {}\n", info.id),
        "parameters": format!("num_ctx                        {}", info.max_positions),
        "template": "{{ .Prompt }}",
        "license": info.license,
        "details": details(captioner),
        "model_info": {
            "general.architecture": "blip",
            "general.parameter_count": info.parameters,
            "blip.context_length": info.max_positions,
            "blip.image_size": info.input_size[0],
            "blip.vocab_size": info.vocab_size,
        },
        "capabilities": ["completion", "vision"],
        "modified_at": started(&state),
    })))
}

/// Answers that the model is there
///
/// A name that means the loaded model succeeds at once. No other model is fetched.
#[utoipa::path(
    post,
    path = "/api/pull",
    operation_id = "ollama_pull",
    tag = "ollama",
    request_body(content = Object, content_type = "application/json",
                 example = json!({"model": "cutline-small", "stream": false})),
    responses(
        (status = OK, description = "Ollama's last line", content((Object = "application/json"), (String = "application/x-ndjson"))),
        OllamaModelProblems,
    ),
)]
pub(super) async fn pull(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, Failure> {
    let (_, streamed) = read(request, &state).await?;
    if !streamed {
        return Ok(Json(json!({"status": "success"})).into_response());
    }
    let lines = "{\"status\":\"success\"}\n";
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], lines).into_response())
}

/// Reads a request that names the loaded model. Also says whether the answer is a stream.
async fn read(request: Request, state: &AppState) -> Result<(&Captioner, bool)> {
    let captioner = state.loaded().ok_or_else(loading)?;
    let received = receive(request, state, captioner.budget(), 0).await?;
    let asked: ModelRequest<'_> = received.json()?;
    let model = names::check(asked.model.or(asked.name).as_deref(), state, captioner)?;
    Ok((captioner.named(model.as_deref()), asked.stream.unwrap_or(true)))
}

/// One entry for each name of the model.
fn entries(state: &AppState, captioner: &Captioner) -> Vec<Value> {
    let names = names::all(state, captioner).into_iter();
    let entry = |name: String| {
        let captioner = captioner.named(Some(&name));
        // Home Assistant looks for a name with its tag.
        let name = if name.contains(':') { name } else { format!("{name}:latest") };
        json!({
            "name": name,
            "model": name,
            "modified_at": started(state),
            "size": size(captioner),
            "digest": captioner.info().digest_hex(),
            "details": details(captioner),
            "capabilities": ["completion", "vision"],
        })
    };
    names.map(entry).collect()
}

fn details(captioner: &Captioner) -> Value {
    let info = captioner.info();
    json!({
        "parent_model": "",
        "format": "safetensors",
        "family": "blip",
        "families": ["blip"],
        "parameter_size": format!("{}M", info.parameters / 1_000_000),
        "quantization_level": info.precision.to_uppercase(),
    })
}

/// Bytes of the weights as they are in memory.
fn size(captioner: &Captioner) -> u64 {
    let info = captioner.info();
    let bytes = match info.precision.as_str() {
        "int8" => 1,
        "f16" | "bf16" => 2,
        _ => 4,
    };
    info.parameters * bytes
}

/// When the model was loaded, to the second.
fn started(state: &AppState) -> String {
    let uptime = Duration::from_secs(state.uptime().as_secs());
    let at = SystemTime::now().checked_sub(uptime).unwrap_or(SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_seconds(at).to_string()
}
