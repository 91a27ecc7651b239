//! The tokens of an answer with the logarithms of their probabilities.

use serde_json::{Value, json};

use crate::captioner::{Captioner, Choice, TokenText};
use crate::engine::MAX_ALTERNATIVES;
use crate::http::contracts::ask::Reply;
use crate::http::contracts::intent::Intent;
use cutline_error::{Error, Result};

/// Makes texts of tokens, if the client wants to know their probabilities.
pub(super) struct Logprobs(Option<Captioner>);

impl Logprobs {
    pub(super) fn of(wanted: bool, captioner: &Captioner) -> Self {
        Self(wanted.then(|| captioner.clone()))
    }

    /// The tokens of `captions`, whose texts are the lines of an answer; `None` if nobody wants them, or
    /// if there are no captions.
    pub(super) fn tokens(&self, captions: &[&Choice]) -> Option<Vec<Value>> {
        let captioner = self.0.as_ref().filter(|_| !captions.is_empty())?;
        let mut all = Vec::new();
        for (index, caption) in captions.iter().enumerate() {
            // A broken tokenizer would have failed before.
            let tokens = captioner.token_texts(&caption.sequence).unwrap_or_default();
            for (at, TokenText { text, log_probability, alternatives }) in
                tokens.into_iter().enumerate()
            {
                let line_break = if index > 0 && at == 0 { "\n" } else { "" };
                let mut token = object(&format!("{line_break}{text}"), log_probability);
                let others = alternatives.iter();
                let others = others.map(|(text, p)| object(&format!("{line_break}{text}"), *p));
                token["top_logprobs"] = others.collect();
                all.push(token);
            }
        }
        Some(all)
    }
}

fn object(token: &str, logprob: f32) -> Value {
    json!({"token": token, "logprob": logprob, "bytes": token.as_bytes()})
}

/// How many alternatives of each token are wanted. Without the probabilities of the tokens, none are told.
///
/// # Errors
/// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): more than OpenAI allows.
pub(super) fn alternatives(top_logprobs: Option<i64>, logprobs: bool) -> Result<usize> {
    let number = usize::try_from(top_logprobs.unwrap_or(0)).ok();
    let number = number.filter(|number| *number <= MAX_ALTERNATIVES).ok_or_else(|| {
        let detail = format!("top_logprobs must be between 0 and {MAX_ALTERNATIVES}; send that");
        Error::parameter("top_logprobs", detail)
    })?;
    Ok(if logprobs { number } else { 0 })
}

/// The captions that the text of a reply consists of; none if it is not that of the model.
pub(super) fn written(reply: &Reply) -> Vec<&Choice> {
    let best = reply.captions.iter().filter_map(|caption| caption.captions.first());
    let own: Vec<&Choice> = best.collect();
    let text: Vec<&str> = own.iter().map(|choice| choice.text.as_str()).collect();
    let is_own = reply.intent == Intent::Caption && text.join("\n") == reply.text;
    if is_own { own } else { Vec::new() }
}
