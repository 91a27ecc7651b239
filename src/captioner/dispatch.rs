//! Requests that another model answers: one of several in this process, or what a route chooses. Who
//! chooses is above this module; here is only what a caller sees of it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use utoipa::ToSchema;

use super::recipe::chained;
use super::stream::{CaptionEvent, CaptionStream};
use super::style::styled;
use super::{
    CacheState, Caption, CaptionParams, Captioner, Choice, ImageInfo, Photo, Priority, Timings,
    TokenSequence,
};
use crate::engine::FinishReason;
use crate::metrics::milliseconds;
use cutline_error::{Error, ErrorKind, Result};
use cutline_image::{Colors, DecodeLimits, ImageHeader, decode_for, jpeg_within};

/// Ollama's tag of a model without one.
const LATEST: &str = ":latest";

/// The longer side of a photo that is sent elsewhere, in pixels.
pub const SENT_SIDE: usize = 1024;

/// Chooses who answers a request. A [`Captioner`] without one answers all itself.
pub trait Dispatch: Send + Sync + fmt::Debug {
    /// The names of models and routes beside the captioner's own.
    fn names(&self) -> Vec<&str>;

    /// The other model of this name in this process.
    fn model(&self, name: &str) -> Option<&Captioner>;

    /// The models in this process beside the captioner, with their names.
    fn models(&self) -> Vec<(&str, &Captioner)>;

    /// The index of the route for a request, if there is one.
    fn route(&self, params: &CaptionParams) -> Option<usize>;

    /// Starts captions on a route: [`Captioner::start_all`] of it.
    ///
    /// # Errors
    /// The parameters are not valid.
    fn start(
        &self,
        captioner: &Captioner,
        route: usize,
        photos: Vec<Photo>,
        params: &CaptionParams,
        priority: Priority,
    ) -> Result<Vec<CaptionStream>>;
}

/// How a request got its answer, if a route chose who answers.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Routing {
    /// The route.
    pub route: String,
    /// The backend that answered.
    pub backend: String,
    /// Requests to backends, the answered one included.
    pub attempts: u32,
    /// Whether a backend of a later tier answered.
    pub fallback: bool,
    /// Why the first backend did not: `connect`, `timeout`, `low_confidence`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub reason: Option<String>,
    /// The backends on other machines that the photo was sent to, scaled down and without metadata. Empty
    /// if it did not leave this one.
    pub sent_to: Vec<String>,
    /// What the answer cost, in the currency of the file of routes; left out if that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub cost: Option<f64>,
}

/// What a caption of a model elsewhere consists of.
#[derive(Debug, Clone)]
pub struct Foreign {
    /// The texts, best first, at least one.
    pub texts: Vec<String>,
    /// The name of the model that wrote them.
    pub model: String,
    /// Why the first one ends.
    pub finish_reason: FinishReason,
    /// Tokens of the answer; 0 if that is not known.
    pub tokens: usize,
    /// How long the answer took.
    pub took: Duration,
}

/// A photo that can be sent elsewhere.
#[derive(Debug)]
pub struct SendablePhoto {
    /// A JPEG file without metadata.
    pub jpeg: Vec<u8>,
    /// The photo itself.
    pub image: ImageInfo,
    /// Its colours and mood.
    pub colors: Colors,
    /// How long this took.
    pub took: Duration,
}

