//! What a GIF's header says before it is decoded.

use super::header::Needs;

/// Bytes of the signature and the logical screen's description.
const SCREEN: usize = 13;

/// The decoder returns red, green, blue and alpha.
const PIXEL: u64 = 4;

/// The decoder first reads the indices of colours, of which it keeps up to all of a frame.
const INDEX: u64 = 1;

/// What the decoder will need. A frame that does not fill rows of the screen is decoded into a buffer of
/// its own. `None` if the file has no frame.
pub(super) fn needs(bytes: &[u8]) -> Option<Needs> {
    let [w0, w1, h0, h1, flags, _, _] = *bytes.get(6..)?.first_chunk()?;
    let (width, height) = (u16::from_le_bytes([w0, w1]), u16::from_le_bytes([h0, h1]));
    let mut rest = bytes.get(SCREEN + palette_bytes(flags)..)?;
    let [left, top, frame_width, frame_height] = loop {
        match *rest {
            [0x2C, l0, l1, t0, t1, w0, w1, h0, h1, ..] => {
                break [[l0, l1], [t0, t1], [w0, w1], [h0, h1]].map(u16::from_le_bytes);
            }
            [0x21, _, ref blocks @ ..] => rest = after_blocks(blocks)?,
            _ => return None,
        }
    };
    let fills_rows = left == 0
        && frame_width == width
        && u32::from(top) + u32::from(frame_height) <= u32::from(height);
    let pixel = if fills_rows { PIXEL } else { PIXEL + INDEX };
    let working = u64::from(frame_width) * u64::from(frame_height) * pixel;
    Some(Needs {
        width: width.into(),
        height: height.into(),
        pixel: PIXEL,
        working,
        metadata: (bytes.len() - rest.len()) as u64,
        ..Needs::default()
    })
}

/// Bytes of a palette, from the flags that announce it.
fn palette_bytes(flags: u8) -> usize {
    if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) }
}

/// The bytes after a sequence of blocks, each of which begins with its length; the last is empty.
fn after_blocks(mut blocks: &[u8]) -> Option<&[u8]> {
    loop {
        let (&length, rest) = blocks.split_first()?;
        blocks = rest.get(usize::from(length)..)?;
        if length == 0 {
            return Some(blocks);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::needs;

    #[test]
    fn a_frame_beyond_the_screen_takes_its_colours_and_their_indices() {
        let screen = b"GIF89a\x48\0\x30\0\0\0\0";
        let frame = b"\x2C\0\0\0\0\xB8\xFF\xD0\0\x07";
        let needs = needs(&[&screen[..], frame].concat()).unwrap();
        assert_eq!((needs.width, needs.height), (72, 48));
        assert_eq!(needs.working, 65_464 * 208 * 5);
    }
}
