//! The inner product of packed vectors, with the instructions of AVX2 where the machine has them.
//!
//! Left alone, the compiler makes two to three times as slow code of [`plain`], because it does not see
//! that the products of pairs may be added in one instruction.

#[cfg(target_arch = "x86_64")]
use pulp::x86::V3;

/// An inner product, and how to run a loop over it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Dot {
    #[cfg(target_arch = "x86_64")]
    Avx2(V3),
    Plain,
}

/// Work that takes inner products.
pub(crate) trait Work {
    type Output;

    fn run(self, dot: impl Fn(&[i8], &[i16]) -> i32) -> Self::Output;
}

impl Dot {
    /// The fastest one that this machine can do.
    pub(crate) fn new() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(v3) = V3::try_new() {
            return Self::Avx2(v3);
        }
        Self::Plain
    }

    /// Runs `work`, compiled for the instructions of this product if [`Work::run`] is inlined.
    pub(crate) fn over<W: Work>(self, work: W) -> W::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(v3) => v3.vectorize(
                #[inline(always)]
                || {
                    work.run(
                        #[inline(always)]
                        |a, b| avx2(v3, a, b),
                    )
                },
            ),
            Self::Plain => work.run(plain),
        }
    }
}

#[inline(always)]
fn plain(a: &[i8], b: &[i16]) -> i32 {
    a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum()
}

/// Sixteen products at a time, of which two and two are added at once.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn avx2(v3: V3, a: &[i8], b: &[i16]) -> i32 {
    let (a, a_rest) = pulp::as_arrays::<16, _>(a);
    let (b, b_rest) = pulp::as_arrays::<16, _>(b);
    let mut sums = pulp::cast([0_i32; 8]);
    for (a, b) in a.iter().zip(b) {
        let a = v3.avx2._mm256_cvtepi8_epi16(pulp::cast(*a));
        let products = v3.avx2._mm256_madd_epi16(a, pulp::cast(*b));
        sums = v3.avx2._mm256_add_epi32(sums, products);
    }
    let sums: [i32; 8] = pulp::cast(sums);
    sums.iter().sum::<i32>() + plain(a_rest, b_rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::{MAX_DIM, QUERY_STEPS};

    struct One<'a>(&'a [i8], &'a [i16]);

    impl Work for One<'_> {
        type Output = i32;

        #[inline(always)]
        fn run(self, dot: impl Fn(&[i8], &[i16]) -> i32) -> i32 {
            dot(self.0, self.1)
        }
    }

    #[test]
    fn the_fastest_product_is_the_plain_one() {
        let a: Vec<i8> = (0..MAX_DIM).map(|i| (i * 7919 % 255) as i8).collect();
        let b: Vec<i16> = (0..MAX_DIM).map(|i| (i * 37 % 4094) as i16 - 2047).collect();
        for length in (0..100).chain([384, 768, 1024, 4095, MAX_DIM]) {
            let (a, b) = (&a[..length], &b[..length]);
            assert_eq!(Dot::new().over(One(a, b)), plain(a, b), "{length}");
        }
    }

    #[test]
    fn the_largest_products_fit() {
        let codes = vec![-127_i8; MAX_DIM];
        let query = vec![QUERY_STEPS as i16; MAX_DIM];
        for dot in [Dot::new(), Dot::Plain] {
            assert_eq!(dot.over(One(&codes, &query)), -127 * 2047 * MAX_DIM as i32);
        }
    }
}
