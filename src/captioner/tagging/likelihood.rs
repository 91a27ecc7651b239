//! What the model thinks of every tag of a vocabulary, in two decode steps.
//!
//! The first step gives the probability of the first word piece of every name, and most names have one.
//! The second step reads the second pieces of the most promising beginnings, as many as there are rows.
//! Where pieces were not read, what the model expects of them without a photo stands for them.
//!
//! Categories with different templates have jobs of their own, which the scheduler runs together.

use std::collections::HashMap;
use std::sync::Arc;

use super::Tagger;
use crate::captioner::rank::{PRIOR_WEIGHT, Priors, ROWS, TextSet, finish_counted};
use crate::captioner::work::{self, PreparedImage, VisionCacheUse};
use crate::captioner::{Captioner, Priority};
use crate::engine::{ClosedSet, Entry, ImageInput, Sequence, Task};
use crate::scheduler::{JobRequest, QueueSlot};
use crate::tokenizer::Tokenizer;
use cutline_error::{Error, Result};
use cutline_tags::{TagId, Vocabulary};

/// Decode steps for a vocabulary.
const STEPS: usize = 2;

/// Words that say nothing in particular. What is no more probable than they are is no tag.
const NOTHING: [&str; 4] = ["thing", "something", "picture", "close"];

/// The most names of one decode job's comparison: a tag among the best of its category.
const BEST: usize = 10;

/// How probable the model finds a tag.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Likelihood {
    /// The logarithm of its probability for the photo.
    pub(super) log_probability: f32,
    /// The same for images without content.
    pub(super) log_prior: f32,
    /// Of saying nothing in particular, with its prior taken into account.
    nothing: f32,
}

impl Likelihood {
    fn excess(log_probability: f32, log_prior: f32) -> f32 {
        log_probability - PRIOR_WEIGHT * log_prior
    }

    /// By how much the model prefers it to saying nothing in particular.
    pub(super) fn nats(self) -> f32 {
        Self::excess(self.log_probability, self.log_prior) - self.nothing
    }
}

/// The names of a vocabulary as tokens.
#[derive(Debug)]
pub(super) struct TagTexts {
    sets: Vec<TemplateTexts>,
}

/// A name of a tag.
#[derive(Debug)]
struct Name {
    tag: TagId,
    category: usize,
    ids: Vec<u32>,
}

/// The names that follow one prompt.
#[derive(Debug)]
struct TemplateTexts {
    prompt: Vec<u32>,
    names: Vec<Name>,
    nothing: Vec<Vec<u32>>,
}

impl TagTexts {
    /// # Errors
    /// A name is too long for the model.
    pub(super) fn new(
        vocabulary: &Vocabulary,
        tokenizer: &Tokenizer,
        positions: usize,
    ) -> Result<Self> {
        let mut sets: Vec<TemplateTexts> = Vec::new();
        let mut by_prompt: HashMap<String, usize> = HashMap::new();
        for (number, category) in vocabulary.categories().iter().enumerate() {
            let template = category.template();
            let at = match by_prompt.get(template.prompt()) {
                Some(at) => *at,
                None => {
                    let prompt = tokenizer.encode(template.prompt())?;
                    let nothing = NOTHING.map(|word| pieces(tokenizer, word));
                    let nothing =
                        nothing.into_iter().filter_map(Result::transpose).collect::<Result<_>>()?;
                    sets.push(TemplateTexts { prompt, names: Vec::new(), nothing });
                    by_prompt.insert(template.prompt().to_owned(), sets.len() - 1);
                    sets.len() - 1
                }
            };
            let set = &mut sets[at];
            for id in category.tags() {
                for name in vocabulary.tag(id).names() {
                    let Some(ids) = pieces(tokenizer, template.continuation(name))? else {
                        continue;
                    };
                    // The first token of a sequence has a position as well.
                    if 1 + set.prompt.len() + ids.len() > positions {
                        return Err(Error::parameter(
                            cutline_tags::FIELD,
                            format!("\"{name}\" is too long for this model; shorten it"),
                        ));
                    }
                    set.names.push(Name { tag: id, category: number, ids });
                }
            }
        }
        Ok(Self { sets })
    }

