//! Images and their parameters out of a request, in each of the three ways of sending them. An address
//! may stand for an image; it is fetched when everything else in the request is known to be valid.
//!
//! Parameters in the query string apply to all three. A name that is given twice is refused, because
//! one of the two values would be ignored.

pub(super) mod encoded;
mod fields;
#[cfg(fuzzing)]
pub mod fuzzing;
mod head;
mod json;
mod message;
mod multipart;
mod names;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri};
use percent_encoding::percent_decode;
use serde_json::Value;

use self::fields::{FormFields, Given};
pub(super) use self::message::{
    BadMessage, CaptionCommand, Command, CommandImage, command, head_length, id_in, message_limits,
    no_head, within,
};
use self::names::{ImageCount, Place};
use super::body::{BodyLimits, LimitedBody};
use super::state::AppState;
use crate::captioner::{
    Budget, CaptionParams, Captioner, ParameterFields, Photo, TagFields, TagRequest, TextFields,
    TextUse, given_twice,
};
use crate::config::HttpSettings;
use crate::fetch::{Fetcher, MAX_URL_BYTES, URL_FIELD};
use cutline_error::{Error, ErrorKind, Result};

/// Allowance for everything in a body that is not an image: parameters, part headers, JSON.
const ENVELOPE_BYTES: usize = 64 * 1024;

/// One image and its parameters.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) photo: Photo,
    pub(super) params: CaptionParams,
}

/// One image, and how it is to be tagged.
#[derive(Debug)]
pub(super) struct TagUpload {
    pub(super) photo: Photo,
    pub(super) asked: TagRequest,
}

/// Images in the order sent, and the parameters of all of them.
#[derive(Debug)]
pub(super) struct Uploads {
    pub(super) items: Vec<UploadedImage>,
    pub(super) params: CaptionParams,
}

/// One of many images. An error in one does not affect the others.
#[derive(Debug)]
pub(super) struct UploadedImage {
    /// The file's name, if the client sent one.
    pub(super) name: Option<String>,
    pub(super) photo: Result<Photo>,
}

/// Reads the request for one caption.
///
/// # Errors
/// The kinds that the contract lists for a malformed body, a size, a time or a parameter.
pub(super) async fn upload(
    request: Request,
    state: &AppState,
    captioner: &Captioner,
) -> Result<Upload> {
    let settings = state.settings();
    let reader =
        Reader { settings, budget: captioner.budget(), count: ImageCount::One, optional: false };
    let params = Some(ParameterFields::default());
    let Uploads { items, params } = reader.read(request, params, state.fetcher()).await?;
    Ok(Upload { photo: only(items)?, params })
}

/// Reads the request for tags.
///
/// # Errors
/// As [`upload`].
pub(super) async fn tag_upload(
    request: Request,
    state: &AppState,
    captioner: &Captioner,
) -> Result<TagUpload> {
    let settings = state.settings();
    let reader =
        Reader { settings, budget: captioner.budget(), count: ImageCount::One, optional: false };
    let fields = FormFields::Tags(Box::<TagFields>::default());
    let (items, given) = reader.read_fields(request, fields, state.fetcher()).await?;
    Ok(TagUpload { photo: only(items)?, asked: given.tags()? })
}

/// Reads the request for scores, embeddings or answers: the image, and the parameters, of which some are
/// checked by their `finish`. Only a request for embeddings may come without an image.
///
/// # Errors
/// As [`upload`].
pub(super) async fn text_upload(
    request: Request,
    state: &AppState,
    captioner: &Captioner,
    of: TextUse,
) -> Result<(Option<Photo>, TextFields)> {
    let (settings, optional) = (state.settings(), of == TextUse::Embed);
    let reader = Reader { settings, budget: captioner.budget(), count: ImageCount::One, optional };
    let fields = FormFields::Texts(Box::new(TextFields::new(of)));
    let (items, given) = reader.read_fields(request, fields, state.fetcher()).await?;
    let fields = given.texts()?;
    if optional && items.is_empty() {
        return Ok((None, fields));
    }
    Ok((Some(only(items)?), fields))
}

/// Reads a request that has an image and no parameters.
///
/// # Errors
/// As [`upload`]; every parameter is refused as unknown.
pub(super) async fn image(request: Request, state: &AppState, budget: &Budget) -> Result<Photo> {
    let reader =
        Reader { settings: state.settings(), budget, count: ImageCount::One, optional: false };
    only(reader.read(request, None, state.fetcher()).await?.items)
}

fn only(mut items: Vec<UploadedImage>) -> Result<Photo> {
    items.pop().ok_or_else(|| Error::internal("an image was lost"))?.photo
}

