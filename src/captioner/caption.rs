//! The result of captioning, in the shape of the HTTP contract and of `--format json`.

use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use super::dispatch::Routing;
use super::keep::Appearance;
use super::style::Fallback;
use crate::engine::{Alternatives, FinishReason};
use cutline_image::{Colors, DecodedImage};

/// One of the returned captions.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Choice {
    /// The text, without special tokens.
    pub text: String,
    /// Geometric mean of the token probabilities, 0–1; null if the backend of a route did not tell.
    #[serde(serialize_with = "known")]
    #[schema(value_type = Option<f32>)]
    pub confidence: f32,
    /// Generated tokens, including the end token.
    pub tokens: usize,
    /// `stop` or `length`.
    #[serde(serialize_with = "finish_reason")]
    #[schema(value_type = String, example = "stop")]
    pub finish_reason: FinishReason,
    /// The probability that it matches the photo, 0–1, as another model says; with `rerank` only.
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub matching: Option<f32>,
    /// Its tokens, for contracts that return them.
    #[serde(skip)]
    pub sequence: TokenSequence,
}

impl Choice {
    /// A confidence that nobody told.
    pub const UNKNOWN: f32 = f32::NAN;

    /// The confidence, if somebody told it.
    #[must_use]
    pub fn known_confidence(&self) -> Option<f32> {
        Some(self.confidence).filter(|known| !known.is_nan())
    }
}

fn known<S: serde::Serializer>(confidence: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    Some(*confidence).filter(|known| !known.is_nan()).serialize(serializer)
}

/// The tokens of a caption.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenSequence {
    /// The prompt and the generated tokens.
    pub ids: Vec<u32>,
    /// The logarithm of the probability that the model gave to each generated token.
    pub log_probabilities: Vec<f32>,
    /// The most probable tokens in the place of each generated one, if they are wanted.
    pub alternatives: Vec<Alternatives>,
}

fn finish_reason<S: serde::Serializer>(
    reason: &FinishReason,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(reason.as_str())
}

/// Where the answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CacheState {
    /// Computed for this request.
    Miss,
    /// Taken from the cache.
    Hit,
    /// Computed for an earlier request with the same input.
    Coalesced,
}

impl CacheState {
    /// The name in the HTTP contract.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Miss => "miss",
            Self::Hit => "hit",
            Self::Coalesced => "coalesced",
        }
    }
}

/// Whether the image was encoded before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VisionCacheState {
    /// The vision tower encoded the image for this request.
    Miss,
    /// The encoded image was cached. The photo was not even decoded.
    Hit,
}

/// The captioned photo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ImageInfo {
    /// `blake3:` and the hash of the bytes in hexadecimal.
    pub hash: String,
    /// `jpeg`, `png`, …, recognised from the bytes.
    pub format: String,
    /// Width in pixels, after applying the orientation.
    pub width: usize,
    /// Height in pixels, after applying the orientation.
    pub height: usize,
    /// Bytes of the file.
    pub size_bytes: usize,
}

impl ImageInfo {
    /// The description of a decoded file with this hash and size.
    pub(super) fn of(hash: &blake3::Hash, size_bytes: usize, decoded: &DecodedImage) -> Self {
        Self {
            hash: format!("blake3:{}", hash.to_hex()),
            format: decoded.format.to_string(),
            width: decoded.width,
            height: decoded.height,
            size_bytes,
        }
    }
}

/// Where the time of this request went, in milliseconds. For a cached answer all but the total are 0.
/// For an answer in flight, the time spent waiting for it counts as `inference_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, ToSchema)]
pub struct Timings {
    /// Decoding the image, resizing it, and finding its colours.
    pub decode_ms: f64,
    /// Waiting in the queue.
    pub queue_ms: f64,
    /// Encoding the image and decoding the caption.
    pub inference_ms: f64,
    /// The whole request.
    pub total_ms: f64,
}

/// The answer for one image.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Caption {
    /// The best caption.
    pub caption: String,
    /// All requested captions, best first.
    pub captions: Vec<Choice>,
    /// Present only if the text does not describe the photo; says why.
    #[serde(flatten)]
    pub fallback: Option<Fallback>,
    /// The model's name.
    pub model: String,
    /// The digest of its weights; empty if it is elsewhere.
    #[serde(skip)]
    pub digest: String,
    /// The version of the prompt, such as `alt:3`, if a template was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub template: Option<String>,
    /// The experiment that chose that version.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub experiment: Option<String>,
    /// Where the answer came from.
    pub cache: CacheState,
    /// Whether the photo was encoded before. Present only if the answer was computed for this request
    /// and the cache was not bypassed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub vision_cache: Option<VisionCacheState>,
    /// The photo.
    pub image: ImageInfo,
    /// Its colours and mood, if requested.
    #[serde(flatten)]
    pub colors: Option<Colors>,
    /// Where the time went.
    pub timings: Timings,
    /// How a route got the answer; left out if no route was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub routing: Option<Routing>,
    /// The largest number of images in one of its decode steps, itself included; `None` for a cached
    /// answer. For the log.
    #[serde(skip)]
    pub batch_size: Option<usize>,
    /// How the photo looks, for a library; `None` if this was not asked for, or if the answer was
    /// cached and the encoded image was not.
    #[serde(skip)]
    pub appearance: Option<Arc<Appearance>>,
}
