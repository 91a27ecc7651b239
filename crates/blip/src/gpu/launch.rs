//! What launching a kernel costs.

use candle_core::Device;

/// Does `work`, and meanwhile the shapes and strides that candle passes to its CUDA kernels are
/// copied to the device only the first time that they occur.
///
/// candle otherwise allocates, copies and frees them for every launch over a broadcast tensor or one
/// with gaps. It keeps them for CUDA graphs, but nothing in it asks for a graph. In the same time it
/// keeps small tensors that are made from host memory, for good and by their content: none may be
/// made in `work`.
#[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
pub(super) fn keeping_shapes<T>(device: &Device, work: impl FnOnce() -> T) -> T {
    #[cfg(feature = "cuda")]
    let _guard = device.as_cuda_device().ok().map(|device| device.enable_cuda_graph_htod_cache());
    work()
}