/// Who answers a request.
#[derive(Debug)]
pub(super) enum Chosen<'a> {
    Here,
    Model(&'a Captioner),
    Route(&'a dyn Dispatch, usize),
}

impl Captioner {
    /// Lets `dispatch` choose from now on. Only the first call has an effect.
    pub fn dispatch_with(&self, dispatch: Arc<dyn Dispatch>) {
        let _ = self.inner.dispatch.set(dispatch);
    }

    /// The models in this process beside this one, with their names.
    #[must_use]
    pub fn other_models(&self) -> Vec<(&str, &Self)> {
        self.inner.dispatch.get().map(|dispatch| dispatch.models()).unwrap_or_default()
    }

    /// The names that a request may ask for beside this model's own.
    #[must_use]
    pub fn other_names(&self) -> Vec<&str> {
        self.inner.dispatch.get().map(|dispatch| dispatch.names()).unwrap_or_default()
    }

    /// The model in this process that answers requests for `name`: another one if it has that name,
    /// otherwise this one.
    #[must_use]
    pub fn named(&self, name: Option<&str>) -> &Self {
        let other = self.inner.dispatch.get().zip(name);
        other.and_then(|(dispatch, name)| dispatch.model(bare(name))).unwrap_or(self)
    }

    /// The model in this process that has `name`; this one without a name.
    ///
    /// # Errors
    /// [`ModelNotFound`](ErrorKind::ModelNotFound): no model in this process has it; a route does not count.
    pub fn local(&self, name: Option<&str>) -> Result<&Self> {
        let Some(name) = name else { return Ok(self) };
        let other = self.inner.dispatch.get().and_then(|dispatch| dispatch.model(bare(name)));
        let own = self.is_named(name).then_some(self);
        other.or(own).ok_or_else(|| self.unknown(name))
    }

    /// Whether `name` is this model's own.
    #[must_use]
    pub fn is_named(&self, name: &str) -> bool {
        bare(name) == bare(&self.inner.info.id)
    }

    /// Who answers a request.
    ///
    /// # Errors
    /// [`ModelNotFound`](ErrorKind::ModelNotFound).
    pub(super) fn chosen(&self, params: &CaptionParams) -> Result<Chosen<'_>> {
        let name = params.model.as_deref().map(bare);
        if let Some(dispatch) = self.inner.dispatch.get() {
            if let Some(route) = dispatch.route(params) {
                return Ok(Chosen::Route(&**dispatch, route));
            }
            if let Some(model) = name.and_then(|name| dispatch.model(name)) {
                return Ok(Chosen::Model(model));
            }
        }
        match name {
            Some(name) if !self.is_named(name) => Err(self.unknown(name)),
            _ => Ok(Chosen::Here),
        }
    }

    /// The refusal of a name that no model has.
    #[must_use]
    pub fn unknown(&self, name: &str) -> Error {
        let shown: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
        let others = self.other_names().into_iter();
        let own = self.inner.info.id.as_str();
        let names: Vec<String> =
            std::iter::once(own).chain(others).map(|name| format!("'{name}'")).collect();
        Error::new(
            ErrorKind::ModelNotFound,
            format!(
                "model '{shown}' not found; use {}, or let the operator of the server add the name \
                 to MODEL_ALIASES",
                names.join(" or ")
            ),
        )
    }

    /// Makes of `photo` what may be sent elsewhere: scaled down, and encoded again without metadata.
    ///
    /// # Errors
    /// The photo cannot be decoded.
    pub async fn sendable(&self, photo: Photo) -> Result<SendablePhoto> {
        let begin = std::time::Instant::now();
        let size = photo.len();
        // The copies of the pixels after scaling.
        let scaled = |_: &ImageHeader| 8 * (SENT_SIDE * SENT_SIDE) as u64;
        let work = move |bytes: &[u8], limits: &DecodeLimits| {
            let hash = blake3::hash(bytes);
            let decoded = decode_for(bytes, limits, SENT_SIDE, SENT_SIDE)?;
            let jpeg = jpeg_within(&decoded, SENT_SIDE)?;
            Ok((jpeg, ImageInfo::of(&hash, size, &decoded), Colors::of(&decoded)))
        };
        let (jpeg, image, colors) = self.inner.decoders.run(photo, scaled, work).await?;
        Ok(SendablePhoto { jpeg, image, colors, took: begin.elapsed() })
    }

    /// The answer of a model elsewhere in the shape of an answer of this one.
    #[must_use]
    pub fn foreign_caption(
        &self,
        foreign: Foreign,
        photo: &SendablePhoto,
        params: &CaptionParams,
        total: Duration,
    ) -> Caption {
        let Foreign { texts, model, finish_reason, tokens, took } = foreign;
        let choices: Vec<Choice> = texts
            .into_iter()
            .map(|text| Choice {
                text,
                confidence: Choice::UNKNOWN,
                tokens,
                finish_reason,
                sequence: TokenSequence::default(),
            })
            .collect();
        let style = params.text_style().of_foreign();
        let (colors, nothing) = (&photo.colors, self.fallback_text());
        let (captions, fallback) = styled(&choices, style, colors, nothing);
        let recipe = params.recipe.as_deref();
        let (captions, fallback) =
            match chained(captions.clone(), fallback.clone(), recipe, colors, nothing) {
                Ok(made) => made,
                Err(error) => {
                    tracing::warn!(%error, "a text could not be made of a caption");
                    (captions, fallback)
                }
            };
        Caption {
            caption: captions.first().map(|best| best.text.clone()).unwrap_or_default(),
            captions,
            fallback,
            model,
            template: recipe.map(|recipe| recipe.name.clone()),
            experiment: recipe.and_then(|recipe| Some(recipe.experiment.as_ref()?.1.clone())),
            cache: CacheState::Miss,
            vision_cache: None,
            image: photo.image.clone(),
            colors: params.colors.then(|| photo.colors.clone()),
            timings: Timings {
                decode_ms: milliseconds(photo.took),
                queue_ms: 0.0,
                inference_ms: milliseconds(took),
                total_ms: milliseconds(total),
            },
            routing: None,
            batch_size: None,
            appearance: None,
        }
    }
}

fn bare(name: &str) -> &str {
    name.strip_suffix(LATEST).unwrap_or(name)
}

