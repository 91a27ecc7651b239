//! One caller's view of a caption that is being computed, possibly for several callers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::afterwards::{Afterwards, PhotoEmbedding};
use super::answer::{Answer, CaptionProgress, ComputedAnswer};
use super::charge::Charge;
use super::dispatch::{RouteEvent, RouteReader};
use super::recipe::chained;
use super::style::styled;
use super::{
    Appearance, CacheState, Caption, Captioner, KeptParameters, Recipe, RoutedCaption, Style,
    TextStyle, Timings, VisionCacheState,
};
use crate::metrics::milliseconds;
use cutline_error::{Error, Result};

/// An event on the way to a caption.
#[derive(Debug, Clone, PartialEq)]
pub enum CaptionEvent {
    /// The text so far, prompt included. Neither beam search, which only knows the end, nor a cached
    /// answer sends it.
    Text(String),
    /// The complete answer; nothing follows.
    Done(Box<Caption>),
}

/// The stream of events of one accepted image. Dropping it cancels the work, unless others wait for
/// the same caption.
#[derive(Debug)]
pub struct CaptionStream {
    caller: CallerContext,
    source: AnswerSource,
    /// The last text that was sent in a style other than [`Style::Caption`].
    last_text: String,
    afterwards: Option<Afterwards>,
}

/// The caller of a stream, and how it wants the caption.
#[derive(Debug)]
pub(super) struct CallerContext {
    pub(super) captioner: Captioner,
    /// When the request arrived.
    pub(super) begin: Instant,
    /// Whether the answer includes the photo's colours.
    pub(super) wants_colors: bool,
    pub(super) text: TextStyle,
    /// The version of a prompt that was asked for.
    pub(super) recipe: Option<Arc<Recipe>>,
    /// For captions that are kept.
    pub(super) kept: Option<Arc<KeptParameters>>,
    /// What the caller pays, until it has the answer.
    pub(super) charge: Option<Charge>,
    /// Tokens of the image and the prompt.
    pub(super) prompt_tokens: usize,
}

/// Where a stream's answer comes from.
#[derive(Debug)]
enum AnswerSource {
    Cache(Arc<Answer>, Option<Arc<Appearance>>),
    Flight {
        progress: watch::Receiver<CaptionProgress>,
        /// How many of the ids the caller has received.
        received: usize,
        /// Whether another caller started the flight.
        joined: bool,
    },
    /// A route gets it.
    Elsewhere(RouteReader),
}

/// The next step of a stream.
enum StreamUpdate {
    Tokens(Vec<u32>),
    End(Result<Arc<ComputedAnswer>>),
    None,
}

impl CaptionStream {
    fn new(caller: CallerContext, source: AnswerSource) -> Self {
        Self { caller, source, last_text: String::new(), afterwards: None }
    }

    /// A stream of a cached answer.
    pub(super) fn cached(
        caller: CallerContext,
        answer: Arc<Answer>,
        appearance: Option<Arc<Appearance>>,
    ) -> Self {
        Self::new(caller, AnswerSource::Cache(answer, appearance))
    }

    /// A stream of a flight that was started for this caller.
    pub(super) fn first(caller: CallerContext, progress: watch::Receiver<CaptionProgress>) -> Self {
        let received = progress.borrow().ids.len();
        Self::new(caller, AnswerSource::Flight { progress, received, joined: false })
    }

    /// A stream of a flight that another caller started. Its first event is the text so far.
    pub(super) fn joined(
        caller: CallerContext,
        progress: watch::Receiver<CaptionProgress>,
        prompt: usize,
    ) -> Self {
        let written = progress.borrow().ids.len();
        let received = written.saturating_sub(1).max(prompt);
        Self::new(caller, AnswerSource::Flight { progress, received, joined: true })
    }

    /// A stream of a caption that a route gets.
    pub(super) fn elsewhere(captioner: &Captioner, reader: RouteReader) -> Self {
        let caller = CallerContext {
            captioner: captioner.clone(),
            begin: Instant::now(),
            wants_colors: false,
            text: TextStyle::default(),
            recipe: None,
            kept: None,
            charge: None,
            prompt_tokens: captioner.info().image_tokens,
        };
        Self::new(caller, AnswerSource::Elsewhere(reader))
    }

