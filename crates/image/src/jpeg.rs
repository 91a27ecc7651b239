//! JPEG through mozjpeg, a descendant of libjpeg-turbo: the decoder that Pillow uses, bit for bit.
//!
//! All decoders compute the same luminance but interpolate subsampled chroma in different ways. The
//! decoders written in Rust round it twice or differently: after resizing to the model's size a pixel
//! is up to 6 levels away from the reference. Where many pixels are averaged into one, the difference
//! is at most 3 levels, and zune-jpeg is used, which has SIMD and takes about half the time.
//!
//! Decoding at half the size or less, without high frequencies, would be faster still. It was measured
//! and rejected: photos stay within 3 levels, but black text on white is 4, saturated text 8 and
//! stripes are 36 levels off, because clipped ringing is missing from their mean.

use std::borrow::Cow;
use std::panic::{self, AssertUnwindSafe};

use image::metadata::Orientation;
use mozjpeg::{ColorSpace, Decompress, Marker};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace as ZuneColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::decode::DecodedImage;
use super::format::ImageFormat;
use super::header::{ImageHeader, Needs};
use super::profile::SampleSpace;
use super::{exif, rgb, unmarked};
use cutline_error::{Error, ErrorKind, Result, panic_message};

pub(super) const END_OF_IMAGE: u8 = 0xD9;
pub(super) const START_OF_SCAN: u8 = 0xDA;

/// The application segment that holds EXIF.
const EXIF: u8 = 0xE1;

/// Encoders write about a dozen scans. Each costs a pass over all pixels however few bytes it has, so
/// a small file with thousands of scans would keep a core busy for hours.
const MAX_SCANS: usize = 100;

/// If at least this many pixels along the shorter side become one, the faster decoder is as good.
const AVERAGED: usize = 4;

/// Decodes `bytes` and returns the image as stored, with its orientation. `side` is the longer side
/// that the image will be scaled to, if known.
///
/// # Errors
/// As [`decode()`](super::decode::decode()).
pub(super) fn decode(
    bytes: &[u8],
    header: &ImageHeader,
    side: Option<usize>,
) -> Result<(DecodedImage, Orientation)> {
    check_scans(bytes)?;
    // libjpeg leaves through its error handler. mozjpeg turns that into unwinding without a panic
    // message, which frees the decoder's memory.
    panic::catch_unwind(AssertUnwindSafe(|| read(&closed(bytes)?, header, side)))
        .unwrap_or_else(|payload| Err(explain(panic_message(&*payload).unwrap_or("no message"))))
}

/// The file with an end marker.
fn closed(bytes: &[u8]) -> Result<Cow<'_, [u8]>> {
    if has_end(scans(bytes)) {
        return Ok(Cow::Borrowed(bytes));
    }
    let decode = |bytes: &[u8]| exact(Decompress::new_mem(bytes).map_err(failed)?);
    let closed = unmarked::closed(bytes, decode)?;
    closed.map(Cow::Owned).ok_or_else(|| {
        Error::new(
            ErrorKind::UndecodableImage,
            "the jpeg image is cut off: its end is missing; send the whole file",
        )
    })
}

fn read(
    bytes: &[u8],
    header: &ImageHeader,
    side: Option<usize>,
) -> Result<(DecodedImage, Orientation)> {
    let kept = [Marker::APP(2)];
    let decoder = Decompress::with_markers(&kept).from_mem(bytes).map_err(failed)?;
    let (width, height) = decoder.size();
    header.check_size(width as u64, height as u64)?;
    let orientation = orientation(bytes);
    let space = match decoder.color_space() {
        ColorSpace::JCS_RGB | ColorSpace::JCS_YCbCr => SampleSpace::of_icc(&profile(&decoder)),
        _ => SampleSpace::srgb(),
    };
    let averaged = side.is_some_and(|side| width.min(height) >= AVERAGED * side);
    let rgb = match averaged.then(|| quick(bytes, &decoder)).flatten() {
        Some(rgb) => rgb,
        None => exact(decoder)?,
    };
    let image = DecodedImage {
        rgb,
        width,
        height,
        format: ImageFormat::Jpeg,
        orientation: orientation.to_exif(),
        space,
    };
    Ok((image, orientation))
}

