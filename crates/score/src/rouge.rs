//! ROUGE-L: the longest common subsequence of caption and reference.

use super::Pair;

/// The weight of recall relative to precision.
const BETA: f64 = 1.2;

/// The score of one caption, from the best precision and the best recall among its references.
pub(super) fn rouge_l(pair: &Pair) -> f64 {
    let (mut precision, mut recall) = (0.0_f64, 0.0_f64);
    for reference in &pair.references {
        let common = longest_common_subsequence(&pair.caption, reference) as f64;
        // A text without words counts as one word that matches nothing.
        precision = precision.max(common / pair.caption.len().max(1) as f64);
        recall = recall.max(common / reference.len().max(1) as f64);
    }
    if precision == 0.0 || recall == 0.0 {
        return 0.0;
    }
    let beta = BETA * BETA;
    (1.0 + beta) * precision * recall / (recall + beta * precision)
}

fn longest_common_subsequence(one: &[String], two: &[String]) -> usize {
    // The lengths for the words of `one` up to the previous one.
    let mut lengths = vec![0; two.len() + 1];
    for word in one {
        let mut diagonal = 0;
        for (at, other) in two.iter().enumerate() {
            let above = lengths[at + 1];
            lengths[at + 1] = if word == other { diagonal + 1 } else { above.max(lengths[at]) };
            diagonal = above;
        }
    }
    lengths.last().copied().unwrap_or(0)
}
