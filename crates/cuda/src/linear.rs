//! Linear layers.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CustomOp1, InplaceOp2, Layout, Result, Shape, Storage, Tensor, bail,
};

use crate::reference::{dtype, floats, stored, write};

/// `x Wᵀ + b`: `[rows, in]` → `[rows, out]`, with a weight `[out, in]` and a bias `[out]`.
///
/// # Errors
/// Shapes or types that do not match.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.apply_op1_no_bwd(&Linear { weight, bias })
}

/// Adds `x Wᵀ + b` to `y`, `[rows, out]`, and rounds once. Nothing else should use the memory of `y`.
///
/// # Errors
/// Shapes or types that do not match.
pub fn add_linear(y: &Tensor, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<()> {
    y.inplace_op2(x, &Linear { weight, bias })
}

struct Linear<'a> {
    weight: &'a Tensor,
    bias: &'a Tensor,
}

impl Linear<'_> {
    /// Rows, inputs, outputs.
    fn dims(&self, x: &Layout) -> Result<[usize; 3]> {
        match (x.dims(), self.weight.dims(), self.bias.dims()) {
            (&[rows, from], &[to, from_too], &[to_too]) if from == from_too && to == to_too => {
                Ok([rows, from, to])
            }
            (x, w, b) => {
                bail!("expected [rows, in], [out, in] and [out], not {x:?}, {w:?} and {b:?}")
            }
        }
    }

    fn reference(&self, x: &CpuStorage, layout: &Layout) -> Result<Vec<f32>> {
        let [rows, from, to] = self.dims(layout)?;
        let (weight, weight_layout) = self.weight.storage_and_layout();
        let (bias, bias_layout) = self.bias.storage_and_layout();
        let (Storage::Cpu(weight), Storage::Cpu(bias)) = (&*weight, &*bias) else {
            bail!("the weights are on another device");
        };
        if dtype(x) != dtype(weight) || dtype(x) != dtype(bias) {
            bail!("expected the same type, not {:?}, {:?}", dtype(x), dtype(weight));
        }
        let sizes = (1, rows, to, from);
        let transposed = |layout: &Layout| layout.transpose(0, 1);
        let product = match (x, weight) {
            (CpuStorage::F32(_), CpuStorage::F32(_)) => {
                x.matmul(weight, sizes, layout, &transposed(weight_layout)?)?
            }
            _ => {
                let x = CpuStorage::F32(floats(x, layout)?.into_owned());
                let weight = CpuStorage::F32(floats(weight, weight_layout)?.into_owned());
                let weight_layout = Layout::contiguous((to, from));
                let layout = Layout::contiguous((rows, from));
                x.matmul(&weight, sizes, &layout, &transposed(&weight_layout)?)?
            }
        };
        let CpuStorage::F32(mut y) = product else { bail!("a product in another type") };
        let bias = floats(bias, bias_layout)?;
        for row in y.chunks_mut(to.max(1)) {
            row.iter_mut().zip(&*bias).for_each(|(y, b)| *y += b);
        }
        Ok(y)
    }
}

impl CustomOp1 for Linear<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let [rows, _, to] = self.dims(layout)?;
        Ok((stored(self.reference(x, layout)?, dtype(x))?, (rows, to).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let [rows, from, to] = self.dims(layout)?;
        let y = crate::launch::by_type!(x.dtype(), launch(self, x, layout, [rows, from, to]))?;
        Ok((y, (rows, to).into()))
    }
}

