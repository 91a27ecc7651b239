//! What can be known of an image without the model, and what the model gets of it.
//!
//! From image bytes to pixel values: what the reference pipeline (Pillow and transformers'
//! `BlipImageProcessor`) does, within three of 255 levels everywhere.
//!
//! - [`mod@format`]: what the bytes are, told from their first few, never from a name;
//! - [`mod@decode`]: bytes to upright 8-bit RGB, within limits;
//! - `jpeg`: JPEG, sample for sample as Pillow's decoder, or faster where that is averaged away;
//! - [`profile`]: what the samples mean: colour profiles;
//! - `tiff`, `webp`: what is checked of such a file before its decoder believes it;
//! - `rgb`: every colour type that the decoders produce to 8-bit RGB;
//! - `orient`: the eight EXIF orientations;
//! - `resize`: Pillow's resampling;
//! - [`preprocess`]: RGB to the normalised planes that the model reads.
//!
//! For people rather than for the model:
//!
//! - [`appearance`]: dominant colours and mood, from a `thumbnail`;
//! - [`color`]: the clustering, and names of colours;
//! - [`mood`]: what colours feel like, by published models;
//! - [`measure`]: brightness, contrast, sharpness, colourfulness.

pub mod colors;
pub mod decode;
pub mod format;
mod jpeg;
pub mod measure;
pub mod mood;
mod orient;
mod pixel_values;
pub mod preprocess;
mod preprocess_json;
pub mod profile;
mod resize;
mod rgb;
mod thumbnail;
mod tiff;
mod webp;

pub use colors::{Colors, DominantColor};
pub use decode::{DecodeLimits, DecodedImage, decode, decode_for};
pub use format::ImageFormat;
pub use measure::Measures;
pub use mood::{Mood, MoodLabel};
pub use pixel_values::PixelValues;
pub use preprocess::{PREPROCESSING_VERSION, PreprocessConfig, Resample};
pub use profile::SampleSpace;
