//! How well given texts fit a photo.
//!
//! The model is asked how probable it finds each text after a prompt, for the photo and for images
//! without content. Half of the latter is subtracted, because some texts are probable for any photo. In
//! full, this would be the pointwise mutual information of text and photo; *VisualGPTScore* (Lin et al.,
//! 2024) estimates that for BLIP in this way, and weights it as well.

use std::collections::HashMap;
use std::sync::Arc;

use super::budget::Permit;
use super::work::{self, PreparedImage, VisionCacheUse};
use super::{Captioner, CaptionerInner, Photo, Priority};
use crate::cache::Weigh;
use crate::engine::{
    Ability, ClosedSet, EncodedImage, Entry, FinishReason, ImageInput, MAX_BEAMS, Sequence, Task,
};
use crate::scheduler::{JobEvent, JobRequest, QueueSlot, Submission};
use cutline_error::{Error, Result};
use cutline_image::PixelValues;

/// Branches of the texts' tree that one step reads. Not more than the rows of the widest beam search, for
/// which there is memory.
pub(super) const ROWS: usize = MAX_BEAMS;

/// The most texts of one request.
pub const MAX_TEXTS: usize = 1000;

/// The longest of them, in bytes.
const MAX_TEXT_BYTES: usize = 256;

/// Images without content.
pub(super) const BLANK_IMAGES: u8 = 4;

/// The weight of what the model expects without a photo. Of 272 unseen COCO photos with one kind of object,
/// the first version of the embedded model ranked its name first among COCO's 80 names in 37 % with a
/// weight of 0, in 41 % with this one, and in 30 % with 1.
pub(super) const PRIOR_WEIGHT: f32 = 0.5;

/// For each text, the parts of the logarithm of its probability: of each token after those before it, and
/// in the end of not being continued by another text.
#[derive(Debug, Clone)]
pub(super) struct Priors(pub(super) Arc<Vec<Vec<f32>>>);

impl Weigh for Priors {
    fn bytes(&self) -> usize {
        let parts = self.0.iter().map(|parts| parts.capacity() * size_of::<f32>()).sum::<usize>();
        size_of::<Self>()
            + 2 * size_of::<usize>()
            + self.0.capacity() * size_of::<Vec<f32>>()
            + parts
    }
}

/// A prompt and the texts that may follow it, as tokens.
#[derive(Debug, Clone)]
pub(super) struct TextSet {
    pub(super) prompt: Vec<u32>,
    pub(super) texts: Vec<Vec<u32>>,
}

/// What the model says about a text.
#[derive(Debug, Clone)]
struct Said {
    /// The logarithm of its probability.
    score: f32,
    /// Those of its tokens.
    tokens: Vec<f32>,
}

impl Captioner {
    /// How well each of `texts` fits the photo after `prompt`: the logarithm of its probability, less
    /// half that of its probability for an image without content. Only differences within one call have a
    /// meaning.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter), naming `field`, if there are no
    /// texts or too many, or if one has no word pieces in this model or too many. Otherwise as
    /// [`caption`](Self::caption).
    pub async fn fit(
        &self,
        photo: Photo,
        prompt: &str,
        texts: &[String],
        field: &'static str,
    ) -> Result<Vec<f32>> {
        self.require(Ability::Caption)?;
        let free = self.uncharged();
        let work = free.fit_free(photo, prompt, texts, field);
        self.charged(self.info().image_tokens, work, |_| 0).await
    }

    async fn fit_free(
        &self,
        photo: Photo,
        prompt: &str,
        texts: &[String],
        field: &'static str,
    ) -> Result<Vec<f32>> {
        let for_worker = self.clone();
        let (prompt, texts) = (prompt.to_owned(), texts.to_vec());
        // A thousand texts take the tokenizer many milliseconds.
        let read = tokio::task::spawn_blocking(move || for_worker.text_set(&prompt, &texts, field));
        let set =
            read.await.map_err(|e| Error::internal("the texts were lost").with_source(e))??;
        let slot = self.slot(Priority::Interactive)?;
        let (hash, photo) = hashed(photo).await?;
        let (permit, image, kept) = self.read_image(photo, hash).await?;
        let mut search = RankedImage { captioner: self, image, kept: Some(kept) };
        let scores = search.scores(&set, slot).await?;
        drop(permit);
        let priors = self.priors(&set).await?;
        Ok(scores
            .iter()
            .zip(&*priors.0)
            .map(|(said, prior)| said.score - PRIOR_WEIGHT * prior.iter().sum::<f32>())
            .collect())
    }

