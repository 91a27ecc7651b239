//! What all launches share.

use std::sync::Arc;

use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::cublaslt::sys::cudaDataType_t;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaSlice, CudaStream, CudaView, DeviceRepr, LaunchArgs, LaunchConfig,
};
use candle_core::{CudaDevice, CudaStorage, Layout, Result, WithDType, bail};
use half::{bf16, f16};

/// The kernels as PTX, one constant a file.
#[allow(unreachable_pub, reason = "the build writes it")]
pub(crate) mod ptx {
    include!(concat!(env!("OUT_DIR"), "/ptx.rs"));
}

/// A type that there are kernels for.
pub(crate) trait Element: CudaDType + DeviceRepr + WithDType {
    /// The ending of a kernel's name.
    const NAME: &'static str;
    /// The name that cublasLt has for it.
    const LT: cudaDataType_t;
}

impl Element for f32 {
    const NAME: &'static str = "f32";
    const LT: cudaDataType_t = cudaDataType_t::CUDA_R_32F;
}

impl Element for f16 {
    const NAME: &'static str = "f16";
    const LT: cudaDataType_t = cudaDataType_t::CUDA_R_16F;
}

impl Element for bf16 {
    const NAME: &'static str = "bf16";
    const LT: cudaDataType_t = cudaDataType_t::CUDA_R_16BF;
}

/// Calls a function that is generic over [`Element`] with the type of a tensor.
macro_rules! by_type {
    ($dtype:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $dtype {
            candle_core::DType::F32 => $function::<f32>($($argument),*),
            candle_core::DType::F16 => $function::<half::f16>($($argument),*),
            candle_core::DType::BF16 => $function::<half::bf16>($($argument),*),
            other => candle_core::bail!("expected f32, f16 or bf16, not {other:?}"),
        }
    };
}
pub(crate) use by_type;

/// The numbers of a contiguous tensor, which start at a multiple of 16 bytes.
pub(crate) fn view<'a, T: CudaDType>(
    storage: &'a CudaStorage,
    layout: &Layout,
) -> Result<CudaView<'a, T>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("expected a contiguous tensor, not one with strides {:?}", layout.stride());
    };
    if !(start * size_of::<T>()).is_multiple_of(16) {
        bail!("expected a tensor that starts at a multiple of 16 bytes, not at element {start}");
    }
    Ok(storage.as_cuda_slice::<T>()?.slice(start..end))
}

/// A kernel and the stream that it is launched on.
pub(crate) struct Kernel {
    function: CudaFunction,
    stream: Arc<CudaStream>,
}

impl Kernel {
    /// A launch that gets its arguments one by one.
    pub(crate) fn builder(&self) -> LaunchArgs<'_> {
        self.stream.launch_builder(&self.function)
    }
}

/// A kernel of the module `ptx`, which is called `module`.
pub(crate) fn kernel(
    device: &CudaDevice,
    module: &str,
    ptx: &str,
    function: &str,
) -> Result<Kernel> {
    let function = device.get_or_load_custom_func(function, &format!("cutline_{module}"), ptx)?;
    Ok(Kernel { function: function.into_cuda_function(), stream: device.cuda_stream() })
}

/// Blocks of this shape with so many threads. More blocks than a GPU can count are refused.
pub(crate) fn grid(x: usize, y: usize, z: usize, threads: u32) -> Result<LaunchConfig> {
    let all = [x, y, z].map(u32::try_from);
    let [Ok(x), Ok(y), Ok(z)] = all else { bail!("too large: {all:?} blocks") };
    if x > i32::MAX as u32 || y > 65_535 || z > 65_535 {
        bail!("too large: {x} × {y} × {z} blocks");
    }
    Ok(LaunchConfig { grid_dim: (x, y, z), block_dim: (threads, 1, 1), shared_mem_bytes: 0 })
}

/// A size as the kernels take it.
pub(crate) fn int(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| candle_core::Error::Msg(format!("too large: {n}")))
}

/// Memory for `count` numbers that are not initialised.
pub(crate) fn output<T: Element>(device: &CudaDevice, count: usize) -> Result<CudaSlice<T>> {
    // SAFETY: every caller launches a kernel that writes all of it before anything reads it.
    unsafe { device.alloc::<T>(count) }
}

/// Refuses what the kernels cannot do; they move eight numbers at a time.
pub(crate) fn check_width(width: usize, most: usize) -> Result<()> {
    if !width.is_multiple_of(8) || width > most {
        bail!("on a GPU a width is a multiple of 8 and at most {most}, not {width}");
    }
    Ok(())
}
