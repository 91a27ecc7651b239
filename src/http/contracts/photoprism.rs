//! PhotoPrism's vision service: captions and labels of one photo.
//!
//! PhotoPrism can also use its engines for Ollama and OpenAI, which speak those contracts.

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa_axum::router::UtoipaMethodRouter;
use utoipa_axum::routes;

use super::ask::{Ask, Reply};
use super::body::receive;
use super::images;
use super::intent::Intent;
use super::json::{List, Text};
use super::structured::Format;
use crate::captioner::{CaptionParams, Captioner};
use crate::http::auth::Access;
use crate::http::error::Failure;
use crate::http::openapi::bodies::SQUARE;
use crate::http::openapi::errors::PhotoPrismProblems;
use crate::http::state::AppState;
use cutline_error::{Error, ErrorKind, Result};

/// The most images in a request; one is used.
const IMAGES: usize = 64;

pub(super) fn routes() -> Vec<(Access, UtoipaMethodRouter<AppState>)> {
    vec![(Access::CAPTION, routes!(caption)), (Access::CAPTION, routes!(labels))]
}

/// Names of models are not looked at: PhotoPrism sends those of its own settings.
#[derive(Debug, Deserialize)]
struct VisionRequest<'a> {
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    prompt: Option<Text<'a>>,
    #[serde(borrow)]
    url: Option<Text<'a>>,
    #[serde(borrow, default)]
    images: List<Text<'a>, IMAGES>,
}

/// Captions a photo for PhotoPrism
#[utoipa::path(
    post,
    path = "/api/v1/vision/caption",
    operation_id = "photoprism_caption",
    tag = "photoprism",
    request_body(content = Object, content_type = "application/json",
                 example = json!({"id": "1", "images": [format!("data:image/png;base64,{SQUARE}")]})),
    responses((status = OK, description = "PhotoPrism's result", body = Object), PhotoPrismProblems),
)]
pub(super) async fn caption(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, Failure> {
    answer(&state, request, false).await
}

/// Labels a photo for PhotoPrism
#[utoipa::path(
    post,
    path = "/api/v1/vision/labels",
    operation_id = "photoprism_labels",
    tag = "photoprism",
    request_body(content = Object, content_type = "application/json",
                 example = json!({"id": "1", "images": [format!("data:image/png;base64,{SQUARE}")]})),
    responses((status = OK, description = "PhotoPrism's result", body = Object), PhotoPrismProblems),
)]
pub(super) async fn labels(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, Failure> {
    answer(&state, request, true).await
}

async fn answer(state: &AppState, request: Request, labels: bool) -> Result<Response, Failure> {
    let captioner = state.captioner()?;
    let received = receive(request, state, captioner.budget(), 1).await?;
    let asked: VisionRequest<'_> = received.json()?;
    let reference = match (&*asked.images, &asked.url) {
        ([], None) => return Err(Failure(images::required())),
        ([], Some(url)) => url,
        ([only], _) => only,
        _ => {
            return Err(Failure(Error::new(
                ErrorKind::BatchTooLarge,
                "this address takes one image; send the others in requests of their own",
            )));
        }
    };
    let photo = images::photo(reference, &received, state).await?;
    let intent = match Intent::of(asked.prompt.as_deref().unwrap_or_default()) {
        _ if labels => Intent::Tags,
        Intent::Tags => Intent::Caption,
        intent => intent,
    };
    let id = asked.id.as_deref().map(str::to_owned);
    // The body is not kept while the caption is computed.
    drop(received);
    let ask =
        Ask { photos: vec![photo], params: CaptionParams::default(), intent, format: Format::Text };
    let reply = Box::pin(ask.answer(state, captioner)).await?;
    let kind = if labels { "labels" } else { "caption" };
    let result = if labels { labels_of(&reply) } else { caption_of(&reply) };
    let body = json!({
        "id": id,
        "code": 200,
        "model": model(captioner, kind),
        "result": result,
    });
    Ok(reply.respond(body))
}

fn model(captioner: &Captioner, kind: &str) -> Value {
    let info = captioner.info();
    json!({
        "type": kind,
        "name": info.id,
        "version": env!("CARGO_PKG_VERSION"),
        "resolution": info.input_size[0],
    })
}

fn caption_of(reply: &Reply) -> Value {
    let best = reply.captions.first().and_then(|caption| caption.captions.first());
    let confidence = best.map_or(0.0, |best| best.confidence);
    json!({"caption": {"text": reply.text, "source": "image", "confidence": confidence}})
}

fn labels_of(reply: &Reply) -> Value {
    let label = |tag: &crate::captioner::Tag| {
        json!({
            "name": reply.labels.name(tag),
            "source": "image",
            "priority": 0,
            "confidence": tag.score,
            "topicality": tag.score,
            "categories": [],
        })
    };
    json!({"labels": reply.labels.tags.iter().map(label).collect::<Vec<_>>()})
}
