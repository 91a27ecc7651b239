//! OpenAI's API: `chat` completions, `responses` with their events, and `models`;
//! `messages` are the conversations that both read.
//!
//! Field names and the order of events are those that OpenAI's published clients read and check.

mod chat;
mod messages;
mod models;
mod responses;

use axum::Router;
use axum::routing::get;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use utoipa_axum::router::UtoipaMethodRouter;
use utoipa_axum::routes;

use super::ask::Usage;
use super::json::Text;
use super::structured::Format;
use crate::captioner::{CaptionParams, Captioner, ModelInfo};
use crate::http::auth::Access;
use crate::http::state::AppState;
use cutline_error::{Error, Result};

pub(super) fn routes() -> Vec<(Access, UtoipaMethodRouter<AppState>)> {
    vec![
        (Access::Key, routes!(chat::complete)),
        (Access::Key, routes!(responses::create)),
        (Access::Key, routes!(models::list)),
    ]
}

/// Routes whose patterns OpenAPI cannot express: ids of models contain slashes.
pub(super) fn more_routes() -> Router<AppState> {
    Router::new().route("/v1/models/{*id}", get(models::retrieve))
}

/// How to sample, in OpenAI's words.
#[derive(Debug, Default)]
struct Sampling {
    temperature: Option<f64>,
    top_p: Option<f64>,
    seed: Option<i64>,
}

/// Below this temperature the most likely token is taken. Some clients always send 0.1 and mean "no
/// surprises"; sampling would keep their answers out of the cache.
const COLD: f64 = 0.2;

impl Sampling {
    /// The native parameters: out of range is clamped.
    fn apply(&self, params: &mut CaptionParams) {
        let Some(temperature) = self.temperature.filter(|t| *t > COLD) else { return };
        params.do_sample = true;
        params.temperature = temperature.min(2.0) as f32;
        if let Some(top_p) = self.top_p.filter(|p| *p > 0.0) {
            params.top_p = top_p.min(1.0) as f32;
        }
        params.seed = self.seed.map(i64::cast_unsigned);
    }
}

/// Sets the maximum number of tokens to what the model can write, at most `wanted`.
fn limit_tokens(params: &mut CaptionParams, wanted: Option<u64>, captioner: &Captioner) {
    let generation = &captioner.info().generation;
    if let Some(wanted) = wanted.and_then(|wanted| usize::try_from(wanted).ok()) {
        params.max_new_tokens =
            wanted.clamp(1, generation.max_new_tokens.max(params.max_new_tokens));
    }
}

/// `{"type": "json_schema", …}`, wherever the two endpoints put the schema.
#[derive(Debug, Deserialize)]
struct ResponseFormat<'a> {
    #[serde(borrow)]
    r#type: Option<Text<'a>>,
    /// In `responses`.
    #[serde(borrow)]
    schema: Option<&'a RawValue>,
    /// In chat completions.
    #[serde(borrow)]
    json_schema: Option<NamedSchema<'a>>,
}

#[derive(Debug, Deserialize)]
struct NamedSchema<'a> {
    #[serde(borrow)]
    schema: Option<&'a RawValue>,
}

impl ResponseFormat<'_> {
    fn format(&self) -> Result<Format> {
        let named = self.json_schema.as_ref().and_then(|named| named.schema);
        match self.r#type.as_deref() {
            None | Some("text") => Ok(Format::Text),
            Some("json_object") => Ok(Format::Json),
            Some("json_schema") => match named.or(self.schema) {
                Some(schema) => Format::schema(schema.get()),
                None => Ok(Format::Json),
            },
            Some(_) => Err(Error::parameter(
                "response_format",
                "response_format.type must be text, json_object or json_schema",
            )),
        }
    }
}

/// The first characters of the digest of the weights.
fn fingerprint(info: &ModelInfo) -> &str {
    let digest = info.digest.rsplit(':').next().unwrap_or_default();
    digest.get(..12).unwrap_or(digest)
}

impl Usage {
    /// In the words of chat completions.
    fn chat(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": self.image},
            "completion_tokens_details": {"reasoning_tokens": 0},
        })
    }

    /// In the words of `responses`.
    fn responses(self) -> Value {
        json!({
            "input_tokens": self.prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": self.completion,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.prompt + self.completion,
        })
    }
}
