//! Microkernels in plain Rust: they run on every CPU, and the others are compared with them.

use std::slice;

use super::{Format, KernelSet, Microkernel};
use crate::math::{fma, from_bf16};

const COLUMNS: usize = 16;

/// aarch64 always has fused multiply-add; on other targets portable code cannot rely on it.
const FMA: bool = cfg!(target_arch = "aarch64");

pub(super) const F32: KernelSet = KernelSet {
    format: Format::F32,
    columns: COLUMNS,
    microkernel: Microkernel::Vectors(&[floats::<1>, floats::<2>, floats::<3>, floats::<4>]),
};

pub(super) const ROUNDED_F32: KernelSet = KernelSet {
    format: Format::RoundedF32,
    columns: COLUMNS,
    microkernel: Microkernel::Vectors(&[rounded::<1>, rounded::<2>, rounded::<3>, rounded::<4>]),
};

pub(super) const INT8X2: KernelSet = KernelSet {
    format: Format::Int8x2,
    columns: COLUMNS,
    microkernel: Microkernel::Vectors(&[pairs::<1>, pairs::<2>, pairs::<3>, pairs::<4>]),
};

/// f32, fused where that is an instruction.
///
/// # Safety
/// `block` has `steps · R` words, `panel` has `steps · COLUMNS`, and `out` room for `R · COLUMNS`.
unsafe fn floats<const R: usize>(
    block: *const u32,
    panel: *const u32,
    steps: usize,
    out: *mut u32,
) {
    // SAFETY: the caller guarantees these lengths; f32 and u32 have the same alignment.
    unsafe { sum_floats::<R, f32>(block, panel.cast(), steps, out, |b| b) }
}

/// f32 times bf16, fused where that is an instruction.
///
/// # Safety
/// `block` has `steps · R` words, `panel` has `steps · COLUMNS` numbers in bf16, and `out` room for
/// `R · COLUMNS` words.
unsafe fn rounded<const R: usize>(
    block: *const u32,
    panel: *const u32,
    steps: usize,
    out: *mut u32,
) {
    // SAFETY: the caller guarantees these lengths; u16 has a smaller alignment than u32.
    unsafe { sum_floats::<R, u16>(block, panel.cast(), steps, out, from_bf16) }
}

/// f32 times the numbers of a panel, which `widen` turns into f32.
///
/// # Safety
/// `block` has `steps · R` words, `panel` has `steps · COLUMNS` aligned numbers, and `out` room for
/// `R · COLUMNS` words.
#[inline(always)]
unsafe fn sum_floats<const R: usize, T: Copy>(
    block: *const u32,
    panel: *const T,
    steps: usize,
    out: *mut u32,
    widen: impl Fn(T) -> f32,
) {
    // SAFETY: these are the lengths that the caller guarantees; f32 and u32 have the same alignment.
    let (block, panel, out) = unsafe {
        (
            slice::from_raw_parts(block.cast::<f32>(), steps * R),
            slice::from_raw_parts(panel, steps * COLUMNS),
            slice::from_raw_parts_mut(out.cast::<f32>(), R * COLUMNS),
        )
    };
    let mut sums = [[0f32; COLUMNS]; R];
    for (a, b) in block.as_chunks::<R>().0.iter().zip(panel.as_chunks::<COLUMNS>().0) {
        let b = b.map(&widen);
        for (sums, &a) in sums.iter_mut().zip(a) {
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = fma::<FMA>(a, b, *sum);
            }
        }
    }
    out.copy_from_slice(sums.as_flattened());
}

/// Pairs of u8 × i8, summed exactly in 32 bits.
///
/// # Safety
/// `block` has `steps · R` words, `panel` has `steps · COLUMNS` pairs of bytes, and `out` room for
/// `R · COLUMNS` words.
unsafe fn pairs<const R: usize>(block: *const u32, panel: *const u32, steps: usize, out: *mut u32) {
    // SAFETY: these are the lengths that the caller guarantees; bytes have no alignment.
    let (block, panel, out) = unsafe {
        (
            slice::from_raw_parts(block, steps * R),
            slice::from_raw_parts(panel.cast::<i8>(), steps * COLUMNS * 2),
            slice::from_raw_parts_mut(out.cast::<i32>(), R * COLUMNS),
        )
    };
    let mut sums = [[0i32; COLUMNS]; R];
    for (a, b) in block.as_chunks::<R>().0.iter().zip(panel.as_chunks::<{ 2 * COLUMNS }>().0) {
        for (sums, &a) in sums.iter_mut().zip(a) {
            let (low, high) = ((a & 0xffff) as i32, (a >> 16) as i32);
            for (sum, b) in sums.iter_mut().zip(b.as_chunks::<2>().0) {
                *sum += low * i32::from(b[0]) + high * i32::from(b[1]);
            }
        }
    }
    out.copy_from_slice(sums.as_flattened());
}
