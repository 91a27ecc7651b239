//! CIDEr-D: how alike the n-grams are, the rarer the more they count.

use std::collections::{HashMap, HashSet};

use super::{ORDERS, Pair, ngrams};

/// Width of the penalty for another length, in words.
const SIGMA: f64 = 6.0;
/// What the scores are multiplied by.
const SCALE: f64 = 10.0;

/// The n-grams of a text, weighted by how often they occur in it and in how few photos.
struct Vector<'p> {
    weights: HashMap<&'p [String], f64>,
    /// For each length of n-grams.
    norms: [f64; ORDERS],
    /// Two-word sequences, by which lengths are compared.
    length: usize,
}

/// The score of each caption.
pub(super) fn cider_d(pairs: &[&Pair]) -> Vec<f64> {
    let mut photos: HashMap<&[String], usize> = HashMap::new();
    for pair in pairs {
        let counts = pair.references.iter().map(|words| ngrams(words));
        let seen: HashSet<&[String]> = counts.flat_map(HashMap::into_keys).collect();
        for ngram in seen {
            *photos.entry(ngram).or_default() += 1;
        }
    }
    let all = (pairs.len() as f64).ln();
    let rarity = |ngram: &[String]| all - (photos.get(ngram).copied().unwrap_or(1) as f64).ln();
    let score = |pair: &&Pair| {
        let caption = Vector::new(&pair.caption, rarity);
        let likeness = |words| caption.likeness(&Vector::new(words, rarity));
        let alike: f64 = pair.references.iter().map(|words| likeness(words)).sum();
        SCALE * alike / pair.references.len() as f64
    };
    pairs.iter().map(score).collect()
}

impl<'p> Vector<'p> {
    fn new(words: &'p [String], rarity: impl Fn(&[String]) -> f64) -> Self {
        let mut norms = [0.0; ORDERS];
        let mut weights = HashMap::new();
        for (ngram, count) in ngrams(words) {
            let weight = count as f64 * rarity(ngram);
            norms[ngram.len() - 1] += weight * weight;
            weights.insert(ngram, weight);
        }
        Self { weights, norms: norms.map(f64::sqrt), length: words.len().saturating_sub(1) }
    }

    /// The mean over the lengths of n-grams of the cosine, in which a caption gains nothing by saying
    /// something more often than `reference`; less for another length.
    fn likeness(&self, reference: &Self) -> f64 {
        let mut products = [0.0; ORDERS];
        for (ngram, weight) in &self.weights {
            if let Some(other) = reference.weights.get(ngram) {
                products[ngram.len() - 1] += weight.min(*other) * other;
            }
        }
        let norms = self.norms.iter().zip(reference.norms);
        let cosine = |(product, (one, other)): (f64, (&f64, f64))| {
            let norm = one * other;
            if norm == 0.0 { product } else { product / norm }
        };
        let sum: f64 = products.into_iter().zip(norms).map(cosine).sum();
        let difference = self.length as f64 - reference.length as f64;
        sum / ORDERS as f64 * (-difference * difference / (2.0 * SIGMA * SIGMA)).exp()
    }
}
