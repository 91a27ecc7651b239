//! `POST /v1/chat/completions`

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::logprobs::{self, Logprobs, written};
use super::messages::{MESSAGES, Message, conversation};
use super::{ResponseFormat, fingerprint};
use crate::captioner::{CaptionParams, Captioner, Choice, ParameterFields};
use crate::http::contracts::ask::{Ask, Reply};
use crate::http::contracts::body::receive;
use crate::http::contracts::conversation::Conversation;
use crate::http::contracts::error::openai as error_object;
use crate::http::contracts::intent::Intent;
use crate::http::contracts::json::{List, Text, native_parameters};
use crate::http::contracts::sampling::{Sampling, limit_tokens};
use crate::http::contracts::stream::{self, Dialect, event};
use crate::http::contracts::structured::Format;
use crate::http::contracts::{images, names, new_id, unix_seconds};
use crate::http::error::Failure;
use crate::http::openapi::bodies::SQUARE;
use crate::http::openapi::errors::OpenAiProblems;
use crate::http::state::AppState;
use cutline_error::{Error, Result};

#[derive(Debug, Deserialize)]
struct ChatRequest<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow)]
    messages: List<Message<'a>, MESSAGES>,
    n: Option<u64>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    seed: Option<i64>,
    logprobs: Option<bool>,
    top_logprobs: Option<i64>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    #[serde(borrow)]
    response_format: Option<ResponseFormat<'a>>,
    /// Native parameters.
    #[serde(borrow)]
    cutline: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// Captions the images of a chat
///
/// OpenAI's chat completions. The images of the last message that has any are captioned. Texts choose
/// between a caption, alternative text and tags; the model does not read them. The header
/// `x-cutline-intent` says what was understood.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    operation_id = "openai_chat",
    tag = "openai",
    request_body(
        content = Object,
        content_type = "application/json",
        example = json!({"model": "cutline-small", "messages": [{"role": "user", "content": [
            {"type": "text", "text": "Describe this image."},
            {"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{SQUARE}")}},
        ]}]}),
    ),
    responses(
        (
            status = OK,
            description = "OpenAI's chat completion, or its events",
            content((Object = "application/json"), (String = "text/event-stream")),
        ),
        OpenAiProblems,
    ),
)]
pub(super) async fn complete(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, Failure> {
    let captioner = state.captioner()?;
    let most = state.settings().max_images_per_request;
    let received = receive(request, &state, captioner.budget(), most).await?;
    let chat: ChatRequest<'_> = received.json()?;
    let model = names::check(chat.model.as_deref(), &state, captioner)?;
    let chosen = captioner.named(model.as_deref());
    let conversation = conversation(&chat.messages);
    let intent = Intent::of(&conversation.instruction);
    let format = match &chat.response_format {
        Some(format) => format.format()?,
        None => Format::Text,
    };
    let mut params = params(&chat, &conversation, chosen)?;
    params.model = model.or(params.model);
    let photos = images::photos(&conversation.images, &received, &state).await?;
    let logprobs = Logprobs::of(chat.logprobs.unwrap_or(false), chosen);
    let completion = Completion::new(chosen, params.model.as_deref(), logprobs);
    let streamed = chat.stream.unwrap_or(false);
    let usage = chat.stream_options.and_then(|options| options.include_usage).unwrap_or(false);
    drop(received);
    let ask = Ask { photos, params, intent, format };
    let chunks = Chunks { completion, usage };
    Ok(stream::answer(ask, chunks, streamed, &state, captioner).await?)
}

fn params(
    chat: &ChatRequest<'_>,
    conversation: &Conversation<'_>,
    captioner: &Captioner,
) -> Result<CaptionParams> {
    let mut fields = ParameterFields::default();
    if let Some(own) = chat.cutline {
        native_parameters(own, &mut fields)?;
    }
    let mut params = fields.finish()?;
    limit_tokens(&mut params, chat.max_completion_tokens.or(chat.max_tokens), captioner);
    let ChatRequest { temperature, top_p, seed, .. } = *chat;
    Sampling { temperature, top_p, seed, top_k: None }.apply(&mut params);
    if let Some(prefill) = conversation.prefill {
        params.prompt = Some(prefill.to_owned());
    }
    if let Some(n) = chat.n.filter(|n| *n > 1) {
        let most = captioner.info().generation.num_captions_limit;
        params.num_captions = usize::try_from(n).unwrap_or(most).min(most);
        if !params.do_sample {
            params.num_beams = params.num_beams.max(params.num_captions);
        }
    }
    params.stream = false;
    let logprobs = chat.logprobs.unwrap_or(false);
    params.top_logprobs = logprobs::alternatives(chat.top_logprobs, logprobs)?;
    Ok(params)
}

/// What all parts of an answer share.
struct Completion {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
    logprobs: Logprobs,
}

impl Completion {
    fn new(captioner: &Captioner, asked: Option<&str>, logprobs: Logprobs) -> Self {
        let info = captioner.info();
        Self {
            logprobs,
            id: new_id("chatcmpl-"),
            created: unix_seconds(),
            model: asked.unwrap_or(&info.id).to_owned(),
            fingerprint: fingerprint(info).to_owned(),
        }
    }

    fn object(&self, kind: &str, choices: &Value, usage: &Value) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
            "usage": usage,
        })
    }

    fn whole(&self, reply: &Reply) -> Value {
        let choices: Vec<Value> = choices(reply)
            .into_iter()
            .enumerate()
            .map(|(index, OneChoice { text, finish_reason, captions })| {
                let message = json!({
                    "role": "assistant", "content": text, "refusal": null, "annotations": [],
                });
                json!({
                    "index": index,
                    "message": message,
                    "logprobs": self.logprobs(&captions),
                    "finish_reason": finish_reason,
                })
            })
            .collect();
        self.object("chat.completion", &json!(choices), &reply.usage.chat())
    }

    /// Null if they are not wanted, or if the text is not that of the model.
    fn logprobs(&self, captions: &[&Choice]) -> Value {
        let tokens = self.logprobs.tokens(captions);
        tokens.map_or(Value::Null, |tokens| json!({"content": tokens, "refusal": null}))
    }

    fn chunk(&self, choices: &Value, usage: &Value) -> Value {
        self.object("chat.completion.chunk", choices, usage)
    }
}

