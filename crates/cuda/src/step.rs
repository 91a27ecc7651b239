//! The self-attention of a decoding step.

use candle_core::{CpuStorage, CustomOp3, InplaceOp3, Layout, Result, Shape, Tensor, bail};

use crate::reference::{dtype, floats, softmax_row, stored};

/// Writes the keys and values of new tokens into `cache`, `[rows, heads, 2, capacity, width]`. `qkv` is
/// `[rows, heads, 3, width]`, and `positions`, `[rows]` in u32, says where each row's token is; a row
/// whose number is not below the capacity has none.
///
/// # Errors
/// Shapes or types that do not match.
pub fn step_store(cache: &Tensor, qkv: &Tensor, positions: &Tensor) -> Result<()> {
    cache.inplace_op3(qkv, positions, &Step)
}

/// Attends from the queries in `qkv` to the positions up to each row's own, all of which are in `cache`.
/// The result is `[rows, heads · width]`, with zeros in rows without a token. The queries are scaled
/// already.
///
/// # Errors
/// Shapes or types that do not match; on a GPU also a width that is not a multiple of 8 or more than
/// 128.
pub fn step_attend(cache: &Tensor, qkv: &Tensor, positions: &Tensor) -> Result<Tensor> {
    qkv.apply_op3_no_bwd(positions, cache, &Step)
}

struct Step;

struct Dims {
    rows: usize,
    heads: usize,
    capacity: usize,
    width: usize,
}

impl Dims {
    fn of(cache: &Layout, qkv: &Layout, positions: &Layout) -> Result<Self> {
        match (cache.dims(), qkv.dims(), positions.dims()) {
            (&[rows, heads, 2, capacity, width], qkv, positions)
                if qkv == [rows, heads, 3, width] && positions == [rows] =>
            {
                Ok(Self { rows, heads, capacity, width })
            }
            (cache, qkv, positions) => bail!(
                "expected [rows, heads, 2, capacity, width], [rows, heads, 3, width] and [rows], not \
                 {cache:?}, {qkv:?} and {positions:?}"
            ),
        }
    }
}

fn positions_of<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [u32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::U32(all), Some((start, end))) => Ok(&all[start..end]),
        _ => bail!("expected contiguous positions in u32"),
    }
}

impl InplaceOp3 for Step {
    fn name(&self) -> &'static str {
        "step-store"
    }

    fn cpu_fwd(
        &self,
        cache: &mut CpuStorage,
        cache_layout: &Layout,
        qkv: &CpuStorage,
        qkv_layout: &Layout,
        positions: &CpuStorage,
        positions_layout: &Layout,
    ) -> Result<()> {
        let dims = Dims::of(cache_layout, qkv_layout, positions_layout)?;
        let positions = positions_of(positions, positions_layout)?;
        let Some((cache_start, _)) = cache_layout.contiguous_offsets() else {
            bail!("expected a contiguous cache");
        };
        let Some((qkv_start, _)) = qkv_layout.contiguous_offsets() else {
            bail!("expected contiguous queries, keys and values");
        };
        let starts = (cache_start, qkv_start);
        match (cache, qkv) {
            (CpuStorage::F32(to), CpuStorage::F32(from)) => {
                copy(to, from, starts, positions, &dims)
            }
            (CpuStorage::F16(to), CpuStorage::F16(from)) => {
                copy(to, from, starts, positions, &dims)
            }
            (CpuStorage::BF16(to), CpuStorage::BF16(from)) => {
                copy(to, from, starts, positions, &dims);
            }
            _ => bail!("expected the same type, f32, f16 or bf16"),
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        cache: &mut candle_core::CudaStorage,
        cache_layout: &Layout,
        qkv: &candle_core::CudaStorage,
        qkv_layout: &Layout,
        positions: &candle_core::CudaStorage,
        positions_layout: &Layout,
    ) -> Result<()> {
        use candle_core::backend::BackendStorage;
        let dims = Dims::of(cache_layout, qkv_layout, positions_layout)?;
        let operands = [(&*cache, cache_layout), (qkv, qkv_layout), (positions, positions_layout)];
        crate::launch::by_type!(qkv.dtype(), launch_store(operands, &dims))
    }
}

fn copy<T: Copy>(
    cache: &mut [T],
    qkv: &[T],
    (cache_start, qkv_start): (usize, usize),
    positions: &[u32],
    &Dims { rows, heads, capacity, width }: &Dims,
) {
    for head in 0..rows * heads {
        let position = positions[head / heads] as usize;
        if position >= capacity {
            continue;
        }
        for part in 0..2 {
            let to = cache_start + ((head * 2 + part) * capacity + position) * width;
            let from = qkv_start + (head * 3 + 1 + part) * width;
            cache[to..to + width].copy_from_slice(&qkv[from..from + width]);
        }
    }
}

