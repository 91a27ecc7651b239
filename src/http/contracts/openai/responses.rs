//! `POST /v1/responses`

use std::fmt;

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Deserialize;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::ResponseFormat;
use super::logprobs::{self, Logprobs, written};
use super::messages::{MESSAGES, Message, conversation};
use crate::captioner::ParameterFields;
use crate::http::contracts::ask::{Ask, Reply};
use crate::http::contracts::body::receive;
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

/// The most names in `include`.
const INCLUDED: usize = 64;

/// The name in `include` of the probabilities of tokens.
const LOGPROBS: &str = "message.output_text.logprobs";

#[derive(Debug, Deserialize)]
struct ResponseRequest<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow)]
    input: Input<'a>,
    #[serde(borrow)]
    instructions: Option<Text<'a>>,
    max_output_tokens: Option<u64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_logprobs: Option<i64>,
    #[serde(borrow, default)]
    include: List<Text<'a>, INCLUDED>,
    stream: Option<bool>,
    #[serde(borrow)]
    text: Option<TextOptions<'a>>,
    #[serde(borrow)]
    previous_response_id: Option<Text<'a>>,
    /// Native parameters.
    #[serde(borrow)]
    cutline: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct TextOptions<'a> {
    #[serde(borrow)]
    format: Option<ResponseFormat<'a>>,
}

/// One text, or messages.
#[derive(Debug)]
struct Input<'a>(List<Message<'a>, MESSAGES>);

/// Captions the images of a conversation
///
/// OpenAI's responses. Nothing is stored, so `previous_response_id` is refused. Images and texts mean
/// the same as in `/v1/chat/completions`.
#[utoipa::path(
    post,
    path = "/v1/responses",
    operation_id = "openai_responses",
    tag = "openai",
    request_body(
        content = Object,
        content_type = "application/json",
        example = json!({"model": "cutline-small", "input": [{"role": "user", "content": [
            {"type": "input_text", "text": "Describe this image."},
            {"type": "input_image", "image_url": format!("data:image/png;base64,{SQUARE}")},
        ]}]}),
    ),
    responses(
        (
            status = OK,
            description = "OpenAI's response, or its events",
            content((Object = "application/json"), (String = "text/event-stream")),
        ),
        OpenAiProblems,
    ),
)]
pub(super) async fn create(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, Failure> {
    let captioner = state.captioner()?;
    let most = state.settings().max_images_per_request;
    let received = receive(request, &state, captioner.budget(), most).await?;
    let asked: ResponseRequest<'_> = received.json()?;
    let model = names::check(asked.model.as_deref(), &state, captioner)?;
    let chosen = captioner.named(model.as_deref());
    if asked.previous_response_id.is_some() {
        return Err(Failure(Error::parameter(
            "previous_response_id",
            "this server stores no responses; send the whole conversation as input",
        )));
    }
    let conversation = conversation(&asked.input.0);
    let instructions = asked.instructions.as_deref().unwrap_or_default();
    let intent = Intent::of(&format!("{instructions}\n{}", conversation.instruction));
    let format = match asked.text.as_ref().and_then(|text| text.format.as_ref()) {
        Some(format) => format.format()?,
        None => Format::Text,
    };
    let mut fields = ParameterFields::default();
    if let Some(own) = asked.cutline {
        native_parameters(own, &mut fields)?;
    }
    let mut params = fields.finish()?;
    params.stream = false;
    params.model = model.or(params.model);
    limit_tokens(&mut params, asked.max_output_tokens, chosen);
    let ResponseRequest { temperature, top_p, .. } = asked;
    Sampling { temperature, top_p, ..Sampling::default() }.apply(&mut params);
    let logprobs = asked.include.iter().any(|name| **name == *LOGPROBS);
    params.top_logprobs = logprobs::alternatives(asked.top_logprobs, logprobs)?;
    params.prompt = conversation.prefill.map(str::to_owned).or(params.prompt);
    let answer = Answer {
        id: new_id("resp_"),
        message: new_id("msg_"),
        created: unix_seconds(),
        model: params.model.clone().unwrap_or_else(|| chosen.info().id.clone()),
        request: json!({
            "instructions": asked.instructions.as_deref(),
            "max_output_tokens": asked.max_output_tokens,
            "temperature": asked.temperature.unwrap_or(1.0),
            "top_p": asked.top_p.unwrap_or(1.0),
            "top_logprobs": asked.top_logprobs.unwrap_or(0),
        }),
        logprobs: Logprobs::of(logprobs, chosen),
    };
    let photos = images::photos(&conversation.images, &received, &state).await?;
    let streamed = asked.stream.unwrap_or(false);
    drop(received);
    let ask = Ask { photos, params, intent, format };
    let events = Events { answer, text: String::new(), sent: 0 };
    Ok(stream::answer(ask, events, streamed, &state, captioner).await?)
}

/// What all states of a response share.
struct Answer {
    id: String,
    message: String,
    created: u64,
    model: String,
    /// What the request set, repeated in the response.
    request: Value,
    logprobs: Logprobs,
}

impl Answer {
    /// The response in one of its states.
    fn object(&self, status: &str, output: &Value, usage: &Value) -> Value {
        let finished = matches!(status, "completed" | "incomplete" | "failed");
        let reason = (status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
        json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": finished.then(unix_seconds),
            "status": status,
            "error": null,
            "incomplete_details": reason,
            "instructions": self.request["instructions"],
            "max_output_tokens": self.request["max_output_tokens"],
            "model": self.model,
            "output": output,
            "parallel_tool_calls": true,
            "previous_response_id": null,
            "reasoning": null,
            "store": false,
            "temperature": self.request["temperature"],
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": self.request["top_logprobs"],
            "top_p": self.request["top_p"],
            "truncation": "disabled",
            "usage": usage,
            "user": null,
            "metadata": {},
            "background": false,
            "service_tier": "default",
        })
    }

    fn item(&self, status: &str, content: &Value) -> Value {
        json!({
            "id": self.message,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        })
    }

    fn finished(&self, reply: &Reply, logprobs: &[Value]) -> Value {
        let status = status(reply);
        let output = json!([self.item(status, &json!([part(&reply.text, logprobs)]))]);
        self.object(status, &output, &reply.usage.responses())
    }

    /// Empty if they are not wanted, or if the text is not that of the model.
    fn logprobs(&self, reply: &Reply) -> Vec<Value> {
        self.logprobs.tokens(&written(reply)).unwrap_or_default()
    }
}

