//! One caption in the making, as it is made: decode, wait for the model, keep what comes of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answer::{Answer, Finished, Progress, Seen};
use super::budget::{Permit, Photo};
use super::{Captioner, Choice, ImageInfo, Inner, VisionCacheState};
use crate::cache::{Key, Leader};
use crate::engine::{EncodedImage, GenerationParams, ImageInput, Sequence};
use crate::metrics::{CacheName, Lookup, Stage};
use crate::scheduler::{JobEvent, Place, Work};
use cutline_error::{Error, Result};
use cutline_image::{Colors, DecodeLimits, decode_for};

/// What is to be computed, and for what it may be used.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) photo: Photo,
    pub(super) hash: blake3::Hash,
    pub(super) prompt: Vec<u32>,
    pub(super) params: GenerationParams,
    pub(super) place: Place,
    /// For the pixels that the model reads.
    pub(super) permit: Permit,
    pub(super) vision: VisionUse,
}

/// What the cache of encoded images may do for a task.
#[derive(Debug, Clone, Copy)]
pub(super) enum VisionUse {
    /// Read it, and write what is new.
    ReadWrite(Key),
    /// Only write.
    Write(Key),
    /// Neither.
    None,
}

/// What is known of an image that is ready for the model.
struct Prepared {
    image: ImageInfo,
    appearance: Colors,
    vision: Option<VisionCacheState>,
}

/// Computes `task` until it is done or nobody waits for it any more.
pub(super) async fn drive(captioner: Captioner, lead: Leader<Progress>, task: Task) {
    let result = tokio::select! {
        result = compute(&captioner, &lead, task) => result,
        // Dropping the work takes it back from queue and model.
        () = lead.abandoned() => return,
    };
    let kept = result.as_ref().ok().map(|finished| Arc::clone(&finished.answer));
    lead.land(
        |key| {
            // Failures are not kept: the next one who asks may have more luck.
            if let Some(answer) = kept {
                captioner.inner.answers.put(key, answer);
            }
        },
        |progress| progress.end = Some(result.map(Arc::new)),
    );
}

async fn compute(captioner: &Captioner, lead: &Leader<Progress>, task: Task) -> Result<Finished> {
    let begin = Instant::now();
    let Task { photo, hash, prompt, params, place, permit, vision } = task;
    let read = prompt.len();
    let prepared = prepare(captioner, photo, hash, vision).await?;
    let decode = begin.elapsed();
    let (input, prepared) = prepared;
    let mut submission = place.submit(Work { image: input, prompt, params, deadline: None })?;
    lead.update(|progress| progress.accepted = true);
    let mut queued = Duration::ZERO;
    loop {
        match submission.next().await {
            Some(JobEvent::Started { queued: time }) => queued = time,
            Some(JobEvent::Encoded(encoded)) => {
                remember(captioner, vision, encoded, &prepared);
            }
            Some(JobEvent::Token(token)) => lead.update(|progress| progress.ids.push(token)),
            Some(JobEvent::Done { sequences, inference, batch_size }) => {
                drop(permit);
                let written: usize = sequences.iter().map(|sequence| sequence.generated).sum();
                captioner.inner.metrics.tokens(read, written);
                let choices = choices(captioner, &sequences)?;
                let Prepared { image, appearance, .. } = prepared;
                let answer = Arc::new(Answer { choices, image, appearance });
                let vision = prepared.vision;
                return Ok(Finished { answer, vision, decode, queued, inference, batch_size });
            }
            Some(JobEvent::Failed(error)) => return Err(error),
            None => return Err(Error::internal("the model's thread ended before the caption")),
        }
    }
}

fn remember(
    captioner: &Captioner,
    vision: VisionUse,
    encoded: Arc<EncodedImage>,
    prepared: &Prepared,
) {
    if let VisionUse::ReadWrite(key) | VisionUse::Write(key) = vision {
        let (image, appearance) = (prepared.image.clone(), prepared.appearance.clone());
        captioner.inner.seen.put(key, Seen { encoded, image, appearance });
    }
}

/// What the model is to look at: encoded, if it looked at it before, else decoded now.
async fn prepare(
    captioner: &Captioner,
    photo: Photo,
    hash: blake3::Hash,
    vision: VisionUse,
) -> Result<(ImageInput, Prepared)> {
    if let VisionUse::ReadWrite(key) = vision
        && let Some(Seen { encoded, image, appearance }) = captioner.inner.seen.get(&key)
    {
        captioner.inner.metrics.lookup(CacheName::Images, Lookup::Hit);
        let vision = Some(VisionCacheState::Hit);
        return Ok((encoded.into(), Prepared { image, appearance, vision }));
    }
    let inner = Arc::clone(&captioner.inner);
    let size = photo.len();
    let read = move |bytes: &[u8], limits: &DecodeLimits| -> Result<_> {
        let Inner { preprocess, metrics, .. } = &*inner;
        let decoded = metrics.timed(Stage::Decode, || {
            decode_for(bytes, limits, preprocess.width, preprocess.height)
        })?;
        let pixels = metrics.timed(Stage::Preprocess, || preprocess.preprocess(&decoded))?;
        // Even for those who do not ask for it: others may ask for the same photo.
        let appearance = metrics.timed(Stage::Analysis, || Ok(Colors::of(&decoded)))?;
        Ok((pixels, ImageInfo::of(&hash, size, &decoded), appearance))
    };
    if let VisionUse::ReadWrite(_) = vision
        && captioner.inner.seen.keeps()
    {
        captioner.inner.metrics.lookup(CacheName::Images, Lookup::Miss);
    }
    let (pixels, image, appearance) = captioner.inner.decoders.run(photo, read).await?;
    let vision = match vision {
        VisionUse::ReadWrite(_) | VisionUse::Write(_) if captioner.inner.seen.keeps() => {
            Some(VisionCacheState::Miss)
        }
        _ => None,
    };
    Ok((pixels.into(), Prepared { image, appearance, vision }))
}

fn choices(captioner: &Captioner, sequences: &[Sequence]) -> Result<Vec<Choice>> {
    if sequences.is_empty() {
        return Err(Error::internal("the model finished without a sequence"));
    }
    let choice = |sequence: &Sequence| {
        Ok(Choice {
            text: captioner.decode(&sequence.ids)?,
            confidence: sequence.confidence,
            tokens: sequence.generated,
            finish_reason: sequence.finish_reason,
        })
    };
    sequences.iter().map(choice).collect()
}
