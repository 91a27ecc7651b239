//! Images from Python to the bytes of an image file.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use cutline::error::{Error, ErrorKind, Result};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder as _};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::process::raised;

/// Bytes that a pixel may have in a PNG that is not compressed: four channels, and the rest.
const PIXEL_BYTES: u64 = 5;

/// An image as the caller has it.
pub(crate) enum Input {
    /// A file.
    File(PathBuf),
    /// The bytes of a file.
    Bytes(Vec<u8>),
    /// Rows of pixels of 8-bit channels.
    Pixels { bytes: Vec<u8>, width: usize, height: usize, color: ExtendedColorType },
    /// An image of which nothing is copied, because it is too large.
    TooLarge(Error),
}

/// The largest images that are accepted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of a file.
    pub(crate) file_bytes: usize,
    /// Pixels of any image.
    pub(crate) pixels: u64,
}

impl Limits {
    /// Bytes that the largest array has as a PNG.
    pub(crate) fn array_bytes(self) -> usize {
        let bytes = self.pixels.saturating_mul(PIXEL_BYTES).saturating_add(1 << 16);
        usize::try_from(bytes).unwrap_or(usize::MAX).max(self.file_bytes)
    }

    fn check(self, bytes: usize) -> Result<()> {
        if bytes <= self.file_bytes {
            return Ok(());
        }
        let most = self.file_bytes;
        let detail =
            format!("the image has more than {most} bytes; scale it down or raise MAX_IMAGE_SIZE");
        Err(Error::new(ErrorKind::ImageTooLarge, detail))
    }
}

impl Input {
    /// Copies what Python owns: a path, the bytes of a file, or an array of pixels. `trusted` bytes are an
    /// array that was written as a file; they may have more bytes than a file.
    ///
    /// # Errors
    /// It is none of these.
    pub(crate) fn of(image: &Bound<'_, PyAny>, trusted: bool, limits: Limits) -> PyResult<Self> {
        if image.is_instance_of::<PyString>() || image.hasattr("__fspath__")? {
            return Ok(Self::File(image.extract()?));
        }
        let buffer = PyBuffer::<u8>::get(image).map_err(|_| unknown(image))?;
        let sides = (buffer.dimensions(), buffer.shape());
        let (width, height, color) = match sides {
            (1, &[bytes]) => {
                return match limits.check(bytes) {
                    Err(error) if !trusted => Ok(Self::TooLarge(error)),
                    _ => Ok(Self::Bytes(buffer.to_vec(image.py())?)),
                };
            }
            (2, &[height, width]) => (width, height, ExtendedColorType::L8),
            (3, &[height, width, 1]) => (width, height, ExtendedColorType::L8),
            (3, &[height, width, 3]) => (width, height, ExtendedColorType::Rgb8),
            (3, &[height, width, 4]) => (width, height, ExtendedColorType::Rgba8),
            (_, shape) => return Err(misshapen(shape)),
        };
        if (width as u64).saturating_mul(height as u64) > limits.pixels {
            let most = limits.pixels;
            let detail = format!(
                "the array has more than {most} pixels; scale it down or raise MAX_IMAGE_PIXELS"
            );
            return Ok(Self::TooLarge(Error::new(ErrorKind::ImageTooLarge, detail)));
        }
        Ok(Self::Pixels { bytes: buffer.to_vec(image.py())?, width, height, color })
    }

    /// The bytes of an image file. May read a file.
    ///
    /// # Errors
    /// It is too large, or cannot be read.
    pub(crate) fn into_file(self, limits: Limits) -> Result<Vec<u8>> {
        match self {
            Self::File(path) => read(&path, limits),
            Self::Bytes(bytes) => Ok(bytes),
            Self::Pixels { bytes, width, height, color } => png(&bytes, width, height, color),
            Self::TooLarge(error) => Err(error),
        }
    }
}

fn unknown(image: &Bound<'_, PyAny>) -> PyErr {
    let kind = image.get_type().name().map(|name| name.to_string()).unwrap_or_default();
    raised(&Error::parameter(
        "images",
        format!(
            "an object of type {kind} is no image; give bytes, a path, an image of Pillow, or an array of \
             type uint8"
        ),
    ))
}

fn misshapen(shape: &[usize]) -> PyErr {
    raised(&Error::parameter(
        "images",
        format!(
            "an array of shape {shape:?} is no image; give [height, width] or [height, width, channels] \
             with 1, 3 or 4 channels, and several images as a list"
        ),
    ))
}

/// Reads a file; stops when it is too large. Opening a pipe may take for ever.
fn read(path: &Path, limits: Limits) -> Result<Vec<u8>> {
    let failed = |reason: &str, remedy: &str| {
        let detail = format!("{}: cannot be read ({reason}); {remedy}", path.display());
        Error::new(ErrorKind::Io, detail)
    };
    let found = path.metadata().map_err(|error| failed(&error.to_string(), "check the path"))?;
    if !found.is_file() {
        return Err(failed("it is not a regular file", "name the files in a folder"));
    }
    let mut bytes = Vec::new();
    let most = u64::try_from(limits.file_bytes).unwrap_or(u64::MAX).saturating_add(1);
    let opened = File::open(path);
    opened
        .and_then(|file| file.take(most).read_to_end(&mut bytes))
        .map_err(|error| failed(&error.to_string(), "check its permissions and the disk"))?;
    limits.check(bytes.len())?;
    Ok(bytes)
}

/// Pixels as a PNG that is not compressed, which takes little more than a copy.
fn png(bytes: &[u8], width: usize, height: usize, color: ExtendedColorType) -> Result<Vec<u8>> {
    let unusable = |error: &dyn std::fmt::Display| {
        let detail = format!("the array cannot be used ({error}); give one with pixels");
        Error::new(ErrorKind::UndecodableImage, detail)
    };
    let side = |pixels: usize| u32::try_from(pixels).map_err(|error| unusable(&error));
    let mut file = Vec::with_capacity(bytes.len() + bytes.len() / 16 + 1024);
    let encoder = PngEncoder::new_with_quality(
        &mut file,
        CompressionType::Uncompressed,
        FilterType::NoFilter,
    );
    encoder
        .write_image(bytes, side(width)?, side(height)?, color)
        .map_err(|error| unusable(&error))?;
    Ok(file)
}
