//! Tags from captions: the content words of several captions of one image, weighted by how many of the
//! captions, and how likely ones, contain them.

use std::collections::HashMap;

use serde::Serialize;
use utoipa::ToSchema;

use super::{CaptionParams, Choice, Style};

/// Captions from which tags are taken.
const CAPTIONS: usize = 5;

/// The most tags of an image.
const MOST: usize = 10;

/// A word for what is in an image.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Tag {
    /// The word as the captions have it.
    pub name: String,
    /// The share of the captions that contain it, each weighted by its confidence; 0–1. Not a
    /// probability.
    pub score: f32,
}

/// `params` for captions to take tags from: the best of a beam search.
#[must_use]
pub fn tag_params(params: CaptionParams) -> CaptionParams {
    CaptionParams {
        num_beams: CAPTIONS,
        num_captions: CAPTIONS,
        do_sample: false,
        style: Style::Caption,
        max_chars: None,
        emoji: false,
        ..params
    }
}

/// The tags in `captions`, best first; equal ones in the order in which they occur.
#[must_use]
pub fn tags(captions: &[Choice]) -> Vec<Tag> {
    // Without confidences, all captions are worth the same.
    let worth =
        |caption: &Choice| if caption.confidence.is_nan() { 1.0 } else { caption.confidence };
    let total: f32 = captions.iter().map(worth).sum();
    let mut tags: Vec<Tag> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for caption in captions {
        let mut counted: Vec<usize> = Vec::new();
        for word in content_words(&caption.text) {
            let at = *places.entry(word.clone()).or_insert_with(|| {
                tags.push(Tag { name: word, score: 0.0 });
                tags.len() - 1
            });
            if !counted.contains(&at) {
                counted.push(at);
                tags[at].score += if total > 0.0 { worth(caption) / total } else { 0.0 };
            }
        }
    }
    tags.sort_by(|a, b| b.score.total_cmp(&a.score));
    tags.truncate(MOST);
    for tag in &mut tags {
        tag.score = tag.score.clamp(0.0, 1.0);
    }
    tags
}

/// The words of a caption that name something, in lower case.
pub(super) fn content_words(text: &str) -> impl Iterator<Item = String> {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '-');
    words.map(str::to_lowercase).filter(|word| {
        word.chars().count() > 2
            && word.chars().all(|c| c.is_alphabetic() || c == '-')
            && !OTHER_WORDS.contains(&word.as_str())
            && (!word.ends_with("ing") || NOUNS.contains(&word.as_str()))
    })
}

/// Frequent words of captions that name nothing: function words, numbers, colours, other adjectives,
/// verbs, and words for the picture itself.
const OTHER_WORDS: [&str; 150] = [
    "about",
    "above",
    "across",
    "against",
    "all",
    "along",
    "and",
    "another",
    "are",
    "around",
    "away",
    "back",
    "background",
    "beautiful",
    "behind",
    "being",
    "below",
    "beside",
    "between",
    "big",
    "black",
    "blue",
    "both",
    "bright",
    "brown",
    "bunch",
    "can",
    "close",
    "close-up",
    "cloudy",
    "colorful",
    "colourful",
    "couple",
    "covered",
    "cut",
    "dark",
    "different",
    "down",
    "each",
    "eight",
    "empty",
    "filled",
    "five",
    "for",
    "four",
    "from",
    "front",
    "full",
    "gold",
    "gray",
    "green",
    "grey",
    "group",
    "hanging",
    "has",
    "have",
    "her",
    "his",
    "holds",
    "image",
    "inside",
    "into",
    "its",
    "large",
    "light",
    "little",
    "long",
    "looks",
    "lot",
    "lots",
    "made",
    "many",
    "near",
    "new",
    "next",
    "nine",
    "off",
    "old",
    "one",
    "onto",
    "open",
    "orange",
    "other",
    "out",
    "outside",
    "over",
    "pair",
    "parked",
    "photo",
    "photograph",
    "picture",
    "piece",
    "pink",
    "plays",
    "purple",
    "red",
    "rides",
    "runs",
    "sat",
    "seated",
    "seven",
    "several",
    "shown",
    "side",
    "sits",
    "six",
    "small",
    "some",
    "stands",
    "tall",
    "tan",
    "ten",
    "that",
    "the",
    "their",
    "them",
    "there",
    "these",
    "they",
    "this",
    "three",
    "through",
    "together",
    "top",
    "towards",
    "two",
    "under",
    "underneath",
    "various",
    "very",
    "view",
    "walks",
    "was",
    "wearing",
    "wears",
    "well",
    "were",
    "what",
    "which",
    "while",
    "white",
    "who",
    "with",
    "without",
    "yellow",
    "young",
    "set",
    "surrounded",
    "dressed",
    "lit",
];

/// Nouns that end like a verb.
const NOUNS: [&str; 24] = [
    "building",
    "buildings",
    "ceiling",
    "clothing",
    "crossing",
    "dining",
    "evening",
    "frosting",
    "icing",
    "king",
    "lightning",
    "morning",
    "painting",
    "parking",
    "railing",
    "ring",
    "sibling",
    "sling",
    "spring",
    "string",
    "swing",
    "thing",
    "wedding",
    "wing",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::captioner::TokenSequence;
    use crate::engine::FinishReason;

    fn choice(text: &str, confidence: f32) -> Choice {
        Choice {
            text: text.into(),
            confidence,
            tokens: 5,
            finish_reason: FinishReason::Stop,
            matching: None,
            sequence: TokenSequence::default(),
        }
    }

    #[test]
    fn words_are_weighted_by_the_captions_that_contain_them() {
        let found = tags(&[
            choice("a white cat sitting on a couch", 0.6),
            choice("a cat and a cat on a bed", 0.3),
            choice("2 of the wedding rings", 0.1),
        ]);
        let names: Vec<&str> = found.iter().map(|tag| tag.name.as_str()).collect();
        assert_eq!(names, ["cat", "couch", "bed", "wedding", "rings"]);
        assert!((found[0].score - 0.9).abs() < 1e-6, "{found:?}");
        assert!((found[2].score - 0.3).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn captions_without_content_have_no_tags() {
        assert_eq!(tags(&[]), []);
        assert_eq!(tags(&[choice("a picture of the", 0.5), choice("", 0.0)]), []);
        let long = (0..40).map(|n| format!("word{}", "x".repeat(n))).collect::<Vec<_>>().join(" ");
        assert_eq!(tags(&[choice(&long, 0.5)]).len(), MOST);
    }
}
