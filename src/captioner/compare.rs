//! How well texts match a photo, and embeddings of photos and texts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use utoipa::ToSchema;

use super::work::{self, PreparedImage, VisionCacheUse};
use super::{Captioner, ImageInfo, Photo, Priority, ScoreMode, TextParams};
use crate::engine::{Ability, Compared, Comparison, ImageInput};
use crate::metrics::milliseconds;
use crate::scheduler::{JobEvent, JobRequest};
use cutline_error::{Error, Result};

/// A text, and how well it matches a photo.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TextScore {
    /// The text as it was sent.
    pub text: String,
    /// The probability that it matches, 0–1; without the mode `itc`.
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub matching: Option<f32>,
    /// The logits of not matching and of matching; without the mode `itc`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub logits: Option<[f32; 2]>,
    /// The cosine of the embeddings of photo and text, −1–1; with the modes `itc` and `both`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub similarity: Option<f32>,
}

/// How well texts match a photo.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Scored {
    /// In the order sent.
    pub scores: Vec<TextScore>,
    /// The indices of the texts from 0, best first: by match, or by similarity where there is none.
    pub ranking: Vec<usize>,
    /// The model's name.
    pub model: String,
    /// The photo.
    pub image: ImageInfo,
    /// Where the time went.
    pub timings: CompareTimings,
}

/// A text and its embedding.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TextEmbedding {
    /// The text as it was sent.
    pub text: String,
    /// Of length 1.
    pub embedding: Vec<f32>,
}

/// Embeddings of a photo, of texts, or of both. The dot product of two of them is their cosine.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Embedded {
    /// The embedding of the photo, of length 1; left out without a photo.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub embedding: Option<Vec<f32>>,
    /// The texts in the order sent.
    pub texts: Vec<TextEmbedding>,
    /// Numbers of an embedding.
    pub dimensions: usize,
    /// The model's name.
    pub model: String,
    /// The photo; left out without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub image: Option<ImageInfo>,
    /// Where the time went.
    pub timings: CompareTimings,
}

/// Where the time of this request went, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, ToSchema)]
pub struct CompareTimings {
    /// Decoding the image and resizing it.
    pub decode_ms: f64,
    /// Waiting in the queue.
    pub queue_ms: f64,
    /// Encoding the image and reading the texts.
    pub inference_ms: f64,
    /// The whole request.
    pub total_ms: f64,
}

/// A finished comparison.
struct Finished {
    compared: Compared,
    image: Option<ImageInfo>,
    timings: CompareTimings,
}

impl Captioner {
    /// Checks that the model can do this.
    ///
    /// # Errors
    /// [`Unsupported`](cutline_error::ErrorKind::Unsupported), with a checkpoint that can.
    pub fn require(&self, ability: Ability) -> Result<()> {
        self.inner.info.family.check(ability)
    }

    /// This model, or another one in this process that can do this if this one cannot.
    ///
    /// # Errors
    /// As [`require`](Self::require).
    pub fn able(&self, ability: Ability) -> Result<&Self> {
        let Err(refused) = self.require(ability) else { return Ok(self) };
        let mut others = self.other_models().into_iter().map(|(_, model)| model);
        others.find(|model| model.require(ability).is_ok()).ok_or(refused)
    }

