//! Images and their parameters out of a request, in each of the three ways of sending them.
//!
//! Parameters in the query string count for all three; a name given twice is refused, because one
//! of the two values would be ignored.

mod base64;
mod form;
mod json;
mod multipart;
mod object;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;

use self::form::Form;
use super::body::{BodyLimits, Incoming, TooLarge};
use crate::captioner::{Budget, CaptionParams, Captioner, Photo};
use crate::config::HttpSettings;
use cutline_error::{Error, ErrorKind, Result};

/// Room for everything in a body that is not an image: parameters, part headers, JSON.
const ENVELOPE_BYTES: usize = 64 * 1024;

/// One image and what is asked of it.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) photo: Photo,
    pub(super) params: CaptionParams,
}

/// Images in the order sent, and what is asked of all of them.
#[derive(Debug)]
pub(super) struct Uploads {
    pub(super) items: Vec<Item>,
    pub(super) params: CaptionParams,
}

/// One of many images. What is wrong with it is no fault of the others.
#[derive(Debug)]
pub(super) struct Item {
    /// The file's name, where the client sent one.
    pub(super) name: Option<String>,
    pub(super) photo: Result<Photo>,
}

/// Reads the request for one caption, whichever way it was sent.
///
/// # Errors
/// The kinds that the contract lists for a broken envelope, a size, a time or a parameter.
pub(super) async fn upload(
    request: Request,
    settings: &HttpSettings,
    captioner: &Captioner,
) -> Result<Upload> {
    let reader = Reader { settings, budget: captioner.budget(), count: Count::One };
    let Uploads { items, params } = reader.read(request, Form::default()).await?;
    Ok(Upload { photo: only(items)?, params })
}

/// Reads a request that has an image and no parameters.
///
/// # Errors
/// As [`upload`]; every parameter is unknown.
pub(super) async fn image(
    request: Request,
    settings: &HttpSettings,
    budget: &Budget,
) -> Result<Photo> {
    let reader = Reader { settings, budget, count: Count::One };
    only(reader.read(request, Form::image_only()).await?.items)
}

fn only(mut items: Vec<Item>) -> Result<Photo> {
    items.pop().ok_or_else(|| Error::internal("an image was lost"))?.photo
}

/// Reads the request for many captions, whichever way it was sent.
///
/// # Errors
/// As [`upload`], or [`BatchTooLarge`](ErrorKind::BatchTooLarge).
pub(super) async fn uploads(
    request: Request,
    settings: &HttpSettings,
    captioner: &Captioner,
) -> Result<Uploads> {
    // A batch takes its places in the queue at once, so more than all of them never fit.
    let limit = settings.max_images_per_request.min(captioner.status().queue_capacity);
    let reader = Reader { settings, budget: captioner.budget(), count: Count::Many(limit) };
    reader.read(request, Form::default()).await
}

/// How many images a request brings.
#[derive(Debug, Clone, Copy)]
enum Count {
    One,
    /// At most so many.
    Many(usize),
}

impl Count {
    fn most(self) -> usize {
        match self {
            Self::One => 1,
            Self::Many(limit) => limit,
        }
    }

    /// What a form part with an image may be called.
    fn is_image(self, name: &str) -> bool {
        match self {
            Self::One => matches!(name, "image" | "file"),
            Self::Many(_) => matches!(name, "images" | "image" | "files" | "file"),
        }
    }

    fn ways(self) -> &'static str {
        match self {
            Self::One => {
                "send the image as multipart/form-data in a part named image, as raw bytes with \
                 Content-Type image/* or application/octet-stream, or as application/json with \
                 base64 in the field image"
            }
            Self::Many(_) => {
                "send the images as multipart/form-data in parts named images, or as \
                 application/json with an array of base64 in the field images; a single one may \
                 also be sent as raw bytes with Content-Type image/* or application/octet-stream"
            }
        }
    }
}

/// What is known before a request is read.
#[derive(Debug, Clone, Copy)]
struct Reader<'a> {
    settings: &'a HttpSettings,
    budget: &'a Budget,
    count: Count,
}