/// The same pixels as Pillow's.
fn exact(decoder: Decompress<&[u8]>) -> Result<Vec<u8>> {
    let (width, height) = decoder.size();
    let four_inks = matches!(decoder.color_space(), ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK);
    let (space, samples) =
        if four_inks { (ColorSpace::JCS_CMYK, 4) } else { (ColorSpace::JCS_RGB, 3) };
    let mut started = decoder.to_colorspace(space).map_err(failed)?;
    let mut pixels = vec![0_u8; samples * width * height];
    started.read_scanlines_into(&mut pixels).map_err(failed)?;
    Ok(if four_inks { rgb::inverted_cmyk_to_rgb8(pixels) } else { pixels })
}

/// Nearly the same pixels in half the time. `None` for uncommon kinds of JPEG, and if zune-jpeg finds
/// an error: only the exact decoder decides about damage.
fn quick(bytes: &[u8], decoder: &Decompress<&[u8]>) -> Option<Vec<u8>> {
    let common = matches!(decoder.color_space(), ColorSpace::JCS_YCbCr | ColorSpace::JCS_GRAYSCALE);
    if !common || !is_sequential(bytes) {
        return None;
    }
    let side = usize::from(u16::MAX);
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(side)
        .set_max_height(side)
        .jpeg_set_out_colorspace(ZuneColorSpace::RGB);
    let decode = || JpegDecoder::new_with_options(ZCursor::new(bytes), options).decode().ok();
    let rgb = panic::catch_unwind(decode).ok().flatten()?;
    let (width, height) = decoder.size();
    (rgb.len() == 3 * width * height).then_some(rgb)
}

fn failed(error: std::io::Error) -> Error {
    explain(&error.to_string())
}

/// The ICC profile, joined from its numbered segments.
fn profile(decoder: &Decompress<&[u8]>) -> Vec<u8> {
    let mut parts: Vec<(u8, &[u8])> = decoder
        .markers()
        .filter_map(|marker| match marker.data.strip_prefix(b"ICC_PROFILE\0") {
            Some([number, _count, part @ ..]) => Some((*number, part)),
            _ => None,
        })
        .collect();
    parts.sort_by_key(|(number, _)| *number);
    parts.iter().flat_map(|(_, part)| *part).copied().collect()
}

/// Whether the end marker is there. Coded data never holds a marker by chance (there `FF` is followed by
/// `00` or a restart marker), and searching from the end finds this one at once.
fn has_end(scans: &[u8]) -> bool {
    scans.windows(2).rev().any(|pair| pair == [0xFF, END_OF_IMAGE])
}

/// Refuses a file with so many scans that decoding takes too long.
fn check_scans(bytes: &[u8]) -> Result<()> {
    if has_too_many(scans(bytes)) {
        return Err(Error::new(
            ErrorKind::UndecodableImage,
            format!("the jpeg image has more than {MAX_SCANS} scans; save it again and resend"),
        ));
    }
    Ok(())
}

/// What the decoder will need. `None` if the header has no frame.
pub(super) fn needs(bytes: &[u8]) -> Option<Needs> {
    let frame = frame(bytes)?;
    let (width, height) = (u64::from(frame.width), u64::from(frame.height));
    // Unless each part of the image is complete in the first scan, the coefficients of the whole image
    // are kept, in 16 bits.
    let working = if frame.is_progressive || frame.in_first_scan < frame.components.len() {
        2 * coefficients(width, height, frame.components)
    } else {
        0
    };
    let pixel = if frame.components.len() == 4 { 4 } else { 3 };
    // The segments, and the profile that is joined from them.
    let mut metadata = 2 * frame.metadata;
    if !has_end(scans(bytes)) {
        // Copies with an end.
        metadata += 2 * bytes.len();
    }
    let is_turned = exif::is_turned(orientation(bytes));
    let metadata = metadata as u64;
    Some(Needs { width, height, pixel, working, metadata, is_turned })
}

/// Width and height, as the header says.
pub(super) fn size(bytes: &[u8]) -> Option<(u64, u64)> {
    frame(bytes).map(|frame| (frame.width.into(), frame.height.into()))
}

/// The orientation in the first EXIF segment before the image.
fn orientation(bytes: &[u8]) -> Orientation {
    let mut rest = bytes.get(2..).unwrap_or_default();
    while let Some((marker, data)) = next_marker(&mut rest) {
        match marker {
            START_OF_SCAN | END_OF_IMAGE => break,
            EXIF if data.starts_with(exif::PREFIX) => return exif::orientation(data),
            _ => {}
        }
    }
    Orientation::NoTransforms
}

