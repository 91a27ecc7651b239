//! Checks of a WebP before it is decoded.

use std::borrow::Cow;

use image::metadata::Orientation;

use super::exif;
use super::format::ImageFormat;
use super::header::Needs;
use super::vp8l;
use cutline_error::{Error, ErrorKind, Result};

/// Offset of the first chunk, after `RIFF`, the length, and `WEBP`.
const FIRST_CHUNK: usize = 12;

/// Bytes of a chunk's name and length.
const CHUNK_HEAD: usize = 8;

/// Bytes of a frame's position, size, duration and flags, before its chunks.
const FRAME_HEAD: usize = 16;

/// Refuses files that the decoder handles badly:
/// - an image that is cut off, which it would fill up with grey; what follows the image may be missing;
/// - a profile longer than the file, for which it would allocate up to 4 GiB;
/// - a frame larger than the canvas, for which it would allocate 400 MB;
/// - a frame inside a frame, which WebP does not allow;
/// - prefix codes without end, of which each few bytes become a table of 4 kB.
///
/// # Errors
/// [`ErrorKind::UndecodableImage`]. The decoder finds all other errors.
pub(super) fn check_chunks(bytes: &[u8]) -> Result<()> {
    let tables_fit = || {
        let (width, height, _) = canvas(bytes)?;
        tables(bytes, width, height)
    };
    if image_is_whole(bytes)
        && chunks_are_sound(bytes, FIRST_CHUNK, None, false)
        && tables_fit().is_some()
    {
        return Ok(());
    }
    let format = ImageFormat::WebP;
    Err(Error::new(
        ErrorKind::UndecodableImage,
        format!("the {format} image is damaged or cut off; send the whole file, or save it again"),
    ))
}

/// The orientation in the metadata.
pub(super) fn orientation(bytes: &[u8]) -> Orientation {
    let metadata = chunks(bytes).find(|(name, _)| *name == b"EXIF");
    metadata.map_or(Orientation::NoTransforms, |(_, data)| exif::orientation(data))
}

/// A file that the decoder does not refuse although its header announces metadata after the image that
/// are missing.
pub(super) fn without_absent_metadata(bytes: &[u8]) -> Cow<'_, [u8]> {
    const FLAGS: usize = FIRST_CHUNK + CHUNK_HEAD;
    let is_absent = |name: &[u8; 4]| !chunks(bytes).any(|(chunk, _)| chunk == name);
    let absent = [(b"EXIF", 8), (b"XMP ", 4)].into_iter().filter(|(name, _)| is_absent(name));
    let absent = absent.fold(0, |flags, (_, flag)| flags | flag);
    match bytes.get(FLAGS) {
        Some(flags) if bytes[FIRST_CHUNK..].starts_with(b"VP8X") && flags & absent != 0 => {
            let mut repaired = bytes.to_vec();
            repaired[FLAGS] &= !absent;
            Cow::Owned(repaired)
        }
        _ => Cow::Borrowed(bytes),
    }
}

