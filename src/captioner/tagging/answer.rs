//! The answer to a request for tags.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::{Signs, TagParams, TagStrategy, Tagger};
use crate::captioner::ImageInfo;
use cutline_tags::{Chosen, Hints, Scored};

/// Whether the captions of the model's training had the words for a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Support {
    /// Never: its score means nothing.
    None,
    /// Seldom.
    Low,
    /// Often enough.
    Ok,
}

impl Support {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Low => "low",
            Self::Ok => "ok",
        }
    }
}

/// A tag of a photo.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TagChoice {
    /// The tag, as the vocabulary writes it.
    pub tag: String,
    /// How well it fits, 0–1. Fitted to be the share of right tags on photos like those of its training;
    /// no probability elsewhere.
    pub score: f32,
    /// How it was found.
    pub strategy: TagStrategy,
    /// Whether the model knows the words; absent if it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub support: Option<Support>,
    /// Why, with `explain`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub evidence: Option<Evidence>,
}

/// What speaks for a tag, and against it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Evidence {
    /// The words of the captions that stand for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub caption_match: Option<String>,
    /// The share of the captions with such words, each weighted by its confidence.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub caption_share: Option<f32>,
    /// The logarithm of the probability that the model writes it for this photo.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub log_probability: Option<f32>,
    /// The same for images without content.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub log_prior: Option<f32>,
    /// The first less half of the second, compared with that of saying nothing in particular.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub pmi: Option<f32>,
    /// The share of similar photos that have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub near_share: Option<f32>,
    /// The similar photos that have it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub neighbours: Vec<NearPhoto>,
}

/// A similar photo with the tags that people accepted.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct NearPhoto {
    /// Its hash.
    pub hash: String,
    /// How similar it is, -1 to 1.
    pub score: f32,
    /// Its tags.
    #[serde(skip)]
    pub tags: Vec<String>,
}

impl NearPhoto {
    /// How much its tags count.
    pub(super) fn weight(&self) -> f32 {
        self.score.max(0.0).powi(4)
    }
}

/// How many categories have a tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Coverage {
    /// Categories with a tag.
    pub filled: usize,
    /// All categories.
    pub of: usize,
    /// The names of those without one.
    pub missing: Vec<String>,
}

/// Where the time went, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, ToSchema)]
pub struct TagTimings {
    /// Decoding and encoding the image, and captioning it.
    pub caption_ms: f64,
    /// Ranking the vocabulary.
    pub ranking_ms: f64,
    /// The whole request.
    pub total_ms: f64,
}

/// The tags of each category, in the order of the vocabulary; the best tag of a category first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TagsByCategory(pub Vec<(String, Vec<TagChoice>)>);

impl Serialize for TagsByCategory {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (category, tags) in &self.0 {
            map.serialize_entry(category, tags)?;
        }
        map.end()
    }
}

/// The tags of a photo.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Tagged {
    /// The tags of each category.
    #[schema(value_type = std::collections::BTreeMap<String, Vec<TagChoice>>)]
    pub tags: TagsByCategory,
    /// How many categories have a tag.
    pub coverage: Coverage,
    /// Rules that the answer breaks: always 0.
    pub violations: usize,
    /// The name of the vocabulary, if it has one.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    pub vocabulary: String,
    /// How the tags were found.
    pub strategy: TagStrategy,
    /// Tags that were left out because the model never saw their words.
    pub unsupported: Vec<String>,
    /// The caption, if the strategy needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub caption: Option<String>,
    /// The model's name.
    pub model: String,
    /// The photo.
    pub image: ImageInfo,
    /// The steps of the decoder beyond the caption.
    pub decoder_steps: usize,
    /// Where the time went.
    pub timings: TagTimings,
    /// Tokens that were written for it. For usage.
    #[serde(skip)]
    pub tokens: usize,
    /// What spoke for each tag of the vocabulary. For measuring.
    #[serde(skip)]
    pub hints: Vec<Hints>,
}

/// What an answer is made of.
pub(super) struct Parts<'a> {
    pub(super) tagger: &'a Tagger,
    pub(super) params: &'a TagParams,
    pub(super) chosen: Vec<Chosen>,
    pub(super) signs: &'a [Signs],
    pub(super) near: Vec<NearPhoto>,
}

impl Parts<'_> {
    pub(super) fn tags(&self) -> (TagsByCategory, Coverage) {
        let categories = self.tagger.vocabulary().categories();
        let mut missing = Vec::new();
        let mut tags = Vec::with_capacity(categories.len());
        for chosen in &self.chosen {
            let name = categories[chosen.category].name();
            if chosen.tags.is_empty() {
                missing.push(name.to_owned());
            }
            tags.push((name.to_owned(), chosen.tags.iter().map(|tag| self.tag(*tag)).collect()));
        }
        let of = categories.len();
        (TagsByCategory(tags), Coverage { filled: of - missing.len(), of, missing })
    }

    fn tag(&self, scored: Scored) -> TagChoice {
        let name = self.tagger.vocabulary().tag(scored.tag).name();
        TagChoice {
            tag: name.to_owned(),
            score: scored.score,
            strategy: self.params.strategy.resolved(),
            support: self.tagger.support(scored.tag),
            evidence: self.params.explain.then(|| self.evidence(scored, name)),
        }
    }

    fn evidence(&self, scored: Scored, name: &str) -> Evidence {
        let signs = &self.signs[scored.tag.index()];
        let has = |photo: &&NearPhoto| photo.tags.iter().any(|tag| tag.eq_ignore_ascii_case(name));
        Evidence {
            caption_match: signs.words.clone(),
            caption_share: signs.caption,
            log_probability: signs.likelihood.map(|likelihood| likelihood.log_probability),
            log_prior: signs.likelihood.map(|likelihood| likelihood.log_prior),
            pmi: signs.likelihood.map(|likelihood| likelihood.nats()),
            near_share: signs.near,
            neighbours: self.near.iter().filter(has).cloned().collect(),
        }
    }
}
