//! From image bytes to pixel values: what the reference pipeline
//! (Pillow and transformers' `BlipImageProcessor`) does, within three of 255 levels but for single samples of
//! small JPEGs with subsampled chroma (see [`decode()`]).
//!
//! - [`format`]: what the bytes are, told from their first few, never from a name;
//! - [`decode`]: bytes to upright 8-bit RGB, within limits;
//! - `rgb`: every colour type that the decoders produce to 8-bit RGB;
//! - `orient`: the eight EXIF orientations;
//! - `resize`: Pillow's resampling;
//! - [`preprocess`]: RGB to the normalised planes that the model reads.

pub mod decode;
pub mod format;
mod orient;
pub mod preprocess;
mod preprocess_json;
mod resize;
mod rgb;

pub use decode::{DecodeLimits, DecodedImage, decode};
pub use format::ImageFormat;
pub use preprocess::{PreprocessConfig, Resample};
