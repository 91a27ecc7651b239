//! Image bytes to upright 8-bit RGB, within limits.

use std::io::Cursor;

use image::error::{ImageError, LimitErrorKind};
use image::metadata::Orientation;
use image::{ImageDecoder, ImageReader, Limits};

use super::format::ImageFormat;
use super::profile::SampleSpace;
use super::{jpeg, orient, rgb, tiff, webp};
use cutline_error::{Error, ErrorKind, Result};

/// No side may be longer, whatever the number of pixels: the most that JPEG can express.
const MAX_SIDE: u64 = 65_535;

/// What a decoder may allocate beside the pixels, for tables, metadata and rows.
const WORKING_MEMORY: u64 = 64 << 20;

/// How much of an image is accepted. All limits are checked before memory is taken for the pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Bytes of the encoded image.
    pub max_bytes: usize,
    /// Width × height. A pixel costs 3 bytes of memory, 4 with transparency or as CMYK, up to 8 with
    /// 16 bits a sample, and 9 (12 as CMYK) in a progressive JPEG while it is decoded.
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
    /// `3 · width · height` samples: red, green, blue, row after row, in `space`.
    pub rgb: Vec<u8>,
    /// Pixels a row, at least 1, after the orientation was applied.
    pub width: usize,
    /// Rows, at least 1, after the orientation was applied.
    pub height: usize,
    /// What the bytes were.
    pub format: ImageFormat,
    /// How it was turned to become upright: EXIF's number, 1 (not at all) to 8.
    pub orientation: u8,
    /// What the samples mean. Scaling comes before the conversion to sRGB, which is done by
    /// [`PreprocessConfig::resize`](super::PreprocessConfig::resize): fewer pixels are left then.
    pub space: SampleSpace,
}

/// Decodes `bytes`: the format is told from them, the EXIF orientation applied, transparency
/// composited over white, every colour type brought to 8-bit RGB as Pillow's `convert("RGB")` does.
/// Of several frames or pages the first is taken, and the others are not looked at.
///
/// JPEG has the very samples that Pillow decodes. One that is whole but damaged inside is shown with
/// the damage, as Pillow and browsers do.
///
/// Decoders other than that of JPEG may panic on hostile bytes; a caller that must not die catches that.
///
/// # Errors
/// - [`ErrorKind::ImageTooLarge`]: more bytes or pixels than `limits` allow;
/// - [`ErrorKind::UnsupportedFormat`]: no image, or of a kind that is not read;
/// - [`ErrorKind::UndecodableImage`]: a known format, but cut off or damaged.
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<DecodedImage> {
    decode_with(bytes, limits, None)
}

/// Decodes `bytes` that will be scaled to `width × height`: [`decode`], but a JPEG of which that
/// averages many pixels into one goes through a decoder that takes half the time and rounds
/// subsampled chroma otherwise. After the scaling no sample is more than 3 of 255 levels away.
///
/// # Errors
/// As [`decode`].
pub fn decode_for(
    bytes: &[u8],
    limits: &DecodeLimits,
    width: usize,
    height: usize,
) -> Result<DecodedImage> {
    decode_with(bytes, limits, Some(width.max(height)))
}

fn decode_with(bytes: &[u8], limits: &DecodeLimits, side: Option<usize>) -> Result<DecodedImage> {
    check_bytes(bytes.len(), limits.max_bytes)?;
    let format = ImageFormat::of(bytes)?;
    let (image, orientation) = match format {
        ImageFormat::Jpeg => jpeg::decode(bytes, limits.max_pixels, side)?,
        _ => read(bytes, format, limits.max_pixels)?,
    };
    Ok(orient::upright(image, orientation))
}

/// Every format but JPEG: the pixels as stored, and how to turn them.
fn read(bytes: &[u8], format: ImageFormat, max_pixels: u64) -> Result<(DecodedImage, Orientation)> {
    check_structure(bytes, format)?;
    let mut decoder = open(bytes, format)?;
    let (width, height) = decoder.dimensions();
    check_pixels(u64::from(width), u64::from(height), max_pixels)?;
    let length = decoder.total_bytes();
    decoder.set_limits(decoder_limits(length)).map_err(|error| explain(error, format))?;
    // Damaged metadata must not cost the image: without an orientation it is shown as stored.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let space = space(&mut decoder);
    let color = decoder.color_type();
    let mut pixels = vec![0; to_usize(length)?];
    decoder.read_image(&mut pixels).map_err(|error| explain(error, format))?;

    let image = DecodedImage {
        rgb: rgb::to_rgb8(pixels, color)?,
        width: to_usize(u64::from(width))?,
        height: to_usize(u64::from(height))?,
        format,
        orientation: orientation.to_exif(),
        space,
    };
    Ok((image, orientation))
}

/// What the image's profile says; of damaged metadata nothing. Profiles of grey and CMYK images are
/// not for the RGB that their pixels have become, and count as none.
fn space(decoder: &mut impl ImageDecoder) -> SampleSpace {
    match decoder.icc_profile() {
        Ok(Some(profile)) => SampleSpace::of_icc(&profile),
        _ => SampleSpace::srgb(),
    }
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

/// Refuses what has no pixels, more than `max`, or a side that is too long.
pub(super) fn check_pixels(width: u64, height: u64, max: u64) -> Result<()> {
    let pixels = width.saturating_mul(height);
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

/// What decoders do not check, or only when it is too late.
fn check_structure(bytes: &[u8], format: ImageFormat) -> Result<()> {
    match format {
        ImageFormat::Tiff => tiff::check_fields(bytes),
        ImageFormat::WebP => webp::check_chunks(bytes),
        _ => Ok(()),
    }
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
