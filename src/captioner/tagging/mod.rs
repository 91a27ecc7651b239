//! Tags from an allowed list.
//!
//! A [`Tagger`] is a vocabulary that is ready for the model. [`Captioner::tag`] collects what speaks for each
//! tag: words of captions, how probable the model finds it (`likelihood`), and tags of similar photos. The
//! crate `cutline_tags` makes scores of that and picks the best tags of each category.
//!
//! - `answer`: the data that callers get;
//! - `params`: what a request may ask for;
//! - `likelihood`: what the model thinks of every tag, in two decode steps.

mod answer;
mod likelihood;
mod params;

use std::sync::Arc;
use std::time::{Duration, Instant};

use self::answer::Parts;
pub use self::answer::{
    Coverage, Evidence, NearPhoto, Support, TagChoice, TagTimings, Tagged, TagsByCategory,
};
use self::likelihood::{Likelihood, Ranked, TagTexts};
pub use self::params::{TagFields, TagParams, TagRequest, TagStrategy};
use super::work;
use super::{CaptionParams, Captioner, Choice, ImageInfo, Photo, Priority, Tag, tag_params};
use crate::engine::{Ability, ImageInput};
use crate::metrics::milliseconds;
use cutline_error::{Error, Result};
use cutline_tags::{
    Chosen, Found, Hints, Limits, Matcher, Scored, TagId, Vocabulary, Weights, choose, violations,
};

/// A vocabulary for everyday photos, which is used if none is given.
const EVERYDAY: &str = include_str!("everyday.json");

/// How often a word must have been in the captions of the training for its score to mean much.
const OFTEN: u64 = 20;

/// Scores of a strategy, and the least that is good enough unless a category says otherwise.
///
/// The weights of likelihood and captions were fitted by logistic regression, as `cutline tags fit` does, on
/// 120 photos of `dev_eval`, which no model was trained on, with the everyday tags that people named in their
/// captions. Those of similar photos are not fitted.
struct Scale {
    weights: Weights,
    threshold: f32,
}

const LIKELIHOOD: Scale = Scale {
    weights: Weights { bias: -4.8, likelihood: 0.61, caption: 0.0, near: 0.0, not_near: 0.0 },
    threshold: 0.25,
};

const HYBRID: Scale = Scale {
    weights: Weights { bias: -4.75, likelihood: 0.47, caption: 2.56, near: 3.0, not_near: -0.5 },
    threshold: 0.25,
};

/// The least share of captions, and of similar photos.
const SHARE: f32 = 0.3;

/// Accepted tags of similar photos.
pub trait NearTags: Send + Sync + std::fmt::Debug {
    /// The photos that look most like the one with this hash, with the tags that people accepted for them.
    /// `features` are those of the photo in the eyes of `model`, a digest, in case that it is not kept.
    /// Without such photos there are none.
    ///
    /// # Errors
    /// The place where they are kept cannot be read.
    fn near(
        &self,
        photo: &blake3::Hash,
        model: &str,
        features: Option<Vec<f32>>,
    ) -> Result<Vec<NearPhoto>>;
}

/// A vocabulary that is ready for one model. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tagger(Arc<TaggerInner>);

#[derive(Debug)]
struct TaggerInner {
    vocabulary: Vocabulary,
    matcher: Matcher,
    /// Of each tag; `None` if the model does not say how often it saw words.
    support: Vec<Option<Support>>,
    texts: TagTexts,
    /// Held while what the model expects of the tags is computed, so that this happens once.
    turn: tokio::sync::Mutex<()>,
}

impl Tagger {
    /// The vocabulary for everyday photos.
    ///
    /// # Errors
    /// [`Internal`](cutline_error::ErrorKind::Internal): a defect.
    pub fn everyday() -> Result<Vocabulary> {
        Vocabulary::from_json(EVERYDAY)
            .map_err(|error| Error::internal("the own vocabulary is broken").with_source(error))
    }