    /// Makes a photo ready for the model: memory for the model's input, the image, and where its encoding
    /// is kept.
    pub(super) async fn read_image(
        &self,
        photo: Photo,
        hash: blake3::Hash,
    ) -> Result<(Permit, ImageInput, (VisionCacheUse, PreparedImage))> {
        let permit = self.budget().take(self.inner.preprocess.input_bytes() as u64)?;
        let vision = VisionCacheUse::ReadWrite(self.inner.keys.vision(&hash));
        let (image, prepared) = work::prepare(self, photo, hash, vision).await?;
        Ok((permit, image, (vision, prepared)))
    }

    pub(super) fn slot(&self, priority: Priority) -> Result<QueueSlot> {
        let slot = self.inner.scheduler.reserve(1, self.priority(priority))?.pop();
        slot.ok_or_else(|| Error::internal("a queue slot was lost"))
    }

    fn text_set(&self, prompt: &str, texts: &[String], field: &'static str) -> Result<TextSet> {
        let invalid = |detail: String| Err(Error::parameter(field, detail));
        if texts.is_empty() || texts.len() > MAX_TEXTS {
            return invalid(format!("{field} must have between 1 and {MAX_TEXTS} texts"));
        }
        let tokenizer = &self.inner.tokenizer;
        let positions = self.inner.info.max_positions;
        if prompt.len().max(texts.iter().map(String::len).max().unwrap_or(0)) > MAX_TEXT_BYTES {
            return invalid(format!(
                "the texts of {field} may have {MAX_TEXT_BYTES} bytes each; shorten them"
            ));
        }
        let prompt = tokenizer.encode(prompt)?;
        let texts =
            texts.iter().map(|text| tokenizer.encode_next(text)).collect::<Result<Vec<_>>>()?;
        if texts.iter().any(Vec::is_empty) {
            return invalid(format!("a text of {field} has no words; leave it out"));
        }
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        // The first token of a sequence has a position as well.
        if 1 + prompt.len() + longest > positions {
            return invalid(format!("a text of {field} is too long for this model; shorten it"));
        }
        Ok(TextSet { prompt, texts })
    }

    /// What the model expects of the texts without a photo: the mean over images without content.
    pub(super) async fn priors(&self, set: &TextSet) -> Result<Priors> {
        let inner = &*self.inner;
        let key = inner.keys.priors(&set.prompt, &set.texts);
        if let Some(priors) = inner.priors.get(&key) {
            return Ok(priors);
        }
        // Of each text, the probabilities of its beginnings, and in the end its own.
        let length = |text: &Vec<u32>| vec![0.0_f64; text.len() + 1];
        let mut sums: Vec<Vec<f64>> = set.texts.iter().map(length).collect();
        for image in self.blank_images().await? {
            let image = ImageInput::Encoded(Arc::clone(image));
            let mut search = RankedImage { captioner: self, image, kept: None };
            let scores = search.scores(set, self.slot(Priority::Interactive)?).await?;
            for (sums, said) in sums.iter_mut().zip(scores) {
                let mut total = 0.0;
                for (sum, log) in sums.iter_mut().zip(&said.tokens) {
                    total += f64::from(*log);
                    *sum += total.exp();
                }
                if let Some(last) = sums.last_mut() {
                    *last += f64::from(said.score).exp();
                }
            }
        }
        let log = |sum: f64| (sum / f64::from(BLANK_IMAGES)).max(f64::MIN_POSITIVE).ln();
        let parts = |sums: Vec<f64>| {
            let mut before = 0.0;
            let part = |sum| (log(sum) - std::mem::replace(&mut before, log(sum))) as f32;
            sums.into_iter().map(part).collect()
        };
        let priors = Priors(Arc::new(sums.into_iter().map(parts).collect()));
        inner.priors.put(key, priors.clone());
        Ok(priors)
    }

    /// Images without content, encoded when they are first needed.
    pub(super) async fn blank_images(&self) -> Result<&[Arc<EncodedImage>]> {
        let encode = || async {
            let mut encoded = Vec::new();
            for n in 0..BLANK_IMAGES {
                encoded.push(self.encode(blank_image(&self.inner, n)).await?);
            }
            Ok(encoded)
        };
        self.inner.blank_images.get_or_try_init(encode).await.map(Vec::as_slice)
    }

    pub(super) async fn encode(&self, pixels: impl Into<ImageInput>) -> Result<Arc<EncodedImage>> {
        let anything =
            Entry { ids: vec![0], offset: 0.0, name_of: 0, group: 0, expected: Vec::new() };
        let task = Task::Rank(Arc::new(ClosedSet::new(vec![anything], 1, 1)?));
        let request = JobRequest { image: pixels.into(), prompt: Vec::new(), task: task.into() };
        let mut submission = self.slot(Priority::Interactive)?.submit(request)?;
        let mut image = None;
        finish(&mut submission, |encoded| image = Some(encoded)).await?;
        image.ok_or_else(|| Error::internal("an image was not encoded"))
    }
}

