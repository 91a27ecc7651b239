//! The result of captioning, in the shape that the HTTP contract and `--format json` print.

use serde::Serialize;
use utoipa::ToSchema;

use super::style::Fallback;
use crate::engine::FinishReason;
use cutline_image::{Colors, DecodedImage};

/// One caption among those returned.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Choice {
    /// The text, without special tokens.
    pub text: String,
    /// Geometric mean of the token probabilities, 0–1.
    pub confidence: f32,
    /// Tokens generated, the end token included.
    pub tokens: usize,
    /// `stop` or `length`.
    #[serde(serialize_with = "finish_reason")]
    #[schema(value_type = String, example = "stop")]
    pub finish_reason: FinishReason,
}

fn finish_reason<S: serde::Serializer>(
    reason: &FinishReason,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(reason.as_str())
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CacheState {
    /// Computed for this request.
    Miss,
    /// Computed before.
    Hit,
    /// Computed for another request that asked the same and came first.
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

/// Whether the vision tower had to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VisionCacheState {
    /// It ran.
    Miss,
    /// What it makes of this photo was known; the photo was not even decoded.
    Hit,
}

/// The photo that was captioned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ImageInfo {
    /// `blake3:` and the hash of the bytes in hexadecimal.
    pub hash: String,
    /// `jpeg`, `png`, …, as told from the bytes.
    pub format: String,
    /// Pixels a row, after the orientation was applied.
    pub width: usize,
    /// Rows, after the orientation was applied.
    pub height: usize,
    /// Bytes of the file.
    pub size_bytes: usize,
}

impl ImageInfo {
    /// What is told of the file of this hash and size, which was decoded.
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

/// Where the time of this request went, in milliseconds. For an answer from the cache all but the
/// total are 0; for one that another request had begun, waiting for it counts as `inference_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, ToSchema)]
pub struct Timings {
    /// Decoding the image, its colours, and resizing.
    pub decode_ms: f64,
    /// Waiting for the model.
    pub queue_ms: f64,
    /// The model.
    pub inference_ms: f64,
    /// All of it.
    pub total_ms: f64,
}

/// The answer for one image.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Caption {
    /// The best caption.
    pub caption: String,
    /// All captions asked for, best first.
    pub captions: Vec<Choice>,
    /// That the text is no description, and why; only where it is none.
    #[serde(flatten)]
    pub fallback: Option<Fallback>,
    /// The model's name.
    pub model: String,
    /// Where the answer came from.
    pub cache: CacheState,
    /// Whether the photo was encoded before; only where something was computed for this request
    /// and the cache was not bypassed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub vision_cache: Option<VisionCacheState>,
    /// The photo.
    pub image: ImageInfo,
    /// Its colours and mood, if they were asked for.
    #[serde(flatten)]
    pub colors: Option<Colors>,
    /// Where the time went.
    pub timings: Timings,
    /// The most images that shared a decoding step with it, itself included; `None` for an answer
    /// from the cache. For the log.
    #[serde(skip)]
    pub batch_size: Option<usize>,
}