/// Width, height, and whether there is alpha, as the first chunk says.
fn canvas(bytes: &[u8]) -> Option<(u32, u32, bool)> {
    let (name, data) = chunks(bytes).next()?;
    match (name, data) {
        (b"VP8X", [flags, _, _, _, sides @ ..]) => {
            let [a, b, c, d, e, f] = *sides.first_chunk()?;
            let side = |low, middle, high| u32::from_le_bytes([low, middle, high, 0]) + 1;
            Some((side(a, b, c), side(d, e, f), flags & 0x10 != 0))
        }
        (b"VP8 ", [_, _, _, _, _, _, a, b, c, d, ..]) => {
            let side = |low, high| u32::from(u16::from_le_bytes([low, high]) & 0x3FFF);
            Some((side(*a, *b), side(*c, *d), false))
        }
        (b"VP8L", [_, sides @ ..]) => {
            let bits = u32::from_le_bytes(*sides.first_chunk()?);
            Some(((bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1, (bits >> 28) & 1 == 1))
        }
        _ => None,
    }
}

/// The most memory that a part of a lossy image may claim before it is read.
const PARTITION: u64 = 1 << 24;

/// What the decoder will need. `None` if the header is damaged.
pub(super) fn needs(bytes: &[u8]) -> Option<Needs> {
    let (width, height, has_alpha) = canvas(bytes)?;
    let has = |name: &[u8; 4]| chunks(bytes).any(|(chunk, _)| chunk == name);
    // Luma and halved chroma, in blocks of 16 × 16.
    let blocks = u64::from(width.div_ceil(16)) * u64::from(height.div_ceil(16)) * 384;
    let pixels = u64::from(width) * u64::from(height);
    let lossless = |copies: u64| pixels.saturating_mul(copies);
    let working = if has(b"ANMF") {
        // The canvas, and a frame with the parts that its samples and alpha come from.
        blocks + PARTITION + lossless(4 + 4 + 7)
    } else if has(b"ALPH") {
        blocks + PARTITION + lossless(7)
    } else if has(b"VP8L") {
        // With alpha, the decoder writes to the pixels directly.
        lossless(if has_alpha { 3 } else { 6 })
    } else {
        blocks + PARTITION
    };
    // More is refused before decoding.
    let working = working.saturating_add(tables(bytes, width, height).unwrap_or(MAX_TABLES));
    // The profile is copied; so is the file if its header has to be repaired.
    let metadata = bytes.len() as u64;
    Some(Needs {
        width: width.into(),
        height: height.into(),
        pixel: if has_alpha { 4 } else { 3 },
        working,
        metadata,
        is_turned: exif::is_turned(orientation(bytes)),
    })
}

/// The most memory that prefix codes may take. Encoders need a few MB for the largest images.
const MAX_TABLES: u64 = 64 << 20;

/// Bytes of the tables for prefix codes in the lossless data of the image, or of the first frame. `None`
/// if the codes are damaged, or far too many.
fn tables(bytes: &[u8], width: u32, height: u32) -> Option<u64> {
    let side = |data: &[u8], at: usize| {
        let [a, b, c] = *data.get(at..)?.first_chunk()?;
        Some(u32::from_le_bytes([a, b, c, 0]) + 1)
    };
    let first =
        chunks(bytes).find(|(name, _)| matches!(*name, b"VP8L" | b"VP8 " | b"ALPH" | b"ANMF"));
    let (name, data, width, height) = match first? {
        (b"ANMF", frame) => {
            // The decoder refuses a frame without an image.
            let Some((name, data)) = chunks_at(frame, FRAME_HEAD).next() else { return Some(0) };
            (name, data, side(frame, 6)?, side(frame, 9)?)
        }
        (name, data) => (name, data, width, height),
    };
    let total = match (name, data) {
        // After the signature, the size and the version.
        (b"VP8L", [_, _, _, _, _, data @ ..]) => vp8l::table_bytes(data, width, height)?,
        // Compressed opacity, after its flags.
        (b"ALPH", [flags, data @ ..]) if flags & 3 == 1 => vp8l::table_bytes(data, width, height)?,
        _ => 0,
    };
    (total <= MAX_TABLES).then_some(total)
}

/// Whether all bytes of the image, or of the first frame of an animation, are there.
fn image_is_whole(bytes: &[u8]) -> bool {
    let is_image = |name: &[u8; 4]| matches!(name, b"VP8 " | b"VP8L" | b"ANMF");
    let mut at = FIRST_CHUNK;
    while let Some(length) = length_at(bytes, at.saturating_add(4)) {
        let end = at.saturating_add(CHUNK_HEAD).saturating_add(length);
        if bytes[at..].first_chunk().is_some_and(is_image) {
            return end <= bytes.len();
        }
        at = end.saturating_add(length & 1);
    }
    false
}

/// Whether the profile is complete, no lossy frame is larger than the canvas, and no frame
/// holds another. `at` is the offset of the first chunk, and `canvas` its pixels, if they are known.
///
/// Chunks of a frame are checked by a second call with `in_frame`, so the depth is at most two.
fn chunks_are_sound(bytes: &[u8], mut at: usize, mut canvas: Option<u64>, in_frame: bool) -> bool {
    while let Some(length) = length_at(bytes, at.saturating_add(4)) {
        let content = at.saturating_add(CHUNK_HEAD);
        let end = content.saturating_add(length);
        let sound = match &bytes[at..at + 4] {
            b"ICCP" => end <= bytes.len(),
            b"VP8X" => {
                canvas = canvas_pixels(bytes, content);
                true
            }
            b"VP8 " => match (frame_pixels(bytes, content), canvas) {
                (Some(frame), Some(canvas)) => frame <= canvas,
                _ => true,
            },
            b"ANMF" if in_frame => false,
            b"ANMF" => {
                let first = content.saturating_add(FRAME_HEAD);
                chunks_are_sound(&bytes[..end.min(bytes.len())], first, canvas, true)
            }
            _ => true,
        };
        if !sound {
            return false;
        }
        // Chunks begin at even offsets.
        at = end.saturating_add(length & 1);
    }
    true
}

/// Name and data of the chunks that are not inside others. The data ends with the file.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    chunks_at(bytes, FIRST_CHUNK)
}

