//! Text files that other programs wrote: the mark that some of them begin with, and encodings that are
//! not read.

/// The byte order mark of UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// How many bytes of a text without a mark are looked at.
const LOOKED_AT: usize = 64;

/// The bytes of a text without the mark at its start. They need not be UTF-8: a list of paths may hold
/// any bytes.
///
/// # Errors
/// The text is UTF-16 or UTF-32. The words follow the name of the file and say what to do.
pub(crate) fn without_mark(bytes: &[u8]) -> Result<&[u8], &'static str> {
    let text = bytes.strip_prefix(MARK).unwrap_or(bytes);
    if text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff") || has_wide_characters(text) {
        return Err("is UTF-16 or UTF-32, not UTF-8; save it as UTF-8");
    }
    Ok(text)
}

/// Whether every second byte is zero, as in ASCII text that is stored in 16 bits.
fn has_wide_characters(text: &[u8]) -> bool {
    let start = &text[..text.len().min(LOOKED_AT)];
    let zero = |first: usize| start.iter().skip(first).step_by(2).all(|byte| *byte == 0);
    start.len() >= 4 && (zero(0) != zero(1))
}

#[cfg(test)]
mod tests {
    use super::without_mark;

    fn utf16(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(bytes).collect()
    }

    #[test]
    fn a_mark_is_skipped_once_and_only_at_the_start() {
        assert_eq!(without_mark("\u{feff}a\u{feff}".as_bytes()), Ok("a\u{feff}".as_bytes()));
        for text in [&b""[..], b"a", b"ab\0", b"\0\0\0\0", b"./a.jpg\0./b.jpg\0", b"\xff\n\xfe\n"] {
            assert_eq!(without_mark(text), Ok(text));
        }
    }

    #[test]
    fn wide_characters_are_refused_with_and_without_a_mark() {
        for bytes in [u16::to_le_bytes, u16::to_be_bytes] {
            for text in ["a.jpg\r\n", "\u{feff}a.jpg\n", "\u{feff}ä\n", "{\"a\": 1}"] {
                assert!(without_mark(&utf16(text, bytes)).is_err(), "{text:?}");
            }
        }
    }
}