    /// The word pieces of each name of a tag that the model can read.
    pub(super) fn pieces(&self, tag: TagId) -> impl Iterator<Item = usize> + '_ {
        let names = self.sets.iter().flat_map(|set| &set.names);
        names.filter(move |name| name.tag == tag).map(|name| name.ids.len())
    }
}

/// The tokens of a name; `None` if the model has none for a part of it.
fn pieces(tokenizer: &Tokenizer, name: &str) -> Result<Option<Vec<u32>>> {
    let ids = tokenizer.encode_next(name)?;
    let unknown = |id: &u32| tokenizer.name(*id).is_none_or(|name| name == "[UNK]");
    Ok(if ids.is_empty() || ids.iter().any(unknown) { None } else { Some(ids) })
}

/// The features of an image that is encoded, if the engine was asked for them.
pub(super) fn features(image: &ImageInput) -> Option<Vec<f32>> {
    match image {
        ImageInput::Encoded(encoded) => encoded.features().map(<[f32]>::to_vec),
        ImageInput::Pixels(_) | ImageInput::Nothing => None,
    }
}

/// An image whose tags are ranked.
pub(super) struct Ranked {
    pub(super) image: ImageInput,
    /// Where its encoding is kept.
    pub(super) kept: Option<(VisionCacheUse, PreparedImage)>,
}

/// What is compared in one job: names and nothing, without those that are not allowed.
struct Job {
    set: TextSet,
    /// The tag of each text and its category; none for nothing.
    tags: Vec<Option<(TagId, usize)>>,
    priors: Priors,
}

impl Captioner {
    /// What the model thinks of the allowed tags, the decode steps that this took, and the features of the
    /// image.
    ///
    /// # Errors
    /// [`QueueFull`](cutline_error::ErrorKind::QueueFull), or the model failed.
    pub(super) async fn likelihood(
        &self,
        mut image: Ranked,
        tagger: &Tagger,
        allowed: impl Fn(TagId) -> bool,
    ) -> Result<(Vec<(TagId, Likelihood)>, usize, Option<Vec<f32>>)> {
        let jobs = self.likelihood_jobs(tagger, allowed).await?;
        let mut found = Vec::new();
        let mut steps = 0;
        let mut left = &jobs[..];
        while !left.is_empty() {
            // An image that is not encoded yet must not be encoded for each job.
            let together =
                if matches!(image.image, ImageInput::Encoded(_)) { left.len() } else { 1 };
            let slots = self.slots(together)?;
            let (now, later) = left.split_at(slots.len().min(left.len()));
            left = later;
            let mut submissions = Vec::with_capacity(now.len());
            for (job, slot) in now.iter().zip(slots) {
                submissions.push(slot.submit(job.request(image.image.clone())?)?);
            }
            // They run together, so the longest counts.
            let mut longest = 0;
            for (job, mut submission) in now.iter().zip(submissions) {
                let (sequences, taken) = finish_counted(&mut submission, |encoded| {
                    if let Some((vision, prepared)) = &image.kept {
                        work::store_encoded(self, *vision, Arc::clone(&encoded), prepared);
                    }
                    image.image = ImageInput::Encoded(encoded);
                })
                .await?;
                longest = longest.max(taken);
                job.read(&sequences, &mut found);
            }
            steps += longest;
        }
        Ok((found, steps, features(&image.image)))
    }

    /// As many places in the queue as there are, but at least one.
    fn slots(&self, count: usize) -> Result<Vec<QueueSlot>> {
        let all = self.inner.scheduler.reserve(count, Priority::Interactive);
        all.or_else(|_| self.slot(Priority::Interactive).map(|slot| vec![slot]))
    }

