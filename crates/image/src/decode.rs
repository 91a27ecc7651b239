//! Image bytes to upright 8-bit RGB, within limits.

use std::borrow::Cow;
use std::io::Cursor;

use image::error::{ImageError, LimitErrorKind};
use image::metadata::Orientation;
use image::{ColorType, ImageDecoder, ImageReader, Limits};

use super::format::ImageFormat;
use super::header::ImageHeader;
use super::profile::SampleSpace;
use super::rgb::Alpha;
use super::{avif, exif, jpeg, orient, png, rgb, tiff, webp};
use cutline_error::{Error, ErrorKind, Result};

/// No side may be longer, whatever the number of pixels: the most that JPEG can express.
const MAX_SIDE: u64 = 65_535;

/// Memory that a decoder may allocate in addition to the pixels, for tables, metadata and rows.
const WORKING_MEMORY: u64 = 64 << 20;

/// The largest image that is accepted. All limits are checked before memory is allocated for pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Bytes of the encoded image.
    pub max_bytes: usize,
    /// Width × height. A pixel takes 3 bytes of memory, 4 with transparency or as CMYK, up to 8 with
    /// 16 bits per sample, and 9 (12 as CMYK) while a progressive JPEG is decoded.
    pub max_pixels: u64,
}

impl Default for DecodeLimits {
    /// 10 MiB and 100 million pixels.
    fn default() -> Self {
        Self { max_bytes: 10 << 20, max_pixels: 100_000_000 }
    }
}

/// A decoded image: upright, without transparency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedImage {
    /// `3 · width · height` samples: red, green, blue, row after row, in `space`.
    pub rgb: Vec<u8>,
    /// Pixels a row, at least 1, after the orientation was applied.
    pub width: usize,
    /// Rows, at least 1, after the orientation was applied.
    pub height: usize,
    /// The format of the file.
    pub format: ImageFormat,
    /// The EXIF orientation that was applied: 1 (none) to 8.
    pub orientation: u8,
    /// The colour space of the samples. [`PreprocessConfig::resize`](super::PreprocessConfig::resize)
    /// converts to sRGB after scaling, when fewer pixels are left.
    pub space: SampleSpace,
}

/// Decodes an image file. The format is recognised from `bytes`, the EXIF orientation is applied,
/// transparency is composited over white, and every colour type becomes 8-bit RGB as with Pillow's
/// `convert("RGB")`. Of several frames or pages, only the first is read.
///
/// JPEG gives exactly the samples that Pillow decodes. A complete file with damage inside is shown
/// with the damage, as Pillow and browsers do.
///
/// Decoders other than that of JPEG may panic on hostile bytes; servers must catch that.
///
/// # Errors
/// - [`ErrorKind::ImageTooLarge`]: more bytes or pixels than `limits` allow;
/// - [`ErrorKind::UnsupportedFormat`]: not an image, or of an unsupported kind;
/// - [`ErrorKind::UndecodableImage`]: a supported format, but cut off or damaged.
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<DecodedImage> {
    decode_with(bytes, limits, None)
}

/// [`decode`] for an image that will be scaled to `width × height`. If that averages many pixels into
/// one, a JPEG goes through a decoder that takes half the time and rounds subsampled chroma in a
/// different way. After scaling, no sample differs by more than 3 of 255 levels.
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
    let header = ImageHeader::read(bytes, limits)?;
    let (image, orientation) = match header.format {
        ImageFormat::Jpeg => jpeg::decode(bytes, &header, side)?,
        ImageFormat::Avif => avif::decode(bytes, &header)?,
        _ => read(bytes, &header)?,
    };
    Ok(orient::upright(image, orientation))
}

/// Decodes every other format: the pixels as stored, and their orientation.
fn read(bytes: &[u8], header: &ImageHeader) -> Result<(DecodedImage, Orientation)> {
    let format = header.format;
    check_structure(bytes, format)?;
    let file = match format {
        ImageFormat::Png => png::with_end(bytes),
        ImageFormat::WebP => webp::without_absent_metadata(bytes),
        _ => Cow::Borrowed(bytes),
    };
    let mut decoder = open(&file, format)?;
    let (width, height) = decoder.dimensions();
    header.check_size(width.into(), height.into())?;
    let length = decoder.total_bytes();
    decoder.set_limits(decoder_limits(length)).map_err(|error| explain(error, format))?;
    let orientation = match format {
        ImageFormat::Png => png::orientation(bytes),
        ImageFormat::WebP => webp::orientation(bytes),
        ImageFormat::Tiff => exif::orientation(bytes),
        _ => Orientation::NoTransforms,
    };
    let space = space(&mut decoder);
    let color = decoder.color_type();
    let mut pixels = vec![0; to_usize(length)?];
    decoder.read_image(&mut pixels).map_err(|error| explain(error, format))?;

    let alpha = match format {
        ImageFormat::Tiff => tiff::alpha(bytes),
        ImageFormat::Bmp => bitmap_alpha(&pixels, color),
        _ => Alpha::Straight,
    };
    let image = DecodedImage {
        rgb: rgb::to_rgb8(pixels, color, alpha)?,
        width: to_usize(u64::from(width))?,
        height: to_usize(u64::from(height))?,
        format,
        orientation: orientation.to_exif(),
        space,
    };
    Ok((image, orientation))
}

