//! `POST /image-text/score`, `POST /embeddings`, `POST /vqa`

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::time::timeout;

use super::contracts::names;
use super::dto::StreamEvent;
use super::error::Failure;
use super::extract::{self, Upload};
use super::observe::{ImageReport, RequestId};
use super::openapi::bodies::{
    EmbedForm, EmbedJson, EmbedQuery, QuestionForm, QuestionJson, QuestionQuery, RawImage, SQUARE,
    ScoreForm, ScoreJson, ScoreQuery,
};
use super::openapi::errors::TextProblems;
use super::state::AppState;
use super::stream;
use crate::captioner::{Answered, Captioner, Embedded, Scored, TextUse};
use crate::engine::Ability;
use cutline_error::{Error, Result};

/// Says how well texts match an image
///
/// For a model that compares images with texts. Images are sent as for a caption.
#[utoipa::path(
    post,
    path = "/image-text/score",
    operation_id = "score_texts",
    tag = "texts",
    params(ScoreQuery),
    request_body(content(
        (ScoreForm = "multipart/form-data"),
        (
            inline(ScoreJson) = "application/json",
            example = json!({"image": SQUARE, "texts": ["a red square", "a cat"]}),
        ),
        (inline(RawImage) = "image/*"),
        (inline(RawImage) = "application/octet-stream"),
    )),
    responses(
        (status = OK, description = "The score of each text", body = Scored),
        TextProblems,
    ),
)]
pub(super) async fn score(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, Failure> {
    let main = able(&state, Ability::Score)?;
    let (photo, fields) = extract::text_upload(request, &state, main, TextUse::Score).await?;
    let photo = photo.ok_or_else(|| Error::internal("an image was lost"))?;
    let params = fields.finish()?;
    let captioner = named(&state, params.model.as_deref(), Ability::Score)?;
    let work = captioner.score(photo, params);
    let scored = in_time(&state, "send fewer texts", work).await?;
    let report = ImageReport::of_image(&scored.image);
    Ok(reported(scored, Some(report)))
}

/// Embeds an image, texts, or both
///
/// For a model that compares images with texts. The dot product of two embeddings is their cosine.
#[utoipa::path(
    post,
    path = "/embeddings",
    operation_id = "embed",
    tag = "texts",
    params(EmbedQuery),
    request_body(content(
        (EmbedForm = "multipart/form-data"),
        (
            inline(EmbedJson) = "application/json",
            example = json!({"image": SQUARE, "texts": ["a red square"]}),
        ),
        (inline(RawImage) = "image/*"),
        (inline(RawImage) = "application/octet-stream"),
    )),
    responses(
        (status = OK, description = "The embeddings", body = Embedded),
        TextProblems,
    ),
)]
pub(super) async fn embed(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, Failure> {
    let main = able(&state, Ability::Embed)?;
    let (photo, fields) = extract::text_upload(request, &state, main, TextUse::Embed).await?;
    let params = fields.finish()?;
    let captioner = named(&state, params.model.as_deref(), Ability::Embed)?;
    let work = captioner.embed(photo, params);
    let embedded = in_time(&state, "send fewer texts", work).await?;
    let report = embedded.image.as_ref().map(ImageReport::of_image);
    Ok(reported(embedded, report))
}

/// Answers questions about an image
///
/// For a model that answers questions. Images are sent as for a caption. With `stream=true` and one
/// question, the answer comes word by word, as a caption does.
#[utoipa::path(
    post,
    path = "/vqa",
    operation_id = "answer_questions",
    tag = "texts",
    params(QuestionQuery),
    request_body(content(
        (QuestionForm = "multipart/form-data"),
        (
            inline(QuestionJson) = "application/json",
            example = json!({"image": SQUARE, "question": "what color is it?"}),
        ),
        (inline(RawImage) = "image/*"),
        (inline(RawImage) = "application/octet-stream"),
    )),
    responses(
        (
            status = OK,
            description = "The answers; with `stream=true` `token` events, then `done`, with a caption \
                           that is the answer, or `error`",
            content((Answered = "application/json"), (StreamEvent = "text/event-stream")),
        ),
        TextProblems,
    ),
)]
pub(super) async fn ask(
    State(state): State<AppState>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, Failure> {
    let main = able(&state, Ability::Answer)?;
    let (photo, fields) = extract::text_upload(request, &state, main, TextUse::Ask).await?;
    let photo = photo.ok_or_else(|| Error::internal("an image was lost"))?;
    let mut asked = fields.finish_questions()?;
    let name = asked.params.model.take();
    let captioner = named(&state, name.as_deref(), Ability::Answer)?;
    if asked.params.stream {
        let mut params = asked.params;
        params.question = asked.questions.into_iter().next();
        let limit = state.settings().request_timeout;
        return Ok(stream::respond(captioner, Upload { photo, params }, limit, id).await?);
    }
    let work = captioner.ask(photo, asked);
    let answered = in_time(&state, "ask for fewer answers", work).await?;
    let report = ImageReport::of_image(&answered.image);
    Ok(reported(answered, Some(report)))
}

/// The main model, if it or another one in this process can do this: before the body is read, so that a client
/// that waits for `100 Continue` need not send it.
fn able(state: &AppState, ability: Ability) -> Result<&Captioner> {
    let main = state.captioner()?;
    main.able(ability)?;
    Ok(main)
}

/// The model that was asked for, or the first one that can do this.
fn named<'s>(state: &'s AppState, name: Option<&str>, ability: Ability) -> Result<&'s Captioner> {
    let main = state.captioner()?;
    match names::check(name, state, main)? {
        None => main.able(ability),
        Some(name) => {
            let captioner = main.local(Some(&name))?;
            captioner.require(ability)?;
            Ok(captioner)
        }
    }
}

/// Waits for the answer as long as a request may take; after that it is dropped, which cancels it.
async fn in_time<T>(
    state: &AppState,
    remedy: &'static str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let limit = state.settings().request_timeout;
    // Boxed: this future is large, and every future around it would be as well.
    let answer = timeout(limit, Box::pin(work)).await;
    answer.map_err(|_| Error::too_late("answer", limit, remedy))?
}

fn reported(answer: impl Serialize, report: Option<ImageReport>) -> Response {
    let mut response = Json(answer).into_response();
    if let Some(report) = report {
        response.extensions_mut().insert(report);
    }
    response
}
