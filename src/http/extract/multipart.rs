//! `multipart/form-data`, read as it arrives. A part that is too large is read to its end, but not
//! stored, so that the other images of a batch survive it.

use std::error::Error as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::request::Parts;
use futures_core::Stream;
use multer::{Field, Multipart};

use super::head::HeaderParameters;
use super::names::Place;
use super::{Form, Images, Transport, encoded, malformed};
use crate::captioner::{ParameterFields, append, shortened, too_long};
use crate::http::body::{BodyPermit, LimitedBody, TooLarge};
use cutline_error::{Error, Result};

/// Limit on what precedes the content of a part: its headers, and text before the first part.
const MAX_HEAD_BYTES: usize = 32 * 1024;

/// How many bytes are searched for the end of the headers at a time.
const HEAD_PIECE_BYTES: usize = 4 * 1024;

pub(super) async fn read(
    parts: &Parts,
    body: Body,
    images: &mut Images<'_>,
    form: &mut Form,
) -> Result<()> {
    let reader = images.reader;
    let max_image_bytes = reader.settings.max_image_bytes;
    let boundary = boundary(&parts.headers)?;
    let body = reader.limited(parts, body, Transport::Multipart)?;
    let permit = body.permit();
    let (body, head_allowance) = PartSource::new(body);
    let mut parts = Multipart::new(body, boundary);
    loop {
        head_allowance.store(MAX_HEAD_BYTES, Ordering::Relaxed);
        let Some(part) = parts.next_field().await.map_err(broken)? else { return Ok(()) };
        head_allowance.store(usize::MAX, Ordering::Relaxed);
        let head = Head::of(part.headers());
        let Some(name) = head.name.filter(|name| !name.is_empty()) else {
            return Err(malformed(format!("a part has no name; {}", reader.count.instructions())));
        };
        if reader.count.is_image(&name) {
            let photo = match content(part, max_image_bytes).await? {
                Some(bytes) => head.transfer.decode(bytes, max_image_bytes, &permit),
                None => Err(TooLarge::Image(max_image_bytes).error()),
            };
            images.add(head.file, photo.map(|bytes| permit.photo(bytes)))?;
        } else if reader.count.is_url(&name) {
            let most = ParameterFields::MAX_BYTES;
            images.add_url_text(text(part, &name, &head.transfer, &permit, most).await?)?;
        } else {
            // Before the content, which may be an image under a wrong name.
            form.expect(&name, Place::Body)?;
            let most = form.params.limit(&name);
            let text = text(part, &name, &head.transfer, &permit, most).await?;
            form.add_text(&name, &text, Place::Body)?;
        }
    }
}

/// The boundary between the parts. An empty one would be found in the middle of images.
fn boundary(headers: &HeaderMap) -> Result<String> {
    let declared = headers.get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    let parameters = HeaderParameters::parse(declared);
    let boundary = parameters.get("boundary").ok_or_else(|| {
        malformed("the Content-Type lacks the boundary; let the HTTP library write that header")
    })?;
    let text = std::str::from_utf8(boundary).ok().filter(|text| (1..=70).contains(&text.len()));
    text.map(str::to_owned).ok_or_else(|| {
        malformed(
            "the boundary in the Content-Type must have 1 to 70 characters; let the HTTP library \
             write that header",
        )
    })
}

/// What the headers of a part say.
struct Head {
    name: Option<String>,
    /// The file's name.
    file: Option<String>,
    transfer: Transfer,
}

impl Head {
    fn of(headers: &HeaderMap) -> Self {
        let disposition =
            headers.get(CONTENT_DISPOSITION).map_or(&b""[..], |value| value.as_bytes());
        let parameters = HeaderParameters::parse(disposition);
        Self {
            name: parameters.text("name"),
            file: parameters.text("filename"),
            transfer: Transfer::of(headers),
        }
    }
}

/// How the content of a part is encoded. HTTP needs no such encoding, and RFC 7578 deprecates it, but
/// libraries for mail use it.
enum Transfer {
    Plain,
    Base64,
    Unknown(String),
}

