//! Image bytes to upright 8-bit RGB, within limits.

use std::io::Cursor;

use image::error::{ImageError, LimitErrorKind};
use image::{ImageDecoder, ImageReader, Limits};

use super::format::ImageFormat;
use super::{orient, rgb};
use crate::error::{Error, ErrorKind, Result};

/// No side may be longer, whatever the number of pixels: the most that JPEG can express.
const MAX_SIDE: u32 = 65_535;

/// What a decoder may allocate beside the pixels, for tables, metadata and rows.
const WORKING_MEMORY: u64 = 64 << 20;

/// How much of an image is accepted. All limits are checked before memory is taken for the pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Bytes of the encoded image.
    pub max_bytes: usize,
    /// Width × height. A pixel costs 3 bytes of memory, 4 with transparency, up to 8 with 16 bits
    /// a sample, and 9 in a progressive JPEG while it is decoded.
    pub max_pixels: u64,
}

impl Default for DecodeLimits {
    /// 10 MiB and 100 million pixels.
    fn default() -> Self {
        Self { max_bytes: 10 << 20, max_pixels: 100_000_000 }
    }
}

/// An image as it is meant to be seen: upright, without transparency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedImage {
    /// `3 · width · height` samples: red, green, blue, row after row.
    pub rgb: Vec<u8>,
    /// Pixels a row, at least 1, after the orientation was applied.
    pub width: usize,
    /// Rows, at least 1, after the orientation was applied.
    pub height: usize,
    /// What the bytes were.
    pub format: ImageFormat,
}

/// Decodes `bytes`: the format is told from them, the EXIF orientation applied, transparency
/// composited over white, every colour type brought to 8-bit RGB as Pillow's `convert("RGB")` does.
/// Of several frames or pages the first is taken; colour profiles are ignored, as in the reference.
///
/// A JPEG that is whole but damaged inside is shown with the damage, as Pillow and browsers do. With
/// subsampled chroma single samples are up to 6 levels from libjpeg-turbo's (a mean of 0.3).
///
/// Decoders may panic on hostile bytes; a caller that must not die catches that.
///
/// # Errors
/// - [`ErrorKind::ImageTooLarge`]: more bytes or pixels than `limits` allow;
/// - [`ErrorKind::UnsupportedFormat`]: no image, or of a kind that is not read;
/// - [`ErrorKind::UndecodableImage`]: a known format, but cut off or damaged.
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<DecodedImage> {
    check_bytes(bytes.len(), limits.max_bytes)?;
    let format = ImageFormat::of(bytes)?;
    check_complete(bytes, format)?;

    let mut decoder = open(bytes, format)?;
    let (width, height) = decoder.dimensions();
    check_pixels(width, height, limits.max_pixels)?;
    let length = decoder.total_bytes();
    decoder.set_limits(decoder_limits(length)).map_err(|error| explain(error, format))?;
    // Damaged metadata must not cost the image: without an orientation it is shown as stored.
    let orientation = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    let color = decoder.color_type();
    let mut pixels = vec![0; to_usize(length)?];
    decoder.read_image(&mut pixels).map_err(|error| explain(error, format))?;

    let image = DecodedImage {
        rgb: rgb::to_rgb8(pixels, color)?,
        width: to_usize(u64::from(width))?,
        height: to_usize(u64::from(height))?,
        format,
    };
    Ok(orient::upright(image, orientation))
}

/// Reads the header.
fn open(bytes: &[u8], format: ImageFormat) -> Result<impl ImageDecoder> {
    let codec = match format {
        ImageFormat::Jpeg => image::ImageFormat::Jpeg,
        ImageFormat::Png => image::ImageFormat::Png,
        ImageFormat::WebP => image::ImageFormat::WebP,
        ImageFormat::Gif => image::ImageFormat::Gif,
        ImageFormat::Bmp => image::ImageFormat::Bmp,
        ImageFormat::Tiff => image::ImageFormat::Tiff,
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), codec);
    // The size is not known yet, and is checked by us with a better message.
    reader.limits(decoder_limits(0));
    reader.into_decoder().map_err(|error| explain(error, format))
}

fn decoder_limits(pixel_bytes: u64) -> Limits {
    let mut limits = Limits::no_limits();
    // Some decoders hold a second copy of the pixels, CMYK TIFF one a third larger.
    limits.max_alloc = Some(pixel_bytes.saturating_mul(3).saturating_add(WORKING_MEMORY));
    limits
}

fn check_bytes(actual: usize, max: usize) -> Result<()> {
    if actual <= max {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::ImageTooLarge,
        format!("the image has {actual} bytes and the limit is {max}; send a smaller file"),
    ))
}

