//! `Content-Encoding` of requests.
//!
//! gzip and deflate are decoded, because some HTTP clients and gateways compress every body, and
//! flate2 is needed for PNG anyway. Photos hardly shrink any further, so decoders for br and zstd
//! would not be worth their size: other codings are refused.

use std::fmt;
use std::io::{self, BufRead, Read};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{BodyDataStream, Bytes};
use axum::http::header::CONTENT_ENCODING;
use axum::http::{HeaderMap, HeaderValue};
use flate2::bufread::{MultiGzDecoder, ZlibDecoder};
use futures_core::Stream;

use super::body::{TooLarge, broke_off};
use crate::captioner::shortened;
use cutline_error::{Error, ErrorKind, Result};

/// The value of `Accept-Encoding` in the refusal of other codings.
pub(super) const ACCEPTED: HeaderValue = HeaderValue::from_static("gzip, deflate");

/// How many decoded bytes are returned at a time. A small piece of a body can become a large one, so
/// the limits are checked in between.
const PIECE_BYTES: usize = 16 * 1024;

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    /// The zlib format.
    Deflate,
}

/// The source of the error for any other coding.
#[derive(Debug)]
pub(super) struct UnsupportedCoding;

impl fmt::Display for UnsupportedCoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the content coding is not supported")
    }
}

impl std::error::Error for UnsupportedCoding {}

impl Coding {
    /// The coding of a body with these headers; `None` if it is sent as it is.
    ///
    /// # Errors
    /// [`UnsupportedFormat`](ErrorKind::UnsupportedFormat), caused by [`UnsupportedCoding`]: an
    /// unknown coding, or several on top of each other.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>> {
        let lists = headers.get_all(CONTENT_ENCODING).iter();
        let names = lists.flat_map(|list| list.as_bytes().split(|byte| *byte == b','));
        let names: Vec<&[u8]> = names
            .map(<[u8]>::trim_ascii)
            .filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"identity"))
            .collect();
        let is = |name: &str| names[0].eq_ignore_ascii_case(name.as_bytes());
        match names.len() {
            0 => Ok(None),
            1 if is("gzip") || is("x-gzip") => Ok(Some(Self::Gzip)),
            1 if is("deflate") => Ok(Some(Self::Deflate)),
            _ => Err(unsupported(&names.join(&b", "[..]))),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }
}

fn unsupported(names: &[u8]) -> Error {
    let names = shortened(&String::from_utf8_lossy(names));
    let detail = format!(
        "the Content-Encoding \"{names}\" is not supported; send the body as it is, or compressed \
         once with gzip or deflate"
    );
    Error::new(ErrorKind::UnsupportedFormat, detail).with_source(UnsupportedCoding)
}

/// A compressed body as it is decoded.
pub(super) struct DecodedBody {
    body: BodyDataStream,
    coding: Coding,
    decoder: Decoder,
    scratch: Box<[u8; PIECE_BYTES]>,
    /// Compressed bytes that may still arrive.
    allowance: usize,
    too_large: TooLarge,
}

impl DecodedBody {
    /// Decodes at most `allowance` compressed bytes. The caller limits the decoded ones.
    pub(super) fn new(
        body: BodyDataStream,
        coding: Coding,
        allowance: usize,
        too_large: TooLarge,
    ) -> Self {
        let decoder = match coding {
            Coding::Gzip => Decoder::Gzip(MultiGzDecoder::new(Input::default())),
            Coding::Deflate => Decoder::Deflate(ZlibDecoder::new(Input::default())),
        };
        Self { body, coding, decoder, scratch: Box::new([0; PIECE_BYTES]), allowance, too_large }
    }

    /// The next decoded bytes; 0 at the end; [`WouldBlock`](io::ErrorKind::WouldBlock) if more of
    /// the body must arrive first.
    fn decode(&mut self) -> io::Result<usize> {
        let length = match &mut self.decoder {
            Decoder::Gzip(decoder) => decoder.read(&mut self.scratch[..])?,
            Decoder::Deflate(decoder) => decoder.read(&mut self.scratch[..])?,
        };
        let input = self.decoder.input();
        match length {
            0 if !input.chunk.is_empty() => Err(io::ErrorKind::InvalidData.into()),
            0 if !input.ended => Err(io::ErrorKind::WouldBlock.into()),
            length => Ok(length),
        }
    }

    fn receive(&mut self, chunk: Option<Bytes>) -> Result<()> {
        let length = chunk.as_ref().map_or(0, Bytes::len);
        self.allowance =
            self.allowance.checked_sub(length).ok_or_else(|| self.too_large.error())?;
        let input = self.decoder.input();
        input.ended = chunk.is_none();
        input.chunk = chunk.unwrap_or_default();
        Ok(())
    }
}

impl Stream for DecodedBody {
    /// [`MalformedRequest`](ErrorKind::MalformedRequest) if the body breaks off or is not compressed
    /// as announced, or the error of [`TooLarge`] for too many compressed bytes.
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        loop {
            match self.decode() {
                Ok(0) => return Poll::Ready(None),
                Ok(length) => {
                    let piece = Bytes::copy_from_slice(&self.scratch[..length]);
                    return Poll::Ready(Some(Ok(piece)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Some(Err(corrupt(self.coding, error)))),
            }
            let chunk = ready!(Pin::new(&mut self.body).poll_next(cx)).transpose();
            if let Err(error) = chunk.map_err(broke_off).and_then(|chunk| self.receive(chunk)) {
                return Poll::Ready(Some(Err(error)));
            }
        }
    }
}

fn corrupt(coding: Coding, error: io::Error) -> Error {
    let name = coding.name();
    Error::new(
        ErrorKind::MalformedRequest,
        format!(
            "the body is not valid {name}, as its Content-Encoding says; compress the whole body \
             once, or leave that header out"
        ),
    )
    .with_source(error)
}

enum Decoder {
    Gzip(MultiGzDecoder<Input>),
    Deflate(ZlibDecoder<Input>),
}

impl Decoder {
    fn input(&mut self) -> &mut Input {
        match self {
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Deflate(decoder) => decoder.get_mut(),
        }
    }
}

/// The compressed bytes that have arrived and are not decoded yet.
#[derive(Debug, Default)]
struct Input {
    chunk: Bytes,
    ended: bool,
}

impl BufRead for Input {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.chunk.is_empty() && !self.ended {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, length: usize) {
        drop(self.chunk.split_to(length));
    }
}

impl Read for Input {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(into)?;
        self.consume(length);
        Ok(length)
    }
}
