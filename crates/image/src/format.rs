//! Recognises image formats from the bytes alone.

use std::fmt;

use super::{heif, png};
use cutline_error::{Error, ErrorKind, Result};

/// The supported formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ImageFormat {
    /// JPEG, baseline or progressive.
    Jpeg,
    /// PNG; the default image of an animation.
    Png,
    /// WebP, lossy or lossless; the first frame of an animation.
    WebP,
    /// GIF; the first frame of an animation.
    Gif,
    /// Windows bitmap.
    Bmp,
    /// TIFF; the first page.
    Tiff,
    /// AVIF; the still image of an animation.
    Avif,
}

impl ImageFormat {
    /// The lower-case name: `jpeg`, `png`, `webp`, `gif`, `bmp`, `tiff`, `avif`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "jpeg",
            Self::Png => "png",
            Self::WebP => "webp",
            Self::Gif => "gif",
            Self::Bmp => "bmp",
            Self::Tiff => "tiff",
            Self::Avif => "avif",
        }
    }

    /// Recognises the format of `bytes` from their signature.
    ///
    /// # Errors
    /// [`ErrorKind::UnsupportedFormat`] if they are empty, not an image, or an image of an unsupported
    /// format. The detail names the format, if it is known, and says what to send.
    pub fn of(bytes: &[u8]) -> Result<Self> {
        if png::is_of_iphone_app(bytes) {
            return Err(Error::new(ErrorKind::UnsupportedFormat, IPHONE_APP));
        }
        if let Some(format) = supported(bytes) {
            return Ok(format);
        }
        let detail = if heif::is_heic(bytes) {
            HEIC.to_owned()
        } else if bytes.is_empty() {
            format!("the image is empty; send a {SUPPORTED} file")
        } else if let Some(other) = unsupported(bytes) {
            format!("the file is {other}, which is not supported; send {SUPPORTED}")
        } else {
            format!("the file is not a supported image; send {SUPPORTED}")
        };
        Err(Error::new(ErrorKind::UnsupportedFormat, detail))
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

const SUPPORTED: &str = "JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF";

const HEIC: &str = "the file is a HEIC image, which is not supported; send JPEG: `heif-convert \
                    photo.heic photo.jpg` converts it, on a Mac `sips -s format jpeg photo.heic --out \
                    photo.jpg`; an iPhone takes JPEGs with Settings > Camera > Formats > Most Compatible";

const IPHONE_APP: &str = "the file is a PNG of an iPhone app (CgBI), which only Apple's programs read; \
                          send the PNG that it was made from, or convert it with `xcrun pngcrush \
                          -revert-iphone-optimizations in.png out.png`";

fn supported(bytes: &[u8]) -> Option<ImageFormat> {
    match image::guess_format(bytes) {
        Ok(image::ImageFormat::Jpeg) => Some(ImageFormat::Jpeg),
        Ok(image::ImageFormat::Png) => Some(ImageFormat::Png),
        Ok(image::ImageFormat::WebP) => Some(ImageFormat::WebP),
        Ok(image::ImageFormat::Gif) => Some(ImageFormat::Gif),
        Ok(image::ImageFormat::Tiff) => Some(ImageFormat::Tiff),
        Ok(image::ImageFormat::Bmp) => has_bitmap_header(bytes).then_some(ImageFormat::Bmp),
        _ if is_big_tiff(bytes) => Some(ImageFormat::Tiff),
        _ if heif::is_avif(bytes) => Some(ImageFormat::Avif),
        _ => None,
    }
}

/// Whether the header's size is one that bitmaps have. The signature `BM` alone would also fit texts.
fn has_bitmap_header(bytes: &[u8]) -> bool {
    let size = bytes.get(14..).and_then(|rest| rest.first_chunk::<4>());
    let sizes = [12, 16, 40, 52, 56, 64, 108, 124];
    size.is_some_and(|size| sizes.contains(&u32::from_le_bytes(*size)))
}

/// `guess_format` knows TIFF with the version 42, but not BigTIFF, which has 43.
fn is_big_tiff(bytes: &[u8]) -> bool {
    bytes.starts_with(b"II\x2B\0") || bytes.starts_with(b"MM\0\x2B")
}

/// Names a format that is recognised but not supported.
fn unsupported(bytes: &[u8]) -> Option<&'static str> {
    if let Some(brand) = iso_media_brand(bytes) {
        return Some(match brand {
            // The brand of the container of HEIC and AVIF, without that of a codec.
            b"mif1" | b"msf1" => "an image in a HEIF container",
            b"crx " => "a raw camera image",
            _ => "a video",
        });
    }
    let name = match bytes {
        [b'%', b'P', b'D', b'F', ..] => "a PDF document",
        [0xFF, 0x0A, ..] | [0, 0, 0, 0x0C, b'J', b'X', b'L', b' ', ..] => "a JPEG XL image",
        [0, 0, 0, 0x0C, b'j', b'P', ..] | [0xFF, 0x4F, 0xFF, 0x51, ..] => "a JPEG 2000 image",
        [b'8', b'B', b'P', b'S', ..] => "a Photoshop document",
        [b'%', b'!', b'P', b'S', ..] => "a PostScript document",
        [b'P', b'K', 3, 4, ..] => "a ZIP archive",
        [0x1A, 0x45, 0xDF, 0xA3, ..] => "a video",
        _ => return unsupported_text(bytes).or_else(|| guessed(bytes)),
    };
    Some(name)
}

