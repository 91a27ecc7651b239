//! One caption in the making.

use std::time::{Duration, Instant};

use super::{CacheState, Caption, Captioner, Choice, ImageInfo, Timings};
use crate::batching::{JobEvent, Submission};
use crate::engine::Sequence;
use crate::error::{Error, Result};
use crate::image::Appearance;

/// What happens on the way to a caption.
#[derive(Debug, Clone, PartialEq)]
pub enum CaptionEvent {
    /// The text so far, prompt included. Not sent by beam search, which knows only the end.
    Text(String),
    /// The whole answer; nothing follows.
    Done(Box<Caption>),
}

/// An accepted image. Dropping it stops the work.
#[derive(Debug)]
pub struct Run {
    captioner: Captioner,
    submission: Submission,
    image: ImageInfo,
    appearance: Option<Appearance>,
    begin: Instant,
    decode: Duration,
    queued: Duration,
    /// The prompt and what was written so far.
    ids: Vec<u32>,
}

impl Run {
    pub(super) fn new(
        captioner: Captioner,
        submission: Submission,
        image: ImageInfo,
        appearance: Option<Appearance>,
        prompt: Vec<u32>,
        begin: Instant,
        decode: Duration,
    ) -> Self {
        let queued = Duration::ZERO;
        Self { captioner, submission, image, appearance, begin, decode, queued, ids: prompt }
    }

    /// The photo, known before its caption.
    #[must_use]
    pub fn image(&self) -> &ImageInfo {
        &self.image
    }

    /// The next event.
    ///
    /// # Errors
    /// The model failed, or its thread ended; nothing follows.
    pub async fn next(&mut self) -> Result<CaptionEvent> {
        loop {
            match self.submission.next().await {
                Some(JobEvent::Started { queued }) => self.queued = queued,
                Some(JobEvent::Token(token)) => {
                    self.ids.push(token);
                    return Ok(CaptionEvent::Text(self.captioner.decode(&self.ids)?));
                }
                Some(JobEvent::Done { sequences, inference }) => {
                    return self.finish(&sequences, inference).map(CaptionEvent::Done);
                }
                Some(JobEvent::Failed(error)) => return Err(error),
                None => return Err(Error::internal("the model's thread ended before the caption")),
            }
        }
    }

    fn finish(&self, sequences: &[Sequence], inference: Duration) -> Result<Box<Caption>> {
        let captions = sequences
            .iter()
            .map(|sequence| {
                Ok(Choice {
                    text: self.captioner.decode(&sequence.ids)?,
                    confidence: sequence.confidence,
                    tokens: sequence.generated,
                    finish_reason: sequence.finish_reason,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let best = captions
            .first()
            .ok_or_else(|| Error::internal("the model finished without a sequence"))?;
        Ok(Box::new(Caption {
            caption: best.text.clone(),
            model: self.captioner.info().id.clone(),
            cache: CacheState::Miss,
            image: self.image.clone(),
            appearance: self.appearance.clone(),
            timings: Timings {
                decode_ms: milliseconds(self.decode),
                queue_ms: milliseconds(self.queued),
                inference_ms: milliseconds(inference),
                total_ms: milliseconds(self.begin.elapsed()),
            },
            captions,
        }))
    }
}

/// Milliseconds with a resolution of a microsecond.
pub(super) fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
