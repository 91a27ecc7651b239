//! OpenAI's API: `chat` completions, `responses` with their events, and `models`;
//! `messages` are those that both read, `logprobs` the probabilities that both tell.
//!
//! Field names and the order of events are those that OpenAI's published clients read and check.

mod chat;
mod logprobs;
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
use crate::captioner::ModelInfo;
use crate::http::auth::Access;
use crate::http::state::AppState;
use cutline_error::{Error, Result};

pub(super) fn routes() -> Vec<(Access, UtoipaMethodRouter<AppState>)> {
    vec![
        (Access::CAPTION, routes!(chat::complete)),
        (Access::CAPTION, routes!(responses::create)),
        (Access::Key, routes!(models::list)),
    ]
}

/// Routes whose patterns OpenAPI cannot express: ids of models contain slashes.
pub(super) fn more_routes() -> Router<AppState> {
    Router::new().route("/v1/models/{*id}", get(models::retrieve))
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
    let digest = info.digest_hex();
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