fn check_pixels(width: u32, height: u32, max: u64) -> Result<()> {
    let pixels = u64::from(width) * u64::from(height);
    let detail = if pixels == 0 {
        return Err(Error::new(
            ErrorKind::UndecodableImage,
            format!("the image is {width}×{height} and has no pixels; send another"),
        ));
    } else if pixels > max {
        format!(
            "the image is {width}×{height}, {pixels} pixels, and the limit is {max}; \
             scale it down and send it again"
        )
    } else if width.max(height) > MAX_SIDE {
        format!(
            "the image is {width}×{height} and the limit for a side is {MAX_SIDE}; \
             scale it down and send it again"
        )
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::ImageTooLarge, detail))
}

/// Finds the cut that the decoder would paint over in grey.
fn check_complete(bytes: &[u8], format: ImageFormat) -> Result<()> {
    let complete = match format {
        ImageFormat::Jpeg => jpeg_has_end(bytes),
        ImageFormat::WebP => riff_is_whole(bytes),
        _ => true,
    };
    if complete {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::UndecodableImage,
        format!("the {format} image is cut off, its end is missing; send the whole file"),
    ))
}

/// Whether an end-of-image marker follows the header. Coded data never holds one by chance (there
/// `FF` is followed by `00` or a restart marker), and searching from the end finds it at once.
///
/// The header is walked and not searched, for it may hold a whole JPEG as a thumbnail.
fn jpeg_has_end(bytes: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xDA;
    let mut rest = &bytes[2..];
    loop {
        match rest {
            [0xFF, START_OF_SCAN, scan @ ..] => {
                return scan.windows(2).rev().any(|pair| pair == [0xFF, 0xD9]);
            }
            // Fill bytes, and markers without a length.
            [0xFF, 0xFF, ..] => rest = &rest[1..],
            [0xFF, 0x01 | 0xD0..=0xD8, tail @ ..] => rest = tail,
            [0xFF, _, high, low, ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                rest = rest.get(2 + length..).unwrap_or_default();
            }
            // Stray bytes between segments: decoders skip them too.
            [_, tail @ ..] => rest = tail,
            [] => return false,
        }
    }
}

/// Whether all the bytes that the RIFF header announces are there.
fn riff_is_whole(bytes: &[u8]) -> bool {
    let [_, _, _, _, a, b, c, d, body @ ..] = bytes else { return false };
    u64::from(u32::from_le_bytes([*a, *b, *c, *d])) <= body.len() as u64
}

/// A decoder's error in the words of this crate.
fn explain(error: ImageError, format: ImageFormat) -> Error {
    let (kind, detail) = match &error {
        ImageError::Limits(limit) if limit.kind() == LimitErrorKind::InsufficientMemory => (
            ErrorKind::ImageTooLarge,
            format!("the {format} image needs too much memory; scale it down and send it again"),
        ),
        ImageError::Unsupported(_) => (
            ErrorKind::UnsupportedFormat,
            format!("this kind of {format} image is not read; save it as plain 8-bit JPEG or PNG"),
        ),
        _ => (
            ErrorKind::UndecodableImage,
            format!("the {format} image is damaged or cut off; open it, save it again and resend"),
        ),
    };
    Error::new(kind, detail).with_source(error)
}

fn to_usize(length: u64) -> Result<usize> {
    usize::try_from(length).map_err(|error| {
        Error::new(ErrorKind::ImageTooLarge, "the image does not fit this machine's memory")
            .with_source(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_thumbnail_is_not_the_end_of_the_image() {
        let mut jpeg = b"\xFF\xD8\xFF\xE1\x00\x06\xFF\xD8\xFF\xD9\xFF\xDA\x00\x02\x12\x34".to_vec();
        assert!(!jpeg_has_end(&jpeg));
        jpeg.extend(b"\xFF\xD9");
        assert!(jpeg_has_end(&jpeg));
        jpeg.extend(b"trailing bytes of a phone");
        assert!(jpeg_has_end(&jpeg));
    }

    #[test]
    fn a_segment_longer_than_the_file_is_no_end() {
        assert!(!jpeg_has_end(b"\xFF\xD8\xFF\xE0\xFF\xFF\xFF\xD9"));
        assert!(!jpeg_has_end(b"\xFF\xD8\xFF"));
    }

    #[test]
    fn limits_say_what_is_and_what_may_be() {
        let error = check_pixels(20_000, 20_000, 100_000_000).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ImageTooLarge);
        for part in ["20000×20000", "400000000", "100000000"] {
            assert!(error.detail().contains(part), "{}", error.detail());
        }
        assert!(check_pixels(10_000, 10_000, 100_000_000).is_ok());
        assert_eq!(check_pixels(70_000, 1, 100_000).unwrap_err().kind(), ErrorKind::ImageTooLarge);
        assert_eq!(check_pixels(5, 0, 9).unwrap_err().kind(), ErrorKind::UndecodableImage);
    }
}