impl Reader<'_> {
    async fn read(self, request: Request, mut form: Form) -> Result<Uploads> {
        let (parts, body) = request.into_parts();
        form.query(&parts.uri)?;
        let mut images = Images { reader: self, items: Vec::new() };
        match self.transport(&parts)? {
            Transport::Raw => {
                let incoming = self.incoming(&parts, body, Transport::Raw)?;
                let claim = incoming.claim();
                let bytes = incoming.collect().await?;
                images.add(None, Ok(claim.photo(bytes)))?;
            }
            Transport::Multipart => multipart::read(parts, body, &mut images, &mut form).await?,
            Transport::Json => json::read(&parts, body, &mut images, &mut form).await?,
        }
        Ok(Uploads { params: form.finish()?, items: images.finish()? })
    }

    fn transport(&self, parts: &Parts) -> Result<Transport> {
        let declared = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let kind = declared.unwrap_or("").split(';').next().unwrap_or("").trim();
        match kind.to_ascii_lowercase().as_str() {
            "multipart/form-data" => Ok(Transport::Multipart),
            "application/json" => Ok(Transport::Json),
            "application/octet-stream" => Ok(Transport::Raw),
            image if image.starts_with("image/") => Ok(Transport::Raw),
            _ => Err(Error::new(
                ErrorKind::UnsupportedFormat,
                format!("this Content-Type carries no image here; {}", self.count.ways()),
            )),
        }
    }

    fn incoming(&self, parts: &Parts, body: Body, transport: Transport) -> Result<Incoming> {
        let image = self.settings.max_image_bytes;
        let count = self.count.most();
        let (bytes, copies) = match transport {
            Transport::Raw => (image, 1),
            Transport::Multipart => (image.saturating_mul(count).saturating_add(ENVELOPE_BYTES), 1),
            // Four characters for three bytes, and line breaks that some encoders put in. The text
            // is in memory until the last image is out of it.
            Transport::Json => {
                let encoded = image.saturating_mul(count).saturating_mul(3) / 2;
                (encoded.saturating_add(ENVELOPE_BYTES), 2)
            }
        };
        // What is larger than all the memory there is could never be read.
        let memory = usize::try_from(self.budget.capacity() / copies).unwrap_or(usize::MAX);
        let bytes = bytes.min(memory);
        let too_large = if count == 1 || matches!(transport, Transport::Raw) {
            TooLarge::Image(image)
        } else {
            TooLarge::Batch(bytes)
        };
        let time = self.settings.request_timeout;
        let limits = BodyLimits { bytes, copies, time, too_large };
        Incoming::new(&parts.headers, body, limits, self.budget)
    }
}

#[derive(Debug, Clone, Copy)]
enum Transport {
    Raw,
    Multipart,
    Json,
}

/// The images of a request as they come in.
#[derive(Debug)]
struct Images<'a> {
    reader: Reader<'a>,
    items: Vec<Item>,
}

impl Images<'_> {
    /// Adds the next image, or what is wrong with it.
    ///
    /// # Errors
    /// There are too many; or the image is bad and there are no others that it could spoil.
    fn add(&mut self, name: Option<String>, photo: Result<Photo>) -> Result<()> {
        match self.reader.count {
            Count::One if !self.items.is_empty() => return Err(twice("image")),
            Count::One => self.items.push(Item { name, photo: Ok(photo?) }),
            Count::Many(limit) if self.items.len() == limit => return Err(too_many(limit)),
            Count::Many(_) => self.items.push(Item { name, photo }),
        }
        Ok(())
    }

    fn finish(self) -> Result<Vec<Item>> {
        let count = self.reader.count;
        let missing = match count {
            Count::One => "there is no image",
            Count::Many(_) => "there are no images",
        };
        if self.items.is_empty() {
            return Err(malformed(format!("{missing}; {}", count.ways())));
        }
        Ok(self.items)
    }
}

fn too_many(limit: usize) -> Error {
    Error::new(
        ErrorKind::BatchTooLarge,
        format!("there are more than the {limit} images that one batch may have; send several"),
    )
}

fn malformed(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::MalformedRequest, detail)
}

fn twice(name: &str) -> Error {
    Error::parameter(name.to_owned(), format!("{name} is given twice; send it once"))
}

fn image_too_large(settings: &HttpSettings) -> Error {
    TooLarge::Image(settings.max_image_bytes).error()
}