    /// The same stream, for which the caller pays.
    pub(super) fn charged(mut self, charge: Option<Charge>) -> Self {
        self.caller.charge = charge;
        self
    }

    /// The same stream, with something to do when the captions are there.
    pub(super) fn continued(mut self, afterwards: Option<Afterwards>) -> Self {
        self.afterwards = afterwards;
        self
    }

    /// The same stream, whose caption is kept by the caller itself.
    #[must_use]
    pub fn unkept(mut self) -> Self {
        self.caller.kept = None;
        if let AnswerSource::Elsewhere(reader) = &mut self.source {
            reader.keeps = false;
        }
        self
    }

    /// The complete answer, which the caller keeps itself, and how it was asked for; `None` if captions are
    /// not kept.
    ///
    /// # Errors
    /// Those of [`next`](Self::next).
    pub async fn end_unkept(mut self) -> Result<(Caption, Option<Arc<KeptParameters>>)> {
        let kept = self.caller.kept.take();
        let mut stream = self.unkept();
        let caption = stream.end().await?;
        Ok((caption, kept.or_else(|| stream.caller.kept.take())))
    }

    /// Waits until the image is decoded and in the queue, or the answer is there. Afterwards only the
    /// model can fail.
    ///
    /// # Errors
    /// The image is bad.
    pub async fn accepted(&mut self) -> Result<()> {
        self.until(|now| now.accepted || now.end.is_some()).await
    }

    /// Waits until `reached` holds, or a route has begun to answer.
    async fn until(&mut self, reached: fn(&CaptionProgress) -> bool) -> Result<()> {
        let found = match &mut self.source {
            AnswerSource::Cache(..) => return Ok(()),
            AnswerSource::Elsewhere(reader) => reader.begin().await,
            AnswerSource::Flight { progress, .. } => {
                let now = progress.wait_for(reached).await.map_err(|_| lost())?;
                match &now.end {
                    Some(Err(error)) => Err(error.clone()),
                    _ => Ok(()),
                }
            }
        };
        found.map_err(|error| self.failed(error))
    }

    /// The image could not be answered.
    fn failed(&mut self, error: Error) -> Error {
        if let Some(charge) = self.caller.charge.take() {
            charge.fail();
        }
        error
    }

    /// The backend of a route that answers, and the number of attempts so far. It is final once
    /// [`accepted`](Self::accepted) has returned.
    #[must_use]
    pub fn answered_by(&self) -> Option<(String, u32)> {
        match &self.source {
            AnswerSource::Elsewhere(reader) => reader.by(),
            AnswerSource::Cache(..) | AnswerSource::Flight { .. } => None,
        }
    }

    /// Whether the answer is cached. Such a caption never waits.
    #[must_use]
    pub fn is_cached(&self) -> bool {
        matches!(self.source, AnswerSource::Cache(..))
    }

    /// Whether the model has begun with the caption, or the answer is there.
    #[must_use]
    pub fn has_started(&self) -> bool {
        match &self.source {
            AnswerSource::Cache(..) => true,
            AnswerSource::Flight { progress, .. } => progress.borrow().has_started(),
            AnswerSource::Elsewhere(reader) => reader.has_begun(),
        }
    }

    /// Waits for [`has_started`](Self::has_started).
    ///
    /// # Errors
    /// The image is bad or the model failed.
    pub async fn started(&mut self) -> Result<()> {
        self.until(CaptionProgress::has_started).await
    }

