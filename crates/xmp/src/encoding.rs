//! The encodings of XMP files: UTF-8, UTF-16 and UTF-32 in either byte order.

use super::not_xmp;
use cutline_error::Result;

/// How the characters of a file are stored. A byte order mark is a character of the text, so it is
/// written back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Utf8,
    Utf16(ByteOrder),
    Utf32(ByteOrder),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ByteOrder {
    Little,
    Big,
}

impl Encoding {
    /// The encoding of a file by its first bytes: a byte order mark, or else `<`.
    fn of(bytes: &[u8]) -> Self {
        use ByteOrder::{Big, Little};
        match bytes {
            // The mark of UTF-16 in little endian begins that of UTF-32.
            [0xff, 0xfe, 0, 0, ..] | [b'<', 0, 0, 0, ..] => Self::Utf32(Little),
            [0, 0, 0xfe, 0xff, ..] | [0, 0, 0, b'<', ..] => Self::Utf32(Big),
            [0xff, 0xfe, ..] | [b'<', 0, ..] => Self::Utf16(Little),
            [0xfe, 0xff, ..] | [0, b'<', ..] => Self::Utf16(Big),
            _ => Self::Utf8,
        }
    }

    /// The text of a file, and its encoding.
    ///
    /// # Errors
    /// [`Io`](cutline_error::ErrorKind::Io): the bytes are not valid in that encoding.
    pub(super) fn decode(bytes: &[u8]) -> Result<(String, Self)> {
        let encoding = Self::of(bytes);
        let text = match encoding {
            Self::Utf8 => std::str::from_utf8(bytes).ok().map(str::to_owned),
            Self::Utf16(order) => {
                let (units, rest) = bytes.as_chunks::<2>();
                let units = units.iter().map(|unit| match order {
                    ByteOrder::Little => u16::from_le_bytes(*unit),
                    ByteOrder::Big => u16::from_be_bytes(*unit),
                });
                let text = char::decode_utf16(units).collect::<Result<String, _>>().ok();
                text.filter(|_| rest.is_empty())
            }
            Self::Utf32(order) => {
                let (units, rest) = bytes.as_chunks::<4>();
                let characters = units.iter().map(|unit| match order {
                    ByteOrder::Little => char::from_u32(u32::from_le_bytes(*unit)),
                    ByteOrder::Big => char::from_u32(u32::from_be_bytes(*unit)),
                });
                characters.collect::<Option<String>>().filter(|_| rest.is_empty())
            }
        };
        text.map(|text| (text, encoding))
            .ok_or_else(|| not_xmp("its characters are not those of UTF-8, UTF-16 or UTF-32"))
    }

    pub(super) fn encode(self, text: &str) -> Vec<u8> {
        match self {
            Self::Utf8 => text.as_bytes().to_vec(),
            Self::Utf16(ByteOrder::Little) => {
                text.encode_utf16().flat_map(u16::to_le_bytes).collect()
            }
            Self::Utf16(ByteOrder::Big) => text.encode_utf16().flat_map(u16::to_be_bytes).collect(),
            Self::Utf32(ByteOrder::Little) => {
                text.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect()
            }
            Self::Utf32(ByteOrder::Big) => {
                text.chars().flat_map(|c| u32::from(c).to_be_bytes()).collect()
            }
        }
    }

    /// Whether an XML declaration may name this encoding. Another one, such as ISO-8859-1, is legal in
    /// XML but not in XMP.
    pub(super) fn may_be_declared(name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        ["utf-", "utf", "ucs-", "ucs", "iso-10646-ucs-"].iter().any(|family| {
            name.strip_prefix(family)
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
    }
}