/// Names the formats that only `guess_format` recognises.
fn guessed(bytes: &[u8]) -> Option<&'static str> {
    match image::guess_format(bytes).ok()? {
        image::ImageFormat::Ico => Some("an icon (ICO)"),
        image::ImageFormat::Pnm => Some("a Netpbm image"),
        image::ImageFormat::Qoi => Some("a QOI image"),
        image::ImageFormat::OpenExr => Some("an OpenEXR image"),
        image::ImageFormat::Hdr => Some("a Radiance HDR image"),
        image::ImageFormat::Dds => Some("a DDS texture"),
        image::ImageFormat::Farbfeld => Some("a farbfeld image"),
        _ => None,
    }
}

/// The major brand of an ISO base media file (HEIC, AVIF, MP4, …).
fn iso_media_brand(bytes: &[u8]) -> Option<&[u8]> {
    if bytes.get(4..8)? == b"ftyp" { bytes.get(8..12) } else { None }
}

fn unsupported_text(bytes: &[u8]) -> Option<&'static str> {
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
    fn a_whole_signature_is_needed_and_enough() {
        assert_eq!(ImageFormat::of(b"GIF89a").unwrap(), ImageFormat::Gif);
        assert_eq!(ImageFormat::of(b"\xFF\xD8\xFF").unwrap().to_string(), "jpeg");
        assert_eq!(ImageFormat::of(b"MM\0*").unwrap(), ImageFormat::Tiff);
        assert_eq!(ImageFormat::of(b"MM\0+").unwrap(), ImageFormat::Tiff);
        assert_eq!(ImageFormat::of(b"II+\0").unwrap(), ImageFormat::Tiff);
        assert_eq!(ImageFormat::of(b"RIFF\x01\x02\x03\x04WEBP").unwrap(), ImageFormat::WebP);
        for short in [&b"\xFF\xD8"[..], b"\x89PNG", b"RIFF\0\0\0\0WEB", b"GIF8", b"II", b"B"] {
            let error = ImageFormat::of(short).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnsupportedFormat, "{short:?}");
        }
    }

    #[test]
    fn a_text_that_starts_like_a_bitmap_is_not_one() {
        assert!(ImageFormat::of(b"BMW builds cars and motorcycles.").is_err());
    }

    #[test]
    fn recognised_but_unsupported_formats_are_named() {
        for (bytes, name) in [
            (&b""[..], "empty"),
            (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "Most Compatible"),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
            (b"\0\0\0\x14ftypmif1\0\0\0\0mif1", "HEIF container"),
            (b"\x89PNG\r\n\x1A\n\0\0\0\x04CgBI\x50\0\x20\x06\0\0\0\0", "pngcrush"),
            (b"\0\0\0\x1Cftypisom\0\0\0\0", "video"),
            (b"%PDF-1.7", "PDF"),
            (b"<?xml version='1.0'?>\n<svg xmlns='x'/>", "SVG"),
            (b"\xEF\xBB\xBF <!DOCTYPE html><html>", "web page"),
            (b"/9j/4AAQSkZJRg", "base64"),
            (b"8BPS\0\x01", "Photoshop"),
            (b"\0\0\x01\0\x01\0", "icon"),
            (b"P6 1 1 255\n", "Netpbm"),
            (b"qoif\0", "QOI"),
            (b"no image at all", "not a supported image"),
        ] {
            let error = ImageFormat::of(bytes).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnsupportedFormat);
            assert!(error.detail().contains(name), "{}", error.detail());
            assert!(error.detail().contains("send"), "{}", error.detail());
        }
    }
}
