//! Ollama's chat.

use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::Answer;
use super::{Asked, finish_reason};
use cutline_route::{Failure, Usage};

pub(super) fn request(asked: &Asked<'_>) -> Value {
    let Asked { model, instruction, image, params, tokens, stream } = *asked;
    let mut options = json!({"num_predict": tokens});
    if params.do_sample {
        options["temperature"] = json!(params.temperature);
        options["top_p"] = json!(params.top_p);
        if let Some(seed) = params.seed {
            options["seed"] = json!(seed);
        }
    } else {
        options["temperature"] = json!(0);
    }
    json!({
        "model": model,
        "messages": [{"role": "user", "content": instruction, "images": [image]}],
        "options": options,
        "stream": stream,
    })
}

#[derive(Deserialize)]
struct Chunk {
    model: Option<String>,
    message: Option<Message>,
    #[serde(default)]
    done: bool,
    done_reason: Option<String>,
    prompt_eval_count: Option<u64>,
    eval_count: Option<u64>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
}

pub(super) fn whole(bytes: &[u8], answer: &mut Answer) -> Result<(), Failure> {
    line(bytes, answer).map(drop)
}

/// Reads a line of a stream, or a whole answer, which is a stream of one line. Returns whether the text has
/// grown.
pub(super) fn line(line: &[u8], answer: &mut Answer) -> Result<bool, Failure> {
    if line.is_empty() {
        return Ok(false);
    }
    let chunk: Chunk = serde_json::from_slice(line).map_err(|_| Failure::BadAnswer)?;
    if chunk.error.is_some() {
        return Err(Failure::BadAnswer);
    }
    answer.model = chunk.model.or(answer.model.take());
    if chunk.done {
        answer.ended = true;
        answer.finish = Some(finish_reason(chunk.done_reason.as_deref()));
        answer.usage =
            Usage { input: chunk.prompt_eval_count, output: chunk.eval_count, cached: false };
    }
    match chunk.message.and_then(|message| message.content) {
        Some(piece) => answer.add(&piece),
        None => Ok(false),
    }
}