impl InplaceOp2 for Linear<'_> {
    fn name(&self) -> &'static str {
        "add-linear"
    }

    fn cpu_fwd(
        &self,
        y: &mut CpuStorage,
        y_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> Result<()> {
        let [rows, _, to] = self.dims(x_layout)?;
        if y_layout.dims() != [rows, to] || dtype(y) != dtype(x) {
            bail!("expected [{rows}, {to}] {:?}, not {:?}", dtype(x), y_layout.dims());
        }
        let mut sum = self.reference(x, x_layout)?;
        sum.iter_mut().zip(&*floats(y, y_layout)?).for_each(|(sum, y)| *sum += y);
        write(y, y_layout, &sum)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        y: &mut candle_core::CudaStorage,
        y_layout: &Layout,
        x: &candle_core::CudaStorage,
        x_layout: &Layout,
    ) -> Result<()> {
        let [rows, from, to] = self.dims(x_layout)?;
        if y_layout.dims() != [rows, to] {
            bail!("expected [{rows}, {to}], not {:?}", y_layout.dims());
        }
        let operands = [(x, x_layout), (&*y, y_layout)];
        crate::launch::by_type!(x.dtype(), launch_add(self, operands, [rows, from, to]))
    }
}

#[cfg(feature = "cuda")]
fn launch<T: crate::launch::Element>(
    layer: &Linear<'_>,
    x: &candle_core::CudaStorage,
    layout: &Layout,
    [rows, from, to]: [usize; 3],
) -> Result<candle_core::CudaStorage> {
    use candle_core::cuda_backend::cudarc::driver::DevicePtr;

    let y = crate::launch::output::<T>(&x.device, rows * to)?;
    let stream = x.device.cuda_stream();
    let (address, _in_use) = y.device_ptr(&stream);
    multiply::<T>(layer, (x, layout), address, [rows, from, to], false)?;
    drop(_in_use);
    Ok(candle_core::CudaStorage::wrap_cuda_slice(y, x.device.clone()))
}

#[cfg(feature = "cuda")]
fn launch_add<T: crate::launch::Element>(
    layer: &Linear<'_>,
    [x, y]: [(&candle_core::CudaStorage, &Layout); 2],
    dims: [usize; 3],
) -> Result<()> {
    use candle_core::cuda_backend::cudarc::driver::DevicePtr;

    let view = crate::launch::view::<T>(y.0, y.1)?;
    let stream = y.0.device.cuda_stream();
    let (address, _in_use) = view.device_ptr(&stream);
    multiply::<T>(layer, x, address, dims, true)
}

/// Writes to `y` or adds to it.
#[cfg(feature = "cuda")]
fn multiply<T: crate::launch::Element>(
    layer: &Linear<'_>,
    x: (&candle_core::CudaStorage, &Layout),
    y: u64,
    [rows, from, to]: [usize; 3],
    add: bool,
) -> Result<()> {
    use crate::launch::view;
    use crate::lt::{self, Addresses, Problem, Strides};
    use candle_core::cuda_backend::cudarc::driver::DevicePtr;

    let (weight, weight_layout) = layer.weight.storage_and_layout();
    let (bias, bias_layout) = layer.bias.storage_and_layout();
    let (Storage::Cuda(weight), Storage::Cuda(bias)) = (&*weight, &*bias) else {
        bail!("the weights are on another device");
    };
    let device = &x.0.device;
    let stream = device.cuda_stream();
    let (x, weight, bias) =
        (view::<T>(x.0, x.1)?, view::<T>(weight, weight_layout)?, view::<T>(bias, bias_layout)?);
    let [a, b, bias] = [&x, &weight, &bias].map(|view| view.device_ptr(&stream));
    let row = |row| Strides { row, batch: 0 };
    let problem = Problem {
        input: T::LT,
        output: T::LT,
        m: rows,
        n: to,
        k: from,
        batch: 1,
        a: row(from),
        b: row(from),
        c: row(to),
        b_is_transposed: true,
        bias: true,
        add,
    };
    let addresses = Addresses { a: a.0, b: b.0, c: y, bias: bias.0 };
    // SAFETY: the views have the sizes that `dims` has checked, and `y` has `rows · to` numbers of its
    // own: it is new, or candle has refused operands that share its storage.
    unsafe { lt::multiply(device, problem, addresses) }
}
