//! What only a GPU's owner can promise of it.

use candle_core::Device;

/// Lets the tensors of a GPU do without events between streams, of which each kernel would otherwise
/// record some for each of its operands. To be called before there are tensors on it.
pub fn disable_event_tracking(device: &Device) {
    if let Device::Cuda(device) = device {
        // SAFETY: the events keep several streams from getting ahead of each other. This device was
        // opened with a stream of its own, on which candle does all of its work and frees all of its
        // memory, from whatever thread; nothing else in this program uses the GPU.
        unsafe { device.disable_event_tracking() }
    }
}
