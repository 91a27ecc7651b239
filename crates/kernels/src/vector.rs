//! Vectors of sixteen f32 lanes: the same kernel body for every instruction set.
//!
//! Compilers vectorise plain loops, but not reliably those that carry several vectors from one
//! iteration to the next, such as the minimum and maximum of a row. Bodies that are generic over
//! [`Simd`] state the vectors explicitly, and [`for_each_vector`] compiles them for every
//! [`VectorWidth`](crate::isa::VectorWidth).
//!
//! An intrinsic becomes one instruction only if it is inlined into a function with the right target
//! features. A body therefore consists of plain loops and calls of `#[inline(always)]` functions, and
//! passes no closure to the standard library (`for_each`, `from_fn`, `map`).

use crate::math::{EXP, LANES, LN_2, ROUNDER};

/// An instruction set for [`Vector`]s: a token without data, which makes the first vectors.
///
/// The tokens of AVX2 and AVX-512 can be made only in functions that are compiled for these. A vector
/// can be made only with a token or from another vector, so its methods are safe to call.
pub(crate) trait Simd: Copy {
    /// [`LANES`] numbers in registers.
    type Vector: Vector;

    /// How many times a row can be halved (see [`rotate`](crate::rotate)) in registers.
    const HALVINGS: u32;

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::Vector;
    /// The numbers of an array.
    fn load(self, x: &[f32; LANES]) -> Self::Vector;
}

/// [`LANES`] numbers in f32.
///
/// Every operation rounds as IEEE 754 prescribes, so all instruction sets give the same bits, except
/// for [`fma`](Self::fma), which rounds once or twice.
pub(crate) trait Vector: Copy {
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
    /// Flips the sign where the highest bit of `signs` is set.
    fn xor_sign(self, signs: &[u32; LANES]) -> Self;
    /// `self · 2ⁿ`, where `rounded` is n + [`ROUNDER`] and the result neither over- nor underflows.
    fn mul_pow2(self, rounded: Self) -> Self;
    /// Writes a word per lane: this number as bf16 in the low half, the other's in the high half.
    /// Neither may be negative; ties round up, and infinity and NaN are not preserved.
    fn pair_bf16(self, high: Self, out: &mut [u32; LANES]);
    /// Writes the bits of the numbers.
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
pub(crate) fn exp<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    // In this order a NaN stays a NaN.
    let x = simd.splat(-87.0).max(x);
    let shifted = x.fma(simd.splat(std::f32::consts::LOG2_E), simd.splat(ROUNDER));
    let n = shifted.sub(simd.splat(ROUNDER));
    let mut r = x;
    for part in LN_2 {
        r = n.fma(simd.splat(-part), r);
    }
    let [first, rest @ ..] = EXP;
    let mut p = simd.splat(first);
    for c in rest {
        p = p.fma(r, simd.splat(c));
    }
    let p = p.mul(r).fma(r, r.add(simd.splat(1.0)));
    p.mul_pow2(shifted)
}

/// 2ˣ for x ≤ 0, with a relative error of at most 7.5e-5, a twentieth of what rounding to bf16
/// causes. Below 2⁻¹²⁵ the result is some smaller number. NaN stays NaN.
///
/// The cubic polynomial with the smallest relative error on [−½, ½].
#[inline(always)]
pub(crate) fn exp2_approx<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    let x = simd.splat(-126.0).max(x);
    let shifted = x.add(simd.splat(ROUNDER));
    let f = x.sub(shifted.sub(simd.splat(ROUNDER)));
    let p = simd.splat(0.055_171_66).fma(f, simd.splat(0.242_611_12));
    let p = p.fma(f, simd.splat(0.693_261)).fma(f, simd.splat(0.999_928_06));
    p.mul_pow2(shifted)
}

/// No instructions beyond those that every CPU of the target has.
#[derive(Clone, Copy)]
pub(crate) struct PortableSimd;

/// A vector as a plain array.
#[derive(Clone, Copy)]
pub(crate) struct PortableVector([f32; LANES]);

/// aarch64 always has fused multiply-add; on other targets portable code cannot rely on it.
const PORTABLE_FMA: bool = cfg!(target_arch = "aarch64");

