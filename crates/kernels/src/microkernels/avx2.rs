//! Blocks of 6 rows × 16 columns on 256-bit vectors: twelve vectors of sums, two of the panel and
//! one for a row's step take fifteen of the sixteen registers.

#[allow(clippy::wildcard_imports, reason = "intrinsics carry their own prefix")]
use std::arch::x86_64::*;

use super::{Format, KernelSet, Microkernel, by_rows, vector_kernel};

const COLUMNS: usize = 16;

pub(super) const F32: KernelSet =
    KernelSet { format: Format::F32, columns: COLUMNS, microkernel: by_rows!(floats: 1 2 3 4 5 6) };

pub(super) const ROUNDED_F32: KernelSet = KernelSet { format: Format::RoundedF32, ..F32 };

pub(super) const INT8X2: KernelSet = KernelSet {
    format: Format::Int8x2,
    columns: COLUMNS,
    microkernel: by_rows!(pairs: 1 2 3 4 5 6),
};

/// Needs AVX-VNNI.
pub(super) const INT8X4: KernelSet = KernelSet {
    format: Format::Int8x4,
    columns: COLUMNS,
    microkernel: by_rows!(quads: 1 2 3 4 5 6),
};

vector_kernel!(
    /// f32 by fused multiply-add.
    floats, "avx2,fma", [__m256; 8] = _mm256_setzero_ps(),
    broadcast: _mm256_set1_epi32, load: load of 16 words, prefetch: no_prefetch, add: add_floats
);
vector_kernel!(
    /// u8 × i8 as 16-bit integers: pairs of products are summed exactly in 32 bits.
    pairs, "avx2,fma", [__m256i; 8] = _mm256_setzero_si256(),
    broadcast: _mm256_set1_epi32, load: load_widened of 8 words, prefetch: no_prefetch,
    add: add_pairs
);
vector_kernel!(
    /// u8 × i8 by the 8-bit dot product.
    quads, "avx2,fma,avxvnni", [__m256i; 8] = _mm256_setzero_si256(),
    broadcast: _mm256_set1_epi32, load: load of 16 words, prefetch: no_prefetch, add: add_quads
);

/// The hardware prefetcher keeps up with vectors of this width.
#[inline(always)]
fn no_prefetch(_: *const u32) {}

/// # Safety
/// 64 bytes lie at `panel`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load(panel: *const u32) -> [__m256i; 2] {
    // SAFETY: two times 32 bytes of the 64.
    unsafe { [_mm256_loadu_si256(panel.cast()), _mm256_loadu_si256(panel.add(8).cast())] }
}

/// # Safety
/// 32 bytes lie at `panel`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_widened(panel: *const u32) -> [__m256i; 2] {
    // SAFETY: two times 16 bytes of the 32.
    let [low, high] =
        unsafe { [_mm_loadu_si128(panel.cast()), _mm_loadu_si128(panel.add(4).cast())] };
    [_mm256_cvtepi8_epi16(low), _mm256_cvtepi8_epi16(high)]
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_floats(sum: __m256, a: __m256i, b: __m256i) -> __m256 {
    _mm256_fmadd_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), sum)
}

#[inline]
#[target_feature(enable = "avx2")]
fn add_pairs(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
    _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
}

#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn add_quads(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
    _mm256_dpbusd_avx_epi32(sum, a, b)
}
