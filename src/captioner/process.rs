//! Image analysis without the model.

use std::time::Instant;

use serde::Serialize;
use utoipa::ToSchema;

use super::ImageInfo;
use super::budget::Photo;
use super::decoders::Decoders;
use crate::metrics::milliseconds;
use cutline_error::Result;
use cutline_image::{Colors, DecodeLimits, Measures, PreprocessConfig, decode_for};

/// The answer of `POST /image/process`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ProcessedImage {
    /// The file.
    pub image: ProcessedInfo,
    /// Dominant colours and mood.
    #[serde(flatten)]
    pub colors: Colors,
    /// Brightness, contrast, sharpness, colourfulness.
    #[serde(flatten)]
    pub measures: Measures,
    /// Where the time went.
    pub timings: ProcessTimings,
}

/// An image file and its orientation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ProcessedInfo {
    /// Hash, format and sizes.
    #[serde(flatten)]
    pub info: ImageInfo,
    /// The EXIF orientation, 1 to 8; 1 if there is none. Width and height are those of the upright
    /// image.
    pub orientation: u8,
}

/// Where the time went, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, ToSchema)]
pub struct ProcessTimings {
    /// Decoding.
    pub decode_ms: f64,
    /// Colours, mood and measures.
    pub analysis_ms: f64,
    /// The whole request, including the wait for a free worker.
    pub total_ms: f64,
}

impl Decoders {
    /// Decodes `photo`, an image file, and analyses it without a model.
    ///
    /// # Errors
    /// As [`decode`](cutline_image::decode()).
    pub async fn process(&self, photo: impl Into<Photo>) -> Result<ProcessedImage> {
        let begin = Instant::now();
        let mut processed = self.run(photo.into(), |_| 0, process).await?;
        processed.timings.total_ms = milliseconds(begin.elapsed());
        Ok(processed)
    }
}

fn process(bytes: &[u8], limits: &DecodeLimits) -> Result<ProcessedImage> {
    let begin = Instant::now();
    // The input size of the default model, so that captions come with the same colours.
    let PreprocessConfig { width, height, .. } = PreprocessConfig::default();
    let decoded = decode_for(bytes, limits, width, height)?;
    let decode = begin.elapsed();
    let colors = Colors::of(&decoded);
    let measures = Measures::of(&decoded)?;
    let info = ImageInfo::of(&blake3::hash(bytes), bytes.len(), &decoded);
    let timings = ProcessTimings {
        decode_ms: milliseconds(decode),
        analysis_ms: milliseconds(begin.elapsed().saturating_sub(decode)),
        total_ms: 0.0,
    };
    let image = ProcessedInfo { info, orientation: decoded.orientation };
    Ok(ProcessedImage { image, colors, measures, timings })
}
