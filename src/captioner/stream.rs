//! One caption in the making, as the caller sees it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::answer::{Answer, CaptionProgress, ComputedAnswer};
use super::style::styled;
use super::{CacheState, Caption, Captioner, Style, TextStyle, Timings, VisionCacheState};
use crate::metrics::milliseconds;
use cutline_error::{Error, Result};

/// What happens on the way to a caption.
#[derive(Debug, Clone, PartialEq)]
pub enum CaptionEvent {
    /// The text so far, prompt included. Not sent by beam search, which knows only the end, nor by
    /// an answer from the cache.
    Text(String),
    /// The whole answer; nothing follows.
    Done(Box<Caption>),
}

/// An accepted image. Dropping it stops the work, unless others wait for the same.
#[derive(Debug)]
pub struct CaptionStream {
    caller: CallerContext,
    source: AnswerSource,
    /// What the caller was told last, where texts may come twice.
    told: String,
}

/// Whose run it is.
#[derive(Debug)]
pub(super) struct CallerContext {
    pub(super) captioner: Captioner,
    /// When the request came.
    pub(super) begin: Instant,
    /// Whether the photo's colours are told.
    pub(super) colors: bool,
    /// How the text is put.
    pub(super) text: TextStyle,
}

#[derive(Debug)]
enum AnswerSource {
    /// It was in the cache.
    Known(Arc<Answer>),
    /// It is computed.
    Flight {
        progress: watch::Receiver<CaptionProgress>,
        /// Tokens that the caller has.
        seen: usize,
        /// Whether it was under way when the caller came.
        joined: bool,
    },
}

/// What there is for the caller.
enum StreamUpdate {
    Tokens(Vec<u32>),
    End(Result<Arc<ComputedAnswer>>),
    None,
}

impl CaptionStream {
    fn new(caller: CallerContext, source: AnswerSource) -> Self {
        Self { caller, source, told: String::new() }
    }

    pub(super) fn known(caller: CallerContext, answer: Arc<Answer>) -> Self {
        Self::new(caller, AnswerSource::Known(answer))
    }

    /// Waits for work that was begun for this caller.
    pub(super) fn first(caller: CallerContext, progress: watch::Receiver<CaptionProgress>) -> Self {
        let seen = progress.borrow().ids.len();
        Self::new(caller, AnswerSource::Flight { progress, seen, joined: false })
    }

    /// Waits for work that was begun for somebody else; what was written so far is the first news.
    pub(super) fn joined(
        caller: CallerContext,
        progress: watch::Receiver<CaptionProgress>,
        prompt: usize,
    ) -> Self {
        let written = progress.borrow().ids.len();
        let seen = written.saturating_sub(1).max(prompt);
        Self::new(caller, AnswerSource::Flight { progress, seen, joined: true })
    }

    /// Waits until the image is decoded and in the queue, or the answer is there: afterwards nothing
    /// that is wrong with the request can come to light.
    ///
    /// # Errors
    /// The image is bad.
    pub async fn accepted(&mut self) -> Result<()> {
        let AnswerSource::Flight { progress, .. } = &mut self.source else { return Ok(()) };
        let news = progress.wait_for(|now| now.accepted || now.end.is_some()).await;
        match &news.map_err(|_| lost())?.end {
            Some(Err(error)) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// The next event.
    ///
    /// # Errors
    /// The image is bad or the model failed; nothing follows.
    pub async fn next(&mut self) -> Result<CaptionEvent> {
        loop {
            let (progress, seen) = match &mut self.source {
                AnswerSource::Known(answer) => {
                    let answer = Arc::clone(answer);
                    return Ok(CaptionEvent::Done(self.remembered(&answer)));
                }
                AnswerSource::Flight { progress, seen, .. } => (progress, seen),
            };
            // Nothing is held across the await below.
            let news = {
                let now = progress.borrow_and_update();
                if now.ids.len() > *seen {
                    *seen += 1;
                    StreamUpdate::Tokens(now.ids[..*seen].to_vec())
                } else {
                    now.end.clone().map_or(StreamUpdate::None, StreamUpdate::End)
                }
            };
            match news {
                StreamUpdate::Tokens(ids) => {
                    let text = self.caller.captioner.decode(&ids)?;
                    if let Some(text) = self.news(text) {
                        return Ok(CaptionEvent::Text(text));
                    }
                }
                StreamUpdate::End(end) => return Ok(CaptionEvent::Done(self.finish(&*end?))),
                StreamUpdate::None => progress.changed().await.map_err(|_| lost())?,
            }
        }
    }

    /// The text so far in the caller's style. In another than the model's own a new word may change
    /// nothing: it is left out, repeated or beyond the end.
    fn news(&mut self, text: String) -> Option<String> {
        if self.caller.text.style == Style::Caption {
            return Some(text);
        }
        let text = self.caller.text.so_far(&text);
        if text.is_empty() || text == self.told {
            return None;
        }
        self.told.clone_from(&text);
        Some(text)
    }

    /// The answer: the fold of the events that are left.
    ///
    /// # Errors
    /// Those of [`next`](Self::next).
    pub async fn end(&mut self) -> Result<Caption> {
        if let AnswerSource::Flight { progress, seen, .. } = &mut self.source {
            let now = progress.wait_for(|now| now.end.is_some()).await.map_err(|_| lost())?;
            // Texts on the way are not asked for, so none is made.
            *seen = now.ids.len();
        }
        loop {
            if let CaptionEvent::Done(caption) = self.next().await? {
                return Ok(*caption);
            }
        }
    }

    /// Nothing was decoded or computed, so nothing took time but finding it.
    fn remembered(&self, answer: &Answer) -> Box<Caption> {
        self.assemble(answer, CacheState::Hit, None, [Duration::ZERO; 3])
    }

    fn finish(&self, work: &ComputedAnswer) -> Box<Caption> {
        let joined = matches!(self.source, AnswerSource::Flight { joined: true, .. });
        let mut caption = if joined {
            // The times of the work are the first caller's; this one waited for it, and no more.
            let times = [Duration::ZERO, Duration::ZERO, self.caller.begin.elapsed()];
            self.assemble(&work.answer, CacheState::Coalesced, None, times)
        } else {
            let times = [work.decode, work.queued, work.inference];
            self.assemble(&work.answer, CacheState::Miss, work.vision, times)
        };
        caption.batch_size = Some(work.batch_size);
        caption
    }

    fn assemble(
        &self,
        answer: &Answer,
        cache: CacheState,
        vision_cache: Option<VisionCacheState>,
        [decode, queued, inference]: [Duration; 3],
    ) -> Box<Caption> {
        let captioner = &self.caller.captioner;
        let (captions, fallback) =
            styled(&answer.choices, self.caller.text, captioner.fallback_text());
        Box::new(Caption {
            // The worker makes no answer without a choice.
            caption: captions.first().map(|best| best.text.clone()).unwrap_or_default(),
            captions,
            fallback,
            model: captioner.info().id.clone(),
            cache,
            vision_cache,
            image: answer.image.clone(),
            colors: self.caller.colors.then(|| answer.colors.clone()),
            timings: Timings {
                decode_ms: milliseconds(decode),
                queue_ms: milliseconds(queued),
                inference_ms: milliseconds(inference),
                total_ms: milliseconds(self.caller.begin.elapsed()),
            },
            batch_size: None,
        })
    }
}

/// The task that computed it was stopped, which happens only when the program ends.
fn lost() -> Error {
    Error::internal("the work on the caption ended before the caption")
}
