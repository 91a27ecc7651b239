//! JPEG through mozjpeg, a descendant of libjpeg-turbo: the decoder that Pillow uses, bit for bit.
//!
//! Every decoder computes luminance alike; what differs is how subsampled chroma is interpolated.
//! The decoders written in Rust round it twice or otherwise, and after resizing to the model's size
//! a pixel is up to 6 levels from the reference's.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};

use image::metadata::Orientation;
use mozjpeg::{ColorSpace, Decompress, Marker};

use super::decode::{DecodedImage, check_pixels};
use super::format::ImageFormat;
use super::rgb;
use crate::error::{Error, ErrorKind, Result};

const END_OF_IMAGE: u8 = 0xD9;
const START_OF_SCAN: u8 = 0xDA;

/// Encoders write a dozen scans. Each costs a pass over all the pixels however few bytes it has, so
/// a small file with thousands of them would keep a core busy for hours.
const MAX_SCANS: usize = 100;

/// Decodes `bytes`, as stored, and tells how to turn what they show.
///
/// # Errors
/// As [`decode()`](super::decode::decode()).
pub(super) fn decode(bytes: &[u8], max_pixels: u64) -> Result<(DecodedImage, Orientation)> {
    check_scans(bytes)?;
    // libjpeg leaves through its error handler, which mozjpeg makes an unwinding without a panic:
    // nothing is printed, and what the decoder holds is freed on the way.
    panic::catch_unwind(AssertUnwindSafe(|| read(bytes, max_pixels)))
        .unwrap_or_else(|payload| Err(explain(&message(payload.as_ref()))))
}

fn read(bytes: &[u8], max_pixels: u64) -> Result<(DecodedImage, Orientation)> {
    let failed = |error: std::io::Error| explain(&error.to_string());
    let decoder = Decompress::with_markers(&[Marker::APP(1)]).from_mem(bytes).map_err(failed)?;
    let (width, height) = decoder.size();
    check_pixels(width as u64, height as u64, max_pixels)?;
    // Damaged metadata must not cost the image: without an orientation it is shown as stored.
    let orientation = orientation(&decoder).unwrap_or(Orientation::NoTransforms);

    let four_inks = matches!(decoder.color_space(), ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK);
    let (space, samples) =
        if four_inks { (ColorSpace::JCS_CMYK, 4) } else { (ColorSpace::JCS_RGB, 3) };
    let mut started = decoder.to_colorspace(space).map_err(failed)?;
    let mut pixels = vec![0_u8; samples * width * height];
    started.read_scanlines_into(&mut pixels).map_err(failed)?;
    let rgb = if four_inks { rgb::inverted_cmyk_to_rgb8(pixels) } else { pixels };
    Ok((DecodedImage { rgb, width, height, format: ImageFormat::Jpeg }, orientation))
}

/// The orientation in the first EXIF segment.
fn orientation(decoder: &Decompress<&[u8]>) -> Option<Orientation> {
    let exif = decoder.markers().find_map(|marker| marker.data.strip_prefix(b"Exif\0\0"))?;
    Orientation::from_exif_chunk(exif)
}

/// Finds the cut that the decoder would paint over in grey, and the scans that take too long.
fn check_scans(bytes: &[u8]) -> Result<()> {
    let scans = scans(bytes);
    // Coded data never holds a marker by chance (there `FF` is followed by `00` or a restart
    // marker), and searching from the end finds this one at once.
    if !scans.windows(2).rev().any(|pair| pair == [0xFF, END_OF_IMAGE]) {
        return Err(Error::new(
            ErrorKind::UndecodableImage,
            "the jpeg image is cut off, its end is missing; send the whole file",
        ));
    }
    if has_too_many(scans) {
        return Err(Error::new(
            ErrorKind::UndecodableImage,
            format!("the jpeg image has more than {MAX_SCANS} scans; save it again and resend"),
        ));
    }
    Ok(())
}

/// What follows the header; nothing when there is no scan.
///
/// The header is walked and not searched, for it may hold a whole JPEG as a thumbnail.
fn scans(bytes: &[u8]) -> &[u8] {
    let mut rest = bytes.get(2..).unwrap_or_default();
    while let Some(marker) = next_marker(&mut rest) {
        match marker {
            START_OF_SCAN => return rest,
            END_OF_IMAGE => break,
            _ => {}
        }
    }
    &[]
}

/// Whether more than [`MAX_SCANS`] scans come before the end of the image. What phones append after
/// it, a film for instance, is not looked at.
fn has_too_many(scans: &[u8]) -> bool {
    let mut rest = scans;
    let mut count = 1;
    while let Some(marker) = next_marker(&mut rest) {
        match marker {
            START_OF_SCAN => count += 1,
            END_OF_IMAGE => break,
            _ => {}
        }
    }
    count > MAX_SCANS
}

/// The next marker that begins a segment or ends the image; `rest` becomes what follows the segment.
fn next_marker(rest: &mut &[u8]) -> Option<u8> {
    loop {
        match *rest {
            // Fill bytes; then coded bytes, restarts and other markers without a length.
            [0xFF, 0xFF, ..] => *rest = &rest[1..],
            [0xFF, 0..=0xBF | 0xD0..=0xD8, tail @ ..] => *rest = tail,
            [0xFF, END_OF_IMAGE, tail @ ..] => {
                *rest = tail;
                return Some(END_OF_IMAGE);
            }
            [0xFF, marker, high, low, ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                *rest = rest.get(2 + length..).unwrap_or_default();
                return Some(*marker);
            }
            // Coded data, and stray bytes between segments: decoders skip them too.
            [_, tail @ ..] => *rest = tail,
            [] => return None,
        }
    }
}

/// What libjpeg says.
fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
    text.unwrap_or("the decoder failed").to_owned()
}

/// libjpeg's message in the words of this crate. It has no codes to offer here; a message that is
/// not recognised makes the image a damaged one, which most are.
fn explain(message: &str) -> Error {
    let says = |part: &str| message.contains(part);
    let (kind, detail) = if says("Maximum supported image dimension") || says("Insufficient memory")
    {
        (ErrorKind::ImageTooLarge, "the jpeg image is too large; scale it down and send it again")
    } else if says("Unsupported JPEG") || says("Unsupported color") || says("arithmetic coding") {
        (
            ErrorKind::UnsupportedFormat,
            "this kind of jpeg image is not read; save it as plain 8-bit JPEG or PNG",
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
        check_scans(bytes).is_ok()
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
    fn a_segment_longer_than_the_file_is_no_end() {
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
    fn what_the_library_says_becomes_an_error_of_its_kind() {
        for (says, kind) in [
            ("Maximum supported image dimension is 65500 pixels", ErrorKind::ImageTooLarge),
            ("Unsupported JPEG process: SOF type 0xc3", ErrorKind::UnsupportedFormat),
            ("Unsupported marker type 0x05", ErrorKind::UndecodableImage),
            ("Empty JPEG image (DNL not supported)", ErrorKind::UndecodableImage),
        ] {
            let payload: Box<dyn Any + Send> = Box::new(says.to_owned());
            let error = explain(&message(payload.as_ref()));
            assert_eq!(error.kind(), kind, "{says}");
            assert_eq!(
                std::error::Error::source(&error).map(ToString::to_string).as_deref(),
                Some(says)
            );
        }
    }
}
