//! Intervals for shares and means.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use utoipa::ToSchema;

/// The 97.5 % quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// Resamples of a bootstrap.
const RESAMPLES: usize = 1000;

/// Of more values than these, a mean is distributed normally for all that matters here.
const MANY: usize = 2000;

/// The bounds of a 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct Interval {
    /// The lower bound.
    pub low: f64,
    /// The upper bound.
    pub high: f64,
}

impl Interval {
    /// Whether all of it is above zero, or all of it below.
    #[must_use]
    pub fn excludes_zero(self) -> bool {
        self.low > 0.0 || self.high < 0.0
    }
}

/// Wilson's interval of a share: `yes` of `all`; `None` of nothing.
#[must_use]
pub fn wilson(yes: u64, all: u64) -> Option<Interval> {
    if all == 0 {
        return None;
    }
    let (n, p) = (all as f64, yes.min(all) as f64 / all as f64);
    let square = Z * Z;
    let center = (p + square / (2.0 * n)) / (1.0 + square / n);
    let half = Z / (1.0 + square / n) * (p * (1.0 - p) / n + square / (4.0 * n * n)).sqrt();
    Some(Interval { low: (center - half).max(0.0), high: (center + half).min(1.0) })
}

/// Newcombe's interval of the difference between two shares, made of Wilson's intervals; `None` if one of
/// them is of nothing.
#[must_use]
pub fn difference_of_shares(one: (u64, u64), two: (u64, u64)) -> Option<Interval> {
    let (a, b) = (wilson(one.0, one.1)?, wilson(two.0, two.1)?);
    let (p, q) = (one.0 as f64 / one.1 as f64, two.0 as f64 / two.1 as f64);
    let below = ((p - a.low).powi(2) + (b.high - q).powi(2)).sqrt();
    let above = ((a.high - p).powi(2) + (q - b.low).powi(2)).sqrt();
    Some(Interval { low: p - q - below, high: p - q + above })
}

/// The interval of the mean by the percentiles of a bootstrap, or of very many values by the normal
/// distribution. The same values give the same interval. `None` of fewer than two values.
#[must_use]
pub fn bootstrap(values: &[f64]) -> Option<Interval> {
    bootstrap_difference(values, &[0.0])
}

/// As [`bootstrap`], of the difference between two means. A single value is taken as exact.
#[must_use]
pub fn bootstrap_difference(one: &[f64], two: &[f64]) -> Option<Interval> {
    if one.len() < 2 || two.is_empty() {
        return None;
    }
    if one.len() > MANY || two.len() > MANY {
        let half = Z * (squared_error(one) + squared_error(two)).sqrt();
        let difference = mean(one) - mean(two);
        return Some(Interval { low: difference - half, high: difference + half });
    }
    // Any fixed seed: an interval that changes with each look would invite to look again.
    let mut random = ChaCha8Rng::seed_from_u64(2026);
    let mut resampled = |values: &[f64]| {
        let sum: f64 = values.iter().map(|_| values[random.random_range(0..values.len())]).sum();
        sum / values.len() as f64
    };
    let mut differences: Vec<f64> =
        (0..RESAMPLES).map(|_| resampled(one) - resampled(two)).collect();
    differences.sort_by(f64::total_cmp);
    let at = |share: usize| differences[(share * RESAMPLES / 1000).min(RESAMPLES - 1)];
    Some(Interval { low: at(25), high: at(975) })
}

/// The arithmetic mean; 0 of nothing.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The square of the standard error of the mean.
fn squared_error(values: &[f64]) -> f64 {
    let (n, mean) = (values.len() as f64, mean(values));
    if n < 2.0 {
        return 0.0;
    }
    values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0) / n
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn near(interval: Option<Interval>, low: f64, high: f64, by: f64) {
        let found = interval.unwrap();
        assert!((found.low - low).abs() < by && (found.high - high).abs() < by, "{found:?}");
    }

    #[test]
    fn intervals_are_those_of_the_literature() {
        // Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I.
        near(wilson(81, 263), 0.2553, 0.3662, 5e-5);
        near(wilson(15, 148), 0.0624, 0.1605, 5e-5);
        near(wilson(0, 20), 0.0, 0.1611, 5e-5);
        near(wilson(1, 29), 0.0061, 0.1718, 5e-5);
        assert_eq!(wilson(0, 0), None);
        // Newcombe (1998), "Interval estimation for the difference between independent proportions", table II.
        near(difference_of_shares((56, 70), (48, 80)), 0.0524, 0.3339, 5e-5);
        near(difference_of_shares((9, 10), (3, 10)), 0.1705, 0.8090, 5e-5);
    }

    #[test]
    fn means_of_many_values_have_the_same_interval_either_way() {
        let values: Vec<f64> = (0..MANY).map(|n| (n * n % 97) as f64).collect();
        let few = bootstrap(&values).unwrap();
        let more: Vec<f64> = values.iter().copied().chain([values[0]]).collect();
        near(bootstrap(&more), few.low, few.high, 0.2);
        assert_eq!(bootstrap(&[1.0]), None);
        near(bootstrap(&[2.0, 2.0, 2.0]), 2.0, 2.0, 1e-12);
        let shifted: Vec<f64> = values.iter().map(|value| value + 10.0).collect();
        assert!(bootstrap_difference(&shifted, &values).unwrap().excludes_zero());
        assert!(!bootstrap_difference(&values, &values).unwrap().excludes_zero());
    }

    proptest! {
        #[test]
        fn intervals_contain_what_was_seen(all in 1_u64..5000, share in 0.0_f64..1.0) {
            let yes = (all as f64 * share) as u64;
            let interval = wilson(yes, all).unwrap();
            let p = yes as f64 / all as f64;
            prop_assert!(interval.low <= p + 1e-12 && p <= interval.high + 1e-12);
            prop_assert!((0.0..=1.0).contains(&interval.low) && interval.high <= 1.0);
            let none = difference_of_shares((yes, all), (yes, all)).unwrap();
            prop_assert!(!none.excludes_zero());
        }
    }
}
