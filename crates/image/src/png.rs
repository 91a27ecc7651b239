//! What a PNG's chunks say before it is decoded.

use std::borrow::Cow;

use image::metadata::Orientation;

use super::header::Needs;
use super::{exif, profile};

/// The signature.
const SIGNATURE: usize = 8;

/// Bytes of a chunk's length and name.
const CHUNK_HEAD: usize = 8;

/// Bytes of the checksum after a chunk's data.
const CHECKSUM: usize = 4;

/// The chunks before the pixels.
#[derive(Debug, Default, PartialEq, Eq)]
struct Head {
    width: u64,
    height: u64,
    /// Bits of a sample.
    depth: u8,
    /// 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha.
    color: u8,
    /// Whether colours or entries of the palette are transparent.
    transparent: bool,
    profile: bool,
    /// Bytes of the other chunks.
    metadata: u64,
}

/// What the decoder will need. `None` if the file does not begin with a header.
pub(super) fn needs(bytes: &[u8]) -> Option<Needs> {
    let head = Head::read(bytes)?;
    Some(Needs {
        width: head.width,
        height: head.height,
        pixel: head.pixel_bytes(),
        working: 0,
        // A profile is held by the decoder, and copied; so is a file that lacks its end.
        metadata: (if head.profile { 3 } else { 1 } * head.metadata_limit())
            .saturating_add(if cut_at(bytes).is_some() { 3 * bytes.len() as u64 } else { 0 }),
        is_turned: exif::is_turned(orientation(bytes)),
    })
}

/// The most memory that chunks before the pixels may take, as a limit of the decoder.
pub(super) fn metadata_limit(bytes: &[u8]) -> u64 {
    Head::read(bytes).unwrap_or_default().metadata_limit()
}

/// The chunk at the end of a file.
const END: [u8; 12] = *b"\0\0\0\0IEND\xAE\x42\x60\x82";

/// The file with what may be missing after its pixels: the end of their last chunk, and the last chunk.
/// The decoder then finds whether all pixels are there.
pub(super) fn with_end(bytes: &[u8]) -> Cow<'_, [u8]> {
    let Some(at) = cut_at(bytes) else { return Cow::Borrowed(bytes) };
    let (whole, cut) = bytes.split_at(at);
    match cut.split_at_checked(CHUNK_HEAD) {
        Some((head, data)) if head.ends_with(b"IDAT") => {
            let announced = head.first_chunk().map_or(0, |length| u32::from_be_bytes(*length));
            let data = &data[..data.len().min(announced as usize)];
            let length = u32::try_from(data.len()).unwrap_or(announced).to_be_bytes();
            let body = [b"IDAT", data].concat();
            let checksum = crc32fast::hash(&body).to_be_bytes();
            Cow::Owned([whole, &length, &body, &checksum, &END].concat())
        }
        _ => Cow::Owned([whole, &END].concat()),
    }
}

/// The offset of the first chunk that is cut off, or missing; `None` if the file has its end.
fn cut_at(bytes: &[u8]) -> Option<usize> {
    let mut at = SIGNATURE.min(bytes.len());
    while let Some([a, b, c, d, name @ ..]) = bytes[at..].first_chunk::<CHUNK_HEAD>() {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let end = at.saturating_add(CHUNK_HEAD + CHECKSUM).saturating_add(length);
        if end > bytes.len() {
            break;
        }
        if name == b"IEND" {
            return None;
        }
        at = end;
    }
    Some(at)
}

/// The orientation in the metadata, which may be before or after the pixels.
pub(super) fn orientation(bytes: &[u8]) -> Orientation {
    let metadata = chunks(bytes).find(|(name, _)| *name == b"eXIf");
    metadata.map_or(Orientation::NoTransforms, |(_, data)| exif::orientation(data))
}

/// Whether this is a PNG in the form that Xcode gives it for iPhone apps: with other compression, the
/// colours in reverse order and multiplied by their alpha.
pub(super) fn is_of_iphone_app(bytes: &[u8]) -> bool {
    matches!(
        bytes.strip_prefix(b"\x89PNG\r\n\x1A\n"),
        Some([_, _, _, _, b'C', b'g', b'B', b'I', ..])
    )
}

impl Head {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut head = Self::default();
        for (name, data) in chunks(bytes) {
            match name {
                b"IHDR" => {
                    let [w0, w1, w2, w3, h0, h1, h2, h3, depth, color, ..] = *data else {
                        return None;
                    };
                    head.width = u32::from_be_bytes([w0, w1, w2, w3]).into();
                    head.height = u32::from_be_bytes([h0, h1, h2, h3]).into();
                    (head.depth, head.color) = (depth, color);
                }
                b"IDAT" => break,
                b"tRNS" => head.transparent = true,
                b"iCCP" => head.profile = true,
                _ => {}
            }
            head.metadata = head.metadata.saturating_add(data.len() as u64);
        }
        (head.depth > 0).then_some(head)
    }

    /// Bytes of a pixel as the decoder returns it: palettes and fewer than 8 bits are expanded.
    fn pixel_bytes(&self) -> u64 {
        let alpha = u64::from(self.transparent);
        let samples = match self.color {
            0 => 1 + alpha,
            2 | 3 => 3 + alpha,
            4 => 2,
            _ => 4,
        };
        samples * if self.depth == 16 { 2 } else { 1 }
    }

    /// A chunk is held twice: as bytes, and as what they mean. A profile unpacks to more than that.
    fn metadata_limit(&self) -> u64 {
        let profile = if self.profile { profile::MAX_BYTES as u64 } else { 0 };
        let rows = self.width.saturating_mul(16);
        self.metadata.saturating_mul(3).saturating_add(profile + (1 << 20)).saturating_add(rows)
    }
}

/// Name and data of every chunk that is whole.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    let mut rest = bytes.get(SIGNATURE..).unwrap_or_default();
    std::iter::from_fn(move || {
        let [a, b, c, d, name @ ..] = rest.first_chunk::<CHUNK_HEAD>()?;
        let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).ok()?;
        let (data, tail) = rest.get(CHUNK_HEAD..)?.split_at_checked(length)?;
        rest = tail.get(CHECKSUM..).unwrap_or_default();
        Some((name.first_chunk()?, data))
    })
}