/// Reads the request for many captions.
///
/// # Errors
/// As [`upload`], or [`BatchTooLarge`](ErrorKind::BatchTooLarge).
pub(super) async fn uploads(
    request: Request,
    state: &AppState,
    captioner: &Captioner,
) -> Result<Uploads> {
    // A batch takes all its queue slots at once, so it can never be larger than the queue.
    let settings = state.settings();
    let limit = settings.max_images_per_request.min(captioner.status().queue_capacity);
    let reader = Reader {
        settings,
        budget: captioner.budget(),
        count: ImageCount::Many(limit),
        optional: false,
    };
    reader.read(request, Some(ParameterFields::default()), state.fetcher()).await
}

/// The limits of a request that is about to be read.
#[derive(Debug, Clone, Copy)]
struct Reader<'a> {
    settings: &'a HttpSettings,
    budget: &'a Budget,
    count: ImageCount,
    /// Whether a request may have no image.
    optional: bool,
}

impl Reader<'_> {
    async fn read(
        self,
        request: Request,
        params: Option<ParameterFields>,
        fetcher: &Fetcher,
    ) -> Result<Uploads> {
        let (items, given) = self.read_fields(request, params.into(), fetcher).await?;
        Ok(Uploads { items, params: given.caption()? })
    }

    async fn read_fields(
        self,
        request: Request,
        params: FormFields,
        fetcher: &Fetcher,
    ) -> Result<(Vec<UploadedImage>, Given)> {
        let (parts, body) = request.into_parts();
        let mut form = Form { params, count: self.count };
        let mut images = Images { reader: self, items: Vec::new() };
        form.query(&parts.uri, &mut images)?;
        if (self.optional || !images.items.is_empty()) && body.is_end_stream() {
            // The address says it all.
            return self.arrived(form, images, fetcher).await;
        }
        match self.transport(&parts.headers)? {
            Transport::Raw => {
                let body = self.limited(&parts, body, Transport::Raw)?;
                let permit = body.permit();
                let bytes = body.collect().await?;
                images.add(None, Ok(permit.photo(bytes)))?;
            }
            Transport::Multipart => multipart::read(&parts, body, &mut images, &mut form).await?,
            Transport::Json => json::read(&parts, body, &mut images, &mut form).await?,
        }
        self.arrived(form, images, fetcher).await
    }

    /// Checks what was sent, then fetches the images of which only the address was sent.
    async fn arrived(
        self,
        form: Form,
        images: Images<'_>,
        fetcher: &Fetcher,
    ) -> Result<(Vec<UploadedImage>, Given)> {
        let (given, items) = (form.finish()?, images.finish()?);
        let urls: Vec<String> = items.iter().filter_map(|item| item.url().cloned()).collect();
        let mut fetched = fetcher.fetch_all(urls, self.budget).await.into_iter();
        let items = items.into_iter().map(|SentImage { name, source }| {
            let photo = match source {
                ImageSource::Here(photo) => photo,
                ImageSource::At(_) => fetched
                    .next()
                    .unwrap_or_else(|| Err(Error::internal("an image was not fetched"))),
            };
            UploadedImage { name, photo }
        });
        Ok((items.collect(), given))
    }

    fn transport(&self, headers: &HeaderMap) -> Result<Transport> {
        let mut declared = headers.get_all(CONTENT_TYPE).iter();
        let first = declared.next();
        if declared.any(|other| Some(other) != first) {
            return Err(malformed(
                "there are two different Content-Type headers; send the one that fits the body",
            ));
        }
        let first = first.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kind = first.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match kind.as_str() {
            "multipart/form-data" => Ok(Transport::Multipart),
            "application/json" => Ok(Transport::Json),
            "application/octet-stream" => Ok(Transport::Raw),
            image if image.starts_with("image/") => Ok(Transport::Raw),
            _ => Err(Error::new(
                ErrorKind::UnsupportedFormat,
                format!("this Content-Type is not supported; {}", self.count.instructions()),
            )),
        }
    }

    fn limited(&self, parts: &Parts, body: Body, transport: Transport) -> Result<LimitedBody> {
        LimitedBody::new(&parts.headers, body, self.limits(transport), self.budget)
    }

    fn limits(&self, transport: Transport) -> BodyLimits {
        let Self { settings, budget, .. } = *self;
        let (image, count) = (settings.max_image_bytes, self.count.most());
        match transport {
            Transport::Raw => BodyLimits::of(image, 1, 1, settings, budget),
            Transport::Multipart => {
                let bytes = image.saturating_mul(count).saturating_add(ENVELOPE_BYTES);
                BodyLimits::of(bytes, 1, count, settings, budget)
            }
            Transport::Json => BodyLimits::of_json(count, ENVELOPE_BYTES, settings, budget),
        }
    }
}

/// The parameters of a request.
#[derive(Debug)]
struct Form {
    params: FormFields,
    count: ImageCount,
}

