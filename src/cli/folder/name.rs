//! Paths as text, and text as paths.
//!
//! Most paths are written as they are. A path that is not valid UTF-8 is written as git writes it: in
//! double quotes, with octal escapes such as `\377`. To keep the two apart, a path that begins with a
//! double quote is quoted as well. So different paths have different texts, and each text can be read
//! back.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const QUOTE: char = '"';
/// Characters with an escape of one letter.
const LETTERS: [(char, char); 9] = [
    ('\u{7}', 'a'),
    ('\u{8}', 'b'),
    ('\t', 't'),
    ('\n', 'n'),
    ('\u{b}', 'v'),
    ('\u{c}', 'f'),
    ('\r', 'r'),
    (QUOTE, QUOTE),
    ('\\', '\\'),
];

/// The text of a path for formats that can hold any text, such as JSON.
pub(in crate::cli) fn text(path: &Path) -> String {
    match path.to_str() {
        Some(text) if !text.starts_with(QUOTE) => text.to_owned(),
        _ => quoted(path),
    }
}

/// The text of a path for a line: tabs, line breaks and other control characters are escaped as well.
pub(in crate::cli) fn line(path: &Path) -> String {
    match path.to_str() {
        // A byte order mark at the start of a file would be skipped when the file is read.
        Some(text) if !text.starts_with([QUOTE, '\u{feff}']) && !text.contains(breaks_lines) => {
            text.to_owned()
        }
        _ => quoted(path),
    }
}

/// The path that [`text`] or [`line()`] wrote. Any other text stands for itself.
pub(in crate::cli) fn path(text: &str) -> PathBuf {
    unquoted(text).map_or_else(|| PathBuf::from(text), path_of)
}

/// The path with these bytes.
#[cfg(unix)]
pub(in crate::cli) fn path_of(bytes: Vec<u8>) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    std::ffi::OsString::from_vec(bytes).into()
}

/// The path with these bytes. Where paths are not bytes, invalid ones cannot be restored.
#[cfg(not(unix))]
pub(in crate::cli) fn path_of(bytes: Vec<u8>) -> PathBuf {
    String::from_utf8_lossy(&bytes).into_owned().into()
}

/// Control characters, and what other programs take for the end of a line.
pub(super) fn breaks_lines(character: char) -> bool {
    character.is_control() || matches!(character, '\u{2028}' | '\u{2029}')
}

fn quoted(path: &Path) -> String {
    let mut text = String::from(QUOTE);
    for chunk in path.as_os_str().as_encoded_bytes().utf8_chunks() {
        for character in chunk.valid().chars() {
            if let Some((_, letter)) = LETTERS.iter().find(|(known, _)| *known == character) {
                text.extend(['\\', *letter]);
            } else if breaks_lines(character) || character == '\u{feff}' {
                escape(&mut text, character.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                text.push(character);
            }
        }
        escape(&mut text, chunk.invalid());
    }
    text.push(QUOTE);
    text
}

fn escape(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "\\{byte:03o}");
    }
}

/// The bytes of a quoted path; `None` if it is not one.
fn unquoted(text: &str) -> Option<Vec<u8>> {
    let inside = text.strip_prefix(QUOTE)?.strip_suffix(QUOTE)?;
    let mut bytes = Vec::with_capacity(inside.len());
    let mut rest = inside.chars();
    while let Some(character) = rest.next() {
        match character {
            QUOTE => return None,
            '\\' => {
                let octal = rest.as_str().get(..3).filter(|digits| is_octal(digits));
                if let Some(digits) = octal {
                    bytes.push(u8::from_str_radix(digits, 8).ok()?);
                    rest.nth(2);
                } else {
                    let letter = rest.next()?;
                    let (known, _) = LETTERS.iter().find(|(_, escape)| *escape == letter)?;
                    bytes.push(u8::try_from(*known).ok()?);
                }
            }
            plain => bytes.extend(plain.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Some(bytes)
}

fn is_octal(digits: &str) -> bool {
    digits.bytes().all(|digit| matches!(digit, b'0'..=b'7'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_paths_are_written_as_they_are() {
        for plain in
            ["a b/c.jpg", "100%.png", "it's.jpg", "a\\b.jpg", "say \"hi\".jpg", "ä.jpg", "-", ""]
        {
            assert_eq!(text(Path::new(plain)), plain);
            assert_eq!(line(Path::new(plain)), plain);
            assert_eq!(path(plain), Path::new(plain));
        }
    }

    #[test]
    fn line_breaks_are_escaped_in_lines_only() {
        let odd = Path::new("a\tb\nc\u{1b}[31m\u{2028}.jpg");
        assert_eq!(text(odd), "a\tb\nc\u{1b}[31m\u{2028}.jpg");
        assert_eq!(line(odd), r#""a\tb\nc\033[31m\342\200\250.jpg""#);
        assert_eq!(path(&line(odd)), odd);
    }

    #[test]
    fn a_text_that_only_looks_quoted_stands_for_itself() {
        for other in [r#""a"#, r#""a"b""#, r#""\q""#, r#""\400""#, r#""\"#, "\""] {
            assert_eq!(path(other), Path::new(other));
        }
    }

    /// Paths of up to four bytes out of those that matter have different texts, which are read back.
    #[cfg(unix)]
    #[test]
    fn different_paths_have_different_texts() {
        let alphabet = b"a\"\\\n\x1b0\xff\xc3\xa9";
        let mut paths = vec![Vec::new()];
        for length in 1..=4 {
            let longest: Vec<Vec<u8>> =
                paths.iter().filter(|path| path.len() == length - 1).cloned().collect();
            paths.extend(longest.iter().flat_map(|path| {
                alphabet.iter().map(move |byte| [path.as_slice(), &[*byte]].concat())
            }));
        }
        let paths: Vec<PathBuf> = paths.into_iter().map(path_of).collect();
        for (write, in_lines) in [(text as fn(&Path) -> String, false), (line, true)] {
            let texts: std::collections::HashSet<String> =
                paths.iter().map(|path| write(path)).collect();
            assert_eq!(texts.len(), paths.len());
            for original in &paths {
                let text = write(original);
                assert_eq!(&path(&text), original, "{text}");
                assert!(!in_lines || !text.contains(char::is_control), "{text:?}");
            }
        }
    }
}