/// What the header says of the image.
pub(super) struct Header<'f> {
    width: u16,
    height: u16,
    is_progressive: bool,
    /// Identifier, sampling factors and table of each component.
    pub components: &'f [[u8; 3]],
    /// How many components the first scan has.
    in_first_scan: usize,
    /// Bytes of the other segments.
    metadata: usize,
}

/// Reads the header. `None` if it has no frame.
pub(super) fn frame(bytes: &[u8]) -> Option<Header<'_>> {
    let mut rest = bytes.get(2..)?;
    let mut metadata = 0;
    let (marker, frame) = loop {
        match next_marker(&mut rest)? {
            (START_OF_SCAN | END_OF_IMAGE, _) => return None,
            (marker @ (0xC0..=0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF), frame) => {
                break (marker, frame);
            }
            (_, data) => metadata += data.len(),
        }
    };
    let [_, h0, h1, w0, w1, count, components @ ..] = frame else { return None };
    let in_first_scan = loop {
        match next_marker(&mut rest)? {
            (START_OF_SCAN, scan) => break usize::from(*scan.first()?),
            (END_OF_IMAGE, _) => return None,
            (_, data) => metadata += data.len(),
        }
    };
    Some(Header {
        width: u16::from_be_bytes([*w0, *w1]),
        height: u16::from_be_bytes([*h0, *h1]),
        is_progressive: matches!(marker, 0xC2 | 0xC6 | 0xCA | 0xCE),
        components: components.as_chunks::<3>().0.get(..usize::from(*count))?,
        in_first_scan,
        metadata,
    })
}

/// How many coefficients an image has in components of these identifiers, sampling factors and tables.
fn coefficients(width: u64, height: u64, components: &[[u8; 3]]) -> u64 {
    let factors = || components.iter().map(|[_, factors, _]| (factors >> 4, factors & 15));
    let largest = |factor: Option<u8>| u64::from(factor.unwrap_or(1).max(1));
    let columns = width.div_ceil(8 * largest(factors().map(|(across, _)| across).max()));
    let rows = height.div_ceil(8 * largest(factors().map(|(_, down)| down).max()));
    factors().map(|(across, down)| columns * rows * u64::from(across) * u64::from(down) * 64).sum()
}

/// The bytes after the header; empty if there is no scan.
///
/// The header is parsed segment by segment, because a search could end in a thumbnail, which is a whole
/// JPEG in the header.
fn scans(bytes: &[u8]) -> &[u8] {
    let mut rest = bytes.get(2..).unwrap_or_default();
    while let Some((marker, _)) = next_marker(&mut rest) {
        match marker {
            START_OF_SCAN => return rest,
            END_OF_IMAGE => break,
            _ => {}
        }
    }
    &[]
}

/// Whether the frame is baseline or extended sequential, not progressive.
fn is_sequential(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(2..).unwrap_or_default();
    while let Some((marker, _)) = next_marker(&mut rest) {
        match marker {
            0xC0 | 0xC1 => return true,
            START_OF_SCAN | END_OF_IMAGE | 0xC2..=0xC3 | 0xC5..=0xC7 | 0xC9..=0xCF => break,
            _ => {}
        }
    }
    false
}

/// Whether more than [`MAX_SCANS`] scans come before the end of the image. Data that phones append
/// after it, such as a film, is ignored.
fn has_too_many(scans: &[u8]) -> bool {
    let mut rest = scans;
    let mut count = 1;
    while let Some((marker, _)) = next_marker(&mut rest) {
        match marker {
            START_OF_SCAN => count += 1,
            END_OF_IMAGE => break,
            _ => {}
        }
    }
    count > MAX_SCANS
}

/// The next marker that begins a segment or ends the image, and the segment's data. `rest` becomes the
/// bytes after the segment.
pub(super) fn next_marker<'f>(rest: &mut &'f [u8]) -> Option<(u8, &'f [u8])> {
    loop {
        match *rest {
            // Fill bytes; then coded bytes, restarts and other markers without a length.
            [0xFF, 0xFF, ..] => *rest = &rest[1..],
            [0xFF, 0..=0xBF | 0xD0..=0xD8, tail @ ..] => *rest = tail,
            [0xFF, END_OF_IMAGE, tail @ ..] => {
                *rest = tail;
                return Some((END_OF_IMAGE, &[]));
            }
            [0xFF, marker, high, low, tail @ ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                *rest = rest.get(2 + length..).unwrap_or_default();
                let data = &tail[..length.saturating_sub(2).min(tail.len())];
                return Some((*marker, data));
            }
            // Coded data, and stray bytes between segments, which decoders skip too.
            [_, tail @ ..] => *rest = tail,
            [] => return None,
        }
    }
}

