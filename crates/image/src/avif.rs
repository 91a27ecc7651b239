//! AVIF: the boxes say which AV1 data is shown and how; see `heif`, `av1` and `yuv`.
//!
//! The result is that of libavif, which Pillow and browsers use, within 2 levels. An orientation in EXIF
//! is ignored, as the standard demands: the boxes have their own.

use image::metadata::Orientation;

use super::av1::{Frame, Layout, Plane};
use super::boxes::{Coding, Fault};
use super::decode::DecodedImage;
use super::format::ImageFormat;
use super::header::{ImageHeader, Needs};
use super::heif::{self, Coded, Mirror};
use super::profile::SampleSpace;
use super::rgb::{over_white, premultiplied_over_white};
use super::units::Units;
use super::yuv::Conversion;
use cutline_error::{Error, ErrorKind, Result};

/// A tile may have this many pixels even if the image has fewer.
const LEAST_TILE: u64 = 64 * 64;

/// Bytes that the decoder holds beside the planes: for each pixel, the same again for each frame; for each
/// of its tiles, which may be as small as 64 × 64; and for an image of any size.
const INTERNAL: u64 = 1;
const TILE: u64 = 16 << 10;
const MAX_TILES: u64 = 64 * 64;
const INTERNAL_FIXED: u64 = 4 << 20;

/// What decoding will need.
///
/// # Errors
/// - [`ErrorKind::UndecodableImage`]: the boxes are damaged or cut off;
/// - [`ErrorKind::UnsupportedFormat`]: they hold something else than a still image in AV1.
pub(super) fn needs(bytes: &[u8]) -> Result<Needs> {
    let outline = heif::outline(bytes).map_err(refuse)?;
    let (width, height) = (u64::from(outline.width), u64::from(outline.height));
    let pixels = width.saturating_mul(height);
    let largest = largest_frame(pixels.max(LEAST_TILE), &outline.units);
    let frames = u64::from(outline.units.frames);
    let (frame, canvas) = (planes(largest, &outline.units), planes(pixels, &outline.units));
    // Film grain and columns that were left out make a copy. The decoder gives no frame back before the
    // last is gone.
    let copies = frames + 1 + u64::from(outline.units.widens);
    let planes = frame.saturating_mul(copies);
    let (held, canvas) = if outline.is_grid { (canvas, canvas) } else { (planes, 0) };
    let decoding = planes
        .saturating_add(largest.saturating_mul(INTERNAL * (1 + frames)))
        .saturating_add((largest / LEAST_TILE).min(MAX_TILES) * TILE + INTERNAL_FIXED)
        .saturating_add(canvas);
    // The samples stay while those of the opacity are decoded. Both are there while they become colours,
    // which are counted as output.
    let (held, decoding) = if outline.has_alpha {
        (held.saturating_mul(2), held.saturating_add(decoding))
    } else {
        (held, decoding)
    };
    let working = held.max(decoding.saturating_sub(pixels.saturating_mul(3)));
    // The coded data is copied for the decoder, one tile after another.
    let metadata = bytes.len() as u64;
    let is_turned = outline.turns % 2 == 1;
    Ok(Needs { width, height, pixel: 3, working, metadata, is_turned })
}

/// Bytes of the planes of a frame: chroma for every fourth pixel, or for all.
fn planes(pixels: u64, units: &Units) -> u64 {
    let chroma = if units.profile == 0 { pixels / 2 } else { pixels.saturating_mul(2) };
    let samples = pixels.saturating_add(chroma);
    samples.saturating_mul(units.sample_bytes.into())
}

/// Pixels of the planes of the largest frame that has at most `pixels`. The decoder works in blocks of
/// 128 × 128, and avoids rows of some lengths. A frame may have another shape than the image.
fn largest_frame(pixels: u64, units: &Units) -> u64 {
    const BEYOND: u64 = 256;
    let sides = units.side_bits.map(|bits| {
        let longest = pixels.min(1 << bits);
        (pixels / longest.max(1)).saturating_add(longest)
    });
    let beyond = sides[0].max(sides[1]).saturating_add(BEYOND).saturating_mul(BEYOND);
    pixels.saturating_add(beyond)
}

/// Decodes `bytes` and returns the image as stored, with its orientation.
///
/// # Errors
/// As [`decode()`](super::decode::decode()).
pub(super) fn decode(bytes: &[u8], header: &ImageHeader) -> Result<(DecodedImage, Orientation)> {
    read(bytes, header).map_err(refuse)
}

