//! Matrix products by cublasLt, whose epilogue adds a bias and whose `beta` adds a residual.
//!
//! The choice of an algorithm takes the CPU longer than a small product takes the GPU, so it is kept
//! for each shape.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::cublaslt::result::{self, CublasError};
use candle_core::cuda_backend::cudarc::cublaslt::sys;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr};
use candle_core::cuda_backend::{DeviceId, WrapErr};
use candle_core::{CudaDevice, Error};

use sys::cublasLtEpilogue_t::{CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_DEFAULT};
use sys::cublasLtMatmulDescAttributes_t as DescAttribute;
use sys::cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute;
use sys::cublasLtMatrixLayoutAttribute_t as LayoutAttribute;

/// Memory that an algorithm may use: what NVIDIA recommends for its largest GPUs.
const WORKSPACE: usize = 32 << 20;

/// Shapes whose algorithms are kept. A server has a few hundred.
const MAX_PLANS: usize = 2048;

/// `c[m, n] = a[m, k] · b`, `batch` times, with rows in one piece. Strides count elements.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Problem {
    pub(crate) input: sys::cudaDataType_t,
    pub(crate) output: sys::cudaDataType_t,
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) batch: usize,
    pub(crate) a: Strides,
    pub(crate) b: Strides,
    pub(crate) c: Strides,
    /// Whether `b` is stored as `[n, k]` and not as `[k, n]`.
    pub(crate) b_is_transposed: bool,
    /// Whether a bias `[n]` is added to every row.
    pub(crate) bias: bool,
    /// Whether the product is added to `c`.
    pub(crate) add: bool,
}

/// The distance between rows, and between the matrices of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Strides {
    pub(crate) row: usize,
    pub(crate) batch: usize,
}

/// Addresses on the device; `bias` is zero if there is none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses {
    pub(crate) a: u64,
    pub(crate) b: u64,
    pub(crate) c: u64,
    pub(crate) bias: u64,
}

/// Enqueues the product on the device's stream.
///
/// # Safety
/// The matrices that `problem` describes lie at `addresses` on `device`, and `c` overlaps none of the
/// others.
///
/// # Errors
/// cublasLt has no algorithm for the problem, or no memory.
pub(crate) unsafe fn multiply(
    device: &CudaDevice,
    problem: Problem,
    addresses: Addresses,
) -> Result<(), Error> {
    static HANDLES: Mutex<Option<HashMap<DeviceId, Handle>>> = Mutex::new(None);
    let mut handles = HANDLES.lock().unwrap_or_else(PoisonError::into_inner);
    let handle = match handles.get_or_insert_with(HashMap::new).entry(device.id()) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => entry.insert(Handle::new(device)?),
    };
    // SAFETY: as promised by the caller.
    unsafe { handle.multiply(device, problem, addresses) }
}

struct Handle {
    lt: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    /// By problem and by what the addresses are aligned to.
    plans: HashMap<(Problem, u32), Plan>,
}

// SAFETY: cublasLt's handles and descriptors may be used from any thread, one at a time; a mutex sees
// to that.
unsafe impl Send for Handle {}

impl Handle {
    fn new(device: &CudaDevice) -> Result<Self, Error> {
        let stream = device.cuda_stream();
        stream.context().bind_to_thread().w()?;
        // SAFETY: cublasLt writes to the workspace before it reads from it.
        let workspace = unsafe { device.alloc::<u8>(WORKSPACE) }?;
        Ok(Self { lt: result::create_handle().map_err(wrap)?, workspace, plans: HashMap::new() })
    }

    /// # Safety
    /// As [`multiply`].
    unsafe fn multiply(
        &mut self,
        device: &CudaDevice,
        problem: Problem,
        addresses: Addresses,
    ) -> Result<(), Error> {
        let stream = device.cuda_stream();
        stream.context().bind_to_thread().w()?;
        let Addresses { a, b, c, bias } = addresses;
        let alignment = 1 << (a | b | c | bias | 256).trailing_zeros();
        let (alpha, beta) = (1.0_f32, if problem.add { 1.0_f32 } else { 0.0 });
        if self.plans.len() >= MAX_PLANS {
            self.plans.clear();
        }
        let plan = match self.plans.entry((problem, alignment)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let plan = Plan::new(self.lt, &entry.key().0, alignment).map_err(wrap)?;
                entry.insert(plan)
            }
        };
        if bias != 0 {
            let attribute = DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
            plan.description.set(attribute, &bias).map_err(wrap)?;
        }
        let (workspace, _in_use) = self.workspace.device_ptr(&stream);
        let pointer = |address: u64| address as *const c_void;
        // SAFETY: the handle, the descriptors and the algorithm belong together and exist; the caller
        // vouches for the matrices. The workspace is used by this stream only, in its order.
        unsafe {
            result::matmul(
                self.lt,
                plan.description.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                pointer(b),
                plan.b.0,
                pointer(a),
                plan.a.0,
                pointer(c),
                plan.c.0,
                c as *mut c_void,
                plan.c.0,
                &raw const plan.algorithm,
                workspace as *mut c_void,
                WORKSPACE,
                stream.cu_stream().cast(),
            )
        }
        .map_err(wrap)
    }
}

