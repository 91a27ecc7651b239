//! An image and its parameters out of a request, in each of the three ways of sending them.
//!
//! Parameters in the query string count for all three; a name given twice is refused, because one
//! of the two values would be ignored.

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Query, Request};
use axum::http::Uri;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::Value;

use super::body::{self, BodyLimits};
use super::json::Object;
use crate::captioner::CaptionParams;
use crate::config::HttpSettings;
use crate::error::{Error, ErrorKind, Result};

/// Room for everything in a body that is not the image: parameters, part headers, JSON.
const ENVELOPE_BYTES: usize = 64 * 1024;

/// Longest value of one parameter; the longest prompt that a model reads is far shorter.
const VALUE_BYTES: usize = 16 * 1024;

const WAYS: &str = "send the image as multipart/form-data in a part named image, as raw bytes with \
                    Content-Type image/* or application/octet-stream, or as application/json with \
                    base64 in the field image";

/// Padding may be there or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// One image and what is asked of it.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) image: Vec<u8>,
    pub(super) params: CaptionParams,
}

/// Reads the request, whichever way it was sent.
///
/// # Errors
/// The kinds that `API.md` lists for a broken envelope, a size, a time or a parameter.
pub(super) async fn upload(request: Request, settings: &HttpSettings) -> Result<Upload> {
    let (parts, body) = request.into_parts();
    let mut form = Form::default();
    form.query(&parts.uri)?;
    let image = receive(parts, body, settings, &mut form).await?;
    Ok(Upload { image, params: form.finish()? })
}

/// Reads a request that has an image and no parameters.
///
/// # Errors
/// As [`upload`]; every parameter is unknown.
pub(super) async fn image(request: Request, settings: &HttpSettings) -> Result<Vec<u8>> {
    let (parts, body) = request.into_parts();
    let mut form = Form { image_only: true, ..Form::default() };
    form.query(&parts.uri)?;
    receive(parts, body, settings, &mut form).await
}

async fn receive(
    parts: Parts,
    body: Body,
    settings: &HttpSettings,
    form: &mut Form,
) -> Result<Vec<u8>> {
    match transport(&parts)? {
        Transport::Raw => raw(&parts, body, settings).await,
        Transport::Multipart => multipart(parts, body, settings, form).await,
        Transport::Json => json(&parts, body, settings, form).await,
    }
}

enum Transport {
    Raw,
    Multipart,
    Json,
}

fn transport(parts: &Parts) -> Result<Transport> {
    let declared = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = declared.unwrap_or("").split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    match kind.as_str() {
        "multipart/form-data" => Ok(Transport::Multipart),
        "application/json" => Ok(Transport::Json),
        "application/octet-stream" => Ok(Transport::Raw),
        image if image.starts_with("image/") => Ok(Transport::Raw),
        _ => Err(Error::new(
            ErrorKind::UnsupportedFormat,
            format!("this Content-Type carries no image here; {WAYS}"),
        )),
    }
}

async fn read(parts: &Parts, body: Body, settings: &HttpSettings, bytes: usize) -> Result<Vec<u8>> {
    let limits =
        BodyLimits { bytes, image_bytes: settings.max_image_bytes, time: settings.request_timeout };
    body::read(&parts.headers, body, limits).await
}

async fn raw(parts: &Parts, body: Body, settings: &HttpSettings) -> Result<Vec<u8>> {
    read(parts, body, settings, settings.max_image_bytes).await
}

async fn multipart(
    parts: Parts,
    body: Body,
    settings: &HttpSettings,
    form: &mut Form,
) -> Result<Vec<u8>> {
    let limit = settings.max_image_bytes.saturating_add(ENVELOPE_BYTES);
    let bytes = read(&parts, body, settings, limit).await?;
    let mut request = Request::from_parts(parts, Body::from(bytes));
    // axum's own limit of 2 MB knows nothing of the settings; the bytes are within theirs.
    DefaultBodyLimit::disable().apply(&mut request);
    let mut parts = Multipart::from_request(request, &()).await.map_err(|error| {
        malformed("the Content-Type lacks the boundary; let the HTTP library write that header")
            .with_source(error)
    })?;
    let mut image = None;
    while let Some(part) = parts.next_field().await.map_err(broken_multipart)? {
        let name = part.name().unwrap_or_default().to_owned();
        let content = part.bytes().await.map_err(broken_multipart)?;
        match name.as_str() {
            "" => return Err(malformed(format!("a part has no name; {WAYS}"))),
            "image" | "file" if image.is_some() => return Err(twice("image")),
            "image" | "file" if content.len() > settings.max_image_bytes => {
                return Err(body::too_large(settings.max_image_bytes));
            }
            "image" | "file" => image = Some(Vec::from(content)),
            _ => {
                let text = std::str::from_utf8(&content).map_err(|error| {
                    Error::parameter(name.clone(), "the value is not UTF-8; send it as UTF-8 text")
                        .with_source(error)
                })?;
                form.set_text(&name, text)?;
            }
        }
    }
    image.ok_or_else(|| malformed(format!("there is no part named image; {WAYS}")))
}

