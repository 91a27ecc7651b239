//! The greatest logits of a row, for choices that do not depend on the others.

/// The greatest logits of a row, and the normalisation of all of them.
#[derive(Debug, Clone, PartialEq)]
pub struct TopLogits {
    /// Different tokens and their logits, in any order. No other token has a greater logit than the
    /// least of these, but some may have the same.
    pub tokens: Vec<(u32, f32)>,
    /// `ln Σ exp(logit − max)` over the whole vocabulary.
    pub log_sum: f32,
    /// Whether these are all tokens of the vocabulary.
    pub complete: bool,
}

impl TopLogits {
    /// The logarithm of the probability of a logit, with the same arithmetic as for a whole row.
    pub(super) fn log_probability(&self, logit: f32) -> f32 {
        (logit - self.max()) - self.log_sum
    }

    /// The greatest logit of the row.
    fn max(&self) -> f32 {
        self.tokens.iter().map(|(_, logit)| *logit).fold(f32::NEG_INFINITY, f32::max)
    }

    /// Only these tokens have greater logits than the returned one; `None` if these are all tokens.
    pub(super) fn threshold(&self) -> Option<f32> {
        let least = self.tokens.iter().map(|(_, logit)| *logit).fold(f32::INFINITY, f32::min);
        (!self.complete).then_some(least)
    }

    /// The token with the greatest logit except `forbidden`, and the logit; the lowest token of a tie.
    /// `None` if a token that is not listed may precede it.
    pub(super) fn argmax(&self, forbidden: Option<u32>) -> Option<(u32, f32)> {
        let allowed = self.tokens.iter().filter(|(token, _)| Some(*token) != forbidden);
        let best = allowed.copied().reduce(|best, other| {
            let first = other.1 == best.1 && other.0 < best.0;
            if other.1 > best.1 || first { other } else { best }
        })?;
        self.threshold().is_none_or(|threshold| best.1 > threshold).then_some(best)
    }
}

#[cfg(test)]
impl TopLogits {
    /// The greatest `count` of a row, as a device may return them: unordered, and with any of those
    /// that equal the least.
    pub(super) fn of(row: &[f32], count: usize) -> Self {
        let mut order: Vec<usize> = (0..row.len()).collect();
        // The highest token of a tie first: deliberately the wrong order.
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(b.cmp(&a)));
        order.truncate(count);
        order.reverse();
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|x| f64::from((x - max).exp())).sum();
        Self {
            tokens: order.iter().map(|&token| (token as u32, row[token])).collect(),
            log_sum: sum.ln() as f32,
            complete: count >= row.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::math;
    use super::*;

    #[test]
    fn argmax_is_correct_or_undecided() {
        let row = [1.0, 7.0, 3.0, 7.0, 3.0, f32::NEG_INFINITY];
        for count in 3..=6 {
            let best = TopLogits::of(&row, count);
            assert_eq!(best.argmax(None), Some((1, 7.0)), "{count}");
            assert_eq!(best.argmax(Some(1)), Some((3, 7.0)), "{count}");
            assert_eq!(best.log_probability(3.0), math::log_probability(&row, 2));
        }
        // Two are equal: there could be a third.
        assert_eq!(TopLogits::of(&row, 2).argmax(None), None);
        assert_eq!(TopLogits::of(&row, 1).argmax(None), None);
        assert_eq!(TopLogits::of(&[0.0; 4], 4).argmax(None), Some((0, 0.0)));
        assert_eq!(TopLogits::of(&[0.0; 4], 3).argmax(None), None);
    }
}