/// What is known so far about a caption that a route gets.
#[derive(Debug, Default)]
struct Progress {
    /// The backend that is asked now, and the number of the attempt.
    by: Option<(String, u32)>,
    text: String,
    /// The caller has seen a part of the text, so nobody else may answer.
    delivered: AtomicBool,
    end: Option<Result<Box<Caption>>>,
}

/// The side of a routed caption that computes it.
#[derive(Debug)]
pub struct RouteWriter(watch::Sender<Progress>);

/// The side that the caller has. Dropping it stops the work.
#[derive(Debug)]
pub(super) struct RouteReader {
    progress: watch::Receiver<Progress>,
    sent: String,
    _work: JoinSet<()>,
}

impl RouteWriter {
    /// Another backend is asked now.
    pub fn asks(&self, backend: &str, attempt: u32) {
        self.0.send_modify(|progress| progress.by = Some((backend.to_owned(), attempt)));
    }

    /// The text so far.
    pub fn text(&self, text: String) {
        self.0.send_modify(|progress| progress.text = text);
    }

    /// Takes back all text, so that another backend can answer; false if the caller has seen some.
    #[must_use]
    pub fn take_back(&self) -> bool {
        let mut free = false;
        self.0.send_modify(|progress| {
            free = !progress.delivered.load(Ordering::Relaxed);
            if free {
                progress.text.clear();
            }
        });
        free
    }

    /// The end; nothing follows.
    pub fn finish(self, end: Result<Caption>) {
        self.0.send_modify(|progress| progress.end = Some(end.map(Box::new)));
    }
}

impl CaptionStream {
    /// A stream of what `work` writes. Dropping the stream stops it.
    pub fn routed<W>(captioner: &Captioner, work: impl FnOnce(RouteWriter) -> W) -> Self
    where
        W: Future<Output = ()> + Send + 'static,
    {
        let (writer, progress) = watch::channel(Progress::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(work(RouteWriter(writer)));
        Self::elsewhere(captioner, RouteReader { progress, sent: String::new(), _work: tasks })
    }
}

impl RouteReader {
    fn begun(progress: &Progress) -> bool {
        !progress.text.is_empty() || progress.end.is_some()
    }

    /// The backend whose text has begun to arrive, and the number of the attempt.
    pub(super) fn by(&self) -> Option<(String, u32)> {
        self.progress.borrow().by.clone()
    }

    pub(super) fn has_begun(&self) -> bool {
        Self::begun(&self.progress.borrow())
    }

    /// Waits for the first text or the end.
    pub(super) async fn begin(&mut self) -> Result<()> {
        let now = self.progress.wait_for(Self::begun).await.map_err(|_| lost())?;
        match &now.end {
            Some(Err(error)) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Waits for the end.
    pub(super) async fn end(&mut self) -> Result<Caption> {
        let now = self.progress.wait_for(|now| now.end.is_some()).await.map_err(|_| lost())?;
        now.end.clone().unwrap_or_else(|| Err(lost())).map(|caption| *caption)
    }

    pub(super) async fn next(&mut self) -> Result<CaptionEvent> {
        loop {
            // The guard must not be held across the await below.
            {
                let now = self.progress.borrow_and_update();
                if let Some(end) = &now.end {
                    return end.clone().map(CaptionEvent::Done);
                }
                if !now.text.is_empty() && now.text != self.sent {
                    now.delivered.store(true, Ordering::Relaxed);
                    self.sent.clone_from(&now.text);
                    return Ok(CaptionEvent::Text(now.text.clone()));
                }
            }
            self.progress.changed().await.map_err(|_| lost())?;
        }
    }
}

fn lost() -> Error {
    Error::internal("the work on a routed caption ended before the caption")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (RouteWriter, RouteReader) {
        let (writer, progress) = watch::channel(Progress::default());
        let reader = RouteReader { progress, sent: String::new(), _work: JoinSet::new() };
        (RouteWriter(writer), reader)
    }

    #[tokio::test]
    async fn text_can_be_taken_back_until_someone_has_seen_it() {
        let (writer, mut reader) = pair();
        writer.text("a dog".to_owned());
        assert!(writer.take_back());
        assert!(!reader.has_begun());
        writer.text("a cat".to_owned());
        assert_eq!(reader.next().await.unwrap(), CaptionEvent::Text("a cat".to_owned()));
        assert!(!writer.take_back());
        writer.finish(Err(Error::shutting_down()));
        assert_eq!(reader.next().await.unwrap_err().kind(), ErrorKind::ShuttingDown);
    }

    #[tokio::test]
    async fn who_waits_for_the_whole_has_seen_nothing() {
        let (writer, mut reader) = pair();
        writer.text("a dog".to_owned());
        let waiting = tokio::spawn(async move { reader.end().await });
        tokio::task::yield_now().await;
        assert!(writer.take_back());
        drop(writer);
        assert_eq!(waiting.await.unwrap().unwrap_err().kind(), ErrorKind::Internal);
    }
}
