//! One caption in the making, as it is made: decode, wait for the model, keep what comes of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answer::{Answer, Finished, Progress, Seen};
use super::budget::{Permit, Photo};
use super::{Captioner, Choice, ImageInfo, Inner, VisionCacheState};
use crate::batching::{JobEvent, Place, Work};
use crate::cache::{Key, Lead};
use crate::engine::{EncodedImage, GenerationParams, ImageInput, PixelValues, Sequence};
use crate::error::{Error, ErrorKind, Result};
use crate::image::decode;

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

/// An image, ready for the model.
struct Prepared {
    input: ImageInput,
    image: ImageInfo,
    vision: Option<VisionCacheState>,
}

/// Computes `task` until it is done or nobody waits for it any more.
pub(super) async fn drive(captioner: Captioner, lead: Lead<Progress>, task: Task) {
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

async fn compute(captioner: &Captioner, lead: &Lead<Progress>, task: Task) -> Result<Finished> {
    let begin = Instant::now();
    let Task { photo, hash, prompt, params, place, permit, vision } = task;
    let prepared = prepare(captioner, photo, hash, vision).await?;
    let decode = begin.elapsed();
    let mut submission =
        place.submit(Work { image: prepared.input, prompt, params, deadline: None })?;
    lead.update(|progress| progress.accepted = true);
    let mut queued = Duration::ZERO;
    loop {
        match submission.next().await {
            Some(JobEvent::Started { queued: time }) => queued = time,
            Some(JobEvent::Encoded(encoded)) => {
                remember(captioner, vision, encoded, &prepared.image);
            }
            Some(JobEvent::Token(token)) => lead.update(|progress| progress.ids.push(token)),
            Some(JobEvent::Done { sequences, inference, .. }) => {
                drop(permit);
                let choices = choices(captioner, &sequences)?;
                let answer = Arc::new(Answer { choices, image: prepared.image });
                return Ok(Finished { answer, vision: prepared.vision, decode, queued, inference });
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
    image: &ImageInfo,
) {
    if let VisionUse::ReadWrite(key) | VisionUse::Write(key) = vision {
        captioner.inner.seen.put(key, Seen { encoded, image: image.clone() });
    }
}

/// What the model is to look at: encoded, if it looked at it before, else decoded now.
async fn prepare(
    captioner: &Captioner,
    photo: Photo,
    hash: blake3::Hash,
    vision: VisionUse,
) -> Result<Prepared> {
    if let VisionUse::ReadWrite(key) = vision
        && let Some(Seen { encoded, image }) = captioner.inner.seen.get(&key)
    {
        let vision = Some(VisionCacheState::Hit);
        return Ok(Prepared { input: encoded.into(), image, vision });
    }
    let (pixels, image) = decode_beside(captioner, photo, hash).await?;
    let vision = match vision {
        VisionUse::ReadWrite(_) | VisionUse::Write(_) if captioner.inner.seen.keeps() => {
            Some(VisionCacheState::Miss)
        }
        _ => None,
    };
    Ok(Prepared { input: pixels.into(), image, vision })
}

/// Decodes and resizes on a thread that may take its time.
async fn decode_beside(
    captioner: &Captioner,
    photo: Photo,
    hash: blake3::Hash,
) -> Result<(PixelValues, ImageInfo)> {
    let permit = Arc::clone(&captioner.inner.decoders)
        .acquire_owned()
        .await
        .map_err(|e| Error::internal("image workers are closed").with_source(e))?;
    let inner = Arc::clone(&captioner.inner);
    let work = tokio::task::spawn_blocking(move || {
        // Held by the work, not by the caller: a caller that leaves does not free the core.
        let _permit = permit;
        inner.read(&photo, hash)
    });
    match work.await {
        Ok(result) => result,
        Err(join) if join.is_panic() => Err(Error::new(
            ErrorKind::UndecodableImage,
            "the image is damaged in a way that its decoder cannot handle; send it re-encoded",
        )
        .with_source(join)),
        Err(join) => Err(Error::internal("the image was not decoded").with_source(join)),
    }
}

impl Inner {
    fn read(&self, photo: &Photo, hash: blake3::Hash) -> Result<(PixelValues, ImageInfo)> {
        let decoded = decode(&photo.bytes, &self.limits)?;
        let pixels = self.preprocess.preprocess(&decoded)?;
        let image = ImageInfo {
            hash: format!("blake3:{}", hash.to_hex()),
            format: decoded.format.to_string(),
            width: decoded.width,
            height: decoded.height,
            size_bytes: photo.len(),
        };
        Ok((pixels, image))
    }
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
