//! `POST /api/generate` and `POST /api/chat`

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::now;
use crate::captioner::{CaptionParams, Captioner};
use crate::http::contracts::ask::{Ask, Reply};
use crate::http::contracts::body::{Received, receive};
use crate::http::contracts::conversation::{Conversation, Turn};
use crate::http::contracts::error::value;
use crate::http::contracts::intent::Intent;
use crate::http::contracts::json::{List, Text};
use crate::http::contracts::sampling::{Sampling, limit_tokens};
use crate::http::contracts::stream::{self, Dialect};
use crate::http::contracts::structured::Format;
use crate::http::contracts::{Contract, images, names};
use crate::http::error::Failure;
use crate::http::openapi::bodies::SQUARE;
use crate::http::openapi::errors::OllamaProblems;
use crate::http::state::AppState;
use cutline_error::{Error, Result};

/// The most messages of a chat, and images of a message.
const MESSAGES: usize = 1024;
const IMAGES: usize = 1024;

#[derive(Debug, Default, Deserialize)]
struct Options {
    num_predict: Option<i64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i64>,
    seed: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct GenerateRequest<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow)]
    prompt: Option<Text<'a>>,
    #[serde(borrow)]
    system: Option<Text<'a>>,
    raw: Option<bool>,
    #[serde(borrow, default)]
    images: List<Text<'a>, IMAGES>,
    #[serde(borrow)]
    format: Option<&'a RawValue>,
    options: Option<Options>,
    stream: Option<bool>,
    #[serde(borrow)]
    keep_alive: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct ChatRequest<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow, default)]
    messages: List<Message<'a>, MESSAGES>,
    #[serde(borrow)]
    format: Option<&'a RawValue>,
    options: Option<Options>,
    stream: Option<bool>,
    #[serde(borrow)]
    keep_alive: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    role: Option<Text<'a>>,
    #[serde(borrow)]
    content: Option<Text<'a>>,
    #[serde(borrow, default)]
    images: List<Text<'a>, IMAGES>,
}

impl Message<'_> {
    fn turn(&self) -> Turn<'_> {
        Turn {
            role: self.role.as_deref().unwrap_or("user"),
            texts: self.content.as_deref().into_iter().collect(),
            images: self.images.iter().map(|image| &**image).collect(),
        }
    }
}

/// What both requests ask for.
struct Wanted<'a> {
    model: Option<&'a str>,
    images: Vec<&'a str>,
    instruction: String,
    /// Text that the model continues.
    prompt: Option<&'a str>,
    format: Option<&'a RawValue>,
    options: Options,
    /// The default is true.
    stream: bool,
    /// Whether the model would be unloaded.
    unload: bool,
    shape: Shape,
}

/// Where the text is in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Generate,
    Chat,
}

