//! Requests that another model answers: one of several in this process, or what a route chooses. Who
//! chooses is above this module; here is only what a caller sees of it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use utoipa::ToSchema;

use super::stream::CaptionStream;
use super::{Caption, CaptionParams, Captioner, KeptParameters, Photo, Priority};
use cutline_error::{Error, ErrorKind, Result};
use cutline_image::Colors;

/// Ollama's tag of a model without one.
const LATEST: &str = ":latest";

/// Chooses who answers a request. A [`Captioner`] without one answers all itself.
pub trait Dispatch: Send + Sync + fmt::Debug {
    /// The names of models and routes beside the captioner's own.
    fn names(&self) -> Vec<String>;

    /// The other model of this name in this process.
    fn model(&self, name: &str) -> Option<&Captioner>;

    /// The models in this process beside the captioner, with their names.
    fn models(&self) -> Vec<(&str, &Captioner)>;

    /// The route for a request, if there is one.
    fn route(&self, params: &CaptionParams) -> Option<Box<dyn Routed>>;
}

/// A route that was chosen for a request. It stays as it is, whatever happens to the file of routes.
pub trait Routed: Send + fmt::Debug {
    /// Starts captions: [`Captioner::start_all`] of it.
    fn start(
        self: Box<Self>,
        captioner: &Captioner,
        photos: Vec<Photo>,
        params: &CaptionParams,
        priority: Priority,
    ) -> Vec<CaptionStream>;
}

/// The end of a caption on a route.
#[derive(Debug, Clone)]
pub struct RoutedCaption {
    /// The answer.
    pub caption: Caption,
    /// The photo's colours, whether or not the caller wants them.
    pub colors: Colors,
    /// How the caption was asked for, if captions are kept.
    pub kept: Option<Arc<KeptParameters>>,
}

/// How a request got its answer, if a route chose who answers.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Routing {
    /// The route.
    pub route: String,
    /// The backend that answered.
    pub backend: String,
    /// Requests to backends, the answered one included. A cached answer of one elsewhere needs none.
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

/// Who answers a request.
#[derive(Debug)]
pub(super) enum Chosen<'a> {
    Here,
    Model(&'a Captioner),
    Route(Box<dyn Routed>),
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
    pub fn other_names(&self) -> Vec<String> {
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
                return Ok(Chosen::Route(route));
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
        let own = std::iter::once(self.inner.info.id.clone());
        let names: Vec<String> =
            own.chain(self.other_names()).map(|name| format!("'{name}'")).collect();
        Error::new(
            ErrorKind::ModelNotFound,
            format!(
                "model '{shown}' not found; use {}, or let the operator of the server add the name \
                 to MODEL_ALIASES",
                names.join(" or ")
            ),
        )
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
    end: Option<Result<Box<RoutedCaption>>>,
}

/// An event of a caption that a route gets.
#[derive(Debug)]
pub(super) enum RouteEvent {
    /// The text so far.
    Text(String),
    /// The end; nothing follows.
    Done(Box<RoutedCaption>),
}

/// The side of a routed caption that computes it.
#[derive(Debug)]
pub struct RouteWriter(watch::Sender<Progress>);

/// The side that the caller has. Dropping it stops the work.
#[derive(Debug)]
pub(super) struct RouteReader {
    progress: watch::Receiver<Progress>,
    sent: String,
    /// Whether the caption is kept.
    pub(super) keeps: bool,
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
    pub fn finish(self, end: Result<RoutedCaption>) {
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
        let sent = String::new();
        Self::elsewhere(captioner, RouteReader { progress, sent, keeps: true, _work: tasks })
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
    pub(super) async fn end(&mut self) -> Result<Box<RoutedCaption>> {
        let now = self.progress.wait_for(|now| now.end.is_some()).await.map_err(|_| lost())?;
        now.end.clone().unwrap_or_else(|| Err(lost()))
    }

    pub(super) async fn next(&mut self) -> Result<RouteEvent> {
        loop {
            // The guard must not be held across the await below.
            {
                let now = self.progress.borrow_and_update();
                if let Some(end) = &now.end {
                    return end.clone().map(RouteEvent::Done);
                }
                if !now.text.is_empty() && now.text != self.sent {
                    now.delivered.store(true, Ordering::Relaxed);
                    self.sent.clone_from(&now.text);
                    return Ok(RouteEvent::Text(now.text.clone()));
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
        let (sent, _work) = (String::new(), JoinSet::new());
        let reader = RouteReader { progress, sent, keeps: true, _work };
        (RouteWriter(writer), reader)
    }

    #[tokio::test]
    async fn text_can_be_taken_back_until_someone_has_seen_it() {
        let (writer, mut reader) = pair();
        writer.text("a dog".to_owned());
        assert!(writer.take_back());
        assert!(!reader.has_begun());
        writer.text("a cat".to_owned());
        let RouteEvent::Text(text) = reader.next().await.unwrap() else { panic!("the end") };
        assert_eq!(text, "a cat");
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