    /// The vocabulary.
    #[must_use]
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.0.vocabulary
    }

    /// Whether the model knows the words for a tag; `None` if the model does not say.
    #[must_use]
    pub fn support(&self, tag: TagId) -> Option<Support> {
        self.0.support.get(tag.index()).copied().flatten()
    }

    /// The word pieces of each name of a tag.
    pub fn pieces(&self, tag: TagId) -> impl Iterator<Item = usize> + '_ {
        self.0.texts.pieces(tag)
    }

    /// The scores of all tags that may be in the answer, and the choice among them. `hints` has those of
    /// each tag.
    #[must_use]
    pub fn choice(
        &self,
        hints: &[Hints],
        strategy: TagStrategy,
        params: &TagParams,
    ) -> (Vec<Scored>, Vec<Chosen>) {
        let allowed = self.vocabulary().tags().filter(|(id, _)| self.allows(*id, params));
        let with_score = |(id, _): (TagId, _)| {
            let score = score(strategy, *hints.get(id.index())?, params.weights)?;
            Some(Scored { tag: id, score })
        };
        let scored: Vec<Scored> = allowed.filter_map(with_score).collect();
        let limits = Limits {
            k: params.k,
            min_score: params.min_score,
            threshold: match strategy {
                TagStrategy::Likelihood => LIKELIHOOD.threshold,
                TagStrategy::Hybrid | TagStrategy::Auto => HYBRID.threshold,
                TagStrategy::Caption | TagStrategy::Similarity => SHARE,
            },
        };
        let chosen = choose(self.vocabulary(), limits, scored.iter().copied());
        (scored, chosen)
    }

    /// The tags that are named in captions, as the strategy `caption` chooses them, the best first.
    #[must_use]
    pub fn tags_in(&self, captions: &[Choice]) -> Vec<Tag> {
        let vocabulary = self.vocabulary();
        let mut signs = vec![Signs::default(); vocabulary.len()];
        see_words(self.matcher(), captions, &mut signs);
        let hints: Vec<Hints> = signs.iter().map(Signs::hints).collect();
        let (_, chosen) = self.choice(&hints, TagStrategy::Caption, &TagParams::default());
        let tags = chosen.iter().flat_map(|one| &one.tags);
        let named = |scored: &Scored| Tag {
            name: vocabulary.tag(scored.tag).name().to_owned(),
            score: scored.score,
        };
        let mut tags: Vec<Tag> = tags.map(named).collect();
        tags.sort_by(|a, b| b.score.total_cmp(&a.score));
        tags
    }

    /// Finds the tags in texts.
    #[must_use]
    pub fn matcher(&self) -> &Matcher {
        &self.0.matcher
    }

    /// The weights of the strategy `hybrid` that are shipped.
    #[must_use]
    pub fn weights() -> Weights {
        HYBRID.weights
    }

    /// Whether the answer may have it.
    fn allows(&self, tag: TagId, params: &TagParams) -> bool {
        params.unsupported || self.support(tag) != Some(Support::None)
    }
}

impl Captioner {
    /// Prepares a vocabulary.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): a name is too long for the model.
    pub async fn tagger(&self, vocabulary: Vocabulary) -> Result<Tagger> {
        let captioner = self.clone();
        // Thousands of names take the tokenizer many milliseconds.
        let prepare = tokio::task::spawn_blocking(move || captioner.prepare_tagger(vocabulary));
        prepare.await.map_err(|join| Error::internal("the tags were lost").with_source(join))?
    }

    fn prepare_tagger(&self, vocabulary: Vocabulary) -> Result<Tagger> {
        let texts = TagTexts::new(&vocabulary, &self.inner.tokenizer, self.info().max_positions)?;
        let support = vocabulary.tags().map(|(_, tag)| self.tag_support(tag)).collect();
        let matcher = Matcher::new(&vocabulary);
        let turn = tokio::sync::Mutex::default();
        Ok(Tagger(Arc::new(TaggerInner { vocabulary, matcher, support, texts, turn })))
    }

    /// How well the model knows the rarest word of the best known name.
    fn tag_support(&self, tag: &cutline_tags::Tag) -> Option<Support> {
        let seen = |name: &str| cutline_tags::rarest(name, |word| self.support(word));
        let most = tag.names().map(seen).max().flatten()?;
        Some(match most {
            0 => Support::None,
            few if few < OFTEN => Support::Low,
            _ => Support::Ok,
        })
    }

    /// Computes what the first photo would otherwise wait for, if the strategy needs anything.
    ///
    /// # Errors
    /// The model failed.
    pub async fn warm_tagger(&self, tagger: &Tagger, params: &TagParams) -> Result<()> {
        if !params.strategy.uses_model() {
            return Ok(());
        }
        self.likelihood_priors(tagger, |tag| tagger.allows(tag, params)).await
    }

    /// Tags a photo with words of the vocabulary.
    ///
    /// # Errors
    /// Those of a caption; [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter) for the strategy `similarity`
    /// without `near`.
    pub async fn tag(
        &self,
        photo: Photo,
        tagger: &Tagger,
        params: &TagParams,
        near: Option<Arc<dyn NearTags>>,
    ) -> Result<Tagged> {
        let free = self.uncharged();
        let work = Box::pin(free.tag_free(photo, tagger, params, near));
        let captions = tag_params(CaptionParams::default());
        self.charged(self.tokens_at_most(0, &captions), work, |tagged| tagged.tokens).await
    }

