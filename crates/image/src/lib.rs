//! Photos to model input, and what can be measured of a photo without the model.
//!
//! The way from image bytes to pixel values follows the reference pipeline (Pillow and transformers'
//! `BlipImageProcessor`); no value differs by more than 3 of 255 levels.
//!
//! - [`mod@format`]: recognises the format from the first bytes, never from a name;
//! - [`mod@decode`]: bytes to upright 8-bit RGB, within limits;
//! - `jpeg`: JPEG, sample for sample as Pillow decodes it, or faster where resizing hides the
//!   difference;
//! - `unmarked`: JPEGs without an end marker;
//! - `avif`: AVIF, through its boxes (`heif`, `boxes`), its coded data (`av1`) and colours (`yuv`);
//! - [`profile`]: colour profiles;
//! - `exif`: the orientation, in every container;
//! - [`mod@header`]: the size of an image and the memory that it will take, before it is decoded;
//! - `gif`, `png`, `tiff`, `webp`, `vp8l`: the structure of a file, as far as its decoder does not check it or
//!   not in time;
//! - `rgb`: every colour type of the decoders to 8-bit RGB;
//! - `orient`: the eight EXIF orientations;
//! - `resize`: Pillow's resampling;
//! - [`preprocess`]: RGB to the normalised planes that the model reads.
//!
//! For people rather than for the model:
//!
//! - [`colors`]: dominant colours and their names, from a `thumbnail`;
//! - [`mood`]: how colours are perceived, by published models;
//! - [`measure`]: brightness, contrast, sharpness, colourfulness;
//! - [`preview`]: a thumbnail as a file, and a hash that copies share.

mod av1;
mod avif;
mod boxes;
pub mod colors;
pub mod decode;
mod exif;
pub mod format;
mod gif;
pub mod header;
mod heif;
mod jpeg;
pub mod measure;
pub mod mood;
mod orient;
mod png;
pub mod preprocess;
pub mod preview;
pub mod profile;
mod resize;
mod rgb;
mod thumbnail;
mod tiff;
mod units;
mod unmarked;
mod vp8l;
mod webp;
mod yuv;

pub use colors::{Colors, DominantColor};
pub use decode::{DecodeLimits, DecodedImage, decode, decode_for};
pub use format::ImageFormat;
pub use header::ImageHeader;
pub use measure::Measures;
pub use mood::{Mood, MoodLabel};
pub use preprocess::{PREPROCESSING_VERSION, PixelValues, PreprocessConfig, Resample};
pub use preview::{Stretched, jpeg_within};
pub use profile::SampleSpace;
