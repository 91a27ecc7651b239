//! What an error of candle means: the device has no memory left, the device is lost, or a defect.
//!
//! The driver's codes decide, not the words of a message: [`Meaning`] lists them. They are plain numbers here,
//! so that the list is tested without a GPU.

use std::error::Error as StdError;

use candle_core as candle;

use cutline_error::{Error, ErrorKind};

/// Turns candle's error into ours.
pub(crate) fn arithmetic(error: candle::Error) -> Error {
    let cause = cause(&error);
    if let Some(ours) = cause.downcast_ref::<Error>() {
        return ours.clone();
    }
    let (kind, detail) = match Meaning::of(cause) {
        Meaning::OutOfMemory => return out_of_memory().with_source(error),
        Meaning::DeviceLost => {
            let detail = "the GPU has failed and refuses all further work of this process";
            (ErrorKind::DeviceLost, format!("{detail} ({cause}); restart the program"))
        }
        // Apart from these two, an error is a defect in this crate that a user cannot repair.
        Meaning::Defect => (ErrorKind::Internal, format!("the model's arithmetic failed: {error}")),
    };
    Error::new(kind, detail).with_source(error)
}

fn out_of_memory() -> Error {
    let detail = "the device has no memory left; set MAX_BATCH_SIZE to a smaller number";
    Error::new(ErrorKind::OutOfMemory, detail)
}

/// Lack of memory that is known before the driver is asked, as an error of candle's type.
pub(crate) fn too_large(context: String) -> candle::Error {
    candle::Error::WrappedContext { wrapped: Box::new(out_of_memory()), context }
}

/// The error inside all of candle's wrappers. `source()` does not lead there, because candle's errors
/// of the driver are transparent: they skip themselves.
fn cause(error: &candle::Error) -> &(dyn StdError + 'static) {
    use candle::Error as E;
    let mut error = error;
    loop {
        error = match error {
            E::Context { inner, .. }
            | E::WithPath { inner, .. }
            | E::WithBacktrace { inner, .. } => inner,
            E::WrappedContext { wrapped, .. } => match wrapped.downcast_ref() {
                Some(inner) => inner,
                None => return &**wrapped,
            },
            E::Cuda(cause) => return &**cause,
            other => return other,
        };
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "a CPU has no driver with codes"))]
enum Meaning {
    OutOfMemory,
    DeviceLost,
    Defect,
}

