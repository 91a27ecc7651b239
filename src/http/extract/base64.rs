//! Base64 as it is, or behind the head of a `data:` URI.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::malformed;
use crate::http::body::TooLarge;
use cutline_error::Result;

/// Padding may be there or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The bytes that `text` stands for, at most `max_bytes`.
///
/// # Errors
/// [`MalformedRequest`](cutline_error::ErrorKind::MalformedRequest) or
/// [`ImageTooLarge`](cutline_error::ErrorKind::ImageTooLarge).
pub(super) fn decode(mut text: &str, max_bytes: usize) -> Result<Vec<u8>> {
    if text.starts_with("http://") || text.starts_with("https://") {
        return Err(malformed("addresses are not fetched here; send the image itself as base64"));
    }
    if text.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:")) {
        let (head, data) = text.split_once(',').unwrap_or_default();
        let at = head.len().saturating_sub(7);
        if !head.as_bytes()[at..].eq_ignore_ascii_case(b";base64") {
            return Err(malformed("the data: URI must read data:image/…;base64,…"));
        }
        text = data;
    }
    let text = if text.bytes().any(|byte| byte.is_ascii_whitespace()) {
        Cow::Owned(text.chars().filter(|c| !c.is_ascii_whitespace()).collect::<String>())
    } else {
        Cow::Borrowed(text)
    };
    let too_large = TooLarge::Image(max_bytes);
    // Before the memory is spent; padding may round this up by two.
    if text.len() / 4 * 3 > max_bytes.saturating_add(2) {
        return Err(too_large.error());
    }
    let image = BASE64.decode(text.as_bytes()).map_err(|error| {
        malformed("image is not valid base64; encode the file's bytes with the standard alphabet")
            .with_source(error)
    })?;
    if image.len() > max_bytes { Err(too_large.error()) } else { Ok(image) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cutline_error::ErrorKind;

    #[test]
    fn base64_is_read_with_and_without_head_padding_and_line_breaks() {
        for text in ["aGVsbG8=", "aGVsbG8", "aGVs\r\nbG8=", "data:image/png;base64,aGVsbG8="] {
            assert_eq!(decode(text, 5).unwrap(), b"hello", "{text}");
        }
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        for text in ["äöü", "a", "data:image/png,hello", "data:", "https://example.org/cat.jpg"]
        {
            let error = decode(text, 100).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::MalformedRequest, "{text}");
        }
        let error = decode("aGVsbG8=", 4).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ImageTooLarge);
    }
}
