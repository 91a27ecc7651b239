//! BLEU with n-grams of up to four words.

use super::{ORDERS, Pair, ngrams};

/// Avoid divisions of zero by zero; the values of pycocoevalcap.
const SMALL: f64 = 1e-9;
const TINY: f64 = 1e-15;

/// The score of all captions together: the geometric mean of the clipped precisions, times a penalty
/// if the captions are shorter than their closest references.
pub(super) fn bleu_4(pairs: &[&Pair]) -> f64 {
    let (mut correct, mut guessed) = ([0_usize; ORDERS], [0_usize; ORDERS]);
    let (mut length, mut closest) = (0, 0);
    for pair in pairs {
        let counts = ngrams(&pair.caption);
        let references: Vec<_> = pair.references.iter().map(|words| ngrams(words)).collect();
        for (ngram, count) in counts {
            let max = references.iter().filter_map(|counts| counts.get(ngram)).max();
            correct[ngram.len() - 1] += count.min(max.copied().unwrap_or(0));
        }
        let words = pair.caption.len();
        for (order, guessed) in guessed.iter_mut().enumerate() {
            *guessed += words.saturating_sub(order);
        }
        length += words;
        let lengths = pair.references.iter().map(Vec::len);
        closest += lengths.min_by_key(|other| (other.abs_diff(words), *other)).unwrap_or(0);
    }
    if pairs.is_empty() {
        return 0.0;
    }
    let precision =
        |(correct, guessed): (usize, usize)| (correct as f64 + TINY) / (guessed as f64 + SMALL);
    let product: f64 = correct.into_iter().zip(guessed).map(precision).product();
    let ratio = (length as f64 + TINY) / (closest as f64 + SMALL);
    let penalty = if ratio < 1.0 { (1.0 - 1.0 / ratio).exp() } else { 1.0 };
    product.powf(1.0 / ORDERS as f64) * penalty
}