fn read(bytes: &[u8], header: &ImageHeader) -> Result<(DecodedImage, Orientation), Fault> {
    let image = heif::read(bytes)?;
    let (width, height) = (image.outline.width as usize, image.outline.height as usize);
    let pixels = (header.width * header.height).max(LEAST_TILE);
    let limit = u32::try_from(pixels).unwrap_or(u32::MAX);
    let decode = |coded: &Coded| Samples::decode(coded, width, height, limit, &image.outline.units);

    let samples = decode(&image.color)?;
    let coding = image.coding.unwrap_or(samples.coding());
    let opacity = image.alpha.as_ref().map(decode).transpose()?;
    let conversion = Conversion::new(samples.layout(), coding)?;
    let mut rgb = conversion.convert(&samples.planes(), width, height);
    if let Some(opacity) = opacity {
        composite(&mut rgb, &opacity, width, image.premultiplied)?;
    }
    let space = match image.profile {
        Some(profile) => SampleSpace::of_icc(profile),
        None => SampleSpace::of_code_points(coding.primaries, coding.transfer),
    };
    let orientation = orientation(image.outline.turns, image.mirror);
    let decoded = DecodedImage {
        rgb,
        width,
        height,
        format: ImageFormat::Avif,
        orientation: orientation.to_exif(),
        space,
    };
    Ok((cropped(decoded, image.crop), orientation))
}

/// Puts `rgb` on white. The opacity is the lightness of `opacity`.
fn composite(
    rgb: &mut [u8],
    opacity: &Samples,
    width: usize,
    is_premultiplied: bool,
) -> Result<(), Fault> {
    let over = if is_premultiplied { premultiplied_over_white } else { over_white };
    // Opacity has no chroma, whatever the data says.
    let conversion = Conversion::new(opacity.layout(), Coding { matrix: 2, ..opacity.coding() })?;
    let [plane, ..] = opacity.planes();
    let mut levels = vec![0; width];
    for (row, pixels) in rgb.chunks_exact_mut(3 * width).enumerate() {
        conversion.lightness(plane, row, &mut levels);
        for (pixel, alpha) in pixels.as_chunks_mut::<3>().0.iter_mut().zip(&levels) {
            *pixel = pixel.map(|value| over(value, *alpha));
        }
    }
    Ok(())
}

/// The part of `image` that is shown: left, top, width, height.
fn cropped(mut image: DecodedImage, part: Option<[u32; 4]>) -> DecodedImage {
    let Some([left, top, width, height]) = part.map(|part| part.map(|side| side as usize)) else {
        return image;
    };
    let (width, height) = (width.min(image.width - left), height.min(image.height - top));
    for row in 0..height {
        let from = 3 * ((top + row) * image.width + left);
        image.rgb.copy_within(from..from + 3 * width, 3 * row * width);
    }
    image.rgb.truncate(3 * width * height);
    DecodedImage { width, height, ..image }
}

/// Turns to the left, then a mirror, as an orientation of EXIF.
fn orientation(turns: u8, mirror: Option<Mirror>) -> Orientation {
    use Orientation::{
        FlipHorizontal, FlipVertical, NoTransforms, Rotate90, Rotate90FlipH, Rotate180, Rotate270,
        Rotate270FlipH,
    };
    match (turns, mirror) {
        (0, None) => NoTransforms,
        (1, None) => Rotate270,
        (2, None) => Rotate180,
        (_, None) => Rotate90,
        (0, Some(Mirror::Horizontal)) | (2, Some(Mirror::Vertical)) => FlipHorizontal,
        (0, Some(Mirror::Vertical)) | (2, Some(Mirror::Horizontal)) => FlipVertical,
        (1, Some(Mirror::Horizontal)) | (3.., Some(Mirror::Vertical)) => Rotate270FlipH,
        (1, Some(Mirror::Vertical)) | (3.., Some(Mirror::Horizontal)) => Rotate90FlipH,
    }
}

/// The samples of an image, before they become colours.
enum Samples {
    /// One frame, as the decoder holds it.
    Frame(Frame),
    /// Frames side by side, copied.
    Tiles(Tiles),
}

impl Samples {
    fn decode(
        coded: &Coded,
        width: usize,
        height: usize,
        max_pixels: u32,
        most: &Units,
    ) -> Result<Self, Fault> {
        let decode = |tile: &[&[u8]]| Frame::decode(tile, max_pixels, most);
        let [only] = &coded.tiles[..] else {
            return Tiles::decode(coded, width, height, decode).map(Self::Tiles);
        };
        let frame = decode(only)?;
        if (frame.width(), frame.height()) == (width, height) {
            Ok(Self::Frame(frame))
        } else {
            Err(Fault::Damaged)
        }
    }

    fn layout(&self) -> Layout {
        match self {
            Self::Frame(frame) => frame.layout(),
            Self::Tiles(tiles) => tiles.layout,
        }
    }

    fn coding(&self) -> Coding {
        match self {
            Self::Frame(frame) => frame.coding,
            Self::Tiles(tiles) => tiles.coding,
        }
    }

    fn planes(&self) -> [Plane<'_>; 3] {
        match self {
            Self::Frame(frame) => frame.planes(),
            Self::Tiles(tiles) => tiles.planes(),
        }
    }
}

struct Tiles {
    layout: Layout,
    coding: Coding,
    /// Bytes of a row of each plane, and the rows.
    planes: [(usize, Vec<u8>); 3],
}

