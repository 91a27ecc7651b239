//! BLIP for image captioning: configuration, checkpoints, the vision tower and the text decoder.
//!
//! The trait [`Model`] has two implementations. [`cpu`] runs on the kernels of `cutline-kernels`
//! and is what a CPU normally uses. [`gpu`] runs on candle: on a GPU, and on a CPU for GGUF block
//! formats of fewer than 8 bits. Weights never change after loading; the state that changes while
//! captions are written is in [`cpu::Workspace`], [`gpu::GpuState`] and the [`Slot`]s.

pub mod config;
pub mod cpu;
pub mod gpu;
mod loader;
mod model;
mod positions;
pub mod quantize;
pub mod weights;

pub use config::BlipConfig;
pub use cpu::CpuModel;
pub use gpu::GpuModel;
pub use model::{ImageStates, Model, ModelDescription, Read, Scores, Slot};
pub use weights::Weights;

use cutline_error::{Error, ErrorKind};

/// Turns candle's error into ours. Apart from lack of memory, such an error is a defect in this
/// crate that a user cannot repair. Lack of memory is recognised by the driver's message, because
/// candle passes on no more than that.
fn arithmetic(error: candle_core::Error) -> Error {
    let message = error.to_string().to_lowercase().replace('_', " ");
    // "alloc failed" is what cuBLAS reports when there is no memory for its workspace.
    if message.contains("out of memory") || message.contains("alloc failed") {
        let detail = "the device has no memory left; set MAX_BATCH_SIZE to a smaller number";
        return Error::new(ErrorKind::OutOfMemory, detail).with_source(error);
    }
    Error::internal(format!("the model's arithmetic failed: {error}")).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lack_of_memory_is_recognised_by_the_message_of_the_driver() {
        let kind = |message: &str| arithmetic(candle_core::Error::Msg(message.to_owned())).kind();
        let full = [
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "CublasError(CUBLAS_STATUS_ALLOC_FAILED)",
        ];
        assert!(full.into_iter().all(|message| kind(message) == ErrorKind::OutOfMemory));
        let broken = "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access\")";
        assert_eq!(kind(broken), ErrorKind::Internal);
    }
}