    async fn tag_free(
        &self,
        photo: Photo,
        tagger: &Tagger,
        params: &TagParams,
        near: Option<Arc<dyn NearTags>>,
    ) -> Result<Tagged> {
        let begin = Instant::now();
        self.require(Ability::Caption)?;
        params.validate()?;
        let strategy = params.strategy.resolved();
        if strategy == TagStrategy::Similarity && near.is_none() {
            return Err(Error::parameter(
                "strategy",
                "similarity needs a library with tagged photos; set LIBRARY, or choose another strategy",
            ));
        }
        let near = near.filter(|_| strategy.uses_near());
        let (hash, photo) = super::rank::hashed(photo).await?;
        let mut seen = Seen::default();
        if strategy.uses_captions() {
            let copy = if strategy.uses_model() { Some(photo.copy(self.budget())?) } else { None };
            self.see_captions(photo, &mut seen).await?;
            if let Some(copy) = copy {
                self.see_likelihood(copy, hash, tagger, params, &mut seen).await?;
            }
        } else if strategy.uses_model() {
            self.see_likelihood(photo, hash, tagger, params, &mut seen).await?;
        } else {
            self.look_at(photo, hash, &mut seen).await?;
        }
        if let Some(near) = near {
            let (model, features) = (self.info().digest.clone(), seen.features.take());
            let reading = tokio::task::spawn_blocking(move || near.near(&hash, &model, features));
            seen.near = reading.await.map_err(|join| {
                Error::internal("reading the library crashed").with_source(join)
            })??;
        }
        seen.total = begin.elapsed();
        seen.into_answer(self, tagger, params)
    }

    async fn see_captions(&self, photo: Photo, seen: &mut Seen) -> Result<()> {
        let begin = Instant::now();
        let params = tag_params(CaptionParams { colors: false, ..CaptionParams::default() });
        // With this model, whatever routes there are: the other strategies use it as well.
        let started = Box::pin(self.start_here(vec![photo], params, Priority::Interactive)).await?;
        let mut stream = started.into_iter().next();
        let stream = stream.as_mut().ok_or_else(|| Error::internal("an image was lost"))?;
        let caption = stream.end().await?;
        // The fallback is no description.
        seen.captions = if caption.fallback.is_some() { Vec::new() } else { caption.captions };
        seen.image = Some(caption.image);
        seen.caption_time = begin.elapsed();
        Ok(())
    }

    async fn see_likelihood(
        &self,
        photo: Photo,
        hash: blake3::Hash,
        tagger: &Tagger,
        params: &TagParams,
        seen: &mut Seen,
    ) -> Result<()> {
        let begin = Instant::now();
        let (permit, image, kept) = self.read_image(photo, hash).await?;
        let info = kept.1.image.clone();
        let ranked = Ranked { image, kept: Some(kept) };
        let allowed = |tag| tagger.allows(tag, params);
        let (likelihood, steps, features) = self.likelihood(ranked, tagger, allowed).await?;
        drop(permit);
        seen.likelihood = likelihood;
        seen.features = features;
        seen.steps = steps;
        seen.image.get_or_insert(info);
        seen.rank_time = begin.elapsed();
        Ok(())
    }

    /// What is known about a photo without the decoder.
    async fn look_at(&self, photo: Photo, hash: blake3::Hash, seen: &mut Seen) -> Result<()> {
        let (permit, mut image, (vision, prepared)) = self.read_image(photo, hash).await?;
        if let ImageInput::Pixels(pixels) = &image
            && self.inner.appearance.is_some()
        {
            let encoded = self.encode(Arc::clone(pixels)).await?;
            work::store_encoded(self, vision, Arc::clone(&encoded), &prepared);
            image = ImageInput::Encoded(encoded);
        }
        drop(permit);
        seen.features = likelihood::features(&image);
        seen.image = Some(prepared.image);
        Ok(())
    }
}

/// What was found out about a photo.
#[derive(Debug, Default)]
struct Seen {
    image: Option<ImageInfo>,
    captions: Vec<Choice>,
    /// Of each tag that was ranked.
    likelihood: Vec<(TagId, Likelihood)>,
    /// How the photo looks to the model.
    features: Option<Vec<f32>>,
    near: Vec<NearPhoto>,
    steps: usize,
    caption_time: Duration,
    rank_time: Duration,
    total: Duration,
}