/// The descriptors of a problem and the algorithm for it.
struct Plan {
    description: Description,
    a: Matrix,
    b: Matrix,
    c: Matrix,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Plan {
    /// cuBLAS counts by columns, so it sees every matrix transposed: `cᵀ = bᵀ · aᵀ`.
    fn new(
        lt: sys::cublasLtHandle_t,
        problem: &Problem,
        alignment: u32,
    ) -> Result<Self, CublasError> {
        let Problem { input, output, m, n, k, batch, .. } = *problem;
        let description = Description::new()?;
        if problem.b_is_transposed {
            // CUBLAS_OP_T
            description.set(DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA, &1_i32)?;
        }
        let epilogue =
            if problem.bias { CUBLASLT_EPILOGUE_BIAS } else { CUBLASLT_EPILOGUE_DEFAULT };
        description.set(DescAttribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        let (b_rows, b_columns) = if problem.b_is_transposed { (k, n) } else { (n, k) };
        let a = Matrix::new(input, (k, m), problem.a, batch)?;
        let b = Matrix::new(input, (b_rows, b_columns), problem.b, batch)?;
        let c = Matrix::new(output, (n, m), problem.c, batch)?;
        let preference = Preference::new()?;
        preference
            .set(PreferenceAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE)?;
        for attribute in [
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            preference.set(attribute, &alignment)?;
        }
        // SAFETY: all of them were made above and exist.
        let found = unsafe {
            result::get_matmul_algo_heuristic(lt, description.0, b.0, a.0, c.0, c.0, preference.0)
        }?;
        Ok(Self { description, a, b, c, algorithm: found.algo })
    }
}

struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn new() -> Result<Self, CublasError> {
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F).map(Self)
    }

    fn set<T>(&self, attribute: DescAttribute, value: &T) -> Result<(), CublasError> {
        let value = (&raw const *value).cast();
        // SAFETY: the descriptor exists, and the value is read before this returns. Its type is that
        // of the attribute in NVIDIA's manual.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, value, size_of::<T>()) }
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: it was made by `new` and is destroyed once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

struct Matrix(sys::cublasLtMatrixLayout_t);

impl Matrix {
    /// `rows` and `columns` as cuBLAS counts them.
    fn new(
        dtype: sys::cudaDataType_t,
        (rows, columns): (usize, usize),
        strides: Strides,
        batch: usize,
    ) -> Result<Self, CublasError> {
        let layout =
            result::create_matrix_layout(dtype, rows as u64, columns as u64, strides.row as i64)?;
        let matrix = Self(layout);
        if batch > 1 {
            let count = LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT;
            matrix.set(count, &(batch as i32))?;
            let stride = LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET;
            matrix.set(stride, &(strides.batch as i64))?;
        }
        Ok(matrix)
    }

    fn set<T>(&self, attribute: LayoutAttribute, value: &T) -> Result<(), CublasError> {
        let value = (&raw const *value).cast();
        // SAFETY: as in `Description::set`.
        unsafe { result::set_matrix_layout_attribute(self.0, attribute, value, size_of::<T>()) }
    }
}

impl Drop for Matrix {
    fn drop(&mut self) {
        // SAFETY: it was made by `new` and is destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self, CublasError> {
        result::create_matmul_pref().map(Self)
    }

    fn set<T>(&self, attribute: PreferenceAttribute, value: &T) -> Result<(), CublasError> {
        let value = (&raw const *value).cast();
        // SAFETY: as in `Description::set`.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, value, size_of::<T>()) }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: it was made by `new` and is destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

fn wrap(error: CublasError) -> Error {
    Error::Cuda(Box::new(error))
}

/// Whether the error says that cublasLt has no algorithm for a problem, so that nothing was computed.
pub(crate) fn has_no_algorithm(error: &Error) -> bool {
    let unsupported = CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED);
    matches!(error, Error::Cuda(cause) if cause.downcast_ref() == Some(&unsupported))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_lack_of_an_algorithm_is_mended() {
        use sys::cublasStatus_t::{CUBLAS_STATUS_EXECUTION_FAILED, CUBLAS_STATUS_NOT_SUPPORTED};
        assert!(has_no_algorithm(&wrap(CublasError(CUBLAS_STATUS_NOT_SUPPORTED))));
        assert!(!has_no_algorithm(&wrap(CublasError(CUBLAS_STATUS_EXECUTION_FAILED))));
        assert!(!has_no_algorithm(&Error::Msg("no algorithm".to_owned())));
    }
}
