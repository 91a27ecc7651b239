//! Attention over all tokens of an image.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::reference::{dtype, floats, softmax_row, stored};

/// `softmax(q kᵀ · scale) v` for every head, from packed queries, keys and values
/// `[images, tokens, 3, heads, width]`. The result is `[images · tokens, heads · width]`.
///
/// # Errors
/// Another shape; on a GPU also a width that is not a multiple of 8 or more than 128.
pub fn attention(qkv: &Tensor, scale: f32) -> Result<Tensor> {
    qkv.apply_op1_no_bwd(&Attention { scale })
}

struct Attention {
    scale: f32,
}

impl Attention {
    /// Images, tokens, heads, width.
    fn dims(layout: &Layout) -> Result<[usize; 4]> {
        match *layout.dims() {
            [images, tokens, 3, heads, width] => Ok([images, tokens, heads, width]),
            ref other => bail!("expected [images, tokens, 3, heads, width], not {other:?}"),
        }
    }
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let [images, tokens, heads, width] = Self::dims(layout)?;
        let hidden = heads * width;
        let values = CpuStorage::F32(floats(storage, layout)?.into_owned());
        let part = |image: usize, part: usize| {
            let start = (image * tokens * 3 + part) * hidden;
            Layout::new((heads, tokens, width).into(), vec![width, 3 * hidden, 1], start)
        };
        let mut context = vec![0.0; images * tokens * hidden];
        for (n, context) in context.chunks_mut((tokens * hidden).max(1)).enumerate() {
            let (q, k, v) = (part(n, 0), part(n, 1), part(n, 2));
            let sizes = (heads, tokens, tokens, width);
            let mut scores = values.matmul(&values, sizes, &q, &k.transpose(1, 2)?)?;
            let CpuStorage::F32(rows) = &mut scores else { bail!("a product in another type") };
            rows.par_chunks_mut(tokens).for_each(|row| {
                row.iter_mut().for_each(|x| *x *= self.scale);
                softmax_row(row);
            });
            let scores_layout = Layout::contiguous((heads, tokens, tokens));
            let sizes = (heads, tokens, width, tokens);
            let heads = scores.matmul(&values, sizes, &scores_layout, &v)?;
            for (n, row) in heads.as_slice::<f32>()?.chunks(width).enumerate() {
                let (head, token) = (n / tokens, n % tokens);
                context[token * hidden + head * width..][..width].copy_from_slice(row);
            }
        }
        Ok((stored(context, dtype(storage))?, (images * tokens, hidden).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let dims = Self::dims(layout)?;
        let result =
            crate::launch::by_type!(storage.dtype(), launch(self.scale, storage, layout, dims))?;
        let [images, tokens, heads, width] = dims;
        Ok((result, (images * tokens, heads * width).into()))
    }
}

#[cfg(feature = "cuda")]
fn launch<T: crate::launch::Element>(
    scale: f32,
    storage: &candle_core::CudaStorage,
    layout: &Layout,
    [images, tokens, heads, width]: [usize; 4],
) -> Result<candle_core::CudaStorage> {
    use crate::launch::{check_width, grid, int, kernel, output, ptx, view};
    use candle_core::CudaStorage;
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::PushKernelArg;

    check_width(width, 128)?;
    let (name, queries, threads) = match T::DTYPE {
        candle_core::DType::F32 => ("attention_f32".to_owned(), 16, 512),
        _ => (format!("attention_{}_{}", T::NAME, width.next_multiple_of(32)), 64, 128),
    };
    let device = &storage.device;
    let qkv = view::<T>(storage, layout)?;
    let context = output::<T>(device, images * tokens * heads * width)?;
    let function = kernel(device, "attention", ptx::ATTENTION, &name)?;
    let config = grid(tokens.div_ceil(queries), heads, images, threads)?;
    let (tokens, heads, width) = (int(tokens)?, int(heads)?, int(width)?);
    let mut builder = function.builder();
    builder.arg(&qkv).arg(&context).arg(&tokens).arg(&heads).arg(&width).arg(&scale);
    // SAFETY: the kernel's arguments have these types and the sizes that the shape says; it checks
    // the edges, and writes all of the result.
    unsafe { builder.launch(config) }.w()?;
    Ok(CudaStorage::wrap_cuda_slice(context, device.clone()))
}