fn status(reply: &Reply) -> &'static str {
    if reply.finish_reason() == "length" { "incomplete" } else { "completed" }
}

fn part(text: &str, logprobs: &[Value]) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs})
}

/// The stream of events.
struct Events {
    answer: Answer,
    text: String,
    /// Events so far.
    sent: u64,
}

impl Events {
    /// Writes an event with its type and number.
    fn write(&mut self, kind: &str, mut data: Value, out: &mut Vec<u8>) {
        data["type"] = json!(kind);
        data["sequence_number"] = json!(self.sent);
        self.sent += 1;
        event(Some(kind), &data, out);
    }

    /// Writes an event about the one text of the one message.
    fn write_part(&mut self, kind: &str, mut data: Value, out: &mut Vec<u8>) {
        data["item_id"] = json!(self.answer.message);
        data["output_index"] = json!(0);
        data["content_index"] = json!(0);
        self.write(kind, data, out);
    }
}

impl Dialect for Events {
    const TYPE: &'static str = "text/event-stream";
    const KEEP_ALIVE: Option<&'static str> = Some(": keep-alive\n\n");

    fn whole(&self, reply: &Reply) -> Value {
        self.answer.finished(reply, &self.answer.logprobs(reply))
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        let response = self.answer.object("in_progress", &json!([]), &Value::Null);
        self.write("response.created", json!({"response": response}), out);
        self.write("response.in_progress", json!({"response": response}), out);
        let item = self.answer.item("in_progress", &json!([]));
        self.write("response.output_item.added", json!({"output_index": 0, "item": item}), out);
        self.write_part("response.content_part.added", json!({"part": part("", &[])}), out);
    }

    fn piece(&mut self, text: &str, out: &mut Vec<u8>) {
        self.text.push_str(text);
        let data = json!({"delta": text, "logprobs": []});
        self.write_part("response.output_text.delta", data, out);
    }

    fn end(&mut self, reply: &Reply, out: &mut Vec<u8>) {
        let text = std::mem::take(&mut self.text);
        // Of all tokens at once, because words are sent before they are known.
        let logprobs = self.answer.logprobs(reply);
        let data = json!({"text": text, "logprobs": logprobs});
        self.write_part("response.output_text.done", data, out);
        let part = part(&text, &logprobs);
        self.write_part("response.content_part.done", json!({"part": part}), out);
        let item = self.answer.item(status(reply), &json!([part]));
        self.write("response.output_item.done", json!({"output_index": 0, "item": item}), out);
        let response = self.answer.finished(reply, &logprobs);
        let kind = format!("response.{}", status(reply));
        self.write(&kind, json!({"response": response}), out);
    }

    fn fail(&mut self, error: &Error, out: &mut Vec<u8>) {
        let mut response = self.answer.object("failed", &json!([]), &Value::Null);
        let object = json!(error_object(error));
        response["error"] = json!({"code": "server_error", "message": object["message"]});
        self.write("response.failed", json!({"response": response}), out);
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Input<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrMessages;
        impl<'de> Visitor<'de> for TextOrMessages {
            type Value = Input<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of messages")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Input(List(vec![Message::of_user(Text(text.to_owned().into()))])))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                List::deserialize(SeqAccessDeserializer::new(seq)).map(Input)
            }
        }
        deserializer.deserialize_any(TextOrMessages)
    }
}
