//! Softmax of attention scores.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::reference::{floats, softmax_row, stored};

/// The softmax of every row of `scores`, `[batch, rows, width]` in f32, as `dtype`. The rows may be
/// further apart than they are long, as those of [`product`](crate::product) are; so are the result's.
///
/// # Errors
/// Another shape or type.
pub fn softmax(scores: &Tensor, dtype: DType) -> Result<Tensor> {
    let width = scores.dim(2)?;
    scores.apply_op1_no_bwd(&Softmax { dtype })?.narrow(2, 0, width)
}

struct Softmax {
    dtype: DType,
}

/// Number, length and distance of the rows, none of which is zero.
fn evenly_spaced(layout: &Layout) -> Result<(usize, usize, usize)> {
    let (&[batch, rows, width], &[apart, pitch, 1]) = (layout.dims(), layout.stride()) else {
        bail!("expected [batch, rows, width] with rows in one piece, not {layout:?}");
    };
    if batch * rows * width == 0 || (batch > 1 && apart != rows * pitch) || pitch < width {
        bail!(
            "expected evenly spaced rows, not {:?} with strides {:?}",
            layout.dims(),
            layout.stride()
        );
    }
    Ok((batch * rows, width, pitch))
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width, pitch) = evenly_spaced(layout)?;
        let all = Layout::contiguous_with_offset((rows - 1) * pitch + width, layout.start_offset());
        let scores = floats(storage, &all)?;
        let mut values = vec![0.0; rows * width];
        values.par_chunks_mut(width).enumerate().for_each(|(n, row)| {
            row.copy_from_slice(&scores[n * pitch..][..width]);
            softmax_row(row);
        });
        Ok((stored(values, self.dtype)?, layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let sizes = evenly_spaced(layout)?;
        let result = crate::launch::by_type!(self.dtype, launch(storage, layout, sizes))?;
        let (batch, rows, _) = layout.shape().dims3()?;
        Ok((result, (batch, rows, sizes.2).into()))
    }
}

#[cfg(feature = "cuda")]
fn launch<T: crate::launch::Element>(
    storage: &candle_core::CudaStorage,
    layout: &Layout,
    (rows, width, pitch): (usize, usize, usize),
) -> Result<candle_core::CudaStorage> {
    use crate::launch::{grid, int, kernel, output, ptx, view};
    use candle_core::CudaStorage;
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::PushKernelArg;

    let device = &storage.device;
    let all = Layout::contiguous_with_offset(rows * pitch, layout.start_offset());
    let scores = view::<f32>(storage, &all)?;
    let result = output::<T>(device, rows * pitch)?;
    let name = format!("softmax_{}", T::NAME);
    let function = kernel(device, "softmax", ptx::SOFTMAX, &name)?;
    let config = grid(rows.div_ceil(4), 1, 1, 128)?;
    let (rows, width, pitch) = (int(rows)?, int(width)?, int(pitch)?);
    let mut builder = function.builder();
    builder.arg(&scores).arg(&result).arg(&rows).arg(&width).arg(&pitch);
    // SAFETY: the kernel's arguments have these types and the sizes that the layout says. What it
    // does not write lies between the rows, and nobody reads it.
    unsafe { builder.launch(config) }.w()?;
    Ok(CudaStorage::wrap_cuda_slice(result, device.clone()))
}
