//! Images in text: base64, and `data:` URIs as browsers read them.

use std::io::Read;
use std::slice;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::read::DecoderReader;
use percent_encoding::percent_decode;

use super::malformed;
use crate::http::body::TooLarge;
use cutline_error::Result;

/// Padding is optional. Bits that are left over show that the text was cut off.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How far into the text the colon of an address may be.
const LONGEST_SCHEME: usize = 32;

/// Decodes an image: base64, or a `data:` URI (RFC 2397) with base64 or percent-encoded bytes.
///
/// # Errors
/// [`MalformedRequest`](cutline_error::ErrorKind::MalformedRequest), or
/// [`ImageTooLarge`](cutline_error::ErrorKind::ImageTooLarge) for more than `max_bytes`.
pub(crate) fn image(text: &str, max_bytes: usize) -> Result<Vec<u8>> {
    let text = text.trim_ascii_start();
    let start = &text.as_bytes()[..text.len().min(LONGEST_SCHEME)];
    let Some(colon) = start.iter().position(|byte| *byte == b':') else {
        return base64(text.as_bytes(), false, max_bytes);
    };
    if !start[..colon].eq_ignore_ascii_case(b"data") {
        return Err(malformed(
            "URLs are not base64; send the image itself, or its address in the field image_url \
             where there is one",
        ));
    }
    let uri = &text[colon + 1..];
    let (kind, data) = uri.split_once(',').ok_or_else(|| {
        malformed("a data: URI must have a comma before its data; write data:image/…;base64,…")
    })?;
    // A fragment is not part of the data.
    let data = data.split('#').next().unwrap_or_default().as_bytes();
    let mut parameters = kind.split(';').skip(1).map(str::trim_ascii);
    if parameters.any(|parameter| parameter.eq_ignore_ascii_case("base64")) {
        return base64(data, true, max_bytes);
    }
    let bytes = percent_decode(data).take(max_bytes.saturating_add(1)).collect();
    within(bytes, max_bytes)
}

/// Decodes base64 of either alphabet, with or without padding and line breaks.
///
/// # Errors
/// As [`image`].
pub(super) fn base64(text: &[u8], in_uri: bool, max_bytes: usize) -> Result<Vec<u8>> {
    // Padding may add up to two bytes.
    let fits = text.len() / 4 * 3 <= max_bytes.saturating_add(2);
    // Nearly always the text is clean, which is faster.
    if let Some(Ok(image)) = fits.then(|| BASE64.decode(text)) {
        return within(image, max_bytes);
    }
    let most = max_bytes.saturating_add(1);
    let mut image = Vec::with_capacity((text.len() / 4 * 3 + 3).min(most));
    let clean = CleanText { text: text.iter(), in_uri };
    let decoded = DecoderReader::new(clean, &BASE64).take(most as u64).read_to_end(&mut image);
    decoded.map_err(|error| {
        malformed(
            "the image is not valid base64; encode the file's bytes with the standard alphabet",
        )
        .with_source(error)
    })?;
    // The budget counts its length; blanks do not belong to it.
    image.shrink_to_fit();
    within(image, max_bytes)
}

fn within(image: Vec<u8>, max_bytes: usize) -> Result<Vec<u8>> {
    if image.len() > max_bytes { Err(TooLarge::Image(max_bytes).error()) } else { Ok(image) }
}

/// The characters of base64 without blanks, in the standard alphabet. In a URI they may be
/// percent-encoded. They are read one by one, because a cleaned copy would double the memory.
struct CleanText<'t> {
    text: slice::Iter<'t, u8>,
    in_uri: bool,
}

impl Iterator for CleanText<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        loop {
            let byte = match *self.text.next()? {
                b'%' if self.in_uri => self.unescaped(),
                byte => byte,
            };
            match byte {
                blank if blank.is_ascii_whitespace() => {}
                b'-' => return Some(b'+'),
                b'_' => return Some(b'/'),
                byte => return Some(byte),
            }
        }
    }
}

impl CleanText<'_> {
    /// The byte after a percent sign, or the sign itself if no byte is encoded there.
    fn unescaped(&mut self) -> u8 {
        let encoded = self.text.as_slice();
        let digit = |at: usize| char::from(*encoded.get(at)?).to_digit(16);
        let byte =
            digit(0).zip(digit(1)).and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
        if byte.is_some() {
            self.text = encoded[2..].iter();
        }
        byte.unwrap_or(b'%')
    }
}

impl Read for CleanText<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let mut length = 0;
        for (slot, byte) in into.iter_mut().zip(&mut *self) {
            *slot = byte;
            length += 1;
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cutline_error::ErrorKind;

    /// Has both characters that differ between the alphabets.
    const BYTES: [u8; 5] = [0xFB, 0xEF, 0xFF, b'h', b'i'];

    #[test]
    fn base64_is_read_however_clients_write_it() {
        for text in [
            "++//aGk=",
            "++//aGk",
            "--__aGk=",
            "--__aGk",
            "+-/_aGk",
            " ++//\r\n\taGk=\n",
            "data:image/png;base64,++//aGk=",
            "DATA:image/png;charset=utf-8;BASE64,++//aGk",
            " data:;base64,++//aGk=",
            "data:image/png; base64 ,++//aG k=",
            "data:image/png;base64,%2B%2b%2F/aGk%3D",
            "data:image/png;base64,%2B-%2F_a%20Gk%0D%0A",
            "data:image/png;base64,++//aGk=#fragment",
            "data:,%FB%EF%FFhi",
            "data:image/png,%fb%ef%ffh%69#fragment",
        ] {
            assert_eq!(image(text, 5).unwrap(), BYTES, "{text}");
            assert_eq!(image(text, 4).unwrap_err().kind(), ErrorKind::ImageTooLarge, "{text}");
        }
        assert_eq!(image("data:,100% a b", 20).unwrap(), b"100% a b");
        assert_eq!(image("", 5).unwrap(), b"");
    }

    #[test]
    fn memory_is_bounded_by_the_limit_and_not_by_the_text() {
        for text in ["A".repeat(1 << 20), format!("{}====", " A".repeat(1 << 20))] {
            let error = base64(text.as_bytes(), false, 100).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ImageTooLarge);
        }
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "äöü",
            "a",
            "%",
            "aGVsbG",
            "aGk=aGk=",
            "++%2F/aGk=",
            "data:",
            "data:image/png;base64",
            "data:image/png;base64,%%%",
            "data:image/png;base64,a%2",
            "https://example.org/cat.jpg",
            "HTTP://example.org/cat.jpg",
            "blob:https://example.org/1b9d",
            "file:///cat.jpg",
        ] {
            let error = image(text, 100).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::MalformedRequest, "{text}");
        }
    }
}
