//! CIDEr-D: the similarity of n-grams, weighted by their rarity.

use std::collections::{HashMap, HashSet};

use super::{ORDERS, Pair, ngrams};

/// The width of the Gaussian penalty for a different length, in words.
const SIGMA: f64 = 6.0;
/// The factor of the scores.
const SCALE: f64 = 10.0;

/// The n-grams of a text, weighted by their frequency in it and their rarity among photos (TF-IDF).
struct Vector<'p> {
    weights: HashMap<&'p [String], f64>,
    /// For each length of n-grams.
    norms: [f64; ORDERS],
    /// The number of bigrams, by which lengths are compared.
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
        let similarity = |words| caption.similarity(&Vector::new(words, rarity));
        let total: f64 = pair.references.iter().map(|words| similarity(words)).sum();
        SCALE * total / pair.references.len() as f64
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

    /// The mean cosine similarity over the lengths of n-grams, times the penalty for a different
    /// length. Weights are clipped, so a caption gains nothing by repeating words of `reference`.
    fn similarity(&self, reference: &Self) -> f64 {
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
