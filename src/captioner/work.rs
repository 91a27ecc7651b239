//! One caption in the making, as it is made: decode, wait for the model, keep what comes of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answer::{Answer, CaptionProgress, ComputedAnswer, EncodedImageEntry};
use super::budget::{Permit, Photo};
use super::{Captioner, CaptionerInner, Choice, ImageInfo, VisionCacheState};
use crate::cache::{Key, Leader};
use crate::engine::{EncodedImage, GenerationParams, ImageInput, Sequence};
use crate::metrics::{CacheName, Lookup, Stage};
use crate::scheduler::{JobEvent, JobRequest, QueueSlot};
use cutline_error::{Error, Result};
use cutline_image::{Colors, DecodeLimits, decode_for};

/// What is to be computed, and for what it may be used.
#[derive(Debug)]
pub(super) struct CaptionTask {
    pub(super) photo: Photo,
    pub(super) hash: blake3::Hash,
    pub(super) prompt: Vec<u32>,
    pub(super) params: GenerationParams,
    pub(super) slot: QueueSlot,
    /// For the pixels that the model reads.
    pub(super) permit: Permit,
    pub(super) vision: VisionCacheUse,
}

/// What the cache of encoded images may do for a task.
#[derive(Debug, Clone, Copy)]
pub(super) enum VisionCacheUse {
    /// Read it, and write what is new.
    ReadWrite(Key),
    /// Only write.
    Write(Key),
    /// Neither.
    None,
}

/// What is known of an image that is ready for the model.
struct PreparedImage {
    image: ImageInfo,
    colors: Colors,
    vision: Option<VisionCacheState>,
}

/// Computes `task` until it is done or nobody waits for it any more.
pub(super) async fn drive(
    captioner: Captioner,
    leader: Leader<CaptionProgress>,
    task: CaptionTask,
) {
    let result = tokio::select! {
        result = compute(&captioner, &leader, task) => result,
        // Dropping the work takes it back from queue and model.
        () = leader.abandoned() => return,
    };
    let kept = result.as_ref().ok().map(|finished| Arc::clone(&finished.answer));
    leader.finish(
        |key| {
            // Failures are not kept: the next one who asks may have more luck.
            if let Some(answer) = kept {
                captioner.inner.answers.put(key, answer);
            }
        },
        |progress| progress.end = Some(result.map(Arc::new)),
    );
}

async fn compute(
    captioner: &Captioner,
    leader: &Leader<CaptionProgress>,
    task: CaptionTask,
) -> Result<ComputedAnswer> {
    let begin = Instant::now();
    let CaptionTask { photo, hash, prompt, params, slot, permit, vision } = task;
    let read = prompt.len();
    let prepared = prepare(captioner, photo, hash, vision).await?;
    let decode = begin.elapsed();
    let (input, prepared) = prepared;
    let mut submission = slot.submit(JobRequest { image: input, prompt, params })?;
    leader.update(|progress| progress.accepted = true);
    let mut queued = Duration::ZERO;
    loop {
        match submission.next().await {
            Some(JobEvent::Started { queued: time }) => queued = time,
            Some(JobEvent::Encoded(encoded)) => {
                remember(captioner, vision, encoded, &prepared);
            }
            Some(JobEvent::Token(token)) => leader.update(|progress| progress.ids.push(token)),
            Some(JobEvent::Done { sequences, inference, batch_size }) => {
                drop(permit);
                let written: usize = sequences.iter().map(|sequence| sequence.generated).sum();
                captioner.inner.metrics.tokens(read, written);
                let choices = choices(captioner, &sequences)?;
                let PreparedImage { image, colors, .. } = prepared;
                let answer = Arc::new(Answer { choices, image, colors });
                let vision = prepared.vision;
                return Ok(ComputedAnswer {
                    answer,
                    vision,
                    decode,
                    queued,
                    inference,
                    batch_size,
                });
            }
            Some(JobEvent::Failed(error)) => return Err(error),
            None => return Err(Error::internal("the model's thread ended before the caption")),
        }
    }
}

fn remember(
    captioner: &Captioner,
    vision: VisionCacheUse,
    encoded: Arc<EncodedImage>,
    prepared: &PreparedImage,
) {
    if let VisionCacheUse::ReadWrite(key) | VisionCacheUse::Write(key) = vision {
        let (image, colors) = (prepared.image.clone(), prepared.colors.clone());
        captioner.inner.encoded_images.put(key, EncodedImageEntry { encoded, image, colors });
    }
}

/// What the model is to look at: encoded, if it looked at it before, else decoded now.
async fn prepare(
    captioner: &Captioner,
    photo: Photo,
    hash: blake3::Hash,
    vision: VisionCacheUse,
) -> Result<(ImageInput, PreparedImage)> {
    if let VisionCacheUse::ReadWrite(key) = vision
        && let Some(EncodedImageEntry { encoded, image, colors }) =
            captioner.inner.encoded_images.get(&key)
    {
        captioner.inner.metrics.lookup(CacheName::Images, Lookup::Hit);
        let vision = Some(VisionCacheState::Hit);
        return Ok((encoded.into(), PreparedImage { image, colors, vision }));
    }
    let inner = Arc::clone(&captioner.inner);
    let size = photo.len();
    let read = move |bytes: &[u8], limits: &DecodeLimits| -> Result<_> {
        let CaptionerInner { preprocess, metrics, .. } = &*inner;
        let decoded = metrics.timed(Stage::Decode, || {
            decode_for(bytes, limits, preprocess.width, preprocess.height)
        })?;
        let pixels = metrics.timed(Stage::Preprocess, || preprocess.preprocess(&decoded))?;
        // Even for those who do not ask for it: others may ask for the same photo.
        let colors = metrics.timed(Stage::Analysis, || Ok(Colors::of(&decoded)))?;
        Ok((pixels, ImageInfo::of(&hash, size, &decoded), colors))
    };
    if let VisionCacheUse::ReadWrite(_) = vision
        && captioner.inner.encoded_images.keeps()
    {
        captioner.inner.metrics.lookup(CacheName::Images, Lookup::Miss);
    }
    let (pixels, image, colors) = captioner.inner.decoders.run(photo, read).await?;
    let vision = match vision {
        VisionCacheUse::ReadWrite(_) | VisionCacheUse::Write(_)
            if captioner.inner.encoded_images.keeps() =>
        {
            Some(VisionCacheState::Miss)
        }
        _ => None,
    };
    Ok((pixels.into(), PreparedImage { image, colors, vision }))
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
