//! The framing of gRPC, and the fields of a protobuf message.
//!
//! Requests are read without copying and without an allocation: a message of a few megabytes could
//! declare millions of empty fields, and a decoder that stores all of them would take a hundred times
//! its size.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use http_body_util::{BodyExt as _, Full};
use prost::Message;

use cutline_error::{Error, ErrorKind, Result};

pub(super) const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
pub(super) const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// The flag of compression, and the length of the message.
const HEAD: usize = 5;

/// The message in the body of a unary call.
///
/// # Errors
/// [`MalformedRequest`](ErrorKind::MalformedRequest): it is compressed, or the body is not one message.
pub(super) fn message(body: &[u8]) -> Result<&[u8]> {
    let Some((&[flag, a, b, c, d], message)) = body.split_first_chunk::<HEAD>() else {
        return Err(malformed("the call has no message; send one"));
    };
    if flag != 0 {
        return Err(malformed("the message is compressed; send it as it is"));
    }
    if usize::try_from(u32::from_be_bytes([a, b, c, d])).ok() != Some(message.len()) {
        return Err(malformed("the call has not one whole message; send one"));
    }
    Ok(message)
}

/// The response to a unary call.
pub(super) fn respond(message: &impl Message) -> Response {
    let length = message.encoded_len();
    let mut bytes = Vec::with_capacity(HEAD + length);
    bytes.push(0);
    // Answers have a few hundred bytes.
    bytes.extend_from_slice(&(length as u32).to_be_bytes());
    // A vector has room for any message.
    let _ = message.encode(&mut bytes);
    let ok = HeaderMap::from_iter([(STATUS, HeaderValue::from_static("0"))]);
    let body = Full::new(Bytes::from(bytes)).with_trailers(async { Some(Ok::<_, Infallible>(ok)) });
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

/// The value of a field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Field<'a> {
    /// A number or a boolean.
    Varint(u64),
    /// A number of eight bytes.
    Fixed(u64),
    /// A text, bytes, a message, or packed numbers.
    Bytes(&'a [u8]),
    /// A number of four bytes, which no message here has.
    Other,
}

impl<'a> Field<'a> {
    /// # Errors
    /// [`MalformedRequest`](ErrorKind::MalformedRequest): it is something else.
    pub(super) fn bytes(self) -> Result<&'a [u8]> {
        if let Self::Bytes(bytes) = self { Ok(bytes) } else { Err(broken()) }
    }

    /// # Errors
    /// [`MalformedRequest`](ErrorKind::MalformedRequest): it is something else.
    pub(super) fn text(self) -> Result<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|error| broken().with_source(error))
    }

    /// # Errors
    /// [`MalformedRequest`](ErrorKind::MalformedRequest): it is something else.
    pub(super) fn varint(self) -> Result<u64> {
        if let Self::Varint(number) = self { Ok(number) } else { Err(broken()) }
    }
}

/// The fields of a message with their numbers, in order.
#[derive(Debug, Clone)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let length = self.0.iter().take(10).position(|byte| *byte < 0x80)? + 1;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        // Bits beyond the sixty-fourth are dropped, as everywhere.
        let bits = |(at, byte): (usize, &u8)| u64::from(byte & 0x7F) << (7 * at);
        Some(bytes.iter().enumerate().map(bits).fold(0, |all, bits| all | bits))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Varint(self.varint()?),
            1 => Field::Fixed(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Field::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Field::Other)?,
            _ => return None,
        };
        Some((key >> 3, field))
    }

    /// The numbers of a packed field.
    ///
    /// # Errors
    /// [`MalformedRequest`](ErrorKind::MalformedRequest): they break off, or are more than `most`.
    pub(super) fn packed(bytes: &[u8], most: usize) -> Result<Vec<i64>> {
        let mut numbers = Vec::new();
        let mut rest = Fields(bytes);
        while !rest.0.is_empty() {
            if numbers.len() == most {
                return Err(too_many());
            }
            numbers.push(rest.varint().ok_or_else(broken)?.cast_signed());
        }
        Ok(numbers)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(broken))
    }
}

pub(super) fn broken() -> Error {
    malformed("the message is not of the type that this method takes; send that")
}

pub(super) fn too_many() -> Error {
    malformed(
        "the message has more tensors, dimensions or parameters than the model could; send fewer",
    )
}

fn malformed(detail: &'static str) -> Error {
    Error::new(ErrorKind::MalformedRequest, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_one_message() {
        assert_eq!(message(b"\0\0\0\0\x02ab").unwrap(), b"ab");
        assert_eq!(message(b"\0\0\0\0\0").unwrap(), b"");
        for body in [
            &b""[..],
            b"\0\0\0\0",
            b"\x01\0\0\0\x02ab",
            b"\0\0\0\0\x03ab",
            b"\0\0\0\0\x01ab",
            b"\0\xFF\xFF\xFF\xFFab",
        ] {
            assert_eq!(message(body).unwrap_err().kind(), ErrorKind::MalformedRequest, "{body:?}");
        }
    }

    #[test]
    fn fields_have_numbers_and_values() {
        let bytes = b"\x08\x96\x01\x12\x02hi\x19\0\0\0\0\0\0\xE0\x3F\x25\0\0\0\0\x92\x03\0";
        let fields: Vec<_> = Fields(bytes).map(Result::unwrap).collect();
        let expected = [
            (1, Field::Varint(150)),
            (2, Field::Bytes(b"hi")),
            (3, Field::Fixed(0.5_f64.to_bits())),
            (4, Field::Other),
            (50, Field::Bytes(b"")),
        ];
        assert_eq!(fields, expected);
        let most = [0xFF; 9].into_iter().chain([1]).collect::<Vec<u8>>();
        assert_eq!(Fields::packed(&most, 1).unwrap(), [-1]);
        assert!(Fields::packed(b"\x01\x01", 1).is_err());
    }

    #[test]
    fn broken_messages_end() {
        for bytes in [
            &b"\x08"[..],
            b"\x80",
            b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01",
            b"\x12\x05hi",
            b"\x12\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01",
            b"\x19\0",
            b"\x25\0",
            b"\x0B\x0C",
        ] {
            let fields: Vec<_> = Fields(bytes).collect();
            assert!(fields.len() == 1 && fields[0].is_err(), "{bytes:?}");
        }
    }
}
