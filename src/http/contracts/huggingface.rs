//! The tasks of Hugging Face's inference API, and the contract of its containers.
//!
//! `huggingface_hub` posts to exactly the address that it was given, so the same request may mean
//! several tasks: what is in it decides, and otherwise `HF_TASK`. Addresses that name the task are
//! never in doubt.

use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use utoipa_axum::router::UtoipaMethodRouter;
use utoipa_axum::routes;

use super::ask::Ask;
use super::body::{Received, receive};
use super::intent::Intent;
use super::json::{self, Text};
use super::structured::Format;
use super::{images, names};
use crate::captioner::{CaptionParams, Captioner, ParameterFields, Photo, tags};
use crate::config::HfTask;
use crate::http::auth::Access;
use crate::http::body::TooLarge;
use crate::http::error::Failure;
use crate::http::openapi::errors::{HuggingFaceModelProblems, HuggingFaceProblems};
use crate::http::state::{AppState, loading};
use cutline_error::{Error, ErrorKind, Result};

/// How often an image may be in one request: `visual_question_answering` sends it twice.
const COPIES: usize = 2;

/// The number of tags that transformers returns by default.
const TOP_K: usize = 5;

pub(super) fn routes() -> Vec<(Access, UtoipaMethodRouter<AppState>)> {
    vec![
        (Access::Key, routes!(root)),
        (Access::Key, routes!(predict)),
        (Access::Key, routes!(pipeline)),
        (Access::Key, routes!(info)),
    ]
}

/// The hub's older addresses.
pub(super) const BY_MODEL: &str = "/models/{*id}";

/// Routes whose patterns OpenAPI cannot express: ids of models contain slashes.
pub(super) fn more_routes() -> Router<AppState> {
    Router::new().route(BY_MODEL, post(by_model))
}

#[derive(Debug, Default, Deserialize)]
struct TaskRequest<'a> {
    #[serde(borrow)]
    inputs: Option<&'a RawValue>,
    #[serde(borrow)]
    image: Option<Text<'a>>,
    #[serde(borrow)]
    question: Option<&'a RawValue>,
    #[serde(borrow)]
    parameters: Option<Parameters<'a>>,
}

#[derive(Debug, Default, Deserialize)]
struct Parameters<'a> {
    #[serde(borrow)]
    candidate_labels: Option<&'a RawValue>,
    top_k: Option<u64>,
    #[serde(borrow)]
    function_to_apply: Option<&'a RawValue>,
    #[serde(borrow)]
    generation_parameters: Option<&'a RawValue>,
    #[serde(borrow)]
    generate_kwargs: Option<&'a RawValue>,
    max_new_tokens: Option<u64>,
}

/// Inputs that are an object.
#[derive(Debug, Default, Deserialize)]
struct Inputs<'a> {
    #[serde(borrow)]
    image: Option<Text<'a>>,
    #[serde(borrow)]
    question: Option<&'a RawValue>,
}

/// A task as a request asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    ImageToText,
    ImageClassification,
    ZeroShot,
    QuestionAnswering,
}

/// Captions or tags an image for Hugging Face's clients
///
/// The bytes of an image, or JSON with `inputs` and `parameters`.
#[utoipa::path(
    post,
    path = "/",
    operation_id = "huggingface_root",
    tag = "huggingface",
    request_body(content((Object = "application/json"), (Vec<u8> = "application/octet-stream"))),
    responses((status = OK, description = "The result of the task", body = Vec<Object>), HuggingFaceProblems),
)]
pub(super) async fn root(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, Failure> {
    answer(&state, request, None).await
}

/// The same as `POST /`
#[utoipa::path(
    post,
    path = "/predict",
    operation_id = "huggingface_predict",
    tag = "huggingface",
    request_body(content((Object = "application/json"), (Vec<u8> = "application/octet-stream"))),
    responses((status = OK, description = "The result of the task", body = Vec<Object>), HuggingFaceProblems),
)]
pub(super) async fn predict(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, Failure> {
    answer(&state, request, None).await
}

/// Runs the task in the address
///
/// `image-to-text` or `image-classification`. `zero-shot-image-classification` and
/// `visual-question-answering` are known, but this model cannot do them.
#[utoipa::path(
    post,
    path = "/pipeline/{task}",
    operation_id = "huggingface_pipeline",
    tag = "huggingface",
    params(("task" = String, Path, description = "The task", example = "image-to-text")),
    request_body(content((Object = "application/json"), (Vec<u8> = "application/octet-stream"))),
    responses(
        (status = OK, description = "The result of the task", body = Vec<Object>),
        (status = NOT_FOUND, description = "There is no such task", body = Object),
        HuggingFaceProblems,
    ),
)]
pub(super) async fn pipeline(
    State(state): State<AppState>,
    Path(task): Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    let task = match task.as_str() {
        "image-to-text" => Task::ImageToText,
        "image-classification" => Task::ImageClassification,
        "zero-shot-image-classification" => Task::ZeroShot,
        "visual-question-answering" => Task::QuestionAnswering,
        _ => {
            return Err(Failure(Error::new(
                ErrorKind::NotFound,
                "there is no such task here; use image-to-text or image-classification",
            )));
        }
    };
    answer(&state, request, Some(task)).await
}

async fn by_model(
    State(state): State<AppState>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    names::check(Some(&id), &state, state.captioner()?)?;
    answer(&state, request, None).await
}

