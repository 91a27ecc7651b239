//! The operations that a CPU spends its time on, in the instructions that it has.
//!
//! Everything here is plain slices of numbers: weights are packed once (`packed_weights`), activations become
//! left operands (`activations`), `gemm` multiplies them, `attention`, `cross_kv` and `self_kv` do what lies
//! between the products. `microkernels` holds the innermost loops, `rows` what is done a row at a time,
//! `softmax` what is done a column at a time, `thread_pool`
//! splits work over threads. `unsafe` is allowed here and nowhere else.
#![allow(
    unsafe_code,
    reason = "vector instructions and shared output need it; see the SAFETY lines"
)]

pub mod activations;
pub mod attention;
pub mod bench;
pub mod buffer;
pub mod cross_kv;
#[cfg(feature = "cuda")]
mod cuda_stream;
pub mod gemm;
mod isa;
pub mod malloc;
pub mod math;
pub mod microkernels;
pub mod packed_weights;
mod rotate;
pub mod rows;
pub mod self_kv;
mod softmax;
#[cfg(test)]
mod tests;
pub mod thread_pool;
mod vector;

#[cfg(feature = "cuda")]
pub use cuda_stream::disable_event_tracking;
pub use isa::Tier;

/// What the numbers of a product are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// f32 throughout.
    F32,
    /// Operands in bf16, sums in f32.
    Bf16,
    /// Weights in 8 bits by output channel, activations in 8 bits by row, sums exact.
    Int8,
}
