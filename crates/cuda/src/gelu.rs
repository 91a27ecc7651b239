//! The exact GELU.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor};
use rayon::prelude::*;

use crate::reference::{floats, write};

/// Replaces every number of `x` by `x · Φ(x)`.
///
/// # Errors
/// `x` is not contiguous.
pub fn gelu(x: &Tensor) -> Result<()> {
    x.inplace_op1(&Gelu)
}

struct Gelu;

impl InplaceOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let mut values = floats(storage, layout)?.into_owned();
        values.par_chunks_mut(4096).for_each(|some| {
            for x in some {
                *x *= 0.5
                    * (1.0 + candle_core::cpu::erf::erf_f32(*x * std::f32::consts::FRAC_1_SQRT_2));
            }
        });
        write(storage, layout, &values)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        use candle_core::backend::BackendStorage;
        crate::launch::by_type!(storage.dtype(), launch(storage, layout))
    }
}

#[cfg(feature = "cuda")]
fn launch<T: crate::launch::Element>(
    storage: &candle_core::CudaStorage,
    layout: &Layout,
) -> Result<()> {
    use crate::launch::{grid, kernel, ptx, view};
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::PushKernelArg;

    const THREADS: u32 = 256;
    let x = view::<T>(storage, layout)?;
    let count = layout.shape().elem_count();
    let name = format!("gelu_{}", T::NAME);
    let function = kernel(&storage.device, "gelu", ptx::GELU, &name)?;
    let config = grid(count.div_ceil(8 * THREADS as usize), 1, 1, THREADS)?;
    let mut builder = function.builder();
    builder.arg(&x).arg(&count);
    // SAFETY: the kernel's arguments have these types, and it stays within `count` numbers. Nothing
    // else uses them meanwhile: the caller has the storage for itself, and there is one stream.
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}
