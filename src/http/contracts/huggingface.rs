//! The tasks of Hugging Face's inference API, and the contract of its containers.
//!
//! `huggingface_hub` posts to exactly the address that it was given, so the same request may mean
//! several tasks: what is in it decides, and otherwise `HF_TASK`. Addresses that name the task are
//! never in doubt.

use std::borrow::Cow;

use axum::extract::{Path, Request, State};
use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::timeout;
use utoipa_axum::router::UtoipaMethodRouter;
use utoipa_axum::routes;

use super::ask::Ask;
use super::body::{Received, receive};
use super::intent::Intent;
use super::json::{self, Text};
use super::structured::Format;
use super::{INTENT, images, names};
use crate::captioner::{CaptionParams, Captioner, ParameterFields, Photo};
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

/// The field with the labels of a zero-shot classification.
const LABELS: &str = "candidate_labels";

/// What precedes a label. A captioner has not read the sentence of transformers, "This is a photo of".
const PROMPT: &str = "a photo of a";

pub(super) fn routes() -> Vec<(Access, UtoipaMethodRouter<AppState>)> {
    vec![
        (Access::CAPTION, routes!(root)),
        (Access::CAPTION, routes!(predict)),
        (Access::CAPTION, routes!(pipeline)),
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
    #[serde(borrow)]
    hypothesis_template: Option<Cow<'a, str>>,
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
    answer(&state, request, (None, None)).await
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
    answer(&state, request, (None, None)).await
}

/// Runs the task in the address
///
/// `image-to-text`, `image-classification` or `zero-shot-image-classification`.
/// `visual-question-answering` is known, but this model cannot do it.
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
                "there is no such task here; use image-to-text, image-classification or \
                 zero-shot-image-classification",
            )));
        }
    };
    answer(&state, request, (Some(task), None)).await
}

async fn by_model(
    State(state): State<AppState>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    let model = names::check(Some(&id), &state, state.captioner()?)?;
    answer(&state, request, (None, model)).await
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
    (task, model): (Option<Task>, Option<String>),
) -> Result<Response, Failure> {
    let captioner = state.captioner()?;
    let received = receive(request, state, captioner.budget(), COPIES).await?;
    let is_json = received.bytes.trim_ascii_start().first().is_some_and(|byte| *byte == b'{');
    let (photo, mut asked) = if is_json {
        let read = read_json(&received, state, task).await?;
        // The body is not kept while the caption is computed.
        drop(received);
        read
    } else {
        let task = task.unwrap_or(default_task(state));
        let params = CaptionParams::default();
        (raw(received, state)?, Asked { task, params, top_k: TOP_K, labels: None })
    };
    asked.params.model = model;
    run(state, captioner, photo, asked).await
}

/// A task with its parameters.
struct Asked {
    task: Task,
    params: CaptionParams,
    top_k: usize,
    labels: Option<Labels>,
}

/// Texts to compare with the image.
struct Labels {
    /// What precedes them.
    prompt: String,
    texts: Vec<String>,
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
    let labels = labels(&parameters)?;
    let photo = images::photo(&reference, received, state).await?;
    let top_k = parameters.top_k.and_then(|k| usize::try_from(k).ok()).unwrap_or(TOP_K);
    Ok((photo, Asked { task, params, top_k, labels }))
}

/// The candidates of a zero-shot classification: a list, or one text with commas, as in transformers.
fn labels(parameters: &Parameters<'_>) -> Result<Option<Labels>> {
    let Some(labels) = parameters.candidate_labels.filter(|labels| labels.get() != "null") else {
        return Ok(None);
    };
    let wrong = |error| {
        let detail = "candidate_labels must be a list of texts, such as [\"cat\", \"dog\"]";
        Error::parameter(LABELS, detail).with_source(error)
    };
    let texts: Vec<String> = if labels.get().starts_with('"') {
        let text: String = serde_json::from_str(labels.get()).map_err(wrong)?;
        text.split(',').map(|label| label.trim().to_owned()).collect()
    } else {
        serde_json::from_str(labels.get()).map_err(wrong)?
    };
    let prompt = match &parameters.hypothesis_template {
        None => PROMPT.to_owned(),
        Some(template) => match template.split_once("{}") {
            // What follows the label cannot tell labels apart much, and is left out.
            Some((before, _)) => before.trim_end().to_owned(),
            None => {
                let detail = "hypothesis_template must contain {} where the label belongs";
                return Err(Error::parameter("hypothesis_template", detail));
            }
        },
    };
    Ok(Some(Labels { prompt, texts }))
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
    let foreign = ["stream", "cache", "style", "colors", "rerank"];
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
        Task::ZeroShot => return Ok(compare(state, captioner, photo, asked.labels).await?),
        Task::QuestionAnswering => return Err(cannot("answer questions").into()),
    };
    let ask = Ask { photos: vec![photo], params: asked.params, intent, format: Format::Text };
    let reply = Box::pin(ask.answer(state, captioner)).await?;
    let captions = reply.captions.first().map_or(&[][..], |caption| &caption.captions);
    let body: Value = if intent == Intent::Tags {
        let best = reply.labels.tags.iter().take(asked.top_k.max(1));
        best.map(|tag| json!({"label": tag.name, "score": tag.score})).collect()
    } else {
        captions.iter().map(|choice| json!({"generated_text": choice.text})).collect()
    };
    Ok(reply.respond(body))
}

/// How well each label fits the image, as shares of 1, the greatest first.
async fn compare(
    state: &AppState,
    captioner: &Captioner,
    photo: Photo,
    labels: Option<Labels>,
) -> Result<Response> {
    let Labels { prompt, texts } = labels.ok_or_else(|| {
        Error::parameter(LABELS, "zero-shot classification needs candidate_labels, a list of texts")
    })?;
    let limit = state.settings().request_timeout;
    // "a photo of a a cat" would be no English.
    let article = if prompt.ends_with(" a") { &["a ", "an ", "the "][..] } else { &[] };
    let name = |text: &String| {
        let name = article.iter().find_map(|article| text.strip_prefix(article));
        name.unwrap_or(text).to_owned()
    };
    let names: Vec<String> = texts.iter().map(name).collect();
    let work = Box::pin(captioner.fit(photo, &prompt, &names, LABELS));
    let late = |_| Error::too_late("answer", limit, "send fewer labels");
    let scores = timeout(limit, work).await.map_err(late)??;
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = scores.iter().map(|score| (score - most).exp()).collect();
    let total: f32 = weights.iter().sum();
    let mut shares: Vec<(String, f32)> =
        texts.into_iter().zip(weights.iter().map(|weight| weight / total)).collect();
    shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    let body: Value =
        shares.into_iter().map(|(label, score)| json!({"label": label, "score": score})).collect();
    let mut response = Json(body).into_response();
    response.headers_mut().insert(INTENT, HeaderValue::from_static("labels"));
    Ok(response)
}

fn cannot(what: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("the loaded model cannot {what}; ask for image-to-text or image-classification"),
    )
}