/// What speaks for one tag.
#[derive(Debug, Clone, Default)]
struct Signs {
    caption: Option<f32>,
    words: Option<String>,
    likelihood: Option<Likelihood>,
    near: Option<f32>,
}

impl Signs {
    fn hints(&self) -> Hints {
        let likelihood = self.likelihood.map(|likelihood| likelihood.nats());
        Hints { likelihood, caption: self.caption, near: self.near }
    }
}

impl Seen {
    fn into_answer(
        self,
        captioner: &Captioner,
        tagger: &Tagger,
        params: &TagParams,
    ) -> Result<Tagged> {
        let vocabulary = tagger.vocabulary();
        let signs = self.signs(tagger);
        let strategy = params.strategy.resolved();
        let hints: Vec<Hints> = signs.iter().map(Signs::hints).collect();
        let (_, chosen) = tagger.choice(&hints, strategy, params);
        let image = self.image.ok_or_else(|| Error::internal("an image was lost"))?;
        let near = if params.explain { self.near } else { Vec::new() };
        let unsupported = vocabulary.tags().filter(|(id, _)| !tagger.allows(*id, params));
        let parts = Parts { tagger, params, chosen, signs: &signs, near };
        let (tags, coverage) = parts.tags();
        let names = tags
            .0
            .iter()
            .map(|(name, tags)| (name.as_str(), tags.iter().map(|tag| tag.tag.as_str()).collect()));
        let violations = violations(vocabulary, params.k, names);
        Ok(Tagged {
            coverage,
            violations,
            vocabulary: vocabulary.name().to_owned(),
            strategy,
            unsupported: unsupported.map(|(_, tag)| tag.name().to_owned()).collect(),
            caption: self.captions.first().map(|best| best.text.clone()),
            model: captioner.info().id.clone(),
            image,
            decoder_steps: self.steps,
            timings: TagTimings {
                caption_ms: milliseconds(self.caption_time),
                ranking_ms: milliseconds(self.rank_time),
                total_ms: milliseconds(self.total),
            },
            tokens: self.captions.iter().map(|caption| caption.tokens).sum(),
            hints,
            tags,
        })
    }

    /// Of every tag, in the order of the vocabulary.
    fn signs(&self, tagger: &Tagger) -> Vec<Signs> {
        let vocabulary = tagger.vocabulary();
        let mut signs = vec![Signs::default(); vocabulary.len()];
        for (tag, likelihood) in &self.likelihood {
            signs[tag.index()].likelihood = Some(*likelihood);
        }
        see_words(tagger.matcher(), &self.captions, &mut signs);
        let total: f32 = self.near.iter().map(NearPhoto::weight).sum();
        if total > 0.0 {
            signs.iter_mut().for_each(|signs| signs.near = Some(0.0));
            for photo in &self.near {
                for tag in photo.tags.iter().filter_map(|tag| vocabulary.find(tag)) {
                    let share = &mut signs[tag.index()].near;
                    *share = Some((share.unwrap_or(0.0) + photo.weight() / total).min(1.0));
                }
            }
        }
        signs
    }
}

/// Finds the tags in captions.
fn see_words(matcher: &Matcher, captions: &[Choice], signs: &mut [Signs]) {
    // Models elsewhere do not say how sure they are; then all captions are worth the same.
    let worth =
        |caption: &Choice| if caption.confidence.is_nan() { 1.0 } else { caption.confidence };
    let total: f32 = captions.iter().map(worth).sum();
    if total <= 0.0 {
        return;
    }
    signs.iter_mut().for_each(|signs| signs.caption = Some(0.0));
    for caption in captions {
        for Found { tag, words } in matcher.find(&caption.text) {
            let signs = &mut signs[tag.index()];
            let share = signs.caption.unwrap_or(0.0) + worth(caption) / total;
            signs.caption = Some(share.min(1.0));
            signs.words.get_or_insert(words);
        }
    }
}

fn score(strategy: TagStrategy, hints: Hints, weights: Option<Weights>) -> Option<f32> {
    match strategy {
        TagStrategy::Caption => hints.caption,
        TagStrategy::Similarity => hints.near,
        TagStrategy::Likelihood => hints.likelihood.map(|_| LIKELIHOOD.weights.score(hints)),
        TagStrategy::Hybrid | TagStrategy::Auto => {
            Some(weights.unwrap_or(HYBRID.weights).score(hints))
        }
    }
}