/// Captions the images of a prompt
///
/// Ollama's generate. The prompt chooses between a caption, alternative text and tags; the model does
/// not read it, except with `raw`, where it continues it.
#[utoipa::path(
    post,
    path = "/api/generate",
    operation_id = "ollama_generate",
    tag = "ollama",
    request_body(
        content = Object,
        content_type = "application/json",
        example = json!({"model": "cutline-small", "prompt": "Describe this image.",
                         "images": [SQUARE], "stream": false}),
    ),
    responses(
        (
            status = OK,
            description = "Ollama's answer, or its lines",
            content((Object = "application/json"), (String = "application/x-ndjson")),
        ),
        OllamaProblems,
    ),
)]
pub(super) async fn generate(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, Failure> {
    let captioner = state.captioner()?;
    let most = state.settings().max_images_per_request;
    let received = receive(request, &state, captioner.budget(), most).await?;
    let asked: GenerateRequest<'_> = received.json()?;
    let prompt = asked.prompt.as_deref().filter(|prompt| !prompt.is_empty());
    let raw = asked.raw.unwrap_or(false);
    let instruction = if raw { None } else { prompt };
    let system = asked.system.as_deref().unwrap_or_default();
    let wanted = Wanted {
        model: asked.model.as_deref(),
        images: asked.images.iter().map(|image| &**image).collect(),
        instruction: format!("{system}\n{}", instruction.unwrap_or_default()),
        prompt: prompt.filter(|_| raw),
        format: asked.format,
        options: asked.options.unwrap_or_default(),
        stream: asked.stream.unwrap_or(true),
        unload: unloads(asked.keep_alive),
        shape: Shape::Generate,
    };
    if wanted.images.is_empty() && prompt.is_none() {
        return Ok(loaded(&wanted, &state, captioner)?);
    }
    let (ask, lines, streamed) = prepare(wanted, &received, &state, captioner).await?;
    drop(received);
    Ok(stream::answer(ask, lines, streamed, &state, captioner).await?)
}

/// Captions the images of a chat
///
/// Ollama's chat. The images of the last message that has any are captioned. Texts mean the same as in
/// `/api/generate`.
#[utoipa::path(
    post,
    path = "/api/chat",
    operation_id = "ollama_chat",
    tag = "ollama",
    request_body(
        content = Object,
        content_type = "application/json",
        example = json!({"model": "cutline-small", "stream": false, "messages": [
            {"role": "user", "content": "Describe this image.", "images": [SQUARE]},
        ]}),
    ),
    responses(
        (
            status = OK,
            description = "Ollama's answer, or its lines",
            content((Object = "application/json"), (String = "application/x-ndjson")),
        ),
        OllamaProblems,
    ),
)]
pub(super) async fn chat(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, Failure> {
    let captioner = state.captioner()?;
    let most = state.settings().max_images_per_request;
    let received = receive(request, &state, captioner.budget(), most).await?;
    let asked: ChatRequest<'_> = received.json()?;
    let turns = asked.messages.iter().map(Message::turn).collect();
    let Conversation { images, instruction, prefill } = Conversation::of(turns);
    let wanted = Wanted {
        model: asked.model.as_deref(),
        images,
        instruction,
        prompt: prefill,
        format: asked.format,
        options: asked.options.unwrap_or_default(),
        stream: asked.stream.unwrap_or(true),
        unload: unloads(asked.keep_alive),
        shape: Shape::Chat,
    };
    if asked.messages.is_empty() {
        return Ok(loaded(&wanted, &state, captioner)?);
    }
    let (ask, lines, streamed) = prepare(wanted, &received, &state, captioner).await?;
    drop(received);
    Ok(stream::answer(ask, lines, streamed, &state, captioner).await?)
}

/// `keep_alive` of zero, as a number or a text: `0`, `0.0` or `"0s"`.
fn unloads(keep_alive: Option<&RawValue>) -> bool {
    let zero = |value: &RawValue| {
        let text = value.get().trim_matches('"').trim_end_matches(['s', 'm', 'h']);
        text.parse::<f64>().is_ok_and(|number| number == 0.0)
    };
    keep_alive.is_some_and(zero)
}

/// The answer to a request that only loads or unloads the model, which is always loaded.
fn loaded(wanted: &Wanted<'_>, state: &AppState, captioner: &Captioner) -> Result<Response> {
    let _known = names::check(wanted.model, state, captioner)?;
    let mut answer = head(wanted.model.unwrap_or(&captioner.info().id), wanted.shape, "");
    answer["done"] = json!(true);
    answer["done_reason"] = json!(if wanted.unload { "unload" } else { "load" });
    Ok(Json(answer).into_response())
}

/// Everything that needs the body, which is not kept while the caption is computed.
async fn prepare(
    wanted: Wanted<'_>,
    received: &Received,
    state: &AppState,
    captioner: &Captioner,
) -> Result<(Ask, Lines, bool)> {
    let model = names::check(wanted.model, state, captioner)?;
    let chosen = captioner.named(model.as_deref());
    let intent = Intent::of(&wanted.instruction);
    let format = format(wanted.format)?;
    let photos = images::photos(&wanted.images, received, state).await?;
    let params = CaptionParams { model, ..params(&wanted, chosen) };
    let lines = Lines {
        model: wanted.model.unwrap_or(&captioner.info().id).to_owned(),
        shape: wanted.shape,
    };
    Ok((Ask { photos, params, intent, format }, lines, wanted.stream))
}

fn params(wanted: &Wanted<'_>, captioner: &Captioner) -> CaptionParams {
    let mut params = CaptionParams::default();
    let Options { num_predict, temperature, top_p, top_k, seed } = wanted.options;
    // Negative numbers mean no limit.
    limit_tokens(&mut params, num_predict.and_then(|n| u64::try_from(n).ok()), captioner);
    Sampling { temperature, top_p, top_k, seed }.apply(&mut params);
    params.prompt = wanted.prompt.map(str::to_owned);
    params
}

/// `""`, `"json"` or a schema.
fn format(format: Option<&RawValue>) -> Result<Format> {
    match format.map(RawValue::get) {
        None | Some("null" | "\"\"") => Ok(Format::Text),
        Some("\"json\"") => Ok(Format::Json),
        Some(schema) if schema.starts_with('{') => Format::schema(schema),
        Some(_) => {
            Err(Error::parameter("format", "format must be \"json\" or a JSON schema; send that"))
        }
    }
}

/// The fields of every line.
fn head(model: &str, shape: Shape, text: &str) -> Value {
    match shape {
        Shape::Generate => json!({
            "model": model, "created_at": now(), "response": text, "done": false,
        }),
        Shape::Chat => json!({
            "model": model,
            "created_at": now(),
            "message": {"role": "assistant", "content": text},
            "done": false,
        }),
    }
}

/// The stream of lines.
struct Lines {
    model: String,
    shape: Shape,
}

impl Lines {
    /// The last line, with the text that it still has to carry.
    fn last(&self, reply: &Reply, text: &str) -> Value {
        let nanoseconds = |each: fn(&crate::captioner::Timings) -> f64| {
            let most = reply.captions.iter().map(|caption| each(&caption.timings));
            (most.fold(0.0, f64::max) * 1e6) as u64
        };
        let mut line = head(&self.model, self.shape, text);
        line["done"] = json!(true);
        line["done_reason"] = json!(reply.finish_reason());
        if self.shape == Shape::Generate {
            line["context"] = json!([]);
        }
        line["total_duration"] = json!(nanoseconds(|timings| timings.total_ms));
        line["load_duration"] = json!(0);
        line["prompt_eval_count"] = json!(reply.usage.prompt);
        line["prompt_eval_duration"] = json!(nanoseconds(|timings| timings.decode_ms));
        line["eval_count"] = json!(reply.usage.completion);
        line["eval_duration"] = json!(nanoseconds(|timings| timings.inference_ms));
        line
    }
}

fn write(line: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("{line}\n").as_bytes());
}

impl Dialect for Lines {
    const TYPE: &'static str = "application/x-ndjson";
    /// Clients parse every line.
    const KEEP_ALIVE: Option<&'static str> = None;

    fn whole(&self, reply: &Reply) -> Value {
        self.last(reply, &reply.text)
    }

    fn begin(&mut self, _: &mut Vec<u8>) {}

    fn piece(&mut self, text: &str, out: &mut Vec<u8>) {
        write(&head(&self.model, self.shape, text), out);
    }

    fn end(&mut self, reply: &Reply, out: &mut Vec<u8>) {
        write(&self.last(reply, ""), out);
    }

    fn fail(&mut self, error: &Error, out: &mut Vec<u8>) {
        write(&value(Contract::Ollama, error).unwrap_or_default(), out);
    }
}