/// Translates libjpeg's message; it offers no error codes here. An unknown message means a damaged
/// image, which is the usual case.
fn explain(message: &str) -> Error {
    let says = |part: &str| message.contains(part);
    let (kind, detail) = if says("Maximum supported image dimension") || says("Insufficient memory")
    {
        (ErrorKind::ImageTooLarge, "the jpeg image is too large; scale it down and send it again")
    } else if says("Unsupported JPEG") || says("Unsupported color") || says("arithmetic coding") {
        (
            ErrorKind::UnsupportedFormat,
            "this kind of jpeg image is not supported; save it as plain 8-bit JPEG or PNG",
        )
    } else {
        (
            ErrorKind::UndecodableImage,
            "the jpeg image is damaged or cut off; open it, save it again and resend",
        )
    };
    Error::new(kind, detail).with_source(message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has_end(bytes: &[u8]) -> bool {
        super::has_end(scans(bytes))
    }

    #[test]
    fn the_end_of_a_thumbnail_is_not_the_end_of_the_image() {
        let mut jpeg = b"\xFF\xD8\xFF\xE1\x00\x06\xFF\xD8\xFF\xD9\xFF\xDA\x00\x02\x12\x34".to_vec();
        assert!(!has_end(&jpeg));
        jpeg.extend(b"\xFF\xD9");
        assert!(has_end(&jpeg));
        jpeg.extend(b"trailing bytes of a phone");
        assert!(has_end(&jpeg));
    }

    #[test]
    fn a_segment_longer_than_the_file_has_no_end() {
        assert!(!has_end(b"\xFF\xD8\xFF\xE0\xFF\xFF\xFF\xD9"));
        assert!(!has_end(b"\xFF\xD8\xFF"));
    }

    #[test]
    fn thousands_of_scans_are_refused() {
        let mut jpeg = b"\xFF\xD8".to_vec();
        jpeg.extend(b"\xFF\xDA\x00\x02\x12".repeat(MAX_SCANS));
        assert!(check_scans(&[&jpeg[..], b"\xFF\xD9"].concat()).is_ok());
        let film = b"\xFF\xDA".repeat(1000);
        assert!(check_scans(&[&jpeg[..], b"\xFF\xD9", &film].concat()).is_ok());
        jpeg.extend(b"\xFF\xDA\x00\x02\x12\xFF\xD9");
        let error = check_scans(&jpeg).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UndecodableImage);
        assert!(error.detail().contains("100 scans"), "{}", error.detail());
    }

    #[test]
    fn the_kind_of_frame_is_read_from_its_marker() {
        assert!(is_sequential(b"\xFF\xD8\xFF\xE0\x00\x04\xFF\xC2\xFF\xC0\x00\x02"));
        assert!(is_sequential(b"\xFF\xD8\xFF\xC4\x00\x02\xFF\xC1\x00\x02"));
        assert!(!is_sequential(b"\xFF\xD8\xFF\xC2\x00\x02\xFF\xC0\x00\x02"));
        assert!(!is_sequential(b"\xFF\xD8\xFF\xDA\x00\x02\xFF\xC0\x00\x02"));
        assert!(!is_sequential(b"\xFF\xD8"));
    }

    #[test]
    fn messages_of_the_library_become_errors_of_the_right_kind() {
        for (message, kind) in [
            ("Maximum supported image dimension is 65500 pixels", ErrorKind::ImageTooLarge),
            ("Unsupported JPEG process: SOF type 0xc3", ErrorKind::UnsupportedFormat),
            ("Unsupported marker type 0x05", ErrorKind::UndecodableImage),
            ("Empty JPEG image (DNL not supported)", ErrorKind::UndecodableImage),
        ] {
            let error = explain(message);
            assert_eq!(error.kind(), kind, "{message}");
            assert_eq!(
                std::error::Error::source(&error).map(ToString::to_string).as_deref(),
                Some(message)
            );
        }
    }
}