    /// The next event.
    ///
    /// # Errors
    /// The image is bad or the model failed; nothing follows.
    pub async fn next(&mut self) -> Result<CaptionEvent> {
        loop {
            let (progress, received) = match &mut self.source {
                AnswerSource::Cache(answer, appearance) => {
                    let (answer, appearance) = (Arc::clone(answer), appearance.clone());
                    let caption = self.cache_hit(&answer, appearance.as_ref())?;
                    return self.done(caption, &answer).await;
                }
                AnswerSource::Elsewhere(reader) => {
                    let event = reader.next().await;
                    return self.settle_elsewhere(event).await;
                }
                AnswerSource::Flight { progress, received, .. } => (progress, received),
            };
            // The guard must not be held across the await below.
            let update = {
                let now = progress.borrow_and_update();
                if now.ids.len() > *received {
                    *received += 1;
                    StreamUpdate::Tokens(now.ids[..*received].to_vec())
                } else {
                    now.end.clone().map_or(StreamUpdate::None, StreamUpdate::End)
                }
            };
            match update {
                StreamUpdate::Tokens(ids) => {
                    let mut text = self.caller.captioner.decode(&ids)?;
                    // A letter whose other bytes are still to come.
                    text.truncate(text.trim_end_matches(char::REPLACEMENT_CHARACTER).len());
                    if let Some(text) = self.new_text(text) {
                        return Ok(CaptionEvent::Text(text));
                    }
                }
                StreamUpdate::End(Ok(computed)) => {
                    let caption = self.finish(&computed)?;
                    return self.done(caption, &computed.answer).await;
                }
                StreamUpdate::End(Err(error)) => return Err(self.failed(error)),
                StreamUpdate::None => progress.changed().await.map_err(|_| lost())?,
            }
        }
    }

    /// Takes what the answer costs, before the caller gets it.
    async fn settle(&mut self, answer: &Answer) -> Result<()> {
        match self.caller.charge.take() {
            Some(charge) => {
                charge.settle_for(self.caller.prompt_tokens, &answer.choices, false).await
            }
            None => Ok(()),
        }
    }

    /// The same for an answer of a route.
    async fn settle_elsewhere(&mut self, event: Result<RouteEvent>) -> Result<CaptionEvent> {
        let routed = match event {
            Ok(RouteEvent::Text(text)) => return Ok(CaptionEvent::Text(text)),
            Ok(RouteEvent::Done(routed)) => routed,
            Err(error) => return Err(self.failed(error)),
        };
        let RoutedCaption { mut caption, colors, kept } = *routed;
        let embedding = self.afterwards(&mut caption).await?;
        if let Some(charge) = self.caller.charge.take() {
            let cached = caption.cache != CacheState::Miss;
            charge.settle_for(self.caller.prompt_tokens, &caption.captions, cached).await?;
        }
        if matches!(&self.source, AnswerSource::Elsewhere(reader) if reader.keeps) {
            let waited = self.caller.begin.elapsed();
            let embedding = embedding.as_ref();
            self.caller.captioner.keep(kept.as_deref(), &caption, &colors, embedding, waited);
        }
        self.caller.kept = kept;
        Ok(CaptionEvent::Done(Box::new(caption)))
    }

    /// The end of an answer of this process: it is finished, paid and kept.
    async fn done(&mut self, mut caption: Box<Caption>, answer: &Answer) -> Result<CaptionEvent> {
        let embedding = self.afterwards(&mut caption).await?;
        self.settle(answer).await?;
        let CallerContext { captioner, kept, begin, .. } = &self.caller;
        let (kept, embedding) = (kept.as_deref(), embedding.as_ref());
        captioner.keep(kept, &caption, &answer.colors, embedding, begin.elapsed());
        Ok(CaptionEvent::Done(caption))
    }

    /// Does what is left to do when the captions are there.
    async fn afterwards(&mut self, caption: &mut Caption) -> Result<Option<PhotoEmbedding>> {
        let Some(afterwards) = self.afterwards.take() else { return Ok(None) };
        let is_new = caption.cache != CacheState::Hit;
        // Boxed: most callers want nothing more, and the future is large.
        let done = Box::pin(afterwards.apply(caption, is_new)).await;
        let embedding = done.map_err(|error| self.failed(error))?;
        caption.timings.total_ms = milliseconds(self.caller.begin.elapsed());
        Ok(embedding)
    }

    /// The text so far in the caller's style; `None` if a new word changes nothing, because the style
    /// leaves it out, drops it as a repetition, or cuts the text before it.
    fn new_text(&mut self, text: String) -> Option<String> {
        if self.caller.text.style == Style::Caption {
            return Some(text);
        }
        let text = self.caller.text.so_far(&text);
        if text.is_empty() || text == self.last_text {
            return None;
        }
        self.last_text.clone_from(&text);
        Some(text)
    }