/// Describes the model for Hugging Face's clients
#[utoipa::path(
    get,
    path = "/info",
    operation_id = "huggingface_info",
    tag = "huggingface",
    responses((status = OK, description = "The model and its limits", body = Object), HuggingFaceModelProblems),
)]
pub(super) async fn info(State(state): State<AppState>) -> Result<Json<Value>, Failure> {
    let captioner = state.loaded().ok_or_else(loading)?;
    let info = captioner.info();
    Ok(Json(json!({
        "model_id": info.id,
        "model_sha": info.digest_hex(),
        "model_dtype": info.precision,
        "model_device_type": info.device,
        "model_pipeline_tag": "image-to-text",
        "max_concurrent_requests": captioner.status().queue_capacity,
        "max_total_tokens": info.max_positions,
        "version": env!("CARGO_PKG_VERSION"),
    })))
}

async fn answer(
    state: &AppState,
    request: Request,
    task: Option<Task>,
) -> Result<Response, Failure> {
    let captioner = state.captioner()?;
    let received = receive(request, state, captioner.budget(), COPIES).await?;
    let is_json = received.bytes.trim_ascii_start().first().is_some_and(|byte| *byte == b'{');
    let (photo, asked) = if is_json {
        let read = read_json(&received, state, task).await?;
        // The body is not kept while the caption is computed.
        drop(received);
        read
    } else {
        let task = task.unwrap_or(default_task(state));
        (raw(received, state)?, Asked { task, params: CaptionParams::default(), top_k: TOP_K })
    };
    run(state, captioner, photo, asked).await
}

/// A task with its parameters.
struct Asked {
    task: Task,
    params: CaptionParams,
    top_k: usize,
}

fn default_task(state: &AppState) -> Task {
    match state.settings().hf_task {
        HfTask::ImageToText => Task::ImageToText,
        HfTask::ImageClassification => Task::ImageClassification,
    }
}

/// The whole body is the image.
fn raw(received: Received, state: &AppState) -> Result<Photo> {
    let most = state.settings().max_image_bytes;
    if received.bytes.is_empty() {
        return Err(images::required());
    }
    if received.bytes.len() > most {
        return Err(TooLarge::Image(most).error());
    }
    let Received { bytes, permit } = received;
    Ok(permit.photo(bytes))
}

async fn read_json(
    received: &Received,
    state: &AppState,
    task: Option<Task>,
) -> Result<(Photo, Asked)> {
    let asked: TaskRequest<'_> = received.json()?;
    let wrong = |error| {
        let detail = "inputs must be an image in base64, or an object with the field image";
        Error::new(ErrorKind::MalformedRequest, detail).with_source(error)
    };
    let inputs: Inputs<'_> = match asked.inputs.map(RawValue::get) {
        None | Some("null") => Inputs::default(),
        Some(text) if text.starts_with('{') => serde_json::from_str(text).map_err(wrong)?,
        Some(text) => {
            let image = Some(serde_json::from_str(text).map_err(wrong)?);
            Inputs { image, question: None }
        }
    };
    let parameters = asked.parameters.unwrap_or_default();
    let found = if parameters.candidate_labels.is_some() {
        Some(Task::ZeroShot)
    } else if asked.question.or(inputs.question).is_some() {
        Some(Task::QuestionAnswering)
    } else if parameters.top_k.is_some() || parameters.function_to_apply.is_some() {
        Some(Task::ImageClassification)
    } else {
        None
    };
    let task = task.or(found).unwrap_or(default_task(state));
    let reference = inputs.image.or(asked.image).ok_or_else(images::required)?;
    let params = generation(&parameters)?;
    let photo = images::photo(&reference, received, state).await?;
    let top_k = parameters.top_k.and_then(|k| usize::try_from(k).ok()).unwrap_or(TOP_K);
    Ok((photo, Asked { task, params, top_k }))
}

/// Parameters of transformers' `generate`, which have the names of the native ones. Others are ignored.
fn generation(parameters: &Parameters<'_>) -> Result<CaptionParams> {
    let mut fields = ParameterFields::default();
    if let Some(tokens) = parameters.max_new_tokens {
        fields.add("max_new_tokens", json!(tokens))?;
    }
    let object = parameters.generation_parameters.or(parameters.generate_kwargs);
    let Some(object) = object.filter(|object| object.get() != "null") else {
        return fields.finish();
    };
    let foreign = ["stream", "cache", "style", "colors"];
    for (name, value) in json::parameters(object, "generation_parameters")? {
        if ParameterFields::is_known(&name) && !foreign.contains(&name.as_str()) {
            fields.add(&name, value)?;
        }
    }
    fields.finish()
}

async fn run(
    state: &AppState,
    captioner: &Captioner,
    photo: Photo,
    asked: Asked,
) -> Result<Response, Failure> {
    let intent = match asked.task {
        Task::ImageToText => Intent::Caption,
        Task::ImageClassification => Intent::Tags,
        Task::ZeroShot => return Err(cannot("compare images with labels").into()),
        Task::QuestionAnswering => return Err(cannot("answer questions").into()),
    };
    let ask = Ask { photos: vec![photo], params: asked.params, intent, format: Format::Text };
    let reply = Box::pin(ask.answer(state, captioner)).await?;
    let captions = reply.captions.first().map_or(&[][..], |caption| &caption.captions);
    let body: Value = if intent == Intent::Tags {
        let best = tags(captions).into_iter().take(asked.top_k.max(1));
        best.map(|tag| json!({"label": tag.name, "score": tag.score})).collect()
    } else {
        captions.iter().map(|choice| json!({"generated_text": choice.text})).collect()
    };
    Ok(reply.respond(body))
}

fn cannot(what: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("the loaded model cannot {what}; ask for image-to-text or image-classification"),
    )
}
