//! A rotation that spreads outliers over a row before it is put into 8 bits.
//!
//! A row in 8 bits has one scale, and a few large numbers in it leave few steps for all the others.
//! Turned by an orthogonal matrix, the row's numbers are sums of many, so none stands out; the
//! weights are turned by the same matrix when they are packed, and the product stays what it was:
//! `(x R)(W R)ᵀ = x Wᵀ` (Ashkboos et al., QuaRot, 2024). `R` changes the signs of some numbers and
//! then mixes those that lie far enough apart for whole vectors to be added and subtracted: where
//! three is a factor of the row's length by the reflection `I − ⅔ J` of its thirds, then by
//! Walsh–Hadamard matrices of halves and quarters down to [`LANES`] numbers.

use crate::kernels::math::LANES;
use crate::kernels::tier::for_each_isa;

/// Signs of a row's numbers, again and again; a prime number of vectors of them, so that numbers
/// that are mixed have different ones. Without them a row's mean would become an outlier. Drawn by a
/// linear congruential generator.
const SIGNS: [u32; 61 * LANES] = {
    let mut signs = [0; 61 * LANES];
    let (mut state, mut i) = (1u32, 0);
    while i < signs.len() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        signs[i] = state & (1 << 31);
        i += 1;
    }
    signs
};

/// Most times that a row is halved: a number becomes a sum of at most 256, or of three times as many.
const MOST_HALVINGS: u32 = 8;

/// Whether a row of `depth` numbers is mixed in thirds, and how often it is halved after that.
fn factors(depth: usize) -> (bool, u32) {
    if depth == 0 || !depth.is_multiple_of(LANES) {
        return (false, 0);
    }
    let vectors = depth / LANES;
    (vectors.is_multiple_of(3), vectors.trailing_zeros().min(MOST_HALVINGS))
}

/// By how much products of rotated rows are larger: what the Walsh–Hadamard matrices, which are made
/// of ones, leave to be divided by. A power of two.
pub(crate) fn gain(depth: usize) -> f32 {
    (1u32 << factors(depth).1) as f32
}

for_each_isa! {
    /// Turns a row in place; its square grows by its [`gain`].
    pub(crate) fn rotate(x: &mut [f32]) = rotate_body;
}

#[inline(always)]
fn rotate_body<const FMA: bool>(x: &mut [f32]) {
    flip(x);
    mix(x);
}

for_each_isa! {
    /// Turns a row back, times its [`gain`].
    pub(crate) fn rotate_back(x: &mut [f32]) = rotate_back_body;
}

#[inline(always)]
fn rotate_back_body<const FMA: bool>(x: &mut [f32]) {
    // Mixing is its own transpose.
    mix(x);
    flip(x);
}

#[inline(always)]
fn flip(x: &mut [f32]) {
    for chunk in x.chunks_mut(SIGNS.len()) {
        for (value, sign) in chunk.iter_mut().zip(&SIGNS) {
            *value = f32::from_bits(value.to_bits() ^ sign);
        }
    }
}

#[inline(always)]
fn mix(x: &mut [f32]) {
    let (three, mut halvings) = factors(x.len());
    let mut part = x.len();
    if three {
        reflect_thirds(x);
        part /= 3;
    }
    while halvings >= 2 {
        x.chunks_exact_mut(part).for_each(mix_quarters);
        part /= 4;
        halvings -= 2;
    }
    if halvings == 1 {
        x.chunks_exact_mut(part).for_each(mix_halves);
    }
}

/// Every number less two thirds of the sum of the three in its place.
#[inline(always)]
fn reflect_thirds(x: &mut [f32]) {
    let third = x.len() / 3;
    let (a, rest) = x.split_at_mut(third);
    let (b, c) = rest.split_at_mut(third);
    for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
        let part = (*a + *b + *c) * (2.0 / 3.0);
        (*a, *b, *c) = (*a - part, *b - part, *c - part);
    }
}

/// The Walsh–Hadamard matrix of four, for the four numbers in each place of the quarters.
#[inline(always)]
fn mix_quarters(x: &mut [f32]) {
    let half = x.len() / 2;
    let (low, high) = x.split_at_mut(half);
    let ((a, b), (c, d)) = (low.split_at_mut(half / 2), high.split_at_mut(half / 2));
    for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
        let (sum, difference) = ((*a + *c, *b + *d), (*a - *c, *b - *d));
        (*a, *b) = (sum.0 + sum.1, sum.0 - sum.1);
        (*c, *d) = (difference.0 + difference.1, difference.0 - difference.1);
    }
}

/// The same of two.
#[inline(always)]
fn mix_halves(x: &mut [f32]) {
    let (a, b) = x.split_at_mut(x.len() / 2);
    for (a, b) in a.iter_mut().zip(b) {
        (*a, *b) = (*a + *b, *a - *b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::tier::Tier;

    fn row(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 % 613) as f32 - 300.0) / 300.0).collect()
    }

    #[test]
    fn products_stay_what_they_were_and_the_way_back_leads_back() {
        for tier in Tier::available() {
            for depth in [16, 20, 48, 384, 768, 1536, 3072] {
                let (a, b): (Vec<f32>, Vec<f32>) = (row(depth), row(depth + 5)[5..].to_vec());
                let (mut x, mut w) = (a.clone(), b.clone());
                rotate(tier.isa(), &mut x);
                rotate(tier.isa(), &mut w);
                let dot = |a: &[f32], b: &[f32]| -> f64 {
                    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
                };
                let turned = dot(&x, &w) / f64::from(gain(depth));
                assert!((turned - dot(&a, &b)).abs() < 1e-4, "{tier} {depth}");
                rotate_back(tier.isa(), &mut x);
                let back = x.iter().map(|x| x / gain(depth));
                assert!(a.iter().zip(back).all(|(a, b)| (a - b).abs() < 1e-5), "{tier} {depth}");
            }
        }
    }

    #[test]
    fn an_outlier_is_spread_and_a_mean_stays_small() {
        for depth in [384, 768, 1024, 1536, 3072, 4096] {
            let size = |x: &[f32]| x.iter().fold(0f32, |most, value| most.max(value.abs()));
            let mut x = vec![0.0; depth];
            x[100] = 1.0;
            rotate(Tier::Portable.isa(), &mut x);
            assert!(size(&x) / gain(depth).sqrt() < 0.25, "{depth}");
            let mut x = vec![1.0; depth];
            rotate(Tier::Portable.isa(), &mut x);
            let most = size(&x) / gain(depth).sqrt();
            assert!(most < 5.0, "{depth}: {most}");
        }
    }
}
