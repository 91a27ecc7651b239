//! Settings of a device, made once after it was opened.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::result;
use candle_core::cuda_backend::cudarc::driver::sys::CUmemPool_attribute_enum;
use candle_core::{CudaDevice, Device, Result};

/// Turns off the events with which candle synchronises streams, several for each kernel. Call it
/// before there are tensors on the device, and only for one that was opened with its own stream.
pub fn disable_event_tracking(device: &Device) {
    if let Device::Cuda(device) = device {
        // SAFETY: the events keep streams from overtaking each other. This device has one stream of
        // its own, on which candle and this crate launch all kernels and free all memory, from any
        // thread, and nothing else in this program uses the GPU.
        unsafe { device.disable_event_tracking() }
    }
}

/// Makes the driver keep freed memory for the next allocation, instead of returning it to the system
/// whenever the device is waited for. Returns whether the device has pools of memory at all; without
/// them every allocation and every free waits for the device.
///
/// # Errors
/// The driver refuses.
pub fn keep_memory(device: &CudaDevice) -> Result<bool> {
    let stream = device.cuda_stream();
    let context = stream.context();
    if !context.has_async_alloc() {
        return Ok(false);
    }
    let mut most = u64::MAX;
    // SAFETY: the device is open, its pool exists as long as it does, and this attribute is a u64.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device()).w()?;
        result::mem_pool::set_attribute(
            pool,
            CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut most).cast(),
        )
        .w()?;
    }
    Ok(true)
}
