//! What is checked of a WebP before its decoder sees it.

use super::format::ImageFormat;
use cutline_error::{Error, ErrorKind, Result};

/// Where the first chunk begins: behind `RIFF`, the length, and `WEBP`.
const FIRST_CHUNK: usize = 12;

/// The name of a chunk and its length.
const CHUNK_HEAD: usize = 8;

/// Place, size, duration and flags of a frame, before its chunks.
const FRAME_HEAD: usize = 16;

/// Refuses a file that is cut off, which the decoder would paint over in grey; one whose metadata is
/// longer than the file, for which the decoder would take up to 4 GiB before it looks; and one with a
/// frame larger than its canvas, for which it would take 400 MB.
///
/// # Errors
/// [`ErrorKind::UndecodableImage`]. What else may be wrong is the decoder's to say.
pub(super) fn check_chunks(bytes: &[u8]) -> Result<()> {
    if riff_is_whole(bytes) && is_sound(bytes, FIRST_CHUNK, None) {
        return Ok(());
    }
    let format = ImageFormat::WebP;
    Err(Error::new(
        ErrorKind::UndecodableImage,
        format!("the {format} image is damaged or cut off; send the whole file, or save it again"),
    ))
}

/// Whether all the bytes that the RIFF header announces are there.
fn riff_is_whole(bytes: &[u8]) -> bool {
    length_at(bytes, 4).is_some_and(|length| length <= bytes.len() - 8)
}

/// Whether all of each chunk of metadata is there, and no lossy frame is larger than the canvas; the
/// decoder compares the two when it has the frame. Other chunks are read as they come. `at` is where
/// the first chunk begins, and `canvas` its pixels, if they are known.
fn is_sound(bytes: &[u8], mut at: usize, mut canvas: Option<u64>) -> bool {
    while let Some(length) = length_at(bytes, at.saturating_add(4)) {
        let content = at.saturating_add(CHUNK_HEAD);
        let end = content.saturating_add(length);
        let sound = match &bytes[at..at + 4] {
            b"ICCP" | b"EXIF" | b"XMP " => end <= bytes.len(),
            b"VP8X" => {
                canvas = canvas_pixels(bytes, content);
                true
            }
            b"VP8 " => match (frame_pixels(bytes, content), canvas) {
                (Some(frame), Some(canvas)) => frame <= canvas,
                _ => true,
            },
            b"ANMF" => {
                is_sound(&bytes[..end.min(bytes.len())], content.saturating_add(FRAME_HEAD), canvas)
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

/// Width × height of the canvas, of which three bytes each say one less, behind four of flags.
fn canvas_pixels(bytes: &[u8], content: usize) -> Option<u64> {
    let [a, b, c, d, e, f] = bytes.get(content.checked_add(4)?..)?.first_chunk()?;
    let side = |low, middle, high| u64::from(u32::from_le_bytes([low, middle, high, 0])) + 1;
    Some(side(*a, *b, *c) * side(*d, *e, *f))
}

/// Width × height of a lossy frame: 14 bits each, behind the frame's tag and start code.
fn frame_pixels(bytes: &[u8], content: usize) -> Option<u64> {
    let [a, b, c, d] = bytes.get(content.checked_add(6)?..)?.first_chunk()?;
    let side = |low, high| u64::from(u16::from_le_bytes([low, high]) & 0x3FFF);
    Some(side(*a, *b) * side(*c, *d))
}

/// The length that stands at `offset`, if there is one.
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
    fn metadata_must_be_whole_wherever_it_stands() {
        let extended = (b"VP8X", 10, &[0; 10][..]);
        let whole = webp(&[extended, (b"ICCP", 3, &[0; 4]), (b"EXIF", 2, &[0; 2])]);
        assert!(check_chunks(&whole).is_ok());
        for chunks in [
            [extended, (b"EXIF", 3, &[0; 2])],
            [extended, (b"ICCP", u32::MAX, &[0; 2])],
            [(b"EXIF", 1 << 30, &[0; 10]), extended],
        ] {
            let error = check_chunks(&webp(&chunks)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UndecodableImage, "{chunks:?}");
        }
        // The decoder finds out about this one, and takes no memory for it.
        assert!(check_chunks(&webp(&[(b"VP8L", u32::MAX, &[0; 4])])).is_ok());
    }

    #[test]
    fn a_frame_must_fit_its_canvas() {
        // A canvas of 3 × 2, and frames of so many pixels a row in one row.
        let canvas = (b"VP8X", 10, &[0, 0, 0, 0, 2, 0, 0, 1, 0, 0][..]);
        let frame = |width: u8| [0, 0, 0, 0x9D, 1, 0x2A, width, 0, 1, 0];
        assert!(check_chunks(&webp(&[canvas, (b"VP8 ", 10, &frame(6))])).is_ok());
        assert!(check_chunks(&webp(&[canvas, (b"VP8 ", 10, &frame(7))])).is_err());
        assert!(check_chunks(&webp(&[(b"VP8 ", 10, &frame(7))])).is_ok(), "it is the canvas");
        for (width, sound) in [(6, true), (7, false)] {
            let chunk = [&b"VP8 "[..], &10_u32.to_le_bytes(), &frame(width)].concat();
            let content = [&[0; 16][..], &chunk].concat();
            let animation = webp(&[canvas, (b"ANMF", 34, &content)]);
            assert_eq!(check_chunks(&animation).is_ok(), sound, "{width}");
        }
    }

    #[test]
    fn a_file_that_announces_more_than_it_has_is_cut_off() {
        let whole = webp(&[(b"VP8L", 4, &[0; 4])]);
        assert!(check_chunks(&whole).is_ok());
        assert!(check_chunks(&whole[..whole.len() - 1]).is_err());
        assert!(check_chunks(&[&whole[..], b"more"].concat()).is_ok());
        assert!(check_chunks(b"RIFF").is_err());
    }
}
