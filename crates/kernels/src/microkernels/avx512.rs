//! Kernels of 12 rows × 32 columns on 512-bit vectors: 24 sums, two columns' vectors, and the
//! broadcast of a row's step, mostly folded into the instruction.

#[allow(clippy::wildcard_imports, reason = "intrinsics carry their own prefix")]
use std::arch::x86_64::*;

use super::{Format, Kernel};

pub const COLUMNS: usize = 32;

/// Bytes ahead of their use at which the panel is fetched into the first-level cache.
const AHEAD: usize = 2048;

macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, $features:literal, $sum:ty, $zero:expr, $load:ident, $bytes:literal, $op:ident) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The CPU has the features; `left` holds `steps · R` words, `right` `steps` rows of a
        /// panel, `tile` has room for `R · COLUMNS` words.
        #[target_feature(enable = $features)]
        unsafe fn $name<const R: usize>(left: *const u32, right: *const u8, steps: usize, tile: *mut u32) {
            let mut sums: [[$sum; 2]; R] = [[$zero; 2]; R];
            for step in 0..steps {
                // SAFETY: inside the panel and the block by the caller's word.
                let (b, a) = unsafe { ($load(right.add(step * $bytes)), left.add(step * R)) };
                let ahead = right.wrapping_add(step * $bytes + AHEAD).cast::<i8>();
                // It may point anywhere.
                _mm_prefetch::<_MM_HINT_T0>(ahead);
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64));
                for (row, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: as above.
                    let a = _mm512_set1_epi32(unsafe { *a.add(row) }.cast_signed());
                    sums[0] = $op(sums[0], a, b[0]);
                    sums[1] = $op(sums[1], a, b[1]);
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                for (half, sum) in sums.iter().enumerate() {
                    // SAFETY: inside the tile by the caller's word.
                    unsafe { tile.add(row * COLUMNS + half * 16).cast::<$sum>().write_unaligned(*sum) };
                }
            }
        }
    };
}

kernel!(
    /// f32 by fused multiply-add.
    floats, "avx512f", __m512, _mm512_setzero_ps(), load_words, 128, add_floats
);
kernel!(
    /// Pairs of bf16 by their dot product, summed in f32.
    bf16, "avx512f,avx512bf16", __m512, _mm512_setzero_ps(), load_words, 128, add_bf16
);
kernel!(
    /// u8 × i8 by the 8-bit dot product.
    bytes, "avx512f,avx512vnni", __m512i, _mm512_setzero_si512(), load_words, 128, add_bytes
);
kernel!(
    /// u8 × i8 as 16-bit numbers: pairs of products are summed exactly in 32 bits.
    words, "avx512f,avx512bw", __m512i, _mm512_setzero_si512(), load_widened, 64, add_words
);

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_words(right: *const u8) -> [__m512i; 2] {
    // SAFETY: 128 bytes lie there, by the kernel's contract.
    unsafe { [_mm512_loadu_si512(right.cast()), _mm512_loadu_si512(right.add(64).cast())] }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn load_widened(right: *const u8) -> [__m512i; 2] {
    // SAFETY: 64 bytes lie there, by the kernel's contract.
    let [low, high] =
        unsafe { [_mm256_loadu_si256(right.cast()), _mm256_loadu_si256(right.add(32).cast())] };
    [_mm512_cvtepi8_epi16(low), _mm512_cvtepi8_epi16(high)]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add_floats(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
    _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn add_bf16(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: both types are 512 bits of bf16, whatever they are called.
    let [a, b] = unsafe { std::mem::transmute::<[__m512i; 2], [__m512bh; 2]>([a, b]) };
    _mm512_dpbf16_ps(sum, a, b)
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add_bytes(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    _mm512_dpbusd_epi32(sum, a, b)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn add_words(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi32(sum, _mm512_madd_epi16(a, b))
}

macro_rules! table {
    ($name:ident) => {
        &[
            $name::<1>,
            $name::<2>,
            $name::<3>,
            $name::<4>,
            $name::<5>,
            $name::<6>,
            $name::<7>,
            $name::<8>,
            $name::<9>,
            $name::<10>,
            $name::<11>,
            $name::<12>,
        ]
    };
}

pub(super) fn kernels(format: Format) -> &'static [Kernel] {
    match format {
        Format::F32 | Format::RoundedF32 => table!(floats),
        Format::Bf16 => table!(bf16),
        Format::Int8x4 => table!(bytes),
        Format::Int8x2 => table!(words),
    }
}
