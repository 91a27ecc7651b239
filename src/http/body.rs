//! Reads a request's body within limits of size, time and memory.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use futures_core::Stream;
use tokio::task::coop;
use tokio::time::{Sleep, sleep};
use tokio_stream::StreamExt;

use super::coding::{Coding, DecodedBody};
use crate::captioner::{Budget, Permit, Photo, append, image_too_large, no_memory};
use crate::config::HttpSettings;
use cutline_error::{Error, ErrorKind, Result};

/// How large a body may be and how long it may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct BodyLimits {
    /// Bytes of the whole body.
    pub(super) bytes: usize,
    /// How many copies of each byte may be in memory at a time.
    pub(super) copies: u64,
    /// From the end of the headers to the end of the body.
    pub(super) time: Duration,
    /// The error for a larger body.
    pub(super) too_large: TooLarge,
}

/// Copies of each byte of JSON that may be in memory at a time: the body, an image in it that is decoded,
/// and a text without its escapes.
const COPIES_OF_JSON: u64 = 3;

impl BodyLimits {
    /// The limits of JSON with up to `images` images in base64, and `rest` bytes beside them.
    pub(super) fn of_json(
        images: usize,
        rest: usize,
        settings: &HttpSettings,
        budget: &Budget,
    ) -> Self {
        // Four characters for three bytes, and the line breaks of some encoders.
        let encoded = settings.max_image_bytes.saturating_mul(images).saturating_mul(3) / 2;
        Self::of(encoded.saturating_add(rest), COPIES_OF_JSON, images, settings, budget)
    }

    /// The limits of a body with up to `images` images, with `copies` copies in memory.
    pub(super) fn of(
        bytes: usize,
        copies: u64,
        images: usize,
        settings: &HttpSettings,
        budget: &Budget,
    ) -> Self {
        // A body that is larger than the whole budget could never be read.
        let memory = usize::try_from(budget.capacity() / copies).unwrap_or(usize::MAX);
        let bytes = bytes.min(memory);
        let too_large = match images {
            1 => TooLarge::Image(settings.max_image_bytes),
            _ => TooLarge::Batch(bytes),
        };
        Self { bytes, copies, time: settings.request_timeout, too_large }
    }
}

/// The limit that a large body exceeds.
#[derive(Debug, Clone, Copy)]
pub(super) enum TooLarge {
    /// Bytes of the one image.
    Image(usize),
    /// Bytes of a whole batch.
    Batch(usize),
}

impl TooLarge {
    pub(super) fn error(self) -> Error {
        match self {
            Self::Image(limit) => image_too_large(limit),
            Self::Batch(limit) => Error::new(
                ErrorKind::BatchTooLarge,
                format!(
                    "the batch is larger than {limit} bytes; send fewer images, or scale them down"
                ),
            ),
        }
    }
}

/// A body with its limits, decompressed. Bytes count against the memory budget until the
/// [`BodyPermit`] is dropped. The announced length counts from the beginning, so a body that does not
/// fit into memory is refused before it is sent.
pub(super) struct LimitedBody {
    stream: Source,
    limits: BodyLimits,
    deadline: Pin<Box<Sleep>>,
    announced: Option<usize>,
    read: usize,
    permit: BodyPermit,
}

/// Where the bytes of a body come from.
enum Source {
    Plain(BodyDataStream),
    Compressed(Box<DecodedBody>),
}

/// The share of the memory budget that a body holds.
#[derive(Clone)]
pub(super) struct BodyPermit(Arc<Mutex<Permit>>);

impl BodyPermit {
    /// An image from the body, which takes its share of the permit with it.
    pub(super) fn photo(&self, bytes: Vec<u8>) -> Photo {
        let permit = self.lock().split(bytes.len() as u64);
        Photo::new(bytes, permit)
    }

    /// Memory for a copy of `bytes` bytes of the body, until the result is dropped.
    ///
    /// # Errors
    /// [`QueueFull`](ErrorKind::QueueFull): there is none.
    pub(super) fn copy(&self, bytes: usize) -> Result<Permit> {
        let mut permit = self.lock();
        permit.grow(bytes as u64)?;
        Ok(permit.split(bytes as u64))
    }

    /// Returns what no image has taken.
    pub(super) fn release(&self) {
        drop(self.lock().split(u64::MAX));
    }

