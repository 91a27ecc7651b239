//! Scores captions against reference captions: CIDEr-D, BLEU-4 and ROUGE-L, as pycocoevalcap computes
//! them.
//!
//! Sources: Vedantam et al. (2015) for CIDEr-D, Papineni et al. (2002) for BLEU, Lin and Och (2004)
//! for ROUGE-L, and pycocoevalcap 1.2 for details that they leave open.
//!
//! ```
//! use cutline_score::{Pair, Scores};
//!
//! let scores = Scores::of(&[
//!     Pair::new("a cat sits on a sofa", ["a cat on a red sofa", "a cat is sitting on a couch"]),
//!     Pair::new("two dogs run", ["two dogs run on grass", "dogs play outside"]),
//! ]);
//! assert!(scores.cider_d > 0.0 && scores.cider_d < 10.0);
//! assert!(scores.rouge_l > 0.5);
//! ```

mod bleu;
mod cider;
mod rouge;
mod tokens;

use std::collections::HashMap;

use serde::Serialize;

pub use self::tokens::tokens;

/// The length of the longest n-grams that are compared.
const ORDERS: usize = 4;

/// A caption and its reference captions, as [`tokens()`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pair {
    /// The caption that is scored.
    pub caption: Vec<String>,
    /// The references, one or more. Those without words count too.
    pub references: Vec<Vec<String>>,
}

impl Pair {
    /// Tokenizes texts.
    #[must_use]
    pub fn new<'t>(caption: &str, references: impl IntoIterator<Item = &'t str>) -> Self {
        Self { caption: tokens(caption), references: references.into_iter().map(tokens).collect() }
    }
}

/// The scores of a set of captions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Scores {
    /// 0–10; the mean over photos. The rarity of words is that in the references of these photos, so
    /// scores of sets of different sizes are not comparable.
    #[serde(rename = "CIDEr-D")]
    pub cider_d: f64,
    /// 0–1; of all captions together, with the length of the closest reference.
    #[serde(rename = "BLEU-4")]
    pub bleu_4: f64,
    /// 0–1; the mean over photos.
    #[serde(rename = "ROUGE-L")]
    pub rouge_l: f64,
}

impl Scores {
    /// The scores of `pairs`; 0 if there are none. Pairs without references are ignored.
    #[must_use]
    pub fn of(pairs: &[Pair]) -> Self {
        let pairs: Vec<&Pair> = pairs.iter().filter(|pair| !pair.references.is_empty()).collect();
        Self {
            cider_d: mean(&cider::cider_d(&pairs)),
            bleu_4: bleu::bleu_4(&pairs),
            rouge_l: mean(&pairs.iter().map(|pair| rouge::rouge_l(pair)).collect::<Vec<_>>()),
        }
    }
}

fn mean(scores: &[f64]) -> f64 {
    if scores.is_empty() { 0.0 } else { scores.iter().sum::<f64>() / scores.len() as f64 }
}

/// How often each n-gram of one to four words occurs.
fn ngrams(words: &[String]) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    for order in 1..=ORDERS {
        for ngram in words.windows(order) {
            *counts.entry(ngram).or_default() += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(caption: &str, references: &[&str]) -> Scores {
        let other = Pair::new("two dogs run", ["two dogs running on grass", "dogs play outside"]);
        Scores::of(&[Pair::new(caption, references.iter().copied()), other])
    }

    #[test]
    fn scores_increase_with_similarity() {
        let reference = "a black cat sits on the red sofa";
        let same = score(reference, &[reference]);
        let near = score("a cat sits on the sofa", &[reference]);
        let far = score("an airplane in the sky", &[reference]);
        for value in [Scores::cider, Scores::bleu, Scores::rouge] {
            let [same, near, far] = [same, near, far].map(|scores| value(&scores));
            assert!(same > near && near > far, "{same} {near} {far}");
        }
        let alone = Pair::new(reference, [reference]);
        assert!((rouge::rouge_l(&alone) - 1.0).abs() < 1e-9);
        assert!((bleu::bleu_4(&[&alone]) - 1.0).abs() < 1e-6);
    }

    impl Scores {
        fn cider(&self) -> f64 {
            self.cider_d
        }
        fn bleu(&self) -> f64 {
            self.bleu_4
        }
        fn rouge(&self) -> f64 {
            self.rouge_l
        }
    }

    #[test]
    fn empty_texts_score_zero() {
        let nothing = Scores { cider_d: 0.0, bleu_4: 0.0, rouge_l: 0.0 };
        assert_eq!(Scores::of(&[]), nothing);
        assert_eq!(Scores::of(&[Pair::default()]), nothing);
        let empty = Scores::of(&[Pair::new("", ["a cat"]), Pair::new("a cat", [""])]);
        assert!(empty.cider_d == 0.0 && empty.bleu_4 < 1e-3 && empty.rouge_l == 0.0, "{empty:?}");
    }

    /// Expected values are those of the tokenizer of CoreNLP, without punctuation.
    #[test]
    fn tokens_are_those_of_the_penn_treebank() {
        for (text, words) in [
            ("A man's dog, running.", "a man 's dog running"),
            ("He said \"hello\" (to me)!", "he said hello -lrb- to me -rrb-"),
            ("don't cannot gonna it's dogs' o'clock", "do n't can not gon na it 's dogs o'clock"),
            ("black-and-white and/or 50% #1 $5", "black-and-white and/or 50 % # 1 $ 5"),
            (
                "AT&T at 7:30 a.m. with 3,000 people, 2.5 m",
                "at&t at 7:30 a.m. with 3,000 people 2.5 m",
            ),
            ("in the '90s -- the 1950's – Mr. Smith’s…", "in the '90s the 1950 's mr. smith 's"),
            ("it is 5ft. tall :)", "it is 5ft tall -rrb-"),
        ] {
            assert_eq!(tokens(text).join(" "), words);
        }
    }
}
