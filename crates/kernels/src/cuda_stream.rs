//! A guarantee about a GPU that only the code that opened it can give.

use candle_core::Device;

/// Turns off the events with which candle synchronises streams, several for each kernel. Call it
/// before there are tensors on the device, and only for one that was opened with its own stream.
pub fn disable_event_tracking(device: &Device) {
    if let Device::Cuda(device) = device {
        // SAFETY: the events keep streams from overtaking each other. This device has one stream of
        // its own, on which candle launches all kernels and frees all memory, from any thread, and
        // nothing else in this program uses the GPU.
        unsafe { device.disable_event_tracking() }
    }
}
