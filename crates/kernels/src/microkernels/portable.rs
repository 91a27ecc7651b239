//! Kernels in plain Rust: what any CPU runs, and what the other kernels are compared with.

use super::{Format, Kernel};
use crate::math::fma;

pub const COLUMNS: usize = 16;

/// aarch64 always has fused multiply-add; elsewhere the plain kernels cannot count on it.
const FMA: bool = cfg!(target_arch = "aarch64");

pub(super) fn kernels(format: Format) -> &'static [Kernel] {
    match format {
        Format::Int8x2 => &[words::<1>, words::<2>, words::<3>, words::<4>],
        Format::F32 | Format::RoundedF32 | Format::Bf16 | Format::Int8x4 => {
            &[floats::<1>, floats::<2>, floats::<3>, floats::<4>]
        }
    }
}

/// # Safety
/// `left` holds `steps · R` words, `right` `steps · COLUMNS` words, `tile` has room for
/// `R · COLUMNS`.
unsafe fn floats<const R: usize>(left: *const u32, right: *const u8, steps: usize, tile: *mut u32) {
    // SAFETY: the caller's word; panels are aligned to more than a word.
    let (left, right, tile) = unsafe {
        (
            std::slice::from_raw_parts(left.cast::<f32>(), steps * R),
            std::slice::from_raw_parts(right.cast::<f32>(), steps * COLUMNS),
            std::slice::from_raw_parts_mut(tile.cast::<f32>(), R * COLUMNS),
        )
    };
    let mut sums = [[0f32; COLUMNS]; R];
    for (a, b) in left.as_chunks::<R>().0.iter().zip(right.as_chunks::<COLUMNS>().0) {
        for (sums, &a) in sums.iter_mut().zip(a) {
            for (sum, &b) in sums.iter_mut().zip(b) {
                *sum = fma::<FMA>(a, b, *sum);
            }
        }
    }
    tile.copy_from_slice(sums.as_flattened());
}

/// # Safety
/// `left` holds `steps · R` pairs of 16-bit numbers, `right` `steps · COLUMNS` pairs of 8-bit ones,
/// `tile` has room for `R · COLUMNS`.
unsafe fn words<const R: usize>(left: *const u32, right: *const u8, steps: usize, tile: *mut u32) {
    // SAFETY: the caller's word.
    let (left, right, tile) = unsafe {
        (
            std::slice::from_raw_parts(left, steps * R),
            std::slice::from_raw_parts(right.cast::<i8>(), steps * COLUMNS * 2),
            std::slice::from_raw_parts_mut(tile.cast::<i32>(), R * COLUMNS),
        )
    };
    let mut sums = [[0i32; COLUMNS]; R];
    for (a, b) in left.as_chunks::<R>().0.iter().zip(right.as_chunks::<{ 2 * COLUMNS }>().0) {
        for (sums, &a) in sums.iter_mut().zip(a) {
            let (low, high) = ((a & 0xffff) as i32, (a >> 16) as i32);
            for (sum, b) in sums.iter_mut().zip(b.as_chunks::<2>().0) {
                *sum += low * i32::from(b[0]) + high * i32::from(b[1]);
            }
        }
    }
    tile.copy_from_slice(sums.as_flattened());
}
