//! Operations of transformers for NVIDIA GPUs, each beside a reference for CPUs.
//!
//! Every function takes candle's tensors. On a GPU it launches a kernel of this crate or of cublasLt;
//! on candle's CPU device it runs the reference, which is plain Rust. The tests compare the reference
//! with candle's own operations, and the kernel with the reference where there is a GPU. `emulator/`
//! runs the kernels on a CPU.
//!
//! [`Operations`] is the choice between an operation of this crate and the same one composed of candle's
//! own, and [`check`](check()) makes it: it tries each operation on a device.
//!
//! Numbers are f32, f16 or bf16. Whatever they are, each operation computes in f32 and rounds its
//! result once; f32 is not rounded to TF32. Operands are contiguous unless a function says otherwise.
//!
//! ```
//! use candle_core::{Device, Tensor};
//!
//! // Two tokens of one image, one head of width two: queries, keys, values.
//! let qkv = [1f32, 0., 1., 0., 5., 6., 1., 0., 1., 0., 7., 8.];
//! let qkv = Tensor::from_slice(&qkv, (1, 2, 3, 1, 2), &Device::Cpu)?;
//! let context = cutline_cuda::attention(&qkv, 1.0)?;
//! assert_eq!(context.to_vec2::<f32>()?, [[6., 7.], [6., 7.]]);
//! # Ok::<(), candle_core::Error>(())
//! ```
#![cfg_attr(
    feature = "cuda",
    allow(unsafe_code, reason = "launching a kernel needs it; each block has a SAFETY comment")
)]

mod attention;
mod best;
mod check;
mod composed;
#[cfg(feature = "cuda")]
mod device;
mod gelu;
#[cfg(feature = "cuda")]
mod launch;
mod layer_norm;
mod linear;
#[cfg(feature = "cuda")]
mod lt;
mod operations;
mod product;
mod reference;
mod softmax;
mod step;
#[cfg(test)]
mod tests;

pub use attention::attention;
pub use best::best;
pub use check::{Checked, Lost, Rejected, Widths, check};
#[cfg(feature = "cuda")]
pub use device::{disable_event_tracking, keep_memory};
pub use gelu::gelu;
pub use layer_norm::layer_norm;
pub use linear::{add_linear, linear};
pub use operations::{Operation, Operations};
pub use product::{Arrangement, product};
pub use softmax::softmax;
pub use step::{step_attend, step_store};
