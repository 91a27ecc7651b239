//! Kernels of 6 rows × 16 columns on 256-bit vectors: twelve sums, two columns' vectors and one
//! broadcast fill the fifteen of sixteen registers.

#[allow(clippy::wildcard_imports, reason = "intrinsics carry their own prefix")]
use std::arch::x86_64::*;

use super::{Format, Kernel};

pub const COLUMNS: usize = 16;

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
                for (row, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: as above.
                    let a = _mm256_set1_epi32(unsafe { *a.add(row) }.cast_signed());
                    sums[0] = $op(sums[0], a, b[0]);
                    sums[1] = $op(sums[1], a, b[1]);
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                for (half, sum) in sums.iter().enumerate() {
                    // SAFETY: inside the tile by the caller's word.
                    unsafe { tile.add(row * COLUMNS + half * 8).cast::<$sum>().write_unaligned(*sum) };
                }
            }
        }
    };
}

kernel!(
    /// f32 by fused multiply-add.
    floats, "avx2,fma", __m256, _mm256_setzero_ps(), load_words, 64, add_floats
);
kernel!(
    /// u8 × i8 as 16-bit numbers: pairs of products are summed exactly in 32 bits.
    words, "avx2,fma", __m256i, _mm256_setzero_si256(), load_widened, 32, add_words
);
kernel!(
    /// u8 × i8 by the 8-bit dot product.
    bytes, "avx2,fma,avxvnni", __m256i, _mm256_setzero_si256(), load_words, 64, add_bytes
);

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_words(right: *const u8) -> [__m256i; 2] {
    // SAFETY: 64 bytes lie there, by the kernel's contract.
    unsafe { [_mm256_loadu_si256(right.cast()), _mm256_loadu_si256(right.add(32).cast())] }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_widened(right: *const u8) -> [__m256i; 2] {
    // SAFETY: 32 bytes lie there, by the kernel's contract.
    let [low, high] =
        unsafe { [_mm_loadu_si128(right.cast()), _mm_loadu_si128(right.add(16).cast())] };
    [_mm256_cvtepi8_epi16(low), _mm256_cvtepi8_epi16(high)]
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_floats(sum: __m256, a: __m256i, b: __m256i) -> __m256 {
    _mm256_fmadd_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), sum)
}

#[inline]
#[target_feature(enable = "avx2")]
fn add_words(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
    _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
}

#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn add_bytes(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
    _mm256_dpbusd_avx_epi32(sum, a, b)
}

macro_rules! table {
    ($name:ident) => {
        &[$name::<1>, $name::<2>, $name::<3>, $name::<4>, $name::<5>, $name::<6>]
    };
}

pub(super) fn kernels(format: Format) -> &'static [Kernel] {
    match format {
        Format::F32 | Format::RoundedF32 | Format::Bf16 => table!(floats),
        Format::Int8x2 => table!(words),
        Format::Int8x4 => table!(bytes),
    }
}