impl Form {
    fn query(&mut self, uri: &Uri, images: &mut Images<'_>) -> Result<()> {
        let query = uri.query().unwrap_or_default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = query_text(name).unwrap_or_else(|_| pair.to_owned());
            let is_url = self.count.is_url(&name);
            if !is_url {
                self.expect(&name, Place::Query)?;
            }
            let value = query_text(value).map_err(|error| {
                let detail = "the value is not UTF-8; percent-encode the bytes of UTF-8 text";
                Error::parameter(name.clone(), detail).with_source(error)
            })?;
            if is_url {
                images.add_url_text(value)?;
            } else {
                self.add_text(&name, &value, Place::Query)?;
            }
        }
        Ok(())
    }

    /// Checks that a parameter of this name may follow.
    fn expect(&self, name: &str, place: Place) -> Result<()> {
        let known = self.params.expect(name);
        known.unwrap_or_else(|| Err(self.count.unknown(name, place, &self.params)))
    }

    fn add_text(&mut self, name: &str, text: &str, place: Place) -> Result<()> {
        self.expect(name, place)?;
        self.params.add_text(name, text)
    }

    fn add(&mut self, name: &str, value: Value) -> Result<()> {
        self.expect(name, Place::Body)?;
        self.params.add(name, value)
    }

    /// Adds a parameter whose value is an object or a list, if it is one that may be.
    fn add_nested(&mut self, name: &str, json: &str) -> Option<Result<()>> {
        self.params.add_nested(name, json)
    }

    fn finish(self) -> Result<Given> {
        self.params.finish()
    }
}

/// Decodes a name or a value of a query string.
fn query_text(encoded: &str) -> Result<String, std::str::Utf8Error> {
    let blanks = encoded.replace('+', " ");
    percent_decode(blanks.as_bytes()).decode_utf8().map(|text| text.into_owned())
}

#[derive(Debug, Clone, Copy)]
enum Transport {
    Raw,
    Multipart,
    Json,
}

/// The images of a request as they arrive.
#[derive(Debug)]
struct Images<'a> {
    reader: Reader<'a>,
    items: Vec<SentImage>,
}

#[derive(Debug)]
struct SentImage {
    name: Option<String>,
    source: ImageSource,
}

#[derive(Debug)]
enum ImageSource {
    /// The bytes were sent, or are wrong.
    Here(Result<Photo>),
    /// The address was sent.
    At(String),
}

impl SentImage {
    fn url(&self) -> Option<&String> {
        match &self.source {
            ImageSource::Here(_) => None,
            ImageSource::At(url) => Some(url),
        }
    }
}

impl Images<'_> {
    /// Adds the next image or its error.
    ///
    /// # Errors
    /// There are too many images, or the only image has an error.
    fn add(&mut self, name: Option<String>, photo: Result<Photo>) -> Result<()> {
        self.expect(self.reader.count.field())?;
        let photo = match self.reader.count {
            ImageCount::One => Ok(photo?),
            ImageCount::Many(_) => photo,
        };
        self.items.push(SentImage { name, source: ImageSource::Here(photo) });
        Ok(())
    }

    /// Adds the address of the next image.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    fn add_url(&mut self, url: String) -> Result<()> {
        self.expect(URL_FIELD)?;
        if url.len() > MAX_URL_BYTES {
            let detail =
                format!("{URL_FIELD} must not be longer than {MAX_URL_BYTES} bytes; shorten it");
            return self.add(None, Err(Error::parameter(URL_FIELD, detail)));
        }
        self.items.push(SentImage { name: None, source: ImageSource::At(url) });
        Ok(())
    }

    /// [`add_url`](Self::add_url) from a form or a query string, where the text null means that there is
    /// none.
    fn add_url_text(&mut self, url: String) -> Result<()> {
        if url == "null" { Ok(()) } else { self.add_url(url) }
    }

    /// Checks that another image may follow in `field`.
    fn expect(&self, field: &'static str) -> Result<()> {
        let first = self.items.first().map(|first| match first.url() {
            Some(_) => URL_FIELD,
            None => self.reader.count.field(),
        });
        match self.reader.count {
            ImageCount::One => match first {
                None => Ok(()),
                Some(first) => Err(second_image(first, field)),
            },
            ImageCount::Many(limit) if self.items.len() == limit => Err(too_many(limit)),
            ImageCount::Many(_) => Ok(()),
        }
    }

    fn finish(self) -> Result<Vec<SentImage>> {
        let count = self.reader.count;
        let missing = match count {
            ImageCount::One => "there is no image",
            ImageCount::Many(_) => "there are no images",
        };
        if self.items.is_empty() && !self.reader.optional {
            return Err(malformed(format!("{missing}; {}", count.instructions())));
        }
        Ok(self.items)
    }
}

/// The refusal of an image in `field`, after one in `first`.
fn second_image(first: &str, field: &str) -> Error {
    if first == field {
        return given_twice(field);
    }
    Error::parameter(URL_FIELD, "there are both image and image_url; send one of them")
}

fn too_many(limit: usize) -> Error {
    Error::new(
        ErrorKind::BatchTooLarge,
        format!("a batch may have at most {limit} images; send several batches"),
    )
}

fn malformed(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::MalformedRequest, detail)
}
