//! Computes one caption for everyone who waits for it: decode the image, wait for the model, store
//! the result.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answer::{Answer, CaptionProgress, ComputedAnswer, EncodedImageEntry};
use super::budget::{Permit, Photo};
use super::rank::not_compared;
use super::{
    Appearance, Captioner, CaptionerInner, Choice, ImageInfo, Preview, TokenSequence,
    VisionCacheState,
};
use crate::cache::{Key, Leader};
use crate::engine::{EncodedImage, GenerationParams, ImageInput, Sequence, Work};
use crate::metrics::{CacheName, Lookup, Stage};
use crate::scheduler::{JobEvent, JobRequest, QueueSlot};
use cutline_error::{Error, Result};
use cutline_image::{Colors, DecodeLimits, ImageHeader, PreprocessConfig, decode_for};

/// A caption to compute, with the resources that are reserved for it.
#[derive(Debug)]
pub(super) struct CaptionTask {
    pub(super) photo: Photo,
    pub(super) hash: blake3::Hash,
    pub(super) begin_with: Beginning,
    pub(super) params: GenerationParams,
    pub(super) slot: QueueSlot,
    /// Memory for the model's input.
    pub(super) permit: Permit,
    pub(super) vision: VisionCacheUse,
    /// Where its answer may be in the cache that several servers share.
    #[cfg(feature = "redis")]
    pub(super) shared: Option<super::shared::SharedKey>,
}

/// What a text is written after, as token ids.
#[derive(Debug, Clone, Default)]
pub(super) struct Beginning {
    /// What it continues; empty for none.
    pub(super) prompt: Vec<u32>,
    /// What it answers; empty for none.
    pub(super) question: Vec<u32>,
}

/// How a task may use the cache of encoded images.
#[derive(Debug, Clone, Copy)]
pub(super) enum VisionCacheUse {
    /// Read it, and write a new image.
    ReadWrite(Key),
    /// Only write.
    Write(Key),
    /// Neither.
    None,
}

/// An image that is ready for the model.
pub(super) struct PreparedImage {
    pub(super) image: ImageInfo,
    colors: Colors,
    preview: Option<Arc<Preview>>,
    vision: Option<VisionCacheState>,
}

/// Computes `task` until it is done or nobody waits for it any more.
pub(super) async fn drive(
    captioner: Captioner,
    leader: Leader<CaptionProgress>,
    task: CaptionTask,
) {
    #[cfg(feature = "redis")]
    let shared = task.shared;
    let result = tokio::select! {
        result = find_or_compute(&captioner, &leader, task) => result,
        // Dropping the computation also removes its job from queue and model.
        () = leader.abandoned() => return,
    };
    #[cfg(feature = "redis")]
    if let (Some(key), Ok(computed)) = (shared, &result) {
        captioner.store_shared(key, computed);
    }
    let answer = result.as_ref().ok().map(|computed| Arc::clone(&computed.answer));
    leader.finish(
        |key| {
            // Failures are not stored: the next request tries again.
            if let Some(answer) = answer {
                captioner.inner.answers.put(key, answer);
            }
        },
        |progress| progress.end = Some(result.map(Arc::new)),
    );
}

/// The answer from the cache that several servers share, or else a new one.
async fn find_or_compute(
    captioner: &Captioner,
    leader: &Leader<CaptionProgress>,
    task: CaptionTask,
) -> Result<ComputedAnswer> {
    #[cfg(feature = "redis")]
    if let Some(key) = task.shared
        && let Some(found) = captioner.find_shared(key, &task.hash, task.photo.len()).await
    {
        return Ok(found);
    }
    compute(captioner, leader, task).await
}

async fn compute(
    captioner: &Captioner,
    leader: &Leader<CaptionProgress>,
    task: CaptionTask,
) -> Result<ComputedAnswer> {
    let begin = Instant::now();
    let CaptionTask { photo, hash, begin_with, params, slot, permit, vision, .. } = task;
    let Beginning { prompt, question } = begin_with;
    let prompt_tokens = prompt.len();
    let (image, prepared) = prepare(captioner, photo, hash, vision).await?;
    let decode = begin.elapsed();
    let mut features = match &image {
        ImageInput::Encoded(encoded) => encoded.features().map(<[f32]>::to_vec),
        ImageInput::Pixels(_) | ImageInput::Nothing => None,
    };
    let task = if question.is_empty() {
        params.into()
    } else {
        Work::Answer { question, task: params.into() }
    };
    let mut submission = slot.submit(JobRequest { image, prompt, task })?;
    leader.update(|progress| progress.accepted = true);
    let mut queued = Duration::ZERO;
    loop {
        match submission.next().await {
            Some(JobEvent::Started { queued: time }) => {
                queued = time;
                leader.update(|progress| progress.started = true);
            }
            Some(JobEvent::Encoded(encoded)) => {
                features = encoded.features().map(<[f32]>::to_vec);
                store_encoded(captioner, vision, encoded, &prepared);
            }
            Some(JobEvent::Token(token)) => leader.update(|progress| progress.ids.push(token)),
            Some(JobEvent::Done { sequences, inference, batch_size, .. }) => {
                drop(permit);
                let generated: usize = sequences.iter().map(|sequence| sequence.generated).sum();
                captioner.inner.metrics.tokens(prompt_tokens, generated);
                let choices = choices(captioner, &sequences)?;
                let PreparedImage { image, colors, preview, vision } = prepared;
                let answer = Arc::new(Answer { choices, image, colors, model: None });
                let appearance = captioner.inner.appearance;
                return Ok(ComputedAnswer {
                    answer,
                    appearance: appearance.map(|_| Arc::new(Appearance { preview, features })),
                    vision,
                    shared: false,
                    decode,
                    queued,
                    inference,
                    batch_size,
                });
            }
            Some(JobEvent::Failed(error)) => return Err(error),
            Some(JobEvent::Compared { .. }) => return Err(not_compared()),
            // The model's thread has ended.
            None => return Err(Error::model_stopped()),
        }
    }
}

