//! Seeded random numbers: a seed gives the same caption on every machine and in every batch.

use std::hash::{BuildHasher, RandomState};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A random seed. The keys of the standard library's hasher come from the operating system.
#[must_use]
pub fn fresh_seed() -> u64 {
    RandomState::new().hash_one(std::time::Instant::now())
}

/// The stream of random numbers of one row.
#[derive(Debug, Clone)]
pub(super) struct Random(ChaCha8Rng);

impl Random {
    /// The rows of a request share a seed but not a stream, so that the first row does not depend on
    /// the number of rows.
    pub(super) fn new(seed: u64, row: usize) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(row as u64);
        Self(random)
    }

    /// Draws an index with probability `softmax(scores)`; `None` if every score is −∞.
    pub(super) fn draw(&mut self, scores: &[f32]) -> Option<usize> {
        let weights = weights(scores)?;
        let total: f64 = weights.iter().sum();
        let mut left = self.0.random::<f64>() * total;
        let mut last = None;
        for (index, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            last = Some(index);
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
        last
    }

    /// Draws `count` different indices with probabilities `softmax(scores)`, without replacement.
    /// Indices with a probability of zero come last, those with the greatest score first.
    ///
    /// Dividing every weight by an exponential variate and taking the greatest results is equivalent
    /// to successive draws; `multinomial` in PyTorch does the same.
    pub(super) fn draw_distinct(&mut self, scores: &[f32], count: usize) -> Vec<usize> {
        let weights = weights(scores).unwrap_or_else(|| vec![0.0; scores.len()]);
        let mut keys: Vec<(f64, usize)> = Vec::with_capacity(scores.len());
        for (index, weight) in weights.iter().enumerate() {
            let key = if *weight > 0.0 {
                // 1 − u is in (0, 1], so its logarithm is finite.
                -(1.0 - self.0.random::<f64>()).ln() / weight
            } else {
                f64::INFINITY
            };
            keys.push((key, index));
        }
        let order = |a: &(f64, usize), b: &(f64, usize)| {
            let by_score = || scores[b.1].total_cmp(&scores[a.1]);
            a.0.total_cmp(&b.0).then_with(by_score).then(a.1.cmp(&b.1))
        };
        let count = count.min(keys.len());
        if count < keys.len() {
            keys.select_nth_unstable_by(count, order);
            keys.truncate(count);
        }
        keys.sort_unstable_by(order);
        keys.into_iter().map(|(_, index)| index).collect()
    }
}

/// `exp(score − max)`; `None` if every score is −∞.
fn weights(scores: &[f32]) -> Option<Vec<f64>> {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    max.is_finite().then(|| scores.iter().map(|s| f64::from(s - max).exp()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCORES: [f32; 4] = [0.0, f32::NEG_INFINITY, std::f32::consts::LN_2, -1e9];

    #[test]
    fn draws_follow_the_probabilities() {
        let mut random = Random::new(1, 0);
        let mut counts = [0; 4];
        for _ in 0..30_000 {
            counts[random.draw(&SCORES).unwrap()] += 1;
        }
        assert_eq!((counts[1], counts[3]), (0, 0));
        assert!((9_500..10_500).contains(&counts[0]), "{counts:?}");
        assert_eq!(random.draw(&[f32::NEG_INFINITY; 3]), None);
    }

    #[test]
    fn distinct_draws_follow_the_probabilities_and_fall_back_to_the_scores() {
        let mut random = Random::new(2, 0);
        let mut first = [0; 4];
        for _ in 0..30_000 {
            let drawn = random.draw_distinct(&SCORES, 4);
            assert_eq!(&drawn[2..], [3, 1]);
            first[drawn[0]] += 1;
        }
        assert!((9_500..10_500).contains(&first[0]), "{first:?}");
        assert_eq!(random.draw_distinct(&SCORES, 2).len(), 2);
        assert_eq!(random.draw_distinct(&[f32::NEG_INFINITY; 2], 5), [0, 1]);
    }

    #[test]
    fn a_seed_reproduces_its_numbers_and_rows_differ() {
        let drawn = |seed, row| {
            let mut random = Random::new(seed, row);
            (0..20).map(|_| random.draw(&[0.0; 50]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(drawn(5, 0), drawn(5, 0));
        assert_ne!(drawn(5, 0), drawn(5, 1));
        assert_ne!(drawn(5, 0), drawn(6, 0));
        assert_ne!(fresh_seed(), fresh_seed());
    }
}
