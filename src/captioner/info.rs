//! What `/model/info` and `cutline model info` say.

use serde::Serialize;
use utoipa::ToSchema;

/// The loaded model and how it is run.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ModelInfo {
    /// The model's name: `cutline-small`, a hub id, or a path.
    pub id: String,
    /// `BlipForConditionalGeneration`.
    pub architecture: String,
    /// Number of parameters, tied ones once.
    pub parameters: u64,
    /// `f32`, …
    pub precision: String,
    /// What multiplies: `candle`, …
    pub kernels: String,
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// Threads that the arithmetic uses.
    pub threads: usize,
    /// Width and height of the model's input, in pixels.
    pub input_size: [usize; 2],
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Prompt and answer together, in tokens.
    pub max_positions: usize,
    /// What decoding does unless the request says otherwise, and its limits.
    pub generation: GenerationDefaults,
    /// `blake3:` and the hash of the weights in hexadecimal.
    pub digest: String,
    /// `embedded`, a path, or an address on the hub.
    pub source: String,
    /// The commit or tag, for a model from the hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub revision: Option<String>,
    /// The licence that the model card states.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub license: Option<String>,
    /// Reading and converting the weights.
    pub load_ms: f64,
    /// The first forward pass.
    pub warm_up_ms: f64,
    /// Resident memory of the process when the model was ready, where the system tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub memory_bytes: Option<u64>,
}

/// Defaults and limits of decoding.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct GenerationDefaults {
    /// Default of `max_new_tokens`.
    pub max_new_tokens: usize,
    /// Largest `max_new_tokens`.
    pub max_new_tokens_limit: usize,
    /// Default of `num_beams`.
    pub num_beams: usize,
    /// Largest `num_beams`.
    pub num_beams_limit: usize,
    /// Largest `num_captions`.
    pub num_captions_limit: usize,
}