impl PortableVector {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Simd for PortableSimd {
    type Vector = PortableVector;
    const HALVINGS: u32 = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> PortableVector {
        PortableVector([x; LANES])
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> PortableVector {
        PortableVector(*x)
    }
}

impl Vector for PortableVector {
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
            crate::math::fma::<PORTABLE_FMA>(self.0[i], factor.0[i], term.0[i])
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
    fn xor_sign(self, signs: &[u32; LANES]) -> Self {
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
pub(crate) use x86::{Avx2Simd, Avx512Simd};

#[cfg(target_arch = "x86_64")]
mod x86 {
    #[allow(clippy::wildcard_imports, reason = "intrinsics carry their own prefix")]
    use std::arch::x86_64::*;

    use super::{Simd, Vector};
    use crate::math::{LANES, ROUNDER};

    /// AVX-512 F, BW, DQ and VL.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512Simd(());

    impl Avx512Simd {
        /// Safe to call only in a function with the same target features.
        #[inline]
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
        pub(crate) fn new() -> Self {
            Self(())
        }
    }

    /// One vector of AVX-512.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512Vector(__m512);

    impl Simd for Avx512Simd {
        type Vector = Avx512Vector;
        const HALVINGS: u32 = 4;

        #[inline(always)]
        fn splat(self, x: f32) -> Avx512Vector {
            // SAFETY: `self` exists only where the CPU has AVX-512.
            Avx512Vector(unsafe { _mm512_set1_ps(x) })
        }

        #[inline(always)]
        fn load(self, x: &[f32; LANES]) -> Avx512Vector {
            // SAFETY: `self` exists only where the CPU has AVX-512; 64 bytes are read of 64.
            Avx512Vector(unsafe { _mm512_loadu_ps(x.as_ptr()) })
        }
    }

    /// Methods that are one instruction on one vector.
    macro_rules! avx512_operations {
        ($($name:ident: $intrinsic:ident),* $(,)?) => {$(
            #[inline(always)]
            fn $name(self, other: Self) -> Self {
                // SAFETY: vectors of this type exist only where the CPU has AVX-512.
                Self(unsafe { $intrinsic(self.0, other.0) })
            }
        )*};
    }

    impl Vector for Avx512Vector {
        avx512_operations! {
            add: _mm512_add_ps,
            sub: _mm512_sub_ps,
            mul: _mm512_mul_ps,
            max: _mm512_max_ps,
            min: _mm512_min_ps,
        }

        #[inline(always)]
        fn store(self, out: &mut [f32; LANES]) {
            // SAFETY: `self` exists only where the CPU has AVX-512; 64 bytes are written of 64.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), self.0) }
        }

        #[inline(always)]
        fn fma(self, factor: Self, term: Self) -> Self {
            // SAFETY: vectors of this type exist only where the CPU has AVX-512.
            Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, term.0) })
        }

        #[inline(always)]
        fn xor_sign(self, signs: &[u32; LANES]) -> Self {
            // SAFETY: `self` exists only where the CPU has AVX-512; 64 bytes are read of 64.
            Self(unsafe {
                let signs = _mm512_loadu_si512(signs.as_ptr().cast());
                _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(self.0), signs))
            })
        }

