//! Parameters of `Content-Type` and `Content-Disposition`: the boundary of a form, the names of its
//! parts and of files.
//!
//! multer's own parser knows only `name="…"` and `filename="…"` in lower case, and finds them inside
//! quoted text as well.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use encoding_rs::Encoding;
use percent_encoding::percent_decode;

/// The parameters of a header value, in their order.
#[derive(Debug)]
pub(super) struct HeaderParameters(Vec<(String, Vec<u8>)>);

impl HeaderParameters {
    /// Reads `form-data; name="image"; filename=a.png`. What cannot be read is left out.
    pub(super) fn parse(header: &[u8]) -> Self {
        let mut all = Vec::new();
        let mut rest = after_semicolon(header);
        while !rest.is_empty() {
            let end = position(rest, b"=;");
            let name = String::from_utf8_lossy(rest[..end].trim_ascii()).to_ascii_lowercase();
            let Some(value) = rest[end..].strip_prefix(b"=") else {
                // A name without a value.
                rest = after_semicolon(rest);
                continue;
            };
            let value = value.trim_ascii_start();
            if let Some(quoted) = value.strip_prefix(b"\"") {
                let (value, after) = unquote(quoted);
                all.push((name, value));
                rest = after_semicolon(after);
            } else {
                all.push((name, value[..position(value, b";")].trim_ascii_end().to_vec()));
                rest = after_semicolon(value);
            }
        }
        Self(all)
    }

    /// The bytes of the first parameter with this name in lower case.
    pub(super) fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_slice())
    }

    /// The text of a parameter, in any of the ways in which clients write what is not ASCII: as
    /// `name*` (RFC 8187), in encoded words (RFC 2047), or in plain UTF-8. It has no control
    /// characters, so that it cannot forge a line wherever it is written.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        let extended = self.get(&format!("{name}*")).and_then(decode_extended);
        let text = extended.or_else(|| {
            let plain = String::from_utf8_lossy(self.get(name)?).into_owned();
            // Browsers write a quotation mark like this, and leave other percent signs alone.
            Some(decode_words(&plain).replace("%22", "\""))
        })?;
        let printable = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
        Some(text.chars().map(printable).collect())
    }
}

/// The position of the first of these bytes, or the end.
fn position(text: &[u8], of: &[u8]) -> usize {
    text.iter().position(|byte| of.contains(byte)).unwrap_or(text.len())
}

fn after_semicolon(text: &[u8]) -> &[u8] {
    text.get(position(text, b";") + 1..).unwrap_or_default()
}

/// The text up to the closing quotation mark, and what follows it. Only quotation marks and
/// backslashes are escaped: browsers send paths of Windows as they are.
fn unquote(text: &[u8]) -> (Vec<u8>, &[u8]) {
    let mut value = Vec::new();
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after.first()) {
            (b'"', _) => break,
            (b'\\', Some(escaped @ (b'"' | b'\\'))) => {
                value.push(*escaped);
                rest = &after[1..];
            }
            _ => value.push(*byte),
        }
    }
    (value, rest)
}

/// Decodes `UTF-8'en'caf%C3%A9.jpg`.
fn decode_extended(value: &[u8]) -> Option<String> {
    let mut parts = value.splitn(3, |byte| *byte == b'\'');
    let charset = parts.next()?;
    let _language = parts.next()?;
    decode_charset(charset, &percent_decode(parts.next()?).collect::<Vec<u8>>())
}

fn decode_charset(label: &[u8], bytes: &[u8]) -> Option<String> {
    let encoding = Encoding::for_label(label)?;
    let text = encoding.decode_without_bom_handling_and_without_replacement(bytes)?;
    Some(text.into_owned())
}

/// Decodes the encoded words in `text`, such as `=?UTF-8?Q?caf=C3=A9.jpg?=`. Blanks between two of
/// them belong to neither.
fn decode_words(text: &str) -> String {
    let mut decoded = String::with_capacity(text.len());
    let (mut rest, mut follows_word) = (text, false);
    while let Some(start) = rest.find("=?") {
        let (before, from_word) = rest.split_at(start);
        if !(follows_word && before.bytes().all(|byte| byte.is_ascii_whitespace())) {
            decoded.push_str(before);
        }
        let word = decode_word(from_word);
        follows_word = word.is_some();
        let (text, after) = word.unwrap_or_else(|| ("=?".to_owned(), &from_word[2..]));
        decoded.push_str(&text);
        rest = after;
    }
    decoded + rest
}