impl Transfer {
    fn of(headers: &HeaderMap) -> Self {
        let Some(value) = headers.get("content-transfer-encoding") else { return Self::Plain };
        let value = String::from_utf8_lossy(value.as_bytes()).trim().to_ascii_lowercase();
        match value.as_str() {
            "" | "7bit" | "8bit" | "binary" => Self::Plain,
            "base64" => Self::Base64,
            other => Self::Unknown(shortened(other)),
        }
    }

    fn decode(&self, content: Vec<u8>, max_bytes: usize, permit: &BodyPermit) -> Result<Vec<u8>> {
        match self {
            Self::Plain => Ok(content),
            Self::Base64 => {
                // Text and image are in memory together.
                let _copy = permit.copy(content.len())?;
                encoded::base64(&content, false, max_bytes)
            }
            Self::Unknown(name) => Err(malformed(format!(
                "the Content-Transfer-Encoding \"{name}\" of a part is not supported; send its \
                 bytes as they are, without that header"
            ))),
        }
    }
}

/// The body for multer, which searches all that it has buffered for the end of a part's headers, and
/// again whenever more arrives. Without a limit, headers that never end would take memory and time.
struct PartSource {
    body: LimitedBody,
    /// How many bytes may still arrive before the content of the next part.
    head_allowance: Arc<AtomicUsize>,
    /// Received and not passed on yet.
    rest: Bytes,
    /// Whether the last call returned bytes. The next one returns none, because multer parses only
    /// when it cannot get more.
    passed: bool,
}

impl PartSource {
    /// The source, and the allowance to set before each part and its content.
    fn new(body: LimitedBody) -> (Self, Arc<AtomicUsize>) {
        let head_allowance = Arc::new(AtomicUsize::new(MAX_HEAD_BYTES));
        let allowance = Arc::clone(&head_allowance);
        (Self { body, head_allowance, rest: Bytes::new(), passed: false }, allowance)
    }
}

impl Stream for PartSource {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        if std::mem::take(&mut self.passed) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_next(cx)) {
                Some(Ok(chunk)) => self.rest = chunk,
                other => return Poll::Ready(other),
            }
        }
        let allowance = self.head_allowance.load(Ordering::Relaxed);
        if allowance == 0 {
            return Poll::Ready(Some(Err(malformed(format!(
                "the headers of a part are longer than {MAX_HEAD_BYTES} bytes, or the boundary is \
                 not the one in the Content-Type; send shorter headers and that boundary"
            )))));
        }
        let is_content = allowance > MAX_HEAD_BYTES;
        let length =
            if is_content { self.rest.len() } else { self.rest.len().min(HEAD_PIECE_BYTES) };
        let piece = self.rest.split_to(length);
        if !is_content {
            self.head_allowance.store(allowance.saturating_sub(length), Ordering::Relaxed);
        }
        self.passed = true;
        Poll::Ready(Some(Ok(piece)))
    }
}

/// The content of a part that is a parameter.
async fn text(
    part: Field<'_>,
    name: &str,
    transfer: &Transfer,
    permit: &BodyPermit,
    most: usize,
) -> Result<String> {
    let content = content(part, most).await?;
    let content = content.ok_or_else(|| too_long(name, most))?;
    let content = transfer.decode(content, most, permit)?;
    String::from_utf8(content).map_err(|error| {
        Error::parameter(name.to_owned(), "the value is not UTF-8; send it as UTF-8 text")
            .with_source(error)
    })
}

/// The content of the part; `None` for more than `limit` bytes, which are read and dropped.
async fn content(mut part: Field<'_>, limit: usize) -> Result<Option<Vec<u8>>> {
    let mut content = Some(Vec::new());
    while let Some(chunk) = part.chunk().await.map_err(broken)? {
        content = content.filter(|bytes| bytes.len() + chunk.len() <= limit);
        if let Some(bytes) = &mut content {
            append(bytes, &chunk)?;
        }
    }
    if let Some(bytes) = &mut content {
        bytes.shrink_to_fit();
    }
    Ok(content)
}

/// The error of the body itself if there is one, otherwise an error in the multipart format.
fn broken(error: multer::Error) -> Error {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<Error>() {
            return error.clone();
        }
        cause = error.source();
    }
    malformed(
        "the multipart body is broken or cut off; send it again, with all parts and the end line",
    )
    .with_source(error)
}
