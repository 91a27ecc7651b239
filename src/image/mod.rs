//! From image bytes to pixel values: what the reference pipeline (Pillow and transformers'
//! `BlipImageProcessor`) does, within three of 255 levels everywhere.
//!
//! - [`mod@format`]: what the bytes are, told from their first few, never from a name;
//! - [`mod@decode`]: bytes to upright 8-bit RGB, within limits;
//! - `jpeg`: JPEG, sample for sample as Pillow's decoder;
//! - `rgb`: every colour type that the decoders produce to 8-bit RGB;
//! - `orient`: the eight EXIF orientations;
//! - `resize`: Pillow's resampling;
//! - [`preprocess`]: RGB to the normalised planes that the model reads.

pub mod decode;
pub mod format;
mod jpeg;
mod orient;
pub mod preprocess;
mod preprocess_json;
mod resize;
mod rgb;

pub use decode::{DecodeLimits, DecodedImage, decode};
pub use format::ImageFormat;
pub use preprocess::{PREPROCESSING_VERSION, PreprocessConfig, Resample};
