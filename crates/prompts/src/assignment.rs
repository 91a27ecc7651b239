//! Which variant of an experiment a unit gets: a hash decides, so that nothing need be stored and the same
//! unit always gets the same one.

/// The number of buckets that weights are shares of.
pub const BUCKETS: u32 = 10_000;

/// The bucket of a unit: the first 8 bytes of BLAKE3 of salt, experiment and unit, modulo [`BUCKETS`].
#[must_use]
pub fn bucket(salt: &str, experiment: &str, unit: &str) -> u32 {
    let mut hasher = blake3::Hasher::new();
    for part in [salt, experiment, unit] {
        // The lengths keep "ab", "c" and "a", "bc" apart.
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let mut first = [0; 8];
    hasher.finalize_xof().fill(&mut first);
    // The remainder is below 10,000.
    (u64::from_le_bytes(first) % u64::from(BUCKETS)) as u32
}

/// The index of the variant for a bucket: weights are shares of [`BUCKETS`] in their order. The last variant
/// with a weight gets what rounding leaves over; `None` if no variant has a weight.
#[must_use]
pub fn assign(weights: &[u32], bucket: u32) -> Option<usize> {
    let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    let last = weights.iter().rposition(|weight| *weight > 0)?;
    let mut sum = 0;
    for (index, weight) in weights.iter().enumerate() {
        sum += u64::from(*weight);
        if u64::from(bucket) < sum * u64::from(BUCKETS) / total {
            return Some(index);
        }
    }
    Some(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn shares_are_those_of_the_weights() {
        for weights in [vec![1, 1], vec![9, 1], vec![2, 0, 3, 5], vec![7]] {
            let mut counts = vec![0_u32; weights.len()];
            for number in 0..20_000 {
                let bucket = bucket("salt", "one", &number.to_string());
                counts[assign(&weights, bucket).unwrap()] += 1;
            }
            let total: u32 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(&weights) {
                let expected = f64::from(*weight) / f64::from(total);
                let share = f64::from(*count) / 20_000.0;
                assert!((share - expected).abs() < 0.015, "{weights:?}: {counts:?}");
            }
        }
        assert_eq!(assign(&[0, 0], 5), None);
        assert_eq!(assign(&[], 5), None);
    }

    #[test]
    fn another_salt_mixes_units_anew() {
        let unit = |number: u32| number.to_string();
        let same = (0..1000)
            .filter(|n| {
                let variant =
                    |salt| assign(&[1, 1], bucket(salt, "one", &unit(*n))).unwrap_or_default();
                variant("a") == variant("b")
            })
            .count();
        assert!((400..600).contains(&same), "{same}");
        assert_ne!(bucket("ab", "c", ""), bucket("a", "bc", ""));
    }

    proptest! {
        #[test]
        fn a_unit_keeps_its_variant(
            unit in ".{0,40}",
            weights in proptest::collection::vec(0_u32..100_000, 1..6),
        ) {
            let bucket = bucket("s", "e", &unit);
            prop_assert!(bucket < BUCKETS);
            let variant = assign(&weights, bucket);
            prop_assert_eq!(variant, assign(&weights, super::bucket("s", "e", &unit)));
            prop_assert_eq!(variant.is_some(), weights.iter().any(|weight| *weight > 0));
            if let Some(variant) = variant {
                prop_assert!(weights[variant] > 0);
            }
        }
    }
}
