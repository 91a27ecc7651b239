//! Blocks of 6 rows × 16 columns on 256-bit vectors: twelve vectors of sums, two of the panel and
//! one for a row's step take fifteen of the sixteen registers.

#[allow(clippy::wildcard_imports, reason = "intrinsics carry their own prefix")]
use std::arch::x86_64::*;

use super::{Format, KernelSet, Microkernel, by_rows, sums16_kernel, vector_kernel};

const COLUMNS: usize = 16;

pub(super) const F32: KernelSet =
    KernelSet { format: Format::F32, columns: COLUMNS, microkernel: by_rows!(floats: 1 2 3 4 5 6) };

pub(super) const ROUNDED_F32: KernelSet = KernelSet {
    format: Format::RoundedF32,
    columns: COLUMNS,
    microkernel: by_rows!(rounded: 1 2 3 4 5 6),
};

/// Blocks of 4 rows, because a step has four vectors of the panel and two of a row.
pub(super) const INT8_SUMS16: KernelSet = KernelSet {
    format: Format::Int8Sums16,
    columns: COLUMNS,
    microkernel: by_rows!(sums16: 1 2 3 4),
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
    /// f32 times bf16 by fused multiply-add.
    rounded, "avx2,fma", [__m256; 8] = _mm256_setzero_ps(),
    broadcast: _mm256_set1_epi32, load: load_bf16 of 8 words, prefetch: no_prefetch, add: add_floats
);
vector_kernel!(
    /// u8 × i8 by the 8-bit dot product.
    quads, "avx2,fma,avxvnni", [__m256i; 8] = _mm256_setzero_si256(),
    broadcast: _mm256_set1_epi32, load: load of 16 words, prefetch: no_prefetch, add: add_quads
);

sums16_kernel!(
    sums16, "avx2,fma", [__m256i; 8] = _mm256_setzero_si256(),
    broadcast: _mm256_set1_epi32, load: load of 16 words, prefetch: no_prefetch, add: add_two_steps
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

/// 16 numbers in bf16 as f32.
///
/// # Safety
/// 32 bytes lie at `panel`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_bf16(panel: *const u32) -> [__m256i; 2] {
    // SAFETY: two times 16 bytes of the 32.
    let halves = unsafe { [_mm_loadu_si128(panel.cast()), _mm_loadu_si128(panel.add(4).cast())] };
    halves.map(|bits| _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_floats(sum: __m256, a: __m256i, b: __m256i) -> __m256 {
    _mm256_fmadd_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), sum)
}

/// Adds the products of two steps. None of the 16-bit sums overflows: see [`Format::Int8Sums16`].
#[inline]
#[target_feature(enable = "avx2")]
fn add_two_steps(sum: __m256i, a: [__m256i; 2], b: [__m256i; 2]) -> __m256i {
    let first = _mm256_maddubs_epi16(a[0], b[0]);
    let both = _mm256_add_epi16(first, _mm256_maddubs_epi16(a[1], b[1]));
    _mm256_add_epi32(sum, _mm256_madd_epi16(both, _mm256_set1_epi16(1)))
}

#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn add_quads(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
    _mm256_dpbusd_avx_epi32(sum, a, b)
}
