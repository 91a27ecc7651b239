//! The operations that a CPU spends its time on, in the instructions that it has.
//!
//! Everything here is plain slices of numbers: weights are packed once (`packed`), activations become
//! left operands (`operand`), `gemm` multiplies them, `attention`, `memory` and `cache` do what lies
//! between the products. `micro` holds the innermost loops, `rows` what is done a row at a time,
//! `softmax` what is done a column at a time, `team`
//! splits work over threads. `unsafe` is allowed here and nowhere else.
#![allow(
    unsafe_code,
    reason = "vector instructions and shared output need it; see the SAFETY lines"
)]

pub(crate) mod attention;
pub(crate) mod buffer;
pub(crate) mod cache;
pub(crate) mod gemm;
pub mod heap;
pub(crate) mod math;
pub mod measure;
pub(crate) mod memory;
pub(crate) mod micro;
pub(crate) mod operand;
pub(crate) mod packed;
pub(crate) mod rotate;
pub(crate) mod rows;
pub(crate) mod softmax;
#[cfg(feature = "cuda")]
mod stream;
pub(crate) mod team;
#[cfg(test)]
mod tests;
mod tier;
pub(crate) mod vector;

#[cfg(feature = "cuda")]
pub(crate) use stream::one_stream;
pub use tier::Tier;

/// What the numbers of a product are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Precision {
    /// f32 throughout.
    F32,
    /// Operands in bf16, sums in f32.
    Bf16,
    /// Weights in 8 bits by output channel, activations in 8 bits by row, sums exact.
    Int8,
}