        #[inline(always)]
        fn mul_pow2(self, rounded: Self) -> Self {
            // The low bits of ROUNDER are zero, so the shift removes it from the word.
            const _: () = assert!(ROUNDER.to_bits() << 23 == 0);
            // SAFETY: vectors of this type exist only where the CPU has AVX-512.
            Self(unsafe {
                let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(rounded.0));
                _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self.0), n))
            })
        }

        #[inline(always)]
        fn pair_bf16(self, high: Self, out: &mut [u32; LANES]) {
            // SAFETY: `self` exists only where the CPU has AVX-512, BW included; 64 bytes are
            // written of 64.
            unsafe {
                let half = _mm512_set1_epi32(0x8000);
                let low = _mm512_add_epi32(_mm512_castps_si512(self.0), half);
                let high = _mm512_add_epi32(_mm512_castps_si512(high.0), half);
                let low = _mm512_srli_epi32::<16>(low);
                let both = _mm512_mask_blend_epi16(0xaaaa_aaaa, low, high);
                _mm512_storeu_si512(out.as_mut_ptr().cast(), both);
            }
        }

        #[inline(always)]
        fn store_bits(self, out: &mut [u32; LANES]) {
            // SAFETY: `self` exists only where the CPU has AVX-512; 64 bytes are written of 64.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr().cast(), self.0) }
        }
    }

    /// AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2Simd(());

    impl Avx2Simd {
        /// Safe to call only in a function with the same target features.
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        pub(crate) fn new() -> Self {
            Self(())
        }
    }

    /// Two vectors of AVX2.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2Vector([__m256; 2]);

    impl Simd for Avx2Simd {
        type Vector = Avx2Vector;
        const HALVINGS: u32 = 2;

        #[inline(always)]
        fn splat(self, x: f32) -> Avx2Vector {
            // SAFETY: `self` exists only where the CPU has AVX2.
            Avx2Vector([unsafe { _mm256_set1_ps(x) }; 2])
        }

        #[inline(always)]
        fn load(self, x: &[f32; LANES]) -> Avx2Vector {
            // SAFETY: `self` exists only where the CPU has AVX2; two times 32 bytes are read of 64.
            Avx2Vector(unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x[8..].as_ptr())] })
        }
    }

    /// Methods that are one instruction on each of the two vectors.
    macro_rules! avx2_operations {
        ($($name:ident: $intrinsic:ident),* $(,)?) => {$(
            #[inline(always)]
            fn $name(self, other: Self) -> Self {
                let ([a, b], [c, d]) = (self.0, other.0);
                // SAFETY: vectors of this type exist only where the CPU has AVX2.
                Self(unsafe { [$intrinsic(a, c), $intrinsic(b, d)] })
            }
        )*};
    }

    impl Vector for Avx2Vector {
        avx2_operations! {
            add: _mm256_add_ps,
            sub: _mm256_sub_ps,
            mul: _mm256_mul_ps,
            max: _mm256_max_ps,
            min: _mm256_min_ps,
        }

        #[inline(always)]
        fn store(self, out: &mut [f32; LANES]) {
            // SAFETY: `self` exists only where the CPU has AVX2; two times 32 bytes are written of
            // 64.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr(), self.0[0]);
                _mm256_storeu_ps(out[8..].as_mut_ptr(), self.0[1]);
            }
        }

        #[inline(always)]
        fn fma(self, factor: Self, term: Self) -> Self {
            let ([a, b], [c, d], [e, f]) = (self.0, factor.0, term.0);
            // SAFETY: vectors of this type exist only where the CPU has AVX2 and FMA.
            Self(unsafe { [_mm256_fmadd_ps(a, c, e), _mm256_fmadd_ps(b, d, f)] })
        }

        #[inline(always)]
        fn xor_sign(self, signs: &[u32; LANES]) -> Self {
            let [a, b] = self.0;
            // SAFETY: `self` exists only where the CPU has AVX2; two times 32 bytes are read of 64.
            Self(unsafe {
                [
                    _mm256_xor_ps(a, _mm256_loadu_ps(signs.as_ptr().cast())),
                    _mm256_xor_ps(b, _mm256_loadu_ps(signs[8..].as_ptr().cast())),
                ]
            })
        }

        #[inline(always)]
        fn mul_pow2(self, rounded: Self) -> Self {
            let mut both = self.0;
            for (x, rounded) in both.iter_mut().zip(rounded.0) {
                // SAFETY: vectors of this type exist only where the CPU has AVX2.
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
                // SAFETY: `self` exists only where the CPU has AVX2; 32 bytes are written of the 64
                // or 32 that are left.
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
            // SAFETY: `self` exists only where the CPU has AVX2; two times 32 bytes are written of
            // 64.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr().cast(), self.0[0]);
                _mm256_storeu_ps(out[8..].as_mut_ptr().cast(), self.0[1]);
            }
        }
    }
}

/// Compiles one body, generic over [`Simd`], for every [`VectorWidth`](crate::isa::VectorWidth), and
/// calls the one that an [`Isa`](crate::isa::Isa) allows. The body is `#[inline(always)]`.
macro_rules! for_each_vector {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident;) => {
        $(#[$doc])*
        $vis fn $name(isa: $crate::isa::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::isa::VectorWidth;
                use $crate::vector::{Avx2Simd, Avx512Simd};
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { $body(Avx512Simd::new(), $($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { $body(Avx2Simd::new(), $($arg),*) }
                match isa.width() {
                    // SAFETY: an `Isa` of this width exists only where the CPU has the features.
                    VectorWidth::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: an `Isa` of this width exists only where the CPU has the features.
                    VectorWidth::Avx2 => return unsafe { avx2($($arg),*) },
                    VectorWidth::Portable => {}
                }
            }
            let _ = isa;
            $body($crate::vector::PortableSimd, $($arg),*)
        }
    };
}
pub(crate) use for_each_vector;
