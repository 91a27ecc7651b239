//! Blocks of 12 rows × 32 columns on 512-bit vectors: 24 vectors of sums, two of the panel, and one
//! for a row's step, whose broadcast is mostly folded into the multiplication.

#[allow(clippy::wildcard_imports, reason = "intrinsics carry their own prefix")]
use std::arch::x86_64::*;

use super::{Format, KernelSet, Microkernel, by_rows, sums16_kernel, vector_kernel};

const COLUMNS: usize = 32;

/// The most rows of a block.
pub(super) const MAX_ROWS: usize = 12;

/// How many bytes ahead the panel is prefetched into the first-level cache.
const PREFETCH_DISTANCE: usize = 2048;

pub(super) const F32: KernelSet = KernelSet {
    format: Format::F32,
    columns: COLUMNS,
    microkernel: by_rows!(floats: 1 2 3 4 5 6 7 8 9 10 11 12),
};

pub(super) const ROUNDED_F32: KernelSet = KernelSet {
    format: Format::RoundedF32,
    columns: COLUMNS,
    microkernel: by_rows!(rounded: 1 2 3 4 5 6 7 8 9 10 11 12),
};

/// Needs AVX512-BF16.
pub(super) const BF16: KernelSet = KernelSet {
    format: Format::Bf16,
    columns: COLUMNS,
    microkernel: by_rows!(bf16: 1 2 3 4 5 6 7 8 9 10 11 12),
};

pub(super) const INT8_SUMS16: KernelSet = KernelSet {
    format: Format::Int8Sums16,
    columns: COLUMNS,
    microkernel: by_rows!(sums16: 1 2 3 4 5 6 7 8 9 10 11 12),
};

/// Needs AVX512-VNNI.
pub(super) const INT8X4: KernelSet = KernelSet {
    format: Format::Int8x4,
    columns: COLUMNS,
    microkernel: by_rows!(quads: 1 2 3 4 5 6 7 8 9 10 11 12),
};

vector_kernel!(
    /// f32 by fused multiply-add.
    floats, "avx512f", [__m512; 16] = _mm512_setzero_ps(),
    broadcast: _mm512_set1_epi32, load: load of 32 words, prefetch: prefetch, add: add_floats
);
vector_kernel!(
    /// f32 times bf16 by fused multiply-add.
    rounded, "avx512f", [__m512; 16] = _mm512_setzero_ps(),
    broadcast: _mm512_set1_epi32, load: load_bf16 of 16 words, prefetch: prefetch, add: add_floats
);
vector_kernel!(
    /// Pairs of bf16 by their dot product, summed in f32.
    bf16, "avx512f,avx512bf16", [__m512; 16] = _mm512_setzero_ps(),
    broadcast: _mm512_set1_epi32, load: load of 32 words, prefetch: prefetch, add: add_bf16
);
vector_kernel!(
    /// u8 × i8 by the 8-bit dot product.
    quads, "avx512f,avx512vnni", [__m512i; 16] = _mm512_setzero_si512(),
    broadcast: _mm512_set1_epi32, load: load of 32 words, prefetch: prefetch, add: add_quads
);
sums16_kernel!(
    sums16, "avx512f,avx512bw", [__m512i; 16] = _mm512_setzero_si512(),
    broadcast: _mm512_set1_epi32, load: load of 32 words, prefetch: prefetch, add: add_two_steps
);

/// Prefetches two cache lines. The address may lie beyond the panel: a prefetch never faults.
#[inline(always)]
fn prefetch(panel: *const u32) {
    let ahead = panel.cast::<i8>().wrapping_add(PREFETCH_DISTANCE);
    // SAFETY: every x86-64 CPU has the instruction, and it accepts any address.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(ahead);
        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64));
    }
}

/// # Safety
/// 128 bytes lie at `panel`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(panel: *const u32) -> [__m512i; 2] {
    // SAFETY: two times 64 bytes of the 128.
    unsafe { [_mm512_loadu_si512(panel.cast()), _mm512_loadu_si512(panel.add(16).cast())] }
}

/// 32 numbers in bf16 as f32.
///
/// # Safety
/// 64 bytes lie at `panel`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_bf16(panel: *const u32) -> [__m512i; 2] {
    // SAFETY: two times 32 bytes of the 64.
    let halves =
        unsafe { [_mm256_loadu_si256(panel.cast()), _mm256_loadu_si256(panel.add(8).cast())] };
    halves.map(|bits| _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add_floats(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
    _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn add_bf16(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: both types are 512 bits, and all bits are valid bf16 numbers.
    let [a, b] = unsafe { std::mem::transmute::<[__m512i; 2], [__m512bh; 2]>([a, b]) };
    _mm512_dpbf16_ps(sum, a, b)
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add_quads(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    _mm512_dpbusd_epi32(sum, a, b)
}

/// Adds the products of two steps. None of the 16-bit sums overflows: see [`Format::Int8Sums16`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn add_two_steps(sum: __m512i, a: [__m512i; 2], b: [__m512i; 2]) -> __m512i {
    let first = _mm512_maddubs_epi16(a[0], b[0]);
    let both = _mm512_add_epi16(first, _mm512_maddubs_epi16(a[1], b[1]));
    _mm512_add_epi32(sum, _mm512_madd_epi16(both, _mm512_set1_epi16(1)))
}