/// The text of the encoded word that `text` begins with, and what follows it.
fn decode_word(text: &str) -> Option<(String, &str)> {
    let mut parts = text.strip_prefix("=?")?.splitn(3, '?');
    let (charset, encoding, rest) = (parts.next()?, parts.next()?, parts.next()?);
    let (encoded, after) = rest.split_once("?=")?;
    let bytes = match encoding {
        "B" | "b" => BASE64_STANDARD.decode(encoded).ok()?,
        "Q" | "q" => {
            // The same as percent-encoding, with other signs.
            let percent = encoded.replace('%', "%25").replace('=', "%").replace('_', " ");
            percent_decode(percent.as_bytes()).collect()
        }
        _ => return None,
    };
    // RFC 2231 allows a language after the charset.
    let charset = charset.split('*').next()?;
    Some((decode_charset(charset.as_bytes(), &bytes)?, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str) -> Option<String> {
        HeaderParameters::parse(header.as_bytes()).text("filename")
    }

    #[test]
    fn parameters_are_found_in_any_case_order_and_quoting() {
        for header in [
            "form-data; name=\"image\"; filename=\"a b.png\"",
            "form-data; FileName=\"a b.png\"; NAME=image",
            "form-data;name = image ;filename = \"a b.png\" ; size=5",
            "form-data;; inline; filename=a b.png; name=\"image\";",
            "form-data; filename=\"a b.png\" trash; name=\"image\"",
            "form-data; note=\"; filename=x; name=y\"; name=\"image\"; filename=\"a b.png\"",
            "form-data; name=\"image\"; name=\"other\"; filename=\"a b.png",
        ] {
            let parameters = HeaderParameters::parse(header.as_bytes());
            assert_eq!(parameters.text("name").as_deref(), Some("image"), "{header}");
            assert_eq!(parameters.text("filename").as_deref(), Some("a b.png"), "{header}");
            assert_eq!(parameters.get("nothing"), None);
        }
        for header in ["", "form-data", "form-data; filename", "form-data; filename; x=1", "; ="] {
            assert_eq!(file(header), None, "{header}");
        }
        let boundary = |header: &str| {
            let parameters = HeaderParameters::parse(header.as_bytes());
            parameters.get("boundary").map(|found| String::from_utf8(found.to_vec()).unwrap())
        };
        for header in ["multipart/form-data; boundary=a=b:/?", "x; Boundary=\"a=b:/?\"; charset=x"]
        {
            assert_eq!(boundary(header).as_deref(), Some("a=b:/?"), "{header}");
        }
    }

    #[test]
    fn file_names_are_read_in_every_way_of_writing_them() {
        for (header, expected) in [
            ("x; filename=\"käse.jpg\"", "käse.jpg"),
            ("x; filename*=UTF-8''k%C3%A4se%20%22.jpg", "käse \".jpg"),
            ("x; filename*=utf-8'de'k%c3%a4se.jpg; filename=\"k_se.jpg\"", "käse.jpg"),
            ("x; filename=\"k_se.jpg\"; FILENAME* = iso-8859-1''k%E4se.jpg", "käse.jpg"),
            // What cannot be decoded gives way to the plain name.
            ("x; filename*=UTF-8''%E4; filename=\"plain.jpg\"", "plain.jpg"),
            ("x; filename*=klingon''a; filename=\"plain.jpg\"", "plain.jpg"),
            ("x; filename*=a.jpg; filename=\"plain.jpg\"", "plain.jpg"),
            ("x; filename=\"=?utf-8?B?a8OkdHplLmpwZw==?=\"", "kätze.jpg"),
            ("x; filename=\"=?UTF-8?q?k=C3=A4se_1%.jpg?=\"", "käse 1%.jpg"),
            ("x; filename=\"=?utf-8*de?Q?k=C3=A4?= =?iso-8859-1?Q?=E4se?= .jpg\"", "kääse .jpg"),
            (
                "x; filename=\"a =?utf-8?X?b?= =?utf-8?B?%?= =?.jpg\"",
                "a =?utf-8?X?b?= =?utf-8?B?%?= =?.jpg",
            ),
            ("x; filename=\"a\\\"b\\\\c.jpg\"", "a\"b\\c.jpg"),
            ("x; filename=\"C:\\photos\\a.jpg\"", "C:\\photos\\a.jpg"),
            ("x; filename=\"a%22b%20c%0D%0A.jpg\"", "a\"b%20c%0D%0A.jpg"),
            // No name writes a line of its own.
            ("x; filename*=UTF-8''a%0D%0Ab%00%1B.jpg", "a\u{FFFD}\u{FFFD}b\u{FFFD}\u{FFFD}.jpg"),
            ("x; filename=\"=?utf-8?B?YQ0KYg==?=\"", "a\u{FFFD}\u{FFFD}b"),
        ] {
            assert_eq!(file(header).as_deref(), Some(expected), "{header}");
        }
        let broken = HeaderParameters::parse(b"x; filename=\"k\xE4se.jpg\"");
        assert_eq!(broken.text("filename").as_deref(), Some("k\u{FFFD}se.jpg"));
    }
}