/// An image for which texts are ranked.
struct RankedImage<'a> {
    captioner: &'a Captioner,
    image: ImageInput,
    /// Where its encoding is kept.
    kept: Option<(VisionCacheUse, PreparedImage)>,
}

impl RankedImage<'_> {
    /// The logarithm of the probability of every text. One job has rows for some of the branches only, so
    /// that several may be necessary.
    async fn scores(&mut self, set: &TextSet, slot: QueueSlot) -> Result<Vec<Said>> {
        let mut slot = Some(slot);
        let mut scores: HashMap<Vec<u32>, Said> = HashMap::new();
        let mut left: Vec<Vec<u32>> = set.texts.clone();
        left.sort();
        left.dedup();
        while !left.is_empty() {
            let next = match slot.take() {
                Some(slot) => slot,
                None => self.captioner.slot(Priority::Interactive)?,
            };
            let before = left.len();
            let sequences = self.run(set, &left, next).await?;
            for sequence in sequences {
                if sequence.finish_reason == FinishReason::Stop
                    && let Some(score) = sequence.score
                {
                    let text = sequence.ids[1 + set.prompt.len()..].to_vec();
                    scores.insert(text, Said { score, tokens: sequence.log_probabilities });
                }
            }
            left.retain(|text| !scores.contains_key(text));
            if left.len() == before {
                return Err(Error::internal("the ranking of texts does not advance"));
            }
        }
        let none = Said { score: f32::NEG_INFINITY, tokens: Vec::new() };
        let said = |text| scores.get(text).unwrap_or(&none).clone();
        Ok(set.texts.iter().map(said).collect())
    }

    async fn run(
        &mut self,
        set: &TextSet,
        texts: &[Vec<u32>],
        slot: QueueSlot,
    ) -> Result<Vec<Sequence>> {
        let entry = |(n, ids): (usize, &Vec<u32>)| Entry {
            ids: ids.clone(),
            offset: 0.0,
            name_of: u32::try_from(n).unwrap_or(u32::MAX),
            group: 0,
            expected: Vec::new(),
        };
        let entries: Vec<Entry> = texts.iter().enumerate().map(entry).collect();
        let task = Task::Rank(Arc::new(ClosedSet::new(entries, texts.len(), ROWS)?));
        let (image, prompt) = (self.image.clone(), set.prompt.clone());
        let request = JobRequest { image, prompt, task: task.into() };
        let mut submission = slot.submit(request)?;
        let sequences = finish(&mut submission, |encoded| {
            if let Some((vision, prepared)) = &self.kept {
                work::store_encoded(self.captioner, *vision, Arc::clone(&encoded), prepared);
            }
            self.image = ImageInput::Encoded(encoded);
        });
        sequences.await
    }
}

/// Waits for the end of a job, and passes on the encoded image.
async fn finish(
    submission: &mut Submission,
    encoded: impl FnMut(Arc<EncodedImage>),
) -> Result<Vec<Sequence>> {
    Ok(finish_counted(submission, encoded).await?.0)
}

/// [`finish`], with the decode steps of the job.
pub(super) async fn finish_counted(
    submission: &mut Submission,
    mut encoded: impl FnMut(Arc<EncodedImage>),
) -> Result<(Vec<Sequence>, usize)> {
    loop {
        match submission.next().await {
            Some(JobEvent::Encoded(image)) => encoded(image),
            Some(JobEvent::Done { sequences, steps, .. }) => return Ok((sequences, steps)),
            Some(JobEvent::Failed(error)) => return Err(error),
            Some(JobEvent::Started { .. } | JobEvent::Token(_)) => {}
            Some(JobEvent::Compared { .. }) => return Err(not_compared()),
            None => return Err(Error::model_stopped()),
        }
    }
}

/// The end of another kind of job.
pub(super) fn not_compared() -> Error {
    Error::internal("a job that writes ended as a comparison")
}

pub(super) async fn hashed(photo: Photo) -> Result<(blake3::Hash, Photo)> {
    let hashing = tokio::task::spawn_blocking(move || (blake3::hash(&photo.bytes), photo));
    hashing.await.map_err(|e| Error::internal("the hashing ended early").with_source(e))
}

/// Noise that is the same in every process.
fn blank_image(inner: &CaptionerInner, n: u8) -> PixelValues {
    let preprocess = &inner.preprocess;
    let mut noise = vec![0; 3 * preprocess.width * preprocess.height];
    blake3::Hasher::new_derive_key("cutline 2026-11 blank image")
        .update(&[n])
        .finalize_xof()
        .fill(&mut noise);
    preprocess.normalize(&noise)
}