pub(super) fn store_encoded(
    captioner: &Captioner,
    vision: VisionCacheUse,
    encoded: Arc<EncodedImage>,
    prepared: &PreparedImage,
) {
    if let VisionCacheUse::ReadWrite(key) | VisionCacheUse::Write(key) = vision {
        let PreparedImage { image, colors, preview, .. } = prepared;
        let entry = EncodedImageEntry {
            encoded,
            image: image.clone(),
            colors: colors.clone(),
            preview: preview.clone(),
        };
        captioner.inner.encoded_images.put(key, entry);
    }
}

/// The model's input: the encoded image from the cache, or pixels that are decoded now.
pub(super) async fn prepare(
    captioner: &Captioner,
    photo: Photo,
    hash: blake3::Hash,
    vision: VisionCacheUse,
) -> Result<(ImageInput, PreparedImage)> {
    let inner = &captioner.inner;
    if let VisionCacheUse::ReadWrite(key) = vision
        && let Some(entry) = inner.encoded_images.get(&key)
    {
        inner.metrics.lookup(CacheName::Images, Lookup::Hit);
        let EncodedImageEntry { encoded, image, colors, preview } = entry;
        let vision = Some(VisionCacheState::Hit);
        return Ok((encoded.into(), PreparedImage { image, colors, preview, vision }));
    }
    if let VisionCacheUse::ReadWrite(_) = vision
        && inner.encoded_images.is_enabled()
    {
        inner.metrics.lookup(CacheName::Images, Lookup::Miss);
    }
    let size = photo.len();
    let for_worker = Arc::clone(inner);
    let read = move |bytes: &[u8], limits: &DecodeLimits| -> Result<_> {
        let CaptionerInner { preprocess, metrics, .. } = &*for_worker;
        let decoded = metrics.timed(Stage::Decode, || {
            decode_for(bytes, limits, preprocess.width, preprocess.height)
        })?;
        let (pixels, preview) =
            metrics.timed(Stage::Preprocess, || for_worker.preprocess(&decoded))?;
        // Even for callers that do not want colours, because the answer is shared and cached.
        let colors = metrics.timed(Stage::Analysis, || Ok(Colors::of(&decoded)))?;
        Ok((pixels, ImageInfo::of(&hash, size, &decoded), colors, preview))
    };
    let scaling = |header: &ImageHeader| scaling_bytes(header, &inner.preprocess);
    let (pixels, image, colors, preview) = inner.decoders.run(photo, scaling, read).await?;
    let vision = match vision {
        VisionCacheUse::ReadWrite(_) | VisionCacheUse::Write(_)
            if inner.encoded_images.is_enabled() =>
        {
            Some(VisionCacheState::Miss)
        }
        _ => None,
    };
    Ok((pixels.into(), PreparedImage { image, colors, preview, vision }))
}

/// The largest input for which [`ImageHeader::peak_bytes`] includes the scaling.
const COUNTED_SIDE: u64 = 512;

/// Memory to scale an image to a larger input than [`ImageHeader::peak_bytes`] takes into account: the
/// image after one of the two passes, which has one of its sides already, and copies of the result.
fn scaling_bytes(header: &ImageHeader, input: &PreprocessConfig) -> u64 {
    let (width, height) = (input.width as u64, input.height as u64);
    if width.max(height) <= COUNTED_SIDE {
        return 0;
    }
    let between = width.saturating_mul(header.height).max(height.saturating_mul(header.width));
    between.max(width * height).saturating_mul(3).saturating_add(6 * width * height)
}

fn choices(captioner: &Captioner, sequences: &[Sequence]) -> Result<Vec<Choice>> {
    if sequences.is_empty() {
        return Err(Error::internal("the model finished without a sequence"));
    }
    let choice = |sequence: &Sequence| {
        Ok(Choice {
            text: captioner.decode(&sequence.ids)?,
            confidence: captioner.inner.extras.confidence.share(sequence.confidence),
            tokens: sequence.generated,
            finish_reason: sequence.finish_reason,
            matching: None,
            sequence: TokenSequence {
                ids: sequence.ids.clone(),
                log_probabilities: sequence.log_probabilities.clone(),
                alternatives: sequence.alternatives.clone(),
            },
        })
    };
    sequences.iter().map(choice).collect()
}
