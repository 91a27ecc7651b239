//! CPU kernels for transformers, for the best instructions that the CPU has.
//!
//! All functions work on plain slices of numbers. [`PackedWeights`](packed_weights::PackedWeights)
//! are packed once; [`Activations`](activations::Activations) become the left-hand side of a product;
//! [`gemm`] multiplies them. [`attention`] is that of the vision tower, [`cross_kv`] and [`self_kv`]
//! hold the keys and values of the decoder and attend to them, [`cross_states`] attends to an image
//! without them. [`thread_pool`] distributes the work.
//!
//! Every function that needs special instructions takes an [`Isa`], the proof that they exist.
//! Results do not depend on the number of threads or on the other rows of a batch.
//!
//! `unsafe` is allowed in this crate and in `cutline-cuda`, and in no other.
//!
//! ```
//! use cutline_kernels::activations::Activations;
//! use cutline_kernels::gemm::{Epilogue, linear};
//! use cutline_kernels::packed_weights::PackedWeights;
//! use cutline_kernels::thread_pool::with_thread_pool;
//! use cutline_kernels::{Isa, Precision};
//!
//! // y = x Wᵀ + b with three inputs and two outputs.
//! let (weight, bias) = ([1.0, 0.0, 2.0, 0.0, 1.0, 0.0], [0.5, -0.5]);
//! let weights = PackedWeights::new(Isa::best(), Precision::F32, &weight, &bias, 3);
//! let (mut activations, mut y) = (Activations::default(), [0.0; 2]);
//! with_thread_pool(|pool| {
//!     activations.copy_from(pool, &weights, &[1.0, 2.0, 3.0]);
//!     linear(pool, &activations, &weights, &mut y, Epilogue::STORE);
//! });
//! assert_eq!(y, [7.5, 1.5]);
//! ```
#![allow(
    unsafe_code,
    reason = "vector instructions and shared output need it; each block has a SAFETY comment"
)]

pub mod activations;
pub mod attention;
pub mod buffer;
pub mod cross_kv;
pub mod cross_states;
pub mod gemm;
mod isa;
pub mod malloc;
mod math;
mod microkernels;
pub mod packed_weights;
mod rotate;
mod rows;
pub mod self_kv;
mod softmax;
#[cfg(test)]
mod tests;
pub mod thread_pool;
mod vector;

pub use isa::{Isa, Tier};
pub use rows::layer_norm;

/// The number of threads that compute.
#[must_use]
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Sets the number of threads that compute, once and for the whole process, before any work. Without it,
/// `RAYON_NUM_THREADS` or the number of cores decides. Returns whether it is this number now: the threads
/// may have been started already.
#[must_use]
pub fn start_threads(count: usize) -> bool {
    // An error says that they were started before.
    let started = rayon::ThreadPoolBuilder::new().num_threads(count).build_global();
    started.is_ok() || threads() == count
}

/// The number format of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// f32 throughout.
    F32,
    /// Operands in bf16, sums in f32.
    Bf16,
    /// Weights in 8 bits with a scale per output, activations in 8 bits with a scale and zero point
    /// per row, exact sums.
    Int8,
}
