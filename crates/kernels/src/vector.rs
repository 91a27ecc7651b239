//! Sixteen numbers at a time: the same body for every instruction set.
//!
//! Compilers make vector code of plain loops, but not dependably of those that carry several
//! vectors from one turn to the next, such as a row's range. Bodies over a [`Vector`] say what they
//! want, and [`for_each_vector`] compiles them for every [`Isa`](crate::isa::Isa).
//!
//! An intrinsic becomes an instruction only in a function that may use it, so all that lies between
//! has to be inlined: a body is plain loops and calls of `#[inline(always)]` functions, and hands no
//! closure to the standard library (`for_each`, `from_fn`, `map`).

use crate::math::{EXP, LANES, LN_2, ROUNDER};

/// [`LANES`] numbers in f32.
///
/// Every operation rounds as IEEE 754 says, so all vectors give the same bits, but for [`fma`],
/// which is one rounding or two.
///
/// [`fma`]: Self::fma
pub(crate) trait Vector: Copy {
    /// How often a row can be halved while its parts stay in registers.
    const HALVINGS: u32;

    fn splat(x: f32) -> Self;
    fn load(x: &[f32; LANES]) -> Self;
    fn store(self, out: &mut [f32; LANES]);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    /// `self · factor + term`.
    fn fma(self, factor: Self, term: Self) -> Self;
    /// The greater of the two; `other` where either is NaN.
    fn max(self, other: Self) -> Self;
    /// The lesser of the two; `other` where either is NaN.
    fn min(self, other: Self) -> Self;
    /// Changes the sign where the highest bit of `signs` is set.
    fn flip(self, signs: &[u32; LANES]) -> Self;
    /// `self · 2ⁿ`, where `rounded` is n + [`ROUNDER`] and nothing leaves the range of numbers.
    fn mul_pow2(self, rounded: Self) -> Self;
    /// Of every lane a word: this number in bf16 in the low half, the other's in the high one.
    /// Neither is negative; halves are rounded up, and infinity and NaN are not kept.
    fn pair_bf16(self, high: Self, out: &mut [u32; LANES]);
    /// The numbers' own bits.
    fn store_bits(self, out: &mut [u32; LANES]);

    #[inline(always)]
    fn lanes(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes);
        lanes
    }
}

/// eˣ for x ≤ 88, as [`math::exp`](crate::math::exp).
#[inline(always)]
pub(crate) fn exp<V: Vector>(x: V) -> V {
    // In this order a NaN stays one.
    let x = V::splat(-87.0).max(x);
    let shifted = x.fma(V::splat(std::f32::consts::LOG2_E), V::splat(ROUNDER));
    let n = shifted.sub(V::splat(ROUNDER));
    let mut r = x;
    for part in LN_2 {
        r = n.fma(V::splat(-part), r);
    }
    let [first, rest @ ..] = EXP;
    let mut p = V::splat(first);
    for c in rest {
        p = p.fma(r, V::splat(c));
    }
    let p = p.mul(r).fma(r, r.add(V::splat(1.0)));
    p.mul_pow2(shifted)
}

/// 2ˣ for x ≤ 0 to 7.5e-5 of itself, a twentieth of what rounding to bf16 changes; below 2⁻¹²⁵
/// something smaller than that. NaN stays NaN.
///
/// The cubic with the smallest relative error between −½ and ½.
#[inline(always)]
pub(crate) fn exp2_approx<V: Vector>(x: V) -> V {
    let x = V::splat(-126.0).max(x);
    let shifted = x.add(V::splat(ROUNDER));
    let f = x.sub(shifted.sub(V::splat(ROUNDER)));
    let p = V::splat(0.055_171_66).fma(f, V::splat(0.242_611_12));
    let p = p.fma(f, V::splat(0.693_261)).fma(f, V::splat(0.999_928_06));
    p.mul_pow2(shifted)
}

/// Vectors as plain arrays.
#[derive(Clone, Copy)]
pub(crate) struct PortableVector([f32; LANES]);

/// aarch64 always has fused multiply-add; elsewhere plain code cannot count on it.
const PLAIN_FMA: bool = cfg!(target_arch = "aarch64");

