//! What the bytes are, told from the bytes alone.

use std::fmt;

use cutline_error::{Error, ErrorKind, Result};

/// The formats that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ImageFormat {
    /// JPEG, baseline or progressive.
    Jpeg,
    /// PNG; of an animated one the default image.
    Png,
    /// WebP, lossy or lossless; of an animated one the first frame.
    WebP,
    /// GIF; the first frame.
    Gif,
    /// Windows bitmap.
    Bmp,
    /// TIFF; the first page.
    Tiff,
}

impl ImageFormat {
    /// The lower-case name: `jpeg`, `png`, `webp`, `gif`, `bmp`, `tiff`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "jpeg",
            Self::Png => "png",
            Self::WebP => "webp",
            Self::Gif => "gif",
            Self::Bmp => "bmp",
            Self::Tiff => "tiff",
        }
    }

    /// The format of `bytes`, from their signature.
    ///
    /// # Errors
    /// [`ErrorKind::UnsupportedFormat`] when they are empty, no image, or an image of a format that
    /// is not read; the detail names what was recognised and says what to send.
    pub fn of(bytes: &[u8]) -> Result<Self> {
        if let Some(format) = readable(bytes) {
            return Ok(format);
        }
        let detail = if bytes.is_empty() {
            format!("the image is empty; send the bytes of a {READABLE} file")
        } else if let Some(other) = unreadable(bytes) {
            format!("the bytes are {other}, which is not read here; send {READABLE}")
        } else {
            format!("the bytes are no image that is read here; send {READABLE}")
        };
        Err(Error::new(ErrorKind::UnsupportedFormat, detail))
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

const READABLE: &str = "JPEG, PNG, WebP, GIF, BMP or TIFF";

fn readable(bytes: &[u8]) -> Option<ImageFormat> {
    match bytes {
        [0xFF, 0xD8, 0xFF, ..] => Some(ImageFormat::Jpeg),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Some(ImageFormat::Png),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(ImageFormat::WebP),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(ImageFormat::Gif),
        // 42 is TIFF, 43 BigTIFF.
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Some(ImageFormat::Tiff),
        // Two letters would make a bitmap of many a text: the size of the header must fit as well.
        [b'B', b'M', rest @ ..] => {
            let header_size = rest.get(12..16)?;
            [12_u32, 16, 40, 52, 56, 64, 108, 124]
                .iter()
                .any(|size| header_size == size.to_le_bytes())
                .then_some(ImageFormat::Bmp)
        }
        _ => None,
    }
}

/// Names a format that is recognised only to say that it is not read.
fn unreadable(bytes: &[u8]) -> Option<&'static str> {
    if let Some(brand) = iso_media_brand(bytes) {
        return Some(match brand {
            b"avif" | b"avis" => "an AVIF image",
            b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" => "a HEIC image",
            // The brand of the container; the codec is told only further on.
            b"mif1" | b"msf1" => "a HEIC or AVIF image",
            b"crx " => "a raw camera image",
            _ => "a video",
        });
    }
    let binary = match bytes {
        [b'%', b'P', b'D', b'F', ..] => "a PDF document",
        [0xFF, 0x0A, ..] | [0, 0, 0, 0x0C, b'J', b'X', b'L', b' ', ..] => "a JPEG XL image",
        [0, 0, 0, 0x0C, b'j', b'P', ..] | [0xFF, 0x4F, 0xFF, 0x51, ..] => "a JPEG 2000 image",
        [0, 0, 1, 0, ..] => "an icon (ICO)",
        [b'8', b'B', b'P', b'S', ..] => "a Photoshop document",
        [b'%', b'!', b'P', b'S', ..] => "a PostScript document",
        [b'P', b'1'..=b'7', b'\n' | b' ' | b'\r' | b'\t', ..] => "a Netpbm image",
        [b'q', b'o', b'i', b'f', ..] => "a QOI image",
        [0x76, 0x2F, 0x31, 0x01, ..] => "an OpenEXR image",
        [b'P', b'K', 3, 4, ..] => "a ZIP archive",
        [0x1A, 0x45, 0xDF, 0xA3, ..] => "a video",
        _ => return unreadable_text(bytes),
    };
    Some(binary)
}

/// The major brand of an ISO base media file (HEIC, AVIF, MP4, …).
fn iso_media_brand(bytes: &[u8]) -> Option<&[u8]> {
    if bytes.get(4..8)? == b"ftyp" { bytes.get(8..12) } else { None }
}

fn unreadable_text(bytes: &[u8]) -> Option<&'static str> {
    let head = &bytes[..bytes.len().min(1024)];
    let head = head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(head).trim_ascii_start();
    let head = head.to_ascii_lowercase();
    let contains = |word: &[u8]| head.windows(word.len()).any(|window| window == word);
    if head.starts_with(b"<!doctype html") || head.starts_with(b"<html") {
        Some("a web page")
    } else if head.starts_with(b"<") && contains(b"<svg") {
        Some("an SVG drawing")
    } else if head.starts_with(b"data:image/")
        || head.starts_with(b"/9j/4")
        || head.starts_with(b"ivborw0kggo")
    {
        Some("an image as base64 text")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_enough_and_less_is_not() {
        assert_eq!(ImageFormat::of(b"GIF89a").unwrap(), ImageFormat::Gif);
        assert_eq!(ImageFormat::of(b"\xFF\xD8\xFF").unwrap().to_string(), "jpeg");
        assert_eq!(ImageFormat::of(b"MM\0*").unwrap(), ImageFormat::Tiff);
        for short in [&b"\xFF\xD8"[..], b"\x89PNG", b"RIFF\0\0\0\0WEB", b"GIF8", b"II", b"B"] {
            let error = ImageFormat::of(short).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnsupportedFormat, "{short:?}");
        }
    }

    #[test]
    fn a_text_that_starts_like_a_bitmap_is_none() {
        assert!(ImageFormat::of(b"BMW builds cars and motorcycles.").is_err());
    }

    #[test]
    fn what_is_recognised_but_not_read_is_named() {
        for (bytes, name) in [
            (&b""[..], "empty"),
            (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
            (b"\0\0\0\x1Cftypavif\0\0\0\0", "AVIF"),
            (b"\0\0\0\x1Cftypisom\0\0\0\0", "video"),
            (b"%PDF-1.7", "PDF"),
            (b"<?xml version='1.0'?>\n<svg xmlns='x'/>", "SVG"),
            (b"\xEF\xBB\xBF <!DOCTYPE html><html>", "web page"),
            (b"/9j/4AAQSkZJRg", "base64"),
            (b"8BPS\0\x01", "Photoshop"),
        ] {
            let error = ImageFormat::of(bytes).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnsupportedFormat);
            assert!(error.detail().contains(name), "{}", error.detail());
            assert!(error.detail().contains("send"), "{}", error.detail());
        }
    }
}
