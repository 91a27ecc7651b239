//! What the references share: any float type as f32, and back.

use std::borrow::Cow;

use candle_core::{CpuStorage, DType, Layout, Result, bail};
use half::slice::HalfFloatSliceExt;

/// The numbers from the first to the last that the layout reaches, as f32, and the same layout from
/// their start.
pub(crate) fn spanned<'a>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<(Cow<'a, [f32]>, Layout)> {
    let last: usize =
        layout.dims().iter().zip(layout.stride()).map(|(n, s)| (n.max(&1) - 1) * s).sum();
    let length = if layout.shape().elem_count() == 0 { 0 } else { last + 1 };
    let range = layout.start_offset()..layout.start_offset() + length;
    let values = match storage {
        CpuStorage::F32(all) => Cow::Borrowed(&all[range]),
        CpuStorage::F16(all) => Cow::Owned(all[range].to_f32_vec()),
        CpuStorage::BF16(all) => Cow::Owned(all[range].to_f32_vec()),
        other => bail!("expected f32, f16 or bf16, not {:?}", dtype(other)),
    };
    Ok((values, Layout::new(layout.shape().clone(), layout.stride().to_vec(), 0)))
}

/// The numbers of a contiguous tensor as f32.
pub(crate) fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Cow<'a, [f32]>> {
    if !layout.is_contiguous() {
        bail!("expected a contiguous tensor, not one with strides {:?}", layout.stride());
    }
    Ok(spanned(storage, layout)?.0)
}

/// `values` in `dtype`.
pub(crate) fn stored(values: Vec<f32>, dtype: DType) -> Result<CpuStorage> {
    Ok(match dtype {
        DType::F32 => CpuStorage::F32(values),
        DType::F16 => CpuStorage::F16(values.into_iter().map(half::f16::from_f32).collect()),
        DType::BF16 => CpuStorage::BF16(values.into_iter().map(half::bf16::from_f32).collect()),
        other => bail!("expected f32, f16 or bf16, not {other:?}"),
    })
}

/// Writes `values` into a contiguous tensor.
pub(crate) fn write(storage: &mut CpuStorage, layout: &Layout, values: &[f32]) -> Result<()> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("expected a contiguous tensor, not one with strides {:?}", layout.stride());
    };
    match storage {
        CpuStorage::F32(all) => all[start..end].copy_from_slice(values),
        CpuStorage::F16(all) => all[start..end].convert_from_f32_slice(values),
        CpuStorage::BF16(all) => all[start..end].convert_from_f32_slice(values),
        other => bail!("expected f32, f16 or bf16, not {:?}", dtype(other)),
    }
    Ok(())
}

pub(crate) fn dtype(storage: &CpuStorage) -> DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}

/// Replaces a row of scores by their softmax.
pub(crate) fn softmax_row(row: &mut [f32]) {
    let greatest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for x in row.iter_mut() {
        *x = (*x - greatest).exp();
        sum += *x;
    }
    for x in row.iter_mut() {
        *x /= sum;
    }
}
