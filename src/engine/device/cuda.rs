//! Asks NVIDIA's driver whether there is a usable GPU, and describes it.

use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::sys::CUresult;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError};
use candle_core::cuda_backend::{CudaDevice, kernels};
use candle_core::{DType, Device, Tensor};

use super::capability::{BuildTarget, Capability};
use super::{GpuInfo, Obstacle, one_line};
use cutline_cuda::{disable_event_tracking, keep_memory};

/// Opens the GPU with this number if the kernels in this binary run on it, and tries it out.
pub(super) fn open(number: usize) -> Result<Device, Obstacle> {
    let count = CudaContext::device_count().map_err(|error| initialisation(&error))?;
    let count = usize::try_from(count).unwrap_or(0);
    if count == 0 {
        return Err(Obstacle::NoGpu);
    }
    if number >= count {
        return Err(Obstacle::NoSuchGpu { number, count });
    }
    // Kept until the device holds the context too: releasing and reacquiring a GPU takes time.
    let _context = check_capability(number)?;
    let failed = |step| {
        move |error: candle_core::Error| Obstacle::Failed {
            step,
            reason: one_line(&error.to_string()),
        }
    };
    // Tensors are freed on the thread that drops them last. With a single stream for the device,
    // frees stay in order with the work; candle's default, a stream for each thread, does not
    // guarantee that.
    let device = Device::new_cuda_with_stream(number).map_err(failed("it cannot be opened"))?;
    disable_event_tracking(&device);
    if let Device::Cuda(cuda) = &device
        && !keep_memory(cuda).map_err(failed("its memory cannot be configured"))?
    {
        tracing::warn!(
            "this GPU has no memory pools, as some virtual GPUs, so it waits at every allocation and is \
             slow"
        );
    }
    try_out(&device).map_err(failed("a small calculation on it failed"))?;
    Ok(device)
}

/// Describes an open GPU.
pub(super) fn describe(device: &CudaDevice) -> Result<GpuInfo, DriverError> {
    let stream = device.cuda_stream();
    let context = stream.context();
    let (major, minor) = context.compute_capability()?;
    Ok(GpuInfo {
        name: context.name()?,
        memory_bytes: context.total_mem()? as u64,
        compute_capability: format!("{major}.{minor}"),
    })
}

fn initialisation(error: &DriverError) -> Obstacle {
    match error.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => Obstacle::NoGpu,
        CUresult::CUDA_ERROR_STUB_LIBRARY => Obstacle::NoDriver,
        code => {
            Obstacle::Failed { step: "the driver cannot be started", reason: format!("{code:?}") }
        }
    }
}

fn check_capability(number: usize) -> Result<Arc<CudaContext>, Obstacle> {
    let failed = |error: DriverError| Obstacle::Failed {
        step: "the driver does not open it",
        reason: format!("{:?}", error.0),
    };
    let context = CudaContext::new(number).map_err(failed)?;
    let (major, minor) = context.compute_capability().map_err(failed)?;
    let has = Capability {
        major: u32::try_from(major).unwrap_or(0),
        minor: u32::try_from(minor).unwrap_or(0),
    };
    match BuildTarget::of_ptx(kernels::AFFINE.ptx()) {
        Some(built) if !built.runs_on(has) => {
            Err(Obstacle::OtherGpu { name: context.name().map_err(failed)?, has, built })
        }
        // An unknown target is not refused here; trying the GPU out will show whether it works.
        _ => Ok(context),
    }
}

/// Runs a kernel and a matrix product, so that a driver that is too old or libraries that do not
/// match fail here and not in the middle of a caption.
fn try_out(device: &Device) -> candle_core::Result<()> {
    let numbers = Tensor::arange(0f32, 4.0, device)?.affine(2.0, 1.0)?;
    let square = Tensor::ones((16, 16), DType::F16, device)?;
    let product = square.matmul(&square)?.to_dtype(DType::F32)?.mean_all()?.to_scalar::<f32>()?;
    let numbers = numbers.to_vec1::<f32>()?;
    if numbers != [1.0, 3.0, 5.0, 7.0] || product != 16.0 {
        candle_core::bail!(
            "it computes {numbers:?} and {product} where 1, 3, 5, 7 and 16 are right"
        );
    }
    Ok(())
}
