//! `GET /v2/models/{model}`, alone and with `/ready` or `/config`

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::HeaderValue;
use axum::http::header::ALLOW;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::{Action, Address, PLATFORM, VERSION};
use crate::http::error::Failure;
use crate::http::health;
use crate::http::openapi::errors::KserveModelProblems;
use crate::http::state::{AppState, loading};
use cutline_error::{Error, ErrorKind, Result};

/// All addresses of the model that are read.
pub(super) async fn show(
    State(state): State<AppState>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Failure> {
    let captioner = state.loaded().ok_or_else(loading)?;
    let address = Address::of(path)?;
    let name = address.name(&state, captioner)?;
    let description = match address.action {
        Action::Metadata => tensors(&name),
        Action::Config => configuration(&name, state.settings().max_images_per_request),
        Action::Ready => {
            let ready = health::ready(State(state.clone())).await;
            ready.map(|_| json!({"name": name, "ready": true}))?
        }
        Action::Infer => return Ok(not_allowed("use POST", HeaderValue::from_static("POST"))),
    };
    Ok(Json(description).into_response())
}

/// The refusal of a method at an address that has another one.
pub(super) fn not_allowed(advice: &str, allowed: HeaderValue) -> Response {
    let detail = format!("this method is not allowed here; {advice}");
    let mut response = Failure(Error::new(ErrorKind::MethodNotAllowed, detail)).into_response();
    response.headers_mut().insert(ALLOW, allowed);
    response
}

/// The inputs and outputs, with any number of images.
fn tensors(name: &str) -> Value {
    let tensor =
        |name: &str, datatype: &str| json!({"name": name, "datatype": datatype, "shape": [-1, 1]});
    json!({
        "name": name,
        "versions": [VERSION],
        "platform": PLATFORM,
        "inputs": [tensor("image", "BYTES"), tensor("prompt", "BYTES")],
        "outputs": [tensor("caption", "BYTES"), tensor("confidence", "FP32")],
    })
}

/// The model in Triton's format. The dimension of the batch is left out there.
fn configuration(name: &str, most_images: usize) -> Value {
    let tensor = |name: &str, kind: &str| json!({"name": name, "data_type": kind, "dims": [1]});
    let mut prompt = tensor("prompt", "TYPE_STRING");
    prompt["optional"] = json!(true);
    json!({
        "name": name,
        "platform": PLATFORM,
        "backend": "cutline",
        "max_batch_size": most_images,
        "input": [tensor("image", "TYPE_STRING"), prompt],
        "output": [tensor("caption", "TYPE_STRING"), tensor("confidence", "TYPE_FP32")],
        "model_transaction_policy": {"decoupled": false},
    })
}

/// Describes inputs and outputs
///
/// `image` holds files of images, `prompt` optionally a text that the caption continues.
#[utoipa::path(
    get,
    path = "/v2/models/{model}",
    operation_id = "kserve_model",
    tag = "kserve",
    params(("model" = String, Path, description = "The model's name or one of `MODEL_ALIASES`.")),
    responses((status = OK, description = "KServe's metadata", body = Object), KserveModelProblems),
)]
#[allow(dead_code, reason = "described here, served by show")]
pub(super) async fn metadata() {}

/// Says whether the model is ready
#[utoipa::path(
    get,
    path = "/v2/models/{model}/ready",
    operation_id = "kserve_model_ready",
    tag = "kserve",
    params(("model" = String, Path, description = "The model's name or one of `MODEL_ALIASES`.")),
    responses((status = OK, description = "It is ready", body = Object), KserveModelProblems),
)]
#[allow(dead_code, reason = "as above")]
pub(super) async fn ready() {}

/// Describes the model in Triton's format
#[utoipa::path(
    get,
    path = "/v2/models/{model}/config",
    operation_id = "kserve_model_config",
    tag = "kserve",
    params(("model" = String, Path, description = "The model's name or one of `MODEL_ALIASES`.")),
    responses((status = OK, description = "Triton's configuration", body = Object), KserveModelProblems),
)]
#[allow(dead_code, reason = "as above")]
pub(super) async fn config() {}
