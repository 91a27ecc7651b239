//! BLIP and BLIP-2: configuration, checkpoints, the vision tower, the text decoders and the text encoder.
//! [`Family`] says which models there are.
//!
//! The trait [`Model`] has two implementations. [`cpu`] runs on the kernels of `cutline-kernels`
//! and is what a CPU normally uses. [`gpu`] runs on candle: on a GPU, and on a CPU for GGUF block
//! formats of fewer than 8 bits. Weights never change after loading; the state that changes while
//! captions are written is in [`cpu::Workspace`], [`gpu::GpuState`] and the [`Slot`]s.

pub mod config;
pub mod cpu;
mod failure;
mod family;
pub mod gpu;
mod loader;
mod model;
mod positions;
pub mod quantize;
mod reader;
pub mod weights;

pub use config::BlipConfig;
pub use cpu::CpuModel;
pub use family::{Ability, Family};
pub use gpu::{GpuKernels, GpuModel};
pub use model::{ImageStates, Model, ModelDescription, Read, Scores, Slot, SlotSize};
pub use reader::{ImageMemory, TextReader};
pub use weights::Weights;

use failure::arithmetic;
