//! The description of a model, as `/model/info` and `cutline model info` show it.

use serde::Serialize;
use utoipa::ToSchema;

use crate::engine::{Family, GpuInfo};

/// The loaded model and how it runs.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ModelInfo {
    /// The model's name: `cutline-small`, a hub id, or a path.
    pub id: String,
    /// The class of the model in transformers: `BlipForConditionalGeneration`, …
    pub architecture: String,
    /// What the model can do: `caption`, `score`, `embed`, `answer`.
    pub tasks: Vec<String>,
    /// The same, for the program itself.
    #[serde(skip)]
    pub family: Family,
    /// Numbers of an embedding, for a model that embeds images and texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub embedding_size: Option<usize>,
    /// Number of parameters; tied ones count once.
    pub parameters: u64,
    /// `f32`, …
    pub precision: String,
    /// The matrix kernels: an instruction set, or `candle`. On a GPU what computes: `cutline`, `candle`, or
    /// `cutline without` the operations that candle computes.
    pub kernels: String,
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// The GPU; left out on a CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub gpu: Option<Gpu>,
    /// Threads that compute.
    pub threads: usize,
    /// Width and height of the model's input, in pixels.
    pub input_size: [usize; 2],
    /// What an image is in the model, in tokens: its patches and one more. For contracts that count
    /// tokens.
    #[serde(skip)]
    pub image_tokens: usize,
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Limit on prompt and answer together, in tokens.
    pub max_positions: usize,
    /// Defaults and limits of decoding. A model may have its own defaults; they hold for all requests that
    /// name no others, except for sampling.
    pub generation: GenerationDefaults,
    /// Bytes of the files of the weights.
    #[serde(skip)]
    pub weight_bytes: u64,
    /// `blake3:` and the hash of the weights in hexadecimal.
    pub digest: String,
    /// `embedded`, a path, or an address on the hub.
    pub source: String,
    /// The commit or tag, for a model from the hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub revision: Option<String>,
    /// The licence in the model card.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub license: Option<String>,
    /// Time for reading and converting the weights.
    pub load_ms: f64,
    /// Time for the first forward passes. On a GPU it includes the search for the best batch size.
    pub warm_up_ms: f64,
    /// Resident memory of the process when the model was ready, where the system reports it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub memory_bytes: Option<u64>,
    /// The other models of this server; left out if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<OtherModel>,
}

/// A model beside the main one.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct OtherModel {
    /// The name that requests ask for.
    pub name: String,
    /// The model's own name.
    pub id: String,
    /// Number of parameters; tied ones count once.
    pub parameters: u64,
    /// `f32`, …
    pub precision: String,
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// Width and height of the model's input, in pixels.
    pub input_size: [usize; 2],
    /// `blake3:` and the hash of the weights in hexadecimal.
    pub digest: String,
}

impl OtherModel {
    /// The model with this name.
    #[must_use]
    pub fn of(name: &str, info: &ModelInfo) -> Self {
        Self {
            name: name.to_owned(),
            id: info.id.clone(),
            parameters: info.parameters,
            precision: info.precision.clone(),
            device: info.device.clone(),
            input_size: info.input_size,
            digest: info.digest.clone(),
        }
    }
}

/// A GPU, as its driver describes it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Gpu {
    /// Its name: `NVIDIA L4`, …
    pub name: String,
    /// Its total memory.
    pub memory_bytes: u64,
    /// Its compute capability: `8.9`, …
    pub compute_capability: String,
}

impl ModelInfo {
    /// The digest without the name of its algorithm.
    #[must_use]
    pub fn digest_hex(&self) -> &str {
        self.digest.rsplit(':').next().unwrap_or_default()
    }
}

impl From<GpuInfo> for Gpu {
    fn from(info: GpuInfo) -> Self {
        let GpuInfo { name, memory_bytes, compute_capability } = info;
        Self { name, memory_bytes, compute_capability }
    }
}

/// Defaults and limits of decoding.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct GenerationDefaults {
    /// Default of `max_new_tokens`.
    pub max_new_tokens: usize,
    /// Largest `max_new_tokens`.
    pub max_new_tokens_limit: usize,
    /// Default of `min_new_tokens`.
    pub min_new_tokens: usize,
    /// Default of `num_beams`.
    pub num_beams: usize,
    /// Largest `num_beams`.
    pub num_beams_limit: usize,
    /// Largest `num_captions`.
    pub num_captions_limit: usize,
    /// Default of `length_penalty`.
    pub length_penalty: f32,
    /// Default of `repetition_penalty`.
    pub repetition_penalty: f32,
    /// Default of `no_repeat_ngram_size`.
    pub no_repeat_ngram_size: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_has_the_fields_of_the_contract() {
        let info = GpuInfo {
            name: "NVIDIA L4".into(),
            memory_bytes: 24 << 30,
            compute_capability: "8.9".into(),
        };
        let json = serde_json::to_value(Gpu::from(info)).unwrap();
        let expected = serde_json::json!({
            "name": "NVIDIA L4", "memory_bytes": 25_769_803_776_u64, "compute_capability": "8.9",
        });
        assert_eq!(json, expected);
    }
}