    /// What the model expects of the tags without a photo.
    pub(super) async fn likelihood_priors(
        &self,
        tagger: &Tagger,
        allowed: impl Fn(TagId) -> bool,
    ) -> Result<()> {
        self.likelihood_jobs(tagger, allowed).await.map(drop)
    }

    async fn likelihood_jobs(
        &self,
        tagger: &Tagger,
        allowed: impl Fn(TagId) -> bool,
    ) -> Result<Vec<Job>> {
        let mut jobs = Vec::new();
        for template in &tagger.0.texts.sets {
            let names = template.names.iter().filter(|name| allowed(name.tag));
            let (mut tags, mut texts): (Vec<_>, Vec<_>) =
                names.map(|name| (Some((name.tag, name.category)), name.ids.clone())).unzip();
            if texts.is_empty() {
                continue;
            }
            tags.extend(template.nothing.iter().map(|_| None));
            texts.extend(template.nothing.iter().cloned());
            let set = TextSet { prompt: template.prompt.clone(), texts };
            // In a task of its own: if a request does not wait for it, the next one finds it done.
            let (captioner, tagger, for_task) = (self.clone(), tagger.clone(), set.clone());
            let priors = tokio::spawn(async move {
                let _turn = tagger.0.turn.lock().await;
                captioner.priors(&for_task).await
            });
            let priors = priors
                .await
                .map_err(|join| Error::internal("the priors were lost").with_source(join))??;
            jobs.push(Job { set, tags, priors });
        }
        Ok(jobs)
    }
}

impl Job {
    fn request(&self, image: ImageInput) -> Result<JobRequest> {
        // Every name of a tag stands for the tag, and nothing is alone in its group.
        let entry = |n: usize| {
            let expected = self.priors.0[n].clone();
            let group = self.tags[n].map_or(0, |(_, category)| 1 + category);
            let name_of = self.tags[n].map_or(n, |(tag, _)| tag.index());
            Entry {
                ids: self.set.texts[n].clone(),
                offset: -PRIOR_WEIGHT * expected.iter().sum::<f32>(),
                name_of: u32::try_from(name_of).unwrap_or(u32::MAX),
                group: u32::try_from(group).unwrap_or(u32::MAX),
                expected,
            }
        };
        let entries = (0..self.set.texts.len()).map(entry).collect();
        let set = ClosedSet::new(entries, BEST, ROWS)?.with_steps(STEPS);
        let task = Task::Rank(Arc::new(set));
        Ok(JobRequest { image, prompt: self.set.prompt.clone(), task: task.into() })
    }

    /// The best name of each tag counts.
    fn read(&self, sequences: &[Sequence], found: &mut Vec<(TagId, Likelihood)>) {
        let start = 1 + self.set.prompt.len();
        let scores: HashMap<&[u32], f32> = sequences
            .iter()
            .filter_map(|sequence| Some((&sequence.ids[start..], sequence.score?)))
            .collect();
        let mut nothing = f32::NEG_INFINITY;
        let mut best: HashMap<TagId, Likelihood> = HashMap::new();
        let mut order = Vec::new();
        for (n, text) in self.set.texts.iter().enumerate() {
            let Some(&log_probability) = scores.get(text.as_slice()) else { continue };
            let log_prior: f32 = self.priors.0[n].iter().sum();
            let excess = Likelihood::excess(log_probability, log_prior);
            let Some((tag, _)) = self.tags[n] else {
                nothing = nothing.max(excess);
                continue;
            };
            let likelihood = Likelihood { log_probability, log_prior, nothing: 0.0 };
            let known = best.entry(tag).or_insert_with(|| {
                order.push(tag);
                likelihood
            });
            if excess > Likelihood::excess(known.log_probability, known.log_prior) {
                *known = likelihood;
            }
        }
        let nothing = if nothing.is_finite() { nothing } else { 0.0 };
        let with = |tag| best.get(&tag).map(|found| (tag, Likelihood { nothing, ..*found }));
        found.extend(order.into_iter().filter_map(with));
    }
}