    /// The lock guards two numbers, which are valid even after a panic.
    fn lock(&self) -> MutexGuard<'_, Permit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LimitedBody {
    /// Prepares to read the body and reserves memory for its announced length.
    ///
    /// # Errors
    /// The error of [`TooLarge`] if the announced length exceeds the limit,
    /// [`UnsupportedFormat`](ErrorKind::UnsupportedFormat) for an unknown `Content-Encoding`, or
    /// [`QueueFull`](ErrorKind::QueueFull) if there is no memory for the body now.
    pub(super) fn new(
        headers: &HeaderMap,
        body: Body,
        limits: BodyLimits,
        budget: &Budget,
    ) -> Result<Self> {
        let coding = Coding::of(headers)?;
        let announced = announced_length(headers);
        let most = if coding.is_some() { limits.compressed() } else { limits.bytes };
        if announced.is_some_and(|length| length > most) {
            return Err(limits.too_large.error());
        }
        let stream = body.into_data_stream();
        let stream = match coding {
            None => Source::Plain(stream),
            Some(coding) => Source::Compressed(Box::new(DecodedBody::new(
                stream,
                coding,
                most,
                limits.too_large,
            ))),
        };
        let permit = budget.take(limits.claimed(announced.unwrap_or(0)))?;
        Ok(Self {
            stream,
            limits,
            deadline: Box::pin(sleep(limits.time)),
            announced,
            read: 0,
            permit: BodyPermit(Arc::new(Mutex::new(permit))),
        })
    }

    /// Its share of the budget.
    pub(super) fn permit(&self) -> BodyPermit {
        self.permit.clone()
    }

    /// The whole body.
    ///
    /// # Errors
    /// As for the items of the stream.
    pub(super) async fn collect(mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        // The announced length is in the budget already. Memory is used only as bytes arrive.
        bytes.try_reserve_exact(self.announced.unwrap_or(0)).map_err(no_memory)?;
        while let Some(chunk) = self.next().await {
            append(&mut bytes, &chunk?)?;
        }
        bytes.shrink_to_fit();
        Ok(bytes)
    }

    fn count(&mut self, chunk: &Bytes) -> Result<()> {
        self.read += chunk.len();
        if self.read > self.limits.bytes {
            return Err(self.limits.too_large.error());
        }
        let claimed = self.limits.claimed(self.read);
        let before = self.limits.claimed(self.announced.unwrap_or(0).max(self.read - chunk.len()));
        self.permit.lock().grow(claimed.saturating_sub(before))
    }
}

impl BodyLimits {
    /// What so many bytes count against the budget.
    pub(super) fn claimed(&self, bytes: usize) -> u64 {
        self.copies.saturating_mul(bytes as u64)
    }

    /// The limit before decompression: incompressible bytes grow a little.
    fn compressed(&self) -> usize {
        self.bytes.saturating_add(self.bytes / 1000).saturating_add(1024)
    }
}

impl Stream for LimitedBody {
    /// [`ImageTooLarge`](ErrorKind::ImageTooLarge) or [`BatchTooLarge`](ErrorKind::BatchTooLarge)
    /// as soon as that is known, [`RequestTimeout`](ErrorKind::RequestTimeout),
    /// [`QueueFull`](ErrorKind::QueueFull) when memory for the next chunk is short, or
    /// [`MalformedRequest`](ErrorKind::MalformedRequest) when the connection breaks.
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        // First, because a client that keeps sending single bytes must not defer it.
        if self.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(too_slow(self.limits.time))));
        }
        // A small compressed body decodes to many pieces without waiting for the network.
        let turn = ready!(coop::poll_proceed(cx));
        let chunk = match &mut self.stream {
            Source::Plain(stream) => {
                ready!(Pin::new(stream).poll_next(cx)).map(|chunk| chunk.map_err(broke_off))
            }
            Source::Compressed(stream) => ready!(Pin::new(stream).poll_next(cx)),
        };
        turn.made_progress();
        let counted = chunk.map(|chunk| {
            let chunk = chunk?;
            self.count(&chunk)?;
            Ok(chunk)
        });
        Poll::Ready(counted)
    }
}

/// The error of a connection that ends in the middle of a body.
pub(super) fn broke_off(error: axum::Error) -> Error {
    Error::new(
        ErrorKind::MalformedRequest,
        "the body broke off before its end; send the request again",
    )
    .with_source(error)
}

fn announced_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The error of a body that takes longer than `limit` to arrive.
pub(super) fn too_slow(limit: Duration) -> Error {
    Error::new(
        ErrorKind::RequestTimeout,
        format!(
            "the body did not arrive within {} s; send a smaller image or use a faster connection",
            limit.as_secs_f64()
        ),
    )
}
