//! OpenAI's chat completions.

use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::Answer;
use super::{Asked, finish_reason};
use cutline_route::{Failure, Usage};

/// The most texts that are read.
const MAX_CHOICES: usize = 10;

pub(super) fn request(asked: &Asked<'_>) -> Value {
    let Asked { model, instruction, image, params, tokens, stream } = *asked;
    let mut body = json!({
        "model": model,
        "messages": [{"role": "user", "content": [
            {"type": "text", "text": instruction},
            {"type": "image_url", "image_url": {"url": format!("data:image/jpeg;base64,{image}")}},
        ]}],
        "max_tokens": tokens,
        "stream": stream,
    });
    if stream {
        body["stream_options"] = json!({"include_usage": true});
    }
    if params.num_captions > 1 {
        body["n"] = json!(params.num_captions);
    }
    if params.do_sample {
        body["temperature"] = json!(params.temperature);
        body["top_p"] = json!(params.top_p);
        if let Some(seed) = params.seed {
            body["seed"] = json!(seed);
        }
    }
    body
}

#[derive(Deserialize)]
struct Completion {
    model: Option<String>,
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Counted>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    message: Option<Text>,
    delta: Option<Text>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Text {
    content: Option<String>,
}

#[derive(Deserialize)]
struct Counted {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
}

impl From<Counted> for Usage {
    fn from(counted: Counted) -> Self {
        Self { input: counted.prompt_tokens, output: counted.completion_tokens, cached: false }
    }
}

pub(super) fn whole(bytes: &[u8], answer: &mut Answer) -> Result<(), Failure> {
    let completion: Completion = serde_json::from_slice(bytes).map_err(|_| Failure::BadAnswer)?;
    if completion.error.is_some() {
        return Err(Failure::BadAnswer);
    }
    for choice in completion.choices.into_iter().take(MAX_CHOICES) {
        if answer.finish.is_none() {
            answer.finish = Some(finish_reason(choice.finish_reason.as_deref()));
        }
        if let Some(text) = choice.message.and_then(|message| message.content) {
            answer.push(&text)?;
        }
    }
    answer.model = completion.model;
    answer.usage = completion.usage.map(Usage::from).unwrap_or_default();
    answer.ended = true;
    Ok(())
}

/// Reads a line of a stream. Returns whether the text has grown.
pub(super) fn line(line: &[u8], answer: &mut Answer) -> Result<bool, Failure> {
    // Comments, names of events, and the blank lines between them.
    let Some(data) = line.strip_prefix(b"data:") else { return Ok(false) };
    let data = data.trim_ascii();
    if data == b"[DONE]" {
        answer.ended = true;
        return Ok(false);
    }
    let chunk: Completion = serde_json::from_slice(data).map_err(|_| Failure::BadAnswer)?;
    if chunk.error.is_some() {
        return Err(Failure::BadAnswer);
    }
    if let Some(usage) = chunk.usage {
        answer.usage = usage.into();
    }
    answer.model = chunk.model.or(answer.model.take());
    let Some(choice) = chunk.choices.into_iter().next() else { return Ok(false) };
    if choice.finish_reason.is_some() {
        answer.finish = Some(finish_reason(choice.finish_reason.as_deref()));
    }
    match choice.delta.and_then(|delta| delta.content) {
        Some(piece) => answer.add(&piece),
        None => Ok(false),
    }
}