impl Meaning {
    #[cfg(not(feature = "cuda"))]
    fn of(_cause: &(dyn StdError + 'static)) -> Self {
        Self::Defect
    }

    #[cfg(feature = "cuda")]
    fn of(cause: &(dyn StdError + 'static)) -> Self {
        use candle::cuda_backend::CudaError;
        use candle::cuda_backend::cudarc::cublas::result::CublasError;
        use candle::cuda_backend::cudarc::cublaslt::result::CublasError as LtError;
        use candle::cuda_backend::cudarc::curand::result::CurandError;
        use candle::cuda_backend::cudarc::driver::DriverError;

        // Our own calls of the driver return its error without candle's type around it.
        let driver = cause.downcast_ref::<DriverError>();
        if let Some(LtError(status)) = cause.downcast_ref::<LtError>() {
            return Self::of_cublas(*status as u32);
        }
        match cause.downcast_ref::<CudaError>() {
            Some(CudaError::Cuda(error) | CudaError::Load { cuda: error, .. }) => {
                Self::of_driver(error.0 as u32)
            }
            Some(CudaError::Cublas(CublasError(status))) => Self::of_cublas(*status as u32),
            Some(CudaError::Curand(CurandError(status))) => Self::of_curand(*status as u32),
            _ => driver.map_or(Self::Defect, |error| Self::of_driver(error.0 as u32)),
        }
    }

    /// The meaning of a `CUresult`. Of most of the codes for a lost device, the driver's manual says
    /// that the process must be started again, since all of its later calls fail in the same way.
    #[cfg_attr(not(any(feature = "cuda", test)), allow(dead_code, reason = "as above"))]
    fn of_driver(code: u32) -> Self {
        match code {
            // OUT_OF_MEMORY
            2 => Self::OutOfMemory,
            // DEINITIALIZED: the driver is shutting down.
            4
            // DEVICE_UNAVAILABLE, NO_DEVICE: the GPU was there when the model was loaded.
            | 46 | 100
            // INVALID_CONTEXT, CONTEXT_IS_DESTROYED
            | 201 | 709
            // ECC_UNCORRECTABLE, NVLINK_UNCORRECTABLE
            | 214 | 220
            // ILLEGAL_ADDRESS, LAUNCH_TIMEOUT, ASSERT
            | 700 | 702 | 710
            // HARDWARE_STACK_ERROR, ILLEGAL_INSTRUCTION, MISALIGNED_ADDRESS, INVALID_ADDRESS_SPACE,
            // INVALID_PC, LAUNCH_FAILED
            | 714..=719
            // CONTAINED, TENSOR_MEMORY_LEAK
            | 721 | 722
            // MPS_CONNECTION_FAILED, MPS_RPC_FAILURE, MPS_CLIENT_TERMINATED
            | 805 | 806 | 812
            // EXTERNAL_DEVICE, UNKNOWN: for instance a GPU that fell off the bus.
            | 911 | 999 => Self::DeviceLost,
            _ => Self::Defect,
        }
    }

    /// The meaning of a `cublasStatus_t`. If the device is lost, the next call of the driver says so.
    #[cfg_attr(not(any(feature = "cuda", test)), allow(dead_code, reason = "as above"))]
    fn of_cublas(status: u32) -> Self {
        // ALLOC_FAILED: there is no memory for the workspace.
        if status == 3 { Self::OutOfMemory } else { Self::Defect }
    }

    /// The meaning of a `curandStatus_t`.
    #[cfg_attr(not(any(feature = "cuda", test)), allow(dead_code, reason = "as above"))]
    fn of_curand(status: u32) -> Self {
        // ALLOCATION_FAILED
        if status == 102 { Self::OutOfMemory } else { Self::Defect }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_of_the_driver_decide() {
        assert_eq!(Meaning::of_driver(2), Meaning::OutOfMemory);
        for code in [214, 700, 702, 716, 719, 999] {
            assert_eq!(Meaning::of_driver(code), Meaning::DeviceLost, "{code}");
        }
        // INVALID_VALUE, NOT_FOUND, LAUNCH_OUT_OF_RESOURCES, NOT_SUPPORTED
        for code in [1, 500, 701, 801] {
            assert_eq!(Meaning::of_driver(code), Meaning::Defect, "{code}");
        }
        assert_eq!(Meaning::of_cublas(3), Meaning::OutOfMemory);
        // EXECUTION_FAILED
        assert_eq!(Meaning::of_cublas(13), Meaning::Defect);
        assert_eq!(Meaning::of_curand(102), Meaning::OutOfMemory);
    }

    #[test]
    fn the_words_of_a_message_decide_nothing() {
        let error = candle::Error::Msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY)".to_owned());
        assert_eq!(arithmetic(error).kind(), ErrorKind::Internal);
    }

    #[test]
    fn a_cause_is_found_inside_all_wrappers() {
        let wrapped = too_large("a buffer".into()).context("a layer").with_path("model").bt();
        assert_eq!(arithmetic(wrapped).kind(), ErrorKind::OutOfMemory);
        let twice = candle::Error::WrappedContext {
            wrapped: Box::new(too_large("a buffer".into())),
            context: "a layer".into(),
        };
        assert_eq!(arithmetic(twice).kind(), ErrorKind::OutOfMemory);
        let plain = candle::Error::Msg("shapes differ".into()).context("a layer");
        let error = arithmetic(plain);
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(error.to_string().contains("shapes differ"), "{error}");
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn the_errors_of_cuda_are_recognised() {
        use candle::cuda_backend::CudaError;
        use candle::cuda_backend::cudarc::cublas::{result::CublasError, sys::cublasStatus_t};
        use candle::cuda_backend::cudarc::driver::{DriverError, sys::CUresult};
        let driver = |code| candle::Error::from(CudaError::Cuda(DriverError(code)));
        let lost = driver(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS).context("a layer");
        assert_eq!(arithmetic(lost).kind(), ErrorKind::DeviceLost);
        let full = driver(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        assert_eq!(arithmetic(full).kind(), ErrorKind::OutOfMemory);
        let load = CudaError::Load {
            cuda: DriverError(CUresult::CUDA_ERROR_ECC_UNCORRECTABLE),
            module_name: "affine".into(),
        };
        assert_eq!(arithmetic(load.into()).kind(), ErrorKind::DeviceLost);
        let status = cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED;
        let error = candle::Error::from(CudaError::Cublas(CublasError(status)));
        assert_eq!(arithmetic(error).kind(), ErrorKind::OutOfMemory);
    }
}
