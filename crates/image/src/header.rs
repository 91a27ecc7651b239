//! The size of an image and the memory that it will take, from its header alone.

use image::ImageDecoder;

use super::decode::{self, DecodeLimits, check_bytes, check_pixels};
use super::format::ImageFormat;
use super::{avif, gif, jpeg, png, tiff, webp};
use cutline_error::{Error, ErrorKind, Result};

/// Memory that an image of any size takes: tables of the decoder and of a colour profile, the copies
/// that are measured and shown to the model, thumbnails.
const FIXED_BYTES: u64 = 12 << 20;

/// Memory for each pixel of a side: rows that a decoder keeps, and an image that is scaled in one
/// direction only.
const SIDE_BYTES: u64 = 3 * 512;

/// Bytes of a pixel of the decoded image.
const RGB: u64 = 3;

/// What the header of an image file says, and what decoding the file will take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageHeader {
    /// The format, recognised from the first bytes.
    pub format: ImageFormat,
    /// Pixels a row, as stored: an orientation may swap width and height.
    pub width: u64,
    /// Rows, as stored.
    pub height: u64,
    /// An upper bound of the memory, in bytes, that is allocated at the same time by
    /// [`decode_for`](super::decode_for), by scaling with
    /// [`PreprocessConfig::preprocess`](super::PreprocessConfig::preprocess) to a side of at most 512,
    /// and by [`Colors`](super::Colors) and [`Measures`](super::Measures). The file's own bytes are not
    /// in it.
    pub peak_bytes: u64,
}

impl ImageHeader {
    /// Reads the header of `bytes`. This takes microseconds to milliseconds, and less than 200 kB of
    /// memory, whatever the file claims.
    ///
    /// # Errors
    /// - [`ErrorKind::ImageTooLarge`]: more bytes or pixels than `limits` allow;
    /// - [`ErrorKind::UnsupportedFormat`]: not an image, or of an unsupported kind;
    /// - [`ErrorKind::UndecodableImage`]: the header is damaged or cut off.
    ///
    /// A file with a sound header may still be refused by [`decode()`](super::decode()).
    pub fn read(bytes: &[u8], limits: &DecodeLimits) -> Result<Self> {
        check_bytes(bytes.len(), limits.max_bytes)?;
        let format = ImageFormat::of(bytes)?;
        let needs = match format {
            ImageFormat::Jpeg => jpeg::needs(bytes),
            ImageFormat::Png => png::needs(bytes),
            ImageFormat::Gif => gif::needs(bytes),
            ImageFormat::Tiff => tiff::needs(bytes),
            ImageFormat::WebP => webp::needs(bytes),
            ImageFormat::Bmp => bitmap(bytes),
            ImageFormat::Avif => Some(avif::needs(bytes)?),
        };
        let needs = needs.ok_or_else(|| damaged(format))?;
        check_pixels(needs.width, needs.height, limits.max_pixels)?;
        let Needs { width, height, .. } = needs;
        Ok(Self { format, width, height, peak_bytes: needs.peak_bytes() })
    }

    /// Refuses a file for which the decoder finds another size than this header says: it would take
    /// other memory than announced.
    ///
    /// # Errors
    /// [`ErrorKind::UndecodableImage`].
    pub(super) fn check_size(&self, width: u64, height: u64) -> Result<()> {
        if (width, height) == (self.width, self.height) {
            return Ok(());
        }
        let format = self.format;
        Err(Error::new(
            ErrorKind::UndecodableImage,
            format!("the {format} image is damaged: it states two sizes; save it again and resend"),
        ))
    }
}

/// What a decoder will need.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Needs {
    /// Pixels a row.
    pub width: u64,
    /// Rows.
    pub height: u64,
    /// Bytes of a pixel in the decoder's output.
    pub pixel: u64,
    /// Bytes that the decoder holds beside its output.
    pub working: u64,
    /// Bytes of copies of the metadata.
    pub metadata: u64,
    /// Whether rows become columns.
    pub is_turned: bool,
}

impl Needs {
    fn peak_bytes(&self) -> u64 {
        let pixels = self.width.saturating_mul(self.height);
        let output = pixels.saturating_mul(self.pixel);
        let rgb = pixels.saturating_mul(RGB);
        let decoding = output.saturating_add(self.working);
        // The buffer of the decoder's output becomes that of the image, unless it is too small.
        let converting = if self.pixel < RGB { output.saturating_add(rgb) } else { output };
        let turning = if self.is_turned { output.max(rgb).saturating_add(rgb) } else { 0 };
        let sides = self.width.saturating_add(self.height).saturating_mul(SIDE_BYTES);
        [self.metadata, sides, FIXED_BYTES]
            .into_iter()
            .fold(decoding.max(converting).max(turning), u64::saturating_add)
    }
}

/// A bitmap is decoded straight into the output.
fn bitmap(bytes: &[u8]) -> Option<Needs> {
    let decoder = decode::open(bytes, ImageFormat::Bmp).ok()?;
    let (width, height) = decoder.dimensions();
    let pixel = u64::from(decoder.color_type().bytes_per_pixel());
    Some(Needs { width: width.into(), height: height.into(), pixel, ..Needs::default() })
}

fn damaged(format: ImageFormat) -> Error {
    Error::new(
        ErrorKind::UndecodableImage,
        format!("the header of the {format} image is damaged or cut off; send the whole file"),
    )
}