impl Tiles {
    /// Decodes the tiles of a grid one after another. The last of a row or column may reach beyond the
    /// image.
    fn decode(
        coded: &Coded,
        width: usize,
        height: usize,
        decode: impl Fn(&[&[u8]]) -> Result<Frame, Fault>,
    ) -> Result<Self, Fault> {
        let mut canvas: Option<(Self, usize, usize)> = None;
        for (index, tile) in coded.tiles.iter().enumerate() {
            let frame = decode(tile)?;
            let (tile_width, tile_height) = (frame.width(), frame.height());
            let (canvas, first_width, first_height) = canvas.get_or_insert_with(|| {
                (Self::empty(&frame, width, height), tile_width, tile_height)
            });
            let rows = coded.tiles.len() / coded.columns;
            let fits = |sum: usize, last: usize, side: usize| sum >= side && last < side;
            let is_even = |side: usize, halves: bool| !halves || side.is_multiple_of(2);
            if (tile_width, tile_height, frame.layout())
                != (*first_width, *first_height, canvas.layout)
                || !fits(tile_width * coded.columns, tile_width * (coded.columns - 1), width)
                || !fits(tile_height * rows, tile_height * (rows - 1), height)
                || !is_even(tile_width, canvas.layout.halves_width)
                || !is_even(tile_height, canvas.layout.halves_height)
            {
                return Err(Fault::Damaged);
            }
            let (column, row) = (index % coded.columns, index / coded.columns);
            canvas.put(&frame, column * tile_width, row * tile_height, (width, height));
        }
        canvas.map(|(canvas, ..)| canvas).ok_or(Fault::Damaged)
    }

    fn empty(frame: &Frame, width: usize, height: usize) -> Self {
        let layout = frame.layout();
        let plane = |(width, height): (usize, usize)| {
            let stride = width * layout.sample_bytes();
            (stride, vec![0; stride * height])
        };
        let chroma = || {
            if layout.is_grey { (0, Vec::new()) } else { plane(layout.chroma_size(width, height)) }
        };
        let planes = [plane((width, height)), chroma(), chroma()];
        Self { layout, coding: frame.coding, planes }
    }

    /// Copies a frame to where its left upper corner belongs. What lies outside of the image is left out.
    fn put(&mut self, frame: &Frame, left: usize, top: usize, (width, height): (usize, usize)) {
        let layout = self.layout;
        for (index, (from, (stride, to))) in
            frame.planes().into_iter().zip(&mut self.planes).enumerate()
        {
            let scale = |across: usize, down: usize| {
                if index == 0 { (across, down) } else { layout.chroma_size(across, down) }
            };
            if *stride == 0 {
                continue;
            }
            let ((left, top), (width, height)) = (scale(left, top), scale(width, height));
            let (across, down) = scale(frame.width(), frame.height());
            let bytes = across.min(width - left) * layout.sample_bytes();
            for row in 0..down.min(height - top) {
                let at = (top + row) * *stride + left * layout.sample_bytes();
                to[at..][..bytes].copy_from_slice(&from.bytes[row * from.stride..][..bytes]);
            }
        }
    }

    fn planes(&self) -> [Plane<'_>; 3] {
        self.planes.each_ref().map(|(stride, bytes)| Plane { bytes, stride: *stride })
    }
}

fn refuse(fault: Fault) -> Error {
    match fault {
        Fault::Damaged => Error::new(
            ErrorKind::UndecodableImage,
            "the avif image is damaged or cut off; open it, save it again and resend",
        ),
        Fault::Unsupported(what) => Error::new(
            ErrorKind::UnsupportedFormat,
            format!(
                "the file is {what}, which is not supported; save it as JPEG or PNG and send that"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(width: usize, height: usize) -> DecodedImage {
        let rgb = (0..width * height).flat_map(|index| [index as u8; 3]).collect();
        let (format, space) = (ImageFormat::Avif, SampleSpace::srgb());
        DecodedImage { rgb, width, height, format, orientation: 1, space }
    }

    #[test]
    fn the_shown_part_is_cut_out() {
        let whole = image(4, 3);
        assert_eq!(cropped(whole.clone(), None), whole);
        let part = cropped(whole.clone(), Some([1, 1, 2, 2]));
        assert_eq!((part.width, part.height), (2, 2));
        assert_eq!(part.rgb.iter().step_by(3).copied().collect::<Vec<u8>>(), [5, 6, 9, 10]);
        // Rounding may leave a part one pixel too wide.
        assert_eq!(cropped(whole, Some([1, 0, 4, 3])).width, 3);
    }

    #[test]
    fn turns_and_mirrors_become_exif_orientations() {
        use Mirror::{Horizontal, Vertical};
        let exif = |turns, mirror| orientation(turns, mirror).to_exif();
        assert_eq!([0, 1, 2, 3].map(|turns| exif(turns, None)), [1, 8, 3, 6]);
        assert_eq!([0, 1, 2, 3].map(|turns| exif(turns, Some(Horizontal))), [2, 7, 4, 5]);
        assert_eq!([0, 1, 2, 3].map(|turns| exif(turns, Some(Vertical))), [4, 5, 2, 7]);
    }
}
