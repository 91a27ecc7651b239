//! The best of a row of logits, for choices that need no more.

/// The greatest logits of a row, and what all of them add up to.
#[derive(Debug, Clone, PartialEq)]
pub struct TopLogits {
    /// Tokens and their logits, in any order, none twice. No token beside them has a greater logit
    /// than the least of these; one that has the same may be missing.
    pub tokens: Vec<(u32, f32)>,
    /// `ln Σ exp(logit − greatest)` over the whole vocabulary.
    pub log_sum: f32,
    /// Whether these are all tokens of the vocabulary.
    pub complete: bool,
}

impl TopLogits {
    /// The logarithm of the probability that belongs to a logit, by the same arithmetic as for a
    /// whole row.
    pub(super) fn log_probability(&self, logit: f32) -> f32 {
        (logit - self.greatest()) - self.log_sum
    }

    /// The greatest logit of the row.
    fn greatest(&self) -> f32 {
        self.tokens.iter().map(|(_, logit)| *logit).fold(f32::NEG_INFINITY, f32::max)
    }

    /// Logits that are greater belong to these tokens only; `None` if all do.
    pub(super) fn edge(&self) -> Option<f32> {
        let least = self.tokens.iter().map(|(_, logit)| *logit).fold(f32::INFINITY, f32::min);
        (!self.complete).then_some(least)
    }

    /// The token with the greatest logit but `forbidden`, of equal ones the first, and its logit.
    /// `None` if a token that is not here may come before it.
    pub(super) fn argmax(&self, forbidden: Option<u32>) -> Option<(u32, f32)> {
        let allowed = self.tokens.iter().filter(|(token, _)| Some(*token) != forbidden);
        let best = allowed.copied().reduce(|best, other| {
            let first = other.1 == best.1 && other.0 < best.0;
            if other.1 > best.1 || first { other } else { best }
        })?;
        self.edge().is_none_or(|edge| best.1 > edge).then_some(best)
    }
}

#[cfg(test)]
impl TopLogits {
    /// The best `count` of a row, as a device may give them: in no order, and with any of those that
    /// equal the last.
    pub(super) fn of(row: &[f32], count: usize) -> Self {
        let mut order: Vec<usize> = (0..row.len()).collect();
        // Of equal ones the last first, which is the wrong way round on purpose.
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
    fn the_best_are_decided_by_what_is_known_or_not_at_all() {
        let row = [1.0, 7.0, 3.0, 7.0, 3.0, f32::NEG_INFINITY];
        for count in 3..=6 {
            let best = TopLogits::of(&row, count);
            assert_eq!(best.argmax(None), Some((1, 7.0)), "{count}");
            assert_eq!(best.argmax(Some(1)), Some((3, 7.0)), "{count}");
            assert_eq!(best.log_probability(3.0), math::log_probability(&row, 2));
        }
        // Two that are equal: there could be a third.
        assert_eq!(TopLogits::of(&row, 2).argmax(None), None);
        assert_eq!(TopLogits::of(&row, 1).argmax(None), None);
        assert_eq!(TopLogits::of(&[0.0; 4], 4).argmax(None), Some((0, 0.0)));
        assert_eq!(TopLogits::of(&[0.0; 4], 3).argmax(None), None);
    }
}
