//! Layer normalisation.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::reference::{dtype, floats, stored};

/// `(x − mean) / √(variance + eps) · weight + bias` for every row of `x`, `[…, width]`.
///
/// # Errors
/// Shapes or types that do not match; on a GPU also a width that is not a multiple of 8 or more than
/// 2,048.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    x.apply_op3_no_bwd(weight, bias, &LayerNorm { eps })
}

struct LayerNorm {
    eps: f32,
}

/// Rows and width.
fn dims(x: &Layout, weight: &Layout, bias: &Layout) -> Result<(usize, usize)> {
    let width = x.dims().last().copied().unwrap_or(0);
    if width == 0 || weight.dims() != [width] || bias.dims() != [width] {
        let (x, w, b) = (x.dims(), weight.dims(), bias.dims());
        bail!("expected […, width], [width] and [width], not {x:?}, {w:?} and {b:?}");
    }
    Ok((x.shape().elem_count() / width, width))
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, width) = dims(x_layout, weight_layout, bias_layout)?;
        let (w, b) = (floats(weight, weight_layout)?, floats(bias, bias_layout)?);
        let mut y = floats(x, x_layout)?.into_owned();
        y.par_chunks_mut(width).for_each(|row| {
            let mean = row.iter().sum::<f32>() / width as f32;
            row.iter_mut().for_each(|x| *x -= mean);
            let variance = row.iter().map(|x| x * x).sum::<f32>() / width as f32;
            let factor = 1.0 / (variance + self.eps).sqrt();
            for ((x, w), b) in row.iter_mut().zip(&*w).zip(&*b) {
                *x = *x * factor * w + b;
            }
        });
        Ok((stored(y, dtype(x))?, x_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        x_layout: &Layout,
        weight: &candle_core::CudaStorage,
        weight_layout: &Layout,
        bias: &candle_core::CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let dims = dims(x_layout, weight_layout, bias_layout)?;
        let operands = [(x, x_layout), (weight, weight_layout), (bias, bias_layout)];
        let result = crate::launch::by_type!(x.dtype(), launch(self.eps, operands, dims))?;
        Ok((result, x_layout.shape().clone()))
    }
}

#[cfg(feature = "cuda")]
fn launch<T: crate::launch::Element>(
    eps: f32,
    [x, weight, bias]: [(&candle_core::CudaStorage, &Layout); 3],
    (rows, width): (usize, usize),
) -> Result<candle_core::CudaStorage> {
    use crate::launch::{check_width, grid, int, kernel, output, ptx, view};
    use candle_core::CudaStorage;
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::PushKernelArg;

    check_width(width, 2048)?;
    let most = if width <= 1024 { 1024 } else { 2048 };
    let device = &x.0.device;
    let (x, weight, bias) =
        (view::<T>(x.0, x.1)?, view::<T>(weight.0, weight.1)?, view::<T>(bias.0, bias.1)?);
    let y = output::<T>(device, rows * width)?;
    let name = format!("layer_norm_{}_{most}", T::NAME);
    let function = kernel(device, "layer_norm", ptx::LAYER_NORM, &name)?;
    let config = grid(rows.div_ceil(4), 1, 1, 128)?;
    let (rows, width) = (int(rows)?, int(width)?);
    let mut builder = function.builder();
    builder.arg(&x).arg(&weight).arg(&bias).arg(&y).arg(&rows).arg(&width).arg(&eps);
    // SAFETY: the kernel's arguments have these types and the sizes that the shapes say; it checks
    // the edges, and writes all of the result.
    unsafe { builder.launch(config) }.w()?;
    Ok(CudaStorage::wrap_cuda_slice(y, device.clone()))
}