/// The chunks from this offset.
fn chunks_at(bytes: &[u8], mut at: usize) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let length = length_at(bytes, at.checked_add(4)?)?;
        let name = bytes.get(at..)?.first_chunk()?;
        let content = at + CHUNK_HEAD;
        let end = content.saturating_add(length);
        // Chunks begin at even offsets.
        at = end.saturating_add(length & 1);
        Some((name, &bytes[content..end.min(bytes.len())]))
    })
}

/// Width × height of the canvas. After four bytes of flags, three bytes each hold a side minus one.
fn canvas_pixels(bytes: &[u8], content: usize) -> Option<u64> {
    let [a, b, c, d, e, f] = bytes.get(content.checked_add(4)?..)?.first_chunk()?;
    let side = |low, middle, high| u64::from(u32::from_le_bytes([low, middle, high, 0])) + 1;
    Some(side(*a, *b, *c) * side(*d, *e, *f))
}

/// Width × height of a lossy frame: 14 bits each, after the frame's tag and start code.
fn frame_pixels(bytes: &[u8], content: usize) -> Option<u64> {
    let [a, b, c, d] = bytes.get(content.checked_add(6)?..)?.first_chunk()?;
    let side = |low, high| u64::from(u16::from_le_bytes([low, high]) & 0x3FFF);
    Some(side(*a, *b) * side(*c, *d))
}

