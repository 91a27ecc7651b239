//! Products of matrices that lie apart, one for each head or image.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};

use crate::reference::{dtype, spanned, stored};

/// How a product is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrangement {
    /// `[batch, m, n]`; on a GPU the rows begin at multiples of 16 bytes.
    BatchFirst,
    /// `[m, batch, n]`, contiguous: a row for each of `m`, with the parts of all heads.
    BatchInside,
}

/// `a · b` for each matrix of a batch: `a` is `[batch, m, k]` and `b` is `[batch, k, n]`, as `result`.
///
/// The operands may be views: the numbers of a row of `a` are in one piece, and so are those of a row
/// or of a column of `b`.
///
/// # Errors
/// Shapes, types or strides that do not match.
pub fn product(a: &Tensor, b: &Tensor, result: DType, arrangement: Arrangement) -> Result<Tensor> {
    let n = b.dim(2)?;
    let c = a.apply_op2_no_bwd(b, &Product { result, arrangement })?;
    c.narrow(2, 0, n)
}

struct Product {
    result: DType,
    arrangement: Arrangement,
}

struct Sizes {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
}

impl Sizes {
    fn of(a: &Layout, b: &Layout) -> Result<Self> {
        match (a.dims(), b.dims()) {
            (&[batch, m, k], &[batch_too, k_too, n]) if batch == batch_too && k == k_too => {
                Ok(Self { batch, m, n, k })
            }
            (a, b) => bail!("expected [batch, m, k] and [batch, k, n], not {a:?} and {b:?}"),
        }
    }
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let Sizes { batch, m, n, k } = Sizes::of(a_layout, b_layout)?;
        if dtype(a) != dtype(b) {
            bail!("expected the same type, not {:?} and {:?}", dtype(a), dtype(b));
        }
        let sizes = (batch, m, n, k);
        let c = match (a, b) {
            (CpuStorage::F32(_), CpuStorage::F32(_)) => a.matmul(b, sizes, a_layout, b_layout)?,
            _ => {
                let ((a, a_layout), (b, b_layout)) = (spanned(a, a_layout)?, spanned(b, b_layout)?);
                let (a, b) = (CpuStorage::F32(a.into_owned()), CpuStorage::F32(b.into_owned()));
                a.matmul(&b, sizes, &a_layout, &b_layout)?
            }
        };
        let CpuStorage::F32(c) = c else { bail!("a product in another type") };
        match self.arrangement {
            Arrangement::BatchFirst => Ok((stored(c, self.result)?, (batch, m, n).into())),
            Arrangement::BatchInside => {
                let mut rows = vec![0.0; c.len()];
                for (index, row) in c.chunks(n.max(1)).enumerate() {
                    let (matrix, line) = (index / m, index % m);
                    rows[(line * batch + matrix) * n..][..n].copy_from_slice(row);
                }
                Ok((stored(rows, self.result)?, (m, batch, n).into()))
            }
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        a: &candle_core::CudaStorage,
        a_layout: &Layout,
        b: &candle_core::CudaStorage,
        b_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let operands = [(a, a_layout), (b, b_layout)];
        match self.result {
            DType::F32 if a.dtype() != DType::F32 => {
                crate::launch::by_type!(a.dtype(), launch_into_f32(self, operands))
            }
            result if result == a.dtype() => {
                crate::launch::by_type!(a.dtype(), launch_into_same(self, operands))
            }
            other => bail!("a product of {:?} cannot be stored as {other:?}", a.dtype()),
        }
    }
}

#[cfg(feature = "cuda")]
type Operands<'a> = [(&'a candle_core::CudaStorage, &'a Layout); 2];

#[cfg(feature = "cuda")]
fn launch_into_f32<T: crate::launch::Element>(
    op: &Product,
    operands: Operands<'_>,
) -> Result<(candle_core::CudaStorage, Shape)> {
    launch::<T, f32>(op, operands)
}

#[cfg(feature = "cuda")]
fn launch_into_same<T: crate::launch::Element>(
    op: &Product,
    operands: Operands<'_>,
) -> Result<(candle_core::CudaStorage, Shape)> {
    launch::<T, T>(op, operands)
}

#[cfg(feature = "cuda")]
fn launch<T: crate::launch::Element, R: crate::launch::Element>(
    op: &Product,
    [(a, a_layout), (b, b_layout)]: Operands<'_>,
) -> Result<(candle_core::CudaStorage, Shape)> {
    use crate::launch::output;
    use crate::lt::{self, Addresses, Problem, Strides};
    use candle_core::cuda_backend::cudarc::driver::DevicePtr;

    let Sizes { batch, m, n, k } = Sizes::of(a_layout, b_layout)?;
    let (&[a_batch, a_row, 1], &[b_batch, b_row, b_column]) =
        (a_layout.stride(), b_layout.stride())
    else {
        bail!("expected rows in one piece, not strides {:?}", a_layout.stride());
    };
    let b_is_transposed = b_column != 1;
    if b_is_transposed && b_row != 1 {
        bail!("expected rows or columns in one piece, not strides {:?}", b_layout.stride());
    }
    let (c, shape): (Strides, Shape) = match op.arrangement {
        Arrangement::BatchFirst => {
            let pitch = n.next_multiple_of(16 / size_of::<R>());
            (Strides { row: pitch, batch: m * pitch }, (batch, m, pitch).into())
        }
        Arrangement::BatchInside => (Strides { row: batch * n, batch: n }, (m, batch, n).into()),
    };
    let device = &a.device;
    let stream = device.cuda_stream();
    let result = output::<R>(device, shape.elem_count())?;
    let problem = Problem {
        input: T::LT,
        output: R::LT,
        m,
        n,
        k,
        batch,
        a: Strides { row: a_row, batch: a_batch },
        b: Strides { row: if b_is_transposed { b_column } else { b_row }, batch: b_batch },
        c,
        b_is_transposed,
        bias: false,
        add: false,
    };
    {
        let (a, b) = (
            a.as_cuda_slice::<T>()?.slice(a_layout.start_offset()..),
            b.as_cuda_slice::<T>()?.slice(b_layout.start_offset()..),
        );
        let [a, b] = [&a, &b].map(|view| view.device_ptr(&stream));
        let c = result.device_ptr(&stream);
        let addresses = Addresses { a: a.0, b: b.0, c: c.0, bias: 0 };
        // SAFETY: candle's layouts lie within their storages, and the result is new and has the size
        // that its strides say.
        unsafe { lt::multiply(device, problem, addresses) }?;
    }
    Ok((candle_core::CudaStorage::wrap_cuda_slice(result, device.clone()), shape))
}