impl PortableVector {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Vector for PortableVector {
    const HALVINGS: u32 = 2;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; LANES])
    }

    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        Self(*x)
    }

    #[inline(always)]
    fn store(self, out: &mut [f32; LANES]) {
        *out = self.0;
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn fma(self, factor: Self, term: Self) -> Self {
        Self(std::array::from_fn(|i| {
            crate::math::fma::<PLAIN_FMA>(self.0[i], factor.0[i], term.0[i])
        }))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn flip(self, signs: &[u32; LANES]) -> Self {
        Self(std::array::from_fn(|i| f32::from_bits(self.0[i].to_bits() ^ signs[i])))
    }

    #[inline(always)]
    fn mul_pow2(self, rounded: Self) -> Self {
        self.zip(rounded, |x, rounded| {
            let n = rounded.to_bits().wrapping_sub(ROUNDER.to_bits());
            f32::from_bits(x.to_bits().wrapping_add(n << 23))
        })
    }

    #[inline(always)]
    fn pair_bf16(self, high: Self, out: &mut [u32; LANES]) {
        for ((out, low), high) in out.iter_mut().zip(self.0).zip(high.0) {
            let (low, high) =
                (low.to_bits().wrapping_add(0x8000), high.to_bits().wrapping_add(0x8000));
            *out = (low >> 16) | (high & 0xffff_0000);
        }
    }

    #[inline(always)]
    fn store_bits(self, out: &mut [u32; LANES]) {
        *out = self.0.map(f32::to_bits);
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2Vector, Avx512Vector};

#[cfg(target_arch = "x86_64")]
mod x86 {
    #[allow(clippy::wildcard_imports, reason = "intrinsics carry their own prefix")]
    use std::arch::x86_64::*;

    use super::Vector;
    use crate::math::{LANES, ROUNDER};

    // SAFETY of every block in the two implementations: `for_each_vector`, which alone names these
    // types, does so in functions that are called only where the CPU has the instructions; what is
    // read and written lies in the arrays at hand.

    /// One vector of AVX-512.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512Vector(__m512);

    impl Vector for Avx512Vector {
        const HALVINGS: u32 = 4;

        #[inline(always)]
        fn splat(x: f32) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_set1_ps(x) })
        }

        #[inline(always)]
        fn load(x: &[f32; LANES]) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_loadu_ps(x.as_ptr()) })
        }

        #[inline(always)]
        fn store(self, out: &mut [f32; LANES]) {
            // SAFETY: see above.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), self.0) }
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_sub_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_mul_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn fma(self, factor: Self, term: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, term.0) })
        }

        #[inline(always)]
        fn max(self, other: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_max_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn min(self, other: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_min_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn flip(self, signs: &[u32; LANES]) -> Self {
            // SAFETY: see above.
            Self(unsafe {
                let signs = _mm512_loadu_si512(signs.as_ptr().cast());
                _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(self.0), signs))
            })
        }

        #[inline(always)]
        fn mul_pow2(self, rounded: Self) -> Self {
            // The rounder's own low bits are zero, so they leave the word with the shift.
            const _: () = assert!(ROUNDER.to_bits() << 23 == 0);
            // SAFETY: see above.
            Self(unsafe {
                let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(rounded.0));
                _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self.0), n))
            })
        }

        #[inline(always)]
        fn pair_bf16(self, high: Self, out: &mut [u32; LANES]) {
            // SAFETY: see above.
            unsafe {
                let half = _mm512_set1_epi32(0x8000);
                let low = _mm512_add_epi32(_mm512_castps_si512(self.0), half);
                let high = _mm512_add_epi32(_mm512_castps_si512(high.0), half);
                // Of every word the low half from the one, the high half from the other.
                let low = _mm512_srli_epi32::<16>(low);
                let both = _mm512_mask_blend_epi16(0xaaaa_aaaa, low, high);
                _mm512_storeu_si512(out.as_mut_ptr().cast(), both);
            }
        }

        #[inline(always)]
        fn store_bits(self, out: &mut [u32; LANES]) {
            // SAFETY: see above.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr().cast(), self.0) }
        }
    }

    /// Two vectors of AVX2.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2Vector([__m256; 2]);

    impl Vector for Avx2Vector {
        const HALVINGS: u32 = 2;

        #[inline(always)]
        fn splat(x: f32) -> Self {
            // SAFETY: see above.
            Self([unsafe { _mm256_set1_ps(x) }; 2])
        }

        #[inline(always)]
        fn load(x: &[f32; LANES]) -> Self {
            // SAFETY: see above.
            Self(unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x[8..].as_ptr())] })
        }

        #[inline(always)]
        fn store(self, out: &mut [f32; LANES]) {
            // SAFETY: see above.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr(), self.0[0]);
                _mm256_storeu_ps(out[8..].as_mut_ptr(), self.0[1]);
            }
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            let ([a, b], [c, d]) = (self.0, other.0);
            // SAFETY: see above.
            Self(unsafe { [_mm256_add_ps(a, c), _mm256_add_ps(b, d)] })
        }

        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            let ([a, b], [c, d]) = (self.0, other.0);
            // SAFETY: see above.
            Self(unsafe { [_mm256_sub_ps(a, c), _mm256_sub_ps(b, d)] })
        }

        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            let ([a, b], [c, d]) = (self.0, other.0);
            // SAFETY: see above.
            Self(unsafe { [_mm256_mul_ps(a, c), _mm256_mul_ps(b, d)] })
        }

        #[inline(always)]
        fn fma(self, factor: Self, term: Self) -> Self {
            let ([a, b], [c, d], [e, f]) = (self.0, factor.0, term.0);
            // SAFETY: see above.
            Self(unsafe { [_mm256_fmadd_ps(a, c, e), _mm256_fmadd_ps(b, d, f)] })
        }

        #[inline(always)]
        fn max(self, other: Self) -> Self {
            let ([a, b], [c, d]) = (self.0, other.0);
            // SAFETY: see above.
            Self(unsafe { [_mm256_max_ps(a, c), _mm256_max_ps(b, d)] })
        }

        #[inline(always)]
        fn min(self, other: Self) -> Self {
            let ([a, b], [c, d]) = (self.0, other.0);
            // SAFETY: see above.
            Self(unsafe { [_mm256_min_ps(a, c), _mm256_min_ps(b, d)] })
        }

        #[inline(always)]
        fn flip(self, signs: &[u32; LANES]) -> Self {
            // SAFETY: see above.
            let signs = Self(unsafe {
                [
                    _mm256_loadu_ps(signs.as_ptr().cast()),
                    _mm256_loadu_ps(signs[8..].as_ptr().cast()),
                ]
            });
            let ([a, b], [c, d]) = (self.0, signs.0);
            // SAFETY: see above.
            Self(unsafe { [_mm256_xor_ps(a, c), _mm256_xor_ps(b, d)] })
        }

        #[inline(always)]
        fn mul_pow2(self, rounded: Self) -> Self {
            let mut both = self.0;
            for (x, rounded) in both.iter_mut().zip(rounded.0) {
                // SAFETY: see above.
                *x = unsafe {
                    let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(rounded));
                    _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(*x), n))
                };
            }
            Self(both)
        }

        #[inline(always)]
        fn pair_bf16(self, high: Self, out: &mut [u32; LANES]) {
            for i in 0..2 {
                // SAFETY: see above.
                unsafe {
                    let half = _mm256_set1_epi32(0x8000);
                    let low = _mm256_add_epi32(_mm256_castps_si256(self.0[i]), half);
                    let high = _mm256_add_epi32(_mm256_castps_si256(high.0[i]), half);
                    let both = _mm256_blend_epi16::<0xaa>(_mm256_srli_epi32::<16>(low), high);
                    _mm256_storeu_si256(out[8 * i..].as_mut_ptr().cast(), both);
                }
            }
        }

        #[inline(always)]
        fn store_bits(self, out: &mut [u32; LANES]) {
            // SAFETY: see above.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr().cast(), self.0[0]);
                _mm256_storeu_ps(out[8..].as_mut_ptr().cast(), self.0[1]);
            }
        }
    }
}

/// Compiles one body over a [`Vector`] for every [`Isa`](crate::isa::Isa), and calls the
/// one asked for. The body is `#[inline(always)]`.
macro_rules! for_each_vector {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident;) => {
        $(#[$doc])*
        $vis fn $name(isa: $crate::isa::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::isa::Isa;
                use $crate::vector::{Avx2Vector, Avx512Vector};
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
                fn wide($($arg: $ty),*) $(-> $ret)? { $body::<Avx512Vector>($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn narrow($($arg: $ty),*) $(-> $ret)? { $body::<Avx2Vector>($($arg),*) }
                match isa {
                    // SAFETY: an Isa beyond Portable comes from a Tier that the CPU was asked for.
                    Isa::Avx512 => return unsafe { wide($($arg),*) },
                    // SAFETY: as above.
                    Isa::Avx2 => return unsafe { narrow($($arg),*) },
                    Isa::Portable => {}
                }
            }
            let _ = isa;
            $body::<$crate::vector::PortableVector>($($arg),*)
        }
    };
}
pub(crate) use for_each_vector;