impl CustomOp3 for Step {
    fn name(&self) -> &'static str {
        "step-attend"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        qkv_layout: &Layout,
        positions: &CpuStorage,
        positions_layout: &Layout,
        cache: &CpuStorage,
        cache_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let Dims { rows, heads, capacity, width } =
            Dims::of(cache_layout, qkv_layout, positions_layout)?;
        let positions = positions_of(positions, positions_layout)?;
        let (qkv_values, cache_values) = (floats(qkv, qkv_layout)?, floats(cache, cache_layout)?);
        let mut context = vec![0.0; rows * heads * width];
        let mut scores = Vec::new();
        for (head, context) in context.chunks_mut(width.max(1)).enumerate() {
            let position = positions[head / heads] as usize;
            if position >= capacity {
                continue;
            }
            let q = &qkv_values[head * 3 * width..][..width];
            let line = |part: usize| &cache_values[(head * 2 + part) * capacity * width..];
            let dot = |key: &[f32]| q.iter().zip(key).map(|(q, k)| q * k).sum::<f32>();
            scores.clear();
            scores.extend(line(0).chunks(width).take(position + 1).map(dot));
            softmax_row(&mut scores);
            for (p, value) in scores.iter().zip(line(1).chunks(width)) {
                context.iter_mut().zip(value).for_each(|(c, v)| *c += p * v);
            }
        }
        Ok((stored(context, dtype(qkv))?, (rows, heads * width).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        qkv: &candle_core::CudaStorage,
        qkv_layout: &Layout,
        positions: &candle_core::CudaStorage,
        positions_layout: &Layout,
        cache: &candle_core::CudaStorage,
        cache_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let dims = Dims::of(cache_layout, qkv_layout, positions_layout)?;
        let operands = [(cache, cache_layout), (qkv, qkv_layout), (positions, positions_layout)];
        let context = crate::launch::by_type!(qkv.dtype(), launch_attend(operands, &dims))?;
        Ok((context, (dims.rows, dims.heads * dims.width).into()))
    }
}

#[cfg(feature = "cuda")]
type Operands<'a> = [(&'a candle_core::CudaStorage, &'a Layout); 3];

#[cfg(feature = "cuda")]
fn launch_store<T: crate::launch::Element>(
    [cache, qkv, positions]: Operands<'_>,
    &Dims { rows, heads, capacity, width }: &Dims,
) -> Result<()> {
    use crate::launch::{grid, int, kernel, ptx, view};
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::PushKernelArg;

    const THREADS: u32 = 256;
    let device = &qkv.0.device;
    let (qkv, cache) = (view::<T>(qkv.0, qkv.1)?, view::<T>(cache.0, cache.1)?);
    let positions = positions_on_device(positions)?;
    let function = kernel(device, "step", ptx::STEP, &format!("step_store_{}", T::NAME))?;
    let all = int(rows * heads * 2 * width)?;
    let config = grid((all as usize).div_ceil(THREADS as usize), 1, 1, THREADS)?;
    let (rows, heads, capacity, width) = (int(rows)?, int(heads)?, int(capacity)?, int(width)?);
    let mut builder = function.builder();
    builder.arg(&qkv).arg(&positions).arg(&cache);
    builder.arg(&rows).arg(&heads).arg(&capacity).arg(&width);
    // SAFETY: the kernel's arguments have these types and the sizes that the shapes say, and it skips
    // positions outside the cache. The caller has the cache for itself, and there is one stream.
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}

#[cfg(feature = "cuda")]
fn launch_attend<T: crate::launch::Element>(
    [cache, qkv, positions]: Operands<'_>,
    &Dims { rows, heads, capacity, width }: &Dims,
) -> Result<candle_core::CudaStorage> {
    use crate::launch::{check_width, grid, int, kernel, output, ptx, view};
    use candle_core::CudaStorage;
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::PushKernelArg;

    check_width(width, 128)?;
    let device = &qkv.0.device;
    let (qkv, cache) = (view::<T>(qkv.0, qkv.1)?, view::<T>(cache.0, cache.1)?);
    let positions = positions_on_device(positions)?;
    let context = output::<T>(device, rows * heads * width)?;
    let function = kernel(device, "step", ptx::STEP, &format!("step_attend_{}", T::NAME))?;
    let config = grid((rows * heads).div_ceil(4), 1, 1, 128)?;
    let (rows, heads, capacity, width) = (int(rows)?, int(heads)?, int(capacity)?, int(width)?);
    let mut builder = function.builder();
    builder.arg(&qkv).arg(&positions).arg(&cache).arg(&context);
    builder.arg(&rows).arg(&heads).arg(&capacity).arg(&width);
    // SAFETY: the kernel's arguments have these types and the sizes that the shapes say; it writes all
    // of the result.
    unsafe { builder.launch(config) }.w()?;
    Ok(CudaStorage::wrap_cuda_slice(context, device.clone()))
}

#[cfg(feature = "cuda")]
fn positions_on_device<'a>(
    (storage, layout): (&'a candle_core::CudaStorage, &Layout),
) -> Result<candle_core::cuda_backend::cudarc::driver::CudaView<'a, u32>> {
    // A part of a larger tensor, so it may start anywhere.
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("expected contiguous positions");
    };
    Ok(storage.as_cuda_slice::<u32>()?.slice(start..end))
}