/// Many programs leave the fourth byte of a bitmap's pixels 0. Others show such an image as opaque,
/// because nobody stores an invisible one.
fn bitmap_alpha(pixels: &[u8], color: ColorType) -> Alpha {
    let is_blank = || pixels.as_chunks::<4>().0.iter().all(|[_, _, _, alpha]| *alpha == 0);
    if color == ColorType::Rgba8 && is_blank() { Alpha::Ignored } else { Alpha::Straight }
}

/// The colour space of the image's profile; sRGB if the metadata is damaged. Profiles of grey and CMYK
/// images do not describe the RGB that their pixels have become, and are ignored.
fn space(decoder: &mut impl ImageDecoder) -> SampleSpace {
    match decoder.icc_profile() {
        Ok(Some(profile)) => SampleSpace::of_icc(&profile),
        _ => SampleSpace::srgb(),
    }
}

/// Reads the header.
pub(super) fn open(bytes: &[u8], format: ImageFormat) -> Result<impl ImageDecoder> {
    let codec = match format {
        ImageFormat::Jpeg => image::ImageFormat::Jpeg,
        ImageFormat::Png => image::ImageFormat::Png,
        ImageFormat::WebP => image::ImageFormat::WebP,
        ImageFormat::Gif => image::ImageFormat::Gif,
        ImageFormat::Bmp => image::ImageFormat::Bmp,
        ImageFormat::Tiff => image::ImageFormat::Tiff,
        ImageFormat::Avif => image::ImageFormat::Avif,
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), codec);
    let mut limits = Limits::no_limits();
    // The number of pixels was checked with the header. The limit is for metadata.
    limits.max_alloc = Some(match format {
        ImageFormat::Png => png::metadata_limit(bytes),
        _ => WORKING_MEMORY,
    });
    reader.limits(limits);
    reader.into_decoder().map_err(|error| explain(error, format))
}

fn decoder_limits(pixel_bytes: u64) -> Limits {
    let mut limits = Limits::no_limits();
    // Some decoders hold a second copy of the pixels, which for CMYK TIFF is a third larger.
    limits.max_alloc = Some(pixel_bytes.saturating_mul(3).saturating_add(WORKING_MEMORY));
    limits
}

pub(super) fn check_bytes(actual: usize, max: usize) -> Result<()> {
    if actual <= max {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::ImageTooLarge,
        format!("the image has {actual} bytes and the limit is {max}; send a smaller file"),
    ))
}

/// Refuses an image without pixels, with more than `max` pixels, or with a side that is too long.
pub(super) fn check_pixels(width: u64, height: u64, max: u64) -> Result<()> {
    let pixels = width.saturating_mul(height);
    let detail = if pixels == 0 {
        return Err(Error::new(
            ErrorKind::UndecodableImage,
            format!("the image is {width}×{height} and has no pixels; send another image"),
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

/// Checks that the decoders do not make, or make too late.
fn check_structure(bytes: &[u8], format: ImageFormat) -> Result<()> {
    match format {
        ImageFormat::Tiff => tiff::check_fields(bytes),
        ImageFormat::WebP => webp::check_chunks(bytes),
        _ => Ok(()),
    }
}

/// Translates a decoder's error.
fn explain(error: ImageError, format: ImageFormat) -> Error {
    let (kind, detail) = match &error {
        ImageError::Limits(limit) if limit.kind() == LimitErrorKind::InsufficientMemory => (
            ErrorKind::ImageTooLarge,
            format!("the {format} image needs too much memory; scale it down and send it again"),
        ),
        ImageError::Unsupported(_) => (
            ErrorKind::UnsupportedFormat,
            format!(
                "this kind of {format} image is not supported; save it as plain 8-bit JPEG or PNG"
            ),
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
    fn limit_errors_name_the_value_and_the_limit() {
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