/// The length at `offset`, if it is inside the file.
fn length_at(bytes: &[u8], offset: usize) -> Option<usize> {
    let four = bytes.get(offset..offset.checked_add(4)?)?;
    usize::try_from(u32::from_le_bytes(four.try_into().ok()?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webp(chunks: &[(&[u8; 4], u32, &[u8])]) -> Vec<u8> {
        let mut body = b"WEBP".to_vec();
        for (name, length, data) in chunks {
            body.extend([&name[..], &length.to_le_bytes(), data].concat());
        }
        let length = u32::try_from(body.len()).unwrap();
        [&b"RIFF"[..], &length.to_le_bytes(), &body].concat()
    }

    #[test]
    fn a_profile_must_be_complete_and_what_follows_the_image_need_not() {
        let extended = (b"VP8X", 10, &[0; 10][..]);
        let image = (b"VP8L", 4, &[0; 4][..]);
        let whole = webp(&[extended, (b"ICCP", 3, &[0; 4]), image, (b"EXIF", 2, &[0; 2])]);
        assert!(check_chunks(&whole).is_ok());
        for length in [3, 1 << 30, u32::MAX] {
            let metadata = (b"EXIF", length, &[0; 2][..]);
            assert!(check_chunks(&webp(&[extended, image, metadata])).is_ok(), "{length}");
            for chunks in
                [[extended, (b"ICCP", length, &[0; 2]), image], [extended, metadata, image]]
            {
                // Beyond a profile or metadata of this length there is no image.
                let error = check_chunks(&webp(&chunks)).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::UndecodableImage, "{chunks:?}");
            }
            let profile_last = webp(&[extended, image, (b"ICCP", length, &[0; 2])]);
            assert!(check_chunks(&profile_last).is_err(), "{length}");
        }
        assert!(check_chunks(&webp(&[(b"VP8L", u32::MAX, &[0; 4])])).is_err());
    }

    #[test]
    fn announced_metadata_may_be_missing() {
        let extended = (b"VP8X", 10, &[0x2C, 0, 0, 0, 0, 0, 0, 0, 0, 0][..]);
        let image = (b"VP8L", 4, &[0; 4][..]);
        let flags = |chunks: &[_]| without_absent_metadata(&webp(chunks))[FIRST_CHUNK + CHUNK_HEAD];
        assert_eq!(flags(&[extended, image]), 0x20);
        assert_eq!(flags(&[extended, image, (b"EXIF", 2, &[0; 2])]), 0x28);
        assert_eq!(flags(&[extended, image, (b"EXIF", 2, &[0; 2]), (b"XMP ", 2, &[0; 2])]), 0x2C);
    }

    #[test]
    fn a_frame_must_fit_its_canvas() {
        // A canvas of 3 × 2, and frames of one row with `width` pixels.
        let canvas = (b"VP8X", 10, &[0, 0, 0, 0, 2, 0, 0, 1, 0, 0][..]);
        let frame = |width: u8| [0, 0, 0, 0x9D, 1, 0x2A, width, 0, 1, 0];
        assert!(check_chunks(&webp(&[canvas, (b"VP8 ", 10, &frame(6))])).is_ok());
        assert!(check_chunks(&webp(&[canvas, (b"VP8 ", 10, &frame(7))])).is_err());
        assert!(
            check_chunks(&webp(&[(b"VP8 ", 10, &frame(7))])).is_ok(),
            "the frame is the canvas"
        );
        for (width, sound) in [(6, true), (7, false)] {
            let chunk = [&b"VP8 "[..], &10_u32.to_le_bytes(), &frame(width)].concat();
            let content = [&[0; 16][..], &chunk].concat();
            let animation = webp(&[canvas, (b"ANMF", 34, &content)]);
            assert_eq!(check_chunks(&animation).is_ok(), sound, "{width}");
        }
    }

    #[test]
    fn a_file_shorter_than_it_announces_is_cut_off() {
        let whole = webp(&[(b"VP8 ", 10, &[0, 0, 0, 0x9D, 1, 0x2A, 1, 0, 1, 0])]);
        assert!(check_chunks(&whole).is_ok());
        assert!(check_chunks(&whole[..whole.len() - 1]).is_err());
        assert!(check_chunks(&[&whole[..], b"more"].concat()).is_ok());
        assert!(check_chunks(b"RIFF").is_err());
    }

    /// Each level costs 24 bytes, so a file of 10 MB can have 400,000 levels. With a recursion per
    /// level they overflowed the stack, which ends the process.
    #[test]
    fn deeply_nested_frames_are_refused_without_recursion() {
        let level = [&b"ANMF"[..], &u32::MAX.to_le_bytes(), &[0; FRAME_HEAD]].concat();
        let body = [&b"WEBP"[..], &level.repeat(400_000)].concat();
        let length = u32::try_from(body.len()).unwrap();
        let file = [&b"RIFF"[..], &length.to_le_bytes(), &body].concat();
        let small_stack = std::thread::Builder::new().stack_size(2 << 20);
        let thread = small_stack.spawn(move || {
            let limits = crate::DecodeLimits::default();
            (check_chunks(&file).is_err(), crate::decode(&file, &limits).map(|_| ()))
        });
        let (refused, decoded) = thread.unwrap().join().unwrap();
        assert!(refused);
        assert_eq!(decoded.unwrap_err().kind(), ErrorKind::UndecodableImage);
    }

    #[test]
    fn frames_next_to_each_other_are_fine() {
        let canvas = (b"VP8X", 10, &[0, 0, 0, 0, 2, 0, 0, 1, 0, 0][..]);
        let frame = (b"ANMF", 16, &[0; 16][..]);
        assert!(check_chunks(&webp(&[canvas, frame, frame, frame])).is_ok());
        let nested = [&[0; 16][..], b"ANMF", &16_u32.to_le_bytes(), &[0; 16]].concat();
        assert!(check_chunks(&webp(&[canvas, (b"ANMF", 40, &nested)])).is_err());
    }
}
