//! The greatest numbers of a row.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::reference::floats;

/// For every row of `x`, `[rows, length]` in f32: `[rows, 2 · count + 2]` with the indices of the
/// `count` greatest numbers in descending order, of equal ones the first; the numbers;
/// `Σ exp(x − greatest)`; and 0, or NaN if a number of the row is not finite, in which case the rest of
/// the row means nothing. f32 holds indices up to 2²⁴ exactly.
///
/// # Errors
/// Another shape or type, or `count` is not within 1 and the length.
pub fn best(x: &Tensor, count: usize) -> Result<Tensor> {
    x.apply_op1_no_bwd(&Best { count })
}

struct Best {
    count: usize,
}

impl Best {
    fn dims(&self, layout: &Layout) -> Result<(usize, usize)> {
        match *layout.dims() {
            [rows, length] if (1..=length.min(1 << 24)).contains(&self.count) => Ok((rows, length)),
            ref other => bail!("expected [rows, {} to 2²⁴], not {other:?}", self.count.max(1)),
        }
    }
}

impl CustomOp1 for Best {
    fn name(&self) -> &'static str {
        "best"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, length) = self.dims(layout)?;
        let x = floats(storage, layout)?;
        let width = 2 * self.count + 2;
        let mut result = vec![0.0; rows * width];
        let all = result.par_chunks_mut(width).zip(x.par_chunks(length));
        all.for_each(|(result, row)| best_of_row(row, self.count, result));
        Ok((CpuStorage::F32(result), (rows, width).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        use crate::launch::{grid, int, kernel, output, ptx, view};
        use candle_core::CudaStorage;
        use candle_core::cuda_backend::WrapErr;
        use candle_core::cuda_backend::cudarc::driver::PushKernelArg;

        let (rows, length) = self.dims(layout)?;
        let width = 2 * self.count + 2;
        let device = &storage.device;
        let x = view::<f32>(storage, layout)?;
        let result = output::<f32>(device, rows * width)?;
        let function = kernel(device, "best", ptx::BEST, "best_f32")?;
        let config = grid(rows, 1, 1, 1024)?;
        let (length, count) = (int(length)?, int(self.count)?);
        let mut builder = function.builder();
        builder.arg(&x).arg(&result).arg(&length).arg(&count);
        // SAFETY: the kernel's arguments have these types and the sizes that the shape says, and
        // `count` is no more than `length`; it writes all of the result.
        unsafe { builder.launch(config) }.w()?;
        Ok((CudaStorage::wrap_cuda_slice(result, device.clone()), (rows, width).into()))
    }
}

fn best_of_row(row: &[f32], count: usize, result: &mut [f32]) {
    if !row.iter().all(|x| x.is_finite()) {
        result[2 * count + 1] = f32::NAN;
        return;
    }
    let order = |a: &usize, b: &usize| row[*b].total_cmp(&row[*a]).then(a.cmp(b));
    let mut indices: Vec<usize> = (0..row.len()).collect();
    if count < row.len() {
        indices.select_nth_unstable_by(count - 1, order);
        indices.truncate(count);
    }
    indices.sort_unstable_by(order);
    for (n, index) in indices.iter().enumerate() {
        result[n] = *index as f32;
        result[count + n] = row[*index];
    }
    let greatest = row[indices[0]];
    result[2 * count] = row.iter().map(|x| f64::from((x - greatest).exp())).sum::<f64>() as f32;
}