/// A text, why it ends, and the captions that it consists of.
struct OneChoice<'r> {
    text: &'r str,
    finish_reason: &'static str,
    /// Empty if the text is not that of the model.
    captions: Vec<&'r Choice>,
}

/// The reply, and for one image the other captions.
fn choices(reply: &Reply) -> Vec<OneChoice<'_>> {
    let own = written(reply);
    let is_own = !own.is_empty();
    let mut choices =
        vec![OneChoice { text: &reply.text, finish_reason: reply.finish_reason(), captions: own }];
    if let ([only], Intent::Caption | Intent::AltText { .. }) = (&*reply.captions, reply.intent)
        && reply.text == only.caption
    {
        choices.extend(only.captions.iter().skip(1).map(|choice| OneChoice {
            text: &choice.text,
            finish_reason: choice.finish_reason.as_str(),
            captions: if is_own { vec![choice] } else { Vec::new() },
        }));
    }
    choices
}

/// Neither probabilities nor a reason to end yet.
const OPEN: (Value, Value) = (Value::Null, Value::Null);

/// The stream of chunks.
struct Chunks {
    completion: Completion,
    /// Whether the client wants the usage at the end.
    usage: bool,
}

impl Chunks {
    fn write(&self, index: usize, delta: &Value, finish: (Value, Value), out: &mut Vec<u8>) {
        let (logprobs, finish_reason) = finish;
        let choice = json!({
            "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason,
        });
        event(None, &self.completion.chunk(&json!([choice]), &Value::Null), out);
    }
}

impl Dialect for Chunks {
    const TYPE: &'static str = "text/event-stream";
    const KEEP_ALIVE: Option<&'static str> = Some(": keep-alive\n\n");

    fn whole(&self, reply: &Reply) -> Value {
        self.completion.whole(reply)
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        self.write(0, &json!({"role": "assistant", "content": ""}), OPEN, out);
    }

    fn piece(&mut self, text: &str, out: &mut Vec<u8>) {
        self.write(0, &json!({"content": text}), OPEN, out);
    }

    fn end(&mut self, reply: &Reply, out: &mut Vec<u8>) {
        for (index, choice) in choices(reply).into_iter().enumerate() {
            if index > 0 {
                let delta = json!({"role": "assistant", "content": choice.text});
                self.write(index, &delta, OPEN, out);
            }
            // The probabilities of all tokens come at once, because words are sent before they are known.
            let logprobs = self.completion.logprobs(&choice.captions);
            self.write(index, &json!({}), (logprobs, json!(choice.finish_reason)), out);
        }
        if self.usage {
            event(None, &self.completion.chunk(&json!([]), &reply.usage.chat()), out);
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn fail(&mut self, error: &Error, out: &mut Vec<u8>) {
        event(None, &json!({"error": error_object(error)}), out);
    }
}
