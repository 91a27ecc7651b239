//! A rotation that spreads outliers over a row before it is put into 8 bits.
//!
//! A row in 8 bits has one scale, and a few large numbers in it leave few steps for all the others.
//! Turned by an orthogonal matrix, the row's numbers are sums of many, so none stands out; the
//! weights are turned by the same matrix when they are packed, and the product stays what it was:
//! `(x R)(W R)ᵀ = x Wᵀ` (Ashkboos et al., QuaRot, 2024). `R` changes the signs of some numbers and
//! then mixes those that lie far enough apart for whole vectors to be added and subtracted: where
//! three is a factor of the row's length by the reflection `I − ⅔ J` of its thirds, then by
//! Walsh–Hadamard matrices of halves and quarters down to [`LANES`] numbers.

use crate::math::LANES;
use crate::vector::{Vector, for_each_vector};

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
const MAX_HALVINGS: u32 = 8;

/// Whether a row of `depth` numbers is mixed in thirds, and how often it is halved after that.
fn factors(depth: usize) -> (bool, u32) {
    if depth == 0 || !depth.is_multiple_of(LANES) {
        return (false, 0);
    }
    let vectors = depth / LANES;
    (vectors.is_multiple_of(3), vectors.trailing_zeros().min(MAX_HALVINGS))
}

/// By how much products of rotated rows are larger: what the Walsh–Hadamard matrices, which are made
/// of ones, leave to be divided by. A power of two.
pub(crate) fn gain(depth: usize) -> f32 {
    (1u32 << factors(depth).1) as f32
}

for_each_vector! {
    /// Turns the row `x` into `out`; its square grows by its [`gain`].
    ///
    /// # Panics
    /// The two differ in length.
    pub(crate) fn rotate(x: &[f32], out: &mut [f32]) = rotate_body;
}

#[inline(always)]
fn rotate_body<V: Vector>(x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "a row and its rotation");
    let three = factors(x.len()).0;
    let (rows, vectors) = (x.as_chunks::<LANES>().0, out.as_chunks_mut::<LANES>().0);
    let signs = SIGNS.as_chunks::<LANES>().0;
    if three {
        let third = rows.len() / 3;
        for i in 0..third {
            let mut values = [V::splat(0.0); 3];
            for (part, value) in values.iter_mut().enumerate() {
                let place = i + part * third;
                *value = V::load(&rows[place]).flip(&signs[place % signs.len()]);
            }
            for (part, value) in reflect(values).into_iter().enumerate() {
                value.store(&mut vectors[i + part * third]);
            }
        }
    } else {
        for (i, (row, vector)) in rows.iter().zip(&mut *vectors).enumerate() {
            V::load(row).flip(&signs[i % signs.len()]).store(vector);
        }
        flip_rest(x, out);
    }
    halve::<V>(out);
}

for_each_vector! {
    /// Turns a row back in place, times its [`gain`].
    pub(crate) fn rotate_back(x: &mut [f32]) = rotate_back_body;
}

#[inline(always)]
fn rotate_back_body<V: Vector>(x: &mut [f32]) {
    // Every mixing is its own transpose, and those of different factors can change places.
    halve::<V>(x);
    let vectors = x.as_chunks_mut::<LANES>().0;
    if factors(vectors.len() * LANES).0 {
        let third = vectors.len() / 3;
        for i in 0..third {
            let mut values = [V::splat(0.0); 3];
            for (part, value) in values.iter_mut().enumerate() {
                *value = V::load(&vectors[i + part * third]);
            }
            for (part, value) in reflect(values).into_iter().enumerate() {
                value.store(&mut vectors[i + part * third]);
            }
        }
    }
    for (value, sign) in x.iter_mut().zip(SIGNS.iter().cycle()) {
        *value = f32::from_bits(value.to_bits() ^ sign);
    }
}

/// What is left of a row after its whole vectors.
fn flip_rest(x: &[f32], out: &mut [f32]) {
    let whole = x.len() - x.len() % LANES;
    for i in whole..x.len() {
        out[i] = f32::from_bits(x[i].to_bits() ^ SIGNS[i % SIGNS.len()]);
    }
}

/// Every number less two thirds of the sum of the three.
#[inline(always)]
fn reflect<V: Vector>([a, b, c]: [V; 3]) -> [V; 3] {
    let part = a.add(b).add(c).mul(V::splat(2.0 / 3.0));
    [a.sub(part), b.sub(part), c.sub(part)]
}

/// All halvings of a row, as many at a time as there are registers for.
#[inline(always)]
fn halve<V: Vector>(x: &mut [f32]) {
    let (three, mut halvings) = factors(x.len());
    let vectors = x.as_chunks_mut::<LANES>().0;
    let mut part = if three { vectors.len() / 3 } else { vectors.len() };
    while halvings > 0 {
        // Even shares: six halvings are three and three, not four and two.
        let now = halvings.div_ceil(halvings.div_ceil(V::HALVINGS));
        for x in vectors.chunks_exact_mut(part.max(1)) {
            match now {
                1 => mix::<V, 2>(x),
                2 => mix::<V, 4>(x),
                3 => mix::<V, 8>(x),
                _ => mix::<V, 16>(x),
            }
        }
        part >>= now;
        halvings -= now;
    }
}

/// The Walsh–Hadamard matrix of `N` for the numbers in each place of the `N` parts of `x`.
#[inline(always)]
fn mix<V: Vector, const N: usize>(x: &mut [[f32; LANES]]) {
    let part = x.len() / N;
    for i in 0..part {
        let mut values = [V::splat(0.0); N];
        for (n, value) in values.iter_mut().enumerate() {
            *value = V::load(&x[i + n * part]);
        }
        let mut distance = N / 2;
        while distance > 0 {
            for n in 0..N {
                if n & distance == 0 {
                    let (a, b) = (values[n], values[n + distance]);
                    (values[n], values[n + distance]) = (a.add(b), a.sub(b));
                }
            }
            distance /= 2;
        }
        for (n, value) in values.into_iter().enumerate() {
            value.store(&mut x[i + n * part]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Tier;

    fn row(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 % 613) as f32 - 300.0) / 300.0).collect()
    }

    #[test]
    fn products_stay_what_they_were_and_the_way_back_leads_back() {
        for tier in Tier::available() {
            for depth in [16, 20, 48, 384, 768, 1536, 3072] {
                let (a, b): (Vec<f32>, Vec<f32>) = (row(depth), row(depth + 5)[5..].to_vec());
                let (mut x, mut w) = (vec![0.0; depth], vec![0.0; depth]);
                rotate(tier.isa(), &a, &mut x);
                rotate(tier.isa(), &b, &mut w);
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
            let (mut row, mut x) = (vec![0.0; depth], vec![0.0; depth]);
            row[100] = 1.0;
            rotate(Tier::Portable.isa(), &row, &mut x);
            assert!(size(&x) / gain(depth).sqrt() < 0.25, "{depth}");
            rotate(Tier::Portable.isa(), &vec![1.0; depth], &mut x);
            let most = size(&x) / gain(depth).sqrt();
            assert!(most < 5.0, "{depth}: {most}");
        }
    }
}