    /// How well each text matches the photo.
    ///
    /// # Errors
    /// [`Unsupported`](cutline_error::ErrorKind::Unsupported),
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter), or as
    /// [`caption`](Self::caption).
    pub async fn score(&self, photo: Photo, params: TextParams) -> Result<Scored> {
        self.require(Ability::Score)?;
        let TextParams { texts, mode, max_text_tokens, .. } = params;
        let ids = self.read_texts(&texts, max_text_tokens, "texts").await?;
        let (matching, embedding) = (mode != ScoreMode::Itc, mode != ScoreMode::Itm);
        let work = self.compare(Some(photo), Comparison { texts: ids, matching, embedding });
        let tokens = self.inner.info.image_tokens;
        let Finished { compared, image, timings } = self.charged(tokens, work, |_| 0).await?;
        let image = image.ok_or_else(|| Error::internal("an image was lost"))?;
        let Compared { image: own, texts: results } = compared;
        let score = |(text, result): (String, crate::engine::ComparedText)| TextScore {
            text,
            matching: result.logits.map(probability),
            logits: result.logits,
            similarity: own.as_ref().zip(result.embedding).map(|(a, b)| cosine(a, &b)),
        };
        let scores: Vec<TextScore> = texts.into_iter().zip(results).map(score).collect();
        let ranking = ranking(&scores);
        Ok(Scored { scores, ranking, model: self.inner.info.id.clone(), image, timings })
    }

    /// The embeddings of a photo and of texts.
    ///
    /// # Errors
    /// As [`score`](Self::score).
    pub async fn embed(&self, photo: Option<Photo>, params: TextParams) -> Result<Embedded> {
        self.require(Ability::Embed)?;
        let TextParams { texts, max_text_tokens, .. } = params;
        if photo.is_none() && texts.is_empty() {
            return Err(Error::parameter("texts", "send an image, texts, or both"));
        }
        let ids = self.read_texts(&texts, max_text_tokens, "texts").await?;
        let comparison = Comparison { texts: ids, matching: false, embedding: true };
        // Texts alone are free; the key must be for this model all the same.
        let is_paid = photo.is_some();
        let work = self.compare(photo, comparison);
        let Finished { compared, image, timings } = if is_paid {
            self.charged(self.inner.info.image_tokens, work, |_| 0).await?
        } else {
            self.charges(&self.inner.info.id, 0, 0)?;
            work.await?
        };
        let embedded = texts.into_iter().zip(compared.texts).map(|(text, result)| {
            let embedding = result.embedding.unwrap_or_default();
            TextEmbedding { text, embedding }
        });
        let texts = embedded.collect();
        let dimensions = self.inner.info.embedding_size.unwrap_or_default();
        let (model, embedding) = (self.inner.info.id.clone(), compared.image);
        Ok(Embedded { embedding, texts, dimensions, model, image, timings })
    }

    async fn compare(&self, photo: Option<Photo>, comparison: Comparison) -> Result<Finished> {
        let begin = Instant::now();
        let slot = self.slot(Priority::Interactive)?;
        let mut seen: Option<(VisionCacheUse, PreparedImage)> = None;
        let mut image = ImageInput::Nothing;
        let permit = match photo {
            None => None,
            Some(photo) => {
                let (hash, photo) = super::rank::hashed(photo).await?;
                let (permit, input, kept) = self.read_image(photo, hash).await?;
                image = input;
                seen = Some(kept);
                Some(permit)
            }
        };
        let decode = begin.elapsed();
        let task = Arc::new(comparison);
        let task = crate::engine::Work::Compare(task);
        let mut submission = slot.submit(JobRequest { image, prompt: Vec::new(), task })?;
        let mut waited = Duration::ZERO;
        loop {
            match submission.next().await {
                Some(JobEvent::Started { queued }) => waited = queued,
                Some(JobEvent::Encoded(encoded)) => {
                    if let Some((vision, prepared)) = &seen {
                        work::store_encoded(self, *vision, encoded, prepared);
                    }
                }
                Some(JobEvent::Compared { compared, inference }) => {
                    drop(permit);
                    let timings = CompareTimings {
                        decode_ms: milliseconds(decode),
                        queue_ms: milliseconds(waited),
                        inference_ms: milliseconds(inference),
                        total_ms: milliseconds(begin.elapsed()),
                    };
                    let image = seen.map(|(_, prepared)| prepared.image);
                    return Ok(Finished { compared, image, timings });
                }
                Some(JobEvent::Failed(error)) => return Err(error),
                Some(JobEvent::Token(_) | JobEvent::Done { .. }) => {
                    return Err(Error::internal("a comparison ended as a job that writes"));
                }
                None => return Err(Error::model_stopped()),
            }
        }
    }

    /// The tokens of texts for the text encoder, with the special tokens at both ends.
    pub(super) async fn read_texts(
        &self,
        texts: &[String],
        max_tokens: Option<usize>,
        field: &'static str,
    ) -> Result<Vec<Vec<u32>>> {
        let (for_worker, texts) = (self.clone(), texts.to_vec());
        let read = move || {
            texts.iter().map(|text| for_worker.read_text(text, max_tokens, field)).collect()
        };
        let reading = tokio::task::spawn_blocking(read);
        reading.await.map_err(|e| Error::internal("the texts were lost").with_source(e))?
    }

    fn read_text(
        &self,
        text: &str,
        max_tokens: Option<usize>,
        field: &'static str,
    ) -> Result<Vec<u32>> {
        let positions = self.inner.info.max_positions;
        let too_long = || {
            Error::parameter(
                field,
                format!(
                    "a text of {field} has more than {positions} word pieces, which is all that this \
                     model can read; shorten it, or set max_text_tokens"
                ),
            )
        };
        let ids = self.inner.tokenizer.encode_whole(text, field, max_tokens)?;
        if ids.len() > positions { Err(too_long()) } else { Ok(ids) }
    }
}

/// The softmax of the two logits, at the second.
fn probability([no, yes]: [f32; 2]) -> f32 {
    1.0 / (1.0 + (no - yes).exp())
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Indices, best first. Equal ones keep their order.
fn ranking(scores: &[TextScore]) -> Vec<usize> {
    let key = |n: &usize| scores[*n].matching.or(scores[*n].similarity).unwrap_or(f32::MIN);
    let mut ranking: Vec<usize> = (0..scores.len()).collect();
    ranking.sort_by(|a, b| key(b).total_cmp(&key(a)));
    ranking
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_match_is_first_and_equal_ones_keep_their_order() {
        let score = |matching, similarity| TextScore {
            text: String::new(),
            matching,
            logits: None,
            similarity,
        };
        let by_match = [0.2, 0.9, 0.2, 0.5].map(|p| score(Some(p), Some(-p)));
        assert_eq!(ranking(&by_match), [1, 3, 0, 2]);
        let by_cosine = [-0.2, 0.3].map(|cosine| score(None, Some(cosine)));
        assert_eq!(ranking(&by_cosine), [1, 0]);
    }

    #[test]
    fn a_probability_has_no_overflow() {
        assert_eq!(probability([0.0, 0.0]), 0.5);
        assert!((probability([1.0, 2.0]) - 0.731_058_6).abs() < 1e-6);
        assert_eq!((probability([0.0, 500.0]), probability([500.0, 0.0])), (1.0, 0.0));
    }
}