    /// The complete answer: the fold of the remaining events.
    ///
    /// # Errors
    /// Those of [`next`](Self::next).
    pub async fn end(&mut self) -> Result<Caption> {
        if let AnswerSource::Elsewhere(reader) = &mut self.source {
            // Skips the texts on the way, as below.
            let end = reader.end().await.map(RouteEvent::Done);
            return match self.settle_elsewhere(end).await? {
                CaptionEvent::Done(caption) => Ok(*caption),
                CaptionEvent::Text(_) => Err(lost()),
            };
        }
        if let AnswerSource::Flight { progress, received, .. } = &mut self.source {
            let now = progress.wait_for(|now| now.end.is_some()).await.map_err(|_| lost())?;
            // Skips the texts on the way, which nobody wants here.
            *received = now.ids.len();
        }
        loop {
            if let CaptionEvent::Done(caption) = self.next().await? {
                return Ok(*caption);
            }
        }
    }

    fn cache_hit(
        &self,
        answer: &Answer,
        appearance: Option<&Arc<Appearance>>,
    ) -> Result<Box<Caption>> {
        self.assemble(answer, appearance, CacheState::Hit, None, [Duration::ZERO; 3])
    }

    fn finish(&self, computed: &ComputedAnswer) -> Result<Box<Caption>> {
        let appearance = computed.appearance.as_ref();
        let joined = matches!(self.source, AnswerSource::Flight { joined: true, .. });
        if computed.shared && !joined {
            return self.assemble(
                &computed.answer,
                None,
                CacheState::Hit,
                None,
                [Duration::ZERO; 3],
            );
        }
        let mut caption = if joined {
            // The stages belong to the caller that started the flight; this one only waited.
            let times = [Duration::ZERO, Duration::ZERO, self.caller.begin.elapsed()];
            self.assemble(&computed.answer, appearance, CacheState::Coalesced, None, times)?
        } else {
            let times = [computed.decode, computed.queued, computed.inference];
            self.assemble(&computed.answer, appearance, CacheState::Miss, computed.vision, times)?
        };
        caption.batch_size = Some(computed.batch_size).filter(|_| !computed.shared);
        Ok(caption)
    }

    fn assemble(
        &self,
        answer: &Answer,
        appearance: Option<&Arc<Appearance>>,
        cache: CacheState,
        vision_cache: Option<VisionCacheState>,
        [decode, queued, inference]: [Duration; 3],
    ) -> Result<Box<Caption>> {
        let CallerContext { captioner, recipe, .. } = &self.caller;
        let (colors, nothing) = (&answer.colors, captioner.fallback_text());
        let (captions, fallback) = styled(&answer.choices, self.caller.text, colors, nothing);
        let recipe = recipe.as_deref();
        let (captions, fallback) = chained(captions, fallback, recipe, colors, nothing)?;
        let waited = self.caller.begin.elapsed();
        Ok(Box::new(Caption {
            // There is always a choice.
            caption: captions.first().map(|best| best.text.clone()).unwrap_or_default(),
            captions,
            fallback,
            model: captioner.info().id.clone(),
            digest: captioner.info().digest.clone(),
            template: recipe.map(|recipe| recipe.name.clone()),
            experiment: recipe.and_then(|recipe| Some(recipe.experiment.as_ref()?.1.clone())),
            cache,
            vision_cache,
            image: answer.image.clone(),
            colors: self.caller.wants_colors.then(|| answer.colors.clone()),
            timings: Timings {
                decode_ms: milliseconds(decode),
                queue_ms: milliseconds(queued),
                inference_ms: milliseconds(inference),
                total_ms: milliseconds(waited),
            },
            routing: None,
            batch_size: None,
            appearance: appearance.cloned(),
        }))
    }
}

/// The computing task was stopped, which only happens when the program ends.
fn lost() -> Error {
    Error::internal("the work on the caption ended before the caption")
}