async fn json(
    parts: &Parts,
    body: Body,
    settings: &HttpSettings,
    form: &mut Form,
) -> Result<Vec<u8>> {
    // Four characters for three bytes, and line breaks that some encoders put in.
    let encoded = settings.max_image_bytes.saturating_mul(3) / 2;
    let limit = encoded.saturating_add(ENVELOPE_BYTES);
    let bytes = read(parts, body, settings, limit).await?;
    let Object(fields) = serde_json::from_slice(&bytes).map_err(|error| {
        let at = format!("line {} column {}", error.line(), error.column());
        malformed(format!("the body is not a JSON object ({at}); {WAYS}")).with_source(error)
    })?;
    drop(bytes);
    let mut image = None;
    for (name, value) in fields {
        match (name.as_str(), value) {
            ("image", _) if image.is_some() => return Err(twice("image")),
            ("image", Value::String(text)) => {
                image = Some(decode_base64(text, settings.max_image_bytes)?);
            }
            ("image", _) => return Err(malformed("image must be a string of base64")),
            (_, value) => form.set(&name, &value)?,
        }
    }
    image.ok_or_else(|| malformed(format!("there is no field image; {WAYS}")))
}

/// Base64 as it is, or behind the head of a `data:` URI.
fn decode_base64(mut text: String, max_bytes: usize) -> Result<Vec<u8>> {
    if text.starts_with("http://") || text.starts_with("https://") {
        return Err(malformed("addresses are not fetched here; send the image itself as base64"));
    }
    if text.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:")) {
        let comma = text.find(',').filter(|&comma| {
            let head = &text[..comma];
            head.len() >= 7 && head.as_bytes()[head.len() - 7..].eq_ignore_ascii_case(b";base64")
        });
        let Some(comma) = comma else {
            return Err(malformed("the data: URI must read data:image/…;base64,…"));
        };
        text.drain(..=comma);
    }
    if text.bytes().any(|byte| byte.is_ascii_whitespace()) {
        text.retain(|character| !character.is_ascii_whitespace());
    }
    // Before the memory is spent; padding may round this up by two.
    if text.len() / 4 * 3 > max_bytes.saturating_add(2) {
        return Err(body::too_large(max_bytes));
    }
    let image = BASE64.decode(&text).map_err(|error| {
        malformed("image is not valid base64; encode the file's bytes with the standard alphabet")
            .with_source(error)
    })?;
    if image.len() > max_bytes { Err(body::too_large(max_bytes)) } else { Ok(image) }
}

/// Parameters as they come in, each at most once.
#[derive(Debug, Default)]
struct Form {
    params: CaptionParams,
    seen: Vec<String>,
    /// There are no parameters at this address.
    image_only: bool,
}

impl Form {
    fn query(&mut self, uri: &Uri) -> Result<()> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|error| {
            malformed("the query string cannot be read; write it as name=value&name=value")
                .with_source(error)
        })?;
        pairs.iter().try_for_each(|(name, value)| self.set_text(name, value))
    }

    fn set_text(&mut self, name: &str, text: &str) -> Result<()> {
        self.note(name, text.len())?;
        self.params.set_text(name, text)
    }

    fn set(&mut self, name: &str, value: &Value) -> Result<()> {
        self.note(name, value.as_str().map_or(0, str::len))?;
        self.params.set(name, value)
    }

    /// Refuses what is given twice or too long. Names that do not exist are refused after this, at
    /// the first of them, so the list stays short.
    fn note(&mut self, name: &str, length: usize) -> Result<()> {
        if self.image_only {
            let shown: String = name.chars().take(64).collect();
            let detail = format!("there is no parameter \"{shown}\" here; send the image alone");
            return Err(Error::parameter(shown, detail));
        }
        if self.seen.iter().any(|seen| seen == name) {
            return Err(twice(name));
        }
        if length > VALUE_BYTES && CaptionParams::NAMES.contains(&name) {
            let detail = format!("{name} must not be longer than {VALUE_BYTES} bytes; shorten it");
            return Err(Error::parameter(name.to_owned(), detail));
        }
        self.seen.push(name.to_owned());
        Ok(())
    }

    fn finish(self) -> Result<CaptionParams> {
        if self.params.stream {
            return Err(Error::parameter(
                "stream",
                "streaming is not available yet; leave stream out or send stream=false",
            ));
        }
        self.params.validate()?;
        Ok(self.params)
    }
}

fn malformed(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::MalformedRequest, detail)
}

fn broken_multipart(error: axum::extract::multipart::MultipartError) -> Error {
    malformed("the multipart body is broken or cut off; send it again, all parts and the end line")
        .with_source(error)
}

fn twice(name: &str) -> Error {
    Error::parameter(name.to_owned(), format!("{name} is given twice; send it once"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_with_and_without_head_padding_and_line_breaks() {
        for text in ["aGVsbG8=", "aGVsbG8", "aGVs\r\nbG8=", "data:image/png;base64,aGVsbG8="] {
            assert_eq!(decode_base64(text.to_owned(), 5).unwrap(), b"hello", "{text}");
        }
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        for text in ["äöü", "a", "data:image/png,hello", "data:", "https://example.org/cat.jpg"]
        {
            let error = decode_base64(text.to_owned(), 100).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::MalformedRequest, "{text}");
        }
        let error = decode_base64("aGVsbG8=".to_owned(), 4).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ImageTooLarge);
    }
}
